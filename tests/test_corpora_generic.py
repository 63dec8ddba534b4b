"""A CSV file or a directory with one folder for every class."""

from collections import Counter
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trees_coded
from hypothesis import given, settings
from hypothesis import strategies as st

from mifuse_cli.corpora import Utterance, find
from mifuse_cli.errors import InputError, UsageError

SHARED = Path(__file__).resolve().parent.parent.parent / "shared" / "corpora"
OURS = {"file": "path", "emotion": "label", "speaker": "who", "split": "fold"}


def read(root: Path, columns: dict[str, str] | None = None) -> list[Utterance]:
    return list(find("generic").read(root, columns))


def ids(root: Path) -> dict[str, str]:
    """Id of every file by its path from the root."""
    return {str(one.path.relative_to(root)): one.utt_id for one in read(root)}


def test_what_generic_is():
    generic = find("generic")
    assert (generic.name, generic.labels, generic.columns, generic.known) == ("generic", None, True, ())


def test_columns_of_another_name_and_a_missing_clip(tmp_path):
    table = trees_coded.generic_csv(tmp_path)
    one, two, gone = read(table, OURS)
    assert one == Utterance(
        "one", tmp_path / "clips/a/one.wav", "S1", "happy", split="train", text="Well, yes"
    )
    assert (two.path, two.label, two.split) == (tmp_path / "clips/a/two.flac", "sad", "test")
    assert (gone.utt_id, gone.label) == ("gone", "") and not gone.path.exists()


def test_every_column_is_read(tmp_path):
    row = {
        "file": "x.wav",
        "utt_id": "u1",
        "speaker": "s",
        "emotion": "awe",
        "session": "3",
        "split": "dev",
        "part": "read",
        "gender": "F",
        "text": "Oh!",
        "colour": "red",
    }
    trees_coded.wav(tmp_path / "x.wav")
    (one,) = read(trees_coded.write_rows(tmp_path / "all.csv", [row]))
    assert one == Utterance("u1", tmp_path / "x.wav", "s", "awe", "3", "dev", "read", "female", "Oh!")


def test_tabs_by_suffix_and_paths_from_elsewhere(tmp_path):
    there = trees_coded.wav(tmp_path / "there/a.wav")
    table = trees_coded.text(
        tmp_path / "here/t.TSV", "file\ttext", f"{there}\tone, two", "../there/a.wav \tthree"
    )
    first, second = read(table)
    assert (first.path, first.text, second.text) == (there, "one, two", "three")
    assert second.path.samefile(there)


def test_ids_of_a_table_are_those_of_a_manifest(tmp_path):
    lines = ["s1/a.wav", "s1/b.wav"]
    table = trees_coded.text(tmp_path / "t.csv", "file", *lines)
    assert [one.utt_id for one in read(table)] == ["a", "b"]
    trees_coded.text(table, "file", *lines, "s2/a.wav")
    assert [one.utt_id for one in read(table)] == ["s1/a", "s1/b", "s2/a"]


@pytest.mark.parametrize(
    ("lines", "columns", "message"),
    [
        (
            ["path,label", "a.wav,sad"],
            {},
            r"no column 'file' \(found: path, label\).*--columns, as file=NAME",
        ),
        (
            ["file,label", "a.wav,sad"],
            {"emotion": "mood"},
            r"no column 'mood'.*--columns, as file=NAME,emotion",
        ),
        (["file:emotion", "a.wav:sad"], {}, r"no column 'file' \(found: file:emotion\)"),
        ([], {}, r"no column 'file' \(found: nothing\)"),
        (["file,emotion", "a.wav,sad,S1"], {}, "line 2: expected 2 values, one a column, found 3"),
        (["file,emotion", "a.wav,sad", " ,sad"], {}, "line 3: the column 'file' is empty"),
        (["file,emotion", '"a.wav" x,sad'], {}, "cannot be read as CSV .*line 2"),
    ],
)
def test_a_table_that_is_not_one(tmp_path, lines, columns, message):
    table = trees_coded.text(tmp_path / "t.csv", *lines)
    with pytest.raises(InputError, match=message):
        read(table, columns)


def test_a_table_that_cannot_be_read(tmp_path):
    with pytest.raises(InputError, match=r"gone\.csv: cannot be read .*No such file"):
        read(tmp_path / "gone.csv")
    with pytest.raises(InputError, match="is a WAV file; expected a table"):
        read(trees_coded.wav(tmp_path / "a.wav"))


def test_columns_that_are_not_ours(tmp_path):
    with pytest.raises(UsageError, match="--columns label=mood: expected one of file, utt_id"):
        read(trees_coded.generic_csv(tmp_path), {"label": "mood"})
    with pytest.raises(UsageError, match="for a CSV file"):
        read(trees_coded.generic_folders(tmp_path / "folders"), {"emotion": "label"})


def test_folders_are_classes(tmp_path):
    root = trees_coded.generic_folders(tmp_path)
    found = {str(one.path.relative_to(root)): (one.label, one.speaker) for one in read(root)}
    assert found == {
        "Angry/s1/001.wav": ("angry", ""),
        "Angry/s2/001.wav": ("angry", ""),
        "Happy/s1/001.wav": ("happy", ""),
        "Happy/s1/002.flac": ("happy", ""),
        "sad/003.wav": ("sad", ""),
    }


def test_ids_are_stems_then_paths_then_numbers(tmp_path):
    once = trees_coded.generic_folders(tmp_path / "once", "Angry/s1/a.wav", "sad/b.wav")
    assert ids(once) == {"Angry/s1/a.wav": "a", "sad/b.wav": "b"}
    found = ids(trees_coded.generic_folders(tmp_path / "repeated"))
    shared = {found.pop("Angry/s1/001.wav"), found.pop("Happy/s1/001.wav")}
    assert shared == {"s1/001-1", "s1/001-2"}
    assert found == {"Angry/s2/001.wav": "s2/001", "Happy/s1/002.flac": "s1/002", "sad/003.wav": "003"}


def test_numbers_pass_over_names_that_are_taken(tmp_path):
    found = ids(trees_coded.generic_folders(tmp_path, "Angry/a.wav", "sad/a.wav", "sad/a-1.wav"))
    assert found["sad/a-1.wav"] == "a-1"
    assert {found["Angry/a.wav"], found["sad/a.wav"]} == {"a-2", "a-3"}


def test_one_clip_in_two_formats_is_left_to_the_caller(tmp_path):
    found = ids(trees_coded.generic_folders(tmp_path, "Angry/a.wav", "Angry/a.flac", "sad/a.wav"))
    assert found["Angry/a.wav"] == found["Angry/a.flac"] != found["sad/a.wav"]


def test_numbers_do_not_tell_the_class(tmp_path):
    for n in range(60):
        for folder in ("angry", "sad"):
            path = tmp_path / folder / f"{n}.wav"
            path.parent.mkdir(exist_ok=True)
            path.touch()
    first = Counter(name.split("/")[0] for name, utt_id in ids(tmp_path).items() if utt_id.endswith("-1"))
    assert sum(first.values()) == 60 and min(first["angry"], first["sad"]) >= 15


stems = st.sampled_from(["a", "b", "a-1", "a-2", "s1/a", "s1/b", "s1/a-1"])
folders = st.sampled_from(["angry", "Happy", "sad", "calm"])


@settings(max_examples=60, deadline=None)
@given(planted=st.sets(st.tuples(folders, stems), min_size=1), names=st.permutations(["u", "v", "w", "x"]))
def test_ids_are_unique_and_survive_new_names_of_the_classes(planted, names):
    renamed = dict(zip(["angry", "Happy", "sad", "calm"], names, strict=True))
    with TemporaryDirectory() as directory:
        old, new = Path(directory, "old"), Path(directory, "new")
        for size, (folder, stem) in enumerate(sorted(planted)):
            for path in (old / folder / f"{stem}.wav", new / renamed[folder] / f"{stem}.wav"):
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(bytes(size))
        before, after = ids(old), ids(new)
        assert {one.label for one in read(old)} == {folder.lower() for folder, _ in planted}
    assert len(set(before.values())) == len(before) == len(planted)
    assert {
        f"{renamed[name.split('/')[0]]}/{name.split('/', 1)[1]}": i for name, i in before.items()
    } == after


def test_a_directory_without_classes(tmp_path):
    with pytest.raises(InputError, match=r"holds no audio\. Expected one folder for every class"):
        read(tmp_path)
    trees_coded.wav(tmp_path / "b.wav")
    trees_coded.wav(trees_coded.generic_folders(tmp_path) / "a.wav")
    with pytest.raises(
        InputError, match=r"holds 2 audio files outside of any folder, first a\.wav\. Expected"
    ):
        read(tmp_path)


@pytest.mark.skipif(not (SHARED / "emodb").is_dir(), reason="needs ../shared/corpora/emodb")
def test_a_real_table_is_read_as_it_is():
    table = SHARED / "emodb" / "metadata.csv"
    found = read(table, {"emotion": "original_label"})
    assert len(found) == table.read_text().count("\n") - 1 and all(one.path for one in found)
    assert all(one.utt_id[5] == one.label and one.speaker == f"emodb_{one.utt_id[:2]}" for one in found)
