"""Answers that come as a stream: put together from their chunks, and asked for from a real server."""

import asyncio
import json
import re

import pytest
from conftest import HANG_SECONDS
from hypothesis import example, given
from hypothesis import strategies as st

from mifuse_cli.lalm.answers.response import decode, decode_json
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed
from mifuse_cli.lalm.service.service_options import ServiceOptions

KEY = "sk-test-0123456789abcdef"
MESSAGES = [{"role": "user", "content": "Which emotion?"}]
REPLY = 'I would say: {"angry": 70, "happy": 30}'
NO_USAGE = dict.fromkeys(("prompt", "completion", "total", "audio", "cached"), -1)


def sse(*chunks, end="\n"):
    return "".join(
        f"data: {chunk if isinstance(chunk, str) else json.dumps(chunk)}{end}{end}" for chunk in chunks
    ).encode()


def chunk(delta=None, index=0, finish=None, **more):
    choice = {"index": index, "delta": delta or {}, "finish_reason": finish, **more}
    return {"id": "c1", "model": "m-1", "system_fingerprint": "fp", "choices": [choice]}


def said(raw, position=0):
    """Text and tokens of an answer."""
    response = decode(raw)
    return response.choice(position).text, response.usage


class TestChunks:
    @given(
        texts=st.lists(st.lists(st.text(st.characters(codec="utf-8")), min_size=1), min_size=1, max_size=4),
        draw=st.randoms(),
        end=st.sampled_from(["\n", "\r\n", "\r"]),
        ascii_only=st.booleans(),
    )
    def test_texts_come_back_however_they_were_cut_and_mixed(self, texts, draw, end, ascii_only):
        turns = [index for index, pieces in enumerate(texts) for _ in pieces]
        draw.shuffle(turns)
        rest = [list(pieces) for pieces in texts]
        chunks = [chunk({"content": rest[index].pop(0)}, index) for index in turns]
        chunks += [chunk(index=index, finish="stop") for index in range(len(texts))]
        raw = sse(*(json.dumps(one, ensure_ascii=ascii_only) for one in chunks), "[DONE]", end=end)
        assert [choice["index"] for choice in decode_json(raw)["choices"]] == list(range(len(texts)))
        for position, pieces in enumerate(texts):
            assert decode(raw).choice(position).text == "".join(pieces)

    def test_all_that_a_chat_completion_holds(self):
        tokens = [{"token": "{", "logprob": -0.1, "top_logprobs": []}, {"token": "}", "logprob": -0.2}]
        usage = {"prompt_tokens": 9, "completion_tokens": 2, "total_tokens": 11}
        raw = b": keep-alive\n\n" + sse(
            chunk({"role": "assistant", "content": ""}),
            chunk({"content": "{"}, logprobs={"content": tokens[:1]}),
            chunk({"content": [{"type": "text", "text": "}"}]}, logprobs={"content": tokens[1:]}),
            chunk(finish="length"),
            {"choices": [], "usage": usage},
            "[DONE]",
        )
        body = decode_json(raw)
        assert (body["object"], body["id"], body["model"]) == ("chat.completion", "c1", "m-1")
        assert (body["system_fingerprint"], body["usage"]) == ("fp", usage)
        message = {"role": "assistant", "content": "{}", "refusal": None}
        logprobs = {"content": tokens}
        assert body["choices"] == [
            {"index": 0, "message": message, "logprobs": logprobs, "finish_reason": "length"}
        ]
        assert said(raw) == ("{}", NO_USAGE | {"prompt": 9, "completion": 2, "total": 11})

    def test_a_refusal(self):
        raw = sse(chunk({"refusal": "I can"}), chunk({"refusal": "not."}), chunk(finish="stop"))
        assert decode(raw).choice(0).text == "I cannot."
        assert decode_json(raw)["choices"][0]["message"]["content"] is None

    @pytest.mark.parametrize(
        "raw",
        [
            sse(chunk({"content": REPLY}), "[DONE]"),
            sse(chunk({"content": REPLY}, 0, "stop"), chunk({"content": "I"}, 1)),
            sse(chunk({"content": REPLY[:20]}), '{"oops', chunk({"content": REPLY[20:]}, finish="stop")),
            sse(chunk({"content": REPLY}, finish="stop"))[:-30],
            sse({"choices": [], "usage": {"prompt_tokens": 1}}),
            sse("[DONE]"),
        ],
    )
    def test_what_is_not_whole_is_no_answer(self, raw):
        assert decode_json(raw)["choices"] == []
        assert decode(raw).choice(0).text == ""
        assert decode_json(raw)["error"]["message"] == "the stream broke off or is garbled"

    def test_what_was_used_counts_for_a_broken_stream_too(self):
        raw = sse(chunk({"content": "I"}), {"choices": [], "usage": {"prompt_tokens": 7}})
        assert said(raw) == ("", NO_USAGE | {"prompt": 7})

    def test_an_error_in_the_stream_is_what_the_server_said(self):
        raw = sse(chunk({"content": "I"}), {"error": {"message": f"no memory left for {KEY}", "code": 500}})
        assert decode_json(raw)["choices"] == []
        assert (
            Client(ServiceOptions("http://h/v1", "m", KEY)).said(decode_json(raw)) == "no memory left for ***"
        )

    def test_an_error_after_the_end_of_an_answer_leaves_it(self):
        raw = sse(chunk({"content": REPLY}, finish="stop"), {"error": {"message": "no usage"}})
        assert decode(raw).choice(0).text == REPLY

    def test_a_body_that_is_no_stream_needs_no_finish_reason(self):
        assert decode(b'{"choices": [{"message": {"content": "sad"}}]}').choice(0).text == "sad"

    json_values = st.recursive(
        st.none() | st.booleans() | st.integers() | st.text(max_size=5),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["choices", "index", "delta", "content", "logprobs", "usage", "finish_reason"]
                ),
                inner,
                max_size=4,
            )
        ),
        max_leaves=12,
    )

    @given(st.binary() | st.lists(json_values, min_size=1).map(lambda chunks: sse(*chunks)))
    @example(b"data: " + b"[" * 99999)
    @example(b"data:" + b"1" * 9999)
    @example(b'data: {"choices": [{"index": true, "delta": 3, "finish_reason": []}]}')
    def test_nothing_makes_reading_fail(self, raw):
        text, usage = said(raw)
        assert isinstance(text, str)
        assert all(type(number) is int for number in usage.values())
        assert isinstance(decode(raw).choices, tuple)
        assert decode_json(b"data: x\n" + raw)["choices"] == []


@pytest.fixture
def ask(llmock):
    """Ask llmock once for a streamed answer."""

    def ask(timeout=HANG_SECONDS, **fields):
        async def main():
            async with Client(
                ServiceOptions(llmock.base_url(), "m", KEY, timeout=timeout, stream=True)
            ) as client:
                return await client.ask(MESSAGES, fields, request_key="q1-7")

        return asyncio.run(main())

    return ask


class TestServer:
    def test_the_bytes_are_kept_as_they_came(self, ask, llmock):
        llmock.reply(REPLY)
        reply = ask()
        assert reply.raw.startswith(b"data: {") and reply.raw.endswith(b"data: [DONE]\n\n")
        text, usage = said(reply.raw)
        assert text == REPLY
        assert usage["prompt"] > 0 and usage["total"] == usage["prompt"] + usage["completion"]
        assert (reply.http_status, reply.headers["content-type"].partition(";")[0]) == (
            200,
            "text/event-stream",
        )

    def test_several_choices(self, ask, llmock):
        llmock.reply(REPLY)
        raw = ask(n=3).raw
        assert [decode(raw).choice(position).text for position in range(3)] == [REPLY] * 3

    @pytest.mark.parametrize("fault", ["truncate", "corrupt"])
    def test_a_stream_that_only_seems_to_end_is_no_answer(self, ask, llmock, fault):
        llmock.reply(REPLY)
        getattr(llmock, fault)(after_chunks=3)
        raw = ask().raw
        assert b"angry" in raw or b"would" in raw
        assert decode_json(raw)["choices"] == []

    def test_a_lost_connection(self, ask, llmock):
        llmock.disconnect(after_chunks=2)
        with pytest.raises(RequestFailed, match="connection failed") as caught:
            ask()
        assert (caught.value.kind, caught.value.http_status) == (FailureKind.TRANSIENT, None)

    def test_a_trickle_does_not_outlast_the_deadline(self, ask, llmock):
        llmock.reply("word " * 80).pace(100)  # no pause comes near the deadline, the whole takes seconds
        with pytest.raises(RequestFailed, match="no answer in time") as caught:
            ask(timeout=2)
        assert (caught.value.kind, caught.value.http_status) == (FailureKind.TRANSIENT, None)

    @pytest.mark.parametrize(
        ("status", "code", "fault"),
        [
            (401, "invalid_api_key", FailureKind.FATAL),
            (429, None, FailureKind.THROTTLED),
            (503, None, FailureKind.TRANSIENT),
            (400, "context_length_exceeded", FailureKind.REJECTED),
        ],
    )
    def test_errors_before_the_stream_are_told_apart(self, ask, llmock, status, code, fault):
        llmock.fail(status, code=code, message=f"No, {KEY}.", retry_after=3)
        with pytest.raises(RequestFailed, match=r"No, \*\*\*\.") as caught:
            ask()
        assert (caught.value.kind, caught.value.http_status, caught.value.wait) == (fault, status, 3)


@pytest.mark.parametrize("stream", [False, True])
def test_what_is_sent(stream):
    heads, bodies = [], []

    async def answer(reader, writer):
        heads.append((await reader.readuntil(b"\r\n\r\n")).decode().lower())
        bodies.append(
            json.loads(await reader.readexactly(int(re.search(r"content-length: (\d+)", heads[-1])[1])))
        )
        writer.write(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Request-Id: r-1\r\n\r\n{}")
        writer.close()

    async def main():
        async with await asyncio.start_server(answer, "127.0.0.1", 0) as server:
            port = server.sockets[0].getsockname()[1]
            async with Client(
                ServiceOptions(f"http://127.0.0.1:{port}/v1", "m", KEY, stream=stream)
            ) as client:
                reply = await client.ask(MESSAGES, {"temperature": 1}, request_key="q1-7")
                await client.ask(MESSAGES, {})
                return reply

    reply = asyncio.run(main())
    assert (reply.raw, reply.http_status, reply.request_id) == (b"{}", 200, "r-1")
    assert heads[0].startswith("post /v1/chat/completions ")
    assert f"authorization: bearer {KEY}" in heads[0]
    assert "idempotency-key: q1-7" in heads[0] and "idempotency-key" not in heads[1]
    streamed = {"stream": True, "stream_options": {"include_usage": True}} if stream else {}
    assert bodies[0] == {"model": "m", "messages": MESSAGES, "temperature": 1, **streamed}
    assert bodies[1] == {"model": "m", "messages": MESSAGES, **streamed}
