"""One request to a model behind an OpenAI-compatible endpoint, or a file of many as a batch."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import AsyncGenerator, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from types import TracebackType
from typing import TYPE_CHECKING, Any, BinaryIO
from urllib.parse import quote

from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.answers.response import member
from mifuse_cli.lalm.service.environment import check_environment, proxy_variable
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed, failure_kind, message_of, wait_of
from mifuse_cli.lalm.service.profiles import expanded
from mifuse_cli.lalm.service.secrets_in_text import Secrets
from mifuse_cli.lalm.service.service_options import ServiceOptions, check_address, secrets_of

if TYPE_CHECKING:
    import openai

_CONNECT_SECONDS = 10.0
_LONGEST_ID = 200  # characters of the name of a request
LINE_SECONDS = 600.0  # that a line of a file may take
LONGEST_LINE = 32 * 2**20  # bytes of a file
_MOST_PAGES = 10_000  # of batches; a list that never ends is none
_RAW = {"X-Stainless-Raw-Response": "true"}  # tells the library to hand the response out as it is
_STREAM = {"stream": True, "stream_options": {"include_usage": True}}
_LEFT_NOTHING = frozenset(
    {"ConnectError", "ConnectTimeout", "PoolTimeout", "ProxyError", "UnsupportedProtocol"}
)
_NO_CONNECTION = frozenset({"ConnectError", "ConnectTimeout", "ProxyError"})


@dataclass(frozen=True)
class Reply:
    """Body of a 200 response as the server sent it, the server's id of the request, and the headers."""

    raw: bytes
    http_status: int
    request_id: str | None
    headers: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class BatchState:
    """What a provider says about a batch.

    Attributes:
        id: by which the provider knows it.
        tag: by which we know it, "" if it is none of ours.
        state: in the provider's word.
        input_file, output_file, error_file: ids of its files, None as long as there are none.
        message: what went wrong with the whole batch, "" if nothing did.
    """

    id: str
    tag: str
    state: str
    input_file: str | None
    output_file: str | None
    error_file: str | None
    message: str

    @property
    def over(self) -> bool:
        """Whether no more answers will come."""
        return self.state in ("completed", "failed", "expired", "cancelled")


class Client:
    """A model behind an OpenAI-compatible endpoint; used as an async context manager.

    Args:
        service: its address and name, the key, and how long to wait for it.

    Raises:
        UsageError: the key cannot be sent in a header, or the address is no URL.
        InputError: a variable of the environment cannot be used, see `environment.check_environment`.
        DependencyError: a package that such a variable needs is missing.
    """

    polled = True  # batches come to an end by themselves

    def __init__(self, service: ServiceOptions) -> None:
        if not re.fullmatch(r"[!-~]+", service.api_key):
            raise UsageError(
                "the API key is empty or holds spaces, line breaks or non-ASCII characters. Check the "
                "variable that it comes from; for a server that needs none, any word will do."
            )
        check_address(service.base_url)
        check_environment()
        import openai

        from mifuse_cli.lalm.service.guarded_http import GuardedHttp

        self.host, self.model = service.host, service.model
        headers = expanded(service.headers)
        named = [headers[name] for name, value in service.headers.items() if value.startswith("$")]
        self._secrets = Secrets([*secrets_of(service), *named])
        self._proxy = proxy_variable(service.base_url)
        self._reached = False
        self._timeout = service.timeout
        self._extra: dict[str, Any] = _STREAM if service.stream else {}
        timeout = openai.Timeout(service.timeout, connect=min(service.timeout / 2, _CONNECT_SECONDS))
        # Retries of the library would be invisible to the journal and to the bill.
        self._openai = openai.AsyncOpenAI(
            base_url=service.base_url,
            api_key=service.api_key,
            max_retries=0,
            timeout=timeout,
            default_headers=headers,
            http_client=GuardedHttp(
                seconds=service.timeout, key=(service.key_header, service.api_key), timeout=timeout
            ),
        )

    def __repr__(self) -> str:
        return f"Client(host={self.host!r}, model={self.model!r})"

    async def __aenter__(self) -> Client:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self._openai.close()

    async def ask(
        self, messages: list[dict[str, Any]], fields: Mapping[str, Any], *, request_key: str | None = None
    ) -> Reply:
        """Send one request, once.

        Args:
            messages: of the chat.
            fields: further fields of the request body, e.g. ``temperature``.
            request_key: names the request, so that a server that heeds it does not bill it twice.

        Raises:
            RequestFailed: no 200 response; its kind tells what to do.
        """
        body = {"model": self.model, "messages": messages, **fields, **self._extra}
        headers = _RAW if request_key is None else {**_RAW, "Idempotency-Key": request_key}
        # Not through `chat.completions`, which walks over all of the body: the audio takes it longer than the rest.
        with self._translating():
            async with asyncio.timeout(self._timeout):
                response: Any = await self._openai.post(
                    "/chat/completions", cast_to=object, body=body, options={"headers": headers}
                )
        self._reached = True
        request_id = response.request_id
        return Reply(
            self._secrets.body(response.http_response.content),
            response.status_code,
            request_id and self.redacted(request_id)[:_LONGEST_ID],
            dict(response.headers),
        )

    async def upload(self, file: BinaryIO) -> str:
        """Send the questions of a batch, read from where ``file`` stands; return the id that they got.

        Raises:
            RequestFailed: it did not arrive.
        """
        with self._translating():
            sent = await self._openai.files.create(
                file=("questions.jsonl", file, "application/jsonl"), purpose="batch"
            )
        return self._expected(getattr(sent, "id", None), "file")

    async def create_batch(self, input_file: str, tag: str) -> str:
        """Have uploaded questions answered within a day; return the id of the batch.

        Raises:
            RequestFailed: no id came back, though the batch may exist; look for the tag in `batches`.
        """
        body = {
            "input_file_id": input_file,
            "endpoint": "/v1/chat/completions",
            "completion_window": "24h",
            "metadata": {"mifuse": tag},
        }
        with self._translating():
            async with asyncio.timeout(self._timeout):
                made = await self._openai.post("/batches", cast_to=object, body=body)
        return self._batch(made).id

    async def models(self) -> list[str]:
        """Names of the models that the service lists.

        Raises:
            RequestFailed: the list did not come.
        """
        page = await self._get("/models")
        found = page.get("data") if isinstance(page, dict) else None
        names = [member(one, "id") for one in found] if isinstance(found, list) else []
        return [self.said(name) for name in names if isinstance(name, str)]

    async def batches(self) -> AsyncGenerator[BatchState, None]:
        """All batches of the account, the latest first.

        Raises:
            RequestFailed: the list did not come.
        """
        last = ""
        for _ in range(_MOST_PAGES):
            page = await self._get("/batches", {"limit": 100, **({"after": last} if last else {})})
            found = page.get("data") if isinstance(page, dict) else None
            states = [self._batch(one) for one in found or []]
            for state in states:
                yield state
            if not states or states[-1].id == last or not page.get("has_more"):
                return
            last = states[-1].id

    async def batch_state(self, batch_id: str) -> BatchState:
        """How far a batch is.

        Raises:
            RequestFailed: no answer, or nobody knows the batch.
        """
        return self._batch(await self._get(f"/batches/{quote(batch_id, safe='')}"))

    async def lines(self, file_id: str) -> AsyncGenerator[bytes, None]:
        """A file of the provider line by line, without the API key.

        Raises:
            RequestFailed: it did not come, or not to its end.
        """
        with self._translating():
            async with self._openai.files.with_streaming_response.content(file_id) as response:
                rest, latest = b"", time.monotonic()
                chunks = response.iter_bytes()
                while True:
                    try:
                        chunk = await anext(chunks)
                    except StopAsyncIteration:
                        break
                    except Exception as error:  # the library lets errors of the one below through here
                        message = self.redacted(f"connection lost: {error}")
                        raise RequestFailed(FailureKind.TRANSIENT, None, message) from None
                    *lines, rest = (rest + chunk).split(b"\n")
                    for line in lines:
                        yield self._secrets.body(line)
                    if lines:
                        latest = time.monotonic()
                    elif time.monotonic() - latest > LINE_SECONDS:
                        message = f"no whole line of a file for {LINE_SECONDS:.0f} s"
                        raise RequestFailed(FailureKind.TRANSIENT, None, message)
                    if len(rest) > LONGEST_LINE:
                        raise RequestFailed(
                            FailureKind.FATAL, 200, f"a line of more than {LONGEST_LINE} bytes in a file"
                        )
                if rest:
                    yield self._secrets.body(rest)

    async def delete(self, file_id: str) -> None:
        """Let the provider forget a file.

        Raises:
            RequestFailed: it may still have it.
        """
        with self._translating():
            await self._openai.files.delete(file_id)

    async def _get(self, path: str, params: Mapping[str, Any] | None = None) -> Any:
        with self._translating():
            async with asyncio.timeout(self._timeout):
                return await self._openai.get(path, cast_to=object, options={"params": params or {}})

    def _batch(self, body: Any) -> BatchState:
        body = body if isinstance(body, dict) else {"message": str(body)}
        metadata, errors = body.get("metadata"), body.get("errors")
        return BatchState(
            id=self._expected(body.get("id"), "batch", self.said(body)),
            tag=str(metadata.get("mifuse", "")) if isinstance(metadata, dict) else "",
            state=self.said(str(body.get("status"))),
            input_file=_text(body.get("input_file_id")),
            output_file=_text(body.get("output_file_id")),
            error_file=_text(body.get("error_file_id")),
            message=self.said(errors.get("data")) if isinstance(errors, dict) else "",
        )

    @staticmethod
    def _expected(value: Any, thing: str, said: str = "") -> str:
        if isinstance(value, str) and value:
            return value
        raise RequestFailed(
            FailureKind.FATAL, 200, f"found no id of a {thing} in the answer, expected one. {said}"
        )

    @contextmanager
    def _translating(self) -> Iterator[None]:
        """Turn errors of the library into `RequestFailed`."""
        import openai

        # Raised "from None": those of the library hold the request with its headers.
        try:
            yield
        except RequestFailed as failure:
            raise self._redacted_failure(failure) from None
        except openai.APIStatusError as error:
            self._reached = True
            kind = failure_kind(error.status_code, error.body)
            message = self.said(error.body) or f"HTTP {error.status_code}"
            headers = error.response.headers
            raise RequestFailed(kind, error.status_code, message, wait_of(headers), dict(headers)) from None
        except openai.APITimeoutError as error:
            raise self._unreachable(error, "no answer in time") from None
        except openai.APIConnectionError as error:
            if isinstance(error.__cause__, RequestFailed):  # some versions wrap all that the client raises
                raise self._redacted_failure(error.__cause__) from None
            raise self._unreachable(error, f"connection failed: {error.__cause__}") from None
        except openai.OpenAIError as error:
            raise RequestFailed(FailureKind.FATAL, 0, self.redacted(str(error))) from None
        except TimeoutError:
            raise RequestFailed(FailureKind.TRANSIENT, None, "no answer in time") from None

    def _redacted_failure(self, failure: RequestFailed) -> RequestFailed:
        failure.message = self.redacted(failure.message)
        return failure

    def _unreachable(self, error: openai.APIConnectionError, message: str) -> RequestFailed:
        cause = type(error.__cause__).__name__
        left = cause not in _LEFT_NOTHING
        message = self.redacted(message)
        if "CERTIFICATE_VERIFY_FAILED" in message:
            advice = "Name a PEM file of the authorities that you trust in SSL_CERT_FILE."
            return RequestFailed(FailureKind.FATAL, 0, f"{message}. {advice}", ours=True)
        if self._proxy and cause in _NO_CONNECTION and not self._reached:
            advice = f"Connections go through the proxy that {self._proxy} names: correct the variable, or unset it."
            return RequestFailed(FailureKind.FATAL, 0, f"{message}. {advice}", ours=True)
        return RequestFailed(FailureKind.TRANSIENT, None if left else 0, message)

    def said(self, body: Any) -> str:
        """What an error body says, without the API key and at most 400 characters of it."""
        text = self.redacted(message_of(body))
        return text if len(text) <= 400 else f"{text[:400]}..."

    def redacted(self, text: str) -> str:
        """Text without the API key and other secrets, as `Secrets.shown` has it."""
        return self._secrets.shown(text)


def _text(value: Any) -> str | None:
    return value if isinstance(value, str) and value else None
