"""Services by name: their address, where their key is, and what they expect of a request."""

from __future__ import annotations

import datetime
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mifuse_cli.config import load_yaml
from mifuse_cli.errors import InputError, UsageError, did_you_mean
from mifuse_cli.lalm.questions.dialect import AUDIO_PARTS, SET_ELSEWHERE, TOKEN_LIMITS, Dialect

_BUILT_IN = Path(__file__).with_name("profiles.yaml")
_SECRET_HEADER = re.compile(r"auth|key|token|secret|cookie|password", re.IGNORECASE)


@dataclass(frozen=True, kw_only=True)
class Profile:
    """A service by name.

    Attributes:
        name: of a built-in profile, or path of a file; "" for what an OpenAI-compatible server expects.
        base_url: address up to and with ``/v1``, "" if everybody has one of their own.
        example: what such an address looks like.
        key_variable: variable that holds the API key.
        key_header: header that takes the key instead of the usual one, "" for that.
        dialect: what requests look like.
        stream: whether answers have to be streamed.
        extra_headers: further headers; a value ``$NAME`` is that of a variable.
        date, source: when and where this was read.
    """

    name: str = ""
    base_url: str = ""
    example: str = "https://api.openai.com/v1"
    key_variable: str = ""
    key_header: str = ""
    dialect: Dialect = field(default_factory=Dialect)
    stream: bool = False
    extra_headers: Mapping[str, str] = field(default_factory=dict)
    date: str = ""
    source: str = ""


_TEXTS = ("base_url", "example", "key_variable", "key_header", "source")
_FIELDS = (*_TEXTS, "date", "token_limit", "audio_part", "temperature", "modalities", "stream", "extra_body",
           "extra_headers")  # fmt: skip


def profile_names() -> list[str]:
    """Names of the built-in profiles."""
    return list(load_yaml(_BUILT_IN, _BUILT_IN.name, InputError))


def read_profile(service: str) -> Profile:
    """The profile of a service.

    Args:
        service: name of a built-in one, path of a YAML file, or "" for the usual interface.

    Raises:
        UsageError: neither a known name nor a file.
        InputError: the file cannot be read, or a field of it is unknown or has no sense.
    """
    if not service:
        return Profile()
    if service in (known := load_yaml(_BUILT_IN, _BUILT_IN.name, InputError)):
        return _profile(service, known[service])
    path = Path(service)
    if path.suffix not in (".yaml", ".yml"):
        hint = did_you_mean(service, known)
        raise UsageError(
            f"--service {service!r}: expected one of {', '.join(known)}, or a YAML file of that form{hint}"
        )
    return _profile(service, load_yaml(path, f"--service {path}", InputError))


def _profile(name: str, entry: Any) -> Profile:
    where = f"--service {name}"
    if not isinstance(entry, dict):
        raise InputError(
            f"{where}: found {type(entry).__name__}, expected a mapping with {', '.join(_FIELDS)}."
        )
    for key in entry:
        if key not in _FIELDS:
            hint = did_you_mean(key, _FIELDS, "did you mean {}?") or f"expected {', '.join(_FIELDS)}."
            raise InputError(f"{where}: unknown field {key!r}; {hint}")

    def given(key: str, kind: type, expected: str, default: Any) -> Any:
        value = entry.get(key, default)
        if not isinstance(value, kind):
            raise InputError(f"{where}: {key} {value!r}, expected {expected}.")
        return value

    texts = {key: given(key, str, "a text", getattr(Profile, key)) for key in _TEXTS}
    date = entry.get("date", "")
    if date:
        try:
            date = datetime.date.fromisoformat(str(date)).isoformat()
        except ValueError:
            raise InputError(f"{where}: date {date!r}, expected one like 2026-01-31.") from None
    modalities = given("modalities", list, "a list of texts", [])
    for key, names in (("token_limit", TOKEN_LIMITS), ("audio_part", AUDIO_PARTS)):
        if entry.get(key, names[0]) not in names:
            raise InputError(f"{where}: {key} {entry[key]!r}, expected one of {', '.join(names)}.")
    if not all(isinstance(one, str) for one in modalities):
        raise InputError(f"{where}: modalities {modalities!r}, expected a list of texts.")
    extra_body = given("extra_body", dict, "a mapping of fields", {})
    extra_headers = given("extra_headers", dict, "a mapping of headers to texts", {})
    problems = [*body_problems(extra_body), *header_problems(extra_headers)]
    if problems:
        raise InputError(f"{where}: {'; '.join(problems)}.")
    dialect = Dialect(
        token_limit=entry.get("token_limit", TOKEN_LIMITS[0]),
        audio_part=entry.get("audio_part", AUDIO_PARTS[0]),
        temperature=given("temperature", bool, "true or false", True),
        modalities=tuple(modalities),
        extra_body=extra_body,
    )
    return Profile(
        name=name,
        dialect=dialect,
        stream=given("stream", bool, "true or false", False),
        extra_headers=extra_headers,
        date=date,
        **texts,
    )


def body_problems(fields: Mapping[Any, Any]) -> list[str]:
    """Sentences about further fields of a body that have an option of their own, or no name."""
    taken = sorted({str(name) for name in fields} & SET_ELSEWHERE)
    problems = [f"the extra field {name} has an option of its own" for name in taken]
    if not all(isinstance(name, str) and name for name in fields):
        problems.append("an extra field has no name")
    return problems


def header_problems(headers: Mapping[Any, Any]) -> list[str]:
    """Sentences about headers that cannot be sent, or that would leave a secret in a file or a list of processes."""
    problems = []
    for name, value in headers.items():
        if not isinstance(name, str) or not re.fullmatch(r"[!#$%&'*+.^_`|~0-9A-Za-z-]+", name):
            problems.append(f"the extra header {name!r} has no name of one")
        elif not isinstance(value, str) or not re.fullmatch(r"[ -~]*", value):
            problems.append(f"the extra header {name} has a value that is no ASCII text")
        elif _SECRET_HEADER.search(name) and not value.startswith("$"):
            problems.append(
                f"the extra header {name} seems to hold a secret: put it into a variable and write $VARIABLE"
            )
    return problems


def expanded(headers: Mapping[str, str]) -> dict[str, str]:
    """Headers with the values of the variables that they name.

    Raises:
        InputError: a variable that is not set, or whose value no header may have.
    """
    found = {}
    for name, value in headers.items():
        if value.startswith("$"):
            variable = value[1:].strip("{}")
            value = os.environ.get(variable, "")
            if not value or not re.fullmatch(r"[ -~]*", value):
                state = "holds what no header may have" if value else "is not set"
                raise InputError(f"{variable}: {state}; the extra header {name} takes its value.")
        found[name] = value
    return found
