"""Failed requests: what kind of failure it is, what the service said, and how long to wait.

A failure has a status, or lies within a response of status 200.
"""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any

from mifuse_cli.errors import InputError, MifuseError, RemoteError
from mifuse_cli.lalm.answers.response import Response, status_in

_LONGEST_WAIT = 10 * 365 * 86400.0  # seconds: who asks for more means the same, and clocks can count it
_LONGEST_MESSAGE = 4000  # characters of a body that are looked at for a message


class FailureKind(Enum):
    """Kinds of failure, by what they mean for further requests."""

    FATAL = "every further request would fail alike"
    THROTTLED = "all requests have to wait"
    TRANSIENT = "the same request may succeed later"
    REJECTED = "this clip is not accepted, others may be"


class RequestFailed(Exception):
    """A request without a usable answer.

    Attributes:
        kind: what has to happen next.
        http_status: status of the response; 0 if the request never left, None if nothing came back.
        message: the server's own words, free of the API key.
        wait: seconds that the server asks to wait, or None.
        headers: of the response.
        ours: whether it is a setting of this machine that is at fault, not the service.
        billed: whether the service answered, and may have billed it, but there is nothing in it to read.
    """

    def __init__(
        self,
        kind: FailureKind,
        http_status: int | None,
        message: str,
        wait: float | None = None,
        headers: Mapping[str, str] | None = None,
        *,
        billed: bool = False,
        ours: bool = False,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.http_status = http_status
        self.message = message
        self.wait = wait
        self.headers = headers or {}
        self.billed = billed
        self.ours = ours

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind in (FailureKind.THROTTLED, FailureKind.TRANSIENT)

    def error(self, text: str) -> MifuseError:
        """The error to end a command with, of a kind that says whose fault it is."""
        return InputError(text) if self.ours else RemoteError(text)

    @property
    def sentence(self) -> str:
        """The message with one full stop at its end."""
        return self.message.rstrip(".") + "."


def backoff(attempt: int, first: float, longest: float) -> float:
    """Seconds to wait after the ``attempt``-th failure, from 1: they double from ``first`` up to ``longest``."""
    return min(longest, first * 2.0 ** min(attempt - 1, 64))


_NO_CREDIT = frozenset({"insufficient_quota", "billing_hard_limit_reached", "billing_not_active"})
_BAD_REQUEST = frozenset(
    {
        "model_not_found",
        "invalid_model",
        "unsupported_model",
        "unsupported_parameter",
        "unknown_parameter",
        "unsupported_value",
        "invalid_api_key",
    }
)
# Servers that send no code say it in words.
_BAD_REQUEST_WORDS = re.compile(
    r"(?:unknown|unsupported|unrecognized|unexpected|invalid) (?:request )?"
    r"(?:parameter|argument|field|name|model)"
    r"|model .{0,120}(?:does not exist|not found|is not supported)"
    r"|extra (?:fields|inputs) (?:are )?not permitted|multiple candidates is not enabled|api key not valid"
    r"|server is pinned to",
    re.IGNORECASE | re.DOTALL,
)


def failure_kind(status: int, body: Any) -> FailureKind:
    """Kind of failure of an HTTP response.

    A 429 is fatal only if its code says that the credit is used up: the words of an ordinary rate limit
    may speak of quota and billing too. A 400 is fatal if it is about the model, a parameter or the API key;
    other 400, 413 and 422 are about the clip. 408, 409 and 5xx pass; all else is fatal.

    Args:
        status: HTTP status.
        body: decoded JSON body, or its text.
    """
    codes = _codes(body)
    if status == 429:
        return FailureKind.FATAL if codes & _NO_CREDIT else FailureKind.THROTTLED
    if status in (408, 409) or status >= 500:
        return FailureKind.TRANSIENT
    if status in (400, 413, 422):
        fatal = codes & (_BAD_REQUEST | _NO_CREDIT) or _BAD_REQUEST_WORDS.search(message_of(body))
        return FailureKind.FATAL if fatal else FailureKind.REJECTED
    return FailureKind.FATAL


# What an error is called where it has no status in numbers; the longest name that it begins with counts.
_STATUS_OF_NAME = {
    "invalid_request": 400,
    "invalid_argument": 400,
    "invalid_parameter": 400,
    "invalidparameter": 400,
    "failed_precondition": 400,
    "model_not_found": 404,
    "modelnotfound": 404,
    "unsupported_parameter": 400,
    "context_length_exceeded": 400,
    "content_filter": 400,
    "datainspectionfailed": 400,
    "authentication": 401,
    "unauthenticated": 401,
    "invalid_api_key": 401,
    "invalidapikey": 401,
    "insufficient_quota": 429,
    "billing": 402,
    "arrearage": 402,
    "insufficient_credits": 402,
    "payment_required": 402,
    "permission": 403,
    "accessdenied": 403,
    "not_found": 404,
    "rate_limit": 429,
    "ratelimit": 429,
    "too_many_requests": 429,
    "resource_exhausted": 429,
    "throttling": 429,
    "internal": 500,
    "server_error": 500,
    "api_error": 500,
    "unavailable": 503,
    "service_unavailable": 503,
    "overloaded": 503,
    "timeout": 504,
    "deadline_exceeded": 504,
    "requesttimeout": 504,
}


_OTHER_FORMS = {"candidates": list, "content": list, "output": list, "message": dict}


def failure_within(response: Response, message: str, headers: Mapping[str, str]) -> RequestFailed:
    """The failure that a 200 response stands for whose body holds an error, or nothing, instead of an answer.

    It counts as the status that the body carries, by a number or by a name that services use for one. A body
    that carries none passes, and may have been billed.

    Args:
        response: without choices.
        message: what the body says, free of secrets.
        headers: of the response.
    """
    error = _error(response.error)
    status = status_in(error) or status_in(response.error) or _named_status(error)
    billed = response.begun or status is None
    said = message or "nothing"
    if status is None and (name := _other_form(response.error)):
        text = (
            f"an answer in another form, with {name!r} instead of 'choices'. Give --base-url the address at which the "
            "service speaks as OpenAI's chat completions do."
        )
        return RequestFailed(FailureKind.FATAL, 200, text, None, headers, billed=billed)
    if status is None:
        text = f"an answer without choices: {said}"
        return RequestFailed(FailureKind.TRANSIENT, 200, text, wait_of(headers), headers, billed=billed)
    kind = failure_kind(status, response.error)
    text = f"{said} (error {status} within an answer)"
    return RequestFailed(kind, status, text, wait_of(headers), headers, billed=billed)


def _other_form(body: Any) -> str:
    """Under which name another kind of interface, such as Gemini's or Ollama's own, gives its answer; else ""."""
    found = body if isinstance(body, dict) and "choices" not in body else {}
    return next((name for name, kind in _OTHER_FORMS.items() if isinstance(found.get(name), kind)), "")


def _named_status(error: Any) -> int | None:
    for field in ("code", "status", "type"):
        name = str(error.get(field) or "").lower() if isinstance(error, dict) else ""
        found = [known for known in _STATUS_OF_NAME if name.startswith(known)]
        if found:
            return _STATUS_OF_NAME[max(found, key=len)]
    return None


def message_of(body: Any) -> str:
    """The server's own message in an error body of any usual shape, on one line of printable characters."""
    error = _error(body)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    if isinstance(error, dict) and set(error) == {"detail"}:
        error = error["detail"]
    text = " ".join(str(error or "")[:_LONGEST_MESSAGE].split())
    # Control characters would steer the terminal, and halves of characters cannot be written at all.
    return "".join(char if char.isprintable() else "\ufffd" for char in text)


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``retry-after`` (seconds or date), None without them."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return min(max(seconds, 0.0), _LONGEST_WAIT)
    try:
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError, OverflowError, OSError, IndexError):
        return None


def _error(body: Any) -> Any:
    """The part of a body that describes the error: some servers wrap it in a list, a dict, or both."""
    if isinstance(body, list) and body:
        body = body[0]
    return body.get("error", body) if isinstance(body, dict) else body


def _codes(body: Any) -> set[str]:
    error = _error(body)
    if not isinstance(error, dict):
        return set()
    return {str(error[name]).lower() for name in ("code", "type", "status") if error.get(name)}
