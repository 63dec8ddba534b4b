"""The feature cache: rows are kept as they are made, writers share it, and one that cannot be used is named."""

import json
import multiprocessing
import os
import shutil
import sqlite3
import stat
from contextlib import closing
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import mifuse, refused

from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import InputError
from mifuse_cli.files import sqlite_fault
from mifuse_cli.manifest import read_clips
from mifuse_cli.model import cache as caches
from mifuse_cli.model import store as stores
from mifuse_cli.model.cache import cached
from mifuse_cli.model.shape import read_shape

CPU = torch.device("cpu")


class Level:
    """Makes the root mean square of a clip, (1, 1)."""

    padding = 0.0

    def __init__(self):
        self.made = 0

    def load(self, device):
        return self

    def __call__(self, clips):
        self.made += len(clips)
        return torch.stack([one.square().mean().sqrt()[None, None] for one in clips])


@pytest.fixture
def clips(corpora):
    return read_clips(corpora.target)[:8]


@pytest.fixture
def levels(clips, tmp_path):
    """Levels of the clips, and how many were made anew."""

    def levels(clips=clips, cache=tmp_path / "cache", progress=None, **changes):
        network = Level()
        found = cached(
            clips,
            "levels",
            network,
            work="x",
            device=CPU,
            encoding=Encoding(cache_dir=cache, workers=1, **changes),
            progress=progress,
        )
        return found, network.made

    return levels


@pytest.fixture
def file(levels, tmp_path):
    """The file of a cache that holds all clips."""
    _, made = levels()
    assert made == 8
    return tmp_path / "cache" / "levels.sqlite"


def told(levels, *words):
    with pytest.raises(InputError) as raised:
        levels()
    for word in (*words, "--cache-dir"):
        assert word in str(raised.value)


def test_kept(levels, file, clips):
    first, made = levels()
    assert made == 0 and first.shape == (8, 1, 1) and first.dtype == np.float32
    again, made = levels(clips[::-1])
    assert made == 0
    np.testing.assert_array_equal(again, first[::-1])


def test_clips_of_the_same_content_are_encoded_once(levels, clips):
    found, made = levels([clips[0], clips[1], clips[0]])
    assert made == 2 and found[0] == found[2] != found[1]


class TestDamage:
    """Whatever is there instead of a whole cache is named, and what to do about it."""

    @pytest.mark.parametrize("content", [b"no database" * 100, b"SQLite format 3\0" + b"\1" * 5000])
    def test_no_sqlite_file(self, levels, file, content):
        file.write_bytes(content)
        told(levels, str(file), "is damaged, or no cache", "Delete it")

    @pytest.mark.parametrize("share", [0.3, 0.6])
    def test_cut_off(self, levels, file, share):
        content = file.read_bytes()
        file.write_bytes(content[: int(share * len(content))])
        told(levels, str(file), "is damaged, or no cache", "Delete it")

    def test_overwritten_in_the_middle(self, levels, file):
        content = bytearray(file.read_bytes())
        page = int.from_bytes(content[16:18], "big")
        content[page:] = b"\xff" * (len(content) - page)
        file.write_bytes(content)
        told(levels, str(file), "is damaged, or no cache", "Delete it")

    @pytest.mark.parametrize("change", ["data = x'00'", "width = 7", "data = NULL", "layers = NULL"])
    def test_a_row_that_is_not_whole(self, levels, file, change):
        with closing(sqlite3.connect(file)) as store, store:
            store.execute(f"UPDATE feature SET {change} WHERE rowid = 3")
        told(levels, str(file), "is damaged, or no cache", "cut off", "Delete it")

    @pytest.mark.parametrize("value", [np.nan, np.inf])
    def test_a_row_with_what_is_no_number(self, levels, file, value):
        with closing(sqlite3.connect(file)) as store, store:
            store.execute("UPDATE feature SET data = ? WHERE rowid = 3", (np.float32(value).tobytes(),))
        told(levels, str(file), "is damaged, or no cache", "NaN or infinity", "Delete it")

    def test_a_table_of_something_else(self, levels, file):
        file.unlink()
        with closing(sqlite3.connect(file)) as store, store:
            store.execute("CREATE TABLE feature(name TEXT)")
        told(levels, str(file), "is damaged, or no cache", "no such column")

    def test_an_empty_file_is_a_new_cache(self, levels, file):
        file.write_bytes(b"")
        assert levels()[1] == 8

    def test_a_directory(self, levels, file):
        file.unlink()
        file.mkdir()
        told(levels, str(file), "is a directory, expected a file")

    @pytest.mark.parametrize("below", [False, True])
    def test_no_directory(self, levels, tmp_path, below):
        (tmp_path / "taken").write_text("")
        place = tmp_path / "taken" / "x" if below else tmp_path / "taken"
        told(lambda: levels(cache=place), str(place), "cannot be made the directory of a cache")


def test_what_is_no_number_is_never_kept(levels, clips, tmp_path, monkeypatch):
    loudest = max(levels(cache=tmp_path / "other")[0].ravel())
    whole = Level.__call__

    def spoilt(self, some):
        found = whole(self, some)
        return torch.where(found == loudest, torch.nan, found)

    with monkeypatch.context() as patch, pytest.raises(InputError, match=r"\.wav: the encoder makes NaN"):
        patch.setattr(Level, "__call__", spoilt)
        levels()
    found, made = levels()
    assert made >= 1 and np.isfinite(found).all()


class TestReadOnly:
    @pytest.fixture
    def locked_up(self, file, monkeypatch):
        """As a file without the permission to write, which does not hold for root."""
        real = sqlite3.connect
        monkeypatch.setattr(
            stores.sqlite3, "connect", lambda path, **how: real(f"file:{path}?mode=ro", uri=True, **how)
        )

    def test_what_it_holds_is_read(self, levels, locked_up):
        assert levels()[1] == 0

    def test_more_cannot_be_kept(self, levels, locked_up, corpora):
        others = read_clips(corpora.target)[8:10]
        told(lambda: levels(others), "levels.sqlite", "cannot be written", "readonly", "permissions")

    @pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may write anywhere")
    def test_permissions(self, levels, file, corpora):
        file.chmod(stat.S_IRUSR)
        assert levels()[1] == 0
        told(lambda: levels(read_clips(corpora.target)[8:10]), str(file), "cannot be written")


class TestWhileInUse:
    """What becomes of the file while clips are encoded."""

    @pytest.fixture
    def during(self, levels, corpora, tmp_path, monkeypatch):
        """Encode further clips, with something done once the first are made."""
        monkeypatch.setattr(caches, "_WRITE_EVERY_S", 0.0)

        def during(change):
            left = [change]
            others = read_clips(corpora.target)[8:]
            levels(others, progress=lambda *_: left and left.pop()())

        return during

    def test_deleted(self, file, during):
        told(lambda: during(file.unlink), str(file), "is no longer there", "deleted while in use")

    def test_its_directory_deleted(self, file, during):
        told(lambda: during(lambda: shutil.rmtree(file.parent)), str(file), "is no longer there")

    def test_a_full_disk(self, file, during, monkeypatch):
        real = sqlite3.connect

        def small(path, **how):
            found = real(path, **how)
            found.execute("PRAGMA max_page_count = 3")
            return found

        monkeypatch.setattr(stores.sqlite3, "connect", small)
        monkeypatch.setattr(Level, "__call__", lambda self, some: torch.ones(len(some), 1, 5000))
        told(lambda: during(lambda: None), str(file), "the disk is full", "Make room")

    def test_damaged(self, file, during):
        def damage():
            with file.open("r+b") as opened:
                opened.write(b"\xff" * file.stat().st_size)

        told(lambda: during(damage), str(file), "is damaged, or no cache", "Delete it")


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("SQLITE_BUSY", "Run the command again when that program has ended"),
        ("SQLITE_LOCKED_SHAREDCACHE", "another program has been writing"),
        ("SQLITE_PROTOCOL", "network file system that does not lock"),
        ("SQLITE_IOERR_LOCK", "network file system that does not lock"),
        ("SQLITE_IOERR_WRITE", "its disk or network file system does not read or write it now"),
        ("SQLITE_CANTOPEN", "Check that its directory is there"),
        ("SQLITE_FULL", "the disk is full"),
        ("SQLITE_READONLY_DIRECTORY", "cannot be written"),
        ("SQLITE_NOMEM", "cannot be used now"),
        ("SQLITE_CORRUPT_INDEX", ""),
        ("SQLITE_NOTADB", ""),
        ("SQLITE_ERROR", ""),
    ],
)
def test_what_sqlite_means(tmp_path, name, words):
    (tmp_path / "c.sqlite").touch()
    error = sqlite3.OperationalError("as it says")
    error.sqlite_errorcode = getattr(sqlite3, name)
    found = sqlite_fault(tmp_path / "c.sqlite", error)
    assert words in found and bool(words) == bool(found) == ("as it says" in found)


class TestWriters:
    def test_one_that_never_ends(self, levels, file, corpora, monkeypatch):
        monkeypatch.setattr(stores, "_LOCKED_S", 0.1)
        with closing(sqlite3.connect(file)) as other:
            other.execute("BEGIN EXCLUSIVE")
            told(levels, str(file), "another program has been writing", "when that program has ended")
            other.rollback()
            other.execute("BEGIN IMMEDIATE")  # until it commits, others can read
            assert levels()[1] == 0
            told(lambda: levels(read_clips(corpora.target)[8:10]), str(file), "another program")
            other.rollback()
        assert levels(read_clips(corpora.target)[8:10])[1] == 2

    def test_rows_are_there_before_the_end(self, levels, clips, tmp_path, monkeypatch):
        monkeypatch.setattr(caches, "_WRITE_EVERY_S", 0.0)
        counts = []

        def count(what, done, total, facts):
            with closing(sqlite3.connect(tmp_path / "cache" / "levels.sqlite")) as other:
                (rows,) = other.execute("SELECT count(*) FROM feature").fetchone()
            counts.append((rows, done))

        levels(progress=count)
        assert len(counts) > 1 and all(rows == done for rows, done in counts) and counts[-1] == (8, 8)

    def test_several_at_once(self, tmp_path, corpora):
        clips = read_clips(corpora.target)
        context = multiprocessing.get_context("fork")
        writers = [context.Process(target=_write, args=(clips, tmp_path / "shared")) for _ in range(4)]
        for one in writers:
            one.start()
        for one in writers:
            one.join()
        assert [one.exitcode for one in writers] == [0] * 4
        with closing(sqlite3.connect(tmp_path / "shared" / "levels.sqlite")) as store:
            assert store.execute("SELECT count(*) FROM feature").fetchone() == (len(clips),)
            assert store.execute("PRAGMA integrity_check").fetchone() == ("ok",)

    def test_what_was_made_before_an_error_is_kept(self, levels, clips):
        class Stop(Exception):
            pass

        def stop(what, done, total, facts):
            raise Stop

        with pytest.raises(Stop):
            levels(progress=stop)
        assert 0 < levels()[1] < 8


class TestFloat16:
    def test_half_the_room_and_eleven_bits(self, levels, clips, tmp_path):
        exact, _ = levels()
        rounded, made = levels(cache_dtype="float16")
        assert made == 8 and rounded.dtype == np.float32  # of a file of its own
        np.testing.assert_allclose(rounded, exact, rtol=2**-11)
        assert (rounded != exact).any()
        again, made = levels(cache_dtype="float16")
        assert made == 0 and (again == rounded).all() and (levels()[0] == exact).all()
        sizes = {}
        for name in ("levels", "levels-float16"):
            with closing(sqlite3.connect(tmp_path / "cache" / f"{name}.sqlite")) as store:
                (sizes[name],) = store.execute("SELECT sum(length(data)) FROM feature").fetchone()
        assert sizes["levels"] == 2 * sizes["levels-float16"]

    def test_what_it_cannot_hold_is_refused(self, clips, tmp_path, monkeypatch):
        monkeypatch.setattr(Level, "__call__", lambda self, some: torch.full((len(some), 1, 1), 7e4))
        place = Encoding(cache_dir=tmp_path, cache_dtype="float16", workers=1)
        with pytest.raises(InputError, match="--cache-dtype float16: cannot hold 70000"):
            cached(clips, "levels", Level(), work="x", device=CPU, encoding=place, progress=None)


class Wide(Level):
    """Makes 10,000 numbers of a clip."""

    def __call__(self, clips):
        return super().__call__(clips).expand(-1, 10, 1000)


class TestLimit:
    """Rows of 40 kB; what was not used for longest goes first, whichever network it is from."""

    @pytest.fixture
    def wide(self, corpora, tmp_path, monkeypatch):
        day = [20_000]
        monkeypatch.setattr(stores.time, "time", lambda: day[0] * 86_400.0)

        def wide(first, last, name="wide", limit=None):
            network = Wide()
            place = Encoding(cache_dir=tmp_path, workers=1, cache_limit=limit)
            some = read_clips(corpora.target)[first:last]
            cached(some, name, network, work="x", device=CPU, encoding=place, progress=None)
            day[0] += 1
            return network.made

        wide.directory = tmp_path
        return wide

    def test_the_oldest_go_first(self, wide):
        assert wide(0, 8) == 8 and wide(8, 16, "other") == 8 and wide(0, 4) == 0
        assert wide(16, 20, limit=500_000) == 4  # of 20 rows, 11 fit into nine tenths of it
        assert sum(file.stat().st_size for file in wide.directory.glob("*.sqlite")) <= 500_000
        assert wide(16, 20) == 0 and wide(0, 4) == 0
        assert wide(4, 8) == 4  # used on the first day alone
        assert 0 < wide(8, 16, "other") < 8

    def test_below_the_limit_nothing_goes(self, wide):
        wide(0, 8, limit=1_000_000)
        assert wide(0, 8) == 0

    def test_a_message_of_sqlite_that_is_no_utf8(self, wide):
        """It quotes the name of a table as it lies in the file."""
        wide(0, 2)
        file = wide.directory / "wide.sqlite"
        file.write_bytes(file.read_bytes().replace(b"tablefeature", b"tablef\xd8ature"))
        (found,) = stores.cache_files(wide.directory)
        assert found.problem and stores.trim(wide.directory, 0) == 0
        with pytest.raises(InputError, match="is damaged"):
            wide(0, 2)

    @pytest.mark.parametrize("day", ["x", b"\xff", -1, 2**62, 1e308, None])
    def test_days_that_are_none_are_not_known(self, wide, day):
        wide(0, 8)
        wide(8, 12)
        with closing(sqlite3.connect(wide.directory / "wide.sqlite")) as db, db:
            some = "SELECT audio FROM feature ORDER BY rowid LIMIT 8"
            assert db.execute(f"UPDATE use SET day = ? WHERE audio IN ({some})", (day,)).rowcount == 8
        (found,) = stores.cache_files(wide.directory)
        assert found.clips == 12 and found.last_used == "2024-10-05" and not found.problem
        assert stores.trim(wide.directory, found.size // 2) >= 6
        assert wide(8, 12) == 0  # those of a known day stay

    def test_the_command(self, wide, monkeypatch):
        wide(0, 8)
        wide(0, 8, "other")
        (wide.directory / "broken.sqlite").write_bytes(b"x" * 5000)
        with closing(sqlite3.connect(wide.directory / "other.sqlite")) as earlier:
            earlier.execute("DROP TABLE about")
        monkeypatch.undo()
        found = mifuse("cache", "--cache-dir", wide.directory)
        assert found.exit_code == 0 and "size       701 kB" in found.stdout
        lines = [line.split() for line in found.stdout.splitlines()]
        assert ["wide", "fp32", "8", "348", "kB", "2024-10-04"] in lines
        assert ["other.sqlite", "-", "8", "348", "kB", "2024-10-05"] in lines
        assert "broken.sqlite: file is not a database" in found.stdout
        found = mifuse("cache", "--cache-dir", wide.directory, "--cache-limit", "0B", "--json")
        told = json.loads(found.stdout)
        assert told["removed"] == 16 and {one["clips"] for one in told["files"]} == {0, None}
        assert told["size"] < 60_000
        found = mifuse("cache", "--cache-dir", wide.directory / "none")
        assert found.exit_code == 0 and "none: no such directory; there is no cache yet" in found.stderr
        refused(mifuse("cache", "--cache-dir", wide.directory / "broken.sqlite"), 3, "expected a directory")

    def test_a_cache_in_which_another_process_writes_stays(self, wide):
        wide(0, 8)
        with closing(sqlite3.connect(wide.directory / "wide.sqlite")) as other:
            other.execute("BEGIN IMMEDIATE")
            assert stores.trim(wide.directory, 0) == 0
            other.rollback()
        assert stores.trim(wide.directory, 0) == 8


def _write(clips, place):
    caches._WRITE_EVERY_S = 0.0
    cached(
        clips,
        "levels",
        Level(),
        work="x",
        device=CPU,
        encoding=Encoding(cache_dir=place, workers=1),
        progress=None,
    )


def test_the_command_says_it_in_one_line(pipeline, corpora, tmp_path):
    made = mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target, "--out",
                  tmp_path / "s.h5", "--cache-dir", tmp_path / "cache", "--workers", "1")  # fmt: skip
    assert made.exit_code == 0, made.stderr
    told = mifuse("cache", "--cache-dir", tmp_path / "cache").stdout
    assert f"\n{Path(read_shape(pipeline.model).encoder).name}  fp32 " in told and " 24 " in told
    (file,) = (tmp_path / "cache").iterdir()
    file.write_bytes(b"x" * 5000)
    refused(
        mifuse("sample-source", "--model", pipeline.model, "--manifest", corpora.target, "--out",
               tmp_path / "t.h5", "--cache-dir", tmp_path / "cache"),
        3, str(file), "Delete it",
    )  # fmt: skip
    assert not (tmp_path / "t.h5").exists()
