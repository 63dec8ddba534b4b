"""What is asked, as hashes: the fixed part of every question and the key of one question."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import Any

KEY_VERSION = 1


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


def question_key(
    audio_sha256: str, spec_hash: str, sample: int, order: Sequence[int], context: str = ""
) -> str:
    """Key of one question: BLAKE2b-128 of audio, spec, sample index, label order and context, 32 hex digits.

    Args:
        audio_sha256: hex SHA-256 of the audio bytes as sent.
        spec_hash: result of `spec_hash`.
        sample: index of the sample, from 0.
        order: class index at each position of the label list, length K.
        context: what else the prompt says about this clip only.
    """
    parts = [str(KEY_VERSION), audio_sha256, spec_hash, str(sample), ",".join(map(str, order))]
    if context:
        parts.append(context)
    return hashlib.blake2b("|".join(parts).encode(), digest_size=16).hexdigest()


def _whole(value: Any) -> Any:
    # A temperature of 1 and of 1.0 is the same question: it must not be paid twice.
    if isinstance(value, float) and value.is_integer():
        return int(value)
    if isinstance(value, Mapping):
        return {name: _whole(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_whole(item) for item in value]
    return value
