"""prepare: from an unpacked corpus to manifest, labels, speakers and summary."""

import csv
import json
import os
import re
import shutil
import unicodedata

import numpy as np
import pytest
import soundfile
from conftest import CLASSES, RATE, mifuse, refused, tone

import mifuse_cli as m
from mifuse_cli import artifacts, kaldi
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.manifest import read_clips, read_labelled

NAMES = [
    f"{speaker}{text}{letter}a" for speaker in ("03", "08") for text in ("a01", "b02") for letter in "WFNTL"
]


def sound(path, seconds=0.2):
    path.parent.mkdir(parents=True, exist_ok=True)
    soundfile.write(path, tone(220, 0.3, np.random.default_rng(list(path.name.encode())), seconds), RATE)


@pytest.fixture
def emodb(tmp_path):
    """A copy of EMO-DB with two speakers, two texts and five emotions, one of them outside the four classes."""
    for name in NAMES:
        sound(tmp_path / "emodb" / "wav" / f"{name}.wav")
    return tmp_path / "emodb"


def prepare(root, out, corpus="emodb", **options):
    return m.prepare(m.PrepareConfig(corpus=corpus, root=root, out=out, **options))


def rows(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


class TestFiles:
    def test_labels_are_in_their_own_file_alone(self, emodb, tmp_path):
        result = prepare(emodb, tmp_path / "out")
        manifest, labels = rows(tmp_path / "out/manifest.csv"), rows(tmp_path / "out/labels.csv")
        assert list(manifest[0]) == ["utt_id", "file", "speaker", "duration_s"]
        assert [row["utt_id"] for row in manifest] == sorted(n for n in NAMES if n[5] != "L")
        assert {row["emotion"] for row in labels} == set(CLASSES)
        assert [row["utt_id"] for row in labels] == [row["utt_id"] for row in manifest]
        assert labels[0] | {"emotion": "", "original_label": ""} == manifest[0] | {
            "emotion": "", "original_label": "",
        }  # fmt: skip
        assert rows(tmp_path / "out/speakers.csv") == [
            {"speaker": f"emodb_{name}", "gender": gender, "clips": "8"}
            for name, gender in (("03", "male"), ("08", "female"))
        ]
        assert (result.clips, result.speakers, result.left_out) == (16, 2, {"bored": 4})
        assert result.classes == dict.fromkeys(CLASSES, 4)
        assert result.hours == pytest.approx(16 * 0.2 / 3600)

    def test_they_are_what_the_commands_read(self, emodb, tmp_path):
        prepare(emodb, tmp_path / "out")
        clips = read_clips(tmp_path / "out/manifest.csv")
        labelled = read_labelled(tmp_path / "out/labels.csv", CLASSES)
        assert clips == [one.clip for one in labelled] or [c.utt_id for c in clips] == [
            one.clip.utt_id for one in labelled
        ]
        assert {c.path.parent for c in clips} == {emodb / "wav"}
        assert clips[0].duration_s == pytest.approx(0.2)
        letters = {"W": "angry", "F": "happy", "N": "neutral", "T": "sad"}
        assert {one.clip.utt_id: CLASSES[one.label] for one in labelled} == {
            name: letters[name[5]] for name in NAMES if name[5] in letters
        }

    def test_summary_says_how_it_was_made(self, emodb, tmp_path):
        result = prepare(emodb, tmp_path / "out")
        summary = json.loads((tmp_path / "out/summary.json").read_text())
        assert summary["config"]["corpus"] == "emodb" and summary["versions"]["mifuse"]
        assert any("differs from the published counts" in note for note in result.notes)
        assert {row["what"]: row["found"] for row in result.published}["bored"] == 4

    def test_relative_roots_are_found_from_anywhere(self, emodb, tmp_path, monkeypatch):
        monkeypatch.chdir(tmp_path)
        prepare("emodb", "out")
        monkeypatch.chdir("/")
        assert all(clip.path.is_file() for clip in read_clips(tmp_path / "out/manifest.csv"))

    def test_generic_keeps_its_own_speaker_names(self, tmp_path):
        sound(tmp_path / "x.wav"), sound(tmp_path / "y.wav")
        (tmp_path / "my.csv").write_text("path,who,mood\nx.wav,anna,Wut\ny.wav,ben,sad\n")
        prepare(
            tmp_path / "my.csv", tmp_path / "out", "generic",
            columns="file=path,speaker=who,emotion=mood", merge="Wut=angry",
        )  # fmt: skip
        found = [
            (row["speaker"], row["emotion"], row["original_label"])
            for row in rows(tmp_path / "out/labels.csv")
        ]
        assert found == [("anna", "angry", "Wut"), ("ben", "sad", "sad")]

    def test_without_labels_there_is_no_file_of_them(self, tmp_path):
        sound(tmp_path / "x.wav")
        (tmp_path / "my.csv").write_text("file\nx.wav\n")
        result = prepare(tmp_path / "my.csv", tmp_path / "out", "generic")
        assert result.clips == 1 and "no labels.csv" in " ".join(result.notes)
        assert not (tmp_path / "out/labels.csv").exists()


class TestRefusals:
    def test_every_clip_that_cannot_be_heard_is_told_of_and_may_be_left_out(self, emodb, tmp_path):
        (emodb / "wav/03a01Wa.wav").write_text(
            "version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 9\n"
        )
        (emodb / "wav/03a01Fa.wav").write_bytes(b"RIFF")
        with pytest.raises(
            InputError, match=r"2 of 16 clips.*03a01Fa.*03a01Wa.*git lfs pull.*--allow-missing"
        ):
            prepare(emodb, tmp_path / "out")
        assert not (tmp_path / "out").exists()
        result = prepare(emodb, tmp_path / "out", allow_missing=True)
        assert result.clips == 14 and "2 clips were left out" in " ".join(result.notes)

    def test_unknown_codes(self, emodb, tmp_path):
        sound(emodb / "wav/03a01Xa.wav")
        with pytest.raises(InputError, match="unknown labels 'X' of 03a01Xa"):
            prepare(emodb, tmp_path / "out")

    @pytest.mark.parametrize("name", ["a%20b.wav", "~/a.wav", "C:\\data\\a.wav", "pipe.wav"])
    def test_a_clip_without_audio_is_named_with_its_path(self, tmp_path, name):
        os.mkfifo(tmp_path / "pipe.wav")
        sound(tmp_path / "a.wav")
        (tmp_path / "t.csv").write_text(f"file,emotion\na.wav,sad\n{name},sad\n")
        with pytest.raises(InputError, match=re.escape(f"{tmp_path}/{name}".replace("\\", "/"))):
            prepare(tmp_path / "t.csv", tmp_path / "out", corpus="generic")

    def test_one_clip_with_two_labels(self, tmp_path):
        sound(tmp_path / "a.wav")
        (tmp_path / "t.csv").write_text("file,emotion\na.wav,sad\na.wav,happy\n")
        with pytest.raises(InputError, match=r"first 'a', as 'sad' and 'happy' \(keep one row"):
            prepare(tmp_path / "t.csv", tmp_path / "out", corpus="generic")

    @pytest.mark.parametrize("form", ["NFC", "NFD"])
    def test_a_class_is_one_however_its_accents_are_composed(self, tmp_path, form):
        other = {"NFC": "NFD", "NFD": "NFC"}[form]
        lines = ["file,emotion"]
        for number, label in enumerate(
            ["col\u00e8re", unicodedata.normalize("NFD", "Col\u00e8re"), "g\u00eane"]
        ):
            sound(tmp_path / f"{number}.wav")
            lines.append(f"{number}.wav,{unicodedata.normalize(form, label) if number == 2 else label}")
        (tmp_path / "t.csv").write_text("\n".join(lines) + "\n")
        classes, merge = (unicodedata.normalize(other, text) for text in ("col\u00e8re,sad", "g\u00eane=sad"))
        prepare(tmp_path / "t.csv", tmp_path / "out", corpus="generic", classes=classes, merge=merge)
        labels = [row["emotion"] for row in rows(tmp_path / "out/labels.csv")]
        assert labels == ["col\u00e8re", "col\u00e8re", "sad"]

    def test_nothing_is_proposed_for_a_class_that_is_taken_in_another_form(self, tmp_path):
        joy = tmp_path / "d" / "joie"
        for number, form in enumerate(("NFC", "NFD")):
            folder = tmp_path / "d" / unicodedata.normalize(form, "col\u00e8re")
            folder.mkdir(parents=True)
            sound(folder / f"{number}.wav")
        joy.mkdir()
        sound(joy / "2.wav")
        result = prepare(tmp_path / "d", tmp_path / "o", corpus="generic", classes="col\u00e8re,joie")
        assert result.classes == {"col\u00e8re": 2, "joie": 1}
        assert not [text for text in result.notes if "--merge" in text]
        merged = prepare(
            tmp_path / "d", tmp_path / "m", corpus="generic", classes="angry,joie", merge="col\u00e8re=angry"
        )
        assert merged.classes == {"angry": 2, "joie": 1}
        assert not [text for text in merged.notes if "--merge" in text]

    def test_duplicates(self, emodb, tmp_path):
        shutil.copytree(emodb / "wav", emodb / "copy")
        with pytest.raises(InputError, match="20 utterances stand more than once"):
            prepare(emodb, tmp_path / "out")

    def test_a_directory_that_holds_something_else_is_never_replaced(self, emodb, tmp_path):
        for options in ({}, {"force": True}, {"update": True}):
            with pytest.raises(InputError, match="is not a prepared corpus"):
                prepare(emodb, emodb, **options)
        assert (emodb / "wav/03a01Wa.wav").is_file()

    def test_an_output_is_overwritten_only_when_told(self, emodb, tmp_path):
        prepare(emodb, tmp_path / "out")
        with pytest.raises(InputError, match="--force"):
            prepare(emodb, tmp_path / "out")
        assert prepare(emodb, tmp_path / "out", force=True, classes="angry,sad").clips == 8

    @pytest.mark.parametrize(
        ("options", "code", "word"),
        [
            (["emodbb"], 2, "did you mean 'emodb'"),
            (["emodb", "--merge", "bored"], 2, "NAME=NAME"),
            (["emodb", "--classes", "angry,frustrated"], 2, "frustrated"),
            (["emodb", "--columns", "emotion=mood"], 2, "columns of their own"),
            (["emodb", "--merge", "bored=netural"], 2, "'netural' is neither in --classes nor"),
            (["emodb", "--sessions", "1"], 3, "no clip of session 1; its sessions are none (20 clips)"),
            (["emodb", "--allow-pipes"], 2, "only a Kaldi directory"),
            (["iemocap"], 3, "Session1"),
        ],
    )
    def test_on_the_command_line(self, emodb, tmp_path, options, code, word):
        name, *more = options
        refused(mifuse("prepare", name, emodb, tmp_path / "out", *more), code, word)


class TestUpdate:
    def test_current_output_is_left_alone(self, emodb, tmp_path):
        prepare(emodb, tmp_path / "out", update=True)
        before = (tmp_path / "out/summary.json").stat().st_mtime_ns
        result = prepare(emodb, tmp_path / "out", update=True)
        assert result.up_to_date and result.clips == 16 and result.classes["sad"] == 4
        assert (tmp_path / "out/summary.json").stat().st_mtime_ns == before

    @pytest.mark.parametrize("change", ["option", "clip", "new clip", "torn", "label file gone"])
    def test_anything_that_matters_makes_it_anew(self, emodb, tmp_path, change):
        prepare(emodb, tmp_path / "out", update=True)
        options = {}
        if change == "option":
            options = {"classes": "angry,sad"}
        elif change == "clip":
            sound(emodb / "wav/03a01Wa.wav", seconds=0.5)
            os.utime(emodb / "wav/03a01Wa.wav", (1, 1))
        elif change == "new clip":
            sound(emodb / "wav/03a02Wa.wav")
        elif change == "torn":
            (tmp_path / "out/manifest.csv").write_text("utt_id,file\n")
        else:
            (tmp_path / "out/labels.csv").unlink()
        assert not prepare(emodb, tmp_path / "out", update=True, **options).up_to_date
        assert prepare(emodb, tmp_path / "out", update=True, **options).up_to_date

    @pytest.mark.parametrize("gone", ["kaldi/utt2spk", "audio/emodb_03-03a01Wa.wav"])
    def test_every_file_of_the_output_counts(self, emodb, tmp_path, gone):
        prepare(emodb, tmp_path / "out", kaldi=True)
        scp = tmp_path / "out/kaldi/wav.scp"
        scp.write_text(
            "".join(f"{line.split()[0]} cat {line.split()[1]} |\n" for line in scp.read_text().splitlines())
        )
        options = {"corpus": "kaldi", "allow_pipes": True, "kaldi": True, "update": True}
        again = tmp_path / "again"
        assert not prepare(scp.parent, again, **options).up_to_date
        assert prepare(scp.parent, again, **options).up_to_date
        (again / gone).unlink()
        assert mifuse("validate", again).exit_code == 3
        assert not prepare(scp.parent, again, **options).up_to_date
        assert (again / gone).is_file() and mifuse("validate", again).exit_code == 0

    def test_moved_labels_do_not_touch_what_was_made_from_the_clips(self, emodb, tmp_path):
        """A new label file changes labels.csv alone: adaptation does not depend on it."""
        prepare(emodb, tmp_path / "out")
        before = (tmp_path / "out/manifest.csv").read_bytes()
        prepare(emodb, tmp_path / "out", merge="bored=neutral", classes="angry,happy,neutral,sad", force=True)
        assert (tmp_path / "out/manifest.csv").read_bytes() != before  # more clips are chosen
        prepare(emodb, tmp_path / "out", merge="happy=angry,angry=happy", force=True)
        assert (tmp_path / "out/manifest.csv").read_bytes() == before


class TestKaldi:
    def test_export_keeps_the_rules_and_comes_back(self, emodb, tmp_path):
        prepare(emodb, tmp_path / "out", kaldi=True)
        assert kaldi.check(tmp_path / "out/kaldi") == []
        result = prepare(tmp_path / "out/kaldi", tmp_path / "back", "kaldi")
        assert (result.clips, result.speakers, result.classes) == (16, 2, dict.fromkeys(CLASSES, 4))
        before, after = rows(tmp_path / "out/labels.csv"), rows(tmp_path / "back/labels.csv")
        assert [(r["file"], r["speaker"], r["emotion"]) for r in after] == sorted(
            ((r["file"], r["speaker"], r["emotion"]) for r in before), key=lambda r: (r[1], r[0])
        )

    def test_commands_are_refused_unless_allowed(self, emodb, tmp_path):
        prepare(emodb, tmp_path / "out", kaldi=True)
        scp = tmp_path / "out/kaldi/wav.scp"
        scp.write_text(
            "".join(f"{line.split()[0]} cat {line.split()[1]} |\n" for line in scp.read_text().splitlines())
        )
        with pytest.raises(UsageError, match=r"16 clips are commands, first 'cat /.*--allow-pipes"):
            prepare(tmp_path / "out/kaldi", tmp_path / "back", "kaldi")
        result = prepare(tmp_path / "out/kaldi", tmp_path / "back", "kaldi", allow_pipes=True, kaldi=True)
        clips = read_clips(tmp_path / "back/manifest.csv")
        assert result.clips == 16 and {clip.path.parent for clip in clips} == {tmp_path / "back/audio"}
        assert soundfile.info(clips[0].path).samplerate == RATE
        assert (tmp_path / "back/kaldi/wav.scp").read_text() == scp.read_text()

    def test_a_command_that_fails_is_named(self, emodb, tmp_path):
        prepare(emodb, tmp_path / "out", kaldi=True)
        scp = tmp_path / "out/kaldi/wav.scp"
        scp.write_text(scp.read_text().replace("\n", " |\n", 1))
        with pytest.raises(InputError, match=r"1 of 16 clips .*ended with exit code 126"):
            prepare(tmp_path / "out/kaldi", tmp_path / "back", "kaldi", allow_pipes=True)


def test_the_table_for_people(emodb, tmp_path):
    done = mifuse("prepare", "emodb", emodb, tmp_path / "out")
    assert done.exit_code == 0
    assert "16, 0.000889 hours, 2 speakers" in done.stdout
    assert [line.split() for line in done.stdout.splitlines() if line.startswith("angry")] == [
        ["angry", "127", "4"]
    ]
    assert "note: this copy differs" in done.stderr
    again = mifuse("prepare", "emodb", emodb, tmp_path / "out", "--update", "--json")
    assert again.exit_code == 0 and json.loads(again.stdout)["up_to_date"] is True


def test_a_prepared_corpus_goes_through_training_and_scoring(emodb, tmp_path):
    prepare(emodb, tmp_path / "out")
    m.train_source(
        m.TrainSourceConfig(
            manifest=tmp_path / "out/labels.csv", encoder="logmel", out=tmp_path / "model", epochs=1
        )
    )
    m.sample_source(
        m.SampleSourceConfig(
            model=tmp_path / "model", manifest=tmp_path / "out/manifest.csv", out=tmp_path / "s.h5"
        )
    )
    m.evaluate(
        m.EvaluateConfig(
            predictions=tmp_path / "s.h5", manifest=tmp_path / "out/labels.csv", out=tmp_path / "e.h5"
        )
    )
    assert artifacts.Evaluation.load(tmp_path / "e.h5").utt_id.size == 16


class TestAsPeopleHaveThem:
    """Names of classes, suffixes and sounds that are not as expected: said, with what to do."""

    def table(self, tmp_path, *emotions):
        lines = []
        for number, emotion in enumerate(emotions):
            sound(tmp_path / f"{number}.wav")
            lines.append(f"{number}.wav,{emotion}")
        (tmp_path / "t.csv").write_text("\n".join(["file,emotion", *lines]) + "\n", encoding="utf-8")
        return tmp_path / "t.csv"

    def test_other_words_for_classes_get_a_merge_line_that_takes_them(self, tmp_path):
        table = self.table(tmp_path, "Anger", "happiness", "neutral", "traurig", "awe")
        result = prepare(table, tmp_path / "out", "generic")
        merge = "Anger=angry,happiness=happy,traurig=sad"
        assert result.clips == 1 and any(f"--merge {merge} takes them" in note for note in result.notes)
        result = prepare(table, tmp_path / "all", "generic", merge=merge)
        assert result.clips == 4 and not any("--merge" in note for note in result.notes)

    def test_also_where_nothing_is_left(self, tmp_path):
        with pytest.raises(
            InputError, match=r"none of 2 labelled clips.*--merge anger=angry,joy=happy takes them"
        ):
            prepare(self.table(tmp_path, "anger", "joy"), tmp_path / "out", "generic")

    def test_folders_that_are_no_emotions_need_not_be_prepared(self, tmp_path):
        sound(tmp_path / "c" / "monday" / "a.wav")
        with pytest.raises(InputError, match=r"found monday \(1 clips\).*--wav-dir"):
            prepare(tmp_path / "c", tmp_path / "out", "generic")
        sound(tmp_path / "c" / "a.wav")
        with pytest.raises(InputError, match=r"outside of any folder.*--wav-dir"):
            prepare(tmp_path / "c", tmp_path / "out", "generic")

    def test_what_is_passed_over_is_counted(self, tmp_path, monkeypatch):
        monkeypatch.setenv("PATH", str(tmp_path))  # no ffmpeg
        for name in ("angry/a.wav", "angry/b.opus", "happy/c.aiff"):
            sound(tmp_path / "c" / f"{name}.wav")
            (tmp_path / "c" / f"{name}.wav").rename(tmp_path / "c" / name)
        for name in ("angry/d.m4a", "happy/e.M4A", "happy/notes.txt"):
            (tmp_path / "c" / name).touch()
        result = prepare(tmp_path / "c", tmp_path / "out", "generic")
        assert result.clips == 3
        assert any("passed over: 2 .m4a, 1 .txt" in note for note in result.notes)

    def test_all_that_cannot_be_heard_is_named_in_one_run(self, tmp_path):
        table = self.table(tmp_path, "angry", "happy", "neutral", "sad", "sad")
        wave = tone(220, 0.3, np.random.default_rng(0), 0.2)
        for name, samples in (("0", 0 * wave), ("1", 3e4 * wave), ("2", np.stack([wave, -wave], axis=1))):
            soundfile.write(tmp_path / f"{name}.wav", samples, RATE, subtype="FLOAT")
        (tmp_path / "3.wav").write_bytes((tmp_path / "4.wav").read_bytes()[:3000])
        faults = ["0.wav: is silent", "1.wav: its floating", "2.wav: its channels", "3.wav: is cut off"]
        with pytest.raises(InputError, match="4 of 5 clips cannot be heard.*" + ".*".join(faults)):
            prepare(table, tmp_path / "out", "generic")
        (finding,) = m.validate(m.ValidateConfig(paths=(table,))).findings
        assert [fault.partition(" ")[0] for fault in finding.faults] == [
            f"{tmp_path}/{n}.wav:" for n in range(4)
        ]
        result = prepare(table, tmp_path / "out", "generic", allow_missing=True)
        assert result.clips == 1 and all(any(fault in note for note in result.notes) for fault in faults)

    def test_names_that_are_not_utf8_are_told(self, tmp_path):
        sound(tmp_path / "a/angry/x.wav")
        (tmp_path / "a/angry/x.wav").rename(tmp_path / "a/angry" / os.fsdecode(b"W\xfctend.wav"))
        with pytest.raises(InputError, match=r"W\\xfctend\.wav: its name is not UTF-8.*convmv"):
            prepare(tmp_path / "a", tmp_path / "out", "generic")

    def test_semicolons_and_backslashes(self, tmp_path):
        sound(tmp_path / "a/x.wav"), sound(tmp_path / "a/y.wav")
        text = "sep=;\r\nfile;emotion;\r\na\\x.wav;angry;\r\na\\y.wav;sad;\r\n;;\r\n"
        (tmp_path / "t.csv").write_text(text, encoding="utf-16")
        assert prepare(tmp_path / "t.csv", tmp_path / "out", "generic").classes == {"angry": 1, "sad": 1}
        assert [clip.utt_id for clip in read_clips(tmp_path / "t.csv")] == ["x", "y"]
