"""Services that mean no good: bodies without end, bombs, redirects, keys in disguise, variables that mislead."""

import asyncio
import gzip
import itertools
import json
import os
import zlib
from html import unescape
from urllib.parse import quote, unquote

import pytest
from conftest import HANG_SECONDS
from scripted import GOOD, KEY, Written, error, serving

from mifuse_cli.errors import DependencyError, InputError
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.service import client, guarded_http
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.environment import check_environment, proxy_variable
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed
from mifuse_cli.lalm.service.secrets_in_text import Secrets
from mifuse_cli.lalm.service.service_options import ServiceOptions

MESSAGES = [{"role": "user", "content": "Which emotion?"}]
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
MEBIBYTE = b" " * 2**20


@pytest.fixture(autouse=True)
def no_proxies(monkeypatch):
    for name in ("http_proxy", "https_proxy", "all_proxy", "no_proxy", "ssl_cert_file"):
        for one in (name, name.upper()):
            monkeypatch.delenv(one, raising=False)


def ask(url, *, key=KEY, timeout=HANG_SECONDS):
    async def main():
        async with Client(ServiceOptions(url, "m", key, timeout=timeout)) as one:
            return await one.ask(MESSAGES, {})

    return asyncio.run(main())


def failure(url, **options):
    with pytest.raises(RequestFailed) as caught:
        ask(url, **options)
    return caught.value


class TestBodies:
    @pytest.mark.parametrize("head", [b"\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
    def test_without_end_are_left_and_may_have_been_billed(self, play, head):
        sent = []

        def pieces():
            yield HEAD + head
            for _ in range(1000):
                sent.append(1)
                yield MEBIBYTE if head == b"\r\n" else b"100000\r\n" + MEBIBYTE + b"\r\n"

        failed = failure(play(Written(pieces)).url)
        assert (failed.kind, failed.http_status, failed.billed) == (FailureKind.TRANSIENT, None, True)
        assert "more than 16 MiB" in failed.message and len(sent) < 100

    @pytest.mark.parametrize("status", [401, 429, 500])
    def test_of_errors_without_end_count_as_the_status(self, play, status):
        def pieces():
            yield f"HTTP/1.1 {status} No\r\n\r\n".encode()
            yield from itertools.repeat(MEBIBYTE, 1000)

        assert failure(play(Written(pieces)).url).http_status == status

    def test_of_ten_megabytes_are_answers(self, play):
        body = json.dumps({**GOOD, "padding": "x" * 10_000_000}).encode()
        assert ask(play((200, body)).url).raw == body

    @pytest.mark.parametrize("packing", ["gzip", "deflate"])
    def test_that_are_bombs_are_left(self, play, packing, monkeypatch):
        monkeypatch.setattr(guarded_http, "MOST_BYTES", 2**20)
        pack = gzip.compress if packing == "gzip" else zlib.compress
        bomb = pack(b"0" * 2**26)
        assert len(bomb) < 2**20
        assert "more than 1 MiB" in failure(play((200, bomb, {"Content-Encoding": packing})).url).message

    @pytest.mark.parametrize(
        ("packing", "pack"),
        [
            ("gzip", gzip.compress),
            ("deflate", zlib.compress),
            ("deflate", lambda raw: zlib.compress(raw)[2:-4]),
            ("identity", bytes),
            ("gzip", bytes),  # the header alone says so
            ("deflate", lambda raw: b"\n" + raw),
        ],
    )
    def test_that_are_packed_as_agreed_are_read(self, play, packing, pack):
        raw = json.dumps(GOOD).encode()
        assert ask(play((200, pack(raw), {"Content-Encoding": packing})).url).raw.strip() == raw

    @pytest.mark.parametrize(
        ("packing", "kind"), [("br", FailureKind.FATAL), ("gzip", FailureKind.TRANSIENT)]
    )
    def test_that_are_packed_otherwise_are_told(self, play, packing, kind):
        failed = failure(play((200, b"not packed", {"Content-Encoding": packing})).url)
        assert failed.kind is kind and packing in failed.message

    def test_cut_off_in_the_middle_may_have_been_billed(self, play):
        failed = failure(play(Written(lambda: [HEAD + b"Content-Length: 100\r\n\r\n{"])).url)
        assert (failed.kind, failed.http_status) == (FailureKind.TRANSIENT, None)

    @pytest.mark.parametrize("status", [200, 500])
    def test_that_drip_end_with_the_time_of_a_request(self, play, status):
        def pieces():
            yield f"HTTP/1.1 {status} OK\r\n\r\n".encode()
            while not server.release.wait(0.1):
                yield b" "

        server = play(Written(pieces))
        assert failure(server.url, timeout=1).message == "no answer in time"


class TestFiles:
    """Files of a provider, which come line by line."""

    def lines(self, *script):
        async def main(url):
            async with Client(ServiceOptions(url, "m", KEY, timeout=HANG_SECONDS)) as one:
                return [line async for line in one.lines("file-1")]

        with serving(*script) as server:
            return asyncio.run(main(server.url))

    def test_come_without_the_key(self):
        body = b'{"a": 1}\n' + KEY.encode() + b"\nlast"
        assert self.lines((200, body)) == [b'{"a": 1}', b"***", b"last"]

    def test_that_drip_end(self, monkeypatch):
        def pieces():
            yield b"HTTP/1.1 200 OK\r\n\r\nfirst\n"
            yield from itertools.repeat(b"x", 10_000_000)

        monkeypatch.setattr(client, "LINE_SECONDS", 0.2)
        with pytest.raises(RequestFailed, match="no whole line"):
            self.lines(Written(pieces))

    def test_whose_line_has_no_end_end(self, monkeypatch):
        def pieces():
            yield b"HTTP/1.1 200 OK\r\n\r\n"
            yield from itertools.repeat(MEBIBYTE, 1000)

        monkeypatch.setattr(client, "LONGEST_LINE", 2**22)
        with pytest.raises(RequestFailed, match="a line of more than"):
            self.lines(Written(pieces))


class TestRedirects:
    @pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
    def test_to_another_host_are_not_followed(self, play, status):
        other = play((200, GOOD))
        place = other.url.replace("127.0.0.1", "user:pw@localhost") + f"/chat/completions?key={KEY}"
        server = play((status, b"", {"Location": place}))
        failed = failure(server.url)
        assert (failed.kind, failed.http_status, other.requests) == (FailureKind.FATAL, status, [])
        assert f"localhost:{other.server_address[1]}/v1/chat/completions" in failed.message
        assert "--base-url" in failed.message and "pw" not in failed.message and KEY not in failed.message

    def test_to_another_port_of_the_host_are_to_another_service(self, play):
        other = play((200, GOOD))
        assert failure(play((307, b"", {"Location": f"{other.url}/x"})).url).kind is FailureKind.FATAL
        assert other.requests == []

    @pytest.mark.parametrize("status", [307, 308])
    def test_within_the_host_are_followed(self, play, status):
        server = play((status, b"", {"Location": "/v1/elsewhere"}), (200, GOOD))
        assert ask(server.url).raw == json.dumps(GOOD).encode()
        assert [one.body["messages"] for one in server.requests] == [MESSAGES] * 2

    @pytest.mark.parametrize("status", [301, 302, 303])
    def test_that_would_lose_the_question_are_not(self, play, status):
        server = play((status, b"", {"Location": "/v1/elsewhere"}), (200, GOOD))
        assert failure(server.url).kind is FailureKind.FATAL and len(server.requests) == 1

    def test_in_a_circle_end(self, play):
        server = play((307, b"", {"Location": "/v1/chat/completions"}))
        failed = failure(server.url)
        assert failed.kind is FailureKind.FATAL and "circle" in failed.message and len(server.requests) == 6


SLASHED = "sk/test+0123/456789=abcdef"


FORMS = {
    "plain": SLASHED,
    "escaped slashes": SLASHED.replace("/", "\\/"),
    "unicode": "".join(f"\\u{ord(char):04x}" for char in SLASHED),
    "capital unicode": "".join(f"\\u{ord(char):04X}" for char in SLASHED),
    "percent": quote(SLASHED, safe=""),
    "small percent": "".join(f"%{ord(char):02x}" for char in SLASHED),
    "percent twice": quote(quote(SLASHED, safe=""), safe=""),
    "entities": "".join(f"&#x{ord(char):x};" for char in SLASHED),
    "a fragment": SLASHED[5:20],
    "a fragment, percent": quote(SLASHED[3:20], safe=""),
    "a fragment, entities": "".join(f"&#{ord(char)};" for char in SLASHED[3:17]),
    "a fragment, escaped": "".join(f"\\u{ord(char):04x}" for char in SLASHED[3:17]),
}


class TestSecrets:
    @pytest.mark.parametrize("form", FORMS)
    @pytest.mark.parametrize("place", ["text", "model", "name"])
    def test_are_hidden_in_every_form(self, form, place):
        written = FORMS[form]
        body = json.dumps({**GOOD, "model": "the-model"}).replace('{\\"angry\\": 100}', "angry TEXT")
        spot = {"text": "TEXT", "model": "the-model", "name": '"usage"'}[place]
        raw = body.replace(spot, f'"{written}": 1, "usage"' if place == "name" else written).encode()
        hidden = Secrets([SLASHED]).body(raw)
        assert b"***" in hidden and json.loads(hidden)["usage"] == GOOD["usage"]
        shown = json.dumps(json.loads(hidden), ensure_ascii=False)
        for start in range(len(SLASHED) - 12):
            assert SLASHED[start : start + 12] not in shown + hidden.decode() + unescape(unquote(shown))
        for other in ("plain", "percent", "entities"):
            assert FORMS[other] not in shown

    @pytest.mark.parametrize("cut", [5, 9, 13])
    def test_cut_in_pieces_by_a_stream_are_hidden(self, cut):
        def chunk(text, finish=None):
            return {"choices": [{"index": 0, "delta": {"content": text}, "finish_reason": finish}]}

        parts = [f"sad {SLASHED[:cut]}", SLASHED[cut : cut + 6], f"{SLASHED[cut + 6 :]} 100"]
        chunks = [*map(chunk, parts), chunk("", "stop")]
        raw = b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks)
        assert decode(Secrets([SLASHED]).body(raw)).choice(0).text == "sad *** 100"

    def test_a_body_without_them_stays_as_it_is(self):
        for raw in (json.dumps(GOOD).encode(), b"data: {}", b"\xff\\u0041", b'"\\u00e9"', b""):
            assert Secrets([SLASHED, "short"]).body(raw) == raw

    def test_those_of_an_address_are_secrets_too(self, play):
        server = play((401, error("user pass-word-7 of c2VjcmV0 has no api_key=aaaabbbbccccdddd")))
        url = (
            server.url.replace("http://", "http://user:pass%2Dword%2D7@") + "?api_key=aaaabbbbccccdddd&v=2026"
        )
        message = failure(url).message
        assert "pass-word-7" not in message and "aaaabbbb" not in message

    def test_no_body_takes_long(self):
        for piece in (b"\\", b"%25", b"sk/test+0123", b"&#", b"s", b"\\u0073"):
            assert Secrets([SLASHED]).body(piece * (2**18 // len(piece))) is not None


class TestEnvironment:
    @pytest.mark.parametrize(
        ("name", "value", "kind", "word"),
        [
            ("ALL_PROXY", "ftp://proxy:1", InputError, "scheme 'ftp'"),
            ("https_proxy", "socks4://proxy:1", InputError, "scheme 'socks4'"),
            ("HTTP_PROXY", "http://user:secret@[oops", InputError, "no address"),
            ("HTTP_PROXY", "http://proxy:99999", InputError, "no address"),
            ("HTTPS_PROXY", "http://", InputError, "no address"),
            ("SSL_CERT_FILE", "/nowhere/ca.pem", InputError, "cannot be read"),
            ("SSL_CERT_FILE", __file__, InputError, "no certificate"),
            ("OPENAI_ORG_ID", "org\nid", InputError, "line breaks"),
            ("OPENAI_PROJECT_ID", "projé", InputError, "ASCII"),
        ],
    )
    def test_what_cannot_work_is_told_with_its_name(self, monkeypatch, name, value, kind, word):
        check_environment()
        monkeypatch.setenv(name, value)
        with pytest.raises(kind, match=name) as caught:
            Client(ServiceOptions("http://h/v1", "m", KEY))
        assert word in str(caught.value) and "secret" not in str(caught.value)

    @pytest.mark.parametrize("name", ["ALL_PROXY", "https_proxy"])
    def test_a_socks_proxy_needs_a_package(self, monkeypatch, name):
        monkeypatch.setenv(name, "socks5://proxy:1080")
        monkeypatch.setattr("mifuse_cli.lalm.service.environment.find_spec", lambda _: None)
        with pytest.raises(DependencyError, match=rf"{name}.*socksio"):
            check_environment()
        monkeypatch.setattr("mifuse_cli.lalm.service.environment.find_spec", lambda _: True)
        check_environment()

    def test_a_proxy_that_is_not_there_is_named(self, monkeypatch):
        with serving((200, GOOD)) as gone:
            address = gone.url.removesuffix("/v1")
        monkeypatch.setenv("HTTP_PROXY", address)
        failed = failure("http://service.example/v1")
        assert (failed.kind, failed.http_status, failed.ours) == (FailureKind.FATAL, 0, True)
        assert "HTTP_PROXY" in failed.message and isinstance(failed.error("x"), InputError)

    def test_which_proxy_is_between(self, monkeypatch):
        assert proxy_variable("https://h/v1") is None
        monkeypatch.setenv("ALL_PROXY", "http://proxy:1")
        assert proxy_variable("https://h/v1") == "ALL_PROXY"
        monkeypatch.setenv("https_proxy", "http://proxy:2")
        assert proxy_variable("https://h/v1") == "https_proxy"
        assert proxy_variable("http://h/v1") == "ALL_PROXY"
        monkeypatch.setenv("NO_PROXY", "h")
        assert proxy_variable("https://h/v1") is None
        assert os.environ["ALL_PROXY"]
