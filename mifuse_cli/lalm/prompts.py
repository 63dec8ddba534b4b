"""The prompt, the order in which it lists the labels, and the messages of one request."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from typing import Any

from mifuse_cli.errors import UsageError

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
    # 16 bytes more than K! needs keep the remainders below uniform to 2**-128.
    digest = hashlib.shake_256(f"{audio_sha256}|{block}".encode()).digest(16 + 2 * n_classes)
    draw = int.from_bytes(digest, "big")
    base = list(range(n_classes))
    for last in range(n_classes - 1, 0, -1):
        draw, chosen = divmod(draw, last + 1)
        base[last], base[chosen] = base[chosen], base[last]
    return tuple(base[shift:] + base[:shift])


def messages(
    wav: bytes,
    classes: Sequence[str],
    order: Sequence[int],
    *,
    system: str = DEFAULT_SYSTEM,
    template: str = DEFAULT_TEMPLATE,
) -> list[dict[str, Any]]:
    """Messages of one chat completion: the system text, then the audio, then the question.

    The audio stands before the text because the text changes with the label order: a server that caches
    prompt prefixes then reuses the audio for every further sample of the clip. Nothing that could name the
    expected label, such as the file name, is sent.

    Args:
        wav: bytes of a WAV file.
        classes: K class names in canonical order.
        order: class index at each position, length K, see `label_order`.
        system: text of the system message.
        template: text of the question with one field ``{labels}``.

    Raises:
        UsageError: the template does not have exactly one field ``{labels}``.
    """
    fields = template.count("{labels}")
    if fields != 1:
        raise UsageError(
            f"the prompt template has {fields} fields {{labels}}, expected one. "
            "Write {labels} where the list of labels belongs."
        )
    labels = ", ".join(f'"{classes[k]}"' for k in order)
    audio = {"data": base64.b64encode(wav).decode("ascii"), "format": "wav"}
    return [
        {"role": "system", "content": system},
        {
            "role": "user",
            "content": [
                {"type": "input_audio", "input_audio": audio},
                {"type": "text", "text": template.replace("{labels}", labels)},
            ],
        },
    ]
