"""What a run costs: estimated before, projected from a few clips, and capped."""

import json
import random
import re
import threading
from collections import Counter

import numpy as np
import pytest
import soundfile
from conftest import HANG_SECONDS, RATE, read_rows, refused, tone, write_csv
from querying import GOOD, Query, heard, seconds_of
from scripted import completion, error

from mifuse_cli.artifacts import Lalm
from mifuse_cli.lalm import journal_path
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.cost.prices import cost_of, read_prices
from mifuse_cli.lalm.journal.journal import Journal

CLIPS = 24
PRICES = "m: {text_in: 2, audio_in: 20, out: 10, audio_tokens_per_second: 25, date: 2026-01-31}\n"


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    """Manifest of clips between 0.1 and 1.2 s."""
    root, rng = tmp_path_factory.mktemp("money"), np.random.default_rng(5)
    rows = []
    for number in range(CLIPS):
        soundfile.write(root / f"{number:02}.wav", tone(200, 0.3, rng, rng.uniform(0.1, 1.2)), RATE)
        rows.append({"file": f"{number:02}.wav"})
    return write_csv(root / "manifest.csv", rows)


@pytest.fixture
def query(corpus, tmp_path):
    return Query(corpus, tmp_path / "l.h5")


@pytest.fixture
def prices(tmp_path_factory):
    path = tmp_path_factory.mktemp("prices") / "prices.yaml"
    path.write_text(PRICES)
    return path


class Till:
    """Answers with a usage that follows the audio and the question, and adds up the bill.

    Attributes:
        bill: USD so far.
        keys: how often every question was billed.
    """

    def __init__(self, prices):
        self.price, self.lock = read_prices(prices)["m"], threading.Lock()
        self.bill, self.keys = 0.0, Counter()

    def __call__(self, request):
        audio, text = heard(request)
        seconds, rng = seconds_of(audio), random.Random(text + str(len(audio)))
        tokens = round(25 * seconds) + rng.randint(0, 2)
        usage = {"prompt_tokens": 150 + tokens, "completion_tokens": rng.randint(30, 60)}
        body = completion(GOOD, usage={**usage, "prompt_tokens_details": {"audio_tokens": tokens}})
        with self.lock:
            self.keys[request.headers["Idempotency-Key"].partition("-")[0]] += 1
            known = decode(json.dumps(body).encode()).usage
            self.bill += cost_of(known, self.price, seconds=seconds)
        return 200, body


@pytest.fixture
def till(prices):
    return Till(prices)


class TestDryRun:
    def test_sends_nothing_writes_nothing_needs_no_key(self, query, play, tmp_path, corpus):
        server = play((200, completion(GOOD)))
        told = query.found(server.url, "--dry-run", n_samples=5, rpm=None, key=None)
        assert server.requests == [] and list(tmp_path.iterdir()) == []
        seconds = [soundfile.info(corpus.parent / row["file"]).duration for row in read_rows(corpus)]
        volume, guess = told["volume"], told["estimate"]
        assert (volume["clips"], volume["requests"], volume["answers"]) == (CLIPS, 5 * CLIPS, 5 * CLIPS)
        assert volume["seconds"] == pytest.approx(5 * sum(seconds))
        assert guess["usd"] is None and guess["hours"] is None
        assert guess["prompt_tokens"]["low"] < guess["prompt_tokens"]["high"]
        assert "price of m is not known" in " ".join(told["notes"]) and told["complete"] is False

    def test_durations_of_the_manifest_stand_in_for_the_audio(self, query, corpus):
        rows = [{**row, "duration_s": "7.5"} for row in read_rows(corpus)]
        query.manifest = write_csv(corpus.parent / "timed.csv", rows)
        told = query.found("", "--dry-run", rpm=48, key=None)
        assert told["volume"]["seconds"] == 7.5 * 2 * CLIPS
        assert told["estimate"]["hours"]["expected"] == pytest.approx(1 / 60)  # 48 requests, 48 a minute

    def test_what_is_answered_is_not_counted(self, query, play, till):
        def requests(*flags, **options):
            return query.found(server.url, "--dry-run", *flags, key=None, **options)["volume"]["requests"]

        server = play(till)
        query.found(server.url)
        assert requests(n_samples=5) == 3 * CLIPS
        assert requests() == 0
        assert requests("--temperature", 0.5) == 2 * CLIPS
        assert len(server.requests) == 2 * CLIPS

    def test_beside_a_run(self, query, play, till):
        query.found(play(till).url)
        with Journal(journal_path(query.out)):
            told = query.found("", "--dry-run", key=None)
        assert told["volume"]["requests"] == 2 * CLIPS
        assert "are not subtracted" in told["notes"][-1] and "in use by process" in told["notes"][-1]

    def test_context_is_that_of_the_manifest_as_it_is_now(self, query, play, till, corpus):
        def write(*words):
            rows = [{**row, "said": words[n % len(words)]} for n, row in enumerate(read_rows(corpus))]
            return write_csv(corpus.parent / "said.csv", rows)

        query.manifest, flags = write("yes"), ["--context-column", "said"]
        server = play(till)
        query.found(server.url, *flags)
        query.manifest = write("yes", "no")
        assert query.found(server.url, "--dry-run", *flags, key=None)["volume"]["requests"] == CLIPS
        assert query.found(server.url, *flags)["asked"] == CLIPS

    def test_prices(self, query, tmp_path):
        def cost(*flags, model="gpt-audio"):
            told = query.found("", "--dry-run", *flags, model=model, key=None)
            return told["estimate"]["usd"]["expected"], " ".join(told["notes"])

        known, note = cost()
        assert "prices of gpt-audio as of 20" in note
        assert cost(model="gpt-audio-2026-02-03")[0] == known
        assert cost("--transport", "batch")[0] == pytest.approx(known / 2)
        dear = read_prices()["gpt-audio"]
        fields = {name: 3 * getattr(dear, name) for name in ("text_in", "audio_in", "out")}
        fields |= {"audio_tokens_per_second": dear.audio_tokens_per_second, "date": "2027-05-06"}
        (tmp_path / "p.yaml").write_text(json.dumps({"gpt-audio": fields}))
        tripled, note = cost("--prices", tmp_path / "p.yaml")
        assert tripled == pytest.approx(3 * known) and "as of 2027-05-06" in note

    def test_people_read_a_table(self, query, prices):
        table = query("", "--dry-run", "--prices", prices, key=None).stdout
        assert re.search(r"requests +48 for 48 answers", table)
        assert re.search(r"low +expected +high\nprompt tokens.*\nanswer tokens.*\ncost in USD", table)


class TestPilot:
    def test_projects_the_total_and_keeps_the_answers(self, query, play, till, prices):
        server = play(till)
        pilot = ["--pilot", 8, "--prices", prices]
        told = query.found(server.url, *pilot, n_samples=3)
        assert told["asked"] == len(server.requests) == 8 * 3
        assert told["complete"] is False and told["statuses"] == {"missing": 16 * 3, "ok": 8 * 3}
        assert "projected from 8 clips" in " ".join(told["notes"])
        assert Lalm.load(query.out).header.parameters["complete"] is False
        again = query.found(server.url, *pilot, n_samples=3)
        assert again["asked"] == 0 and again["estimate"] == told["estimate"]
        whole = query.found(server.url, "--prices", prices, n_samples=3)
        assert whole["asked"] == 16 * 3 and whole["complete"] and set(till.keys.values()) == {1}
        assert whole["spent_usd"] == pytest.approx(till.bill)
        tokens = {f"{name}_tokens": whole["tokens"][name] for name in ("prompt", "completion")}
        for name, total in {"usd": till.bill, **tokens}.items():
            guess = told["estimate"][name]
            assert guess["low"] <= total <= guess["high"] < 1.2 * guess["low"]
        assert told["volume"]["requests"] == 3 * CLIPS

    def test_draws_clips_from_all_over(self, query, play, till):
        def drawn(seed):
            query.found(url, "--pilot", 8, "--seed", seed)
            return np.flatnonzero(Lalm.load(query.out).status[:, 0]).tolist()

        url = play(till).url
        first = drawn(0)
        assert len(first) == 8 and first != list(range(8))
        query.out = query.out.with_name("other.h5")
        assert drawn(1) != first

    def test_leaves_out_clips_without_tokens(self, query, play, till, prices):
        def answer(request):
            return (400, error("no speech in it")) if heard(request)[0] == unheard else till

        unheard = None
        flags = ["--pilot", 8, "--prices", prices, "--concurrency", 1]
        server = play(answer)
        clean = query.found(server.url, *flags)
        unheard = heard(server.requests[0])[0]
        query.out = query.out.with_name("other.h5")
        told = query.found(server.url, *flags)
        assert told["statuses"]["rejected"] == 2
        assert "the tokens of 1 of the 8 clips of the pilot are not known" in " ".join(told["notes"])
        assert "projected from 7 clips" in told["notes"][-1]
        usd = [one["estimate"]["usd"]["expected"] for one in (clean, told)]
        assert usd[0] == pytest.approx(usd[1], rel=0.2)

    def test_of_a_service_that_counts_no_tokens(self, query, play):
        result = query(play((200, completion(GOOD, usage={}))).url, "--pilot", 4)
        assert result.exit_code == 0 and "low" not in result.stdout
        assert "the tokens of 4 of the 4 clips of the pilot are not known" in result.stderr

    def test_has_to_have_clips(self, query, play, till):
        server = play(till)
        flags = ["--pilot", 4, "--max-seconds", 0.05, "--long-clips", "skip"]
        refused(query(server.url, *flags), 3, "--pilot: there is no clip to ask about", "crop or chunk")
        assert server.requests == []


class TestBudget:
    @pytest.mark.slow
    def test_half_the_cost_with_64_under_way(self, query, play, till, prices):
        def crowd(request):
            together.wait(HANG_SECONDS)
            return till

        samples, together = 20, threading.Barrier(64)
        flags = ["--prices", prices, "--max-tokens", 60, "--concurrency", 64]
        whole = query.found(play(till).url, *flags, n_samples=samples)["spent_usd"]
        assert whole == pytest.approx(till.bill)

        query.out = query.out.with_name("capped.h5")
        till.bill, till.keys = 0.0, Counter()  # the bill never falls: at the end it is at its highest
        server, flags = play(*[till] * 80, *[crowd] * 64, till), [*flags, "--budget"]
        stopped = query(server.url, *flags, whole / 2, n_samples=samples)
        line = refused(stopped, 5, "limit is reached", "--budget", "Raise the limit")
        assert max(one.running for one in server.requests) == 64
        assert 0.45 * whole < till.bill <= whole / 2
        assert f"The {len(server.requests)} answers of this run are kept" in line
        parameters = Lalm.load(query.out).header.parameters
        assert parameters["complete"] is False
        assert parameters["summary"]["spent_usd"] == pytest.approx(till.bill)

        # A little may fit in yet: a new process knows less of what a request costs at most.
        assert query(server.url, *flags, whole / 2, n_samples=samples).exit_code == 5
        assert till.bill <= whole / 2
        rest = query.found(server.url, *flags, 2 * whole, n_samples=samples)
        assert rest["complete"] and rest["spent_usd"] == pytest.approx(till.bill) == pytest.approx(whole)
        assert len(till.keys) == CLIPS * samples and set(till.keys.values()) == {1}

    def test_requests(self, query, play, till):
        server = play(*[till] * 5, *[(503, error("busy"))] * 2, till)
        stopped = query(server.url, "--max-requests", CLIPS)
        refused(stopped, 5, f"after {CLIPS} requests", "--max-requests", f"The {CLIPS - 2} answers")
        refused(query(server.url, "--max-requests", CLIPS), 5, "The 0 answers")
        assert len(server.requests) == CLIPS
        assert query.found(server.url, "--max-requests", 2 * CLIPS + 2)["complete"]
        assert len(server.requests) == 2 * CLIPS + 2 and set(till.keys.values()) == {1}

    def test_tells_of_answers_made_without_a_price(self, query, play, till, prices):
        server, flags = play(till), ["--prices", prices, "--budget", 9]
        words = "earlier answers were made without a price and are not in the budget"
        assert words not in query(server.url, "--max-requests", 99).stderr
        assert f"note: 48 {words}" in query(server.url, *flags, n_samples=3).stderr
        assert words not in query(server.url, *flags, n_samples=4).stderr

    def test_without_a_price(self, query, play, till, tmp_path):
        server = play(till)
        refused(query(server.url, "--budget", 1), 2, "price of m is not known", "--prices", "--max-requests")
        assert server.requests == [] and list(tmp_path.iterdir()) == []


class TestConsent:
    def test_another_host_needs_a_yes(self, query, play, till, monkeypatch):
        # Whatever would leave this machine comes to the server instead.
        server, elsewhere = play(till), "http://203.0.113.1/v1"
        for name in ("NO_PROXY", "no_proxy", "http_proxy"):
            monkeypatch.delenv(name, raising=False)
        monkeypatch.setenv("HTTP_PROXY", server.url.removesuffix("/v1"))
        refused(query(elsewhere), 2, "203.0.113.1", "48 requests", "s of speech", "--yes")
        line = refused(query(elsewhere, "--pilot", 5), 2, "a pilot of 5 clips out of 48 requests")
        assert line.endswith("consent covers that.")
        # No clip was decoded for that.
        assert server.requests == [] and list(query.out.parent.glob("l.h5*")) == []
        told = query(elsewhere, "--yes").stderr.splitlines()
        assert len(server.requests) == 48 and query.out.exists()
        refused(query(elsewhere, n_samples=3), 2, "24 requests", "--yes")
        (line,) = [line for line in told if "sending" in line]
        assert re.fullmatch(
            r"note: sending 48 requests with \S+ s of speech in all \(\S+ [kM]B, 24 clips\) "
            r"to 203\.0\.113\.1",
            line,
        )

    def test_this_machine_is_named_too_unless_told_to_be_quiet(self, query, play, till):
        server = play(till)
        host = server.url.removeprefix("http://").removesuffix("/v1")
        assert f"24 clips) to {host}\n" in query(server.url).stderr
        quiet = query(server.url, "--quiet", n_samples=3)
        assert (quiet.exit_code, quiet.stdout, quiet.stderr) == (0, "", "") and len(server.requests) == 72
