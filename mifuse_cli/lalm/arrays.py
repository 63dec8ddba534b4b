"""From the answers in the journal to arrays: distributions, statuses, tokens and texts of some clips."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mifuse_cli.lalm.answers.elicitation import Answer
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.cost.estimate import Observation
from mifuse_cli.lalm.cost.prices import Price, cost_of
from mifuse_cli.lalm.journal.open_questions import OpenQuestions
from mifuse_cli.lalm.questions.clips import AskedClip
from mifuse_cli.lalm.questions.plan import first_questions

USAGE = ("prompt", "completion", "total", "audio", "cached")


@dataclass(frozen=True)
class AnswerArrays:
    """Answers about U clips, N samples each, K classes.

    Attributes:
        probs: (U, N, K) float32, NaN where there is no distribution.
        status: (U, N) uint8, see `Status`.
        order: (U, N, K) uint8, class indices as the prompt listed them.
        usage: (U, N, 5) int32 tokens as in `USAGE`, -1 where not known. A response that holds several
            samples counts for the first of them; samples asked again count all that they took.
        texts: U x N raw answers as UTF-8.
        flags: how often each flag of `Parsed` was needed to read an answer.
        models: how many answers came from each model, by the name that the service gave it.
        rejection: a message by which the service rejected a question, "" if it rejected none.
    """

    probs: np.ndarray
    status: np.ndarray
    order: np.ndarray
    usage: np.ndarray
    texts: list[list[bytes]]
    flags: Counter[str]
    models: Counter[str]
    rejection: str


def answer_arrays(clips: Sequence[AskedClip], questions: OpenQuestions) -> AnswerArrays:
    """Read all that the journal holds on these clips.

    A sample of a clip in pieces is the mean of its pieces' distributions, weighted by their length; it has
    none if one of them has none. Of a question asked again the first readable answer counts.

    Args:
        clips: U clips of the journal.
        questions: about them.
    """
    u, n, k = len(clips), questions.options.n_samples, len(questions.options.classes)
    asked = list(first_questions(questions.options, clips))
    answers = questions.answers(asked)
    lacking = (one.key for one in asked if any((one.key, c) not in answers for c in range(one.choices)))
    rejected = questions.journal.rejected(lacking)
    flags: Counter[str] = Counter()
    place = {clip.utt_id: number * n for number, clip in enumerate(clips)}
    cells = [_MISSING if clip.pieces else _SKIPPED for clip in clips for _ in range(n)]
    orders = [(0,) * k] * (u * n)
    pieces: dict[int, list[tuple[float, _Cell]]] = {}
    for question in asked:
        start = place[question.clip.utt_id] + question.first
        for choice in range(question.choices):
            orders[start + choice] = question.order
            tries = answers.get((question.key, choice))
            nothing = _REJECTED if question.key in rejected else _MISSING
            cell = _cell(tries, flags) if tries else nothing
            if len(question.clip.pieces) == 1:
                cells[start + choice] = cell
            else:
                pieces.setdefault(start + choice, []).append((question.seconds, cell))
    for number, parts in pieces.items():
        cells[number] = _joined(parts)
    unknown = (np.nan,) * k
    probs = np.array([unknown if cell.probs is None else cell.probs for cell in cells], dtype=np.float32)
    texts = [cell.text for cell in cells]
    return AnswerArrays(
        probs=probs.reshape(u, n, k),
        status=np.array([cell.status for cell in cells], dtype=np.uint8).reshape(u, n),
        order=np.array(orders, dtype=np.uint8).reshape(u, n, k),
        usage=np.array([cell.usage for cell in cells], dtype=np.int32).reshape(u, n, len(USAGE)),
        texts=[texts[start : start + n] for start in range(0, u * n, n)],
        flags=flags,
        models=Counter(one.model for tries in answers.values() for one in tries),
        rejection=next(iter(rejected.values()), ""),
    )


def observations(questions: OpenQuestions, price: Price | None, *, batch: bool = False) -> list[Observation]:
    """What clips took so far; those of which the service does not tell are left out.

    Args:
        questions: about the clips.
        price: of the model, None if not known.
        batch: whether batch mode is used.
    """
    found = []
    for block in questions.clips():
        for clip in block:
            usage = answer_arrays([clip], questions).usage[0]
            sent = usage[usage[:, 0] != 0]  # further choices of a response count with its first
            if not len(sent) or (sent[:, :2] < 0).any():
                continue
            seconds = sum(clip.pieces) * len(sent)
            tokens = dict(zip(USAGE, map(int, sent.sum(axis=0)), strict=True))
            usd = cost_of(tokens, price, seconds=seconds, batch=batch) if price else None
            found.append(Observation(seconds, tokens["prompt"], tokens["completion"], usd))
    return found


class _Cell(NamedTuple):
    """One sample of one clip, or of one piece of it."""

    status: Status
    probs: Sequence[float] | None
    text: bytes
    usage: Sequence[int]


_UNKNOWN = (-1,) * len(USAGE)
_MISSING = _Cell(Status.MISSING, None, b"", _UNKNOWN)
_REJECTED = _Cell(Status.REJECTED, None, b"", _UNKNOWN)
_SKIPPED = _Cell(Status.SKIPPED, None, b"", _UNKNOWN)


def _cell(tries: list[Answer], flags: Counter[str]) -> _Cell:
    shown = tries[0]
    usage: Sequence[int] = tuple(shown.usage.values())
    if len(tries) > 1:
        shown = next((one for one in tries if one.parsed.probs is not None), shown)
        usage = _sum([tuple(one.usage.values()) for one in tries])
    parsed = shown.parsed
    if parsed.flags:
        flags.update(parsed.flags)
    return _Cell(parsed.status, parsed.probs, shown.text.encode("utf-8", errors="replace"), usage)


def _joined(parts: list[tuple[float, _Cell]]) -> _Cell:
    """One sample of a clip that was asked about in pieces of so many seconds."""
    cells = [cell for _, cell in parts]
    statuses = [cell.status for cell in cells]
    for nothing in (_REJECTED, _MISSING):
        if nothing.status in statuses:
            return nothing
    status = next((one for one in statuses if one is not Status.OK), Status.OK)
    probs: Sequence[float] | None = None
    if status is Status.OK:
        seconds = [length for length, _ in parts]
        probs = np.average([cell.probs for cell in cells], axis=0, weights=seconds).tolist()
    return _Cell(status, probs, b"\n".join(cell.text for cell in cells), _sum([cell.usage for cell in cells]))


def _sum(usages: Sequence[Sequence[int]]) -> list[int]:
    """Sums of what is known, as far as 32 bits go; -1 where nothing is."""
    most = int(np.iinfo(np.int32).max)
    return [
        min(sum(max(n, 0) for n in column), most) if max(column) >= 0 else -1
        for column in zip(*usages, strict=True)
    ]
