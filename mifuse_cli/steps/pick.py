"""``mifuse pick``: choose the clips whose true classes would help most, for labelling by ear."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mifuse_cli import artifacts, fusion, lineage, manifest, provenance
from mifuse_cli.artifacts import Fused, Source
from mifuse_cli.config import Config, Progress, StepResult, at_least, option
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import atomic_file, refuse_existing
from mifuse_cli.fusion import Picked
from mifuse_cli.manifest import Clip

COLUMNS = ("file", "utt_id", "speaker", "emotion", "inclusion")


@dataclass(frozen=True, kw_only=True)
class PickConfig(Config):
    """Choose clips to label: those on which teachers disagree or are uncertain, spread over classes and voices.

    Every clip has a known chance of being chosen, so that accuracy over all clips can be estimated from the chosen
    ones. Label them in the page of mifuse report --pick, or fill in the column emotion; fuse --gold and evaluate take
    the file then.
    """

    fused: Path = option(help="Artifact of fuse.")
    n: int = option(50, "Number of clips.")
    out: Path = option(help="CSV to write, with an empty column emotion.", endings=(".csv",))
    seed: int = option(0, "Seed of the draw.")
    force: bool = option(False, "Overwrite an existing --out.")

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from at_least("--n", self.n, 1)


@dataclass(frozen=True, kw_only=True)
class PickResult(StepResult):
    """What was chosen.

    Attributes:
        out: the CSV.
        clips: number of clips chosen.
        of: number of clips that could be chosen.
        by_label: number of clips chosen by most probable class of the fused labels.
        speakers: number of speakers or voices among the clips chosen; 0 if not known.
    """

    clips: int
    of: int
    by_label: dict[str, int]
    speakers: int


def pick(config: PickConfig, *, progress: Progress | None = None) -> PickResult:
    """Draw the clips and write them in random order, in which they can be labelled without bias if work stops early.

    Raises:
        InputError: the output exists, or the clips' manifest is not where it was.
        ArtifactError: no artifact of fuse, or every clip has a true class already.
    """
    refuse_existing(config.out, config.force, marks=(",".join(COLUMNS).encode(),))
    fused = Fused.load(config.fused)
    clips = lineage.clips_of(fused, config.fused)
    if clips is None:
        raise InputError(
            f"{config.fused}: the manifest or directory of its clips is not there, which names the audio. Put it back, "
            f"or make the artifact anew: {fused.header.command}"
        )
    ids = np.array([clip.utt_id for clip in clips])
    at = artifacts.positions(fused.utt_id, str(config.fused), ids, "the clips that it names")
    clips = [clips[position] for position in at]
    free = np.ones(len(clips), bool) if fused.gold is None else ~np.isin(fused.utt_id, fused.gold)
    if not free.any():
        raise ArtifactError(
            f"{config.fused}: was made with the true class of every clip. There is none to label."
        )
    voices = _voices(config, fused, clips)
    found = fusion.picked(
        fused.probs[free].astype(float),
        fused.mean[free].astype(float),
        fused.mi[free].astype(float),
        None if voices is None else voices[free],
        config.n,
        provenance.rng(config.seed, "pick"),
    )
    position = np.flatnonzero(free)[found.position]
    _write(config.out, [clips[one] for one in position], found)
    counts = np.bincount(found.stratum, minlength=len(fused.header.classes)).tolist()
    few = len(position) < config.n
    return PickResult(
        out=config.out,
        clips=len(position),
        of=int(free.sum()),
        by_label=dict(zip(fused.header.classes, counts, strict=True)),
        speakers=0 if voices is None else len(np.unique(voices[position])),
        notes=(f"there are only {len(position)} clips; all are chosen",) if few else (),
    )


def _voices(config: PickConfig, fused: Fused, clips: list[Clip]) -> np.ndarray | None:
    """Speaker (U,) of every clip, or its cluster by the vectors of a speaker encoder; None if neither is known."""
    known = manifest.speakers_of(clips)
    if known is not None:
        return np.array(known)
    named = fused.header.parent("source")
    place = lineage.place_of(named, config.fused) if named else None
    if place is None or not place.is_file():
        return None
    vectors = Source.load(place).voice
    if vectors is None:
        return None
    from mifuse_cli.fusion.voices import clustered_vectors

    found = clustered_vectors(
        vectors.astype(float), fused.probs.astype(float), provenance.rng(config.seed, "voices")
    )
    return found[0] if found else None


def _write(out: Path, clips: list[Clip], found: Picked) -> None:
    """The CSV; it does not tell what is predicted, so that who labels by it is not led."""
    with atomic_file(out) as temporary, temporary.open("w", newline="", encoding="utf-8") as file:
        rows = csv.writer(file, lineterminator="\n")
        rows.writerow(COLUMNS)
        for clip, chance in zip(clips, found.inclusion, strict=True):
            where = lineage.relative(clip.path, out)
            rows.writerow([Path(where).as_posix(), clip.utt_id, clip.speaker or "", "", f"{chance:.6g}"])
