"""Artifacts of the first schema, as the last mifuse that wrote it left them: read, shown, and taken by later steps.

``fixtures/schema1`` holds one of each kind, over twelve clips of three speakers, and ``expected.json`` what that mifuse
itself read from each.
"""

import json
import shutil
from pathlib import Path

import h5py
import numpy as np
import pytest
from conftest import CLASSES, mifuse, refused, write_csv

import mifuse_cli as m
from mifuse_cli import artifacts, lineage
from mifuse_cli.artifacts import KINDS, Evaluation, Fused, Predictions, Source

HERE = Path(__file__).parent / "fixtures" / "schema1"
EXPECTED = json.loads((HERE / "expected.json").read_text())


@pytest.fixture
def old(tmp_path):
    """A copy of all of them."""
    return shutil.copytree(HERE, tmp_path / "old")


@pytest.fixture
def labels(tmp_path):
    """The true classes of the clips."""
    made, speakers = Evaluation.load(HERE / "evaluation.h5"), artifacts.read(HERE / "target.h5").speaker
    rows = [
        {"utt_id": name, "file": f"{name}.wav", "speaker": speaker, "emotion": CLASSES[truth]}
        for name, speaker, truth in zip(made.utt_id, speakers, made.truth, strict=True)
    ]
    return write_csv(tmp_path / "labels.csv", rows)


def test_there_is_one_of_each_kind():
    assert {one["kind"] for one in EXPECTED.values()} == set(KINDS)
    for name in EXPECTED:
        with h5py.File(HERE / f"{name}.h5") as file:
            assert file.attrs["schema_version"] == 1


@pytest.mark.parametrize("name", EXPECTED)
class TestEach:
    def test_read(self, name):
        expected, path = EXPECTED[name], HERE / f"{name}.h5"
        made = artifacts.read(path)
        assert type(made) is KINDS[expected["kind"]] and list(made.header.classes) == expected["classes"]
        assert made.header.schema_version == 1 and made.header.command == expected["command"]
        assert [parent.role for parent in made.header.parents] == expected["parents"]
        assert lineage.digest(path) == expected["sha256"]
        assert made.arrays().keys() == expected["arrays"].keys()
        for column, array in made.arrays().items():
            told = expected["arrays"][column]
            assert list(array.shape) == told["shape"], column
            np.testing.assert_array_equal(array[0], np.array(told["first"], array.dtype))
            np.testing.assert_array_equal(array[-1], np.array(told["last"], array.dtype))
            if "total" in told:
                assert np.nansum(array, dtype=float) == pytest.approx(told["total"], rel=1e-12)

    def test_shown(self, name):
        result = mifuse("show", HERE / f"{name}.h5")
        assert result.exit_code == 0, result.stderr
        assert f"{EXPECTED[name]['kind']}, schema 1" in result.stdout
        told = json.loads(mifuse("show", HERE / f"{name}.h5", "--json").stdout)
        assert told["sha256"] == EXPECTED[name]["sha256"] and told["schema_version"] == 1

    def test_valid(self, old, name):
        result = mifuse("validate", old / f"{name}.h5")
        assert result.exit_code == 0, result.stdout

    def test_an_edited_one_is_told(self, old, name):
        with h5py.File(old / f"{name}.h5", "a") as file:
            column = "truth" if name == "target" else "history" if name == "training" else "probs"
            file[column][...] = file[column][...][::-1]
        refused(mifuse("show", old / f"{name}.h5"), 4, "recorded hash")

    def test_saved_anew_it_is_of_the_present_schema(self, name, tmp_path):
        made = artifacts.read(HERE / f"{name}.h5")
        made.save(tmp_path / "new.h5")
        again = artifacts.read(tmp_path / "new.h5")
        assert again.header.schema_version == artifacts.SCHEMA_VERSION
        for column, array in made.arrays().items():
            np.testing.assert_array_equal(array, again.arrays()[column])


class TestSteps:
    def test_fuse(self, old):
        out = old / "new.h5"
        m.fuse(m.FuseConfig(lalm=old / "lalm.h5", source=old / "source.h5", weighting="mi", out=out))
        made, before = Fused.load(out), Fused.load(old / "fused-mi.h5")
        for column, array in before.arrays().items():
            if column == "utt_id":
                assert (array == made.utt_id).all()
            else:
                np.testing.assert_allclose(made.arrays()[column], array, atol=1e-6)
        lineage.check_parents(made, out)

    def test_fuse_by_cross_fit_names_the_model_that_it_needs(self, old):
        out = old / "new.h5"
        result = mifuse("fuse", "--lalm", old / "lalm.h5", "--source", old / "source.h5", "--out", out)
        refused(result, 3, "its model", "is not there", "--weighting")

    def test_evaluate(self, old, labels):
        out = old / "new.h5"
        config = m.EvaluateConfig(predictions=old / "predictions.h5", manifest=labels, out=out)
        metrics = m.evaluate(config).metrics
        before = Evaluation.load(old / "evaluation.h5")
        for name in ("ua", "wa", "macro_f1", "n", "missing", "speakers"):
            assert metrics[name] == pytest.approx(before.header.parameters["metrics"][name])
        np.testing.assert_array_equal(Evaluation.load(out).confusion, before.confusion)

    @pytest.mark.parametrize("name", ["fused", "source", "lalm"])
    def test_evaluate_teachers_and_labels(self, old, labels, name):
        result = m.evaluate(
            m.EvaluateConfig(predictions=old / f"{name}.h5", manifest=labels, out=old / "e.h5")
        )
        assert result.metrics["n"] == 12

    def test_report(self, old):
        result = mifuse(
            "report", old / "lalm.h5", old / "source.h5", old / "fused.h5", "--out", old / "r.html"
        )
        assert result.exit_code == 0, result.stderr
        assert (old / "r.html").exists()

    def test_pick(self, old):
        (old / "target").mkdir()
        names = Fused.load(old / "fused.h5").utt_id
        for name in names:
            (old / "target" / f"{name}.wav").touch()
        rows = [{"utt_id": name, "file": f"{name}.wav"} for name in names]
        write_csv(old / "target" / "manifest.csv", rows)
        result = mifuse("pick", "--fused", old / "fused.h5", "--out", old / "p.csv", "--n", "4")
        assert result.exit_code == 0, result.stderr

    def test_a_later_command_replaces_it(self, old):
        inputs = ("--lalm", old / "lalm.h5", "--source", old / "source.h5", "--weighting", "mi")
        result = mifuse("fuse", *inputs, "--out", old / "fused-mi.h5")
        assert result.exit_code == 3 and "--force" in result.stderr
        assert mifuse("fuse", *inputs, "--out", old / "fused-mi.h5", "--force").exit_code == 0
        assert Fused.load(old / "fused-mi.h5").header.schema_version == artifacts.SCHEMA_VERSION

    def test_python_reads_them(self):
        assert Source.load(HERE / "source.h5").hidden.shape == (12, 3, 16)
        assert Predictions.load(HERE / "predictions.h5").probs.shape == (12, 4)
