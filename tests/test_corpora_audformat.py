"""Databases in audformat: read from CSV and Parquet, never unpickled, nothing in them run."""

import sys
from itertools import pairwise

import pytest

from mifuse_cli.corpora import Utterance, find
from mifuse_cli.errors import DependencyError, InputError, UsageError

HEADER = """
name: mine
usage: unrestricted
schemes:
  emotion: {dtype: str, labels: [anger, sadness]}
tables:
  emotion:
    type: filewise
    columns:
      felt: {scheme_id: emotion}
      felt.confidence: {scheme_id: confidence}
  files:
    type: filewise
    columns: {speaker: {scheme_id: speaker}}
  test:
    type: filewise
    split_id: test
  turns:
    type: segmented
    columns: {emotion: {scheme_id: emotion}}
"""


@pytest.fixture
def root(tmp_path):
    """Two files in four tables."""
    (tmp_path / "db.yaml").write_text(HEADER)
    (tmp_path / "db.emotion.csv").write_text("file,felt,felt.confidence\nwav/b.wav,anger,0.9\nwav/a.wav,,\n")
    (tmp_path / "db.files.csv").write_text("file,speaker\nwav/a.wav,3\nwav/b.wav,8\n")
    (tmp_path / "db.test.csv").write_text("file\nwav/a.wav\n")
    (tmp_path / "wav").mkdir()
    (tmp_path / "wav/b.wav").touch()
    return tmp_path


def read(root, **columns):
    return list(find("audformat").read(root, columns))


def header(root, *changes):
    text = HEADER
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    (root / "db.yaml").write_text(text)


class TestRead:
    def test_from_csv(self, root):
        expected = [
            Utterance("b", root / "wav/b.wav", "8", "anger"),
            Utterance("a", None, "3", split="test"),
        ]
        assert read(root) == read(root, emotion="emotion.felt") == expected

    def test_from_parquet(self, root):
        pyarrow = pytest.importorskip("pyarrow")
        from pyarrow import parquet

        expected = read(root)
        tables = {
            "emotion": {"file": ["wav/b.wav", "wav/a.wav"], "felt": ["anger", None]},
            "files": {"file": ["wav/a.wav", "wav/b.wav"], "speaker": [3, 8]},
            "test": {"file": ["wav/a.wav"]},
        }
        for name, columns in tables.items():
            (root / f"db.{name}.csv").unlink()
            parquet.write_table(pyarrow.table(columns), root / f"db.{name}.parquet")
        assert read(root) == expected
        (root / "db.files.parquet").write_bytes(b"PAR1")
        with pytest.raises(InputError, match=r"db\.files\.parquet: cannot be read as a table"):
            read(root)

    @pytest.mark.parametrize("storage", ["csv", "parquet"])
    def test_as_the_package_writes_it(self, tmp_path, storage):
        audformat = pytest.importorskip("audformat")
        database = audformat.Database("mine")
        database.schemes["emotion"] = audformat.Scheme(labels=["anger", "sadness"])
        database.schemes["speaker"] = audformat.Scheme(labels={3: {"gender": "male"}, 8: {}})
        database["emotion"] = audformat.Table(audformat.filewise_index(["x/a.wav", "y/a.wav"]))
        for name, values in (("emotion", ["sadness", None]), ("speaker", [8, 3])):
            database["emotion"][name] = audformat.Column(scheme_id=name)
            database["emotion"][name].set(values)
        database.save(str(tmp_path), storage_format=storage)
        found = [(one.utt_id, one.speaker, one.label) for one in read(tmp_path)]
        assert found == [("x/a", "8", "sadness"), ("y/a", "3", "")]


SPLIT = """
splits: {train: {type: train}, test: {type: test}}
tables:
  emotion.train: {type: filewise, split_id: train, columns: {emotion: {scheme_id: emotion}}}
  emotion.test: {type: filewise, columns: {emotion: {scheme_id: emotion}}}
  files: {type: filewise, columns: {speaker: {}}}
"""


class TestTables:
    """Tables of a split each, and of parts of files."""

    def test_tables_of_splits_are_taken_together(self, root):
        (root / "db.yaml").write_text(SPLIT)
        (root / "db.emotion.train.csv").write_text("file,emotion\nwav/a.wav,anger\n")
        (root / "db.emotion.test.csv").write_text("file,emotion\nwav/b.wav,sadness\n")
        assert read(root) == [
            Utterance("a", None, "3", "anger", split="train"),
            Utterance("b", root / "wav/b.wav", "8", "sadness", split="test"),
        ]
        (root / "db.emotion.test.csv").write_text("file,emotion\nwav/b.wav,sadness\nwav/a.wav,anger\n")
        with pytest.raises(UsageError, match=r"--columns emotion=emotion\.train\.emotion or emotion\.test"):
            read(root)
        assert len(read(root, emotion="emotion.train.emotion")) == 1

    def test_segments_are_clips_and_those_of_a_whole_file_the_file(self, root):
        header(
            root, ("type: filewise\n    columns:\n      felt", "type: segmented\n    columns:\n      felt")
        )
        (root / "db.emotion.csv").write_text(
            "file,start,end,felt\n"
            "wav/b.wav,0 days,,anger\n"
            "wav/a.wav,0 days 00:00:00.5,0 days 00:00:01.25,sadness\n"
            "wav/a.wav,0 days 00:00:02,NaT,anger\n"
        )
        found = read(root, emotion="emotion.felt")
        assert [(one.utt_id, one.speaker, *one.bounds[:2], one.split) for one in found] == [
            ("b", "8", 0.0, None, ""),
            ("a_0.5-1.25", "3", 0.5, 1.25, "test"),
            ("a_2-", "3", 2.0, None, "test"),
        ]


class TestRefused:
    def test_without_pyarrow(self, root, monkeypatch):
        monkeypatch.setitem(sys.modules, "pyarrow", None)
        (root / "db.files.csv").rename(root / "db.files.parquet")
        with pytest.raises(DependencyError, match=r"pip install 'mifuse\[audformat\]'"):
            read(root)

    def test_pickled_tables_alone(self, root):
        (root / "db.files.csv").rename(root / "db.files.pkl")
        with pytest.raises(InputError, match=r"db\.files: is there neither as \.csv nor as \.parquet"):
            read(root)

    def test_headers_that_would_run_code(self, root):
        mark = root / "ran"
        (root / "db.yaml").write_text(f"tables: !!python/object/apply:pathlib.Path.touch [{mark}]\n")
        with pytest.raises(InputError, match=r"db\.yaml: cannot be read as the header"):
            read(root)
        assert not mark.exists()

    @pytest.mark.parametrize(
        "text",
        [
            "",
            "[]",
            "tables:",
            "tables: {x: 3}",
            "tables: [",
            "name: x",
            "tables: {x: {columns: [emotion]}}",
            "tables: {x: {columns: {emotion: felt}}}",
            "tables: {x: {split_id: [test]}}",
            "tables: {x: {}}\nsplits: 3",
            "tables: &a {x: *a}",
            "tables: !!timestamp x",
            f"tables: {'[' * 2000}",
            "a: &a [x, x, x, x, x, x, x, x, x, x]\n"
            + "".join(f"{b}: &{b} [{', '.join([f'*{a}'] * 10)}]\n" for a, b in pairwise("abcdefgh"))
            + "tables: {x: {columns: {emotion: *h}}}",
        ],
    )
    def test_headers_that_are_none(self, root, text):
        (root / "db.yaml").write_text(text)
        with pytest.raises(InputError, match=r"db\.yaml: cannot be read as the header"):
            read(root)

    def test_tables_named_by_numbers(self, root):
        header(root, ("  emotion:\n    type", "  7:\n    type"))
        (root / "db.emotion.csv").rename(root / "db.7.csv")
        assert {one.label for one in read(root, emotion="7.felt")} == {"anger", ""}

    @pytest.mark.parametrize("content", [b"", b"PAR1", b"PAR1" + b"\xff" * 40 + b"PAR1"])
    def test_parquet_that_is_none(self, root, content):
        (root / "db.files.csv").unlink()
        (root / "db.files.parquet").write_bytes(content)
        with pytest.raises(InputError, match=r"db\.files\.parquet: cannot be read as a table"):
            read(root)

    def test_no_database(self, tmp_path):
        with pytest.raises(InputError, match=r"directory that audb\.load_to wrote"):
            read(tmp_path)

    def test_several_tables(self, root):
        header(root, ("type: segmented", "type: filewise"))
        with pytest.raises(UsageError, match=r"--columns emotion=emotion\.felt or turns\.emotion"):
            read(root)
        assert len(read(root, emotion="emotion.felt")) == 2

    def test_parts_of_files(self, root):
        header(
            root, ("type: filewise\n    columns:\n      felt", "type: segmented\n    columns:\n      felt")
        )
        with pytest.raises(UsageError, match=r"--columns emotion=emotion\.felt or turns\.emotion"):
            read(root)
        with pytest.raises(InputError, match=r"db\.emotion\.csv: has no column 'start' or 'end'"):
            read(root, emotion="emotion.felt")

    def test_no_emotions(self, root):
        header(root, ("scheme_id: emotion", "scheme_id: mood"), ("{emotion:", "{mood:"))
        with pytest.raises(InputError, match="no column is called emotion"):
            read(root)
        assert read(root, emotion="emotion.felt")[0].label == "anger"

    @pytest.mark.parametrize("columns", [{"emotion": "files.felt"}, {"speaker": "files.speaker"}])
    def test_columns_that_are_not_there(self, root, columns):
        with pytest.raises(UsageError, match=r"expected (one of emotion\.felt|emotion=TABLE)"):
            read(root, **columns)
