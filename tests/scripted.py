"""A chat service on this machine that follows a script, what it says, and questions to ask it."""

import asyncio
import json
import threading
import time
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import dataclass, replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest
from conftest import HANG_SECONDS

from mifuse_cli.lalm.answers.elicitation import Answer, read_answer
from mifuse_cli.lalm.answers.response import Response, decode
from mifuse_cli.lalm.cost.budget import Budget, Meter
from mifuse_cli.lalm.cost.prices import Price
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.journal.open_questions import OpenQuestions
from mifuse_cli.lalm.questions.clips import AskedClip
from mifuse_cli.lalm.questions.plan import Question, Request, first_questions
from mifuse_cli.lalm.questions.question_options import QuestionOptions
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.live import LiveRun
from mifuse_cli.lalm.service.run import on_signal
from mifuse_cli.lalm.service.run_state import RunState
from mifuse_cli.lalm.service.service_options import ServiceOptions

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
class Received:
    """What came in, and when by the monotonic clock; ``running`` requests were under way then, with it."""

    time: float
    headers: Any
    body: dict[str, Any]
    running: int


@dataclass(frozen=True)
class Written:
    """A whole response, piece by piece as it is sent; the connection is closed behind it, or when the client goes."""

    pieces: Callable[[], Iterable[bytes]]


class Server(ThreadingHTTPServer):
    """Answers the n-th request by the n-th line of a script, then by the last line for ever.

    A line is ``(status, body)`` or ``(status, body, headers)``; or "drop": the connection is closed without
    a word; or "hang": the same, but only when `release` is set; or a `Written`; or a function that makes a
    line of a `Received`.
    """

    daemon_threads = True
    request_queue_size = 128

    def __init__(self, *script: Any) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.script = list(script)
        self.requests: list[Received] = []
        self.lock = threading.Lock()
        self.release = threading.Event()
        self.running = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"

    def next(self, headers: Any, body: dict[str, Any]) -> tuple[Received, Any]:
        with self.lock:
            self.running += 1
            request = Received(time.monotonic(), headers, body, self.running)
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
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"] or 0)) or b"{}")
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
        if isinstance(line, Written):
            self.close_connection = True
            with suppress(OSError):
                for piece in line.pieces():
                    self.wfile.write(piece)
            return
        status, reply, headers = (*line, {})[:3]
        data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(data)))
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.wfile.write(data)

    do_GET = do_POST


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
    settled: bool = False,
) -> int:
    """Put a question and its answer into a journal, settled if told so; return the id of the intent."""
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    intent = journal.begin(key, attempt, cost=cost).result()
    journal.store(intent, key, raw, http_status=200, choice=choices[0]).result()
    if settled:
        journal.settle(intent, key, decode(raw), choices=choices).result()
    return intent


# Asking it


def opened(journal: Any, options: QuestionOptions, n_samples: int, **changes: Any) -> OpenQuestions:
    """The questions of these options, so many about a clip."""
    return OpenQuestions(replace(options, n_samples=n_samples, **changes), journal)


def asked_about(questions: OpenQuestions, clips: Iterable[AskedClip]) -> Iterator[Question]:
    """First questions about clips."""
    return first_questions(questions.options, clips)


def read(response: Response, position: int) -> Answer:
    return read_answer("verbalized", response, position, ("angry", "sad"), (0, 1))


def question(name: str, **changes: Any) -> Request:
    """A question with the key ``name``; the fields of its request are added to the usual one."""
    values = {
        "choices": (0,),
        "seconds": SECONDS,
        "text_bytes": TEXT_BYTES,
        "messages": lambda: [{"role": "user", "content": f"question {name}"}],
        "read": read,
        "clip": name,
    }
    fields = {"temperature": 1, **changes.pop("fields", {})}
    return Request(key=name, name=f"clip {name}", fields=fields, **{**values, **changes})


def ask(
    url: str,
    journal: Journal,
    questions: int | Iterable[Request] = 2,
    *,
    concurrency: int = 2,
    timeout: float = HANG_SECONDS,
    price: Price | None = None,
    budget: Budget | None = None,
    usd: float | None = None,
    requests: int | None = None,
    beside: Callable[[LiveRun], Awaitable[Any]] | None = None,
    report: Callable[[RunState], Any] = lambda _: None,
    **options: Any,
) -> RunState:
    """Ask, heeding signals, while ``beside`` runs too; further options are those of `ServiceOptions`."""
    options = {"rpm": 1e6, **options}
    service = ServiceOptions(url, "m", KEY, timeout=timeout, concurrency=concurrency, **options)

    async def main() -> RunState:
        async with Client(service) as client:
            caps = budget or Budget(usd=usd, requests=requests)
            meter = Meter(price, max_tokens=MAX_TOKENS)
            asking = LiveRun(client, journal, service, caps, meter, report)
            items = [question(f"q{i}") for i in range(questions)] if isinstance(questions, int) else questions
            with on_signal(asking.interrupt):
                await asyncio.gather(asking.ask(items), *([beside(asking)] if beside else []))
            return asking.state

    return asyncio.run(main())
