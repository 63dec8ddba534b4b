"""Failed requests: what kind of failure it is, what the service said, and how long to wait."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping
from email.utils import parsedate_to_datetime
from enum import Enum
from typing import Any


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
    """

    def __init__(
        self,
        kind: FailureKind,
        http_status: int | None,
        message: str,
        wait: float | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> None:
        super().__init__(message)
        self.kind = kind
        self.http_status = http_status
        self.message = message
        self.wait = wait
        self.headers = headers or {}

    @property
    def passing(self) -> bool:
        """Whether the same request may succeed later."""
        return self.kind in (FailureKind.THROTTLED, FailureKind.TRANSIENT)

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


def message_of(body: Any) -> str:
    """The server's own message in an error body of any usual shape, on one line."""
    error = _error(body)
    if isinstance(error, dict):
        error = error.get("message") or error.get("detail") or error
    return " ".join(str(error or "").split())


def wait_of(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait by ``retry-after-ms`` or ``retry-after`` (seconds or date), None without them."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        value = headers.get(name, "")
        try:
            seconds = float(value) * unit
        except ValueError:
            continue
        if math.isfinite(seconds):
            return max(seconds, 0.0)
    try:
        return max(parsedate_to_datetime(headers.get("retry-after", "")).timestamp() - time.time(), 0.0)
    except (ValueError, TypeError):
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
