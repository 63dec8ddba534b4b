"""From the journal to the artifact, and what can be said of it."""

from __future__ import annotations

import gc
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import artifacts, lalm, lineage, manifest
from mifuse_cli.answer_counts import AnswerCounts
from mifuse_cli.artifacts import Lalm, Parent
from mifuse_cli.steps.query_lalm.config import QueryLalmConfig, QueryLalmResult

_CLIPS_AT_A_TIME = 2000


def batch_directory(out: Path) -> Path:
    """Where the questions behind the artifact ``out`` wait for ``vllm run-batch``."""
    return out.with_name(out.name + ".vllm-batch")


def parents_of(
    config: QueryLalmConfig, where: Path, files: Iterable[tuple[str, str]], texts: Iterable[tuple[str, str]]
) -> list[Parent]:
    """The audio of the clips, and what the prompts tell of them, as parents.

    Args:
        config: of the run.
        where: manifest or directory of the clips.
        files: id and SHA-256 of the file of every clip, sorted by id.
        texts: id and context of every clip, sorted by id.
    """
    place = lineage.relative(where, config.out)
    parents = [Parent("clips", place, manifest.digest_of(files))]
    if config.context_column:
        parents.append(Parent("context", place, manifest.digest_of(texts)))
    return parents


@contextmanager
def _no_collection() -> Iterator[None]:
    """Keep Python from looking for circles, of which none are made; it would take a third of the time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def save_artifact(
    config: QueryLalmConfig, where: Path, questions: lalm.OpenQuestions, price: lalm.Price | None
) -> QueryLalmResult:
    """Write the artifact from what the journal holds, block by block.

    Args:
        config: of the run.
        where: manifest or directory of the clips.
        questions: all about them.
        price: of the model, if known.
    """
    options, journal = questions.options, questions.journal
    classes, sums = options.classes, AnswerCounts()
    flags, models = Counter[str](), Counter[str]()
    end, rejections = 0, ""
    with _no_collection(), artifacts.writing(config.out, Lalm, classes) as writer:
        for block in journal.clips(_CLIPS_AT_A_TIME):
            found = lalm.answer_arrays(block, questions)
            sums.add(found.probs, found.status, found.usage)
            flags.update(found.flags)
            models.update(found.models)
            rejections = found.rejection or rejections
            lengths = np.array([[len(text) for text in texts] for texts in found.texts], dtype=np.int64)
            ends = end + lengths.ravel().cumsum().reshape(lengths.shape)
            end = int(ends[-1, -1])
            raw = b"".join(text for texts in found.texts for text in texts)
            writer.append(
                utt_id=np.array([one.utt_id for one in block]),
                audio_sha256=np.array([one.sha256 for one in block]),
                probs=found.probs,
                status=found.status,
                order=found.order,
                usage=found.usage,
                raw=np.frombuffer(raw, dtype=np.uint8),
                raw_end=ends,
            )
        codes = {status.name.lower(): int(status) for status in lalm.Status}
        summary = sums.summary(
            options.n_samples, journal.accounts(), priced=price is not None, codes=codes, usage=lalm.USAGE
        )
        parameters: dict[str, Any] = {
            "model": config.model,
            "host": options.host,
            "spec": options.spec(),
            "spec_hash": options.spec_hash,
            "parser_version": lalm.PARSER_VERSION,
            "status_codes": codes,
            "usage_columns": list(lalm.USAGE),
            "complete": summary["complete"],
            "summary": summary,
            "answered_by": dict(sorted(models.items())),
            "flags": dict(sorted(flags.items())),
            "probe": journal.probed(options.host, config.model) or {},
        }
        parents = parents_of(config, where, journal.pairs("file_sha256"), journal.pairs("context"))
        writer.finish(lineage.header(config, classes, parents, **parameters))
    unresolved = journal.unresolved()
    notes = tuple(_notes(sums, models, unresolved, rejections, config))
    names = tuple(asked for asked, _ in unresolved)
    return QueryLalmResult(out=config.out, **summary, unresolved=names, notes=notes)


def summary_of(out: Path) -> QueryLalmResult:
    """What a saved artifact says of itself."""
    return QueryLalmResult(out=out, **artifacts.read_header(out)[1].parameters["summary"])


def _notes(
    sums: AnswerCounts,
    models: Counter[str],
    unresolved: Sequence[tuple[str, float]],
    rejection: str,
    config: QueryLalmConfig,
) -> Iterator[str]:
    if number := sums.statuses[lalm.Status.REJECTED]:
        yield f"{number} questions were rejected, the last one with: {rejection}"
    if number := sums.statuses[lalm.Status.TRUNCATED]:
        limit = config.max_tokens or "the number that --elicit has by default"
        yield f"{number} answers were cut off by the token limit ({limit}). {lalm.THINKING.rstrip('.')}"
    if number := sums.statuses[lalm.Status.SKIPPED]:
        yield f"{number // config.n_samples} clips are longer than {config.max_seconds:g} s and were left out"
    if (number := sums.statuses[lalm.Status.MISSING]) and config.transport != "vllm-batch":
        yield f"{number} questions are unanswered yet; run the command again to ask them"
    if unresolved:
        names = "; ".join(asked for asked, _ in unresolved[:5]) + ("; ..." if len(unresolved) > 5 else "")
        first = datetime.fromtimestamp(unresolved[0][1], UTC)
        yield (
            f"{len(unresolved)} requests may have been billed without an answer kept, since their outcome is not "
            f"known; the first was sent at {first:%Y-%m-%d %H:%M:%S} UTC: {names}"
        )
    if len(models) > 1:
        names = ", ".join(f"{name or 'a nameless one'} ({number})" for name, number in models.most_common())
        yield f"the answers are not all from one model: {names}. The name {config.model} may have moved on"
    if config.elicit == "label" and config.n_samples < 10:
        yield f"{config.n_samples} labels a clip make a coarse distribution; 10 or more are better"
