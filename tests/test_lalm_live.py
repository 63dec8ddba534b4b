"""Many questions at once to a server that follows a script: what is asked again, given up, and kept."""

import json
import sqlite3
from collections import Counter
from contextlib import closing

import pytest
from scripted import (
    GOOD,
    KEY,
    MAX_TOKENS,
    PRICE,
    SECONDS,
    TEXT_BYTES,
    ask,
    completion,
    error,
    question,
)

from mifuse_cli.errors import RemoteError
from mifuse_cli.lalm.answers import response
from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.cost.budget import Meter
from mifuse_cli.lalm.cost.prices import cost_of
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.service import breaker, live

OOPS = (500, error("oops"))


@pytest.fixture
def journal(tmp_path):
    with Journal(tmp_path / "j.sqlite") as journal:
        yield journal


@pytest.fixture(autouse=True)
def fast(monkeypatch):
    monkeypatch.setattr(live, "FIRST_DELAY", 0.01)
    monkeypatch.setattr(live, "LONGEST_DELAY", 0.05)


def intents(journal):
    return journal.read("SELECT key, attempt, http_status FROM intent ORDER BY id")


def answers(journal):
    return journal.read("SELECT count(*) FROM answer")[0][0]


class TestAnswered:
    def test_every_question_is_asked_once_and_its_answer_kept(self, play, journal):
        server = play((200, GOOD, {"x-request-id": "req-7"}))
        reported = []
        asked = ask(server.url, journal, 30, concurrency=4, report=lambda a: reported.append(a.answered))
        assert (asked.answered, asked.sent, asked.limited, asked.rejected, asked.failed) == (
            30,
            30,
            0,
            {},
            {},
        )
        assert (asked.error, asked.interrupted, asked.statuses) == (None, False, {Status.OK: 30})
        assert len(server.requests) == 30 and max(one.running for one in server.requests) <= 4
        names = Counter(one.body["messages"][0]["content"] for one in server.requests)
        assert names == Counter(f"question q{i}" for i in range(30))
        assert server.requests[0].body["temperature"] == 1 and "n" not in server.requests[0].body
        assert journal.answered(f"q{i}" for i in range(30)) == {f"q{i}": [0] for i in range(30)}
        answer = journal.answers(["q3"])["q3", 0]
        assert (answer.raw, answer.outcome) == (json.dumps(GOOD).encode(), "ok")
        ((usage,),) = journal.read("SELECT usage FROM answer WHERE key = 'q3'")
        assert json.loads(usage) == {"prompt": 120, "completion": 40, "total": 160, "audio": -1, "cached": -1}
        assert journal.accounts()["answered"] == 30 and journal.unresolved() == []
        assert len(reported) == 30 and reported[-1] == 30

    def test_questions_are_drawn_as_they_are_needed(self, play, journal):
        settled, ahead = [], []

        def questions():
            for i in range(40):
                ahead.append(i + 1 - len(settled))
                yield question(f"q{i}")

        ask(play((200, GOOD)).url, journal, questions(), concurrency=3, report=settled.append)
        assert len(settled) == 40 and max(ahead) <= 2 * 3

    def test_the_intent_is_committed_before_the_request_leaves(self, play, journal):
        def look(request):
            with closing(sqlite3.connect(journal.path)) as db:
                found.extend(db.execute("SELECT key, asked, t_end FROM intent").fetchall())
            return 200, GOOD

        found = []
        ask(play(look).url, journal, 1)
        assert found == [("q0", "clip q0", None)]

    def test_the_body_is_stored_before_it_is_read(self, play, journal):
        def broken(response, position):
            raise RuntimeError("a bug in reading")

        questions = [question(f"q{i}", read=broken) for i in range(3)]  # of which two wait for the price
        asked = ask(play((200, GOOD)).url, journal, questions, concurrency=3, price=PRICE)
        assert str(asked.error) == "a bug in reading"
        journal.execute("SELECT 1").result()  # behind all that was handed in before
        assert journal.answered(["q0"]) == {"q0": [0]}
        assert journal.answers(["q0"])["q0", 0].outcome is None
        journal.settle_unread()
        assert journal.answers(["q0"])["q0", 0].outcome == "ok"

    def test_a_body_is_decoded_once(self, play, journal, monkeypatch):
        def counted(raw):
            bodies.append(raw)
            return decode_json(raw)

        bodies, decode_json = [], response.decode_json
        monkeypatch.setattr(response, "decode_json", counted)
        asked = ask(play((200, completion("sad", "angry"))).url, journal, [question("q", choices=(0, 1))])
        assert asked.answered == 2 and len(bodies) == 1
        assert len(journal.answers(["q"])) == 2 and len(bodies) == 2

    def test_every_attempt_has_a_name_of_its_own(self, play, journal):
        server = play(OOPS, OOPS, (200, GOOD))
        ask(server.url, journal, 2, concurrency=1)
        names = [one.headers["Idempotency-Key"] for one in server.requests]
        assert [name.partition("-")[0] for name in names] == ["q0", "q0", "q0", "q1"]
        assert len(set(names)) == 4


class TestChoices:
    @pytest.mark.parametrize(("most", "asked_for"), [(1, [3, 2, None]), (2, [3, None]), (9, [3])])
    def test_what_is_lacking_is_asked_for_again(self, play, journal, most, asked_for):
        def some(request):
            wanted = most if most > 3 else min(most, request.body.get("n", 1))
            return 200, completion(*[f"{len(server.requests)}-{i}" for i in range(wanted)])

        server = play(some)
        asked = ask(server.url, journal, [question("q", choices=(2, 3, 4), fields={"seed": 64})])
        assert asked.answered == 3
        assert [one.body.get("n") for one in server.requests] == asked_for
        assert [one.body["messages"][0]["content"] for one in server.requests] == ["question q"] * len(
            asked_for
        )
        # With the same seed, the rest would be the same answer again.
        assert len({one.body["seed"] for one in server.requests}) == len(asked_for)
        assert server.requests[0].body["seed"] == 64
        texts = [
            f"{number}-{i}" for number, n in enumerate(asked_for, start=1) for i in range(min(most, n or 1))
        ]
        found = journal.answers(["q"])
        assert list(found) == [("q", 2), ("q", 3), ("q", 4)]
        assert [one.response.choice(one.position).text for one in found.values()] == texts[:3]
        assert journal.answered(["q"]) == {"q": [2, 3, 4]}

    def test_the_rest_has_all_its_attempts(self, play, journal):
        server = play(*[OOPS] * 7, (200, GOOD), *[OOPS] * 7, (200, GOOD))
        assert ask(server.url, journal, [question("q", choices=(0, 1))]).answered == 2
        assert len(server.requests) == 16


class TestFaults:
    @pytest.mark.parametrize(
        ("fault", "status"),
        [
            (OOPS, 500),
            ((503, b"<html>bad gateway</html>"), 503),
            ((408, error("late")), 408),
            ("drop", None),
            ((200, b"<html>proxy</html>"), 200),
            ((200, {"choices": []}), 200),
            ((200, error("overloaded")), 200),
        ],
    )
    def test_one_that_passes_is_tried_again(self, play, journal, fault, status):
        assert ask(play(fault, fault, (200, GOOD)).url, journal, 1).answered == 1
        assert intents(journal) == [("q0", 1, status), ("q0", 2, status), ("q0", 3, 200)]
        assert journal.answers(["q0"])["q0", 0].raw == json.dumps(GOOD).encode()
        assert len(journal.unresolved()) == (2 if fault == "drop" else 0)

    def test_a_timeout_is_tried_again_and_stays_unresolved(self, play, journal):
        assert ask(play("hang", (200, GOOD)).url, journal, 1, timeout=3).answered == 1
        assert [asked for asked, _ in journal.unresolved()] == ["clip q0"]

    def test_the_wait_that_a_server_asks_for_is_honoured(self, play, journal, monkeypatch):
        monkeypatch.setattr(live, "LONGEST_DELAY", 5)
        server = play((503, error("busy"), {"retry-after-ms": "300"}), (200, GOOD))
        ask(server.url, journal, 1)
        assert server.requests[1].time - server.requests[0].time >= 0.28

    def test_a_question_that_never_works_fails_after_eight_attempts(self, play, journal):
        server = play(*[OOPS] * 8, (200, GOOD))
        asked = ask(server.url, journal, 2, concurrency=1)
        assert (asked.answered, asked.failed, asked.error) == (1, {"clip q0": "oops"}, None)
        assert len(server.requests) == 9

    def test_after_three_of_unknown_outcome_no_more_is_risked(self, play, journal):
        server = play("drop", OOPS, "drop", OOPS, "drop", (200, GOOD))
        asked = ask(server.url, journal, 2, concurrency=1, price=PRICE)
        assert asked.answered == 1 and list(asked.failed) == ["clip q0"]
        assert len(server.requests) == 6 and len(journal.unresolved()) == 3
        # Each of them may have cost all that was set aside for it; the failures cost nothing.
        worst = Meter(PRICE, max_tokens=MAX_TOKENS).worst(SECONDS, TEXT_BYTES)
        paid = cost_of(decode(json.dumps(GOOD).encode()).usage, PRICE, seconds=SECONDS)
        assert asked.spent == pytest.approx(3 * worst + paid)
        assert journal.accounts()["spent"] == pytest.approx(asked.spent)

    def test_an_unusable_body_is_kept_but_counts_as_no_answer(self, play, journal):
        asked = ask(play((200, b"<html>proxy</html>")).url, journal, 1)
        assert asked.failed == {"clip q0": "an answer without choices: <html>proxy</html>"}
        assert journal.answers(["q0"])["q0", 0].raw == b"<html>proxy</html>"
        assert journal.answered(["q0"]) == {}

    @pytest.mark.parametrize("status", [400, 413, 422])
    def test_a_rejected_clip_is_noted_and_not_tried_again(self, play, journal, status):
        server = play((200, GOOD), (status, error("audio cannot be decoded")), (200, GOOD))
        asked = ask(server.url, journal, 3, concurrency=1)
        assert (asked.answered, asked.rejected) == (2, {"clip q1": "audio cannot be decoded"})
        assert journal.rejected(["q0", "q1", "q2"]) == {"q1": "audio cannot be decoded"}
        assert journal.answered(["q0", "q1", "q2"]) == {"q0": [0], "q2": [0]}

    def test_the_key_is_nowhere(self, play, journal, caplog):
        caplog.set_level("INFO")
        lines = [(500, f"no key {KEY}".encode()), (400, error(f"bad {KEY}")), (200, {**GOOD, "echo": KEY})]
        asked = ask(play(*lines, (401, error(f"Incorrect: {KEY[:12]}****."))).url, journal, 9, concurrency=1)
        shown = f"{asked.error!r} {asked.error.__cause__!r} {asked.error.__context__!r} {asked.rejected} {asked.failed}"
        assert KEY[:12] not in shown + caplog.text and "***" in shown
        for file in journal.path.parent.iterdir():
            assert KEY.encode() not in file.read_bytes()
        assert b"***" in journal.answers(["q1"])["q1", 0].raw


class TestErrorsWithin:
    """An error within a response of status 200 is what it would be with a status of its own."""

    @staticmethod
    def failing(code, message="no"):
        body = completion("", usage={"prompt_tokens": 0, "completion_tokens": 0})
        body["choices"][0] |= {"finish_reason": "error", "error": {"code": code, "message": message}}
        return 200, body

    @pytest.mark.parametrize("shape", ["choice", "body"])
    def test_one_that_passes_is_asked_again(self, play, journal, shape):
        fault = self.failing(502) if shape == "choice" else (200, error("no", code=502))
        asked = ask(play(fault, fault, (200, GOOD)).url, journal, 1)
        assert (asked.answered, asked.statuses) == (1, {Status.OK: 1})
        assert intents(journal) == [("q0", 1, 502), ("q0", 2, 502), ("q0", 3, 200)]
        assert journal.accounts()["failed"] == 2

    @pytest.mark.parametrize("shape", ["choice", "body"])
    def test_a_rate_limit_is_waited_for_and_costs_no_attempt(self, play, journal, shape):
        status, body = self.failing(429) if shape == "choice" else (200, error("no", code=429))
        server = play((status, body, {"retry-after-ms": "300"}), (200, GOOD))
        asked = ask(server.url, journal, 1)
        assert (asked.answered, asked.limited) == (1, 1)
        assert server.requests[1].time - server.requests[0].time > 0.28
        assert intents(journal) == [("q0", 1, 429), ("q0", 1, 200)]

    @pytest.mark.parametrize(
        ("code", "words"), [(401, "API key"), (402, "credit"), ("model_not_found", "model")]
    )
    def test_a_fatal_one_ends_the_run_with_advice(self, play, journal, code, words):
        server = play((200, GOOD), (200, error("no", code=code)))
        asked = ask(server.url, journal, 9, concurrency=1)
        assert isinstance(asked.error, RemoteError) and len(server.requests) == 2
        assert words in str(asked.error) and "1 answers of this run are kept" in str(asked.error)

    def test_a_clip_that_is_rejected_is_noted(self, play, journal):
        server = play((200, GOOD), (200, error("cannot decode", code=400)), (200, GOOD))
        asked = ask(server.url, journal, 3, concurrency=1)
        assert (asked.answered, list(asked.rejected)) == (2, ["clip q1"])
        assert list(journal.rejected(["q0", "q1", "q2"])) == ["q1"]

    def test_before_an_answer_costs_nothing_and_after_its_beginning_what_was_reserved(self, play, journal):
        bare = ask(play((200, error("no", code=502)), (200, GOOD)).url, journal, 1, price=PRICE)
        paid = cost_of(decode(json.dumps(GOOD).encode()).usage, PRICE, seconds=SECONDS)
        assert bare.spent == pytest.approx(paid)
        _, begun = self.failing(502)
        del begun["usage"]
        more = ask(play((200, begun), (200, GOOD)).url, journal, [question("other")], price=PRICE)
        assert more.spent == pytest.approx(
            paid + Meter(PRICE, max_tokens=MAX_TOKENS).worst(SECONDS, TEXT_BYTES)
        )
        assert journal.accounts()["spent"] == pytest.approx(bare.spent + more.spent)

    def test_of_one_choice_is_asked_for_again_alone(self, play, journal):
        body = completion("sad", "", "angry")
        body["choices"][1] |= {"finish_reason": "error"}
        server = play((200, body), (200, completion("happy")))
        asked = ask(server.url, journal, [question("q", choices=(0, 1, 2))])
        assert asked.answered == 3 and "n" not in server.requests[1].body
        found = journal.answers(["q"])
        assert [one.response.choice(one.position).text for one in found.values()] == ["sad", "angry", "happy"]

    def test_nothing_at_all_in_ten_responses_ends_a_run_that_got_no_answer(self, play, journal):
        server = play((200, completion()))
        asked = ask(server.url, journal, 24, concurrency=1, price=PRICE)
        assert "10 responses in a row held no answer" in str(asked.error) and len(server.requests) == 10


class TestRateLimits:
    def test_one_pauses_everybody_and_costs_no_attempt(self, play, journal):
        limit = (429, error("slow down", code="rate_limit_exceeded"), {"retry-after-ms": "300"})
        server = play(limit, (200, GOOD))
        asked = ask(server.url, journal, 6, concurrency=1)
        assert (asked.answered, asked.limited, asked.sent) == (6, 1, 7)
        assert 0.28 < server.requests[1].time - server.requests[0].time < 3
        assert intents(journal)[:2] == [("q0", 1, 429), ("q0", 1, 200)]
        assert journal.accounts()["limited"] == 1

    def test_many_lose_nothing(self, play, journal):
        limit = (429, error("per minute: check your plan and billing"), {"retry-after-ms": "10"})
        assert ask(play(*[limit] * 12, (200, GOOD)).url, journal, 3).answered == 3

    def test_one_without_end_stops_the_run(self, play, journal):
        server = play((200, GOOD), (429, error("daily limit"), {"Retry-After": "86400"}))
        asked = ask(server.url, journal, 3, concurrency=1)
        with pytest.raises(RemoteError, match=r"daily limit.*1 answers of this run are kept"):
            raise asked.error
        assert answers(journal) == 1 and len(server.requests) == 2

    def test_with_answers_in_between_the_run_goes_on(self, play, journal, monkeypatch):
        monkeypatch.setattr(breaker, "PATIENCE", 2)
        limit = (429, error("slow down"), {"retry-after-ms": "300"})
        asked = ask(play(*[limit, (200, GOOD)] * 8).url, journal, 8, concurrency=1)
        assert (asked.answered, asked.limited, asked.error) == (8, 8, None)
