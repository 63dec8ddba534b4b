"""Clips that cannot be used, and how every step tells of them: all in one run, before work is done or money spent."""

import shutil

import numpy as np
import pytest
import soundfile
import torch
from conftest import RATE, mifuse, read_rows, refused, tone, write_csv

from mifuse_cli.model.encoder import WhisperEncoder

BAD = ("cut", "nan", "silent")


@pytest.fixture
def spoilt(corpora, tmp_path):
    """Twenty clips with labels, of which three are bad."""
    root, rows = tmp_path / "spoilt", read_rows(corpora.labels)[:20]
    root.mkdir()
    for number, row in enumerate(rows):
        name = f"{number:02}.wav"
        shutil.copyfile(corpora.labels.parent / row["file"], root / name)
        row["file"] = name
    for row, name in zip((rows[4], rows[11], rows[17]), BAD, strict=True):
        (root / row["file"]).rename(root / f"{name}.wav")
        row["file"] = f"{name}.wav"
    soundfile.write(root / "cut.wav", tone(200, 0.3, np.random.default_rng(0), 1.0), RATE)
    (root / "cut.wav").write_bytes((root / "cut.wav").read_bytes()[:8000])
    soundfile.write(root / "nan.wav", np.full(RATE, np.nan), RATE, subtype="FLOAT")
    soundfile.write(root / "silent.wav", np.zeros(RATE), RATE)
    return write_csv(root / "manifest.csv", rows)


def commands(pipeline, encoder):
    cached = ["--workers", "1"]
    return {
        "train-source": ["train-source", "--encoder", encoder, "--epochs", "1", *cached],
        "train-source --tune": ["train-source", "--encoder", "logmel", "--epochs", "1"],
        "sample-source": ["sample-source", "--model", pipeline.model, *cached],
        "train": ["train", "--method", "shot", "--model", pipeline.model, *cached],
        "train --tune": ["train", "--method", "shot", "--model", pipeline.model, "--tune", "top-1"],
        "evaluate": ["evaluate", "--model", pipeline.model, *cached],
        "query-lalm": ["query-lalm", "--model", "m", "--base-url", "http://127.0.0.1:9", "--n-samples", "2"],
        "query-lalm --dry-run": ["query-lalm", "--model", "m", "--dry-run"],
    }


@pytest.mark.parametrize(
    "step",
    [
        "train-source",
        "train-source --tune",
        "sample-source",
        "train",
        "train --tune",
        "evaluate",
        "query-lalm",
    ],
)
def test_all_are_named_in_one_run(pipeline, encoders, spoilt, tmp_path, step):
    command = commands(pipeline, encoders["whisper"])[step]
    out = tmp_path / ("out.h5" if step in ("sample-source", "evaluate", "query-lalm") else "out")
    result = mifuse(*command, "--manifest", spoilt, "--out", out, OPENAI_API_KEY="x")
    told = refused(result, 3, "clips cannot be", "is cut off", "NaN", "is silent")
    assert all(told.count(f"{name}.wav") == 1 for name in BAD)
    assert not out.exists()


def test_validate_names_all(spoilt):
    result = mifuse("validate", spoilt)
    assert result.exit_code == 3
    assert all(f"{name}.wav: " in result.stdout for name in BAD)


def test_an_estimate_names_all_whose_length_is_not_known(pipeline, encoders, spoilt, tmp_path):
    for name in ("nan", "silent"):
        (spoilt.parent / f"{name}.wav").write_text("no audio")
    command = commands(pipeline, encoders["whisper"])["query-lalm --dry-run"]
    result = mifuse(*command, "--manifest", spoilt, "--out", tmp_path / "l.h5")
    refused(result, 3, "2 of 20 clips cannot be heard", "nan.wav", "silent.wav")


def test_nothing_is_encoded_before_they_are_told(pipeline, spoilt, tmp_path, monkeypatch):
    """A file without a readable header is looked at first, however many clips there are."""
    for name in ("cut", "silent"):
        shutil.copyfile(spoilt.parent / "00.wav", spoilt.parent / f"{name}.wav")
    (spoilt.parent / "nan.wav").write_text("no audio")
    monkeypatch.setattr(WhisperEncoder, "states_of_alike", lambda *_: pytest.fail("encodes"))
    monkeypatch.setattr("mifuse_cli.model.encoder.tried", lambda network, directory: network)
    result = mifuse("sample-source", "--model", pipeline.model, "--manifest", spoilt, "--out", tmp_path / "s.h5",
                    "--cache-dir", tmp_path / "cache", "--workers", "1")  # fmt: skip
    refused(result, 3, "nan.wav: cannot be decoded")


class TestFeaturesThatAreNoNumbers:
    """An encoder may make NaN of a sound clip, as one in a low precision does of a loud one."""

    @pytest.fixture
    def loud(self, corpora, tmp_path, monkeypatch):
        """A manifest with one loud clip, of which the encoder makes NaN."""
        rows = read_rows(corpora.labels)
        for row in rows:
            row["file"] = str(corpora.labels.parent / row["file"])
        soundfile.write(
            tmp_path / "loud.wav", tone(200, 3.0, np.random.default_rng(0)), RATE, subtype="FLOAT"
        )
        rows[3]["file"] = str(tmp_path / "loud.wav")
        sound = WhisperEncoder.states_of_alike

        def states(self, clips):
            found = sound(self, clips)
            peaks = torch.stack([one.abs().max() for one in clips])
            return torch.where(peaks[:, None, None] > 2, torch.nan, found)

        monkeypatch.setattr(WhisperEncoder, "states_of_alike", states)
        return write_csv(tmp_path / "manifest.csv", rows)

    @pytest.mark.parametrize("step", ["train-source", "sample-source", "train", "train --tune", "evaluate"])
    def test_the_clip_is_named(self, pipeline, encoders, loud, tmp_path, step):
        out = tmp_path / ("out.h5" if step in ("sample-source", "evaluate") else "out")
        command = commands(pipeline, encoders["whisper"])[step]
        result = mifuse(*command, "--manifest", loud, "--out", out)
        refused(result, 3, "loud.wav: the encoder makes NaN", "replace the file or leave it out")
        assert not out.exists()

    @pytest.mark.parametrize("normalize", ["source", "target"])
    def test_predict_leaves_it_out_and_says_so(self, pipeline, loud, tmp_path, normalize):
        out = tmp_path / "p.csv"
        result = mifuse("predict", "--model", pipeline.model, "--manifest", loud, "--out", out,
                        "--normalize", normalize, "--workers", "1")  # fmt: skip
        assert result.exit_code == 0 and "note: 1 of 24 clips are skipped" in result.stderr
        (row,) = (row for row in read_rows(out) if row["skipped"])
        assert "the encoder makes NaN" in row["skipped"] and row["file"].endswith("loud.wav")
