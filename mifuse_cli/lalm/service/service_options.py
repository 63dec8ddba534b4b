"""Whom to ask, how fast and for how much, and whether an address is one of a service at all."""

from __future__ import annotations

import base64
import ipaddress
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.cost.prices import Price

TRANSPORTS = ("live", "batch", "vllm-batch")
"""Ways to send questions: one at a time, in batches of a provider, as files that somebody else has answered."""

_PLAIN = re.compile(r"(?P<scheme>[a-z]+:/+)?[\w.-]+(?P<port>:\d+)?(?:/[\w./~-]*)?", re.IGNORECASE)
"""What is written like an address without user, password and query, with or without its scheme."""
_SECRET = re.compile(r"key|token|secret|sig|pass|auth", re.IGNORECASE)


@dataclass(frozen=True)
class ServiceOptions:
    """Whom to ask, how fast and for how much.

    Attributes:
        base_url: address of an OpenAI-compatible endpoint, up to and with ``/v1``.
        model: name of the model there.
        api_key: sent in the header; it appears in no message and no stored answer.
        timeout: seconds for one request; for a file, without a sign of life.
        stream: let the service send answers piece by piece, as some demand; they are read as a whole
            nevertheless.
        headers: further ones of every request; a value ``$NAME`` is that of a variable, and secret.
        key_header: that takes the key instead of the usual one, "" for that.
        concurrency: most requests under way.
        rpm, tpm: requests and tokens per minute that are allowed, None where not known.
        price: of the model, None if not known.
        budget: most USD over all runs, None for no limit.
        max_requests: most requests over all runs, None for no limit.
        max_unreadable: share of the last answers that may hold no distribution.
        probe: what to find out about the service first: "auto" (what the questions rely on), "all" or "off".
        transport: one of `TRANSPORTS`.
        batch_directory: where batches are kept, if they are files.
        poll_seconds: seconds between two looks at a batch.
        save_minutes: minutes between two savings of the artifact.
    """

    base_url: str
    model: str
    api_key: str = field(repr=False)
    timeout: float = 120.0
    stream: bool = False
    headers: Mapping[str, str] = field(default_factory=dict, repr=False)
    key_header: str = ""
    concurrency: int = 64
    rpm: float | None = None
    tpm: float | None = None
    price: Price | None = None
    budget: float | None = None
    max_requests: int | None = None
    max_unreadable: float = 0.5
    probe: str = "auto"
    transport: str = "live"
    batch_directory: Path = Path()
    poll_seconds: float = 60.0
    save_minutes: float = 5.0

    @property
    def host(self) -> str:
        """Host and port of the address."""
        return host_of(self.base_url)


def check_address(base_url: str) -> None:
    """Refuse what is no address of a service.

    Raises:
        UsageError: no http or https URL with a host, or a password with characters that end the host. The
            message repeats only what can hold no password.
    """
    try:
        parts = urlsplit(base_url)
        whole = parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0
        # An @ behind the host is that of a password cut in two, the first part of which stands as the host.
        rest = base_url.partition("://")[2].removeprefix(parts.netloc)
    except ValueError:
        whole, rest = False, ""
    if not whole or "@" in rest or " " in base_url or not base_url.isprintable():
        raise UsageError(
            f"--base-url, or OPENAI_BASE_URL: {_without_scheme(base_url)}is no address of a service. Expected one like "
            "https://api.openai.com/v1; in a user name or password write / ? # @ as %2F %3F %23 %40."
        )


def _without_scheme(base_url: str) -> str:
    """What was given instead of an address, and what lacks; "" where it may hold a key or a password."""
    found = _PLAIN.fullmatch(base_url)
    if not found or not set(base_url) & set(".:/"):
        return ""
    if found["scheme"]:
        return f"{base_url!r} "
    scheme = "http" if found["port"] or is_local(f"http://{base_url}") else "https"
    return f"{base_url!r} lacks {scheme}:// ({scheme}://{base_url}) and "


def secrets_of(service: ServiceOptions) -> list[str]:
    """What must not be shown or kept: the key, a password in the address and what its query says of a key."""
    parts = urlsplit(service.base_url)
    password = parts.password or ""
    basic = f"{parts.username or ''}:{unquote(password)}" if password else ""
    query = [value for name, value in parse_qsl(parts.query) if _SECRET.search(name)]
    encoded = base64.b64encode(basic.encode()).decode()
    return [service.api_key, password, unquote(password), encoded, unquote(parts.fragment), *query]


def host_of(base_url: str) -> str:
    """Host and port of an address, without user and password."""
    return urlsplit(base_url).netloc.rpartition("@")[2]


def provider_of(transport: str, base_url: str) -> str:
    """Whose batches they are, as the journal names it."""
    return "vllm run-batch" if transport == "vllm-batch" else host_of(base_url)


def is_local(base_url: str) -> bool:
    """Whether the address is on this machine."""
    name = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
