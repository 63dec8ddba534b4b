"""``mifuse query-lalm --transport batch``: signals, saving, asking again, and live runs beside open batches."""

import json
import os
import signal
import sqlite3
import threading
from contextlib import closing

import pytest
from conftest import HANG_SECONDS, KEY, refused, start
from llmock.routers import batch as provider
from querying import GOOD, Query
from scripted import completion, error, serving

import mifuse_cli as m
from mifuse_cli import console, lalm
from mifuse_cli.artifacts import Lalm
from mifuse_cli.errors import InputError
from mifuse_cli.lalm import journal_path

CLIPS = 24
BATCH = ["--transport", "batch", "--poll-seconds", 0.01]
PRICES = "m: {text_in: 0, audio_in: 0, out: 10, batch_factor: 0.5, date: 2026-01-31}\n"


@pytest.fixture
def query(corpora, tmp_path):
    return Query(corpora.target, tmp_path / "l.h5")


@pytest.fixture
def prices(tmp_path):
    path = tmp_path / "prices.yaml"
    path.write_text(PRICES)
    return path


class Provider:
    """What llmock does with batches.

    Attributes:
        sent: questions of every batch so far, each as (name, body).
        texts: answers of every batch, the last for ever.
        choices: that a line gets at most, whatever it asks for.
        held: numbers of the batches that do not come to an end, and ``looked``, set once one was looked at.
        at_look: called at each look at one of them.
    """

    def __init__(self):
        self.texts, self.choices, self.held = [GOOD], 99, set()
        self.looked, self.at_look = threading.Event(), lambda: None

    @property
    def sent(self):
        lines = [batch["lines"] for batch in provider._batches.values() if "lines" in batch]
        return [[(line["custom_id"], line["body"]) for line in batch] for batch in lines]

    def refresh(self, batch):
        number = list(provider._batches).index(batch["id"])
        if "lines" not in batch:
            content = provider._files[batch["input_file_id"]]["content"]
            batch["lines"] = [json.loads(line) for line in content.splitlines()]
        if number in self.held:
            self.at_look()
            self.looked.set()
        elif not batch["done"]:
            self.text = self.texts[min(number, len(self.texts) - 1)]
            provider._finish_openai_like(batch)

    def chat(self, _, body):
        if not isinstance(self.text, str):
            raise ValueError("overloaded")
        return completion(*[self.text] * min(body.get("n", 1), self.choices))


@pytest.fixture
def batches(monkeypatch):
    """The provider of ``llmock``, quick unless told otherwise."""
    batches = Provider()
    for name in ("_files", "_batches"):
        monkeypatch.setattr(provider, name, {})
    monkeypatch.setattr(provider, "_refresh", batches.refresh)
    monkeypatch.setattr(provider, "_build_openai_like_chat", batches.chat)
    monkeypatch.setattr(provider, "_public_payload", without_lines(provider._public_payload))
    return batches


def without_lines(payload):
    return lambda record, exclude=None: payload(record, exclude={"lines"} | (exclude or set()))


def costs(out):
    """Reservations and costs of requests by key, in the order of sending."""
    with closing(sqlite3.connect(journal_path(out))) as db:
        return db.execute("SELECT key, est_cost FROM intent ORDER BY id").fetchall()


class TestInterrupted:
    def test_sigterm_saves_what_is_there_and_leaves_the_batch_to_the_next_run(self, query, llmock, batches):
        url = llmock.base_url()
        assert query.found(url, *BATCH, n_samples=1)["complete"]
        batches.held = {1}
        flags = ["--manifest", query.manifest, "--out", query.out, "--model", "m", "--base-url", url]
        process = start("query-lalm", *flags, "--n-samples", 2, *BATCH, OPENAI_API_KEY=KEY)
        assert batches.looked.wait(HANG_SECONDS)
        process.send_signal(signal.SIGTERM)
        told = process.communicate(timeout=HANG_SECONDS)[1]
        assert process.returncode == 130, told
        assert "batches under way stay with the provider" in told
        made = Lalm.load(query.out)
        assert made.status.tolist() == [[1, 0]] * CLIPS and not made.header.parameters["complete"]

        # Asked live now they would be paid twice.
        live = refused(query(url), 3, f"{CLIPS} questions wait for answers in 1 batches")
        assert "--transport batch" in live and not any("chat" in one.path for one in llmock.requests)

        batches.held = set()
        assert query.found(url, *BATCH)["asked"] == CLIPS
        assert list(map(len, batches.sent)) == [CLIPS, CLIPS]
        assert Lalm.load(query.out).header.parameters["complete"]

    def test_sigint_before_any_answer_saves_nothing(self, query, llmock, batches, key):
        batches.held, batches.at_look = {0}, lambda: os.kill(os.getpid(), signal.SIGINT)
        config = m.QueryLalmConfig(
            manifest=query.manifest, out=query.out, model="m", base_url=llmock.base_url(), transport="batch",
            poll_seconds=60,
        )  # fmt: skip
        with pytest.raises(KeyboardInterrupt):
            m.query_lalm(config)
        assert not query.out.exists()
        batches.held = set()
        assert m.query_lalm(config).asked == CLIPS * config.n_samples
        assert len(batches.sent) == 1


class TestSaving:
    """A server that ignores "n" leaves a second batch to ask, during which there is something to save."""

    FLAGS = (*BATCH, "--save-minutes", 0.0001, "--choices-per-request", 2, "--probe", "off")

    @pytest.fixture
    def open_until(self, batches):
        def hold(condition):
            batches.choices, batches.held, looks = 1, {1}, []

            def look():
                looks.append(1)
                if condition() or len(looks) > 500:
                    batches.held = set()

            batches.at_look = look

        return hold

    def test_while_batches_are_open(self, query, llmock, open_until):
        seen = []
        open_until(lambda: query.out.exists() and not seen.append(Lalm.load(query.out).status.tolist()))
        assert query.found(llmock.base_url(), *self.FLAGS)["complete"]
        assert seen == [[[1, 0]] * CLIPS]

    def test_that_fails_is_told_and_the_run_goes_on(self, query, llmock, open_until, monkeypatch):
        def failing():
            tries.append(1)
            raise InputError("no room on the disk")

        tries, run = [], lalm.run
        monkeypatch.setattr(lalm, "run", lambda *a, save, **options: run(*a, save=failing, **options))
        open_until(lambda: len(tries) > 1)
        result = query(llmock.base_url(), *self.FLAGS)
        assert result.exit_code == 0 and Lalm.load(query.out).header.parameters["complete"]
        assert len(tries) > 1 and "no room on the disk" in result.stderr


class TestAgain:
    def test_what_a_server_that_ignores_n_left_over(self, query, llmock, batches):
        batches.choices = 1
        told = query.found(llmock.base_url(), *BATCH, "--choices-per-request", 3, n_samples=3)
        assert told["complete"] and told["asked"] == 3 * CLIPS
        asked = [[(body.get("n", 1), name.split(".")[1]) for name, body in batch] for batch in batches.sent]
        assert asked == [[(3, "7")] * CLIPS, [(2, "6")] * CLIPS, [(1, "4")] * CLIPS]

    def test_but_not_without_end(self, query, llmock, batches, monkeypatch):
        fail = {"status_code": 503, "request_id": "r", "body": {"error": {"message": "overloaded"}}}
        plain = provider._process_line
        monkeypatch.setattr(
            provider, "_process_line", lambda line, **o: plain(line, **o) | {"response": fail, "error": None}
        )
        refused(query(llmock.base_url(), *BATCH), 5, "48 of 48 questions got no answer", "overloaded")
        assert list(map(len, batches.sent)) == [2 * CLIPS]

    def test_what_was_rejected_is_left(self, query, llmock, batches, monkeypatch):
        bad = {"status_code": 400, "request_id": "r", "body": error("bad audio")}
        plain, lines = provider._process_line, []

        def process(line, **options):
            lines.append(line)
            entry = plain(line, **options)
            return entry | {"response": bad} if len(lines) == 1 else entry

        monkeypatch.setattr(provider, "_process_line", process)
        told = query.found(llmock.base_url(), *BATCH, n_samples=1)
        assert told["statuses"] == {"ok": CLIPS - 1, "rejected": 1} and len(batches.sent) == 1

    def test_what_could_not_be_read(self, query, llmock, batches):
        batches.texts = ["Banana.", "Banana.", GOOD]
        told = query.found(llmock.base_url(), *BATCH, "--reask", 3, n_samples=1)
        assert told["statuses"] == {"ok": CLIPS} and list(map(len, batches.sent)) == [CLIPS] * 3

    def test_for_longer_at_a_higher_price(self, query, llmock, batches, prices, monkeypatch):
        def cut(provider, body):
            answer = batches.chat(provider, body)
            answer["choices"][0]["finish_reason"] = "length"
            return answer

        monkeypatch.setattr(provider, "_build_openai_like_chat", cut)
        batches.texts = ['{"angry": 4', GOOD]
        flags = ["--reask", 1, "--max-tokens", 50, "--prices", prices]
        query.found(llmock.base_url(), *BATCH, *flags, n_samples=1)
        once = 50 * 10 / 1e6 / 2
        # Without a number of audio tokens reservations stand.
        assert [cost for _, cost in costs(query.out)] == pytest.approx([once] * CLIPS + [2 * once] * CLIPS)


def test_a_probe_is_paid_in_full(query, llmock, batches, prices):
    llmock.reply(GOOD, times=None)
    flags = ["--send-seed", "--prices", prices, "--n-samples", 1]
    spent = {}
    for transport in ("live", "batch"):
        query.out = query.out.with_name(f"{transport}.h5")
        query.found(llmock.base_url(), *flags, "--transport", transport, "--poll-seconds", 0.01)
        (spent[transport],) = (cost for key, cost in costs(query.out) if key == "probe")
    assert spent["live"] == spent["batch"] > 0


def test_what_a_server_could_not_do_is_tested_again(query):
    def answer(request):
        if "response_format" not in request.body:
            return 200, completion(GOOD)
        if not learnt.is_set():
            return 400, error("response_format is not supported")
        wanted = request.body["response_format"]["json_schema"]["schema"]["properties"]
        return 200, completion(GOOD if "angry" in wanted else json.dumps(dict.fromkeys(wanted, 1)))

    learnt = threading.Event()
    with serving(answer) as server:
        refused(query(server.url, "--json-schema"), 2, "refuses a JSON schema")
        learnt.set()
        assert query.found(server.url, "--json-schema")["complete"]
        probed = [key for key, _ in costs(query.out)].count("probe")
        query.found(server.url, "--json-schema", n_samples=3)
        assert [key for key, _ in costs(query.out)].count("probe") == probed


def test_a_bar_takes_the_facts_of_both_ways(query, llmock, batches, prices, monkeypatch):
    seen, run = {}, lalm.run

    def spy(survey, service, *, report, **options):
        def both(done, total, facts):
            seen.setdefault(service.transport, []).append(console._in_short(facts))
            report(done, total, facts)

        return run(survey, service, report=both, **options)

    monkeypatch.setattr(lalm, "run", spy)
    llmock.reply(GOOD, times=None)
    batches.held, batches.at_look = {0}, lambda: batches.held.clear()
    for transport in ("live", "batch"):
        query.out = query.out.with_name(f"{transport}.h5")
        flags = ["--transport", transport, "--poll-seconds", 0.01, "--prices", prices, "--budget", 9]
        query.found(llmock.base_url(), *flags, n_samples=1)
    # 24 answers of at most 256 tokens at half the price; 10 USD are a million tokens.
    reserved = f"${CLIPS * 256 * 10 / 1e6 / 2:.2f} of 9.00"
    assert seen["batch"] == ["1 batches open  $0.00 of 9.00", f"0 batches open  {reserved}"]
    assert all("/min" in one and " of 9.00, in the end $" in one for one in seen["live"])
    assert console._in_short({"batches": 2}) == "2 batches open" and console._in_short({}) == ""
