"""Kaldi data directories: what is written keeps all rules, and every broken rule is named."""

import os
import shlex
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mifuse_cli.corpora import Utterance, find
from mifuse_cli.errors import InputError
from mifuse_cli.kaldi import FILES, Entry, check, names, read, write

FILE = st.sampled_from(["a.wav", "b c.WAV", "it's.flac", "ü.mp3"])


def faults(directory):
    return [fault.text for fault in check(directory)]


def put(directory, **files):
    """Replace files of a directory; a dot in a name is written as two underscores, None removes."""
    for name, text in files.items():
        path = directory / name.replace("__", ".")
        if text is None:
            path.unlink()
        else:
            path.write_bytes(text if isinstance(text, bytes) else text.encode())


@pytest.fixture
def directory(tmp_path):
    """Two utterances of speaker a, one of b, one of nobody, with everything that there may be."""
    for name in ("1.wav", "2.wav", "3.wav", "4.wav"):
        (tmp_path / name).touch()
    write(
        tmp_path / "data",
        [
            Entry("2", tmp_path / "2.wav", "b", "sad", "male", "no <s> #0 way"),
            Entry("1", tmp_path / "1.wav", "a", "angry", "female"),
            Entry("3", tmp_path / "3.wav", "a", "happy", "female", "take\u00a0 #0s"),
            Entry("z-4", tmp_path / "4.wav", "", "", "female"),
        ],
    )
    return tmp_path / "data"


class TestWrite:
    def test_files_and_their_lines(self, directory):
        at = directory.parent
        assert {path.name: path.read_text() for path in directory.iterdir()} == {
            "wav.scp": f"a-1 {at}/1.wav\na-3 {at}/3.wav\nb-2 {at}/2.wav\nz_4 {at}/4.wav\n",
            "utt2spk": "a-1 a\na-3 a\nb-2 b\nz_4 z_4\n",
            "spk2utt": "a a-1 a-3\nb b-2\nz_4 z_4\n",
            "utt2emo": "a-1 angry\na-3 happy\nb-2 sad\n",
            "text": "a-1\na-3 take #0s\nb-2 no way\nz_4\n",
            "spk2gender": "a f\nb m\nz_4 f\n",
        }
        assert faults(directory) == []

    def test_what_nobody_knows_has_no_file(self, tmp_path):
        write(
            tmp_path, [Entry("1", None, "a", gender="male", command="cat x"), Entry("2", None, command="x")]
        )
        assert {path.name for path in tmp_path.iterdir()} == set(FILES)

    def test_other_formats_are_commands_whose_paths_are_quoted(self, tmp_path):
        paths = [tmp_path / name for name in ("it's; a.flac", "b $c.ogg", "d.MP3")]
        write(tmp_path / "data", [Entry(str(number), path, "s") for number, path in enumerate(paths)])
        lines = (tmp_path / "data/wav.scp").read_text().splitlines()
        assert all(line.endswith(" |") for line in lines)
        commands = [shlex.split(line.partition(" ")[2].removesuffix("|")) for line in lines]
        assert [command[0] for command in commands] == ["flac", "ffmpeg", "ffmpeg"]
        assert all(str(path) in command for path, command in zip(paths, commands, strict=True))

    def test_relative_paths_become_absolute(self, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        write(Path("data"), [Entry("1", Path("x/1.wav"), "s")])
        assert (tmp_path / "data/wav.scp").read_text() == f"s-1 {tmp_path}/x/1.wav\n"

    @pytest.mark.parametrize(
        ("first", "second", "message"),
        [
            (Entry("1", Path("1.wav"), "a b"), Entry("2", Path("2.wav"), "a_b"), "speaker 'a b' and speaker 'a_b'"),
            (Entry("1 x", Path("1.wav"), "a"), Entry("1_x", Path("2.wav"), "a"), "'1 x' of 'a' and utterance '1_x'"),
            (Entry("1", Path("1.wav"), "a"), Entry("1", Path("2.wav"), "a"), "'1' of 'a' and utterance '1'"),
            (Entry("1", Path("1.wav"), "a"), Entry("a", Path("2.wav")), "speaker 'a' and utterance 'a' of no"),
            (Entry("1", Path("1.wav"), "a", gender="male"), Entry("2", Path("2.wav"), "a"), "not of one gender"),
            (Entry("1", Path("1.wav"), "a"), Entry("2", Path("2\n.wav"), "a"), "line break"),
            (Entry("1", Path("1.wav"), "a"), Entry("2", Path("\udcff.wav"), "a"), "UTF-8"),
        ],
    )  # fmt: skip
    def test_what_cannot_be_told_apart_or_written_is_refused(self, tmp_path, first, second, message):
        with pytest.raises(InputError, match=message):
            write(tmp_path / "data", [first, second])
        assert not (tmp_path / "data").exists()


NAME = st.text(st.sampled_from("ab01AZ.-_ \t/üé中\u00a0\u0301"), min_size=1, max_size=6)
ENTRY = st.builds(
    Entry,
    utt_id=NAME,
    path=st.builds(Path, FILE),
    speaker=st.one_of(st.just(""), NAME),
    emotion=st.sampled_from(["", "angry", "very sad"]),
    text=st.one_of(st.text(max_size=12), st.lists(st.text("aé1", max_size=3), max_size=3).map(" ".join)),
)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return tmp_path_factory.mktemp("kaldi")


class TestRoundTrip:
    @given(entries=st.lists(ENTRY, min_size=1, max_size=8))
    @settings(max_examples=100, deadline=None)
    def test_written_is_clean_and_reads_as_it_was(self, place, entries):
        directory = place / f"{len(os.listdir(place))}"
        new = [names(one.utt_id, one.speaker) for one in entries]
        try:
            write(directory, entries)
        except InputError as error:
            voices = {one.speaker or (one.utt_id,) for one in entries}
            assert "both would be" in str(error)
            assert len(set(new)) < len(entries) or len({speaker for _, speaker in new}) < len(voices)
            return
        assert [text for text in faults(directory) if "audio files are missing" not in text] == []
        found = {one.utt_id: one for one in read(directory)}
        assert list(found) == sorted((utt_id for utt_id, _ in new), key=str.encode)
        for one, (utt_id, speaker) in zip(entries, new, strict=True):
            back, path = found[utt_id], one.path.absolute()
            assert (back.speaker, back.emotion) == (speaker if one.speaker else "", one.emotion)
            assert (
                back.path == path if path.suffix.lower() == ".wav" else str(path) in shlex.split(back.command)
            )
            if one.text.replace(" ", "").isalnum():
                assert back.text == " ".join(one.text.split())

    @given(st.lists(st.tuples(NAME, NAME), min_size=2, max_size=12))
    def test_utterances_in_order_are_speakers_in_order(self, pairs):
        both = sorted({names(utt_id, speaker) for utt_id, speaker in pairs})
        assert both == sorted(both, key=lambda pair: (pair[1], pair[0]))


class TestCheck:
    @pytest.mark.parametrize(
        ("files", "expected"),
        [
            ({"wav__scp": None}, "wav.scp: no such file"),
            ({"utt2spk": None}, "utt2spk: no such file"),
            ({"spk2utt": None}, "spk2utt: no such file"),
            ({"utt2spk": ""}, "utt2spk: is empty"),
            ({"utt2spk": "a-1 a\na-3 a x\nb-2 b\nz_4 z_4\n"}, "utt2spk: expected a name and one speaker in line 2"),
            ({"utt2spk": "a-1 a\n\na-3 a\nb-2 b\nz_4 z_4\n"}, "utt2spk: expected a name and one speaker in line 2"),
            ({"utt2spk": "a-1 a\na-3 a\nb-2 b\nz_4 z_4"}, "utt2spk: its last line does not end with a line feed"),
            ({"utt2spk": "a-1 a\r\na-3 a\nb-2 b\nz_4 z_4\n"}, "utt2spk: has carriage returns"),
            ({"utt2spk": "a-1 a\na-1 a\na-3 a\nb-2 b\nz_4 z_4\n"}, "utt2spk: more than one line for a-1"),
            ({"utt2spk": "a-3 a\na-1 a\nb-2 b\nz_4 z_4\n"}, "utt2spk: is not sorted, a-1 comes too late"),
            ({"utt2spk": "a-1 c\na-3 a\nb-2 b\nz_4 z_4\n"}, "utt2spk: is not sorted by speaker, first a-1 of c"),
            ({"utt2spk": "a-1 a\na-3 a\nb-2 b\n"}, "wav.scp: has recordings that utt2spk has not: z_4"),
            ({"wav__scp": "a-1 x |\na-3 x |\nb-2 x |\n"}, "wav.scp: lacks recordings that utt2spk has: z_4"),
            ({"wav__scp": "a-1 ~/x.wav\n"}, "wav.scp: expected a name and audio by a path without ~ in line 1"),
            ({"wav__scp": "a-1\n"}, "wav.scp: expected a name and audio by a path without ~ in line 1"),
            ({"wav__scp": "a-1 /no.wav\n"}, "wav.scp: 1 audio files are missing: /no.wav"),
            ({"wav__scp": "a-1 /no.ark:12\n"}, "wav.scp: 1 audio files are missing: /no.ark"),
            ({"wav__scp": b"a-1 \xff |\n"}, "wav.scp: is not UTF-8 in line 1"),
            ({"spk2utt": "a a-1\nb b-2 a-3\nz_4 z_4\n"}, "spk2utt: disagrees with utt2spk on a-3, a-3"),
            ({"spk2utt": "a a-3 a-1\nb b-2\nz_4 z_4\n"}, "spk2utt: utterances are not sorted or are repeated, those"),
            ({"spk2utt": "a a-1 a-3\nb b-2\nz_4\n"}, "spk2utt: expected a name and utterances in line 3"),
            ({"text": "a-1 x\nb-2 x\nz_4 x\n"}, "text: lacks utterances that utt2spk has: a-3"),
            ({"text": "a-1 no </s>.\n"}, "text: holds </s>, which Kaldi reserves"),
            ({"text": "a-1 no\u00a0no\n"}, r"text: holds white space other than blanks and tabs: '\xa0'"),
            ({"utt2emo": "a-1 sad\nq sad\n"}, "utt2emo: has utterances that utt2spk has not: q"),
            ({"utt2emo": "a-1\n"}, "utt2emo: expected a name and an emotion in line 1"),
            ({"spk2gender": "a f\nb w\nz_4 f\n"}, "spk2gender: expected a name and m or f in line 2"),
            ({"spk2gender": "a f\n"}, "spk2gender: lacks speakers that utt2spk has: b, z_4"),
            ({"spk2warp": "a 1.0\nb 1.5\nz_4 1\n"}, "spk2warp: expected a name and a number between 0.5 and 1.5"),
            ({"utt2dur": "a-1 1\na-3 0\nb-2 1\nz_4 x\n"}, "utt2dur: expected a name and a number above 0 in line 2, 4"),
            ({"utt2num_frames": "a-1 1.5\n"}, "utt2num_frames: expected a name and a whole number above 0"),
            ({"feats__scp": "a-1 x.ark:1\n"}, "feats.scp: lacks utterances that utt2spk has: a-3, b-2, z_4"),
            ({"cmvn__scp": "q x\n"}, "cmvn.scp: has speakers that utt2spk has not: q"),
            ({"reco2file_and_channel": "a-1 x C\n"}, "reco2file_and_channel: expected a name and a file and A or B"),
            ({"segments": "a-1 r 1 1\n"}, "segments: expected a name and a recording, a start and a later end in"),
            ({"segments": "a-1 r 0 1\n"}, "wav.scp: lacks recordings that segments has: r"),
        ],
    )  # fmt: skip
    def test_every_broken_rule_is_named(self, directory, files, expected):
        put(directory, **files)
        assert [text for text in faults(directory) if text.startswith(expected)], faults(directory)

    def test_many_are_counted(self, directory):
        put(directory, wav__scp="".join(f"u{number:02} /no/{number}.wav\n" for number in range(25)))
        missing = faults(directory)[-1]
        assert missing.startswith("wav.scp: 25 audio files are missing: ") and missing.endswith(
            " and 15 more"
        )

    def test_no_directory(self, tmp_path):
        assert faults(tmp_path / "none") == ["no such directory"]


class TestRead:
    def test_as_a_corpus(self, directory):
        at = directory.parent
        found = list(find("kaldi").read(directory))
        assert found == [
            Utterance("a-1", at / "1.wav", "a", "angry", gender="female"),
            Utterance("a-3", at / "3.wav", "a", "happy", gender="female", text="take #0s"),
            Utterance("b-2", at / "2.wav", "b", "sad", gender="male", text="no way"),
            Utterance("z_4", at / "4.wav", gender="female"),
        ]

    def test_commands_are_given_not_run_and_can_be_run(self, directory):
        put(directory, wav__scp="a-1 cat '/x y' | sox - -|\na-3 printf 'a b' |\nb-2 x|\nz_4 y |\n")
        found = {one.utt_id: (one.path, one.command) for one in find("kaldi").read(directory)}
        assert found["a-1"] == (None, "cat '/x y' | sox - -")
        assert subprocess.run(["sh", "-c", found["a-3"][1]], capture_output=True, check=True).stdout == b"a b"

    def test_relative_paths_start_at_the_current_directory(self, directory, monkeypatch):
        put(directory, wav__scp="a-1 1.wav\na-3 3.wav\nb-2 no.wav\nz_4 4.wav\n")
        with pytest.raises(InputError, match=r"none of 4 audio files is there.*that the command is run in"):
            list(find("kaldi").read(directory))
        monkeypatch.chdir(directory.parent)
        paths = [one.path for one in find("kaldi").read(directory)]
        assert paths == [
            directory.parent / "1.wav",
            directory.parent / "3.wav",
            directory.parent / "no.wav",
            directory.parent / "4.wav",
        ]

    def test_order_is_no_obstacle(self, directory):
        put(directory, utt2spk="b-2 b\na-3 a\na-1 a\nz_4 z_4\n", spk2utt=None)
        assert faults(directory) and [one.speaker for one in read(directory)] == ["a", "a", "b", ""]

    def test_segments_are_parts_of_recordings(self, directory):
        at = directory.parent
        put(
            directory,
            segments="a-1 r 0 0.5\na-3 r 0.5 1.25\nb-2 r 1.25 -1\nz_4 s 0 2 1\n",
            wav__scp=f"r {at}/1.wav\ns {at}/2.wav\n",
        )
        found = {one.utt_id: (one.path.name, *one.bounds) for one in find("kaldi").read(directory)}
        assert found == {
            "a-1": ("1.wav", 0, 0.5, None),
            "a-3": ("1.wav", 0.5, 1.25, None),
            "b-2": ("1.wav", 1.25, None, None),
            "z_4": ("2.wav", 0, 2, 1),
        }

    @pytest.mark.parametrize(
        ("files", "message"),
        [
            ({"utt2spk": None}, "utt2spk: no such file"),
            ({"utt2spk": "a-1 a\na-1 b\na-3 a\nb-2 b\nz_4 z_4\n"}, "more than one line for a-1"),
            ({"spk2utt": "a a-1\nb b-2 a-3\nz_4 z_4\n"}, "disagrees with utt2spk on a-3"),
            ({"utt2emo": "a-1 sad\na-1 angry\n"}, "utt2emo: more than one line for a-1"),
            (
                {"wav__scp": "a-1 x.ark:9\na-3 x\nb-2 x\nz_4 x.ark:20\n"},
                "inside archives, that of a-1, z_4; exp",
            ),
            (
                {"segments": "a-1 r 0 1\na-3 r 1 0.5\nb-2 r 2 3\nz_4 r 3 4\n", "wav__scp": "r x.wav\n"},
                "a start and a later end in line 2",
            ),
        ],
    )
    def test_what_is_ambiguous_is_refused(self, directory, files, message):
        put(directory, **files)
        with pytest.raises(InputError, match=message):
            read(directory)
