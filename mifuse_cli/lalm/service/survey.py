"""A whole run over the journal's clips: what is missing, asking for it, saving in between."""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from functools import lru_cache
from typing import TYPE_CHECKING, Any

import numpy as np

from mifuse_cli.errors import MifuseError
from mifuse_cli.lalm.arrays import USAGE, collect
from mifuse_cli.lalm.cost.estimate import Observation, Tally, Volume
from mifuse_cli.lalm.cost.prices import Price, cost_of
from mifuse_cli.lalm.journal.journal import Journal, Utterance
from mifuse_cli.lalm.questions import prompts
from mifuse_cli.lalm.questions.clips import Rule
from mifuse_cli.lalm.questions.plan import LONGER, Ask, Plan, Question
from mifuse_cli.lalm.service.breaker import on_signal

if TYPE_CHECKING:
    from mifuse_cli.lalm.service.live import Asking

_CLIPS_IN_MEMORY = 64  # whose bytes are kept for their next sample


_log = logging.getLogger("mifuse")


@asynccontextmanager
async def saved_now_and_then(save: Callable[[], Any], seconds: float) -> AsyncIterator[None]:
    """Call ``save`` in another thread every so many seconds, not at the end; a failure is only told."""
    over = asyncio.Event()

    async def work() -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(over.wait(), seconds)
            if over.is_set():
                return
            try:
                await asyncio.to_thread(save)
            except (MifuseError, OSError) as error:
                _log.warning("could not save in between: %s", error)

    saving = asyncio.create_task(work())
    try:
        yield
    finally:
        # A thread cannot be stopped: the last saving must not run beside the one at the end.
        over.set()
        await saving


class Survey:
    """The questions of a plan about the clips of a journal, or about some of them.

    Args:
        plan: what to ask.
        rule: how audio is sent.
        journal: clips and answers.
        only: ids of the clips to ask about, None for all.
    """

    def __init__(self, plan: Plan, rule: Rule, journal: Journal, only: frozenset[str] | None = None) -> None:
        self.plan, self.rule, self.journal = plan, rule, journal
        self.only = only
        self._sent = lru_cache(maxsize=_CLIPS_IN_MEMORY)(rule.sent)
        self._lock_of = lru_cache(maxsize=_CLIPS_IN_MEMORY)(lambda utt_id, piece: threading.Lock())
        self._fields = plan.form.fields()

    def volume(self, *, missing: bool = True) -> Volume:
        """What the questions that lack an answer come to, or all of them."""
        tally = Tally()
        for block in self._blocks():
            wanted: dict[str, list[tuple[Ask, int]]] = {}
            for ask, choices in self._missing(block) if missing else self._all(block):
                wanted.setdefault(ask.utterance.utt_id, []).append((ask, len(choices)))
            for asks in wanted.values():
                first = asks[0][0]
                tally.add(
                    sum(ask.seconds for ask, _ in asks) / len(asks),
                    requests=len(asks),
                    answers=sum(number for _, number in asks),
                    upload_bytes=self.rule.upload_bytes(first.seconds),
                    text_bytes=self._text(first),
                )
        return tally.volume()

    def questions(self) -> Iterator[Question]:
        """Requests for all that lacks an answer."""
        for block in self._blocks():
            yield from map(self._question, self._missing(block))

    def again(self) -> Iterator[Question]:
        """Requests for what has to be asked once more."""
        for block in self._blocks():
            yield from map(self._question, self.plan.again(block, self.journal))

    async def ask(self, asking: Asking, *, rounds: int, save: Callable[[], Any], save_seconds: float) -> None:
        """Ask for all that is missing, then ``rounds`` times again for what could not be read.

        Args:
            asking: does it, and tells in the end why it stopped.
            rounds: see `Plan`.
            save: called in another thread every ``save_seconds``, and not at the end.
            save_seconds: see ``save``.
        """

        async with saved_now_and_then(save, save_seconds):
            with on_signal(asking.interrupt):
                await asking.ask(self.questions())
                for _ in range(rounds):
                    if asking.error or asking.interrupted:
                        break
                    await asking.ask(self.again())

    def observations(self, price: Price | None, *, batch: bool = False) -> list[Observation]:
        """What clips took so far; those of which the server does not tell are left out."""
        found = []
        for block in self._blocks():
            for one in block:
                usage = collect([one], self.plan, self.journal).usage[0]
                sent = usage[usage[:, 0] != 0]  # further choices of a response count with its first
                if not len(sent) or (sent[:, :2] < 0).any():
                    continue
                seconds = sum(one.pieces) * len(sent)
                tokens = dict(zip(USAGE, map(int, sent.sum(axis=0)), strict=True))
                usd = cost_of(tokens, price, seconds=seconds, batch=batch) if price else None
                found.append(Observation(seconds, tokens["prompt"], tokens["completion"], usd))
        return found

    def extremes(self) -> tuple[Utterance, float] | None:
        """The shortest clip, and the seconds of the longest piece; None if there is nothing to ask."""
        shortest: Utterance | None = None
        longest = 0.0
        for block in self._blocks():
            for one in block:
                if one.pieces:
                    longest = max(longest, *one.pieces)
                    if shortest is None or one.duration < shortest.duration:
                        shortest = one
        return (shortest, longest) if shortest else None

    def messages_about(self, samples: np.ndarray, ask: Ask) -> list[dict[str, Any]]:
        """Messages of a question with other audio, (S,) at 16 kHz."""
        return self._messages(ask, self.rule.encoded(samples))

    def _blocks(self) -> Iterator[list[Utterance]]:
        for block in self.journal.utterances():
            if self.only is not None:
                block = [one for one in block if one.utt_id in self.only]
            if block:
                yield block

    def _missing(self, block: list[Utterance]) -> Iterator[tuple[Ask, tuple[int, ...]]]:
        return self.plan.missing(block, self.journal)

    def _all(self, block: list[Utterance]) -> Iterator[tuple[Ask, tuple[int, ...]]]:
        for ask in self.plan.asks(one for one in block if not one.twin):
            yield ask, tuple(range(ask.choices))

    def _question(self, wanted: tuple[Ask, tuple[int, ...]]) -> Question:
        ask, choices = wanted
        fields = dict(self._fields)
        length = LONGER if ask.longer else 1
        fields["max_completion_tokens"] *= length
        if self.plan.form.seed is not None:
            # 31 bits: some servers take no more.
            fields["seed"] = (int(ask.key[:8], 16) ^ self.plan.form.seed ^ choices[0]) & 0x7FFFFFFF
        return Question(
            key=ask.key,
            name=ask.name,
            choices=choices,
            seconds=ask.seconds,
            text_bytes=self._text(ask),
            messages=lambda: self._messages(ask, self._audio(ask)),
            fields=fields,
            judge=lambda raw, position: self.plan.judge(ask, raw, position),
            length=length,
            clip=ask.utterance.utt_id,
            again=ask.again > 0,
        )

    def _audio(self, ask: Ask) -> bytes:
        # Samples of a clip are asked for at the same time: one decodes it, the others wait for that.
        with self._lock_of(ask.utterance.utt_id, ask.piece):
            return self._sent(ask.utterance, ask.piece)

    def _messages(self, ask: Ask, audio: bytes) -> list[dict[str, Any]]:
        form = self.plan.form
        return prompts.messages(
            audio,
            form.classes,
            ask.order,
            system=form.wording.system,
            template=form.wording.template,
            elicit=form.elicit,
            audio_format=form.audio_format,
            context=ask.utterance.context,
            extra=ask.extra,
        )

    def _text(self, ask: Ask) -> int:
        return self.plan.form.text_bytes(ask.utterance.context + ask.extra)
