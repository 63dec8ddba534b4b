"""Whose machine an address is, and whether it is an address at all."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit

from mifuse_cli.errors import UsageError


def check_address(base_url: str) -> None:
    """Refuse what is no address of a service.

    Raises:
        UsageError: no http or https URL with a host, or a password with characters that end the host. The
            message does not repeat any of it.
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
            "--base-url, or OPENAI_BASE_URL: is no address of a service. Expected one like "
            "https://api.openai.com/v1; in a user name or password write / ? # @ as %2F %3F %23 %40."
        )


def host_of(base_url: str) -> str:
    """Host and port of an address, without user and password."""
    return urlsplit(base_url).netloc.rpartition("@")[2]


def is_local(base_url: str) -> bool:
    """Whether the address is on this machine."""
    name = urlsplit(base_url).hostname or ""
    try:
        return ipaddress.ip_address(name).is_loopback
    except ValueError:
        return name == "localhost" or name.endswith(".localhost")
