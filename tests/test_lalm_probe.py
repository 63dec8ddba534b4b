"""Which features a server has, found out from servers that honour, ignore or refuse them."""

import asyncio
import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mifuse_cli.audio import RATE
from mifuse_cli.lalm.answers.response import Response, decode
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed
from mifuse_cli.lalm.service.probe import Probe, unsupported
from mifuse_cli.lalm.service.service_options import ServiceOptions

KEY = "sk-test-0123456789abcdef"
ALL = ("n", "logprobs", "json_schema", "seed", "long_audio")
SHORT, LONGEST = 2.0, 35.0
CLIP = np.zeros(int(SHORT * RATE), dtype=np.float32)


def messages(samples):
    return [{"role": "user", "content": [{"type": "text", "text": "?"}, {"seconds": len(samples) / RATE}]}]


class Server:
    """Answers as a server with these habits would.

    Args:
        honours: features that have an effect; others are ignored, unless refused.
        refuses: features with the message about them.
        tokens: of the prompt by seconds of audio, None for no count.
        script: failures raised first.
        tones: whether audio other than the clip is taken.
        text: what it says.
    """

    def __init__(
        self, *, honours=(), refuses=None, tokens=lambda s: 100 + 25 * s, script=(), tones=True, text="{}"
    ):
        self.honours, self.refuses, self.tokens = honours, refuses or {}, tokens
        self.script, self.tones, self.text = list(script), tones, text
        self.asked, self.slept = [], []

    async def ask(self, messages, fields):
        seconds = messages[0]["content"][1]["seconds"]
        self.asked.append((seconds, fields))
        if self.script:
            raise self.script.pop(0)
        for field, feature in {
            "n": "n",
            "logprobs": "logprobs",
            "seed": "seed",
            "response_format": "json_schema",
        }.items():
            if field in fields and feature in self.refuses:
                raise RequestFailed(FailureKind.FATAL, 400, self.refuses[feature])
        if not self.tones and seconds != SHORT:
            raise RequestFailed(FailureKind.REJECTED, 400, "no such clip here")
        schema = "json_schema" in self.honours and fields.get("response_format", {}).get("json_schema")
        text = json.dumps(dict.fromkeys(schema["schema"]["required"], 1)) if schema else self.text
        choice = {"message": {"content": text}}
        if "logprobs" in self.honours and fields.get("logprobs"):
            alternatives = [{"token": "{", "logprob": -0.1}] * fields["top_logprobs"]
            choice["logprobs"] = {"content": [{"token": "{", "top_logprobs": alternatives}]}
        body = {"choices": [choice] * (fields.get("n", 1) if "n" in self.honours else 1)}
        if self.tokens:
            body["usage"] = {"prompt_tokens": round(self.tokens(seconds)), "completion_tokens": 9}
        return Response.of(body)

    async def sleep(self, seconds):
        self.slept.append(seconds)

    def probe(self, wanted=ALL, *, clip=CLIP, fields=None, longest=LONGEST):
        return asyncio.run(Probe(self.ask, messages, clip, fields or {}, self.sleep).run(wanted, longest))

    def values(self, wanted=ALL):
        return {name: facts["value"] for name, facts in self.probe(wanted).items()}


class TestFeatures:
    def test_a_server_that_honours_all(self):
        server = Server(honours=ALL)
        found = server.probe(fields={"temperature": 1.0})
        assert found == {
            "n": {"value": "honoured", "choices": 2},
            "logprobs": {"value": "honoured", "alternatives": 20},
            "json_schema": {"value": "honoured"},
            "seed": {"value": "accepted"},
            "long_audio": {"value": "honoured", "seconds": 35.0, "tokens_per_second": 25.0},
        }
        assert json.loads(json.dumps(found)) == found
        assert len(server.asked) == 4
        assert all(fields["temperature"] == 1.0 for _, fields in server.asked)
        assert [seconds for seconds, _ in server.asked] == [SHORT, SHORT, 17.5, 35]
        assert unsupported(found, ALL) == []

    def test_a_server_that_ignores_all(self):
        server = Server(tokens=lambda s: 100 + 25 * min(s, 30))
        found = server.probe()
        assert {name: facts["value"] for name, facts in found.items()} == {
            "n": "ignored",
            "logprobs": "ignored",
            "json_schema": "ignored",
            "seed": "accepted",
            "long_audio": "truncated",
        }
        assert found["n"]["choices"] == 1
        assert found["long_audio"]["heard"] == 30.0
        assert len(server.asked) == 4
        sentences = unsupported(found, ALL)
        assert len(sentences) == 3  # n is made up for by single requests, a seed may work
        assert "logprobs" in sentences[0] and "JSON schema" in sentences[1]
        assert "about 30 s of 35 s" in sentences[2]
        assert unsupported(found, ["n", "seed"]) == []

    @pytest.mark.parametrize("named", [True, False])
    @pytest.mark.parametrize("feature", ["n", "logprobs", "json_schema", "seed"])
    def test_one_feature_refused(self, feature, named):
        words = {
            "n": "Multiple candidates is not enabled for this model",
            "logprobs": "unknown field: top_logprobs",
            "json_schema": "response_format is not supported",
            "seed": "Invalid JSON payload received. Unknown name 'seed'",
        }
        message = words[feature] if named else "bad request"
        server = Server(honours=ALL, refuses={feature: message})
        found = server.probe(ALL[:4])
        assert found.pop(feature) == {"value": "refused", "message": message}
        assert {facts["value"] for facts in found.values()} <= {"honoured", "accepted"}
        assert len(found) == 3
        assert len(server.asked) <= (4 if named else 6)
        (sentence,) = unsupported({feature: {"value": "refused", "message": message}}, ALL)
        assert message in sentence

    def test_all_features_refused(self):
        server = Server(refuses=dict.fromkeys(ALL, "no."))
        assert set(server.values(ALL[:4]).values()) == {"refused"}
        assert (
            sum(
                not {"n", "seed", "logprobs", "response_format"} & fields.keys() for _, fields in server.asked
            )
            == 1
        )

    def test_only_what_is_wanted_is_asked(self):
        server = Server(honours=ALL)
        assert server.values(["seed"]) == {"seed": "accepted"}
        ((_, fields),) = server.asked
        assert not fields.keys() & {"n", "logprobs", "response_format"}
        assert Server().probe([]) == {}
        with pytest.raises(KeyError, match="telepathy"):
            server.probe(["telepathy"])

    def test_an_answer_without_words_tells_nothing(self):
        found = Server(text="").probe(ALL[:4])
        assert (found["logprobs"]["value"], found["json_schema"]["value"]) == ("unknown", "unknown")
        assert unsupported(found, ALL[:4]) == []


class TestLongAudio:
    @settings(deadline=None)
    @given(
        rate=st.floats(8, 100),
        text=st.integers(0, 500),
        longest=st.floats(20, 60),
        share=st.floats(0.05, 0.85) | st.none(),
        clip=st.floats(0.5, 20),
    )
    def test_a_plateau_is_found_wherever_it_begins(self, rate, text, longest, share, clip):
        limit = longest if share is None else share * longest
        server = Server(tokens=lambda seconds: text + rate * min(seconds, limit))
        samples = np.zeros(int(clip * RATE), dtype=np.float32)
        facts = server.probe(["seed", "long_audio"], clip=samples, longest=longest)["long_audio"]
        # Below its shortest sample a test sees no difference at all, and says so.
        shortest = clip if clip <= longest / 4 else longest / 8
        if limit > shortest + 4 / rate:
            assert facts["value"] == ("honoured" if share is None else "truncated")
            if share is not None:
                at_most = facts.get("at_most", False)
                assert at_most or share > 0.5
                assert facts["heard"] >= limit - 1
                assert facts["heard"] == pytest.approx(longest / 2 if at_most else limit, rel=0.05, abs=1)
        else:
            assert facts["value"] in ("unknown", "truncated")

    @pytest.mark.parametrize(
        ("tokens", "value"),
        [
            (lambda s: 100, "unknown"),
            (lambda s: 100 + 750 * -(-s // 30), "honoured"),  # blocks of 30 s
            (None, "unknown"),
        ],
    )
    def test_counts_that_tell_little(self, tokens, value):
        assert Server(tokens=tokens).values(["long_audio"]) == {"long_audio": value}

    def test_a_limit_before_the_second_length_is_only_bounded(self):
        found = Server(tokens=lambda s: 100 + 25 * min(s, 10)).probe(["long_audio"])
        assert found == {
            "long_audio": {"value": "truncated", "seconds": LONGEST, "heard": 17.5, "at_most": True}
        }
        assert "hears at most 18 s of 35 s of audio" in unsupported(found, ["long_audio"])[0]

    def test_a_server_that_knows_only_some_audio(self):
        found = Server(honours=ALL, tones=False).probe()
        assert (found["long_audio"]["value"], found["n"]["value"]) == ("unknown", "honoured")
        assert found["long_audio"]["message"] == "no such clip here"

    def test_long_audio_refused_is_not_truncated(self):
        class Strict(Server):
            async def ask(self, messages, fields):
                if messages[0]["content"][1]["seconds"] > 30:
                    raise RequestFailed(FailureKind.REJECTED, 413, "audio longer than 30 s")
                return await super().ask(messages, fields)

        found = Strict().probe(["long_audio"])
        assert found["long_audio"] == {
            "value": "refused",
            "seconds": 35.0,
            "message": "audio longer than 30 s",
        }
        assert "audio longer than 30 s" in unsupported(found, ["long_audio"])[0]


class TestFailures:
    def test_passing_failures_are_waited_out(self):
        lost = RequestFailed(FailureKind.TRANSIENT, None, "connection failed")
        busy = RequestFailed(FailureKind.THROTTLED, 429, "slow down", 7.0)
        server = Server(honours=ALL, script=[lost, busy, *[busy] * 5, lost])
        assert server.values(["n"]) == {"n": "honoured"}
        assert server.slept == [0.5, *[7.0] * 6, 1.0]

    @pytest.mark.parametrize(
        ("failure", "requests"),
        [
            (RequestFailed(FailureKind.FATAL, 401, "invalid API key"), 1),
            (RequestFailed(FailureKind.FATAL, 404, "no model"), 1),
            (RequestFailed(FailureKind.TRANSIENT, 503, "busy"), 4),
            (RequestFailed(FailureKind.THROTTLED, 429, "quota of today", 3600.0), 1),
            (RequestFailed(FailureKind.THROTTLED, 429, "slow down"), 4),
        ],
    )
    def test_others_end_the_probe(self, failure, requests):
        server = Server(script=[failure] * 10)
        with pytest.raises(RequestFailed) as caught:
            server.probe()
        assert caught.value is failure
        assert len(server.asked) == requests

    def test_a_request_that_is_bad_in_itself_is_no_refusal_of_features(self):
        bad = RequestFailed(FailureKind.REJECTED, 400, "n seconds of audio are too few")
        server = Server(script=[bad] * 20)
        with pytest.raises(RequestFailed, match="too few"):
            server.probe()

    def test_an_empty_answer_is_asked_for_again(self):
        class Shy(Server):
            async def ask(self, messages, fields):
                reply = await super().ask(messages, fields)
                return reply if len(self.asked) > 2 else Response.of({"choices": []})

        server = Shy(honours=ALL)
        assert server.probe(["n"])["n"]["choices"] == 2
        assert len(server.asked) == 3


def test_llmock(llmock):
    async def main():
        async with Client(ServiceOptions(llmock.base_url(), "m", KEY)) as client:

            async def ask(messages, fields):
                return decode((await client.ask(messages, fields)).raw)

            def plain(samples):
                return [{"role": "user", "content": "Say something."}]

            return await Probe(ask, plain, CLIP, {}).run(ALL, LONGEST)

    found = asyncio.run(main())
    assert {name: facts["value"] for name, facts in found.items()} == {
        "n": "honoured",
        "logprobs": "ignored",
        "json_schema": "honoured",
        "seed": "accepted",
        "long_audio": "unknown",
    }
    assert len(llmock.requests) <= 5
    assert {request.path for request in llmock.requests} == {"/v1/chat/completions"}
