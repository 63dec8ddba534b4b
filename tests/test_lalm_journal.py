import json
import random
import sqlite3
from pathlib import Path

import pytest
from scripted import completion, keep

from mifuse_cli.audio import Excerpt
from mifuse_cli.errors import InputError
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.journal import journal as journal_module
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.questions.clips import AskedClip

GOOD, TWO, THREE = (json.dumps(completion(*"abc"[:n])).encode() for n in (1, 2, 3))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lalm.h5.journal.sqlite"


@pytest.fixture
def journal(path):
    with Journal(path) as journal:
        yield journal


def query(path, sql):
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def clip(name, sha256="00", **more):
    values = {
        "duration": 1.5,
        "sr": 16000,
        "bytes": 48044,
        "excerpt": Excerpt(Path(f"{name}.wav")),
        "pieces": (1.5,),
    }
    return AskedClip(name, sha256, **{**values, **more})


def got(journal, key):
    """Body and position of every answer by choice."""
    return {choice: (one.raw, one.position) for (_, choice), one in journal.answers([key]).items()}


class TestAnswers:
    def test_they_come_back_as_they_came(self, path):
        raw = b'{"choices": [{}], "usage": {"prompt_tokens": 7}}' + b" " * 99
        with Journal(path) as journal:
            intent = journal.begin("k", 2, asked="a, sample 1").result()
            journal.store(intent, "k", raw, http_status=200, request_id="req-1").result()
            assert journal.answers(["k"])["k", 0].outcome is None
            journal.settle(intent, "k", decode(raw))
        with Journal(path) as journal:
            (answer,) = journal.answers(["k", "other"]).values()
        assert (answer.raw, answer.position, answer.outcome) == (raw, 0, "ok")
        assert query(path, "SELECT json_extract(usage, '$.prompt') FROM answer") == [(7,)]
        assert query(path, "SELECT attempt, asked, http_status FROM intent") == [(2, "a, sample 1", 200)]
        ((request_id, stored, sent, received),) = query(
            path, "SELECT request_id, raw, t_send, t_recv FROM answer JOIN intent ON id = intent_id"
        )
        assert request_id == "req-1" and len(stored) < len(raw) and sent <= received

    def test_only_an_unusable_one_is_replaced(self, journal):
        keep(journal, "k", b"<html>")
        assert journal.answered(["k", "other"]) == {"k": [0]}
        assert not journal.has_answers()
        keep(journal, "k", GOOD, settled=True)  # a late reply, of which nothing is kept
        journal.settle(1, "k", decode(b"<html>")).result()
        assert journal.answered(["k"]) == {} and not journal.has_answers()
        keep(journal, "k", GOOD, settled=True)
        keep(journal, "k", b"late", settled=True)
        assert got(journal, "k") == {0: (GOOD, 0)}
        assert journal.has_answers() and journal.unresolved() == []

    def test_many_keys_at_once(self, journal):
        keys = [f"k{i}" for i in range(3000)]
        intents = {key: journal.begin(key, 1) for key in keys[::3]}
        for i, (key, intent) in enumerate(intents.items()):
            stored = journal.store(intent.result(), key, b"%d" % (3 * i), http_status=200)
        stored.result()
        assert journal.answered(iter(keys)) == {key: [0] for key in keys[::3]}
        assert journal.answers(keys)["k2997", 0].raw == b"2997"

    def test_one_body_may_hold_several(self, journal):
        keep(journal, "k", THREE, choices=(0, 1, 2), settled=True)
        keep(journal, "k", TWO, choices=(3, 4), settled=True)
        assert journal.answered(["k"]) == {"k": [0, 1, 2, 3, 4]}
        assert got(journal, "k") == {
            0: (THREE, 0), 1: (THREE, 1), 2: (THREE, 2), 3: (TWO, 0), 4: (TWO, 1),
        }  # fmt: skip

    def test_the_rest_is_asked_again_after_an_unusable_body(self, journal):
        keep(journal, "k", GOOD, choices=(0,), settled=True)
        keep(journal, "k", b"<html>", choices=(1,), settled=True)
        assert journal.answered(["k"]) == {"k": [0]}
        keep(journal, "k", TWO, choices=(1, 2), settled=True)
        assert got(journal, "k") == {0: (GOOD, 0), 1: (TWO, 0), 2: (TWO, 1)}

    def test_what_a_crash_left_unread_is_settled(self, path):
        with Journal(path) as journal:
            keep(journal, "two", completion("a", "b"), cost=0.5)
            keep(journal, "rest", completion("a", "b"), choices=(1, 2))
            keep(journal, "none", b"<html>")
            keep(journal, "read", GOOD, settled=True)
        with Journal(path) as journal:
            journal.settle_unread()
            assert journal.answered(["two", "rest", "none", "read"]) == {
                "two": [0, 1],
                "rest": [1, 2],
                "read": [0],
            }
            assert [one.position for one in journal.answers(["two"]).values()] == [0, 1]
            usage = "SELECT json_extract(usage, '$.prompt') FROM answer WHERE key = 'two' AND choice = 0"
            assert journal.read(usage) == [(120,)]
            assert journal.accounts()["spent"] == 0.5  # nobody knows the price any more


class TestIntents:
    def test_they_are_committed_before_the_request(self, path, journal):
        assert journal.begin("k", 1, asked="a, sample 1").result() == 1
        assert query(path, "SELECT key, attempt, t_end FROM intent") == [("k", 1, None)]
        assert [asked for asked, _ in journal.unresolved()] == ["a, sample 1"]

    def test_accounts(self, path, journal):
        intents = [journal.begin(f"k{i}", 1, asked=f"clip {i}", cost=1.0).result() for i in range(9)]
        for intent, key, cost in zip(intents, ("k0", "k1", "k2"), (0.25, None, 2.5), strict=False):
            journal.store(intent, key, GOOD, http_status=201 if key == "k1" else 200)
            journal.settle(intent, key, decode(GOOD), cost=cost)
        journal.fail(intents[3], 500, "server error")
        journal.fail(intents[4], 429, "slow down")
        journal.fail(intents[5], 0, "connection refused")
        journal.fail(intents[8], 400, "bad audio", rejected=True)
        journal.fail(intents[6], None, "no answer in time").result()
        assert journal.accounts() == {
            "sent": 8, "answered": 3, "limited": 1, "rejected": 1, "failed": 1, "unresolved": 2,
            "in_batches": 0,
            "spent": 0.25 + 1.0 + 2.5 + 1.0 + 1.0,
        }  # fmt: skip
        assert [asked for asked, _ in journal.unresolved()] == ["clip 6", "clip 7"]
        assert query(path, "SELECT error FROM intent WHERE id = 7") == [("no answer in time",)]

    def test_what_the_server_rejected(self, journal):
        for key, status, said in [
            ("a", 400, "bad"),
            ("a", 422, "worse"),
            ("b", 500, "oops"),
            ("c", 413, "big"),
            ("d", 400, "no such parameter"),
        ]:
            rejected = key in "ac"
            journal.fail(journal.begin(key, 1).result(), status, said, rejected=rejected).result()
        assert journal.rejected(["a", "b", "d", "none"]) == {"a": "worse"}

    def test_an_answer_need_not_be_kept(self, journal):
        journal.note(journal.begin("probe", 1, cost=1.0).result(), 200, 0.25).result()
        assert (journal.unresolved(), journal.has_answers()) == ([], False)
        assert journal.accounts()["answered"] == 1 and journal.accounts()["spent"] == 0.25

    def test_those_in_a_batch_are_not_lost(self, journal):
        journal.begin("a", 1, batch="tag").result()
        accounts = journal.accounts()
        assert journal.unresolved() == [] and (accounts["unresolved"], accounts["in_batches"]) == (0, 1)


class TestClips:
    def test_specs_are_stored_once(self, path, journal):
        assert journal.add_spec({"model": "m", "t": 1.0}) == journal.add_spec({"t": 1, "model": "m"})
        assert query(path, "SELECT json FROM spec") == [('{"model":"m","t":1}',)]

    def test_they_come_back_in_the_order_of_their_ids(self, journal):
        clips = [
            clip(f"c{i:03}", pieces=(0.75,) * (i % 3), context=f"{i}", file_sha256="ff") for i in range(450)
        ]
        journal.add_clips(journal.new_run(), random.Random(0).sample(clips, len(clips)))
        blocks = list(journal.clips())
        assert [one for block in blocks for one in block] == clips
        assert max(map(len, blocks)) <= journal_module.CLIPS_AT_A_TIME
        assert journal.known(["c007", "none"]) == {"c007": clips[7]}

    def test_those_of_an_older_manifest_are_known_but_not_asked_about(self, journal):
        assert list(journal.clips()) == []
        journal.add_clips(journal.new_run(), [clip("a"), clip("b")])
        run = journal.new_run()
        journal.add_clips(run, [clip("b", "11")])
        journal.add_clips(run, iter([clip("c")]))
        assert [one.utt_id for block in journal.clips() for one in block] == ["b", "c"]
        assert journal.known(["a", "b"]) == {"a": clip("a"), "b": clip("b", "11")}

    def test_of_twins_one_is_asked(self, journal):
        def twins():
            return {one.utt_id for block in journal.clips() for one in block if one.twin}

        clips = [clip("b"), clip("a"), clip("c"), clip("d", context="hello"), clip("e", "11")]
        run = journal.new_run()
        journal.add_clips(run, clips)
        journal.mark_twins(run)
        assert twins() == {"b", "c"}
        run = journal.new_run()
        journal.add_clips(run, clips[2:])
        journal.mark_twins(run)
        assert twins() == set()

    def test_a_failed_transaction_leaves_nothing(self, path, journal):
        def clips():
            yield clip("a")
            raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            journal.add_clips(1, clips())
        with pytest.raises(InputError):
            journal.add_clips(1, [clip("b"), clip("c", duration=None)])
        assert query(path, "SELECT count(*) FROM utt") == [(0,)]

    def test_what_servers_can_do(self, journal):
        assert journal.probed("h", "m") is None
        journal.add_probe("h", "m", {"n": True})
        journal.add_probe("h", "m", {"n": False})
        assert journal.probed("h", "m") == {"n": False}


def test_a_bogus_count_that_was_booked_is_booked_no_longer(journal):
    for key, tokens, cost in (("a", 100, 0.25), ("b", 300, 0.75), ("bogus", 10**10, 25_000.0)):
        intent = keep(journal, key, completion("sad", usage={"prompt_tokens": tokens}), settled=True)
        journal.execute("UPDATE intent SET est_cost = ? WHERE id = ?", (cost, intent)).result()
    # As a version wrote it that believed every number.
    usage = json.dumps({"prompt": 10**10, "completion": 5, "total": 10**10 + 5})
    journal.execute("UPDATE answer SET usage = ? WHERE key = 'bogus'", (usage,)).result()
    journal.settle_unread()
    assert journal.accounts()["spent"] == pytest.approx(1.5)
    journal.settle_unread()
    assert journal.accounts()["spent"] == pytest.approx(1.5)
    assert journal.answered(["bogus"]) == {"bogus": [0]}


class TestErrorsThatCountedAsAnswers:
    """Journals of versions that took an error within a response for an empty answer."""

    def as_before(self, journal, key, body, choices=(0,)):
        keep(journal, key, body, choices=choices, settled=True)
        journal.execute("UPDATE answer SET outcome = 'ok' WHERE key = ?", (key,)).result()

    @pytest.mark.parametrize(
        "body",
        [
            {"choices": [{"message": {"content": ""}, "finish_reason": "error"}]},
            {
                "choices": [{"message": {"content": None}}],
                "error": {"code": 429},
                "usage": {"completion_tokens": 0},
            },
            completion("", "", usage={}) | {"error": {"code": 502}},
        ],
    )
    def test_are_asked_again(self, journal, body):
        self.as_before(journal, "q", body, range(len(body["choices"])))
        keep(journal, "good", completion("sad", usage={}), settled=True)
        keep(journal, "mute", completion("", usage={}), settled=True)
        assert journal.answered(["q", "good", "mute"]).keys() == {"q", "good", "mute"}
        journal.settle_unread()
        assert journal.answered(["q", "good", "mute"]) == {"good": [0], "mute": [0]}
        assert {one.outcome for one in journal.answers(["q"]).values()} == {"unusable"}
