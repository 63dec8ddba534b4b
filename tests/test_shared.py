"""Real speech, a real encoder and the recorded answers of a real acoustic model, where they are at hand."""

import csv
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from mifuse_cli import EvaluateConfig, QueryLalmConfig, TrainSourceConfig, evaluate, query_lalm, train_source

SHARED = Path(__file__).resolve().parent.parent.parent / "shared"
CORPUS = SHARED / "corpora" / "emodb"
ENCODER = SHARED / "encoders" / "whisper-tiny.en"
SERVER = SHARED / "lalm" / "standin_server.py"

pytestmark = pytest.mark.skipif(
    not (CORPUS.is_dir() and ENCODER.is_dir() and SERVER.is_file()),
    reason="needs ../shared with corpora/emodb, encoders/whisper-tiny.en and lalm/standin_server.py",
)


@pytest.fixture(scope="module")
def manifest(tmp_path_factory) -> Path:
    """Every third clip of EMO-DB, all speakers among them."""
    with (CORPUS / "metadata.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))[::3]
    for row in rows:
        row["file"] = str(CORPUS / row["file"])
    path = tmp_path_factory.mktemp("emodb") / "manifest.csv"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    return path


@pytest.fixture
def base_url():
    command = [sys.executable, str(SERVER), "--port", "0"]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert server.stdout is not None
    yield server.stdout.readline().strip()
    server.kill()
    server.wait()


def test_recorded_answers_are_read_and_beat_chance(manifest, base_url, tmp_path, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "standin")
    out = tmp_path / "lalm.h5"
    result = query_lalm(
        QueryLalmConfig(manifest=manifest, base_url=base_url, model="standin-lalm", n_samples=5, out=out)
    )
    # The recorded model answers as such models do: about 3 % bare labels and refusals, the rest distributions.
    assert result.statuses["ok"] / (result.clips * 5) > 0.9
    assert set(result.statuses) <= {"ok", "label_only", "refused"}
    assert result.mean_mi > 0.05
    score = evaluate(EvaluateConfig(predictions=out, manifest=manifest, out=tmp_path / "eval.h5"))
    assert score.metrics["ua"] > 0.4


@pytest.mark.slow
def test_a_head_on_a_real_encoder_separates_emotions_of_unseen_speakers(manifest, tmp_path):
    """What no encoder of random weights can show: that features of a real one carry emotions."""
    result = train_source(
        TrainSourceConfig(manifest=manifest, encoder=str(ENCODER), layers="middle", out=tmp_path / "source")
    )
    assert result.validation_speakers >= 1
    assert result.validation_ua > 0.6
    assert np.isfinite(result.temperature)
