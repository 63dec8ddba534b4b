"""What every option of query-lalm sends, and what stands in the artifact then."""

import json
import re
from collections import Counter
from contextlib import ExitStack

import numpy as np
import pytest
import soundfile
from conftest import CLASSES, RATE, refused, tone, write_csv
from querying import GOOD, PROBS, Query, heard, seconds_of
from scripted import completion, error, serving

from mifuse_cli.artifacts import Lalm
from mifuse_cli.lalm.answers.elicitation import LETTERS
from mifuse_cli.lalm.answers.parsing import Status

CLIPS = 6
LONG = 1.2  # seconds of the last clip


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Five clips of 0.2 s and a longer one, with what is said in them."""
    root, rng = tmp_path_factory.mktemp("options"), np.random.default_rng(6)
    rows = []
    for number in range(CLIPS):
        samples = tone(200 + number, 0.3, rng, LONG if number == CLIPS - 1 else 0.2)
        soundfile.write(root / f"{number}.wav", samples, RATE)
        label = CLASSES[number % 4]
        rows.append({"file": f"{number}.wav", "said": f"word{number}", "mood": label, "emotion": label})
    return write_csv(root / "manifest.csv", rows)


@pytest.fixture
def query(corpus, tmp_path):
    return Query(corpus, tmp_path / "l.h5")


@pytest.fixture
def serve():
    with ExitStack() as stack:
        yield lambda *script: stack.enter_context(serving(*script))


def good(request):
    """As many good answers as are asked for."""
    return 200, completion(*[GOOD] * request.body.get("n", 1))


def probes(server):
    """Requests that asked nothing about the corpus."""
    return [one for one in server.requests if one.headers["Idempotency-Key"].startswith("probe-")]


class TestElicit:
    def test_label(self, query, serve):
        def answer(request):
            first = re.search(r'Labels: "(\w+)"', heard(request)[1])
            return 200, completion(first[1].title() + ".")

        result = query(serve(answer).url, "--elicit", "label", n_samples=8)
        assert result.exit_code == 0 and "8 labels a clip make a coarse distribution" in result.stderr
        made = Lalm.load(query.out)
        # Every label stood first twice, and a label is all that such an answer holds.
        np.testing.assert_array_equal(made.probs.sum(axis=1), np.full((CLIPS, 4), 2))
        assert set(made.probs.ravel()) == {0, 1}

    def test_logprob(self, query, serve):
        def answer(request):
            assert request.body["logprobs"] is True and request.body["top_logprobs"] == 20
            letters = dict(re.findall(r'(\w): "(\w+)"', heard(request)[1]))
            shares = dict(zip(CLASSES, PROBS, strict=True))
            tokens = [
                {"token": f" {letter}", "logprob": float(np.log(shares[label]))}
                for letter, label in letters.items()
            ]
            body = completion(LETTERS[0])
            body["choices"][0]["logprobs"] = {"content": [{**tokens[0], "top_logprobs": tokens}]}
            return 200, body

        server = serve(answer)
        told = query.found(server.url, "--elicit", "logprob")
        assert told["statuses"] == {"ok": 2 * CLIPS} and len(probes(server)) == 1
        made = Lalm.load(query.out)
        np.testing.assert_allclose(made.probs, np.broadcast_to(PROBS, (CLIPS, 2, 4)), atol=1e-6)
        assert made.header.parameters["probe"]["logprobs"]["value"] == "honoured"
        asked = [one.body["max_completion_tokens"] for one in server.requests if one not in probes(server)]
        assert asked == [1] * 2 * CLIPS

    def test_logprobs_that_do_not_come(self, query, serve):
        server = serve(good)
        refused(query(server.url, "--elicit", "logprob"), 2, "ignores probabilities of tokens", "--probe off")
        assert len(server.requests) == 1


class TestSeveralAnswers:
    def check(self, query):
        made = Lalm.load(query.out)
        np.testing.assert_allclose(made.probs, np.broadcast_to(PROBS, (CLIPS, 6, 4)), atol=1e-6)
        orders = made.order.reshape(CLIPS, 2, 3, 4)
        assert (orders == orders[:, :, :1]).all() and (orders[:, 0] != orders[:, 1]).any(axis=(1, 2)).all()
        # The tokens of a response count once.
        assert made.header.parameters["summary"]["tokens"]["prompt"] == made.usage[..., 0].sum()
        return made

    def test_from_one_request(self, query, serve):
        server = serve(good)
        told = query.found(server.url, "--choices-per-request", 3, n_samples=6)
        assert told["asked"] == 6 * CLIPS and len(server.requests) == 1 + 2 * CLIPS
        made = self.check(query)
        assert (made.usage[..., 0] == [120, 0, 0, 120, 0, 0]).all()
        assert Counter(one.body.get("n") for one in server.requests) == {2: 1, 3: 2 * CLIPS}
        assert query.found(server.url, "--choices-per-request", 3, n_samples=9)["asked"] == 3 * CLIPS
        assert len(server.requests) == 1 + 3 * CLIPS

    def test_from_a_server_that_gives_one_whatever_is_asked(self, query, serve):
        server = serve((200, completion(GOOD)))
        told = query.found(server.url, "--choices-per-request", 3, n_samples=6)
        assert told["complete"] and told["asked"] == 6 * CLIPS and len(server.requests) == 1 + 6 * CLIPS
        made = self.check(query)
        assert made.header.parameters["probe"]["n"]["value"] == "ignored"
        assert (made.usage[..., 0] == 120).all()

    def test_have_to_come_out_even(self, query, serve):
        server = serve(good)
        refused(query(server.url, "--choices-per-request", 3, n_samples=4), 2, "multiple")
        assert server.requests == []


class TestSchema:
    REFUSAL = 400, error("response_format of type json_schema is not supported with this model")

    @pytest.mark.parametrize(
        ("line", "words"), [(REFUSAL, "refuses a JSON schema"), (good, "ignores a JSON schema")]
    )
    def test_is_found_out_before_anything_is_asked(self, query, serve, line, words):
        server = serve(lambda request: line if "response_format" in request.body else good)
        refused(query(server.url, "--json-schema"), 2, words, "m at 127.0.0.1", "--probe off")
        assert server.requests == probes(server) and 1 <= len(server.requests) <= 2
        refused(query(server.url, "--json-schema"), 2, words)
        assert server.requests == probes(server) and not query.out.exists()
        assert query.found(server.url, "--force")["complete"]

    def test_is_sent_where_it_is_honoured(self, query, serve):
        def answer(request):
            properties = request.body["response_format"]["json_schema"]["schema"]["properties"]
            return 200, completion(
                GOOD if "angry" in properties else json.dumps(dict.fromkeys(properties, 1))
            )

        server = serve(answer)
        assert query.found(server.url, "--json-schema")["statuses"] == {"ok": 2 * CLIPS}
        assert len(probes(server)) == 1
        assert query.found(server.url, "--json-schema", "--probe", "off", n_samples=3)["asked"] == CLIPS


def test_seed(query, serve):
    def seeds():
        asked = [one for one in server.requests if one not in probes(server)]
        return {one.headers["Idempotency-Key"].partition("-")[0]: one.body["seed"] for one in asked}

    server = serve(good)
    query.found(server.url, "--send-seed")
    first = seeds()
    assert len(set(first.values())) == 2 * CLIPS and all(0 <= seed < 2**31 for seed in first.values())
    server.requests.clear()
    query.out = query.out.with_name("again.h5")
    query.found(server.url, "--send-seed")
    assert seeds() == first
    other = query(server.url, "--send-seed", "--seed", 1)
    refused(other, 4, "holds answers to other questions: seed changed")


class TestPrompt:
    def test_is_a_file_whose_text_is_kept(self, query, serve, tmp_path):
        server, file = serve(good), tmp_path / "prompt.yaml"
        file.write_text("system: Be brief.\ntemplate: |-\n  How does it sound?\n  {labels}\n")
        query.found(server.url, "--prompt", file)
        system, asked = server.requests[0].body["messages"]
        assert system["content"] == "Be brief."
        assert re.fullmatch(r'How does it sound\?\n("\w+"(, )?){4}', asked["content"][1]["text"])
        spec = Lalm.load(query.out).header.parameters["spec"]
        assert (spec["system"], spec["template"]) == ("Be brief.", "How does it sound?\n{labels}")
        assert query.found(server.url, "--prompt", file)["asked"] == 0
        file.write_text("system: Be brief.\ntemplate: How does she sound? {labels}\n")
        refused(query(server.url, "--prompt", file), 4, "other questions: template changed", "--force")
        assert len(server.requests) == 2 * CLIPS
        assert query.found(server.url, "--prompt", file, "--force")["asked"] == 2 * CLIPS

    def test_that_cannot_work(self, query, serve, tmp_path):
        server, file = serve(good), tmp_path / "prompt.yaml"
        file.write_text("template: How does it sound?")
        refused(query(server.url, "--prompt", file), 2, "has 0 fields {labels}, expected one")
        assert server.requests == []


@pytest.mark.parametrize("share", [-0.1, 1.1, "nan"])
def test_a_share_is_from_0_to_1(query, share):
    refused(
        query("", "--max-unreadable", share), 2, f"--max-unreadable {share}: expected a share from 0 to 1"
    )


class TestContext:
    def test_is_shown(self, query, serve):
        server = serve(good)
        query.found(server.url, "--context-column", "said", n_samples=1)
        texts = sorted(heard(one)[1] for one in server.requests)
        assert [re.search(r'known: "(\w+)"', text)[1] for text in texts] == [f"word{n}" for n in range(CLIPS)]
        assert query.found(server.url, "--context-column", "said", n_samples=1)["asked"] == 0

    @pytest.mark.parametrize(
        ("column", "code", "words"),
        [
            ("emotion", 2, "the label must not be shown"),
            ("mood", 3, "names an emotion in 6 of 6 clips"),
            ("sid", 3, "has no column 'sid' (found: file, said, mood, emotion)"),
        ],
    )
    def test_is_no_label(self, query, serve, column, code, words):
        server = serve(good)
        refused(query(server.url, "--context-column", column), code, words)
        assert server.requests == [] and not query.out.exists()


class TestLongClips:
    @pytest.mark.parametrize(("rule", "sent"), [("skip", []), ("crop", [0.5]), ("chunk", [0.4, 0.4, 0.4])])
    def test_rules(self, query, serve, rule, sent):
        server = serve(good)
        result = query(server.url, "--max-seconds", 0.5, "--long-clips", rule, n_samples=1)
        assert result.exit_code == 0
        lengths = sorted(seconds_of(heard(one)[0]) for one in server.requests)
        assert lengths == pytest.approx([0.2] * (CLIPS - 1) + sent)
        made = Lalm.load(query.out)
        assert made.header.parameters["complete"] is True
        if rule == "skip":
            assert made.status[:, 0].tolist() == [Status.OK] * 5 + [Status.SKIPPED]
            assert np.isnan(made.probs[5]).all()
            assert "1 clips are longer than 0.5 s and were left out" in result.stderr
        else:
            assert (made.status == Status.OK).all()
        assert query.found(server.url, "--max-seconds", 0.5, "--long-clips", rule, n_samples=1)["asked"] == 0

    def test_stop_is_the_rule_if_none_is_given(self, query, serve):
        server = serve(good)
        for flags in ([], ["--dry-run"]):
            answer = query(server.url, "--max-seconds", 0.5, *flags)
            refused(answer, 3, "1 clips are longer", "5.wav of 1.2 s", "skip, crop or chunk")
        assert server.requests == [] and not query.out.exists()


class TestLongAudio:
    @pytest.fixture
    def manifest(self, tmp_path):
        soundfile.write(tmp_path / "0.wav", tone(200, 0.3, np.random.default_rng(0), 0.3), RATE)
        soundfile.write(tmp_path / "1.wav", tone(210, 0.3, np.random.default_rng(0), 26), RATE)
        return write_csv(tmp_path / "manifest.csv", [{"file": f"{number}.wav"} for number in range(2)])

    def hearing(self, limit):
        def answer(request):
            tokens = 100 + round(25 * min(seconds_of(heard(request)[0]), limit))
            return 200, completion(GOOD, usage={"prompt_tokens": tokens, "completion_tokens": 20})

        return answer

    def test_that_is_cut_off_in_silence(self, query, serve, manifest):
        server = serve(self.hearing(20))
        refused(query(server.url, manifest=manifest), 2, "hears about 20 s of 26 s of audio")
        assert server.requests == probes(server) and 2 <= len(server.requests) <= 4
        told = query.found(server.url, "--max-seconds", 10, "--long-clips", "chunk", manifest=manifest)
        assert told["statuses"] == {"ok": 4}

    def test_that_is_heard(self, query, serve, manifest):
        assert query.found(serve(self.hearing(99)).url, manifest=manifest)["complete"]
        found = Lalm.load(query.out).header.parameters["probe"]["long_audio"]
        assert found["value"] == "honoured" and found["tokens_per_second"] == pytest.approx(25, abs=1)


def test_mp3(query, serve):
    def answer(request):
        sent = request.body["messages"][-1]["content"][0]["input_audio"]
        audio = heard(request)[0]
        formats.append((sent["format"], audio[:4] != b"RIFF", round(seconds_of(audio), 1)))
        return good(request)

    formats = []
    query.found(serve(answer).url, "--upload", "mp3", n_samples=1)
    assert Counter(formats) == {("mp3", True, 0.2): CLIPS - 1, ("mp3", True, LONG): 1}
    assert Lalm.load(query.out).header.parameters["spec"]["upload"] == "mp3"
