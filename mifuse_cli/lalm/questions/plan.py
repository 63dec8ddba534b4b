"""Which questions the clips come to: their keys, label orders and samples, clip by clip."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from mifuse_cli.lalm.answers.elicitation import Answer
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.answers.response import Response
from mifuse_cli.lalm.questions.clips import AskedClip
from mifuse_cli.lalm.questions.prompts import label_order
from mifuse_cli.lalm.questions.question_options import KEY_VERSION, QuestionOptions

LONGER = 2  # how many times as long an answer may be whose question is asked again because it was cut off


class Question(NamedTuple):
    """What is asked about one clip by one request.

    Attributes:
        clip: what is asked about.
        piece: which part of it, from 0.
        first: the sample that its first choice is, from 0.
        order: class index at each position of the list of labels, length K.
        key: name of the question in the journal.
        choices: number of answers that it asks for.
        again: how often it was asked before.
        extra: what the prompt adds when it is asked again.
        longer: whether the answer may be `LONGER` times as long as usual.
    """

    clip: AskedClip
    piece: int
    first: int
    order: tuple[int, ...]
    key: str
    choices: int
    again: int = 0
    extra: str = ""
    longer: bool = False

    @property
    def name(self) -> str:
        """Clip and sample for people."""
        piece = f", piece {self.piece + 1}" if len(self.clip.pieces) > 1 else ""
        return f"{self.clip.utt_id}{piece}, sample {self.first + 1}" + (", again" * self.again)

    @property
    def seconds(self) -> float:
        """Length of the audio that is sent, in seconds."""
        return self.clip.pieces[self.piece]


@dataclass(frozen=True)
class Request:
    """One request to be made, for all or some of the choices of a question.

    Attributes:
        key: name of the question in the journal.
        name: clip and sample, for people.
        choices: numbers, in the journal, of the answers that are wanted from this request.
        seconds: length of the audio.
        text_bytes: size of the prompt in UTF-8.
        messages: builds the messages; called in another thread shortly before the request, so that audio is
            in memory only while its request is under way.
        fields: further fields of the request body.
        read: reads an answer, from the response and the position in it.
        length: how many times as long as usual an answer may be.
        clip: id of the clip.
        again: whether it was asked before.
    """

    key: str
    name: str
    choices: tuple[int, ...]
    seconds: float
    text_bytes: int
    messages: Callable[[], list[dict[str, Any]]]
    fields: Mapping[str, Any]
    read: Callable[[Response, int], Answer]
    length: int = 1
    clip: str = ""
    again: bool = False


def question_key(
    audio_sha256: str, spec_hash: str, sample: int, order: Sequence[int], context: str = ""
) -> str:
    """Key of one question: BLAKE2b-128 of audio, spec, sample index, label order and context, 32 hex digits.

    Args:
        audio_sha256: hex SHA-256 of the audio bytes as sent.
        spec_hash: hash of what is asked, see `QuestionOptions.spec`.
        sample: index of the sample, from 0.
        order: class index at each position of the label list, length K.
        context: what else the prompt says about this clip only.
    """
    parts = [str(KEY_VERSION), audio_sha256, spec_hash, str(sample), ",".join(map(str, order))]
    if context:
        parts.append(context)
    return hashlib.blake2b("|".join(parts).encode(), digest_size=16).hexdigest()


def first_questions(options: QuestionOptions, clips: Iterable[AskedClip]) -> Iterator[Question]:
    """What is asked about these clips at first, those about one clip together."""
    k, choices = len(options.classes), options.choices_per_request
    # Orders, and so keys, are made over the sorted names: the order of the classes settles how
    # probabilities are stored, not what is asked.
    place = [options.classes.index(name) for name in sorted(options.classes)]
    for clip in clips:
        for piece in range(len(clip.pieces)):
            audio = clip.sha256 if len(clip.pieces) == 1 else f"{clip.sha256} {piece}/{len(clip.pieces)}"
            for group in range(options.n_samples // choices):
                order = label_order(clip.sha256, group, k)
                key = question_key(audio, options.spec_hash, group, order, clip.context)
                yield Question(clip, piece, group * choices, tuple(place[i] for i in order), key, choices)


def asked_again(
    options: QuestionOptions, question: Question, choice: int, again: int, cause: Status
) -> Question:
    """The question behind one choice of a first question, as it is asked once more.

    What it adds to the prompt is not part of the key: a parser that sees another cause must not ask again.

    Args:
        options: of the questions.
        question: one of `first_questions`.
        choice: which of its choices had no good answer.
        again: how often this choice was answered before.
        cause: what the first answer was.
    """
    return Question(
        question.clip,
        question.piece,
        question.first + choice,
        question.order,
        question_key(question.key, options.spec_hash, choice, question.order, f"again {again}"),
        choices=1,
        again=again,
        extra=options.wording.refused if cause is Status.REFUSED else "",
        longer=cause is Status.TRUNCATED,
    )
