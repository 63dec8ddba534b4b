"""Files from elsewhere that are made to do harm: artifacts, checkpoints and encoders."""

import json
import os
import subprocess
import sys
import time

import h5py
import numpy as np
import pytest
from conftest import CLASSES, HANG_SECONDS, save_encoder

from mifuse_cli import artifacts
from mifuse_cli.artifacts import Header, Predictions, examination
from mifuse_cli.config import load_yaml
from mifuse_cli.errors import ArtifactError, InputError, MifuseError
from mifuse_cli.model.encoder import load_encoder


@pytest.fixture
def artifact(tmp_path):
    probs = np.full((3, 4), 0.25, np.float32)
    path = tmp_path / "p.h5"
    Predictions(header=Header(classes=CLASSES), utt_id=np.array(["a", "b", "c"]), probs=probs).save(path)
    return path


def relinked(link):
    def change(file):
        del file["probs"]
        file["probs"] = link

    return change


def huge(file):
    del file["probs"]
    file.create_dataset("probs", (2**40, 4), "f4", chunks=(1024, 4), compression="gzip")


def foreign_type(file):
    del file["probs"]
    file["probs"] = np.array([file.ref] * 3, h5py.ref_dtype)


CHANGES = {
    "group": (lambda file: (file.__delitem__("probs"), file.create_group("probs")), "is a group"),
    "type": (relinked(np.dtype("f4")), "expected a dataset"),
    "soft link": (relinked(h5py.SoftLink("/utt_id")), "link to somewhere else"),
    "external link": (relinked(h5py.ExternalLink("/dev/zero", "/probs")), "link to somewhere else"),
    "huge": (huge, "not all there"),
    "references": (foreign_type, "of type"),
    "classes": (lambda file: file.attrs.update(classes="angry"), "root attributes"),
    "seed": (lambda file: file.attrs.update(seed=np.inf), "root attributes"),
    "list": (lambda file: file.attrs.update(parameters="[]"), "root attributes"),
    "form": (lambda file: file.attrs.update(parameters=json.dumps({"teachers": 3})), "another form"),
    "deep": (lambda file: file.attrs.update(config="[" * 50000), "root attributes"),
}


@pytest.mark.parametrize("case", CHANGES)
def test_an_artifact_of_another_structure_is_refused(artifact, case):
    change, message = CHANGES[case]
    with h5py.File(artifact, "r+") as file:
        change(file)
    with pytest.raises(ArtifactError, match=message):
        artifacts.read(artifact)


def test_what_is_not_recorded_is_an_error_of_the_file(artifact):
    parameters = artifacts.read(artifact).header.parameters
    assert parameters.get("normalize") is None
    with pytest.raises(ArtifactError, match=r"p\.h5: does not record 'normalize'"):
        parameters["normalize"]


@pytest.mark.parametrize("way", ["endless", "crash"])
def test_a_file_that_hangs_or_crashes_hdf5_is_an_error(artifact, monkeypatch, way):
    def follow(path, is_text):
        if way == "crash":
            os.abort()
        while True:
            pass

    monkeypatch.setattr(examination, "_follow", follow)
    monkeypatch.setattr(examination, "_examined", {})
    start = time.monotonic()
    with pytest.raises(InputError, match="come to an end" if way == "endless" else "crashes"):
        artifacts.read(artifact)
    assert time.monotonic() - start < HANG_SECONDS


def test_a_file_is_examined_once_and_what_was_written_here_never(artifact, monkeypatch):
    calls = []
    fork = os.fork
    monkeypatch.setattr(os, "fork", lambda: calls.append(1) or fork())
    artifacts.read(artifact)
    assert not calls
    os.utime(artifact)
    for _ in range(2):
        artifacts.read(artifact)
    assert len(calls) == 1


def test_two_steps_at_once_on_one_output_are_not_both_kept(artifact, tmp_path):
    made = artifacts.read(artifact)
    with pytest.raises(InputError, match="exists by now"):
        made.save(artifact, replace=False)
    made.save(tmp_path / "other.h5", replace=False)


CONFIGS = {
    "code": {"auto_map": {"AutoFeatureExtractor": "evil.X"}, "feature_extractor_type": "Evil"},
    "large": {"n_fft": 10**9},
    "list": [],
}


@pytest.mark.parametrize("case", CONFIGS)
def test_a_feature_extractor_of_another_form_is_refused_and_its_code_not_run(tmp_path, case):
    directory = save_encoder(tmp_path / "e", "whisper")
    file = directory / "preprocessor_config.json"
    told = CONFIGS[case]
    file.write_text(json.dumps({**json.loads(file.read_text()), **told} if isinstance(told, dict) else told))
    mark = tmp_path / "mark"
    (directory / "evil.py").write_text(f"open({str(mark)!r}, 'w')\nclass X: pass\n")
    code = "import sys\nfrom pathlib import Path\nfrom mifuse_cli.model.encoder import load_encoder\n"
    code += "load_encoder(Path(sys.argv[1]))"
    done = subprocess.run(
        [sys.executable, "-c", code, directory],
        input="y\n",
        capture_output=True,
        text=True,
        timeout=HANG_SECONDS,
    )
    assert "InputError" in done.stderr and "Do you wish" not in done.stdout + done.stderr
    assert not mark.exists()


@pytest.mark.parametrize(
    "change", [{"d_model": 2**20}, {"encoder_layers": 10**6}, {"d_model": "x"}, {"activation_function": 3}]
)
def test_an_encoder_whose_configuration_makes_no_sense_is_refused(tmp_path, change):
    directory = save_encoder(tmp_path / "e", "whisper")
    file = directory / "config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(InputError, match="e"):
        load_encoder(directory)


def test_weights_are_not_read_from_a_device(tmp_path):
    directory = save_encoder(tmp_path / "e", "whisper")
    (directory / "model.safetensors").unlink()
    (directory / "model.safetensors").symlink_to("/dev/zero")
    with pytest.raises(InputError, match="Expected a regular file"):
        load_encoder(directory)


@pytest.mark.parametrize(
    "text",
    [
        "a: &a [x, x, x, x, x, x, x, x, x]\n"
        + "".join(
            f"{b}: &{b} [{','.join(['*' + a] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
        ),
        "&a [*a]",
        "[" * 5000,
        "!!bool x",
        "!!timestamp x",
        "a: !!binary x",
    ],
)
def test_yaml_that_is_made_to_do_harm_is_refused(tmp_path, text):
    (tmp_path / "x.yaml").write_text(text)
    with pytest.raises(MifuseError, match="cannot be read as YAML"):
        load_yaml(tmp_path / "x.yaml", "x.yaml", InputError)
