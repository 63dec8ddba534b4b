import os
import subprocess
import sys
import unicodedata
from pathlib import Path

import pytest

from mifuse_cli import audio
from mifuse_cli.errors import InputError
from mifuse_cli.manifest import (
    Clip,
    Clips,
    LabelledClip,
    audio_below,
    clips_of,
    digest,
    digest_of,
    read_clips,
    read_labelled,
    scan,
)

CLASSES = ("angry", "happy", "neutral", "sad")


@pytest.fixture
def corpus(tmp_path):
    """Directory with four "audio" files, whose content no test decodes."""
    for name in ("wav/b.wav", "wav/a.wav", "wav/x/c.flac", "wav/y/d.MP3"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(name.encode())
    return tmp_path


def written(directory: Path, *lines: str, name: str = "m.csv", encoding: str = "utf-8") -> Path:
    path = directory / name
    path.write_text("\n".join(lines) + "\n", encoding=encoding)
    return path


def ids(clips: list[Clip]) -> list[str]:
    return [clip.utt_id for clip in clips]


class TestReadClips:
    def test_columns(self, corpus):
        manifest = written(
            corpus,
            "duration_s,speaker,file,emotion,sex,take",
            "1.5, s1 ,wav/b.wav,sad,f,2",
            ",,wav/a.wav,happy,,1",
        )
        assert read_clips(manifest) == [
            Clip("a", corpus / "wav/a.wav", None, None, {"sex": "", "take": "1"}),
            Clip("b", corpus / "wav/b.wav", "s1", 1.5, {"sex": "f", "take": "2"}),
        ]

    def test_paths_are_relative_to_the_csv_not_to_the_working_directory(self, corpus, monkeypatch):
        monkeypatch.chdir("/")
        manifest = written(corpus / "wav/x", "file", "../b.wav", str(corpus / "wav/a.wav"))
        assert [clip.path.read_bytes() for clip in read_clips(manifest)] == [b"wav/a.wav", b"wav/b.wav"]

    def test_byte_order_mark(self, corpus):
        manifest = written(corpus, "file", "wav/a.wav", encoding="utf-8-sig")
        assert ids(read_clips(manifest)) == ["a"]

    def test_given_ids_are_taken_and_sorted(self, corpus):
        manifest = written(corpus, "file,utt_id", "wav/a.wav,u10", "wav/b.wav,u02")
        assert [(c.utt_id, c.path.name) for c in read_clips(manifest)] == [("u02", "b.wav"), ("u10", "a.wav")]

    def test_ids_are_stems_where_unique_else_paths(self, corpus):
        (corpus / "wav/x/a.wav").touch()
        assert ids(read_clips(written(corpus, "file", "wav/b.wav", "wav/x/a.wav"))) == ["a", "b"]
        manifest = written(corpus, "file", "wav/b.wav", "wav/x/a.wav", "wav/a.wav")
        assert ids(read_clips(manifest)) == ["wav/a", "wav/b", "wav/x/a"]

    def test_a_dot_in_a_name_is_kept(self, corpus):
        (corpus / "s1.take2.wav").touch()
        assert ids(read_clips(written(corpus, "file", "s1.take2.wav"))) == ["s1.take2"]

    @pytest.mark.parametrize("labels", [("sad", "happy"), ("", "???"), ("4711", "sad")])
    def test_the_emotion_column_is_never_looked_at(self, corpus, labels):
        rows = [f"wav/{n}.wav,{label}" for n, label in zip("ab", labels, strict=True)]
        clips = read_clips(written(corpus, "file,emotion", *rows))
        assert ids(clips) == ["a", "b"]
        assert all("emotion" not in clip.extra and not hasattr(clip, "label") for clip in clips)

    @pytest.mark.parametrize(
        ("lines", "message"),
        [
            ((), r"no column 'file' \(found: nothing\)"),
            (("utt_id,path", "a,wav/a.wav"), r"no column 'file' \(found: utt_id, path\)"),
            (("file",), "a header but no clips"),
            (("file,speaker", "wav/a.wav,s1", "wav/b.wav"), "line 3: expected 2 values"),
            (("file,speaker", "wav/a.wav,s1,x"), "line 2: expected 2 values"),
            (("file,speaker", " ,s1"), "line 2: the column 'file' is empty"),
            (("file,utt_id", "wav/a.wav,"), "line 2: the column 'utt_id' is empty"),
            (("file", "wav/a.wav", "wav/b.wav", "wav/a.wav"), "1 clips stand more than once, first 'wav/a'"),
            (("file,utt_id", "wav/a.wav,u", "wav/b.wav,u"), "more than once, first 'u'"),
            (("file", "wav/a.wav", "wav/no.wav", "b.wav"), "2 of 3 audio files are missing, first .*/no.wav"),
            (("file,duration_s", "wav/a.wav,2s"), "a: duration_s '2s' is not a number"),
            (("file,duration_s", "wav/a.wav,1", "wav/b.wav,-1"), "b: duration_s '-1' is not a number"),
            (('file,"x', "wav/a.wav,1"), "cannot be read as CSV"),
            (
                ("file,take", "", "wav/a.wav,1", '"wav/', 'no.wav",2', " ,3"),
                "line 6: the column 'file' is empty",
            ),
        ],
    )
    def test_refused(self, corpus, lines, message):
        manifest = corpus / "m.csv"
        manifest.write_text("\n".join(lines))
        with pytest.raises(InputError, match=message):
            read_clips(manifest)

    def test_unreadable(self, corpus):
        with pytest.raises(InputError, match="cannot be read"):
            read_clips(corpus / "none.csv")
        (corpus / "latin.csv").write_bytes("file,speaker\nwav/a.wav,Jürgen\n".encode("latin-1"))
        with pytest.raises(InputError, match="cannot be read"):
            read_clips(corpus / "latin.csv")

    def test_audio_need_not_be_there_where_it_is_not_heard(self, corpus):
        assert ids(read_clips(written(corpus, "file", "gone/z.wav"), need_audio=False)) == ["z"]


class TestReadLabelled:
    def test_labels_are_indices_into_the_given_order(self, corpus):
        manifest = written(corpus, "file,emotion", "wav/b.wav,angry", "wav/a.wav, sad ")
        a, b = (Clip(name, corpus / f"wav/{name}.wav") for name in "ab")
        assert read_labelled(manifest, CLASSES) == [LabelledClip(a, 3), LabelledClip(b, 0)]
        assert read_labelled(manifest, ("sad", "angry")) == [LabelledClip(a, 0), LabelledClip(b, 1)]

    def test_needs_the_column(self, corpus):
        with pytest.raises(InputError, match=r"no column 'emotion' \(found: file, speaker\)"):
            read_labelled(written(corpus, "file,speaker", "wav/a.wav,s"), CLASSES)

    @pytest.mark.parametrize(
        ("label", "message"),
        [
            ("angri", "m.csv, a: unknown label 'angri', expected one of angry, .*did you mean 'angry'"),
            ("Sad", "did you mean 'sad'"),
            ("fear", "unknown label 'fear', expected one of angry, happy, neutral, sad[.] Remove"),
            ("", "has no label, expected one of"),
        ],
    )
    def test_unknown_label(self, corpus, label, message):
        with pytest.raises(InputError, match=message):
            read_labelled(written(corpus, "file,emotion", f"wav/a.wav,{label}"), CLASSES)


class TestScan:
    def test_finds_audio_below_sorted_and_agrees_with_a_manifest(self, corpus):
        (corpus / "wav/.hidden.wav").touch()
        (corpus / "wav/notes.txt").touch()
        found = scan(corpus / "wav")
        assert found == [
            Clip("a", corpus / "wav/a.wav"),
            Clip("b", corpus / "wav/b.wav"),
            Clip("c", corpus / "wav/x/c.flac"),
            Clip("d", corpus / "wav/y/d.MP3"),
        ]
        manifest = written(corpus, "file", "wav/a.wav", "wav/b.wav", "wav/x/c.flac", "wav/y/d.MP3")
        assert ids(read_clips(manifest)) == ids(found)

    def test_same_names_in_two_directories_get_their_paths(self, corpus):
        (corpus / "wav/y/c.wav").touch()
        assert ids(scan(corpus / "wav")) == ["a", "b", "x/c", "y/c", "y/d"]

    def test_one_clip_in_two_formats_is_refused(self, corpus):
        (corpus / "wav/a.flac").touch()
        with pytest.raises(InputError, match="more than once, first 'a'"):
            scan(corpus / "wav")

    def test_nothing_there(self, corpus):
        (corpus / "empty").mkdir()
        with pytest.raises(InputError, match="holds no audio"):
            scan(corpus / "empty")
        with pytest.raises(InputError, match="no such directory"):
            scan(corpus / "none")
        with pytest.raises(InputError, match="no such directory"):
            scan(corpus / "wav/a.wav")

    def test_clips_of_takes_whichever_is_given(self, corpus):
        manifest = written(corpus, "file,speaker", "wav/a.wav,s1")
        assert clips_of(manifest, None) == ([Clip("a", corpus / "wav/a.wav", "s1")], manifest)
        clips, where = clips_of(None, corpus / "wav/x")
        assert (ids(clips), where) == (["c"], corpus / "wav/x")


def read_in_a_fresh_interpreter(manifest, wav_dir) -> tuple[int, int]:
    """How many clips there are, and the most bytes held while they are read, once of three times.

    Python keeps parts of paths in a table of its own, which grows at some time.
    """
    code = (
        "import sys, tracemalloc\nfrom pathlib import Path\nfrom mifuse_cli.manifest import Clips\n"
        "manifest, wav_dir = (Path(word) if word else None for word in sys.argv[1:])\n"
        "def read(): return sum(1 for _ in Clips(manifest, wav_dir, need_audio=False))\n"
        "def peak():\n    tracemalloc.start(); read(); found = tracemalloc.get_traced_memory()[1]\n"
        "    tracemalloc.stop(); return found\n"
        "print(read(), min(peak() for _ in range(3)))"
    )
    command = [sys.executable, "-c", code, str(manifest or ""), str(wav_dir or "")]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    read, peak = map(int, done.stdout.split())
    return read, peak


class TestClips:
    def test_those_of_a_manifest_and_of_a_directory(self, corpus):
        manifest = written(corpus, "file,speaker,text", "wav/b.wav,s1,yes", "wav/x/c.flac,,no")
        clips = Clips(manifest, None)
        assert (clips.where, clips.columns, len(clips)) == (manifest, ("file", "speaker", "text"), 2)
        assert sorted(clips, key=lambda clip: clip.utt_id) == read_clips(manifest)
        clips = Clips(None, corpus / "wav")
        assert (clips.where, clips.columns, len(clips)) == (corpus / "wav", (), 4)
        assert sorted(clips, key=lambda clip: clip.utt_id) == scan(corpus / "wav")

    def test_every_iteration_reads_again(self, corpus):
        manifest = written(corpus, "file,speaker", "wav/a.wav,s1", "wav/b.wav,s2")
        clips = Clips(manifest, None)
        first, second = iter(clips), iter(clips)
        assert [next(first), *second, *first].count(next(iter(clips))) == 2
        written(corpus, "file,speaker", "wav/a.wav,s3", "wav/b.wav,s2")
        assert {clip.speaker for clip in clips} == {"s3", "s2"}
        written(corpus, "file,speaker", "wav/a.wav,s3", "wav/b.wav")
        with pytest.raises(InputError, match="line 3: expected 2 values"):
            list(clips)

    def test_one_of_the_two_is_given(self, corpus):
        for both in ((None, None), (corpus / "m.csv", corpus)):
            with pytest.raises(ValueError, match="either a manifest or a directory"):
                Clips(*both)

    def test_what_is_hidden_folders_named_like_audio_and_links_to_nothing_are_no_clips(self, corpus):
        for name in (".a/e.wav", "e.wav/f.wav", "x/.g.wav"):
            (corpus / "wav" / name).parent.mkdir(exist_ok=True)
            (corpus / "wav" / name).touch()
        (corpus / "wav/h.wav").symlink_to(corpus / "none.wav")
        (corpus / "wav/i.wav").symlink_to(corpus / "wav/a.wav")
        assert {clip.utt_id for clip in Clips(None, corpus / "wav")} == {*"abcd", "f", "i"}

    def test_links_to_directories_are_followed_but_not_in_circles(self, corpus, tmp_path):
        for name, target in {"loop": "wav", "x/up": "wav/y", "y/down": "wav/x", "far": "elsewhere"}.items():
            (corpus / "wav" / name).symlink_to(corpus / target)
        (corpus / "elsewhere").mkdir()
        (corpus / "elsewhere/z.wav").touch()
        found = sorted(audio_below(corpus / "wav"))
        assert found == ["a.wav", "b.wav", "far/z.wav", "x/c.flac", "x/up/d.MP3", "y/d.MP3", "y/down/c.flac"]

    @pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
    def test_a_closed_directory_is_not_passed_over(self, corpus):
        (corpus / "wav/x").chmod(0)
        with pytest.raises(InputError, match="wav/x: cannot be read"):
            Clips(None, corpus / "wav")
        (corpus / "wav/x").chmod(0o755)

    def test_equal_hashes_are_not_taken_for_equal_ids(self, corpus, monkeypatch):
        monkeypatch.setattr("mifuse_cli.manifest.hash", lambda utt_id: 7, raising=False)
        assert ids(scan(corpus / "wav")) == ["a", "b", "c", "d"]
        (corpus / "wav/y/c.wav").touch()
        assert ids(scan(corpus / "wav")) == ["a", "b", "x/c", "y/c", "y/d"]
        (corpus / "wav/y/c.flac").touch()
        with pytest.raises(InputError, match="1 clips stand more than once"):
            Clips(None, corpus / "wav")

    @pytest.mark.slow
    @pytest.mark.parametrize("name", ["wav/{}.wav", "{}/a.wav"])
    def test_memory_does_not_grow_with_a_manifest(self, tmp_path, name):
        count = 15_000
        manifest = written(tmp_path, "file,text", *(f"{name.format(n)},words" for n in range(count)))
        read, peak = read_in_a_fresh_interpreter(manifest, None)
        assert read == count
        assert peak < 4e6  # a list of clips is 10 MB

    def test_memory_does_not_grow_with_a_directory(self, tmp_path):
        for n in range(2_000):
            (tmp_path / f"{n}.wav").touch()
        read, peak = read_in_a_fresh_interpreter(None, tmp_path)
        assert read == 2_000 and peak < 100_000


class TestDigest:
    @pytest.fixture
    def manifest(self, corpus):
        return written(corpus, "file,speaker,emotion,take", "wav/a.wav,s1,sad,1", "wav/b.wav,s2,angry,1")

    def changed(self, manifest, old, new):
        before = digest(read_clips(manifest))
        manifest.write_text(manifest.read_text().replace(old, new))
        return digest(read_clips(manifest)) != before

    def test_changes_with_audio(self, manifest, corpus):
        before = digest(read_clips(manifest))
        (corpus / "wav/b.wav").write_bytes(b"other")
        assert digest(read_clips(manifest)) != before

    def test_changes_with_clip_and_id_but_not_with_the_speaker(self, manifest):
        assert not self.changed(manifest, "s2", "s1")
        assert self.changed(manifest, "wav/b.wav,s1,angry,1\n", "")
        before = digest([Clip("a", manifest)])
        assert digest([Clip("b", manifest)]) != before

    def test_does_not_change_with_labels_order_or_other_columns(self, manifest):
        assert not self.changed(manifest, "sad", "happy")
        assert not self.changed(manifest, ",1\n", ",2\n")
        _, *rows = manifest.read_text().splitlines(keepends=True)
        assert not self.changed(manifest, "".join(rows), "".join(rows[::-1]))

    def test_of_pairs(self, manifest):
        pairs = [(clip.utt_id, audio.file_sha256(clip.path)) for clip in read_clips(manifest)]
        assert digest_of(iter(pairs)) == digest(read_clips(manifest)) != digest_of(pairs[:1])

    def test_does_not_change_with_the_place(self, manifest, corpus, tmp_path_factory):
        moved = tmp_path_factory.mktemp("elsewhere") / "corpus"
        before = digest(read_clips(manifest))
        corpus.rename(moved)
        assert digest(read_clips(moved / manifest.name)) == before


class TestNames:
    """Names of files in other alphabets, forms and encodings."""

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_ids_are_the_same_whatever_the_form_of_accents(self, tmp_path, form):
        (tmp_path / "wav").mkdir()
        (tmp_path / "wav" / unicodedata.normalize(form, "wütend.wav")).touch()
        for other in ("NFC", "NFD"):
            manifest = written(tmp_path, "file", unicodedata.normalize(other, "wav/wütend.wav"))
            assert ids(read_clips(manifest)) == ids(scan(tmp_path / "wav")) == ["w\u00fctend"]

    def test_bytes_that_are_not_utf8_are_written_out_in_ids(self, tmp_path):
        (tmp_path / os.fsdecode(b"W\xfctend.wav")).touch()
        (clip,) = scan(tmp_path)
        assert clip.utt_id == r"W\xfctend" and clip.path.is_file()

    def test_columns_in_capitals(self, corpus):
        manifest = written(corpus, "File;Speaker;Emotion", "wav\\a.wav;s1;sad", ";;")
        assert read_clips(manifest) == [Clip("a", corpus / "wav/a.wav", "s1")]
        assert read_labelled(manifest, CLASSES)[0].label == 3

    def test_drives_of_windows(self, corpus):
        with pytest.raises(InputError, match="It is a path of a Windows machine"):
            read_clips(written(corpus, "file", r"C:\\data\\a.wav"))

    def test_what_is_passed_over(self, corpus, caplog):
        (corpus / "wav/x/e.m4p").touch(), (corpus / "wav/notes").touch()
        with caplog.at_level("INFO", "mifuse"):
            Clips(None, corpus / "wav")
        assert "1 without suffix, 1 .m4p, which are no audio that can be decoded here" in caplog.text


def test_a_zero_byte_is_named_with_its_line(tmp_path):
    (tmp_path / "m.csv").write_bytes(b"file,utt_id\na.wav,x\nb.wav,a\0b\n")
    with pytest.raises(InputError, match="line 3: holds a zero byte"):
        read_clips(tmp_path / "m.csv", need_audio=False)
