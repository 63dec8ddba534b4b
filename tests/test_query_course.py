"""The course of a run of query-lalm: asking again, reading again, saving, stopping, and what it tells."""

import json
import re
import threading
from collections import Counter

import numpy as np
import pytest
import soundfile
from conftest import CLASSES, RATE, mifuse, refused, tone, until, write_csv
from llmock.routers import batch as provider
from querying import GOOD, PROBS, Query, heard
from scripted import completion, error

from mifuse_cli.artifacts import Fused, Lalm
from mifuse_cli.lalm.answers.parsing import Status

CLIPS = 24
NOISE = 200, completion("Banana.")
REFUSAL = 200, completion("I'm sorry, but I can't help with that.")
LABEL = 200, completion("It is the happy one.")


@pytest.fixture
def query(corpora, tmp_path):
    return Query(corpora.target, tmp_path / "l.h5")


def good(request):
    return 200, completion(*[GOOD] * request.body.get("n", 1))


class Moody:
    """Answers well, but the first clips that it hears each with the lines of a script, the last for ever.

    Attributes:
        texts: of the questions about each of those clips, in their order.
    """

    def __init__(self, *scripts):
        self.scripts = [list(script) for script in scripts]
        self.texts = [[] for _ in scripts]
        self.clips, self.lock = {}, threading.Lock()

    def __call__(self, request):
        audio, text = heard(request)
        with self.lock:
            number = self.clips.setdefault(audio, len(self.clips))
            if number >= len(self.scripts):
                return good
            self.texts[number].append(text)
            lines = self.scripts[number]
            return lines.pop(0) if len(lines) > 1 else lines[0]


class TestAgain:
    def test_at_most_as_often_as_told(self, query, play):
        moody = Moody([NOISE], [REFUSAL], [NOISE, good], [REFUSAL, good])
        server = play(moody)
        flags = ["--reask", 2, "--reask-refused", 1]
        told = query.found(server.url, *flags, n_samples=1)
        assert list(map(len, moody.texts)) == [3, 2, 2, 2] and len(server.requests) == CLIPS + 5
        assert told["statuses"] == {"ok": CLIPS - 2, "refused": 1, "unparsed": 1} and told["complete"]
        noise, refusal, *_ = moody.texts
        assert len(set(noise)) == 1
        assert refusal[1].startswith(refusal[0]) and "listening study" in refusal[1][len(refusal[0]) :]
        assert query.found(server.url, *flags, n_samples=1)["asked"] == 0
        assert query.found(server.url, n_samples=1)["asked"] == 0
        assert query.found(server.url, "--reask-refused", 2, n_samples=1)["asked"] == 1
        assert len(moody.texts[1]) == 3 and len(server.requests) == CLIPS + 6

    def test_in_a_later_run(self, query, play):
        moody = Moody([NOISE, good], [REFUSAL, good])
        server = play(moody)
        assert query.found(server.url, n_samples=1)["statuses"] == {"ok": 22, "refused": 1, "unparsed": 1}
        assert query.found(server.url, "--reask", 1, n_samples=1)["statuses"] == {"ok": 23, "refused": 1}
        # The answers of the other run count whatever this one would ask again.
        told = query.found(server.url, "--reask-refused", 1, n_samples=1)
        assert told["statuses"] == {"ok": 24} and len(server.requests) == CLIPS + 2

    def test_in_the_words_of_the_prompt_file(self, query, play, tmp_path):
        moody = Moody([REFUSAL, good])
        (tmp_path / "prompt.yaml").write_text("refused: Please try.")
        query.found(play(moody).url, "--prompt", tmp_path / "prompt.yaml", "--reask-refused", 1, n_samples=1)
        assert moody.texts[0][1] == f"{moody.texts[0][0]}\nPlease try."

    def test_for_longer_where_an_answer_was_cut_off(self, query, play):
        cut = completion('{"angry": 4')
        cut["choices"][0]["finish_reason"] = "length"
        server = play((200, cut), good)
        told = query.found(server.url, "--reask", 1, "--max-tokens", 50, n_samples=1)
        assert told["statuses"] == {"ok": CLIPS}
        asked = [one.body["max_completion_tokens"] for one in server.requests]
        assert asked == [50] * CLIPS + [100]


class TestReparse:
    def test_reads_old_answers_in_a_new_way_and_asks_nothing(self, query, play):
        server = play(LABEL)
        refused(query(server.url, n_samples=1), 5, "label only 24", "--accept-label-only", "--reparse")
        flags = ["--reparse", "--accept-label-only"]
        told = query.found(server.url, *flags, n_samples=1, key=None)
        assert told["statuses"] == {"ok": CLIPS} and told["asked"] == 0
        made = Lalm.load(query.out)
        np.testing.assert_array_equal(made.probs, np.broadcast_to([0, 1, 0, 0], (CLIPS, 1, 4)))
        assert made.header.parameters["flags"] == {"label-only": CLIPS}
        refused(query(server.url, "--reparse", n_samples=1, key=None), 5, "label only 24")
        assert (
            set(Lalm.load(query.out).status.ravel()) == {Status.LABEL_ONLY} and len(server.requests) == CLIPS
        )

    def test_leaves_what_is_missing_alone(self, query, play):
        server = play(good)
        query.found(server.url, n_samples=1)
        told = query.found(server.url, "--reparse", "--reask", 1, n_samples=3, key=None)
        assert told["statuses"] == {"missing": 2 * CLIPS, "ok": CLIPS} and not told["complete"]
        assert "48 questions are unanswered yet" in " ".join(told["notes"])
        assert len(server.requests) == CLIPS


class TestTransport:
    def test_batch(self, query, llmock, monkeypatch):
        monkeypatch.setattr(provider, "_BATCH_DELAY", 0.0)
        monkeypatch.setattr(provider, "build_mock_text", lambda **_: GOOD)
        flags = ["--transport", "batch", "--poll-seconds", 0.01]
        told = query.found(llmock.base_url(), *flags)
        assert told["complete"] and told["asked"] == 2 * CLIPS
        np.testing.assert_allclose(Lalm.load(query.out).probs[7, 1], PROBS, atol=1e-6)
        made = [one for one in llmock.requests if one.method == "POST" and one.path == "/v1/batches"]
        assert len(made) == 1 and not any("chat" in one.path for one in llmock.requests)
        sent = len(llmock.requests)
        assert query.found(llmock.base_url(), *flags)["asked"] == 0 and len(llmock.requests) == sent
        assert query.found(llmock.base_url(), *flags, n_samples=3)["asked"] == CLIPS

    def test_a_batch_has_no_streams(self, query, tmp_path):
        refused(query("", "--transport", "batch", "--stream"), 2, "--stream: a batch has no streams")
        assert list(tmp_path.iterdir()) == []

    def test_stream(self, query, play):
        def answer(request):
            assert request.body["stream"] is True
            half = len(GOOD) // 2
            parts = [
                *({"choices": [{"index": 0, "delta": {"content": t}}]} for t in (GOOD[:half], GOOD[half:])),
                {"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]},
                {"choices": [], "usage": {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}},
            ]
            lines = [f"data: {json.dumps(part)}\n\n" for part in parts]
            broken = len(server.requests) == 5
            text = "".join(lines[:1] if broken else [*lines, "data: [DONE]\n\n"])
            return 200, text.encode(), {"Content-Type": "text/event-stream"}

        server = play(answer)
        told = query.found(server.url, "--stream", n_samples=1)
        assert told["statuses"] == {"ok": CLIPS} and len(server.requests) == CLIPS + 1
        assert told["tokens"] == {"prompt": 7 * CLIPS, "completion": 3 * CLIPS}
        made = Lalm.load(query.out)
        assert {made.raw_answer(u, 0) for u in range(CLIPS)} == {GOOD}


def test_is_saved_while_it_runs(query, play):
    def answer(request):
        if len(server.requests) == 30:
            until(query.out.exists)
            seen.append(Lalm.load(query.out))
        return good(request)

    seen = []
    server = play(answer)
    told = query.found(server.url, "--save-minutes", 0.0005, "--concurrency", 1)
    assert told["complete"] and seen[0].header.parameters["complete"] is False
    assert 0 < (seen[0].status == Status.OK).sum() <= 29
    np.testing.assert_array_equal(seen[0].utt_id, Lalm.load(query.out).utt_id)


class TestUnreadable:
    def test_most_of_them_end_the_run(self, query, play):
        server = play(good, NOISE)
        flags = ["--concurrency", 1]
        line = refused(query(server.url, *flags, n_samples=4), 5, "98% of the last 50 answers", "Banana.")
        assert "50 answers of this run are kept" in line and len(server.requests) == 50
        assert Lalm.load(query.out).header.parameters["complete"] is False
        told = query.found(server.url, *flags, "--max-unreadable", 1, n_samples=4)
        assert told["statuses"] == {"ok": 1, "unparsed": 95} and len(server.requests) == 96

    @pytest.mark.parametrize(
        ("line", "finish", "words"),
        [
            (NOISE, "stop", ("unparsed 24", "Check the prompt")),
            (REFUSAL, "stop", ("refused 24", "--reask-refused")),
            (
                (200, completion('{"angry": 7')),
                "length",
                ("truncated 24", "--max-tokens", "reasoning_effort"),
            ),
        ],
    )
    def test_nothing_that_can_be_read_is_no_success(self, query, play, line, finish, words):
        line[1]["choices"][0]["finish_reason"] = finish
        server = play(line)
        refused(query(server.url, n_samples=1), 5, *words, "are kept")
        assert Lalm.load(query.out).header.parameters["complete"] is True
        # Neither does asking again find anything, nor reading again.
        for flags in ([], ["--reparse"]):
            refused(query(server.url, *flags, n_samples=1), 5, *words)
        assert len(server.requests) == CLIPS

    def test_some_that_were_cut_off_are_told(self, query, play):
        cut = completion("")
        cut["choices"][0]["finish_reason"] = "length"
        result = query(play(good, (200, cut), good).url, "--concurrency", 1, "--max-tokens", 77, n_samples=1)
        assert result.exit_code == 0 and "1 answers were cut off by the token limit (77)" in result.stderr
        assert "raise --max-tokens" in result.stderr

    def test_answers_without_a_word_end_the_run_after_ten(self, query, play):
        cut = completion("")
        cut["choices"][0]["finish_reason"] = "length"
        server = play((200, cut))
        refused(
            query(server.url, "--concurrency", 1),
            5,
            "--max-tokens",
            "reasoning_effort",
            "10 answers of this run",
        )
        assert len(server.requests) == 10


class TestNumbersFromOutside:
    @pytest.mark.parametrize("tokens", [10**10, 2**31, 10**30, -7, 1.5, "many", None])
    def test_that_cannot_be_spoil_nothing_and_spend_nothing(self, query, play, tmp_path, tokens):
        (tmp_path / "p.yaml").write_text("m: {text_in: 2, audio_in: 20, out: 10, date: 2026-01-31}")
        usage = {"prompt_tokens": tokens, "completion_tokens": 5, "total_tokens": tokens}
        server = play(good, (200, completion(GOOD, usage=usage)), good)
        flags = ["--prices", tmp_path / "p.yaml", "--budget", 1, "--concurrency", 1]
        told = query.found(server.url, *flags, n_samples=1)
        assert told["statuses"] == {"ok": CLIPS} and told["spent_usd"] < 0.5
        assert query.found(server.url, *flags, "--reparse", n_samples=1)["statuses"] == {"ok": CLIPS}
        assert sorted(Lalm.load(query.out).usage[:, 0, 0])[:2] == [-1, 120]


class TestPartial:
    def test_is_not_fused_unless_told_to(self, query, play, pipeline, tmp_path):
        server = play(*[good] * 30, (402, error("no credit left")))
        refused(query(server.url, "--concurrency", 1), 5, "402: no credit left", "30 answers of this run")
        fuse = ["fuse", "--lalm", query.out, "--source", pipeline.source, "--out", tmp_path / "f.h5"]
        line = refused(mifuse(*fuse), 4, "l.h5: 18 of 48 questions are unanswered", "--partial")
        assert "to ask them, run its command again: " in line and not (tmp_path / "f.h5").exists()
        result = mifuse(*fuse, "--partial")
        assert result.exit_code == 0 and "18" in result.stderr
        assert Fused.load(tmp_path / "f.h5").header.parameters["unanswered"] == {"lalm": 18}
        server.script[:] = [good]
        assert query.found(server.url)["asked"] == 18
        assert mifuse(*fuse, "--force").exit_code == 0


class TestTelling:
    def test_progress_as_json(self, query, play, tmp_path):
        (tmp_path / "p.yaml").write_text("m: {text_in: 2, audio_in: 20, out: 10, date: 2026-01-31}")
        server = play(*[good] * 20, (429, error("slow"), {"retry-after-ms": "1"}), *[REFUSAL] * 12, good)
        flags = ["--log-json", "--prices", tmp_path / "p.yaml", "--budget", 1, "--concurrency", 1]
        told = query(server.url, *flags).stderr.splitlines()
        lines = list(map(json.loads, told))
        assert all("note" in line for line in lines if "progress" not in line)
        reading, asking = (
            [line for line in lines if line.get("progress") == what] for what in ("reading", "asking")
        )
        assert (reading[-1]["done"], reading[-1]["total"]) == (CLIPS, CLIPS)
        assert [line["done"] for line in asking] == sorted({line["done"] for line in asking})
        last = asking[-1]
        assert (last["done"], last["total"], last["cap_usd"]) == (48, 48, 1) and len(asking) == 10
        assert last["limited"] == pytest.approx(1 / 49, rel=1e-3) and last["eta_s"] == 0
        assert (last["ok"], last["refused"]) == (0.75, 0.25) and last["per_minute"] > 0
        spent = query.found(server.url, *flags)["spent_usd"]
        assert last["spent_usd"] == last["projected_usd"] == pytest.approx(spent, rel=1e-3)

    def test_show_prints_what_the_run_did(self, query, play):
        printed = query(play(*[good] * 40, NOISE).url, "--concurrency", 1).stdout
        shown = mifuse("show", query.out).stdout
        for text in ("24, 4 of them without", "48 of 48", "ok 40, unparsed 8", "prompt 5760", "answered 48"):
            assert text in printed and text in shown
        names = ("clips", "answers", "by outcome", "mean MI", "tokens", "requests")
        lines = [re.search(rf"^{name} +(.*?)(, 48 of them now)?$", printed, re.M)[1] for name in names]
        assert lines == [re.search(rf"^{name} +(.*)$", shown, re.M)[1] for name in names]
        assert "template" in shown and "spec_hash" in shown


def test_clips_that_are_the_same_are_asked_once(query, play, tmp_path):
    rng = np.random.default_rng(0)
    samples = [tone(200, 0.3, rng, 0.2) for _ in range(3)]
    for number in range(6):
        soundfile.write(tmp_path / f"{number}.wav", samples[number % 3], RATE)
    rows = [{"file": f"{number}.wav", "said": "yes" if number < 5 else "no"} for number in range(6)]
    manifest = write_csv(tmp_path / "manifest.csv", rows)
    server = play(good)
    told = query.found(server.url, "--context-column", "said", manifest=manifest)
    # The third clip of the second half is one of its own, since another text is shown with it.
    assert (told["clips"], told["asked"]) == (6, 8) and told["statuses"] == {"ok": 12}
    assert set(Counter(heard(one)[0] for one in server.requests).values()) == {2, 4}
    assert Lalm.load(query.out).header.classes == CLASSES


@pytest.mark.parametrize("change", ["deleted", "moved"])
def test_a_journal_that_vanishes_ends_the_run(query, play, tmp_path, change):
    """Answers that came later would be paid for and lost."""
    journal, asked = tmp_path / "l.h5.journal.sqlite", []

    def answer(request):
        asked.append(request)
        if len(asked) == 5:
            journal.unlink() if change == "deleted" else journal.rename(tmp_path / "aside.sqlite")
        return good(request)

    server = play(answer)
    line = refused(query(server.url, "--concurrency", "1"), 3, "moved, deleted or replaced", "put it back")
    assert len(asked) <= 6 and str(journal) in line
    if change == "moved":
        (tmp_path / "aside.sqlite").rename(journal)
        query(server.url)
        assert len(asked) <= 2 * CLIPS + 1
