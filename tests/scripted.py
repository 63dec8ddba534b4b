"""A chat service on this machine that follows a script, what it says, and questions to ask it."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from conftest import HANG_SECONDS

from mifuse_cli.lalm.asking import Asking
from mifuse_cli.lalm.budget import Budget, Meter
from mifuse_cli.lalm.client import Client
from mifuse_cli.lalm.elicit import read_answer
from mifuse_cli.lalm.journal import Journal
from mifuse_cli.lalm.pacing import Pacer
from mifuse_cli.lalm.parsing import Status
from mifuse_cli.lalm.plan import Question
from mifuse_cli.lalm.pricing import Price
from mifuse_cli.lalm.stopping import on_signal

KEY = "sk-test-0123456789abcdef"
USAGE = {"prompt_tokens": 120, "completion_tokens": 40, "total_tokens": 160}

PRICE = Price(
    model="m", text_in=2, audio_in=20, out=10, date="2026-01-31", source="here", audio_tokens_per_second=25
)
SECONDS, TEXT_BYTES, MAX_TOKENS = 2.0, 200, 60


def completion(*texts: str, usage: dict[str, Any] | None = None) -> dict[str, Any]:
    """Body of a response with these answers."""
    choices = [
        {"index": index, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
        for index, text in enumerate(texts)
    ]
    return {"choices": choices, "usage": USAGE if usage is None else usage}


GOOD = completion('{"angry": 100}')


def error(message: str, **fields: Any) -> dict[str, Any]:
    return {"error": {"message": message, **fields}}


@dataclass(frozen=True)
class Request:
    """What came in, and when by the monotonic clock; ``running`` requests were under way then, with it."""

    time: float
    headers: Any
    body: dict[str, Any]
    running: int


class Server(ThreadingHTTPServer):
    """Answers the n-th request by the n-th line of a script, then by the last line for ever.

    A line is ``(status, body)`` or ``(status, body, headers)``; or "drop": the connection is closed without
    a word; or "hang": the same, but only when `release` is set; or a function that makes a line of a
    `Request`.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *script: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.requests: list[Request] = []
        self.lock = threading.Lock()
        self.release = threading.Event()
        self.running = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next(self, headers: Any, body: dict[str, Any]) -> tuple[Request, Any]:
        with self.lock:
            self.running += 1
            request = Request(time.monotonic(), headers, body, self.running)
            self.requests.append(request)
            return request, self.script.pop(0) if len(self.script) > 1 else self.script[0]

    def handle_error(self, request: Any, client_address: Any) -> None:
        """A client that has gone is no news."""


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True
    server: Server

    def log_message(self, *args: Any) -> None:
        pass

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        request, line = self.server.next(self.headers, body)
        try:
            while callable(line):
                line = line(request)
            if line == "hang":
                self.server.release.wait(HANG_SECONDS)
        finally:
            # Before the answer leaves: the client may be quick to send the next request.
            with self.server.lock:
                self.server.running -= 1
        if isinstance(line, str):
            self.close_connection = True
            return
        status, reply, headers = (*line, {})[:3]
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)


@contextmanager
def serving(*script: Any) -> Iterator[Server]:
    """A `Server` that runs."""
    server = Server(*script)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        yield server
    finally:
        server.release.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def play() -> Iterator[Callable[..., Server]]:
    """Start a `Server` with a script; stopped after the test."""
    with ExitStack() as stack:
        yield lambda *script: stack.enter_context(serving(*script))


def keep(
    journal: Journal,
    key: str,
    body: Any = b"{}",
    *,
    attempt: int = 1,
    cost: float = 0.0,
    choices: Sequence[int] = (0,),
    **settled: Any,
) -> int:
    """Put a question and its answer into a journal, settled if told how; return the id of the intent."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    intent = journal.begin(key, attempt, cost=cost).result()
    journal.store(intent, key, raw, http_status=200, choice=choices[0]).result()
    if settled:
        journal.settle(intent, key, choices=choices, **settled).result()
    return intent


# Asking it


def judge(raw: bytes, position: int) -> Status:
    return read_answer("verbalized", raw, position, ("angry", "sad"), (0, 1)).parsed.status


def question(name: str, **changes: Any) -> Question:
    """A question with the key ``name``; the fields of its request are added to the usual one."""
    values = {
        "choices": (0,),
        "seconds": SECONDS,
        "text_bytes": TEXT_BYTES,
        "messages": lambda: [{"role": "user", "content": f"question {name}"}],
        "judge": judge,
        "clip": name,
    }
    fields = {"temperature": 1, **changes.pop("fields", {})}
    return Question(key=name, name=f"clip {name}", fields=fields, **{**values, **changes})


def ask(
    url: str,
    journal: Journal,
    questions: int | Iterable[Question] = 2,
    *,
    concurrency: int = 2,
    timeout: float = HANG_SECONDS,
    price: Price | None = None,
    usd: float | None = None,
    requests: int | None = None,
    beside: Callable[[Asking], Awaitable[Any]] | None = None,
    **options: Any,
) -> Asking:
    """Ask, heeding signals, while ``beside`` runs too; further options are those of `Asking`."""

    async def main() -> Asking:
        async with Client(url, "m", KEY, timeout=timeout) as client:
            asking = Asking(
                client,
                journal,
                Pacer(concurrency=concurrency, rpm=1e6, now=asyncio.get_running_loop().time),
                concurrency=concurrency,
                budget=Budget(usd=usd, requests=requests),
                meter=Meter(price, max_tokens=MAX_TOKENS) if price else None,
                **options,
            )
            items = [question(f"q{i}") for i in range(questions)] if isinstance(questions, int) else questions
            with on_signal(asking.interrupt):
                await asyncio.gather(asking.ask(items), *([beside(asking)] if beside else []))
            return asking

    return asyncio.run(main())
