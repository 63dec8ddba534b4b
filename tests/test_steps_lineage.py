import shutil
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import soundfile
from conftest import CLASSES, HANG_SECONDS, read_rows, tone, train_config, weights, write_csv

import mifuse_cli as m
from mifuse_cli.artifacts import Lalm
from mifuse_cli.errors import ArtifactError, InputError


class TestLineage:
    def train(self, run, corpora, tmp_path, **changes):
        try:
            m.train(train_config(run, corpora, tmp_path / "new", **changes))
        finally:
            assert not list(tmp_path.glob("*new*"))

    def test_answers_changed_after_fusion(self, copy, corpora, tmp_path):
        lalm = Lalm.load(copy.lalm)
        replace(lalm, probs=lalm.probs[:, ::-1]).save(copy.lalm)
        with pytest.raises(ArtifactError, match=r"lalm\.h5 has changed"):
            self.train(copy, corpora, tmp_path)

    def test_model_changed_after_sampling(self, copy, corpora, encoders, tmp_path):
        config = m.TrainSourceConfig(
            manifest=corpora.source,
            encoder=str(encoders["whisper"]),
            out=copy.model,
            epochs=1,
            validation=0,
            force=True,
        )
        m.train_source(config)
        with pytest.raises(ArtifactError, match="model has changed"):
            m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=tmp_path / "f.h5"))
        with pytest.raises(ArtifactError, match="model has changed"):
            self.train(copy, corpora, tmp_path)
        shutil.move(copy.model, tmp_path / "other")
        with pytest.raises(ArtifactError, match="another model"):
            self.train(copy, corpora, tmp_path, model=tmp_path / "other")

    def test_other_clips(self, pipeline, corpora, tmp_path):
        fewer = write_csv(corpora.target.parent / "fewer.csv", read_rows(corpora.target)[1:])
        with pytest.raises(ArtifactError, match="has 1 clips that"):
            self.train(pipeline, corpora, tmp_path, manifest=fewer)
        samples = m.SampleSourceConfig(
            model=pipeline.model, manifest=fewer, out=tmp_path / "s.h5", n_samples=2
        )
        m.sample_source(samples)
        with pytest.raises(ArtifactError, match="has 1 clips that"):
            m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=tmp_path / "s.h5", out=tmp_path / "f.h5"))
        with pytest.raises(ArtifactError, match="has 24 clips that"):
            config = m.EvaluateConfig(
                predictions=pipeline.fused, manifest=corpora.source, out=tmp_path / "e.h5"
            )
            m.evaluate(config)
        assert not list(tmp_path.glob("[ef].h5"))

    def test_other_class_order(self, copy, tmp_path):
        lalm = Lalm.load(copy.lalm)
        replace(lalm, header=replace(lalm.header, classes=CLASSES[::-1])).save(copy.lalm)
        with pytest.raises(ArtifactError, match="classes are sad, neutral, happy, angry but"):
            m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=tmp_path / "f.h5"))
        assert not (tmp_path / "f.h5").exists()

    def test_other_audio_under_the_same_ids(self, copy, corpora, tmp_path):
        moved = shutil.copytree(corpora.target.parent, tmp_path / "target")
        clip = next((moved / "wav").iterdir())
        soundfile.write(clip, tone(300, 0.2, np.random.default_rng(0)), 16000)
        manifest = moved / "manifest.csv"
        with pytest.raises(ArtifactError, match="other audio"):
            self.train(copy, corpora, tmp_path, manifest=manifest)
        m.sample_source(
            m.SampleSourceConfig(model=copy.model, manifest=manifest, out=tmp_path / "s.h5", n_samples=2)
        )
        with pytest.raises(ArtifactError, match="other audio"):
            m.fuse(m.FuseConfig(lalm=copy.lalm, source=tmp_path / "s.h5", out=tmp_path / "f.h5"))

    def test_every_file_of_a_student_finds_its_parents(self, copy):
        for file in (copy.student, copy.student / "train.h5", copy.student / "predictions.h5"):
            states = {p["role"]: p["state"] for p in m.show(m.ShowConfig(file=file)).parents}
            assert (states["fused"], states["model"]) == ("unchanged", "unchanged"), file

    def test_joins_are_by_id(self, copy, tmp_path):
        # The same clips in files whose rows do not line up cannot be saved, so rows cannot be mixed up.
        lalm = Lalm.load(copy.lalm)
        with pytest.raises(ArtifactError, match="not sorted"):
            replace(lalm, utt_id=lalm.utt_id[::-1]).save(tmp_path / "l.h5")
        assert not (tmp_path / "l.h5").exists()

    def test_existing_output(self, pipeline, corpora):
        before = weights(pipeline.student)
        with pytest.raises(InputError, match="--force"):
            m.train(train_config(pipeline, corpora, pipeline.student))
        with pytest.raises(InputError, match="--force"):
            m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, out=pipeline.fused))
        assert weights(pipeline.student) == before


class TestUpdate:
    @pytest.fixture
    def current(self, copy, corpora, encoders):
        """Configurations, by step in the pipeline's order, under which every output is up to date."""
        source = m.TrainSourceConfig(
            manifest=corpora.source, encoder=str(encoders["whisper"]), out=copy.model, epochs=8, update=True
        )
        samples = m.SampleSourceConfig(
            model=copy.model, manifest=corpora.target, out=copy.source, n_samples=4, update=True
        )
        fuse = m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.fused, weighting="mi", update=True)
        train = train_config(copy, corpora, copy.student, epochs=4, update=True)
        score = m.EvaluateConfig(
            model=copy.student, manifest=corpora.labels, out=copy.root / "e.h5", update=True
        )
        assert not m.evaluate(score).up_to_date
        return {
            "train_source": source,
            "sample_source": samples,
            "fuse": fuse,
            "train": train,
            "evaluate": score,
        }

    def test_what_a_training_killed_at_its_end_left_is_removed(self, current):
        left = current["train"].out.with_name(f"{current['train'].out.name}.partial")
        left.write_bytes(b"the state of the last epoch")
        assert m.train(current["train"]).up_to_date and not left.exists()

    def test_each_step(self, copy, current):
        steps = [(getattr(m, name), config) for name, config in current.items()]
        before = {path: path.stat().st_mtime_ns for path in copy.root.rglob("*")}
        for step, config in steps:
            assert step(config).up_to_date, step
        assert before == {path: path.stat().st_mtime_ns for path in copy.root.rglob("*")}
        # A changed setting is made anew, and so is all that comes after it.
        changes = [{"hidden": 16}, {}, {}, {}, {}]
        for (step, config), change in zip(steps, changes, strict=True):
            assert not step(replace(config, **change)).up_to_date, step
        assert m.train(current["train"]).up_to_date
        assert not m.train(replace(current["train"], seed=1)).up_to_date
        assert not m.fuse(replace(current["fuse"], tau=0.2)).up_to_date

    def test_is_told_without_torch(self, current):
        # Importing it takes seconds, and a recipe asks for every step of every transfer.
        code = (
            "import sys, mifuse_cli\nfrom mifuse_cli import *\nfrom pathlib import PosixPath\n"
            f"for name, config in {current!r}.items():\n"
            "    assert getattr(mifuse_cli, name)(config).up_to_date, name\n"
            "    print(name, *sorted({'torch', 'transformers'} & sys.modules.keys()))"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=HANG_SECONDS
        )
        assert done.stdout.split() == list(current), done.stderr

    def test_damaged_model_is_made_anew(self, copy, corpora, encoders):
        config = m.TrainSourceConfig(
            manifest=corpora.source, encoder=str(encoders["whisper"]), out=copy.model, epochs=8, update=True
        )
        good = weights(copy.model)
        (copy.model / "model.safetensors").write_bytes(good[:-8] + bytes(8))
        assert not m.train_source(config).up_to_date
        assert weights(copy.model) == good

    def test_changed_audio(self, copy, corpora, tmp_path):
        moved = shutil.copytree(corpora.target.parent, tmp_path / "target")
        config = m.SampleSourceConfig(
            model=copy.model, manifest=moved / "manifest.csv", out=copy.source, n_samples=4, update=True
        )
        assert m.sample_source(config).up_to_date
        clip = next((moved / "wav").iterdir())
        soundfile.write(clip, tone(300, 0.2, np.random.default_rng(0)), 16000)
        assert not m.sample_source(config).up_to_date
