import asyncio
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

import pytest

from mifuse_cli.errors import InputError, RemoteError, UsageError
from mifuse_cli.lalm import client as client_module
from mifuse_cli.lalm.client import Client, Question, answer_all
from mifuse_cli.lalm.journal import Journal

KEY = "sk-test-0123456789abcdef"
GOOD = {
    "choices": [{"index": 0, "message": {"content": '{"angry": 100}'}}],
    "usage": {"prompt_tokens": 120, "completion_tokens": 40, "total_tokens": 160},
}


def error(message, **fields):
    return {"error": {"message": message, **fields}}


class Server(ThreadingHTTPServer):
    """Answers the n-th request by the n-th line of a script, then by the last line for ever.

    A line is ``(status, body)`` or ``(status, body, headers)``, or "drop" or "hang".
    """

    daemon_threads = True

    def __init__(self, *script):
        super().__init__(("127.0.0.1", 0), Handler)
        self.script = list(script)
        self.requests = []
        self.lock = threading.Lock()
        self.most = self.running = 0
        self.url = f"http://127.0.0.1:{self.server_address[1]}/v1"


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"

    def log_message(self, *args):
        pass

    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        server = self.server
        with server.lock:
            server.requests.append((time.monotonic(), self.headers, body))
            line = server.script.pop(0) if len(server.script) > 1 else server.script[0]
            server.running += 1
            server.most = max(server.most, server.running)
        try:
            if line == "hang":
                time.sleep(1.5)
            if isinstance(line, str):
                self.close_connection = True
                return
            status, reply, headers = (*line, {})[:3]
            if callable(reply):
                reply = reply()
            data = reply if isinstance(reply, bytes) else json.dumps(reply).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(data)))
            for name, value in headers.items():
                self.send_header(name, value)
            self.end_headers()
            self.wfile.write(data)
        finally:
            with server.lock:
                server.running -= 1


@pytest.fixture
def serve():
    servers = []

    def start(*script):
        server = Server(*script)
        threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
        servers.append(server)
        return server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        yield journal


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(client_module, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(client_module, "LONGEST_DELAY", 0.05)


def question(name):
    return Question(name, lambda: [{"role": "user", "content": f"question {name}"}])


def run(url, journal, questions=2, *, timeout=10.0, key=KEY, **options):
    async def main():
        async with Client(url, "m", key, timeout=timeout, parameters={"temperature": 1}) as client:
            items = [question(f"q{i}") for i in range(questions)] if isinstance(questions, int) else questions
            return await answer_all(items, client=client, journal=journal, **options)

    return asyncio.run(main())


def intents(journal):
    return journal._db.execute("SELECT key, attempt, http_status, error FROM intent ORDER BY id").fetchall()


def test_every_question_is_asked_once_and_its_answer_kept(serve, journal):
    server = serve((200, GOOD, {"x-request-id": "req-7"}))
    seen = []
    counts = run(server.url, journal, 30, concurrency=4, progress=lambda *numbers: seen.append(numbers))
    assert (counts.answered, counts.rejected, counts.failed) == (30, {}, {})
    assert len(server.requests) == 30
    assert server.most <= 4
    _, headers, body = server.requests[0]
    assert headers["Authorization"] == f"Bearer {KEY}"
    assert (body["model"], body["temperature"]) == ("m", 1)
    assert journal.answered(f"q{i}" for i in range(30)) == {f"q{i}" for i in range(30)}
    answer = journal.answer("q3")
    assert answer.raw == json.dumps(GOOD).encode()
    assert answer.usage == {"prompt": 120, "completion": 40, "total": 160, "audio": -1, "cached": -1}
    assert answer.request_id == "req-7"
    assert journal.unresolved() == 0
    assert seen[-1] == (30, 0, 0)


def test_questions_are_drawn_as_they_are_needed(serve, journal):
    drawn, built, ahead = [], [], []

    def questions():
        for i in range(40):
            drawn.append(i)
            ahead.append(len(drawn) - len(built))
            yield Question(f"q{i}", lambda i=i: built.append(i) or [{"role": "user", "content": "?"}])

    server = serve((200, GOOD))
    assert run(server.url, journal, questions(), concurrency=3).answered == 40
    assert max(ahead) <= 3


def test_the_intent_is_committed_before_the_request_leaves(serve, journal):
    import sqlite3

    def reply():
        db = sqlite3.connect(journal.path)
        found.extend(db.execute("SELECT key, t_end FROM intent").fetchall())
        db.close()
        return GOOD

    found = []
    run(serve((200, reply)).url, journal, 1)
    assert found == [("q0", None)]


def test_a_rate_limit_pauses_everybody_and_costs_no_attempt(serve, journal):
    limit = (429, error("slow down", code="rate_limit_exceeded"), {"Retry-After": "1"})
    server = serve(limit, (200, GOOD))
    counts = run(server.url, journal, 6, concurrency=1)
    assert counts.answered == 6
    assert 0.95 < server.requests[1][0] - server.requests[0][0] < 3
    assert [row[:3] for row in intents(journal)[:2]] == [("q0", 1, 429), ("q0", 1, 200)]


def test_rate_limits_beyond_the_number_of_attempts_lose_nothing(serve, journal):
    limit = (
        429,
        error("quota of requests per minute: check your plan and billing"),
        {"retry-after-ms": "10"},
    )
    server = serve(*[limit] * 12, (200, GOOD))
    assert run(server.url, journal, 3, concurrency=2).answered == 3


def test_a_rate_limit_without_end_stops_the_run(serve, journal):
    server = serve((200, GOOD), (429, error("daily limit"), {"Retry-After": "86400"}))
    with pytest.raises(RemoteError, match=r"daily limit.*1 answers of this run are kept"):
        run(server.url, journal, 3, concurrency=1)
    assert journal.answered(["q0"]) == {"q0"}


def test_a_rate_limit_with_answers_in_between_goes_on(serve, journal, monkeypatch):
    monkeypatch.setattr(client_module, "PATIENCE", 0.7)
    limit = (429, error("slow down"), {"Retry-After": "0.25"})
    server = serve(*[limit, (200, GOOD)] * 4)
    assert run(server.url, journal, 4, concurrency=1).answered == 4


@pytest.mark.parametrize(
    ("fault", "status"),
    [
        ((500, error("oops")), 500),
        ((503, b"<html>bad gateway</html>"), 503),
        ((408, error("late")), 408),
        ("drop", None),
        ((200, b"<html>proxy</html>"), 200),
        ((200, {"choices": []}), 200),
        ((200, error("overloaded")), 200),
    ],
)
def test_a_passing_fault_is_tried_again(serve, journal, fault, status):
    server = serve(fault, fault, (200, GOOD))
    counts = run(server.url, journal, 1)
    assert counts.answered == 1
    assert [row[:3] for row in intents(journal)] == [("q0", 1, status), ("q0", 2, status), ("q0", 3, 200)]
    assert journal.answer("q0").raw == json.dumps(GOOD).encode()
    assert journal.unresolved() == (2 if fault == "drop" else 0)


def test_a_timeout_is_tried_again_and_stays_unresolved(serve, journal):
    server = serve("hang", (200, GOOD))
    assert run(server.url, journal, 1, timeout=0.3).answered == 1
    assert intents(journal)[0] == ("q0", 1, None, "no answer in time")
    assert journal.unresolved() == 1


def test_retry_after_is_honoured_on_a_503_too(serve, journal, monkeypatch):
    monkeypatch.setattr(client_module, "LONGEST_DELAY", 5)
    server = serve((503, error("busy"), {"Retry-After": "0.5"}), (200, GOOD))
    run(server.url, journal, 1)
    assert server.requests[1][0] - server.requests[0][0] >= 0.45


def test_a_question_that_never_works_fails_after_eight_attempts(serve, journal):
    server = serve(*[(500, error("oops"))] * 8, (200, GOOD))
    counts = run(server.url, journal, 2, concurrency=1)
    assert (counts.answered, counts.failed) == (1, {"q0": "oops"})
    assert len(server.requests) == 9


def test_an_unusable_body_is_kept_but_counts_as_no_answer(serve, journal):
    server = serve((200, b"<html>proxy</html>"))
    counts = run(server.url, journal, 1)
    assert counts.failed == {"q0": "an answer without choices: <html>proxy</html>"}
    assert journal.answer("q0").raw == b"<html>proxy</html>"
    assert journal.answered(["q0"]) == set()


def test_the_body_is_stored_before_it_is_read(serve, journal, monkeypatch):
    def broken(raw):
        raise RuntimeError("a bug in reading")

    monkeypatch.setattr(client_module, "choices_of", broken)
    with pytest.raises(RuntimeError, match="a bug in reading"):
        run(serve((200, GOOD)).url, journal, 1)
    assert journal.answer("q0").raw == json.dumps(GOOD).encode()
    assert journal.answered(["q0"]) == {"q0"}


@pytest.mark.parametrize(
    ("status", "body", "words"),
    [
        (401, error("invalid API key", code="invalid_api_key"), r"401: invalid API key\. Check the API key"),
        (402, error("no credit left"), "402: no credit left"),
        (403, error("model not allowed"), "403: model not allowed"),
        (404, error("The model `m` does not exist"), "404: The model"),
        (429, error("You exceeded your quota", code="insufficient_quota"), "Check the credit"),
        (400, error("Unsupported parameter: 'n'", code="unsupported_parameter"), "Unsupported parameter"),
        (422, {"detail": "Unexpected field seed"}, "Unexpected field seed"),
        (
            400,
            [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}],
            r"400: API key not valid\. Check",
        ),
    ],
)
def test_a_fault_that_hits_every_request_stops_the_run(serve, journal, status, body, words):
    server = serve((200, GOOD), (status, body))
    with pytest.raises(RemoteError, match=words) as caught:
        run(server.url, journal, 20, concurrency=1)
    assert caught.value.exit_code == 5
    assert len(server.requests) == 2
    assert journal.answered(["q0"]) == {"q0"}


def test_requests_under_way_are_kept_when_the_run_stops(serve, journal):
    def slow():
        time.sleep(0.4)
        return GOOD

    server = serve((200, slow), (200, slow), (401, error("revoked")))
    with pytest.raises(RemoteError, match="revoked"):
        run(server.url, journal, 20, concurrency=3)
    assert len(server.requests) == 3
    assert len(list(journal.answers())) == 2
    assert journal.unresolved() == 0


@pytest.mark.parametrize("status", [400, 413, 422])
def test_a_rejected_clip_is_noted_and_may_be_asked_again(serve, journal, status):
    server = serve((200, GOOD), (status, error("audio cannot be decoded")), (200, GOOD))
    counts = run(server.url, journal, 3, concurrency=1)
    assert (counts.answered, counts.rejected) == (2, {"q1": "audio cannot be decoded"})
    assert intents(journal)[1] == ("q1", 1, status, "audio cannot be decoded")
    assert journal.answered(["q0", "q1", "q2"]) == {"q0", "q2"}


def test_nothing_but_rejections_stops_the_run(serve, journal):
    server = serve((400, error("bad audio.")))
    with pytest.raises(RemoteError, match=r"first 5 questions got no answer.*bad audio\. Check"):
        run(server.url, journal, 50, concurrency=1)
    assert len(server.requests) == 5


def test_clips_that_an_earlier_run_left_over_may_all_be_rejected(serve, journal):
    assert run(serve((200, GOOD)).url, journal, [question("before")]).answered == 1
    assert len(run(serve((400, error("bad audio"))).url, journal, 9).rejected) == 9


def test_a_server_that_is_not_there_stops_the_run(serve, journal):
    server = serve((200, GOOD))
    server.shutdown()
    server.server_close()
    with pytest.raises(RemoteError, match="connection failed"):
        run(server.url, journal, 50)
    assert journal.unresolved() == 0  # nothing ever left


@pytest.mark.parametrize(
    "fault",
    [
        (401, error(f"Incorrect API key provided: {KEY}.")),
        (401, error(f"Incorrect API key provided: {KEY[:12]}****cdef.")),
        (400, error("x" * 390 + KEY)),
        (500, f"no such key {KEY}".encode()),
        (200, f"no such key {KEY}".encode()),
        (200, {**GOOD, "echo": KEY}, {"x-request-id": KEY}),
    ],
)
def test_the_key_never_shows(serve, journal, fault, caplog):
    caplog.set_level("INFO")
    try:
        shown = repr(run(serve(fault).url, journal, 6, concurrency=1))
    except RemoteError as caught:
        shown = f"{caught!r} {caught.__cause__!r} {caught.__context__!r}"
    shown += repr(intents(journal)) + repr(list(journal.answers())) + caplog.text
    for secret in (KEY, KEY[:12], "****cdef"):
        assert secret not in shown
    assert "***" in shown
    for file in journal.path.parent.iterdir():
        assert KEY.encode() not in file.read_bytes()


def test_keys_of_any_length_are_redacted_from_errors(serve, journal):
    for key in ("tiny-key-12", "k/e+y=with~signs!", "standin"):
        server = serve((403, error(f"'{key}' may not use standin-lalm")))
        with pytest.raises(RemoteError, match=r"'\*\*\*' may not use standin-lalm"):
            run(server.url, journal, 1, key=key)


def test_the_key_is_in_no_repr():
    client = Client("https://user:secret@host.example/v1", "m", KEY)
    assert repr(client) == "Client(host='host.example', model='m')"


@pytest.mark.parametrize(
    ("url", "key"),
    [("http://h/v1", ""), ("http://h/v1", "two words"), ("http://h/v1", "a\n"), ("h:80/v1", "k")],
)
def test_keys_and_addresses_that_cannot_work_are_refused(url, key):
    with pytest.raises(UsageError):
        Client(url, "m", key)


def test_cancelling_keeps_what_was_committed(serve, journal):
    async def main():
        async with Client(server.url, "m", KEY) as client:
            items = (question(f"q{i}") for i in range(10))
            task = asyncio.create_task(answer_all(items, client=client, journal=journal, concurrency=2))
            while len(server.requests) < 5:
                await asyncio.sleep(0.02)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task

    server = serve(*[(200, GOOD)] * 3, "hang")
    asyncio.run(main())
    assert len(list(journal.answers())) == 3
    assert journal.unresolved() == 2


def test_a_clip_that_cannot_be_read_stops_the_run(serve, journal):
    def missing():
        raise InputError("a.wav: not found")

    with pytest.raises(InputError, match=r"a\.wav"):
        run(
            serve((200, GOOD)).url,
            journal,
            [question("q0"), Question("q1", missing), question("q2")],
            concurrency=1,
        )
    assert [row[0] for row in intents(journal)] == ["q0"]
