import random
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.lalm import journal as journal_module
from mifuse_cli.lalm.journal import Journal, Utterance, durable_mode

ROOT = Path(journal_module.__file__).parents[2]

WRITER = """
import sys
from mifuse_cli.lalm.journal import Journal

with Journal(sys.argv[1]) as journal:
    for i in range(int(sys.argv[2]), 10**9):
        intent = journal.begin(f"key-{i}", 1)
        print("intent", i, flush=True)
        journal.store(intent, f"key-{i}", b"body %d" % i * 50, http_status=200)
        print("answer", i, flush=True)
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lalm.h5.journal.sqlite"


def writer(path, start=0):
    command = [sys.executable, "-c", WRITER, str(path), str(start)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def query(path, sql):
    db = sqlite3.connect(path)
    try:
        return db.execute(sql).fetchall()
    finally:
        db.close()


def test_an_answer_comes_back_as_it_came(path):
    with Journal(path) as journal:
        intent = journal.begin("k", 2)
        journal.store(intent, "k", b'{"choices": \xff\x00', http_status=200, request_id="req-1")
        received = journal.answer("k")
        journal.settle("k", outcome="ok", usage={"prompt": 7})
    with Journal(path) as journal:
        answer = journal.answer("k")
        assert list(journal.answers()) == [answer]
        assert journal.answer("other") is None
    assert received.outcome is None
    assert (answer.raw, answer.request_id, answer.attempt) == (b'{"choices": \xff\x00', "req-1", 2)
    assert (answer.outcome, answer.usage) == ("ok", {"prompt": 7})
    assert answer.latency >= 0
    assert query(path, "SELECT raw FROM answer")[0][0] != answer.raw  # compressed


def test_an_intent_is_committed_before_the_request(path):
    with Journal(path) as journal:
        journal.begin("k", 1)
        assert query(path, "SELECT key, attempt, t_end FROM intent") == [("k", 1, None)]
        assert journal.unresolved() == 1


def test_unresolved_counts_calls_of_unknown_outcome(path):
    with Journal(path) as journal:
        ids = [journal.begin(f"k{i}", 1) for i in range(5)]
        journal.store(ids[0], "k0", b"{}", http_status=200)
        journal.fail(ids[1], 500, "server error")
        journal.fail(ids[2], 0, "connection refused")
        journal.fail(ids[3], None, "no answer in time")
        assert journal.unresolved() == 2
    assert query(path, "SELECT error FROM intent WHERE id = 4") == [("no answer in time",)]


def test_only_an_unusable_answer_is_replaced(path):
    with Journal(path) as journal:
        journal.store(journal.begin("k", 1), "k", b"<html>", http_status=200)
        assert journal.answered(["k", "other"]) == {"k"}
        journal.settle("k", outcome="unusable")
        assert journal.answered(["k"]) == set()
        assert not journal.has_answers()
        journal.store(journal.begin("k", 2), "k", b"good", http_status=200)
        journal.settle("k", outcome="ok")
        journal.store(journal.begin("k", 3), "k", b"late", http_status=200)
        assert journal.answer("k").raw == b"good"
        assert journal.answer("k").attempt == 2
        assert journal.has_answers()
        assert journal.unresolved() == 0


def test_answered_handles_many_keys(path):
    with Journal(path) as journal:
        for i in range(0, 3000, 3):
            journal.store(journal.begin(f"k{i}", 1), f"k{i}", b"x", http_status=200)
        assert journal.answered(f"k{i}" for i in range(3000)) == {f"k{i}" for i in range(0, 3000, 3)}


def test_specs_and_utterances_are_stored_once(path):
    clip = Utterance("a", "00" * 32, 1.5, 16000, 48044, "a.wav")
    with Journal(path) as journal:
        assert journal.add_spec({"model": "m", "t": 1.0}) == journal.add_spec({"t": 1, "model": "m"})
        journal.add_utterances([clip])
        journal.add_utterances(iter([clip, Utterance("b", "11" * 32, 2.0, 16000, 64044, "b.wav")]))
    assert query(path, "SELECT json FROM spec") == [('{"model":"m","t":1}',)]
    assert query(path, "SELECT utt_id, duration FROM utt ORDER BY utt_id") == [("a", 1.5), ("b", 2.0)]


def test_a_failed_transaction_leaves_nothing(path):
    def clips():
        yield Utterance("a", "00" * 32, 1.5, 16000, 48044, "a.wav")
        raise KeyboardInterrupt

    with Journal(path) as journal:
        with pytest.raises(KeyboardInterrupt):
            journal.add_utterances(clips())
        assert query(path, "SELECT count(*) FROM utt") == [(0,)]
        journal.begin("k", 1)


def test_kill_loses_nothing_that_was_acknowledged(path):
    random.seed(0)
    acknowledged = {"intent": set(), "answer": set()}
    for trial in range(4):
        process = writer(path, start=trial * 1_000_000)
        for _ in range(random.randint(20, 600)):
            kind, i = process.stdout.readline().split()
            acknowledged[kind].add(int(i))
        process.kill()
        for line in process.stdout:
            if line.endswith("\n"):
                kind, i = line.split()
                acknowledged[kind].add(int(i))
        process.wait()
    assert len(acknowledged["answer"]) > 40
    with Journal(path) as journal:
        keys = [f"key-{i}" for i in acknowledged["answer"]]
        assert journal.answered(keys) == set(keys)
        for i in acknowledged["answer"]:
            assert journal.answer(f"key-{i}").raw == b"body %d" % i * 50
        # At most the one call that each kill interrupted is of unknown outcome.
        assert journal.unresolved() <= 4
    assert query(path, "PRAGMA integrity_check") == [("ok",)]
    assert {f"key-{i}" for i in acknowledged["intent"]} <= {
        k for (k,) in query(path, "SELECT key FROM intent")
    }


def test_a_second_process_is_refused(path):
    process = writer(path)
    try:
        process.stdout.readline()
        with pytest.raises(InputError, match=rf"in use by process {process.pid} on .*Wait for the other run"):
            Journal(path)
    finally:
        process.kill()
        process.wait()
        process.stdout.close()
    Journal(path).close()
    with Journal(path), pytest.raises(InputError, match="in use by process"):
        Journal(path)
    assert query(path, "SELECT * FROM lock") == []


def test_foreign_and_newer_files_stay_as_they_are(path):
    db = sqlite3.connect(path)
    db.execute("CREATE TABLE photos (id)")
    db.close()
    before = path.read_bytes()
    with pytest.raises(ArtifactError, match="no mifuse journal"):
        Journal(path)
    assert path.read_bytes() == before

    path.unlink()
    Journal(path).close()
    db = sqlite3.connect(path)
    db.execute("PRAGMA user_version = 99")
    db.close()
    with pytest.raises(ArtifactError, match=r"schema 99.*Upgrade mifuse"):
        Journal(path)


def test_damaged_files_are_reported(path):
    path.write_bytes(b"utt_id,label\n" * 1000)
    with pytest.raises(InputError, match="damaged, or not a journal"):
        Journal(path)

    path.unlink()
    with Journal(path) as journal:
        for i in range(200):
            journal.store(journal.begin(f"k{i}", 1), f"k{i}", random.randbytes(500), http_status=200)
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)
    with pytest.raises(InputError, match="damaged"), Journal(path) as journal:
        list(journal.answers())


def test_a_place_that_cannot_be_written_is_reported(tmp_path):
    with pytest.raises(InputError, match="cannot be written"):
        Journal(tmp_path / "missing" / "j.sqlite")
    (tmp_path / "dir.sqlite").mkdir()
    with pytest.raises(InputError, match="cannot be read or written"):
        Journal(tmp_path / "dir.sqlite")


def test_commits_are_durable_with_and_without_shared_memory(tmp_path):
    db = sqlite3.connect(tmp_path / "a.sqlite")
    assert durable_mode(db) == "wal"
    assert db.execute("PRAGMA synchronous").fetchone() == (2,)
    db.close()
    # This way of locking files has no shared memory, like a network file system.
    db = sqlite3.connect(f"file:{tmp_path / 'b.sqlite'}?vfs=unix-dotfile", uri=True)
    assert durable_mode(db) == "delete"
    assert db.execute("PRAGMA synchronous").fetchone() == (3,)
    db.close()
