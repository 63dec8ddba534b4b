"""Whose machine an address is."""

from __future__ import annotations

import ipaddress
from urllib.parse import urlsplit


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
