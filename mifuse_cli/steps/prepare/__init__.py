"""``mifuse prepare``: turn an unpacked corpus into a manifest of clips and a separate file of their labels."""

from __future__ import annotations

import json
import os
import shlex
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mifuse_cli import audio, corpora, lineage, manifest, provenance
from mifuse_cli.config import Progress, as_dict, settings
from mifuse_cli.corpora import Corpus, Utterance
from mifuse_cli.corpora.selection import (
    Chosen,
    Comparison,
    Wanted,
    check_utterances,
    check_wanted,
    compare,
    emotion_of,
    select,
)
from mifuse_cli.errors import InputError, UsageError, listed, some
from mifuse_cli.files import atomic_directory, remove_leftovers
from mifuse_cli.labels import composed
from mifuse_cli.steps.prepare.config import PrepareConfig, PrepareResult, pairs
from mifuse_cli.steps.prepare.hearing import hear
from mifuse_cli.steps.prepare.writing import SUMMARY, Row, count, write_files, write_kaldi

__all__ = ["PrepareConfig", "PrepareResult", "prepare"]

_VERSION = 1
_NO_EMOTIONS = "If the folders are no emotions, prepare nothing and give --wav-dir to the other commands."


def prepare(config: PrepareConfig, *, progress: Progress | None = None) -> PrepareResult:
    """Read a corpus, check it, and write manifest, labels, speakers and a summary into a directory.

    Raises:
        UsageError: names that the corpus does not have.
        InputError: a root that is not this corpus, unknown labels, repeated ids, audio that is missing or
            cannot be decoded (unless allowed), no clip left, an output that exists.
    """
    _refuse_overwrite(config)
    corpus = corpora.find(config.corpus)
    wanted = config.wanted(corpus)
    check_wanted(corpus, wanted)
    if config.columns and not corpus.columns:
        raise UsageError(f"--columns: the files of {corpus.name} have columns of their own. Leave it out.")
    if progress:
        progress("reading labels", 0, 1)
    root = config.root.absolute()
    utterances = list(corpus.read(root, pairs(config.columns)) if corpus.columns else corpus.read(root))
    check_utterances(corpus, utterances)
    proposed = _merge_proposal(corpus, utterances, wanted)
    try:
        selection = select(corpus, utterances, wanted)
    except InputError as error:
        advice = proposed or (_NO_EMOTIONS if corpus.columns and root.is_dir() else "")
        raise InputError(f"{error}{advice and ' '}{advice}") from None
    if progress:
        progress("reading labels", 1, 1)
    digest = _digest(config, selection.chosen)
    if config.update and not config.force and (summary := _current(config.out, digest)):
        remove_leftovers(config.out)
        return _result(config.out, summary, up_to_date=True)
    with atomic_directory(config.out, replace=config.force or config.update) as directory:
        rows, silent = hear(config, corpus, selection.chosen, directory, progress)
        published = compare(corpus, utterances)
        summary = {
            "corpus": corpus.name,
            "root": str(root),
            **count(rows),
            "left_out": selection.left_out,
            "published": [vars(one) for one in published],
            "notes": _notes(config, corpus, published, rows, silent, proposed),
            "config": as_dict(config),
            "digest": digest,
            "created": provenance.now(),
            "command": provenance.command_line(),
            "versions": provenance.versions(),
        }
        if config.kaldi:
            write_kaldi(directory / "kaldi", corpus, rows)
        write_files(directory, corpus, rows, summary)
    return _result(config.out, summary)


def _refuse_overwrite(config: PrepareConfig) -> None:
    out = config.out
    if os.path.lexists(out) and not (out.is_dir() and not any(out.iterdir())):
        others = _other_files(out)
        if others is None:
            raise InputError(
                f"{out}: is not a prepared corpus. Choose another OUT; neither --force nor --update replaces it."
            )
        if not config.force and not config.update:
            raise InputError(
                f"{out}: exists already. Choose another OUT, or pass --force to overwrite it "
                "(--update to do so only if its settings or inputs changed)."
            )
        if others:
            raise InputError(
                f"{out}: holds more than a prepared corpus, which would be lost: {some(others)}. Move that away, or "
                "choose another OUT."
            )
    lineage.refuse_inputs(config, out)


def _other_files(out: Path) -> list[str] | None:
    """Files in a prepared corpus that ``prepare`` did not write, None if it is none."""
    try:
        summary = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        known = {*summary["files"], SUMMARY} if "digest" in summary and "corpus" in summary else None
    except (OSError, ValueError, KeyError, TypeError):
        return None
    if known is None:
        return None
    found = (
        path.relative_to(out).as_posix() for path in out.rglob("*") if not path.is_dir() or path.is_symlink()
    )
    return sorted(name for name in found if name not in known and not Path(name).name.startswith("."))


def _digest(config: PrepareConfig, chosen: Sequence[Chosen]) -> str:
    """Hash of everything that determines the output: options, rows, and size and time of every audio file."""
    lines = [json.dumps([_VERSION, settings(config)], sort_keys=True)]
    for one in chosen:
        path = one.utterance.path
        try:
            stat = path.stat() if path else None
        except OSError:
            stat = None
        state = (stat.st_size, stat.st_mtime_ns) if stat else None
        lines.append(repr((one, state)))
    return provenance.text_digest("\n".join(lines))


def _current(out: Path, digest: str) -> dict[str, Any] | None:
    """The summary of a complete output with this digest, None if there is none."""
    try:
        summary: dict[str, Any] = json.loads((out / SUMMARY).read_text(encoding="utf-8"))
        whole = all(audio.file_sha256(out / name) == sha256 for name, sha256 in summary["files"].items())
    except (OSError, ValueError, KeyError, InputError):
        return None
    return summary if whole and summary.get("digest") == digest else None


def _merge_proposal(corpus: Corpus, utterances: Sequence[Utterance], wanted: Wanted) -> str:
    """The option that would take labels which name one of the classes in another word or form, "" if none does."""
    if corpus.labels is not None:
        return ""
    from mifuse_cli import lalm

    meant = lalm.resolver(wanted.classes)
    taken = {composed(name).casefold() for name in (*wanted.merge, *wanted.classes)}
    there = {emotion_of(corpus, one.label) for one in utterances if one.label}
    labels = sorted(label for label in there if label.casefold() not in taken)
    other = {label: name for label in labels if not set(label) & {",", "="} and (name := meant(label))}
    if not other:
        return ""
    merge = ",".join(f"{label}={name}" for label, name in {**wanted.merge, **other}.items())
    return (
        f"{some(other)}: other names of classes that were asked for? --merge {shlex.quote(merge)} takes them."
    )


def _notes(
    config: PrepareConfig,
    corpus: Corpus,
    published: Sequence[Comparison],
    rows: Sequence[Row],
    silent: list[str],
    proposed: str,
) -> list[str]:
    notes = [note for note in (corpus.note, proposed.rstrip(".")) if note]
    if config.root.is_dir() and (
        others := _sound_passed_over(config.root, everything=corpus.name == "generic")
    ):
        notes.append(f"passed over: {manifest.described(others)}")
    if silent:
        notes.append(
            f"{len(silent)} clips were left out as their audio is missing or cannot be heard: {listed(silent)}"
        )
    if any(one.published != one.found for one in published):
        notes.append("this copy differs from the published counts: see the table; a partial copy is fine")
    unknown = sum(not row.utterance.speaker for row in rows)
    if unknown:
        notes.append(f"the speaker of {unknown} of {len(rows)} clips is not known")
    if not any(row.emotion for row in rows):
        notes.append("nothing is labelled: there is no labels.csv")
    for name in (name for name in config.wanted(corpus).classes if rows[0].emotion):
        if not any(row.emotion == name for row in rows):
            notes.append(f"no clip is {name!r}")
    return notes


def _sound_passed_over(root: Path, *, everything: bool) -> Counter[str]:
    """Files below the root of a corpus that could be clips but are not taken; any files, if ``everything``."""
    others = manifest.passed_over(root)
    return (
        others if everything else Counter({end: n for end, n in others.items() if end in audio.NOT_DECODED})
    )


def _result(out: Path, summary: dict[str, Any], *, up_to_date: bool = False) -> PrepareResult:
    fields = {name: summary[name] for name in PrepareResult.__dataclass_fields__ if name in summary}
    result = PrepareResult(out=out, **{**fields, "notes": tuple(summary["notes"])})
    return replace(result, up_to_date=up_to_date)
