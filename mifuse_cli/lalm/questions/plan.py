"""Which questions a corpus comes to: their keys, label orders and wording; clip by clip, in no memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from mifuse_cli.lalm.answers.elicitation import Answered, read_answer, request_fields
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.journal.journal import Journal, Utterance
from mifuse_cli.lalm.questions.prompts import Wording, label_order
from mifuse_cli.lalm.questions.spec import KEY_VERSION, question_key, spec_hash

UNREADABLE = frozenset(
    {Status.LABEL_ONLY, Status.INCOMPLETE, Status.BAD_SUM, Status.UNPARSED, Status.EMPTY, Status.TRUNCATED}
)

LONGER = 2  # times as long as usual may be what is asked again because it was cut off


@dataclass(frozen=True)
class Form:
    """How every question is asked: all that settles an answer, apart from the clip.

    Attributes:
        host, model: who is asked.
        wording: texts of the prompt.
        classes: K names in the order of every probability; what is asked does not depend on their order.
        elicit, temperature, max_tokens, json_schema: see `mifuse_cli.lalm.answers.elicitation.request_fields`.
        choices: answers a request.
        seed: for the sampling of the server, None to send none.
        audio_format: "wav" or "mp3".
        accept_label_only: how answers are read; not part of the question.
    """

    host: str
    model: str
    wording: Wording
    classes: tuple[str, ...]
    elicit: str = "verbalized"
    temperature: float = 1.0
    max_tokens: int | None = None
    json_schema: bool = False
    choices: int = 1
    seed: int | None = None
    audio_format: str = "wav"
    accept_label_only: bool = False

    def fields(self) -> dict[str, Any]:
        """Fields of every request body besides model and messages."""
        return request_fields(
            self.elicit,
            sorted(self.classes),
            temperature=self.temperature,
            max_tokens=self.max_tokens,
            json_schema=self.json_schema,
        )

    def text_bytes(self, context: str = "") -> int:
        """Size of a prompt without its audio."""
        texts = (self.wording.system, self.wording.template, context, *self.classes)
        return sum(len(text.encode()) + 6 for text in texts)

    def spec(self) -> dict[str, Any]:
        """All that changes what the model is asked; its hash is part of every question's key.

        Options that are not in use are left out, so that new ones do not make old answers worthless.
        """
        fields = self.fields()
        spec = {
            "key_version": KEY_VERSION,
            "host": self.host,
            "model": self.model,
            "elicit": self.elicit,
            "system": self.wording.system,
            "template": self.wording.template,
            "classes": sorted(self.classes),
            "temperature": self.temperature,
            "max_completion_tokens": fields["max_completion_tokens"],
        }
        used = {
            "json_schema": self.json_schema,
            "choices_per_request": self.choices if self.choices > 1 else None,
            "upload": self.audio_format if self.audio_format != "wav" else None,
        }
        spec |= {name: value for name, value in used.items() if value}
        return spec if self.seed is None else {**spec, "seed": self.seed}


class Ask(NamedTuple):
    """One request's question about one clip.

    Attributes:
        utterance: the clip.
        piece: the part of it, from 0.
        first: the sample that its first choice is.
        order: class index at each position of the list of labels.
        key: in the journal.
        choices: answers that it asks for.
        again: how often it was asked before.
        extra: what the prompt adds when it is asked again.
        longer: whether the answer may then be longer, see `LONGER`.
    """

    utterance: Utterance
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
        piece = f", piece {self.piece + 1}" if len(self.utterance.pieces) > 1 else ""
        return f"{self.utterance.utt_id}{piece}, sample {self.first + 1}" + (", again" * self.again)

    @property
    def seconds(self) -> float:
        """Of audio."""
        return self.utterance.pieces[self.piece]


@dataclass(frozen=True)
class Question:
    """One request to be made.

    Attributes:
        key: of the question in the journal.
        name: clip and sample, for people.
        choices: answers that are wanted from this request, their numbers in the journal.
        seconds: of audio.
        text_bytes: of the prompt in UTF-8.
        messages: builds the messages; called in another thread shortly before the request, so that audio is
            in memory only while its request is under way.
        fields: further fields of the request body.
        judge: reads an answer: body and position in it to a status.
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
    judge: Callable[[bytes, int], Status]
    length: int = 1
    clip: str = ""
    again: bool = False


class Plan:
    """All questions of a run, and what their answers in the journal come to.

    Args:
        form: how to ask.
        n_samples: N, a multiple of ``form.choices``.
        reask: how often an unreadable answer is asked for again; ``reask_refused``: a refused one.
    """

    def __init__(self, form: Form, n_samples: int, *, reask: int = 0, reask_refused: int = 0) -> None:
        self.form = form
        self.n_samples = n_samples
        self.hash = spec_hash(form.spec())
        self._reask, self._reask_refused = reask, reask_refused
        # Orders, and so keys, are made over the sorted names: the order of the classes settles how
        # probabilities are stored, not what is asked.
        self._position = [form.classes.index(name) for name in sorted(form.classes)]

    def asks(self, utterances: Iterable[Utterance]) -> Iterator[Ask]:
        """First questions about these clips, those about one clip together."""
        k = len(self.form.classes)
        for one in utterances:
            for piece in range(len(one.pieces)):
                audio = one.sha256 if len(one.pieces) == 1 else f"{one.sha256} {piece}/{len(one.pieces)}"
                for group in range(self.n_samples // self.form.choices):
                    order = label_order(one.sha256, group, k)
                    key = question_key(audio, self.hash, group, order, one.context)
                    places = tuple(self._position[i] for i in order)
                    yield Ask(one, piece, group * self.form.choices, places, key, self.form.choices)

    def missing(
        self, utterances: Iterable[Utterance], journal: Journal
    ) -> Iterator[tuple[Ask, tuple[int, ...]]]:
        """First questions that lack an answer, with the choices that they lack; twins are not asked."""
        asks = list(self.asks(one for one in utterances if not one.twin))
        yield from self._lacking(asks, journal)

    def again(
        self, utterances: Iterable[Utterance], journal: Journal
    ) -> Iterator[tuple[Ask, tuple[int, ...]]]:
        """Questions to ask once more, because of what was answered so far; in the order of `asks`."""
        if not (self._reask or self._reask_refused):
            return
        asks = list(self.asks(one for one in utterances if not one.twin))
        answers = self.answers(asks, journal)
        due = []
        places = [(ask, choice) for ask in asks for choice in range(ask.choices)]
        for ask, choice in places:
            if not (tries := answers.get((ask.key, choice))):
                continue
            cause = tries[0].parsed.status
            most = (
                self._reask_refused if cause is Status.REFUSED else self._reask if cause in UNREADABLE else 0
            )
            if len(tries) <= most and tries[-1].parsed.status is not Status.OK:
                due.append(self._retry(ask, choice, len(tries), cause))
        yield from self._lacking(due, journal)

    def answers(self, asks: Iterable[Ask], journal: Journal) -> dict[tuple[str, int], list[Answered]]:
        """All that was answered to first questions, by their key and choice.

        Returns:
            Answers as read, in the order of asking: the first, and those to the question asked again.
        """
        found: dict[tuple[str, int], list[Answered]] = {}
        waiting: dict[str, tuple[Ask, tuple[Ask, int] | None]] = {ask.key: (ask, None) for ask in asks}
        while waiting:
            retries: dict[str, tuple[Ask, tuple[Ask, int] | None]] = {}
            for (key, choice), answer in journal.answers(waiting).items():
                asked, origin = waiting[key]
                if answer.outcome == "unusable" or choice >= asked.choices:
                    continue
                first, place = origin or (asked, choice)
                answered = self._read(asked, answer.raw, answer.position)
                if answer.position:  # the usage is that of the whole response
                    answered = answered._replace(usage=dict.fromkeys(answered.usage, 0))
                tries = found.setdefault((first.key, place), [])
                tries.append(answered)
                if answered.parsed.status is not Status.OK:
                    retry = self._retry(first, place, len(tries), tries[0].parsed.status)
                    retries[retry.key] = retry, (first, place)
            waiting = retries
        return found

    def judge(self, ask: Ask, raw: bytes, position: int) -> Status:
        """What an answer that just came in is."""
        return self._read(ask, raw, position).parsed.status

    def _read(self, ask: Ask, raw: bytes, position: int) -> Answered:
        form = self.form
        return read_answer(
            form.elicit, raw, position, form.classes, ask.order, accept_label_only=form.accept_label_only
        )

    def _retry(self, ask: Ask, choice: int, again: int, cause: Status) -> Ask:
        """The question behind one choice of ``ask``, in the form in which it is asked once more.

        The form is not part of the key: a parser that sees another cause must not ask again.
        """
        extra = self.form.wording.refused if cause is Status.REFUSED else ""
        longer = cause is Status.TRUNCATED
        key = question_key(ask.key, self.hash, choice, ask.order, f"again {again}")
        return Ask(ask.utterance, ask.piece, ask.first + choice, ask.order, key, 1, again, extra, longer)

    def _lacking(self, asks: list[Ask], journal: Journal) -> Iterator[tuple[Ask, tuple[int, ...]]]:
        answered: Mapping[str, list[int]] = journal.answered(ask.key for ask in asks)
        for ask in asks:
            choices = tuple(c for c in range(ask.choices) if c not in answered.get(ask.key, ()))
            if choices:
                yield ask, choices
