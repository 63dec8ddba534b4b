"""Form of what artifacts record beside their datasets: parameters and configuration, as JSON in root attributes.

A value of another form is refused when the file is read, and so is the use of one that is not there: artifacts come
from elsewhere too, and older ones record less.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from mifuse_cli.errors import ArtifactError

_NUMBER = (int, float)
_KNOWN = (int, float, None)

_FUSION: dict[Any, Any] = {
    "weighting": str,
    "tau": _NUMBER,
    "keep_weighting": bool,
    "pool": str,
    "sharpen": _NUMBER,
    "mi_estimator": str,
    "calibrate_lalm": str,
    "without": str,
}
_COUNTS = {str: int}

FORMS: dict[Any, Any] = {
    **_FUSION,
    "answered_by": _COUNTS,
    "calibrate": bool,
    "checkpoint": str,
    "class_mix_kept": (_NUMBER, [_KNOWN], None),
    "complete": bool,
    "diagnostics": {
        "mean_mi": {str: _KNOWN},
        "mean_weight": {str: _KNOWN},
        "mean_confidence": {str: _KNOWN},
        "label_agreement": {str: _KNOWN},
        "identical": {str: _KNOWN},
        "disagreement": _KNOWN,
    },
    "epochs": int,
    "flags": _COUNTS,
    "forecast": {"ua": {str: _KNOWN}, "at_chance": [str], "unnamed": [str]},
    "fusion": _FUSION,
    "gold": (int, str, None),
    "host": str,
    "identities": {str: str},
    "label_temperature": _NUMBER,
    "lalm_temperature": {str: _NUMBER},
    "method": str,
    "metrics": {
        "ua": _NUMBER,
        "wa": _NUMBER,
        "macro_f1": _NUMBER,
        "ece": _KNOWN,
        "missing": int,
        "recall": [_KNOWN],
        "marginal": [_NUMBER],
        "interval": str,
    },
    "model": str,
    "model_sha256": str,
    "normalize": str,
    "parser_version": int,
    "predicted": int,
    "pseudo_speakers": [int],
    "refresh": (int, None),
    "seen_in_training": _NUMBER,
    "signature": str,
    "source_calibrate": bool,
    "source_model_sha256": (str, None),
    "source_normalize": str,
    "source_samples": int,
    "spec": dict,
    "status_codes": _COUNTS,
    "summary": {
        "clips": int,
        "samples": int,
        "complete": bool,
        "statuses": _COUNTS,
        "without_answer": int,
        "mean_mi": _KNOWN,
        "tokens": _COUNTS,
        "requests": _COUNTS,
        "spent_usd": _KNOWN,
    },
    "teacher_correlation": _KNOWN,
    "teachers": [str],
    "temperature": _NUMBER,
    "unanswered": _COUNTS,
    "validation_clips": int,
    "validation_speakers": [str],
    "votes": [str],
}
"""Form of the parameters that are read back: types, ``[form]`` of a list, ``{str: form}`` of a mapping, or
a mapping from names to forms, none of which has to be there; several that are possible as a tuple."""

OPTIONS: dict[Any, Any] = {**_FUSION, "normalize": str, "settings": dict, "shard": str, "shards": [str]}
"""As `FORMS`, of the configuration."""


class Recorded(dict[str, Any]):
    """A mapping of a file; to ask it for a name that it has not is an error of the file."""

    where = "this artifact"

    def __missing__(self, name: str) -> Any:
        raise ArtifactError(f"{self.where}: does not record {name!r}, which is needed here. Make it anew.")


def recorded(text: Any, where: str, forms: Mapping[Any, Any]) -> Recorded:
    """Mapping in a JSON text, whose values, where their names are known, have the form that is expected.

    Raises:
        ArtifactError: they have not.
        ValueError: no JSON, or no mapping, or text that no encoding can hold.
        TypeError: ``text`` is no text.
    """

    def mapping(pairs: list[tuple[str, Any]]) -> Recorded:
        found = Recorded(pairs)
        found.where = where
        return found

    try:
        found = json.loads(text, object_pairs_hook=mapping)
    except RecursionError:
        raise ValueError("JSON that is nested too deeply") from None
    if not isinstance(found, Recorded):
        raise ValueError(f"expected a mapping, found {type(found).__name__}")
    json.dumps(found, ensure_ascii=False).encode()
    for name, value in found.items():
        if name in forms and not _conforms(value, forms[name]):
            raise ArtifactError(
                f"{where}: records {name} {str(value)[:60]!r}, which has another form. Make it anew."
            )
    return found


def _conforms(value: Any, form: Any) -> bool:
    if isinstance(form, tuple):
        return any(_conforms(value, one) for one in form)
    if isinstance(form, list):
        return isinstance(value, list) and all(_conforms(one, form[0]) for one in value)
    if isinstance(form, dict):
        if not isinstance(value, dict):
            return False
        return all(_conforms(one, form[str if str in form else name]) for name, one in value.items()
                   if str in form or name in form)  # fmt: skip
    if form is None or isinstance(value, bool):
        return value is form or form is bool
    return isinstance(value, form)
