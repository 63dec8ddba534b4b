"""Variables of the environment that change how a service is reached, checked before anything is sent."""

from __future__ import annotations

import os
import re
import ssl
from importlib.util import find_spec
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

from mifuse_cli.errors import DependencyError, InputError

_HEADERS = ("OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_CUSTOM_HEADERS")
_PROXIES = ("http", "https", "all")


def check_environment() -> None:
    """Refuse variables that no request can be sent with.

    Raises:
        InputError: a proxy that is no address or has an unknown scheme, a file of certificates that cannot be
            read or holds none, an organisation or project with characters that no header may have.
        DependencyError: a SOCKS proxy without the package for it.
    """
    for name in _HEADERS:
        if not re.fullmatch(r"[ -~\n\t]*", value := os.environ.get(name, "")) or (
            "\n" in value and name != "OPENAI_CUSTOM_HEADERS"
        ):
            raise InputError(
                f"{name}: holds line breaks or characters that are not ASCII, which no header may have. "
                "Correct the variable, or unset it."
            )
    for scheme in _PROXIES:
        if address := getproxies().get(scheme):
            _check_proxy(_variable(scheme), address)
    name = "SSL_CERT_FILE"
    if path := os.environ.get(name):
        try:
            ssl.create_default_context(cafile=path)
        except OSError as error:  # an SSLError is one too
            why = error.strerror if error.filename or error.errno == 2 else "no certificate in it"
            raise InputError(
                f"{name}: {path} cannot be read as certificates ({why}). Name a PEM file of the authorities that "
                "you trust, or unset the variable."
            ) from None


def proxy_variable(base_url: str) -> str | None:
    """Name of the variable whose proxy stands between here and an address, None if there is none."""
    parts = urlsplit(base_url)
    found = getproxies()
    if not parts.hostname or proxy_bypass(parts.hostname):
        return None
    return next((_variable(scheme) for scheme in (parts.scheme, "all") if found.get(scheme)), None)


def _variable(scheme: str) -> str:
    lower = f"{scheme}_proxy"
    return lower if os.environ.get(lower) else lower.upper()


def _check_proxy(name: str, address: str) -> None:
    """Refuse a proxy; the message does not repeat the address, which may hold a password."""
    try:
        parts = urlsplit(address if "://" in address else f"http://{address}")
        whole = bool(parts.hostname) and parts.port != 0
    except ValueError:
        raise InputError(f"{name}: is no address of a proxy. Expected one like http://proxy:3128.") from None
    if parts.scheme not in ("http", "https", "socks5", "socks5h"):
        raise InputError(
            f"{name}: a proxy of scheme {parts.scheme!r}, expected http, https, socks5 or socks5h. "
            "Correct the variable, or unset it."
        )
    if not whole:
        raise InputError(f"{name}: is no address of a proxy. Expected one like http://proxy:3128.")
    if parts.scheme.startswith("socks") and find_spec("socksio") is None:
        raise DependencyError(
            f"{name}: a SOCKS proxy needs the package socksio. Install it (pip install socksio), name an "
            "HTTP proxy, or unset the variable."
        )
