"""Services that want their requests in another form: options, named profiles, and errors that name the option."""

import base64
import io
import json
import re
from datetime import date

import numpy as np
import pytest
import soundfile
from conftest import KEY, RATE, mifuse, refused, tone, write_csv
from querying import GOOD, Query
from scripted import completion, error

from mifuse_cli.artifacts import Lalm
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.lalm.questions.dialect import Dialect
from mifuse_cli.lalm.questions.prompts import Wording
from mifuse_cli.lalm.questions.question_options import QuestionOptions
from mifuse_cli.lalm.service.advice import advice, option_for
from mifuse_cli.lalm.service.profiles import Profile, profile_names, read_profile

CLIPS = 5
ANSWER = 200, completion(GOOD)


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    root, rng = tmp_path_factory.mktemp("dialects"), np.random.default_rng(3)
    for number in range(CLIPS):
        soundfile.write(root / f"{number}.wav", tone(200 + 20 * number, 0.3, rng, 0.2), RATE)
    return write_csv(root / "manifest.csv", [{"file": f"{number}.wav"} for number in range(CLIPS)])


@pytest.fixture
def query(corpus, tmp_path, monkeypatch):
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)
    return Query(corpus, tmp_path / "l.h5")


def part(request):
    """The part of a question that holds the audio."""
    return request.body["messages"][-1]["content"][0]


def seconds(data):
    return soundfile.info(io.BytesIO(base64.b64decode(data))).duration


# What servers insist on: whether a request is as they want it, the error for any other, and the option for that.
STRICT = {
    "--token-limit max_tokens": (
        lambda one: "max_completion_tokens" not in one.body and one.body["max_tokens"] == 256,
        (422, {"message": {"detail": [{"loc": ["max_completion_tokens"], "msg": "Extra inputs are not permitted"}]}}),
    ),
    "--token-limit none": (
        lambda one: not {"max_completion_tokens", "max_tokens"} & one.body.keys(),
        (400, error("Unknown parameter: max_completion_tokens", code="unknown_parameter")),
    ),
    "--omit-temperature": (
        lambda one: "temperature" not in one.body,
        (400, error("Unsupported value: 'temperature' does not support 1.0", code="unsupported_value")),
    ),
    "--audio-part data-uri": (
        lambda one: re.match("data:audio/wav;base64,[A-Za-z0-9]", str(part(one)["input_audio"]["data"])),
        (400, error("The provided URL does not appear to be valid.", code="invalid_parameter_error")),
    ),
    "--audio-part audio-url": (
        lambda one: part(one)["type"] == "audio_url" and part(one)["audio_url"]["url"].startswith("data:audio/wav"),
        (400, error("Unknown content type: input_audio")),
    ),
    "--audio-part string": (
        lambda one: part(one)["type"] == "input_audio" and isinstance(part(one)["input_audio"], str),
        (422, {"detail": [{"loc": ["content", 0, "input_audio"], "msg": "Input should be a valid string"}]}),
    ),
    "--modalities text": (
        lambda one: one.body.get("modalities") == ["text"],
        (400, error("This model requires that either output modality is text: set modalities.")),
    ),
    """--extra-body {"reasoning_effort":"none"}""": (
        lambda one: one.body.get("reasoning_effort") == "none",
        (400, error("reasoning_effort is required")),
    ),
}  # fmt: skip


class TestOptions:
    @pytest.mark.parametrize("flags", STRICT)
    def test_help_with_a_service_that_insists(self, query, play, flags):
        wanted, refusal = STRICT[flags]
        server = play(lambda one: ANSWER if wanted(one) else refusal)
        refused(query(server.url, n_samples=1), 5, flags.split()[0])
        told = query.found(server.url, *flags.split(), n_samples=1)
        assert told["statuses"] == {"ok": CLIPS}

    def test_the_audio_is_the_same_in_every_form(self, query, play):
        server = play(ANSWER)
        for form in ("object", "data-uri", "audio-url", "string"):
            query.found(
                server.url,
                "--audio-part",
                form,
                "--force",
                n_samples=1,
                out=query.out.with_name(f"{form}.h5"),
            )
        forms = [part(one) for one in server.requests]
        texts = [json.dumps(one) for one in forms]
        heard = [re.search(r'(?:base64,|data": "|audio": ")([A-Za-z0-9+/=]{99,})', text)[1] for text in texts]
        assert {seconds(one) for one in heard} == {0.2} and len(set(heard)) == CLIPS

    def test_another_form_of_the_same_question_is_not_asked_anew(self, query, play):
        server = play(ANSWER)
        assert query.found(server.url, n_samples=1)["asked"] == CLIPS
        for flags in (["--token-limit", "max_tokens"], ["--audio-part", "data-uri"], ["--modalities", "text"],
                      ["--extra-headers", '{"X-Title": "mifuse"}']):  # fmt: skip
            assert query.found(server.url, *flags, n_samples=1)["asked"] == 0

    @pytest.mark.parametrize(
        "flags", [["--omit-temperature"], ["--token-limit", "none"], ["--extra-body", '{"top_p": 0.5}']]
    )
    def test_what_changes_the_question_makes_another(self, query, play, flags):
        server = play(ANSWER)
        query.found(server.url, n_samples=1)
        refused(query(server.url, *flags, n_samples=1), 4, "other questions")
        assert query.found(server.url, *flags, "--force", n_samples=1)["asked"] == CLIPS

    def test_headers_are_sent_and_secret_ones_kept_nowhere(self, query, play, monkeypatch):
        monkeypatch.setenv("GATEWAY", "gateway-secret-77")
        flags = ["--extra-headers", '{"X-Gateway-Key": "$GATEWAY", "X-Title": "mifuse"}']
        server = play((200, {**completion(GOOD), "echo": "gateway-secret-77"}))
        query.found(server.url, *flags, n_samples=1)
        headers = server.requests[0].headers
        assert (headers["X-Gateway-Key"], headers["X-Title"]) == ("gateway-secret-77", "mifuse")
        for file in query.out.parent.iterdir():
            assert b"gateway-secret" not in file.read_bytes()
        monkeypatch.delenv("GATEWAY")
        refused(query(server.url, *flags, "--n-samples", 2), 3, "GATEWAY", "not set")

    @pytest.mark.parametrize(
        ("flags", "word"),
        [
            (["--extra-body", "[1]"], "expected a JSON object"),
            (["--extra-body", "{"], "expected a JSON object"),
            (["--extra-body", '{"a": NaN}'], "expected a JSON object"),
            (["--extra-body", '{"temperature": 1}'], "an option of its own"),
            (["--extra-body", '{"model": "m"}'], "an option of its own"),
            (["--extra-headers", '{"api-key": "plain"}'], "$VARIABLE"),
            (["--extra-headers", '{"X-A": "a\\nb"}'], "no ASCII text"),
            (["--extra-headers", '{"no name": "a"}'], "no name"),
            (["--token-limit", "max"], "--token-limit 'max'"),
            (["--audio-part", "uri"], "--audio-part 'uri'"),
            (["--service", "opnai"], "did you mean 'openai'"),
        ],
    )
    def test_what_makes_no_sense_is_refused(self, query, play, flags, word):
        server = play(ANSWER)
        refused(query(server.url, *flags), 2, word)
        assert server.requests == []

    def test_a_probe_speaks_the_dialect_too(self, query, play):
        server = play(lambda one: (200, completion(*[GOOD] * one.body.get("n", 1))))
        flags = ["--choices-per-request", 2, "--token-limit", "max_tokens", "--omit-temperature"]
        query.found(server.url, *flags, "--audio-part", "data-uri")
        for one in server.requests:
            assert "max_tokens" in one.body and not {"max_completion_tokens", "temperature"} & one.body.keys()
            assert part(one)["input_audio"]["data"].startswith("data:")


class TestProfiles:
    def test_are_dated_and_have_a_source(self):
        assert profile_names() == ["openai", "azure", "gemini", "vllm", "dashscope", "mistral", "openrouter"]
        for name in profile_names():
            profile = read_profile(name)
            assert date.fromisoformat(profile.date) and profile.source.startswith("https://")
            assert profile.base_url or profile.example.startswith("https://")

    @pytest.mark.parametrize(
        ("name", "limit", "form"),
        [
            ("openai", "max_completion_tokens", dict),
            ("azure", "max_completion_tokens", dict),
            ("gemini", "max_completion_tokens", dict),
            ("vllm", "max_completion_tokens", dict),
            ("dashscope", "max_tokens", "data:"),
            ("mistral", "max_tokens", str),
            ("openrouter", "max_tokens", dict),
        ],
    )
    def test_set_the_form_of_the_requests(self, query, play, name, limit, form):
        def answer(one):
            if not one.body.get("stream"):
                return ANSWER
            chunks = [
                {"choices": [{"index": 0, "delta": {"content": GOOD}, "finish_reason": "stop"}]},
                {"choices": [], "usage": {"prompt_tokens": 9, "completion_tokens": 2}},
            ]
            return 200, b"".join(b"data: " + json.dumps(one).encode() + b"\n\n" for one in chunks)

        server = play(answer)
        assert query.found(server.url, "--service", name, n_samples=1)["statuses"] == {"ok": CLIPS}
        sent = server.requests[0]
        assert limit in sent.body and len({"max_tokens", "max_completion_tokens"} & sent.body.keys()) == 1
        audio = part(sent)["input_audio"]
        if isinstance(form, str):
            assert audio["data"].startswith(form)
        else:
            assert isinstance(audio, form)
        dashscope = name == "dashscope"
        assert bool(sent.body.get("stream")) == dashscope
        assert sent.body.get("modalities") == (["text"] if dashscope else None)
        if name == "azure":
            assert (sent.headers["api-key"], sent.headers["Authorization"]) == (KEY, None)
        else:
            assert sent.headers["Authorization"] == f"Bearer {KEY}"

    def test_options_win_over_a_profile(self, query, play):
        server = play(ANSWER)
        flags = ["--service", "mistral", "--token-limit", "none", "--audio-part", "object"]
        query.found(server.url, *flags, n_samples=1)
        assert "max_tokens" not in server.requests[0].body and part(server.requests[0])["input_audio"]["data"]

    def test_have_the_key_in_a_variable_of_their_own(self, query, play, monkeypatch):
        server = play(ANSWER)
        monkeypatch.setenv("MISTRAL_API_KEY", "mistral-key-0123")
        query.found(server.url, "--service", "mistral", n_samples=1)
        assert server.requests[0].headers["Authorization"] == "Bearer mistral-key-0123"
        monkeypatch.delenv("MISTRAL_API_KEY")
        line = refused(query(server.url, "--service", "mistral", key=None, n_samples=2), 3, "MISTRAL_API_KEY")
        assert "OPENAI_API_KEY" in line

    @pytest.mark.parametrize("name", ["azure", "dashscope"])
    def test_without_an_address_for_all_ask_for_one(self, query, name):
        refused(query("", "--service", name), 2, "needs --base-url, such as https://")

    def test_an_address_of_a_profile_wins_over_the_variable(self, query, monkeypatch):
        monkeypatch.setenv("OPENAI_BASE_URL", "http://127.0.0.1:9/v1")
        refused(query("", "--service", "gemini"), 2, "generativelanguage.googleapis.com", "--yes")

    def test_from_a_file(self, query, play, tmp_path, monkeypatch):
        monkeypatch.setenv("MINE", "my-own-key-9999")
        server = play(ANSWER)
        (tmp_path / "mine.yaml").write_text(
            f"base_url: {server.url}\nkey_variable: MINE\nkey_header: x-key\ntoken_limit: max_tokens\n"
            "audio_part: audio-url\ntemperature: false\nmodalities: [text]\n"
            "extra_body: {top_k: 5}\nextra_headers: {X-Title: mifuse}\ndate: 2026-11-01\nsource: my notes\n"
        )
        result = query("", "--service", tmp_path / "mine.yaml", n_samples=1)
        assert result.exit_code == 0 and "my notes described on 2026-11-01" in result.stderr
        sent = server.requests[0]
        assert sent.body.keys() == {"model", "messages", "max_tokens", "modalities", "top_k"}
        assert (sent.headers["x-key"], sent.headers["X-Title"]) == ("my-own-key-9999", "mifuse")
        assert part(sent)["type"] == "audio_url"
        spec = Lalm.load(query.out).header.parameters["spec"]
        assert (spec["temperature"], spec["extra_body"]) == (None, {"top_k": 5})

    @pytest.mark.parametrize(
        ("text", "word"),
        [
            ("[]", "expected a mapping"),
            ("{", "cannot be read as YAML"),
            ("base: x", "unknown field 'base'"),
            ("base_url: 3", "expected a text"),
            ("token_limit: max", "expected one of max_completion_tokens"),
            ("token_limit: [a]", "expected one of max_completion_tokens"),
            ("audio_part: {a: 1}", "expected one of object"),
            ("temperature: 0.5", "expected true or false"),
            ("modalities: text", "expected a list"),
            ("modalities: [1]", "expected a list"),
            ("extra_body: [a]", "expected a mapping"),
            ("extra_body: {model: x}", "an option of its own"),
            ("extra_body: {1: x}", "no name"),
            ("extra_headers: {a: 1}", "no ASCII text"),
            ("extra_headers: {api-key: sk-123}", "$VARIABLE"),
            ("date: soon", "expected one like"),
        ],
    )
    def test_a_file_that_makes_no_sense_is_refused(self, tmp_path, text, word):
        (tmp_path / "p.yaml").write_text(text)
        with pytest.raises(InputError) as caught:
            read_profile(str(tmp_path / "p.yaml"))
        assert word in str(caught.value) and "p.yaml" in str(caught.value)

    def test_a_file_that_is_not_there(self, tmp_path):
        with pytest.raises(InputError, match="No such file"):
            read_profile(str(tmp_path / "none.yaml"))
        with pytest.raises(UsageError, match="expected one of openai"):
            read_profile("nobody")
        assert read_profile("") == Profile()


def test_the_usual_dialect_leaves_all_questions_what_they_were():
    options = QuestionOptions("h", "m", Wording(), ("angry", "sad"))
    assert options.spec().keys() == {
        "key_version", "host", "model", "elicit", "system", "template", "classes", "temperature",
        "max_completion_tokens",
    }  # fmt: skip
    assert options.fields() == {"temperature": 1.0, "max_completion_tokens": 256}
    assert Dialect().changes() == {}


@pytest.mark.parametrize(
    ("status", "message", "word"),
    [
        (400, "Unsupported parameter: 'max_tokens' is not supported", "--token-limit"),
        (400, "Multiple candidates is not enabled for this model", "--choices-per-request"),
        (400, "logprobs is not supported", "--elicit"),
        (422, "Unexpected field seed", "--send-seed"),
        (400, "response_format is not supported", "--json-schema"),
        (400, "This model only supports streaming: set stream to true", "--stream"),
        (400, "Unrecognized request argument supplied: reasoning_effort", "--extra-body"),
        (401, "invalid temperature of the key", "API key"),
        (404, "The requested URL was not found", "--base-url usually ends with /v1"),
        (405, "Method Not Allowed", "--base-url usually ends with /v1"),
        (400, "something else", "parameters"),
    ],
)
def test_advice_names_the_option(status, message, word):
    assert word in advice(status, message)
    assert option_for(status, message) == "" or "--service" in option_for(status, message)


def test_advice_names_the_variable_of_an_organisation(monkeypatch):
    assert "OPENAI_ORG_ID" not in advice(401, "No such organization: org-x.")
    monkeypatch.setenv("OPENAI_ORG_ID", "org-x")
    assert "OPENAI_ORG_ID" in advice(401, "No such organization: org-x.")


def test_help_lists_every_profile():
    text = re.sub(r"\W+", " ", mifuse("query-lalm", "--help").stdout)
    for name in profile_names():
        assert name in text
