"""What is asked about every clip, and its hash: a change of it makes other questions of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.answers.elicitation import LETTERS, Answer, read_answer
from mifuse_cli.lalm.answers.response import Response
from mifuse_cli.lalm.questions.clips import AudioOptions
from mifuse_cli.lalm.questions.dialect import Dialect
from mifuse_cli.lalm.questions.prompts import Wording

KEY_VERSION = 1

_LONGEST = {"verbalized": 256, "label": 256, "logprob": 1}  # tokens; ten classes need about 80
_ALTERNATIVES = 20  # most that services give for one token


@dataclass(frozen=True)
class QuestionOptions:
    """What is asked about every clip, how often, and how the answers are read.

    Attributes:
        host, model: who is asked.
        wording: texts of the prompt.
        classes: K names in the order of every probability; what is asked does not depend on their order.
        n_samples: N, questions about every clip; a multiple of ``choices_per_request``.
        elicit: mode of asking, one of `elicitation.MODES`.
        temperature: sampling temperature.
        max_tokens: most tokens of an answer; None for 256, or 1 in mode ``logprob``.
        json_schema: whether the service is to force the form of the answer. It then writes the names in
            alphabetical order, whatever the order of the prompt.
        choices_per_request: answers that one request asks for.
        seed: for the sampling of the service, None to send none.
        accept_label_only: in mode ``verbalized``, take a lone label for a distribution.
        reask: how often a question is asked again whose answer cannot be read.
        reask_refused: how often one is asked again that was refused.
        audio: how the clips are sent.
        dialect: what the service expects of a request body.

    Raises:
        UsageError: mode ``logprob`` with more classes than there are letters, or with a schema.
    """

    host: str
    model: str
    wording: Wording
    classes: tuple[str, ...]
    n_samples: int = 5
    elicit: str = "verbalized"
    temperature: float = 1.0
    max_tokens: int | None = None
    json_schema: bool = False
    choices_per_request: int = 1
    seed: int | None = None
    accept_label_only: bool = False
    reask: int = 0
    reask_refused: int = 0
    audio: AudioOptions = field(default_factory=AudioOptions)
    dialect: Dialect = field(default_factory=Dialect)

    def __post_init__(self) -> None:
        if self.elicit != "logprob":
            return
        if self.json_schema:
            raise UsageError("--elicit logprob reads one letter, not JSON. Leave out --json-schema.")
        if len(self.classes) > len(LETTERS):
            raise UsageError(
                f"--elicit logprob: {len(self.classes)} classes, expected {len(LETTERS)} at most. "
                "Use --elicit verbalized."
            )

    @property
    def rounds(self) -> int:
        """How often the questions are gone through again, after all were asked once."""
        return max(self.reask, self.reask_refused)

    @property
    def answer_tokens(self) -> int:
        """Most tokens of one answer."""
        return _LONGEST[self.elicit] if self.max_tokens is None else self.max_tokens

    def fields(self, length: int = 1) -> dict[str, Any]:
        """Fields of every request body besides model and messages; ``length`` times as long as usual."""
        fields = self.dialect.fields(self.temperature, length * self.answer_tokens)
        if self.elicit == "logprob":
            return fields | {"logprobs": True, "top_logprobs": _ALTERNATIVES}
        return fields | {"response_format": self._schema()} if self.json_schema else fields

    def _schema(self) -> dict[str, Any]:
        names = sorted(self.classes)
        share = {"type": "integer", "minimum": 0, "maximum": 100}
        properties = (
            dict.fromkeys(names, share)
            if self.elicit == "verbalized"
            else {"label": {"type": "string", "enum": names}}
        )
        schema = {
            "type": "object",
            "properties": properties,
            "required": list(properties),
            "additionalProperties": False,
        }
        return {"type": "json_schema", "json_schema": {"name": "emotions", "strict": True, "schema": schema}}

    def text_bytes(self, context: str = "") -> int:
        """Size of a prompt without its audio, in bytes of UTF-8."""
        texts = (self.wording.system, self.wording.template, context, *self.classes)
        return sum(len(text.encode()) + 6 for text in texts)

    def spec(self) -> dict[str, Any]:
        """All that changes what the model is asked; its hash is part of every question's key.

        Options that are not in use are left out, so that new ones do not make old answers worthless.
        """
        spec = {
            "key_version": KEY_VERSION,
            "host": self.host,
            "model": self.model,
            "elicit": self.elicit,
            "system": self.wording.system,
            "template": self.wording.template,
            "classes": sorted(self.classes),
            "temperature": self.temperature,
            "max_completion_tokens": self.answer_tokens,
        }
        used = {
            "json_schema": self.json_schema,
            "choices_per_request": self.choices_per_request if self.choices_per_request > 1 else None,
            "upload": self.audio.upload if self.audio.upload != "wav" else None,
        }
        spec |= {name: value for name, value in used.items() if value} | self.dialect.changes()
        return spec if self.seed is None else {**spec, "seed": self.seed}

    @cached_property
    def spec_hash(self) -> str:
        """Hash of `spec`, 32 hex digits."""
        return spec_hash(self.spec())

    def read(self, response: Response, position: int, order: tuple[int, ...]) -> Answer:
        """Read one choice of a response to a question that listed the labels in ``order``; never raises."""
        return read_answer(
            self.elicit,
            response,
            position,
            self.classes,
            order,
            accept_label_only=self.accept_label_only,
        )


def canonical_json(spec: Mapping[str, Any]) -> str:
    """JSON with sorted names, no spaces, and whole floats as integers, so that equal specs give equal text.

    Raises:
        ValueError: a value is NaN or infinite.
        TypeError: a value is not a JSON type.
    """
    plain = _whole(spec)
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def spec_hash(spec: Mapping[str, Any]) -> str:
    """BLAKE2b-128 of the canonical JSON of ``spec``, 32 hex digits.

    ``spec`` holds all that changes what the model is asked (host, model, prompt, label set, sampling
    parameters) and nothing else: no key, no concurrency, no timeout, no parser version.
    """
    return hashlib.blake2b(canonical_json(spec).encode(), digest_size=16).hexdigest()


def _whole(value: Any) -> Any:
    # A temperature of 1 and of 1.0 is the same question: it must not be paid twice.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value
