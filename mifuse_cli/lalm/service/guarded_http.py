"""An HTTP client for services that are not trusted: bodies end, and nothing goes to another host.

Imported when a client is made, since it loads the library.
"""

from __future__ import annotations

import asyncio
import zlib
from collections.abc import AsyncIterator
from typing import Any

import openai

from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed

MOST_BYTES = 16 * 2**20
"""Of a body, as it comes and as it is once unpacked; hundreds of answers with all alternatives are below it."""

_MOST_OF_ERROR = 2**20  # bytes of a body that is only there for a message
_REDIRECTS = 5
_KINDS = {"gzip": 47, "x-gzip": 47, "deflate": 47}  # bits of the window, for gzip and zlib alike
_PORTS = {"http": 80, "https": 443}


class GuardedHttp(openai.DefaultAsyncHttpxClient):
    """The library's HTTP client, with limits.

    Args:
        seconds: that a body may take from its headers to its end.
        key: name of the header that takes the key, and the key; with "" the library sends it in the usual one.
    """

    def __init__(self, *, seconds: float, key: tuple[str, str], **options: Any) -> None:
        super().__init__(headers={"Accept-Encoding": "gzip, deflate"}, follow_redirects=False, **options)
        self._seconds = seconds
        self._key_header, self._key = key

    async def send(self, request: Any, *, stream: bool = False, **options: Any) -> Any:
        """Send a request and read its answer, to an end in time and bytes.

        A redirect is followed within the host, where the request stays what it is. A body that is to be read
        as a stream is left to whoever reads it, unless it is that of an error.

        Raises:
            RequestFailed: the service redirects elsewhere, or the body is too long or packed in another way.
            TimeoutError: the body did not end in time.
        """
        if self._key_header:
            del request.headers["Authorization"]
            request.headers[self._key_header] = self._key
        response = await self._sent(request, options)
        if stream and response.status_code < 400:
            return response
        try:
            async with asyncio.timeout(self._seconds):
                content = await _content(response)
        finally:
            await response.aclose()
        headers = [
            (name, value)
            for name, value in response.headers.multi_items()
            if name.lower() not in ("content-encoding", "content-length", "transfer-encoding")
        ]
        return type(response)(
            response.status_code,
            headers=headers,
            content=content,
            request=response.request,
            extensions={name: one for name, one in response.extensions.items() if name != "network_stream"},
        )

    async def _sent(self, request: Any, options: dict[str, Any]) -> Any:
        """The response, after redirects, with its body yet to be read."""
        options = {**options, "follow_redirects": False}
        for _ in range(_REDIRECTS + 1):
            response = await super().send(request, stream=True, **options)
            if not response.has_redirect_location:
                return response
            status, onward = response.status_code, response.next_request
            await response.aclose()
            if onward is None or not _stays(request.url, onward.url) or onward.method != request.method:
                raise RequestFailed(
                    FailureKind.FATAL,
                    status,
                    f"redirects to {_shown(onward)}, where nothing was sent. If you trust that address, give it "
                    "with --base-url.",
                )
            request = onward
        raise RequestFailed(FailureKind.FATAL, status, "redirects in a circle. Check --base-url.")


async def _content(response: Any) -> bytes:
    """Body of a response, unpacked; that of an error is cut off where it is too long."""
    failed = response.status_code >= 400
    most = _MOST_OF_ERROR if failed else MOST_BYTES
    parts, size = [], 0
    async for part in _unpacked(response, most):
        parts.append(part)
        size += len(part)
        if size > most:
            if failed:
                break
            raise RequestFailed(
                FailureKind.TRANSIENT,
                None,
                f"a body of more than {MOST_BYTES / 2**20:.0f} MiB, which no answer needs",
                billed=True,
            )
    return b"".join(parts)


async def _unpacked(response: Any, most: int) -> AsyncIterator[bytes]:
    """Pieces of a body, none of them longer than ``most`` and one byte."""
    packing = response.headers.get("content-encoding", "identity").strip().lower() or "identity"
    if packing == "identity":
        async for part in response.aiter_raw():
            yield part
        return
    if packing not in _KINDS:
        raise RequestFailed(
            FailureKind.FATAL,
            response.status_code,
            f"packs its answer as {packing[:40]!r}, which was not asked for.",
        )
    unpacker, first, plain = zlib.decompressobj(_KINDS[packing]), True, False
    async for part in response.aiter_raw():
        if plain or (first and part.lstrip()[:1] == b"{"):
            plain = True  # not packed at all, whatever the header says
            yield part
            continue
        try:
            data = unpacker.decompress(part, most + 1)
        except zlib.error:
            if not (first and packing == "deflate"):
                raise RequestFailed(
                    FailureKind.TRANSIENT, None, f"a body that is no {packing}", billed=True
                ) from None
            unpacker = zlib.decompressobj(-15)  # as some servers send it, without a head
            try:
                data = unpacker.decompress(part, most + 1)
            except zlib.error:
                raise RequestFailed(
                    FailureKind.TRANSIENT, None, f"a body that is no {packing}", billed=True
                ) from None
        first = False
        yield data
        if unpacker.unconsumed_tail:
            return  # there is more, but this is too much already


def _stays(here: Any, there: Any) -> bool:
    """Whether an address is on the same host, or the same one with encryption."""

    def port(url: Any) -> Any:
        return url.port or _PORTS.get(url.scheme)

    if here.host != there.host:
        return False
    if here.scheme == there.scheme:
        return bool(port(here) == port(there))
    return (here.scheme, there.scheme, port(here), port(there)) == ("http", "https", 80, 443)


def _shown(request: Any) -> str:
    """Address of a request without user, password, query and fragment."""
    if request is None:
        return "no address"
    url = request.url
    return f"{url.scheme}://{url.host}{f':{url.port}' if url.port else ''}{url.path}"
