"""What is asked: the wording of each way of asking, the order of the labels, the messages of a request."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from mifuse_cli.config import load_yaml
from mifuse_cli.errors import UsageError, did_you_mean
from mifuse_cli.lalm.answers.elicitation import LETTERS
from mifuse_cli.lalm.questions.dialect import audio_part

DEFAULT_SYSTEM = (
    "You are a listener in a speech perception study. You judge how a voice sounds: pitch, loudness, tempo, "
    "rhythm and voice quality. You answer with one JSON object and nothing else."
)

DEFAULT_TEMPLATE = (
    "Listen to the recording and judge which emotion the speaker expresses.\n"
    "Give every label below an integer from 0 to 100 that says how likely it is. "
    "The integers must sum to 100. Spread them over several labels if the voice leaves room for doubt.\n"
    "Labels: {labels}\n"
    "Answer with a single JSON object whose keys are exactly these labels, spelled as above, "
    "and whose values are the integers. No explanation, no other text."
)

_LISTENER = DEFAULT_SYSTEM.partition(" You answer")[0]

_LABEL_TEMPLATE = (
    "Listen to the recording and judge which emotion the speaker expresses.\n"
    "Labels: {labels}\n"
    "Answer with exactly one of these labels, the likeliest one, spelled as above. No explanation, no other text."
)

_LETTER_TEMPLATE = (
    "Listen to the recording and judge which emotion the speaker expresses.\n"
    "{labels}\n"
    "Answer with the letter of the likeliest emotion alone. No explanation, no other text."
)

_CONTEXT = 'What is said, as far as it is known: "{context}"'

_REFUSED = (
    "This is a listening study about how voices sound. The question is which emotion the voice conveys to a "
    "listener, not who the speaker is or what the speaker feels. If you are unsure, give your best estimate, "
    "in the form asked for."
)


@dataclass(frozen=True)
class Wording:
    """Texts of a question.

    Attributes:
        system: system message; if empty, none is sent.
        template: question with one field ``{labels}`` and at most one field ``{context}``.
        refused: sentence added to the question when a refused one is asked again.
    """

    system: str = DEFAULT_SYSTEM
    template: str = DEFAULT_TEMPLATE
    refused: str = _REFUSED


_WORDINGS = {
    "verbalized": Wording(),
    "label": Wording(f"{_LISTENER} You answer with one label and nothing else.", _LABEL_TEMPLATE),
    "logprob": Wording(f"{_LISTENER} You answer with one letter and nothing else.", _LETTER_TEMPLATE),
}


def read_wording(path: Path | None, elicit: str, *, context: bool = False) -> Wording:
    """Texts of a prompt file; those that it lacks are the built-in ones of the mode.

    Args:
        path: YAML file with any of the keys ``system``, ``template`` and ``refused``, or None.
        elicit: mode of asking, one of `elicitation.MODES`.
        context: whether questions carry a transcript. A template in the file must then have a field
            ``{context}``, and otherwise must not; the built-in one gets a sentence with it.

    Raises:
        UsageError: the file is unreadable, has other keys or values that are no text, or its template lacks
            a field, repeats it, or has one that nothing fills.
    """
    wording = _WORDINGS[elicit]
    if context:
        # Before the labels, which change from sample to sample: what precedes them can be cached.
        first, _, rest = wording.template.partition("\n")
        wording = replace(wording, template=f"{first}\n{_CONTEXT}\n{rest}")
    if path is None:
        return wording
    texts = _texts(path)
    _check_fields(texts.get("template", wording.template), context, f"--prompt {path}: the template")
    return replace(wording, **texts)


def _texts(path: Path) -> dict[str, str]:
    values = load_yaml(path, f"--prompt {path}")
    known = [field.name for field in fields(Wording)]
    if not isinstance(values, dict):
        raise UsageError(f"--prompt {path}: expected a mapping with any of the keys {', '.join(known)}.")
    for name, value in values.items():
        if name not in known:
            hint = did_you_mean(name, known) or f", expected any of {', '.join(known)}"
            raise UsageError(f"--prompt {path}: unknown key {name!r}{hint}.")
        if not isinstance(value, str):
            raise UsageError(
                f"--prompt {path}: {name} is {repr(value)[:60]}, expected text. Put it in quotes, or in a block "
                "after |."
            )
        if value != value.encode("utf-8", "replace").decode():
            raise UsageError(
                f"--prompt {path}: {name} holds a character that is half of one (a lone surrogate)."
            )
    return values


def _check_fields(template: str, context: bool, which: str) -> None:
    labels, contexts = template.count("{labels}"), template.count("{context}")
    if labels != 1:
        raise UsageError(
            f"{which} has {labels} fields {{labels}}, expected one. "
            "Write {labels} where the list of labels belongs."
        )
    if contexts != context:
        advice = (
            "Write {context} where the transcript belongs." if context else "Is --context-column missing?"
        )
        raise UsageError(f"{which} has {contexts} fields {{context}}, expected {int(context)}. {advice}")


def label_order(audio_sha256: str, sample: int, n_classes: int) -> tuple[int, ...]:
    """Order in which sample ``sample`` of a clip lists the labels: class index at each position, length K.

    A cyclic Latin square: a base permutation drawn from the audio hash is rotated by one place per sample,
    so that over the samples ``b*K .. b*K + K-1`` every label stands once in every position. Each such block
    ``b`` has a base permutation of its own. Same result on every machine and Python version.

    Args:
        audio_sha256: hex SHA-256 of the audio.
        sample: index of the sample, from 0.
        n_classes: number of labels K.
    """
    block, shift = divmod(sample, n_classes)
    base = _permutation(audio_sha256, block, n_classes)
    return base[shift:] + base[:shift]


@lru_cache(maxsize=256)
def _permutation(audio_sha256: str, block: int, n_classes: int) -> tuple[int, ...]:
    # 16 bytes more than K! needs keep the remainders below uniform to 2**-128.
    digest = hashlib.shake_256(f"{audio_sha256}|{block}".encode()).digest(16 + 2 * n_classes)
    draw = int.from_bytes(digest, "big")
    base = list(range(n_classes))
    for last in range(n_classes - 1, 0, -1):
        draw, chosen = divmod(draw, last + 1)
        base[last], base[chosen] = base[chosen], base[last]
    return tuple(base)


def messages(
    audio: bytes,
    classes: Sequence[str],
    order: Sequence[int],
    *,
    system: str = DEFAULT_SYSTEM,
    template: str = DEFAULT_TEMPLATE,
    elicit: str = "verbalized",
    audio_format: str = "wav",
    audio_form: str = "object",
    context: str = "",
    extra: str = "",
) -> list[dict[str, Any]]:
    """Messages of one chat completion: the system text, then the audio, then the question.

    The audio stands before the text because the text changes with the label order: a server that caches
    prompt prefixes then reuses the audio for every further sample of the clip. Nothing that could name the
    expected label, such as the file name, is sent.

    Args:
        audio: bytes of an audio file.
        classes: K class names in canonical order.
        order: class index at each position, length K, see `label_order`.
        system: text of the system message; if empty, there is none.
        template: text of the question with one field ``{labels}`` and at most one field ``{context}``.
        elicit: mode of asking; with ``logprob`` the labels are listed with letters.
        audio_format: ``wav`` or ``mp3``.
        audio_form: one of `dialect.AUDIO_PARTS`.
        context: transcript of the clip. If it is blank, the line with ``{context}`` is left out.
        extra: sentence added to the question.

    Raises:
        UsageError: the template does not have the fields that are to be filled.
    """
    context = " ".join(context.split())
    _check_fields(template, "{context}" in template or bool(context), "the prompt template")
    question = _filled(template, _listed(classes, order, elicit), context)
    asked = {
        "role": "user",
        "content": [
            audio_part(audio, audio_format, audio_form),
            {"type": "text", "text": f"{question}\n{extra}" if extra else question},
        ],
    }
    return [{"role": "system", "content": system}, asked] if system else [asked]


def _listed(classes: Sequence[str], order: Sequence[int], elicit: str) -> str:
    if elicit == "logprob":
        return "\n".join(
            f'{letter}: "{classes[k]}"' for letter, k in zip(LETTERS[: len(order)], order, strict=True)
        )
    return ", ".join(f'"{classes[k]}"' for k in order)


def _filled(template: str, labels: str, context: str) -> str:
    if not context:
        lines = template.split("\n")
        template = "\n".join(line for line in lines if "{context}" not in line or "{labels}" in line)
    # In one pass: a transcript may itself speak of {labels}.
    return re.sub(
        r"\{(labels|context)\}", lambda found: labels if found[1] == "labels" else context, template
    )
