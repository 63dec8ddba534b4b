"""Asking through the batches of a provider: nothing is lost, paid twice, or above the budget."""

import json

import pytest
from batches import ACTUAL, KEY, WORST, Runs, question, questions
from llmock.routers import batch as provider

from mifuse_cli.errors import InputError, RemoteError
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.cost.budget import Budget
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.service.client import Client
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed
from mifuse_cli.lalm.service.service_options import host_of


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    """Batches that are answered before the first look at them, none of them left from other tests."""
    monkeypatch.setattr(provider, "_BATCH_DELAY", 0.0)
    for name in ("_files", "_batches"):
        monkeypatch.setattr(provider, name, {})


@pytest.fixture
def runs(llmock, tmp_path):
    return Runs(llmock, tmp_path / "j.sqlite")


class TestRun:
    def test_every_question_is_answered_once(self, runs):
        counts = runs(questions(7), max_requests=3)
        assert (counts.sent, counts.answered, counts.waiting, counts.over_budget) == (7, 7, 0, False)
        assert counts.rejected == counts.failed == {}
        assert runs.answered() == [(number, 0) for number in range(7)]
        assert [row[1:] for row in runs.intents()] == [(200, ACTUAL)] * 7
        assert (runs.budget.in_flight, runs.budget.reserved) == (0, 0)
        assert runs.budget.spent == pytest.approx(7 * ACTUAL)
        assert runs.posts("/v1/batches") == runs.posts("/v1/files") == 3
        assert [batch["status"] for batch in provider._batches.values()] == ["completed"] * 3

    def test_answers_are_kept_as_in_any_other_run(self, runs):
        runs(questions(1))
        with Journal(runs.path) as journal:
            ((_, answer),) = journal.answers([f"{0:032x}"]).items()
            sums = {name: number for name, number in journal.accounts().items() if number}
            assert sums == {"sent": 1, "answered": 1, "spent": pytest.approx(ACTUAL)}
        text, usage = answer.response.choice(0).text, answer.response.usage
        assert text and usage["prompt"] > 0
        assert answer.outcome == "ok"
        assert json.loads(runs.query("SELECT usage FROM answer")[0][0]) == usage
        assert runs.query("SELECT length(request_id) > 8 FROM answer") == [(1,)]

    def test_missing_choices_are_asked_for_together(self, runs):
        assert runs([question(0, (1, 3, 4)), question(1)]).answered == 4
        assert runs.answered() == [(0, 1), (0, 3), (0, 4), (1, 0)]

    def test_files_stay_below_the_limit_of_bytes(self, runs):
        uploaded = []
        store = provider._store_file

        def spy(**file):
            uploaded.extend([file["content"]] if file["purpose"] == "batch" else [])
            return store(**file)

        provider._store_file, most = spy, 1000
        try:
            assert runs(questions(9, text="x" * 150), max_bytes=most).answered == 9
        finally:
            provider._store_file = store
        sizes = [len(content) for content in uploaded]
        assert len(sizes) == 5 and max(sizes) <= most < min(sizes[:-1]) * 1.5
        with pytest.raises(InputError, match=r"clip 0: takes .* bytes of a batch, which may have 100"):
            runs(questions(1), max_bytes=100)

    def test_what_was_sent_is_deleted_where_it_is_not_needed(self, runs):
        runs(questions(2))
        assert [file["purpose"] for file in provider._files.values()] == ["batch_output"]
        assert {file.name for file in runs.path.parent.iterdir()} <= {"j.sqlite", "j.sqlite.lock"}

    def test_audio_is_built_for_one_question_at_a_time(self, runs):
        drawn, built = [], []

        def source():
            for number in range(20):
                drawn.append(number)
                assert len(drawn) == len(built) + 1
                yield question(number, messages=lambda: built.append(1) or [{"role": "user", "content": "?"}])

        assert runs(source()).answered == 20

    def test_looks_are_spaced(self, runs, monkeypatch):
        looks = []
        monkeypatch.setattr(provider, "_refresh", lambda batch: len(looks) > 3 and finish(batch))
        finish = provider._finish_openai_like
        runs(questions(1), poll_seconds=77, report=lambda counts: looks.append(counts.waiting))
        assert looks == [1, 1, 1, 1, 0]
        assert runs.slept == [77] * 4


class TestDeath:
    def test_between_making_a_batch_and_noting_it(self, runs):
        class Dying(Journal):
            def add_batch(self, tag, batch_id):
                raise KeyboardInterrupt

        runs.journal = Dying
        with pytest.raises(KeyboardInterrupt):
            runs(questions(3))
        assert [row[1:] for row in runs.intents()] == [(None, WORST)] * 3
        runs.journal = Journal
        counts = runs(iter(()))
        assert (counts.sent, counts.answered) == (0, 3)
        assert runs.posts("/v1/batches") == runs.posts("/v1/files") == 1
        assert [row[1:] for row in runs.intents()] == [(200, ACTUAL)] * 3
        assert runs.budget.in_flight == 0

    def test_before_a_batch_is_made(self, runs):
        class Dying(Client):
            async def create_batch(self, input_file, tag):
                raise KeyboardInterrupt

        runs.client = Dying
        with pytest.raises(KeyboardInterrupt):
            runs(questions(3))
        assert {row[1] for row in runs.intents()} == {None}  # it could have been made
        runs.client = Client
        counts = runs(questions(3))
        assert (counts.sent, counts.answered, counts.failed) == (3, 3, {})
        assert [row[1:] for row in runs.intents()] == [(0, 0)] * 3 + [(200, ACTUAL)] * 3

    def test_while_it_waits(self, runs, monkeypatch):
        monkeypatch.setattr(provider, "_BATCH_DELAY", 3600)

        def stop(counts):
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            runs(questions(3), report=stop)
        monkeypatch.setattr(provider, "_BATCH_DELAY", 0.0)
        for batch in provider._batches.values():
            batch["ready_at"] = 0
        counts = runs([question(3)])
        assert (counts.sent, counts.answered) == (1, 4)
        assert runs.posts("/v1/batches") == 2

    def test_while_it_collects(self, runs):
        class Dying(Journal):
            def settle(self, *args, **options):
                raise KeyboardInterrupt

        runs.journal = Dying
        with pytest.raises(KeyboardInterrupt):
            runs(questions(3))
        runs.journal = Journal
        runs(iter(()))
        with Journal(runs.path) as journal:
            assert len(journal.answered(f"{number:032x}" for number in range(3))) == 3
        assert runs.posts("/v1/batches") == 1

    def test_batches_at_another_host_are_left_alone(self, runs, llmock):
        class Elsewhere(Client):
            def __init__(self, *args, **options):
                super().__init__(*args, **options)
                self.host = "elsewhere.example"

        with Journal(runs.path) as journal:
            journal.plan_batch("t", "elsewhere.example")
            journal.begin("k", 1, cost=WORST, batch="t").result()
        runs(questions(1))
        assert runs.intents()[0] == ("k", None, WORST)
        runs.client = Elsewhere
        runs(iter(()))
        assert runs.intents()[0] == ("k", 0, 0)

    def test_a_batch_that_nobody_knows_is_not_paid_again(self, runs):
        with Journal(runs.path) as journal:
            journal.plan_batch("t", host_of(runs.llmock.base_url()))
            journal.add_batch("t", "batch_of_another_account")
        with pytest.raises(RemoteError, match="does not know the batch batch_of_another_account"):
            runs(questions(1))
        assert runs.posts("/v1/batches") == 0


class TestMoney:
    def test_the_budget_is_never_passed_and_what_is_left_over_is_spent(self, runs):
        budget = Budget(usd=5 * WORST, requests=None)
        counts = runs(questions(30), budget=budget)
        assert counts.over_budget
        assert runs.highest <= 5 * WORST
        # Rounds of 5, 3, 1, 1 and so on, until what is left covers no further one.
        assert counts.sent == counts.answered == 11
        assert budget.spent == pytest.approx(11 * ACTUAL) and budget.spent + WORST > 5 * WORST
        assert len(runs.answered()) == 11
        assert runs(questions(30)[11:]).answered == 19

    def test_no_money_no_batch(self, runs):
        counts = runs(questions(3), budget=Budget(usd=WORST / 2, requests=None))
        assert (counts.sent, counts.over_budget) == (0, True)
        assert runs.llmock.requests == [] and runs.intents() == []

    def test_without_a_price_the_reservation_stands(self, runs):
        runs(questions(2), price=None)
        assert [row[1:] for row in runs.intents()] == [(200, WORST)] * 2
        assert runs.budget.spent == pytest.approx(2 * WORST)


class TestFaults:
    @pytest.fixture
    def lines(self, monkeypatch):
        """Let a function change the provider's lines, by the number of the question; None leaves one out."""

        def change(function):
            plain = provider._process_line

            def process(text, **options):
                entry = plain(text, **options)
                return function(int(entry["custom_id"].partition(".")[0], 16), entry)

            monkeypatch.setattr(provider, "_process_line", process)

        return change

    def test_lines_without_an_answer_cost_nothing(self, runs, lines):
        def fail(number, entry):
            if number == 1:
                message = {"error": {"message": f"bad audio for {KEY}"}}
                entry["response"] = {"status_code": 400, "request_id": "r", "body": message}
                entry["error"] = {"code": "x", "message": "x"}
            if number == 2:
                entry |= {"response": None, "error": {"code": "batch_expired", "message": "too late"}}
            if number == 3:
                entry["custom_id"] = "somebody else's"
            if number == 4:
                entry["response"]["body"] = {"choices": []}
            return entry

        lines(fail)
        counts = runs(questions(6))
        assert counts.answered == 2
        assert counts.rejected == {"clip 1": "bad audio for ***"}
        assert counts.failed.keys() == {"clip 2", "clip 3", "clip 4"}
        assert counts.failed["clip 2"] == "too late"
        assert [row[1:] for row in runs.intents()] == [
            (200, ACTUAL), (400, 0), (0, 0), (0, 0), (200, ACTUAL), (200, ACTUAL)
        ]  # fmt: skip
        assert runs.budget.spent == pytest.approx(3 * ACTUAL)
        assert runs.answered() == [(0, 0), (5, 0)]
        with Journal(runs.path) as journal:
            assert journal.rejected([f"{1:032x}"]) == {f"{1:032x}": "bad audio for ***"}
            assert len(journal.answered(f"{number:032x}" for number in range(6))) == 2

    def test_errors_within_an_answer_count_as_the_status_that_they_carry(self, runs, lines):
        def fail(number, entry):
            body = entry["response"]["body"]
            if number == 1:
                entry["response"]["body"] = {"error": {"code": 429, "message": "slow down"}}
            if number == 2:
                entry["response"]["body"] = {"error": {"code": 400, "message": "audio cannot be decoded"}}
            if number == 3:
                body["choices"][0] |= {
                    "finish_reason": "error",
                    "error": {"code": 502, "message": "upstream"},
                }
            return entry

        lines(fail)
        counts = runs(questions(4))
        assert counts.answered == 1 and runs.answered() == [(0, 0)]
        assert counts.rejected.keys() == {"clip 2"} and counts.failed.keys() == {"clip 1", "clip 3"}
        # What was begun may be billed; what was not asked at all is not.
        costs = [(200, ACTUAL), (429, 0), (400, 0), (502, ACTUAL)]
        assert [row[1:] for row in runs.intents()] == costs
        assert runs.budget.spent == pytest.approx(2 * ACTUAL) and runs.budget.in_flight == 0

    @pytest.mark.parametrize("name", ["f" * 5000, f"{0:032x}." + "f" * 5000, "", None, 7])
    def test_made_up_names_take_no_time(self, runs, lines, name):
        lines(lambda number, entry: {**entry, "custom_id": name} if number else entry)
        assert runs(questions(2)).answered == 1

    def test_fewer_choices_than_asked_for(self, runs, lines):
        def one(number, entry):
            del entry["response"]["body"]["choices"][1:]
            return entry

        lines(one)
        assert runs([question(0, (1, 2, 3))]).answered == 1
        assert runs.answered() == [(0, 1)]

    def test_a_batch_that_failed_as_a_whole(self, runs, monkeypatch):
        def fail(batch):
            batch["status"] = "failed"
            batch["errors"] = {"data": [{"code": "token_limit_exceeded", "message": "Enqueued token limit."}]}

        with (
            monkeypatch.context() as patch,
            pytest.raises(RemoteError, match=r"a batch failed: Enqueued token limit\. 0 answers"),
        ):
            patch.setattr(provider, "_finish_openai_like", fail)
            runs(questions(3), budget=Budget(usd=2.5 * WORST, requests=None))
        assert [row[1:] for row in runs.intents()] == [(0, 0)] * 2
        assert runs.posts("/v1/batches") == 1
        assert runs(questions(3)).answered == 3

    def test_an_expired_batch_keeps_what_came(self, runs, monkeypatch):
        finish = provider._finish_openai_like

        def expire(batch):
            content = provider._files[batch["input_file_id"]]
            content["content"] = content["content"].split("\n")[0]
            finish(batch)
            batch["status"] = "expired"

        monkeypatch.setattr(provider, "_finish_openai_like", expire)
        counts = runs(questions(3))
        assert counts.answered == 1
        assert counts.failed == dict.fromkeys(["clip 1", "clip 2"], "the batch is expired, without an answer")

    def test_passing_faults_are_waited_out(self, runs, llmock):
        llmock.fail(503).rate_limit(retry_after=9).fail(500)
        assert runs(questions(2)).answered == 2
        assert runs.slept[:3] == [1, 9, 4]
        assert len(provider._batches) == 1

    def test_a_lost_answer_to_making_a_batch_makes_no_second_one(self, runs):
        class Losing(Client):
            async def create_batch(self, input_file, tag):
                await super().create_batch(input_file, tag)
                raise RequestFailed(FailureKind.TRANSIENT, None, "connection failed")

        runs.client = Losing
        assert runs(questions(2)).answered == 2
        assert len(provider._batches) == 1

    def test_an_outage_ends_the_run_and_leaves_nothing_open(self, runs, llmock):
        llmock.outage()
        with pytest.raises(RemoteError, match="collected by the next run"):
            runs(questions(2))
        assert 800 < sum(runs.slept) <= 900
        assert {row[1:] for row in runs.intents()} == {(0, 0)}
        assert runs.budget.in_flight == 0

    def test_a_wrong_key_ends_the_run_at_once(self, runs, llmock):
        llmock.fail(401, times=None, message=f"no such key: {KEY}")
        with pytest.raises(RemoteError, match=r"no such key: \*\*\*\."):
            runs(questions(2))
        assert len(llmock.requests) == 1 and runs.slept == []
        assert {row[1:] for row in runs.intents()} == {(0, 0)}

    def test_a_clip_that_cannot_be_read_leaves_nothing_open(self, runs):
        def missing():
            raise InputError("a.wav: not found")

        with pytest.raises(InputError, match="not found"):
            runs([question(0), question(1, messages=missing)])
        assert runs.intents() == [(f"{0:032x}", 0, 0)]
        assert runs.llmock.requests == []

    def test_the_key_is_nowhere(self, runs, lines, llmock):
        def echo(number, entry):
            entry["response"]["body"]["choices"][0]["message"]["content"] = f"I heard {KEY}"
            return entry

        lines(echo)
        runs(questions(1))
        with Journal(runs.path) as journal:
            (answer,) = journal.answers([f"{0:032x}"]).values()
        assert decode(answer.raw).choice(0).text == "I heard ***"
