"""One request to a server that answers, fails or lies, and no word of the key."""

import asyncio
import json

import pytest
from conftest import HANG_SECONDS
from scripted import GOOD, KEY, error, serving

from mifuse_cli.errors import UsageError
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed
from mifuse_cli.lalm.service.service_options import ServiceOptions

MESSAGES = [{"role": "user", "content": "Which emotion?"}]


def ask(url, *, key=KEY, timeout=HANG_SECONDS, fields=None, request_key=None):
    async def main():
        async with Client(ServiceOptions(url, "m", key, timeout=timeout)) as client:
            return await client.ask(MESSAGES, fields or {}, request_key=request_key)

    return asyncio.run(main())


def failure(url, **options):
    with pytest.raises(RequestFailed) as caught:
        ask(url, **options)
    return caught.value


class TestRequest:
    def test_what_is_sent_and_what_comes_back(self, play):
        server = play((200, GOOD, {"x-request-id": "req-7", "X-RateLimit-Limit-Requests": "60"}))
        reply = ask(server.url, fields={"temperature": 0.5, "n": 2}, request_key="key-1")
        (request,) = server.requests
        assert request.body == {"model": "m", "messages": MESSAGES, "temperature": 0.5, "n": 2}
        assert request.headers["Authorization"] == f"Bearer {KEY}"
        assert request.headers["Idempotency-Key"] == "key-1"
        assert (reply.raw, reply.http_status, reply.request_id) == (json.dumps(GOOD).encode(), 200, "req-7")
        assert reply.headers["x-ratelimit-limit-requests"] == "60"

    def test_a_request_without_a_key_of_its_own_claims_none(self, play):
        server = play((200, GOOD))
        assert ask(server.url).request_id is None
        assert "Idempotency-Key" not in server.requests[0].headers

    @pytest.mark.parametrize("body", [b"<html>proxy</html>", b"", b'{"choices": \xff', b"[]"])
    def test_any_body_of_a_200_comes_back_as_it_is(self, play, body):
        assert ask(play((200, body)).url).raw == body


class TestFailures:
    @pytest.mark.parametrize(
        ("status", "body", "fault", "message"),
        [
            (500, error("oops"), FailureKind.TRANSIENT, "oops"),
            (503, b"<html>bad gateway</html>", FailureKind.TRANSIENT, "<html>bad gateway</html>"),
            (408, error("late"), FailureKind.TRANSIENT, "late"),
            (429, error("slow down", code="rate_limit_exceeded"), FailureKind.THROTTLED, "slow down"),
            (
                429,
                error("requests per minute: check your plan and billing"),
                FailureKind.THROTTLED,
                "requests per minute: check your plan and billing",
            ),
            (
                429,
                error("You exceeded your quota", code="insufficient_quota"),
                FailureKind.FATAL,
                "You exceeded your quota",
            ),
            (401, error("invalid", code="invalid_api_key"), FailureKind.FATAL, "invalid"),
            (402, error("no credit left"), FailureKind.FATAL, "no credit left"),
            (404, b"", FailureKind.FATAL, "HTTP 404"),
            (400, error("Unsupported parameter: 'n'", code="unsupported_parameter"), FailureKind.FATAL, None),
            (400, error("audio cannot be decoded"), FailureKind.REJECTED, "audio cannot be decoded"),
            (413, {"detail": "too large"}, FailureKind.REJECTED, "too large"),
            (422, {"detail": "Unexpected field seed"}, FailureKind.FATAL, "Unexpected field seed"),
            (
                400,
                [{"error": {"code": 400, "message": "API key not valid.", "status": "INVALID_ARGUMENT"}}],
                FailureKind.FATAL,
                "API key not valid.",
            ),
        ],
    )  # fmt: skip
    def test_a_status_tells_what_to_do_and_nothing_is_tried_twice(self, play, status, body, fault, message):
        server = play((status, body))
        failed = failure(server.url)
        assert (failed.kind, failed.http_status, failed.wait) == (fault, status, None)
        assert message is None or failed.message == message
        assert len(server.requests) == 1

    @pytest.mark.parametrize("status", [429, 503])
    def test_how_long_to_wait(self, play, status):
        line = (status, error("busy"), {"Retry-After": "7", "X-RateLimit-Remaining-Requests": "0"})
        failed = failure(play(line).url)
        assert failed.wait == 7
        assert failed.headers["x-ratelimit-remaining-requests"] == "0"

    def test_a_lost_connection_may_have_been_billed(self, play):
        failed = failure(play("drop").url)
        assert (failed.kind, failed.http_status) == (FailureKind.TRANSIENT, None)
        assert "connection failed" in failed.message

    def test_no_answer_in_time_may_have_been_billed(self, play):
        failed = failure(play("hang").url, timeout=2)
        assert (failed.kind, failed.http_status, failed.message) == (
            FailureKind.TRANSIENT,
            None,
            "no answer in time",
        )

    def test_a_server_that_is_not_there_was_sent_nothing(self):
        with serving((200, GOOD)) as server:
            url = server.url
        failed = failure(url)
        assert (failed.kind, failed.http_status) == (FailureKind.TRANSIENT, 0)

    def test_long_messages_are_cut(self, play):
        assert failure(play((500, error("x" * 900))).url).message == "x" * 400 + "..."


class TestSecrets:
    @pytest.mark.parametrize(
        "line",
        [
            (401, error(f"Incorrect API key provided: {KEY}.")),
            (401, error(f"Incorrect API key provided: {KEY[:12]}****cdef.")),
            (400, error("x" * 390 + KEY)),
            (500, f"no such key {KEY}".encode()),
            (200, f"no such key {KEY}".encode()),
            (200, {**GOOD, "echo": KEY}, {"x-request-id": KEY}),
        ],
    )
    def test_the_key_never_shows(self, play, line, caplog):
        caplog.set_level("INFO")
        try:
            reply = ask(play(line).url)
            shown = f"{reply.raw!r} {reply.request_id}"
        except RequestFailed as caught:
            shown = f"{caught!r} {caught.message} {caught.__cause__!r}"
            assert caught.__suppress_context__
        assert "***" in shown
        for secret in (KEY, KEY[:12], "****cdef"):
            assert secret not in shown + caplog.text

    @pytest.mark.parametrize("key", ["tiny-key-12", "k/e+y=with~signs!", "standin"])
    def test_keys_of_any_length_are_redacted_from_errors(self, play, key):
        server = play((403, error(f"'{key}' may not use standin-lalm")))
        assert failure(server.url, key=key).message == "'***' may not use standin-lalm"

    def test_a_key_that_may_be_a_word_of_the_answer_leaves_it_alone(self, play):
        assert ask(play((200, b'{"choices": ["sad"]}')).url, key="sad").raw == b'{"choices": ["sad"]}'

    def test_the_key_is_in_no_repr(self):
        client = Client(ServiceOptions("https://user:secret@host.example/v1", "m", KEY))
        assert repr(client) == "Client(host='host.example', model='m')"

    @pytest.mark.parametrize(
        ("url", "key"),
        [("http://h/v1", ""), ("http://h/v1", "two words"), ("http://h/v1", "a\n"), ("h:80/v1", "k")],
    )
    def test_keys_and_addresses_that_cannot_work_are_refused(self, url, key):
        with pytest.raises(UsageError):
            Client(ServiceOptions(url, "m", key))
