"""``mifuse query-lalm --transport vllm-batch``: questions and answers as files, through the same journal."""

import json
import re
import shutil

import numpy as np
import pytest
from conftest import refused
from querying import GOOD, PROBS, Query
from scripted import completion, error

from mifuse_cli.artifacts import Lalm

CLIPS = 24


@pytest.fixture
def query(corpora, tmp_path):
    found = Query(corpora.target, tmp_path / "my answers.h5")
    return lambda *flags, **options: found(
        "", "--transport", "vllm-batch", *flags, **{"key": None, **options}
    )


@pytest.fixture
def directory(tmp_path):
    return tmp_path / "my answers.h5.vllm-batch"


def answer(directory, respond=lambda body: (200, completion(*[GOOD] * body.get("n", 1)))):
    """Answer all files as ``vllm run-batch`` does; the questions, as (url, body)."""
    asked = []
    for path in directory.glob("*.in.jsonl"):
        written = []
        for line in map(json.loads, path.read_text().splitlines()):
            asked.append((line["url"], line["body"]))
            status, body = respond(line["body"])
            response = {"status_code": status, "request_id": "vllm-batch-1", "body": body}
            written.append(
                {"id": "vllm-1", "custom_id": line["custom_id"], "response": response, "error": None}
            )
        answers = path.with_name(path.name.replace(".in.", ".out."))
        answers.write_text("".join(json.dumps(one) + "\n" for one in written))
    return asked


def test_files_are_written_then_read(query, directory, tmp_path):
    first = query()
    assert first.exit_code == 0, first.stderr
    told = re.sub(r"\s+", " ", first.stderr)
    assert (
        "1 file with questions: see" in told
        and "vllm run-batch -i" in told
        and f"'{directory}'/*.in.jsonl" in told
    )
    assert not Lalm.load(tmp_path / "my answers.h5").header.parameters["complete"]

    asked = answer(directory)
    assert len(asked) == 2 * CLIPS
    url, body = asked[0]
    assert url == "/v1/chat/completions" and body["model"] == "m" and body["temperature"] == 1
    assert body["messages"][-1]["content"][0]["type"] == "input_audio"

    second = query("--json")
    assert second.exit_code == 0, second.stderr
    result = json.loads(second.stdout)
    assert result["complete"] and result["asked"] == 2 * CLIPS and result["waiting"] == 0
    probs = Lalm.load(tmp_path / "my answers.h5").probs
    np.testing.assert_allclose(probs, np.broadcast_to(PROBS, probs.shape), atol=1e-6)
    assert not list(directory.glob("*.in.jsonl")), "the audio stays behind"


def test_what_waits_is_not_asked_twice(query, directory):
    assert query().exit_code == 0
    before = {path.name: path.read_bytes() for path in directory.iterdir()}
    again = query()
    assert again.exit_code == 0 and "1 file with questions" in again.stderr
    assert {path.name: path.read_bytes() for path in directory.iterdir()} == before
    live = [*("--service", "vllm"), *("--transport", "live")]
    refused(query(*live, key="any"), 3, "run with --transport vllm-batch")


def test_a_file_that_is_being_written_is_left_alone(query, directory):
    assert query().exit_code == 0
    answer(directory)
    (answers,) = directory.glob("*.out.jsonl")
    whole = answers.read_bytes()
    answers.write_bytes(whole[:-20])
    assert "1 file with questions" in query().stderr
    answers.write_bytes(whole)
    assert json.loads(query("--json").stdout)["complete"]


def test_more_samples_make_another_file(query, directory):
    for n_samples in (1, 3):
        assert query(n_samples=n_samples).exit_code == 0
        assert len(answer(directory)) == CLIPS * (1 if n_samples == 1 else 2)
        assert json.loads(query("--json", n_samples=n_samples).stdout)["complete"]


def test_errors_within_are_asked_again_once(query, directory):
    assert query(n_samples=1).exit_code == 0
    lines = []

    def respond(body):
        lines.append(body)
        return (500, error("out of memory")) if len(lines) == 1 else (200, completion(GOOD))

    answer(directory, respond)
    result = query("--json", n_samples=1)
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["asked"] == CLIPS - 1 and "1 file with questions" in result.stderr
    assert len(answer(directory)) == 1
    assert json.loads(query("--json", n_samples=1).stdout)["complete"]


@pytest.mark.parametrize("garbage", [b"\xff\n", b"{}\n", b"[1]\n", b'{"custom_id": "x.1"}\n'])
def test_answers_to_nothing_are_no_answers(query, directory, garbage):
    assert query(n_samples=1).exit_code == 0
    (questions,) = directory.glob("*.in.jsonl")
    (directory / questions.name.replace(".in.", ".out.")).write_bytes(garbage * CLIPS)
    again = query(n_samples=1)
    assert again.exit_code == 0 and "24 questions are asked again, since they got no answer" in again.stderr
    assert len(answer(directory)) == CLIPS


def test_files_that_are_gone(query, directory):
    assert query().exit_code == 0
    shutil.rmtree(directory)
    again = query()
    assert again.exit_code == 0 and "and its answers are gone" in again.stderr
    assert len(answer(directory)) == 2 * CLIPS
