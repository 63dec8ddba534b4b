"""The file under the journal: who may open it, when a commit is done, and what survives."""

import asyncio
import contextlib
import json
import random
import shutil
import sqlite3
import subprocess
import sys
import threading
import zlib
from functools import partial
from pathlib import Path

import pytest
from conftest import HANG_SECONDS
from scripted import GOOD, keep

import mifuse_cli
from mifuse_cli.audio import Excerpt
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.lalm.journal import database as tables
from mifuse_cli.lalm.journal.database import SCHEMA_VERSION, GroupCommit, durable_mode, network_filesystem
from mifuse_cli.lalm.journal.journal import Journal
from mifuse_cli.lalm.questions.clips import AskedClip

ROOT = Path(mifuse_cli.__file__).parents[1]
THREADS = 8

# Many at once, each waiting for its own commits; a line leaves in one piece.
PROGRAM = """
import os, sys, threading
from mifuse_cli.lalm.journal.journal import Journal

first, threads = int(sys.argv[2]), int(sys.argv[3])

def write(journal, start):
    for i in range(start, 10**9, threads):
        intent = journal.begin(f"key-{i}", 1, asked=f"clip {i}").result()
        os.write(1, b"intent %d\\n" % i)
        journal.store(intent, f"key-{i}", b"body %d" % i * 50, http_status=200).result()
        os.write(1, b"answer %d\\n" % i)

with Journal(sys.argv[1]) as journal:
    workers = [threading.Thread(target=write, args=(journal, first + n)) for n in range(threads)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
"""


@pytest.fixture
def path(tmp_path):
    return tmp_path / "lalm.h5.journal.sqlite"


@pytest.fixture
def journal(path):
    with Journal(path) as journal:
        yield journal


def writing(path, start=0, threads=1):
    command = [sys.executable, "-c", PROGRAM, str(path), str(start), str(threads)]
    return subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True)


def clip(name):
    return AskedClip(name, "0f", 0.5, 16000, 16044, Excerpt(Path("a.wav")), "0e", pieces=(0.5,))


def query(path, sql):
    with contextlib.closing(sqlite3.connect(path)) as db:
        return db.execute(sql).fetchall()


def body(journal, key):
    return journal.answers([key])[key, 0].raw


class TestCommits:
    @pytest.fixture
    def gate(self, journal):
        """Holds the writer until it is set; what is handed in meanwhile goes into one transaction."""
        gate, there = threading.Event(), threading.Event()
        journal.submit(lambda db: there.set() or gate.wait(HANG_SECONDS))
        assert there.wait(HANG_SECONDS)
        yield gate
        gate.set()

    def test_many_share_one(self, path, journal, gate):
        statements, seen = [], []

        def look(future):
            found = query(path, f"SELECT key FROM intent WHERE id = {future.result()}")
            seen.append(found == [(keys[future],)])

        journal.submit(lambda db: db.set_trace_callback(statements.append))
        keys = {journal.begin(f"k{i}", 1): f"k{i}" for i in range(200)}
        for future in keys:
            future.add_done_callback(look)
        gate.set()
        assert len({future.result(20) for future in keys}) == 200
        journal.begin("last", 1).result(20)
        assert seen == [True] * 200  # whoever is told finds it committed
        assert statements.count("COMMIT") == 2

    def test_a_piece_at_fault_fails_alone(self, journal, gate):
        def broken(db):
            db.execute("INSERT INTO intent (key, attempt, t_send) VALUES ('half', 1, 0)")
            raise ValueError("not today")

        before, bad, worse, after = (
            journal.begin("before", 1), journal.submit(broken), journal.execute("nonsense"), journal.begin("after", 1),
        )  # fmt: skip
        gate.set()
        with pytest.raises(ValueError, match="not today"):
            bad.result(20)
        with pytest.raises(InputError, match=r"nonsense.*do not delete it"):
            worse.result(20)
        ids = {before.result(20): "before", after.result(20): "after"}
        assert dict(journal.read("SELECT id, key FROM intent")) == ids

    def test_whoever_stops_waiting_undoes_nothing(self, journal, gate):
        async def waiting():
            task = asyncio.ensure_future(asyncio.wrap_future(journal.begin("a", 1)))
            await asyncio.sleep(0)
            task.cancel()
            await asyncio.wait({task})
            return task.cancelled()

        assert asyncio.run(waiting())
        assert journal.begin("b", 1).cancel()
        gate.set()
        journal.begin("c", 1).result(20)
        assert journal.read("SELECT key FROM intent ORDER BY id") == [("a",), ("b",), ("c",)]

    def test_a_full_disk_is_told_and_what_was_committed_stays(self, journal):
        keep(journal, "k", b"safe")
        (pages,) = journal.read("PRAGMA page_count")[0]
        journal.execute(f"PRAGMA max_page_count = {pages + 2}").result()
        with pytest.raises(InputError, match=r"is full.*committed before is intact"):
            for i in range(50):
                keep(journal, f"k{i}", random.randbytes(9000))
        journal.execute("PRAGMA max_page_count = 1000000").result()
        keep(journal, "later", b"fine")
        assert body(journal, "later") == b"fine"
        assert body(journal, "k") == b"safe"

    def test_nobody_waits_for_ever_for_a_broken_database(self):
        class Broken:
            in_transaction = True

            def execute(self, sql):
                raise sqlite3.OperationalError(f"{sql}: disk I/O error")

            def close(self):
                pass

        writer = GroupCommit(Broken(), lambda error: InputError(str(error)))
        for future in [writer.submit(lambda db: None) for _ in range(3)]:
            with pytest.raises(InputError, match="BEGIN IMMEDIATE: disk I/O error"):
                future.result(20)
        writer.close()
        with pytest.raises(RuntimeError, match="closed"):
            writer.submit(lambda db: None)


class TestCrashes:
    def test_kill_loses_nothing_that_was_acknowledged(self, path):
        random.seed(0)
        acknowledged = {"intent": set(), "answer": set()}
        for trial in range(4):
            process = writing(path, trial * 1_000_000, THREADS)
            for _ in range(random.randint(20, 900)):
                kind, i = process.stdout.readline().split()
                acknowledged[kind].add(int(i))
            process.kill()
            for line in process.stdout:
                if line.endswith("\n"):
                    kind, i = line.split()
                    acknowledged[kind].add(int(i))
            process.wait()
            process.stdout.close()
        assert len(acknowledged["answer"]) > 100
        with Journal(path) as journal:
            found = journal.answers(f"key-{i}" for i in acknowledged["answer"])
            assert {key: one.raw for (key, _), one in found.items()} == {
                f"key-{i}": b"body %d" % i * 50 for i in acknowledged["answer"]
            }
            unresolved = {int(asked.split()[1]) for asked, _ in journal.unresolved()}
            answered = {int(key[4:]) for (key,) in journal.read("SELECT key FROM answer")}
        # Every call is accounted for, and each kill left at most one of every thread's without an outcome.
        assert acknowledged["intent"] <= unresolved | answered and not unresolved & answered
        assert len(unresolved) <= 4 * THREADS
        assert query(path, "PRAGMA integrity_check") == [("ok",)]

    def test_what_a_killed_process_left_beside_it_is_taken_in(self, path, tmp_path):
        killed = tmp_path / "killed" / path.name
        killed.parent.mkdir()
        with Journal(path) as journal:
            keep(journal, "key")
            Journal.tidy(path)  # in use
            for suffix in ("", "-wal", "-shm"):
                shutil.copy(f"{path}{suffix}", f"{killed}{suffix}")
        assert Path(f"{killed}-wal").stat().st_size
        Journal.tidy(killed)
        assert {file.name for file in killed.parent.iterdir()} == {killed.name, f"{killed.name}.lock"}
        assert len(query(killed, "SELECT * FROM answer")) == 1
        Journal.tidy(tmp_path / "none")
        assert not (tmp_path / "none").exists()


class TestOpening:
    def test_a_second_process_is_refused(self, path):
        process = writing(path)
        try:
            process.stdout.readline()
            holder = rf"in use by process {process.pid} on .*Wait for the other run"
            with pytest.raises(InputError, match=holder):
                Journal(path)
        finally:
            process.kill()
            process.wait()
            process.stdout.close()
        Journal(path).close()
        with Journal(path), pytest.raises(InputError, match="in use by process"):
            Journal(path)
        assert query(path, "SELECT * FROM lock") == []

    def test_foreign_files_stay_as_they_are(self, path):
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("CREATE TABLE photos (id)")
        before = path.read_bytes()
        with pytest.raises(ArtifactError, match="no mifuse journal"):
            Journal(path)
        assert path.read_bytes() == before

    def test_newer_files_stay_as_they_are(self, path):
        Journal(path).close()
        with contextlib.closing(sqlite3.connect(path)) as db:
            db.execute("PRAGMA user_version = 99")
        before = path.read_bytes()
        with pytest.raises(ArtifactError, match=r"schema 99.*Upgrade mifuse"):
            Journal(path)
        assert path.read_bytes() == before

    def test_damaged_files_are_reported(self, path):
        path.write_bytes(b"utt_id,label\n" * 1000)
        with pytest.raises(InputError, match="damaged, or not a journal"):
            Journal(path)

        path.unlink()
        with Journal(path) as journal:
            keep(journal, "k", random.randbytes(100_000))
        content = bytearray(path.read_bytes())
        content[4096:] = b"\xa5" * (len(content) - 4096)
        path.write_bytes(content)
        with pytest.raises(InputError, match="damaged"), Journal(path) as journal:
            body(journal, "k")

    @pytest.mark.parametrize(
        ("table", "column", "value"),
        [
            ("answer", "raw", "text"),
            ("answer", "raw", 7),
            ("answer", "choice", "x"),
            ("answer", "choice", -1),
            ("intent", "http_status", 2.5),
            ("intent", "t_send", 1e308),
            ("intent", "est_cost", float("inf")),
            ("intent", "est_cost", b"\xff"),
            ("utt", "duration", float("inf")),
            ("utt", "run", 2**63 - 1),
        ],
    )
    def test_values_that_no_column_can_have_are_reported(self, path, table, column, value):
        with Journal(path) as journal:
            keep(journal, "k", GOOD)
            journal.add_clips(1, [clip("a")])
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            assert db.execute(f"UPDATE {table} SET {column} = ?", (value,)).rowcount
        with pytest.raises(InputError, match=f"damaged.*{column} in the table {table}.*do not delete"):
            Journal(path)

    def test_a_message_of_sqlite_that_is_no_utf8(self, path):
        """It quotes the name of a table as it lies in the file."""
        Journal(path).close()
        path.write_bytes(path.read_bytes().replace(b"tablespecspec", b"tablesp\xd8cspec"))
        with pytest.raises(InputError, match=r"damaged.*do not delete"):
            Journal(path)

    @pytest.mark.parametrize("column", ["part", "pieces"])
    @pytest.mark.parametrize(
        "value", ["", "x", "{}", "3", '["x"]', "[null, {}]", "[-1.0, 1, 1]", "[Infinity]"]
    )
    def test_clips_that_are_none_are_reported(self, path, column, value):
        with Journal(path) as journal:
            journal.add_clips(1, [clip("a")])
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            assert db.execute(f"UPDATE utt SET {column} = ?", (value,)).rowcount
        with Journal(path) as journal:
            for read in (lambda: list(journal.clips()), lambda: journal.known(["a"])):
                with pytest.raises(InputError, match="damaged"):
                    read()

    def test_a_further_choice_without_its_body_is_reported(self, path):
        with Journal(path) as journal:
            keep(journal, "k", GOOD)
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE answer SET raw = x'', choice = 1")
        with (
            Journal(path) as journal,
            pytest.raises(InputError, match=r"damaged.*the body of the answer to k"),
        ):
            journal.answers(["k"])

    @pytest.mark.parametrize("value", ["", "[]", "x"])
    def test_what_was_found_out_of_a_server_and_is_none_is_reported(self, path, value):
        with Journal(path) as journal:
            journal.add_probe("h", "m", {"audio": True})
        with contextlib.closing(sqlite3.connect(path)) as db, db:
            db.execute("UPDATE probe SET json = ?", (value,))
        with Journal(path) as journal, pytest.raises(InputError, match="damaged"):
            journal.probed("h", "m")

    def test_a_place_that_cannot_be_written_is_reported(self, tmp_path):
        with pytest.raises(InputError, match="cannot be written"):
            Journal(tmp_path / "missing" / "j.sqlite")
        (tmp_path / "dir.sqlite").mkdir()
        with pytest.raises(InputError, match="is a directory, expected a file"):
            Journal(tmp_path / "dir.sqlite")

    def test_one_that_another_program_holds_is_reported(self, path, monkeypatch):
        monkeypatch.setattr(tables, "_LOCK_SECONDS", 0.1)
        Journal(path).close()
        with contextlib.closing(sqlite3.connect(path)) as other:
            other.execute("BEGIN EXCLUSIVE")
            with pytest.raises(InputError, match=r"another program has been writing.*is asked again"):
                Journal(path)

    def test_one_that_may_only_be_read_is_reported(self, path, monkeypatch):
        Journal(path).close()
        real = sqlite3.connect
        monkeypatch.setattr(
            tables.sqlite3, "connect", lambda path, **how: real(f"file:{path}?mode=ro", uri=True, **how)
        )
        with pytest.raises(InputError, match=r"cannot be written \(attempt to write a readonly.*permissions"):
            Journal(path)

    @pytest.mark.parametrize("change", ["deleted", "moved", "replaced", "directory"])
    def test_one_that_vanishes_ends_the_run_before_more_is_paid_for(self, path, change):
        """SQLite goes on to write to a file that nobody finds."""
        with Journal(path) as journal:
            keep(journal, "k", b"paid")
            aside = path.with_name("aside")
            if change == "deleted":
                path.unlink()
            elif change == "directory":
                path.parent.rename(path.parent.with_name("elsewhere"))
            else:
                path.rename(aside)
                if change == "replaced":
                    shutil.copyfile(aside, path)
            with pytest.raises(InputError, match=r"moved, deleted or replaced.*put it back") as told:
                journal.begin("next", 1)
            assert "anew" not in str(told.value) and "--force" not in str(told.value)
            assert body(journal, "k") == b"paid"  # what is there can still be saved


class TestFirstVersion:
    @pytest.fixture
    def first(self, path):
        """A journal as the first version left it: two answers, and a call of unknown outcome."""
        with contextlib.closing(sqlite3.connect(path, isolation_level=None)) as db:
            db.executescript(tables._FIRST)
            db.execute(f"PRAGMA application_id = {0x6D666A31}")
            db.execute("PRAGMA user_version = 1")
            db.execute("INSERT INTO spec VALUES ('5bec', ?)", ('{"model":"m"}',))
            db.execute("INSERT INTO utt VALUES ('a', '00', 1.5, 16000, 48044, 'a.wav')")
            db.execute("INSERT INTO intent VALUES (1, 'k', 1, 10, NULL, 11, 200, NULL)")
            db.execute("INSERT INTO intent VALUES (2, 'unread', 1, 11, NULL, 12, 200, NULL)")
            db.execute("INSERT INTO intent VALUES (3, 'lost', 1, 12, NULL, NULL, NULL, NULL)")
            raw = zlib.compress(json.dumps(GOOD).encode())
            answer = "INSERT INTO answer VALUES (?, 0, ?, 12, 200, 'req', ?, ?, NULL, ?)"
            db.execute(answer, ("k", 1, raw, '{"prompt": 7}', "ok"))
            db.execute(answer, ("unread", 2, raw, None, None))
        return path

    def test_its_answers_count(self, first):
        with Journal(first) as journal:
            journal.settle_unread()
            assert journal.answered(["k", "unread", "lost"]) == {"k": [0], "unread": [0]}
            assert body(journal, "k") == body(journal, "unread") == json.dumps(GOOD).encode()
            assert journal.read("SELECT usage FROM answer WHERE key = 'k'") == [('{"prompt": 7}',)]
            assert journal.accounts() == {
                "sent": 3, "answered": 2, "limited": 0, "rejected": 0, "failed": 0, "unresolved": 1,
                "in_batches": 0, "spent": 0,
            }  # fmt: skip
            assert journal.unresolved() == [("", 12)]
            assert journal.read("SELECT spec_hash FROM spec") == [("5bec",)]

    def test_its_clips_are_read_anew(self, first):
        clip = AskedClip("a", "00", 1.5, 16000, 48044, Excerpt(Path("a.wav")), "ff", "hello", (0.75, 0.75))
        with Journal(first) as journal:
            assert journal.known(["a"]) == {}
            journal.add_clips(journal.new_run(), [clip])
            assert list(journal.clips()) == [[clip]]

    def test_it_becomes_a_present_one(self, first, tmp_path):
        def tables_of(path):
            names = [name for (name,) in query(path, "SELECT name FROM sqlite_master ORDER BY name")]
            return {name: query(path, f"PRAGMA table_info({name})") for name in names}

        Journal(tmp_path / "new.sqlite").close()
        for _ in range(2):
            Journal(first).close()
            assert tables_of(first) == tables_of(tmp_path / "new.sqlite")
            assert query(first, "PRAGMA user_version") == [(SCHEMA_VERSION,)]
            assert len(query(first, "SELECT * FROM answer")) == 2


class TestDurability:
    def test_with_and_without_shared_memory(self, tmp_path):
        with contextlib.closing(sqlite3.connect(tmp_path / "a.sqlite")) as db:
            assert durable_mode(db) == "wal"
            assert db.execute("PRAGMA synchronous").fetchone() == (2,)
        # This way of locking files has no shared memory, like some network file systems.
        url = f"file:{tmp_path / 'b.sqlite'}?vfs=unix-dotfile"
        with contextlib.closing(sqlite3.connect(url, uri=True)) as db:
            assert durable_mode(db) == "delete"
            assert db.execute("PRAGMA synchronous").fetchone() == (3,)

    @pytest.mark.parametrize(
        ("place", "kind"),
        [
            ("/etc/x", None),
            ("/early/x", "lustre"),
            ("/data/x", "nfs4"),
            ("/data/local/x", None),
            ("/database/x", None),
            ("/with space/x", "fuse.sshfs"),
            ("/gluster/deep/down/x", "fuse.glusterfs"),
            ("/over/x", "cifs"),
        ],
    )
    def test_network_file_systems_are_known_by_their_mounts(self, tmp_path, place, kind):
        mounts = tmp_path / "mounts"
        mounts.write_text(
            "host@tcp:/scratch /early lustre rw 0 0\n"
            "/dev/sda1 / ext4 rw,relatime 0 0\n"
            "server:/export /data nfs4 rw 0 0\n"
            "/dev/sdb1 /data/local ext4 rw 0 0\n"
            "me@host:/ /with\\040space fuse.sshfs rw 0 0\n"
            "server:/vol /gluster fuse.glusterfs rw 0 0\n"
            "/dev/sdc1 /over ext4 rw 0 0\n"
            "//server/share /over cifs rw 0 0\n"
        )
        assert network_filesystem(Path(place), mounts) == kind

    def test_nothing_is_known_without_a_list_of_mounts(self, tmp_path):
        assert network_filesystem(tmp_path, tmp_path / "none") is None

    def test_a_network_file_system_gets_the_rollback_journal(self, path, monkeypatch):
        mounts = path.with_name("mounts")
        mounts.write_text(f"server:/export {path.parent.resolve()} nfs rw 0 0\n")
        Journal(path).close()
        assert query(path, "PRAGMA journal_mode") == [("wal",)]
        with monkeypatch.context() as patch:
            patch.setattr(tables, "network_filesystem", partial(network_filesystem, mounts=mounts))
            with Journal(path) as journal:
                futures = [journal.begin(f"k{i}", 1) for i in range(300)]
                while not all(future.done() for future in futures):
                    journal.unresolved()  # readers and the writer may lock each other out for a moment
                assert len({future.result() for future in futures}) == len(journal.unresolved()) == 300
            assert query(path, "PRAGMA journal_mode") == [("delete",)]
        Journal(path).close()
        assert query(path, "PRAGMA journal_mode") == [("wal",)]
