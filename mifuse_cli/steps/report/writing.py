"""Reading what was given, finding the audio, and writing the page."""

from __future__ import annotations

import base64
import os
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

import numpy as np

from mifuse_cli import audio, fusion
from mifuse_cli.audio import Excerpt
from mifuse_cli.config import Progress
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.files import atomic_file, refuse_existing
from mifuse_cli.manifest import Clip, Clips
from mifuse_cli.reporting import ClipToLabel, Labelling, Run, Shown, page
from mifuse_cli.steps.report.config import ReportConfig, ReportResult
from mifuse_cli.steps.report.reading import read_paths


def report(config: ReportConfig, *, progress: Progress | None = None) -> ReportResult:
    """Read all artifacts with their parents, and write the page.

    Raises:
        InputError: a path that is not there or cannot be read, nothing to report on, clips to label that are not from
            pick, or an output that exists.
        ArtifactError: a file that is no valid artifact, or clips to label that are in none of the runs.
        DependencyError: jinja2 is not installed.
    """
    refuse_existing(config.out, config.force, marks=(b'<meta name="generator" content="mifuse',))
    told = read_paths(config.paths)
    picked = _picked(config.pick) if config.pick else []
    first = [clip.utt_id for clip in picked]
    run_to_label = _run_of(config, [run for run, _ in told.runs], first) if config.pick else None
    addresses: list[list[str | None]] = []
    embedded = 0
    for run, clips in told.runs:
        files = [clip.excerpt if clip.path.is_file() else None for clip in clips or ()] or [None] * len(
            run.utt_id
        )
        order = _by_need(run, first if run is run_to_label else [])
        chosen = set([one for one in order if files[one]][: config.embed_audio - embedded])
        addresses.append(_addresses(files, chosen, config.out, progress))
        embedded += len(chosen)
    shown = [Shown(run, found) for (run, _), found in zip(told.runs, addresses, strict=True)]
    task = None
    if run_to_label is not None:
        task = _task(config, picked, next(one for one in shown if one.run is run_to_label))
    names = [run.name for run, _ in told.runs]
    text = page(config.title or _title(config.paths, names), shown, told.comparisons, task)
    with atomic_file(config.out) as temporary:
        temporary.write_text(text, encoding="utf-8")
    unheard = [
        one.run.name
        for one in shown
        if not any(one.audio) and len(one.run.utt_id) and not one.run.of_comparison
    ]
    return ReportResult(
        out=config.out,
        runs=tuple(names),
        comparisons=tuple(one.name for one in told.comparisons),
        clips=sum(len(run.utt_id) for run, _ in told.runs),
        embedded=embedded,
        to_label=len(picked),
        bytes=len(text.encode("utf-8")),
        notes=(
            (
                f"{', '.join(unheard)}: the clips' manifest or audio is not where it was, so that they cannot be heard",
            )
            if unheard
            else ()
        ),
    )


def _picked(path: Path) -> list[Clip]:
    """The clips of a CSV of pick, labelled or not.

    Raises:
        InputError: it cannot be read, or is another table.
    """
    clips = Clips(path, None, need_audio=False)
    if absent := [name for name in ("utt_id", "inclusion") if name not in clips.columns]:
        raise InputError(
            f"--pick {path}: has no column {' and no column '.join(map(repr, absent))} (found: "
            f"{', '.join(clips.columns)}), so that it is not from mifuse pick. "
            "Make one: mifuse pick --fused FILE --out CSV"
        )
    return list(clips)


def _title(paths: Sequence[Path], names: Sequence[str]) -> str:
    named = names[0] if len(names) == 1 else Path(os.path.abspath(paths[0])).name
    return f"mifuse: {named}"


def _run_of(config: ReportConfig, runs: Sequence[Run], ids: Sequence[str]) -> Run:
    """The run whose clips are to be labelled."""
    for run in runs:
        if set(ids) <= set(run.utt_id.tolist()):
            return run
    raise ArtifactError(
        f"--pick {config.pick}: its clips, such as {ids[0]!r}, are in none of the {len(runs)} runs of the report. "
        "Give the artifacts that it was picked from."
    )


def _by_need(run: Run, first: Sequence[str]) -> list[int]:
    """Positions of the clips in the order in which their audio goes into the page."""
    at = {name: position for position, name in enumerate(run.utt_id.tolist())}
    teachers = [one.probs for one in run.of_role("lalm", "source")]
    differ = fusion.disagreements(np.stack(teachers, axis=1)) if teachers else np.zeros(len(at))
    order = np.argsort(-np.nan_to_num(differ, nan=-1.0), kind="stable").tolist()
    return list(dict.fromkeys([*(at[name] for name in first), *order]))


def _addresses(
    files: Sequence[Excerpt | None], chosen: set[int], out: Path, progress: Progress | None
) -> list[str | None]:
    """Where the page finds the audio of every clip: in itself for those that are chosen, else beside it."""
    found: list[str | None] = []
    inside, home = 0, os.path.realpath(out.parent)
    for position, file in enumerate(files):
        if file is None:
            found.append(None)
        elif position in chosen:
            found.append(_data(file))
            inside += 1
            if progress:
                progress("embedding audio", inside, len(chosen))
        else:
            relative = os.path.relpath(os.path.realpath(file.path), home)
            found.append(quote(os.fsencode(Path(relative).as_posix())) + _fragment(file))
    return found


def _fragment(clip: Excerpt) -> str:
    """What tells a browser to play a part of a recording alone (W3C Media Fragments), "" for a whole one."""
    if not clip.start and clip.end is None:
        return ""
    return f"#t={clip.start:.3f}" + ("" if clip.end is None else f",{clip.end:.3f}")


def _data(clip: Excerpt) -> str:
    """The audio as an address that holds it: 16 kHz mono, 16 bit, losslessly compressed."""
    return f"data:audio/flac;base64,{base64.b64encode(audio.flac_bytes(audio.read(*clip))).decode()}"


def _task(config: ReportConfig, picked: Sequence[Clip], shown: Shown) -> Labelling:
    assert config.pick is not None
    heard = dict(zip(shown.run.utt_id.tolist(), shown.audio, strict=True))
    clips = [
        ClipToLabel(
            utt_id=clip.utt_id,
            file=Path(os.path.relpath(clip.path, config.pick.parent)).as_posix(),
            speaker=clip.speaker or "",
            inclusion=clip.extra.get("inclusion", ""),
            audio=heard[clip.utt_id],
        )
        for clip in picked
    ]
    return Labelling(shown.run.classes, clips)
