"""``mifuse fuse``: weight the teachers of every clip by their uncertainty and pool them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from itertools import chain, count
from pathlib import Path

import numpy as np

from mifuse_cli import artifacts, fusion, lineage
from mifuse_cli.artifacts import Fused, Lalm, Parent, Source
from mifuse_cli.config import Progress, StepConfig, above_zero, one_of, option
from mifuse_cli.errors import ArtifactError, InputError

_SILENT_MI = 1e-4
"""Mutual information in nats below which a teacher's answers count as identical."""


@dataclass(frozen=True, kw_only=True)
class FuseConfig(StepConfig):
    """Fuse the audio-language models' and the source classifier's distributions into one label a clip."""

    lalm: tuple[Path, ...] = option(
        help="Artifact of query-lalm; give the option again for every further LALM "
        "(in the environment: separated as in PATH)."
    )
    source: Path = option(help="Artifact of sample-source.")
    out: Path = option(help="Artifact to write.")
    weighting: str = option("mi", f"Weight of a teacher: {', '.join(fusion.WEIGHTINGS)}.")
    tau: float = option(0.1, "Temperature of --weighting mi, w = exp(-I / tau), in nats: small is sharp.")
    pool: str = option("linear", "linear: weighted mean; log: weighted geometric mean.")
    mi_estimator: str = option(
        "scaled", "scaled: I * N/(N-1), which undoes the bias of few samples; plugin: I."
    )
    partial: bool = option(False, "Fuse although some questions to a LALM are unanswered.", settles=False)

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        if not self.lalm:
            yield "--lalm: expected at least one artifact"
        for path in dict.fromkeys(self.lalm):
            if self.lalm.count(path) > 1:
                yield f"--lalm {path}: given {self.lalm.count(path)} times, expected once"
        yield from one_of("--weighting", self.weighting, fusion.WEIGHTINGS)
        yield from one_of("--pool", self.pool, fusion.POOLS)
        yield from one_of("--mi-estimator", self.mi_estimator, fusion.MI_ESTIMATORS)
        yield from above_zero("--tau", self.tau)


@dataclass(frozen=True)
class FuseResult:
    """What came of the fusion.

    Teachers are the LALMs in the order given, then the source classifier. One LALM is named "lalm", several by
    their artifacts' file names or, if those do not tell them apart, by their models; the classifier is "source".

    Attributes:
        out: the artifact.
        clips: U.
        fallbacks: clips that no LALM gave a valid answer to, labelled by the source teacher alone.
        without_answer: by LALM, the clips that it gave no valid answer to.
        mean_mi: mean mutual information by teacher, in nats.
        mean_weight: mean weight by teacher.
        agreement: share of clips (with all teachers) on whose most probable class all agree.
        marginal: mean fused probability by class.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path
    clips: int
    fallbacks: int
    without_answer: dict[str, int]
    mean_mi: dict[str, float]
    mean_weight: dict[str, float]
    agreement: float
    marginal: dict[str, float]
    up_to_date: bool = False
    notes: tuple[str, ...] = ()


def fuse(config: FuseConfig, *, progress: Progress | None = None) -> FuseResult:
    """Fuse the artifacts of any number of LALMs and of the classifier, joined by utterance id.

    Raises:
        InputError: an artifact that cannot be read, the same answers twice, or an output that exists.
        ArtifactError: artifacts over other classes or clips, of the wrong kind, or with changed parents; a LALM
            without any answer, or with unanswered questions unless ``partial``.
    """
    lineage.refuse_overwrite(config, config.out)
    lalms, source = _load(config)
    parents = _parents(config, source)
    teachers = _names(lalms)
    if lineage.is_current(config, config.out, parents):
        made = Fused.load(config.out)
        if made.header.parameters["teachers"] == teachers:
            return _result(config.out, made, up_to_date=True)
    samples = [*(lalm.probs for lalm in lalms.values()), source.probs]
    stats = [fusion.mean_and_mi(probs.astype(float), config.mi_estimator) for probs in samples]
    mean = np.stack([mean for mean, _ in stats], axis=1)
    mi = np.stack([mi for _, mi in stats], axis=1)
    for path, silent in zip(lalms, np.isnan(mi[:, :-1]).all(axis=0), strict=True):
        if silent:
            raise ArtifactError(f"{path}: holds no valid answer at all. Look at it with: mifuse show {path}")
    weights, probs = fusion.fuse(mean, mi, weighting=config.weighting, tau=config.tau, pool=config.pool)
    unanswered = {
        name: _unanswered(lalm)
        for name, lalm in zip(teachers[:-1], lalms.values(), strict=True)
        if not _is_complete(lalm)
    }
    model = source.header.parent("model")
    artifact = Fused(
        header=lineage.header(
            config,
            source.header.classes,
            parents,
            teachers=teachers,
            weighting=config.weighting,
            tau=config.tau,
            pool=config.pool,
            mi_estimator=config.mi_estimator,
            source_samples=source.probs.shape[1],
            source_normalize=source.header.parameters["normalize"],
            source_calibrate=source.header.parameters["calibrate"],
            source_model_sha256=model.sha256 if model else None,
            **({"unanswered": unanswered} if unanswered else {}),
        ),
        utt_id=source.utt_id,
        probs=probs.astype(np.float32),
        weights=weights.astype(np.float32),
        mean=mean.astype(np.float32),
        mi=mi.astype(np.float32),
    )
    artifact.save(config.out)
    return _result(config.out, artifact)


def _load(config: FuseConfig) -> tuple[dict[Path, Lalm], Source]:
    """The artifacts, if they are whole and over the same clips."""
    lalms, source = {path: Lalm.load(path) for path in config.lalm}, Source.load(config.source)
    for path, lalm in lalms.items():
        artifacts.check_same_clips(lalm, str(path), source, str(config.source))
    lineage.check_parents(source, config.source)
    for path, lalm in lalms.items():
        lineage.check_same_audio(lalm, str(path), source.header.parent("clips"), str(config.source))
    partial = [
        f"{path}: {_unanswered(lalm)} of {lalm.status.size} questions are unanswered; to ask them, run its "
        f"command again: {lalm.header.command}"
        for path, lalm in lalms.items()
        if not _is_complete(lalm)
    ]
    if partial and not config.partial:
        raise ArtifactError(f"{'. '.join(partial)}. Or pass --partial to fuse the answers that there are.")
    return lalms, source


def _is_complete(lalm: Lalm) -> bool:
    """Whether every question was asked; an artifact that does not tell was made when all were."""
    return lalm.header.parameters.get("complete", True)


def _unanswered(lalm: Lalm) -> int:
    return int((lalm.status == lalm.header.parameters["status_codes"]["missing"]).sum())


def _parents(config: FuseConfig, source: Source) -> list[Parent]:
    parents = [lineage.parent("lalm", path, config.out) for path in config.lalm]
    first: dict[str, Path] = {}
    for path, one in zip(config.lalm, parents, strict=True):
        other = first.setdefault(one.sha256, path)
        if other != path:
            raise InputError(f"{path}: holds the same as {other}, which would count twice. Give one of them.")
    parents.append(lineage.parent("source", config.source, config.out))
    heard = source.header.parent("clips")
    if heard is not None:
        clips = lineage.relative(config.source.parent / heard.path, config.out)
        parents.append(Parent("clips", clips, heard.sha256))
    return parents


def _names(lalms: Mapping[Path, Lalm]) -> list[str]:
    """Names of the teachers, no two the same, the classifier's last."""
    if len(lalms) == 1:
        return ["lalm", "source"]
    stems = [path.stem for path in lalms]
    if len({*stems, "source"}) > len(stems):
        return [*stems, "source"]
    names: list[str] = []
    for lalm in lalms.values():
        model = lalm.header.parameters["model"]
        numbered = chain([model], (f"{model}-{number}" for number in count(2)))
        names.append(next(name for name in numbered if name not in (*names, "source")))
    return [*names, "source"]


def _result(out: Path, artifact: Fused, *, up_to_date: bool = False) -> FuseResult:
    teachers = artifact.header.parameters["teachers"]
    silent = np.isnan(artifact.mi)
    answered = ~silent.any(axis=1)
    best = artifact.mean[answered].argmax(axis=-1)
    fallbacks = int(silent[:, :-1].all(axis=1).sum())
    identical = (artifact.mi < _SILENT_MI).sum(axis=0) / (~silent).sum(axis=0)
    notes = [
        f"{name}: answers are identical on {share:.0%} of clips, so mutual information says nothing about it; "
        "sample it at a temperature above 0 or use --weighting uniform"
        for name, share in zip(teachers, identical, strict=True)
        if share > 0.95
    ]
    notes += [
        f"{name}: {number} questions are unanswered; fuse again once they are answered"
        for name, number in artifact.header.parameters.get("unanswered", {}).items()
    ]
    if fallbacks:
        notes.append(
            f"{fallbacks} clips have no valid LALM answer and take the source teacher's distribution"
        )
    return FuseResult(
        out=out,
        clips=len(artifact.utt_id),
        fallbacks=fallbacks,
        without_answer=dict(zip(teachers[:-1], map(int, silent[:, :-1].sum(axis=0)), strict=True)),
        mean_mi=dict(zip(teachers, map(float, np.nanmean(artifact.mi, axis=0)), strict=True)),
        mean_weight=dict(zip(teachers, map(float, artifact.weights.mean(axis=0)), strict=True)),
        agreement=float((best == best[:, :1]).all(axis=1).mean()) if answered.any() else float("nan"),
        marginal=dict(zip(artifact.header.classes, map(float, artifact.probs.mean(axis=0)), strict=True)),
        up_to_date=up_to_date,
        notes=tuple(notes),
    )
