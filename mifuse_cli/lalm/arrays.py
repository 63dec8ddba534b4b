"""What the journal holds on a block of clips, as arrays."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from mifuse_cli.lalm.answers.elicitation import Answered
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.journal.journal import Journal, Utterance
from mifuse_cli.lalm.questions.plan import Plan

USAGE = ("prompt", "completion", "total", "audio", "cached")


@dataclass(frozen=True)
class Block:
    """Answers about U clips, N samples each, K classes.

    Attributes:
        probs: (U, N, K) float32, NaN where there is no distribution.
        status: (U, N) uint8, see `Status`.
        order: (U, N, K) uint8, class indices as the prompt listed them.
        usage: (U, N, 5) int32 tokens as in `USAGE`, -1 where not known. A response that holds several
            samples counts for the first of them; samples asked again count all that they took.
        texts: U x N raw answers as UTF-8.
        flags: what had to be done to read the answers, with how often.
        models: names by which the server called who answered, with how often.
        rejection: a message by which the server rejected a question, "" if it rejected none.
    """

    probs: np.ndarray
    status: np.ndarray
    order: np.ndarray
    usage: np.ndarray
    texts: list[list[bytes]]
    flags: Counter[str]
    models: Counter[str]
    rejection: str


def collect(utterances: Sequence[Utterance], plan: Plan, journal: Journal) -> Block:
    """Read every answer about these clips.

    A sample of a clip in pieces is the mean of its pieces' distributions, weighted by their length; it has
    none if one of them has none. Of a question asked again the first readable answer counts.
    """
    u, n, k = len(utterances), plan.n_samples, len(plan.form.classes)
    asks = list(plan.asks(utterances))
    answers = plan.answers(asks, journal)
    lacking = (ask.key for ask in asks if any((ask.key, c) not in answers for c in range(ask.choices)))
    rejected = journal.rejected(lacking)
    flags: Counter[str] = Counter()
    place = {one.utt_id: number * n for number, one in enumerate(utterances)}
    cells = [_MISSING if one.pieces else _SKIPPED for one in utterances for _ in range(n)]
    orders = [(0,) * k] * (u * n)
    pieces: dict[int, list[tuple[float, _Cell]]] = {}
    for ask in asks:
        utterance = ask.utterance
        start = place[utterance.utt_id] + ask.first
        for choice in range(ask.choices):
            orders[start + choice] = ask.order
            tries = answers.get((ask.key, choice))
            nothing = _REJECTED if ask.key in rejected else _MISSING
            cell = _cell(tries, flags) if tries else nothing
            if len(utterance.pieces) == 1:
                cells[start + choice] = cell
            else:
                pieces.setdefault(start + choice, []).append((ask.seconds, cell))
    for number, parts in pieces.items():
        cells[number] = _joined(parts)
    unknown = (np.nan,) * k
    probs = np.array([unknown if cell.probs is None else cell.probs for cell in cells], dtype=np.float32)
    texts = [cell.text for cell in cells]
    return Block(
        probs=probs.reshape(u, n, k),
        status=np.array([cell.status for cell in cells], dtype=np.uint8).reshape(u, n),
        order=np.array(orders, dtype=np.uint8).reshape(u, n, k),
        usage=np.array([cell.usage for cell in cells], dtype=np.int32).reshape(u, n, len(USAGE)),
        texts=[texts[start : start + n] for start in range(0, u * n, n)],
        flags=flags,
        models=Counter(one.model for tries in answers.values() for one in tries),
        rejection=next(iter(rejected.values()), ""),
    )


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


def _cell(tries: list[Answered], flags: Counter[str]) -> _Cell:
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
    """Sums of what is known; -1 where nothing is."""
    return [
        sum(max(n, 0) for n in column) if max(column) >= 0 else -1 for column in zip(*usages, strict=True)
    ]
