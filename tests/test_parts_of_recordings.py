"""Clips that are parts of recordings, in every step: cut on reading, told apart by audio and bounds."""

from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import torch
from conftest import CLASSES, RATE, refused, tone, write_csv
from querying import GOOD, Query, heard, seconds_of
from scripted import completion

import mifuse_cli as m
from mifuse_cli import artifacts, kaldi, lineage
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import InputError
from mifuse_cli.manifest import Clips, digest, read_clips, read_labelled
from mifuse_cli.model.features import FrozenEncoder, pooled_features
from mifuse_cli.steps.compare import planning

PARTS = [(0.0, 0.5), (0.5, 1.0), (1.0, 1.75), (1.75, 2.0)]


@pytest.fixture
def dialog(tmp_path):
    """A recording of 2 s in which every 0.25 s have another pitch, and its samples."""
    rng = np.random.default_rng(0)
    samples = np.concatenate([tone(150 + 60 * n, 0.3, rng) for n in range(8)])
    soundfile.write(tmp_path / "dialog.wav", samples, RATE)
    return tmp_path / "dialog.wav"


@pytest.fixture
def listed(dialog, tmp_path):
    """A manifest of its parts."""
    rows = [
        {
            "file": "dialog.wav",
            "start": str(start),
            "end": str(end),
            "speaker": f"s{n % 2}",
            "emotion": CLASSES[n],
        }
        for n, (start, end) in enumerate(PARTS)
    ]
    return write_csv(tmp_path / "parts.csv", rows)


@pytest.fixture
def cut(dialog, tmp_path):
    """A manifest of the same clips as files of their own, with the same ids."""
    samples, _ = soundfile.read(dialog)
    rows = []
    for n, (start, end) in enumerate(PARTS):
        soundfile.write(tmp_path / f"{n}.wav", samples[int(start * RATE) : int(end * RATE)], RATE)
        rows.append({"utt_id": f"dialog_{start:g}-{end:g}", "file": f"{n}.wav", "speaker": f"s{n % 2}"})
        rows[-1]["emotion"] = CLASSES[n]
    return write_csv(tmp_path / "cut.csv", rows)


class TestManifest:
    def test_ids_bounds_and_lengths(self, listed, dialog):
        clips = read_clips(listed)
        assert [(c.utt_id, c.start, c.end, c.duration_s) for c in clips] == [
            (f"dialog_{start:g}-{end:g}", start, end, end - start) for start, end in PARTS
        ]
        assert {clip.path for clip in clips} == {dialog} and all(clip.extra == {} for clip in clips)
        assert [one.label for one in read_labelled(listed, CLASSES)] == [0, 1, 2, 3]

    def test_other_bounds_are_other_audio(self, listed):
        before = digest(read_clips(listed))
        text = listed.read_text()
        listed.write_text(text.replace("1.75,s0", "1.7,s0"))
        assert digest(read_clips(listed)) != before

    def test_whole_files_beside_parts(self, dialog, tmp_path):
        (tmp_path / "t.csv").write_text(
            "file;begin;duration\ndialog.wav;;\ndialog.wav;0,5;0,25\ndialog.wav;1,5;NaT\n"
        )
        found = [(c.utt_id, c.start, c.end) for c in read_clips(tmp_path / "t.csv")]
        assert found == [("dialog", 0.0, None), ("dialog_0.5-0.75", 0.5, 0.75), ("dialog_1.5-", 1.5, None)]

    @pytest.mark.parametrize(
        ("told", "message"),
        [
            ("2.0", ""),
            ("2", ""),
            ("2.01", ""),
            ("", ""),
            ("1.5", "'dialog' .'1.5'"),
            ("2000", "'dialog' .'2000'"),
        ],
    )
    def test_a_duration_alone_is_that_of_the_file(self, dialog, tmp_path, told, message):
        (tmp_path / "t.csv").write_text(f"file,duration\ndialog.wav,{told}\n")
        if message:
            with pytest.raises(
                InputError, match=f"'duration' is not the length of the file for 1 clips, first {message}"
            ):
                Clips(tmp_path / "t.csv", None)
        else:
            assert len(Clips(tmp_path / "t.csv", None)) == 1

    def test_channels(self, tmp_path):
        rng = np.random.default_rng(0)
        both = np.stack([tone(200, 0.3, rng), tone(400, 0.3, rng)], axis=1)
        soundfile.write(tmp_path / "two.wav", both, RATE)
        soundfile.write(tmp_path / "one.wav", both[:, 0], RATE)

        def found(*channels, file="two"):
            lines = [f"{file}.wav,{channel}" for channel in channels]
            (tmp_path / "t.csv").write_text("\n".join(["file,channel", *lines]) + "\n")
            return [(clip.utt_id, clip.channel) for clip in read_clips(tmp_path / "t.csv")]

        assert found("0", "1") == found("1", "2") == found("left", "R") == [("two_A", 0), ("two_B", 1)]
        assert found("2") == [("two_B", 1)] and found("") == [("two", None)]
        assert found("1", file="one") == found("0", file="one") == [("one_A", 0)]
        with pytest.raises(InputError, match=r"from 0 as well as from 1, as for two_A. Write left and right"):
            found("1")

    def test_all_rows_with_bounds_that_make_no_sense_are_named(self, listed):
        listed.write_text(listed.read_text() + "dialog.wav,1,0.5,s1,sad\ndialog.wav,soon,2,s1,sad\n")
        with pytest.raises(InputError, match=r"line 6: .*ends at 0\.5 s.*line 7: start 'soon' is no time"):
            read_clips(listed)


class TestPrepare:
    def prepared(self, listed, **options):
        out = listed.parent / "out"
        return out, m.prepare(m.PrepareConfig(corpus="generic", root=listed, out=out, **options))

    def test_manifest_and_labels_have_the_bounds(self, listed):
        out, result = self.prepared(listed)
        assert result.clips == 4 and result.hours == pytest.approx(2 / 3600)
        assert [c.excerpt for c in read_clips(out / "manifest.csv")] == [
            c.excerpt for c in read_clips(listed)
        ]
        labels = [one.clip.excerpt for one in read_labelled(out / "labels.csv", CLASSES)]
        assert labels == [clip.excerpt for clip in read_clips(listed)]
        (finding,) = m.validate(m.ValidateConfig(paths=(out,))).findings
        assert finding.faults == () and finding.facts["hours"] == round(2 / 3600, 4)

    def test_kaldi(self, listed):
        out, _ = self.prepared(listed, kaldi=True)
        assert kaldi.check(out / "kaldi") == []
        assert len((out / "kaldi/wav.scp").read_text().splitlines()) == 1
        again, _ = listed.parent / "again", None
        m.prepare(m.PrepareConfig(corpus="kaldi", root=out / "kaldi", out=again))
        bounds = sorted((clip.start, clip.end) for clip in read_clips(again / "manifest.csv"))
        assert bounds == PARTS

    def test_a_part_that_is_not_there_is_named_and_can_be_left_out(self, listed):
        listed.write_text(listed.read_text().replace("1.75,2.0", "1.75,3.5"))
        with pytest.raises(
            InputError, match=r"1 of 4 clips .*dialog\.wav: the clip is from 1\.75 s to 3\.5 s"
        ):
            self.prepared(listed)
        _, result = self.prepared(listed, allow_missing=True)
        assert result.clips == 3


def test_the_model_hears_the_part_alone(listed, cut, play, tmp_path):
    server = play((200, completion(GOOD)))
    Query(listed, tmp_path / "l.h5").found(server.url, n_samples=1)
    lengths = sorted(seconds_of(heard(request)[0]) for request in server.requests)
    assert lengths == [0.25, 0.5, 0.5, 0.75]
    before = len(server.requests)
    assert Query(listed, tmp_path / "l.h5").found(server.url, n_samples=1)["asked"] == 0
    # The same clips as files: the same questions.
    assert Query(cut, tmp_path / "l.h5").found(server.url, "--update", n_samples=1)["asked"] == 0
    assert len(server.requests) == before


def test_all_that_cannot_be_heard_is_named_before_a_question_is_sent(listed, play, tmp_path):
    server = play((200, completion(GOOD)))
    soundfile.write(tmp_path / "silent.wav", np.zeros(RATE), RATE)
    listed.write_text(listed.read_text() + "silent.wav,0,1,s1,sad\ndialog.wav,5,6,s1,sad\n")
    refused(
        Query(listed, tmp_path / "l.h5")(server.url),
        3,
        "2 of 6 clips cannot be heard",
        "silent.wav",
        "from 5 s to 6 s",
    )
    assert not server.requests


def test_features_are_those_of_the_cut_files(listed, cut, encoders, tmp_path):
    directory = encoders["wav2vec2"]

    def features(manifest, cache):
        here = Encoding(cache_dir=cache, workers=1)
        return pooled_features(
            read_clips(manifest),
            FrozenEncoder(directory),
            "0" * 64,
            device=torch.device("cpu"),
            encoding=here,
        )

    together = tmp_path / "cache"
    parts, files = features(listed, together), features(cut, together)
    np.testing.assert_allclose(parts, files, atol=1e-5)
    assert len(np.unique(parts.round(5), axis=0)) == 4
    np.testing.assert_array_equal(features(listed, together), parts)  # from the cache


class TestHeardInTraining:
    """What was heard in training goes by the audio."""

    @pytest.fixture
    def model(self, listed, tmp_path):
        options = {"encoder": "logmel", "epochs": 1, "validation": 0.0, "device": "cpu"}
        m.train_source(m.TrainSourceConfig(manifest=listed, out=tmp_path / "model", **options))
        return tmp_path / "model"

    def protocol(self, model, manifest, out):
        m.evaluate(m.EvaluateConfig(model=model, manifest=manifest, out=out, device="cpu"))
        return artifacts.read_header(out)[1].parameters["signature"].partition("protocol:")[2].split("|")[0]

    def test_by_audio_and_bounds_whatever_the_ids(self, model, listed, tmp_path):
        training = artifacts.Training.load(model / "train.h5")
        assert self.protocol(model, listed, tmp_path / "a.h5") == "seen-in-training"
        renamed = listed.read_text().replace("file,", "utt_id,file,").replace("dialog.wav,", "{},dialog.wav,")
        (tmp_path / "renamed.csv").write_text(renamed.format("w", "x", "y", "z"))
        assert self.protocol(model, tmp_path / "renamed.csv", tmp_path / "b.h5") == "seen-in-training"
        moved = listed.read_text()
        for start, end in PARTS:
            moved = moved.replace(f",{start},{end},", f",{start + 0.01},{end - 0.01},")
        (tmp_path / "moved.csv").write_text(moved)
        assert self.protocol(model, tmp_path / "moved.csv", tmp_path / "c.h5") == "unseen"
        assert lineage.heard_in(training, read_clips(listed)).all()

    def test_other_audio_of_the_same_names(self, model, listed, dialog, tmp_path):
        samples, _ = soundfile.read(dialog)
        soundfile.write(dialog, samples[::-1], RATE)
        assert self.protocol(model, listed, tmp_path / "a.h5") == "unseen"

    def test_the_next_step_says_so(self, model, listed, tmp_path):
        result = m.sample_source(
            m.SampleSourceConfig(
                model=model, manifest=listed, out=tmp_path / "s.h5", n_samples=2, device="cpu"
            )
        )
        assert any("heard in training" in note for note in result.notes)
        assert artifacts.read_header(tmp_path / "s.h5")[1].parameters["seen_in_training"] == 1.0

    def test_train_and_compare_say_so_too(self, model, listed, tmp_path):
        out = tmp_path / "student"
        result = m.train(
            m.TrainConfig(
                model=model, manifest=listed, out=out, method="shot", tune="head", epochs=1, device="cpu"
            )
        )
        assert any("4 of 4 clips were heard in training" in note for note in result.notes)
        target = SimpleNamespace(clips=read_clips(listed))
        notes = list(planning._heard({("a", 1): model}, {"a": target, "b": target}))
        assert len(notes) == 1 and notes[0].startswith(
            "b: 4 of 4 clips were heard in training of the models of a"
        )

    def test_models_of_before_go_by_ids(self, model, listed):
        training = artifacts.Training.load(model / "train.h5")
        before = artifacts.Training(
            training.header, training.utt_id, training.columns_of_history, training.history
        )
        assert lineage.heard_in(before, read_clips(listed)).all()
