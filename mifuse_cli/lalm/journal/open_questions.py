"""Which questions about the clips of a journal lack an answer, what they come to, and the requests for them."""

from __future__ import annotations

import threading
from collections.abc import Iterable, Iterator
from dataclasses import replace
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np

from mifuse_cli.lalm.answers.elicitation import Answer
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.cost.estimate import Volume
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.questions import prompts
from mifuse_cli.lalm.questions.clips import AskedClip
from mifuse_cli.lalm.questions.plan import LONGER, Question, Request, asked_again, first_questions
from mifuse_cli.lalm.questions.question_options import QuestionOptions

UNREADABLE = frozenset(
    {Status.LABEL_ONLY, Status.INCOMPLETE, Status.BAD_SUM, Status.UNPARSED, Status.EMPTY, Status.TRUNCATED}
)

_CLIPS_IN_MEMORY = 64  # whose bytes are kept for their next sample


class OpenQuestion(NamedTuple):
    """A question, with those of its choices that lack an answer."""

    question: Question
    choices: tuple[int, ...]


class OpenQuestions:
    """The questions about the clips of a journal, or about some of them.

    Args:
        options: what is asked.
        journal: clips and answers.
        only: ids of the clips to ask about, None for all.
    """

    def __init__(
        self, options: QuestionOptions, journal: Journal, only: frozenset[str] | None = None
    ) -> None:
        self.options, self.journal, self.only = options, journal, only
        self._bytes_of = lru_cache(maxsize=_CLIPS_IN_MEMORY)(options.audio.bytes_of)
        self._lock_of = lru_cache(maxsize=_CLIPS_IN_MEMORY)(lambda utt_id, piece: threading.Lock())

    # What the journal holds

    def clips(self) -> Iterator[list[AskedClip]]:
        """The clips that are asked about, some at a time."""
        for block in self.journal.clips():
            if self.only is not None:
                block = [clip for clip in block if clip.utt_id in self.only]
            if block:
                yield block

    def answers(self, questions: Iterable[Question]) -> dict[tuple[str, int], list[Answer]]:
        """All that was answered to first questions, by their key and choice.

        Returns:
            Answers as read, in the order of asking: the first, and those to the question asked again. Tokens
            of a response count for its first choice.
        """
        found: dict[tuple[str, int], list[Answer]] = {}
        # By key: the question, and for one that was asked again the first question and choice behind it.
        waiting: dict[str, tuple[Question, tuple[Question, int] | None]]
        waiting = {question.key: (question, None) for question in questions}
        while waiting:
            retries: dict[str, tuple[Question, tuple[Question, int] | None]] = {}
            for (key, choice), stored in self.journal.answers(waiting).items():
                question, origin = waiting[key]
                if stored.outcome == "unusable" or choice >= question.choices:
                    continue
                first, place = origin or (question, choice)
                answer = self.options.read(stored.response, stored.position, question.order)
                if stored.position:
                    answer = replace(answer, usage=dict.fromkeys(answer.usage, 0))
                tries = found.setdefault((first.key, place), [])
                tries.append(answer)
                if answer.parsed.status is not Status.OK:
                    retry = asked_again(self.options, first, place, len(tries), tries[0].parsed.status)
                    retries[retry.key] = retry, (first, place)
            waiting = retries
        return found

    def missing(self, clips: Iterable[AskedClip]) -> Iterator[OpenQuestion]:
        """First questions about these clips that lack an answer; twins are not asked about."""
        return self._lacking(self._first(clips))

    def due_again(self, clips: Iterable[AskedClip]) -> Iterator[OpenQuestion]:
        """Questions to ask once more, because of what was answered so far; in the order of the first ones."""
        options = self.options
        if not options.rounds:
            return
        questions = self._first(clips)
        answers = self.answers(questions)
        due = []
        for question in questions:
            for choice in range(question.choices):
                if not (tries := answers.get((question.key, choice))):
                    continue
                cause, most = tries[0].parsed.status, 0
                if cause is Status.REFUSED:
                    most = options.reask_refused
                elif cause in UNREADABLE:
                    most = options.reask
                if len(tries) <= most and tries[-1].parsed.status is not Status.OK:
                    due.append(asked_again(options, question, choice, len(tries), cause))
        yield from self._lacking(due)

    # What is sent

    def requests(self) -> Iterator[Request]:
        """Requests for all that lacks an answer."""
        for block in self.clips():
            yield from map(self._request, self.missing(block))

    def requests_again(self) -> Iterator[Request]:
        """Requests for what has to be asked once more."""
        for block in self.clips():
            yield from map(self._request, self.due_again(block))

    def volume(self, *, missing: bool = True) -> Volume:
        """What the questions that lack an answer come to, or all of them."""
        total = Volume()
        for block in self.clips():
            of_clip: dict[str, list[OpenQuestion]] = {}
            for one in self.missing(block) if missing else self._all(block):
                of_clip.setdefault(one.question.clip.utt_id, []).append(one)
            for wanted in of_clip.values():
                first = wanted[0].question
                total += Volume.of_clip(
                    sum(one.question.seconds for one in wanted) / len(wanted),
                    requests=len(wanted),
                    answers=sum(len(one.choices) for one in wanted),
                    upload_bytes=self.options.audio.upload_bytes(first.seconds),
                    text_bytes=self._text_bytes(first),
                )
        return total

    def extremes(self) -> tuple[AskedClip, float] | None:
        """The shortest clip, and the seconds of the longest piece; None if there is nothing to ask."""
        shortest: AskedClip | None = None
        longest = 0.0
        for block in self.clips():
            for clip in block:
                longest = max(longest, *clip.pieces, 0.0)
                if clip.pieces and (shortest is None or clip.duration < shortest.duration):
                    shortest = clip
        return (shortest, longest) if shortest else None

    def first_question(self, clip: AskedClip) -> Question:
        """The first question about a clip."""
        return next(first_questions(self.options, [clip]))

    def messages(self, question: Question, audio: bytes) -> list[dict[str, Any]]:
        """Messages of a question about ``audio``, the bytes of a file."""
        options = self.options
        return prompts.messages(
            audio,
            options.classes,
            question.order,
            system=options.wording.system,
            template=options.wording.template,
            elicit=options.elicit,
            audio_format=options.audio.upload,
            audio_form=options.dialect.audio_part,
            context=question.clip.context,
            extra=question.extra,
        )

    def messages_about(self, samples: np.ndarray, question: Question) -> list[dict[str, Any]]:
        """Messages of a question with other audio, shape (S,) at 16 kHz."""
        return self.messages(question, self.options.audio.encoded(samples))

    def _first(self, clips: Iterable[AskedClip]) -> list[Question]:
        return list(first_questions(self.options, (clip for clip in clips if not clip.twin)))

    def _all(self, clips: Iterable[AskedClip]) -> Iterator[OpenQuestion]:
        for question in self._first(clips):
            yield OpenQuestion(question, tuple(range(question.choices)))

    def _lacking(self, questions: list[Question]) -> Iterator[OpenQuestion]:
        answered = self.journal.answered(question.key for question in questions)
        for question in questions:
            there = answered.get(question.key, ())
            choices = tuple(choice for choice in range(question.choices) if choice not in there)
            if choices:
                yield OpenQuestion(question, choices)

    def _request(self, wanted: OpenQuestion) -> Request:
        question, choices = wanted
        length = LONGER if question.longer else 1
        fields = self.options.fields(length)
        if self.options.seed is not None:
            # 31 bits: some services take no more.
            fields["seed"] = (int(question.key[:8], 16) ^ self.options.seed ^ choices[0]) & 0x7FFFFFFF
        return Request(
            key=question.key,
            name=question.name,
            choices=choices,
            seconds=question.seconds,
            text_bytes=self._text_bytes(question),
            messages=lambda: self.messages(question, self._audio(question)),
            fields=fields,
            read=lambda response, position: self.options.read(response, position, question.order),
            length=length,
            clip=question.clip.utt_id,
            again=question.again > 0,
        )

    def _audio(self, question: Question) -> bytes:
        # Samples of a clip are asked for at the same time: one decodes it, the others wait for that.
        with self._lock_of(question.clip.utt_id, question.piece):
            return self._bytes_of(question.clip, question.piece)

    def _text_bytes(self, question: Question) -> int:
        return self.options.text_bytes(question.clip.context + question.extra)
