"""What ``fuse`` offers beyond a weighted mean: guards, calibration, votes, Dawid-Skene, diagnostics."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import mifuse
from teachers import ask_another, fuse_config

import mifuse_cli as m
from mifuse_cli import fusion
from mifuse_cli.artifacts import Fused, Lalm, Source
from mifuse_cli.errors import ArtifactError, UsageError
from mifuse_cli.fusion import MI_ESTIMATORS, OF_MI, POOLS, WEIGHTINGS
from mifuse_cli.methods.mifuse import FusedLabels
from mifuse_cli.steps.train import teachers_of


@pytest.fixture
def three(copy):
    return [ask_another(copy, f"{name}.h5", seed, model=name) for seed, name in enumerate("abc")]


def change(path, probs):
    """Other distributions in an artifact of answers."""
    replace(Lalm.load(path), probs=probs.astype(np.float32)).save(path)


def never_vary(path):
    change(path, Lalm.load(path).probs[:, [0, 0, 0]])


def vote(path):
    change(path, np.eye(4)[Lalm.load(path).probs.argmax(axis=-1)])


class TestDeadTeacher:
    @pytest.mark.parametrize("weighting", WEIGHTINGS)
    def test_weights_by_mutual_information_become_uniform(self, copy, three, weighting):
        never_vary(three[1])
        result = m.fuse(fuse_config(copy, three, weighting=weighting))
        made = Fused.load(result.out)
        used = "uniform" if weighting in OF_MI else weighting
        assert result.weighting == used == made.header.parameters["weighting"]
        assert result.notes[0].startswith("b: answers are identical on 100% of clips")
        assert any("--keep-weighting" in note for note in result.notes) == (weighting in OF_MI)
        if used == "uniform":
            np.testing.assert_array_equal(made.weights, 0.25)

    def test_unless_one_insists(self, copy, three):
        never_vary(three[1])
        config = fuse_config(copy, three, keep_weighting=True, update=True)
        result = m.fuse(config)
        assert result.weighting == "mi" and result.mean_weight["b"] > 0.4 and len(result.notes) == 1
        assert m.fuse(config).up_to_date
        assert not m.fuse(replace(config, keep_weighting=False)).up_to_date

    def test_one_in_ten_clips_that_vary_is_enough(self, copy, three):
        probs = Lalm.load(three[1]).probs
        change(three[1], np.concatenate([probs[:3], probs[3:, [0, 0, 0]]]))
        result = m.fuse(fuse_config(copy, three))
        assert result.weighting == "mi" and not result.notes

    def test_votes_that_never_vary_are_seen_behind_their_posterior(self, copy, three):
        never_vary(three[1])
        vote(three[1])
        result = m.fuse(fuse_config(copy, three, mi_estimator="bayes"))
        assert result.mean_mi["b"] > 0.3 and result.weighting == "uniform"

    def test_a_dead_dropout(self, copy, three):
        source = Source.load(copy.source)
        dead = replace(source, probs=np.repeat(source.point[:, None], 4, axis=1))
        dead.save(copy.root / "dead.h5")
        result = m.fuse(fuse_config(copy, three, source=copy.root / "dead.h5"))
        assert result.weighting == "uniform" and result.notes[0].startswith("source: ")


class TestCalibration:
    @pytest.fixture
    def three(self, three):
        """With answers about a clip that are alike."""
        for seed, path in enumerate(three):
            middle = np.random.default_rng(seed).dirichlet(np.full(4, 0.5), size=24)
            change(path, (Lalm.load(path).probs + middle[:, None]) / 2)
        return three

    def test_an_answer_becomes_as_sure_as_it_agrees(self, copy, three):
        probs = {path.stem: Lalm.load(path).probs.astype(float) for path in three}
        result = m.fuse(fuse_config(copy, three, calibrate_lalm="self-agreement"))
        made = Fused.load(result.out)
        assert made.header.parameters["lalm_temperature"] == result.temperature
        for t, (name, answers) in enumerate(probs.items()):
            sure = fusion.with_temperature(answers, result.temperature[name])
            assert sure.max(axis=-1).mean() == pytest.approx(fusion.self_agreement(answers), abs=1e-4)
            np.testing.assert_allclose(made.mean[:, t], sure.mean(axis=1), atol=1e-5)
        assert set(result.temperature) == set("abc")
        np.testing.assert_allclose(made.mean[:, 3], Source.load(copy.source).probs.mean(axis=1), atol=1e-5)

    def test_or_as_it_agrees_with_the_classifier(self, copy):
        labels = Source.load(copy.source).probs.mean(axis=1).argmax(axis=-1)
        probs = np.repeat((np.eye(4)[labels] * 0.2 + 0.2)[:, None], 3, axis=1)  # 0.4, always right
        probs[::3] = np.roll(probs[::3], 1, axis=-1)  # and in a third of the clips always wrong
        change(copy.lalm, probs)
        result = m.fuse(fuse_config(copy, copy.lalm, calibrate_lalm="source-agreement"))
        sure = fusion.with_temperature(probs, result.temperature["lalm"]).max(axis=-1).mean()
        assert sure == pytest.approx(2 / 3, abs=1e-4)
        assert result.mean_confidence["lalm"] == pytest.approx(2 / 3, abs=1e-4)

    def test_who_cannot_be_calibrated(self, copy, three):
        vote(three[0])
        never_vary(three[1])
        result = m.fuse(fuse_config(copy, three, calibrate_lalm="self-agreement"))
        assert list(result.temperature) == ["c"]
        notes = " ".join(result.notes)
        assert "a: is left as it is, since its answers are single labels" in notes
        assert "b: is left as it is, since its answers do not vary" in notes

    def test_answers_that_never_agree(self, copy, three):
        probs = Lalm.load(three[0]).probs
        change(three[0], np.stack([np.roll(probs[:, 0], n, axis=-1) for n in range(3)], axis=1))
        result = m.fuse(fuse_config(copy, three, calibrate_lalm="self-agreement"))
        assert [note[:25] for note in result.notes] == [
            "a: gives all classes the ",
            "a: its temperature 20 is ",
        ]

    def test_one_answer_a_clip(self, copy):
        probs = Lalm.load(copy.lalm).probs.copy()
        probs[:, 1:] = np.nan
        change(copy.lalm, probs)
        with pytest.raises(ArtifactError, match="has one answer a clip"):
            m.fuse(fuse_config(copy, copy.lalm, calibrate_lalm="self-agreement"))
        m.fuse(fuse_config(copy, copy.lalm, calibrate_lalm="source-agreement"))


class TestVotes:
    def test_are_smoothed_unless_told_otherwise(self, copy, three):
        shutil.copy(three[0], copy.lalm)
        vote(copy.lalm)
        counts = Lalm.load(copy.lalm).probs.sum(axis=1)
        result = m.fuse(fuse_config(copy, copy.lalm))
        np.testing.assert_allclose(Fused.load(result.out).mean[:, 0], (counts + 0.5) / 5, atol=1e-6)
        assert any("entropy of the votes" in note for note in result.notes)
        again = m.fuse(fuse_config(copy, copy.lalm, mi_estimator="plugin", weighting="z-mi", force=True))
        np.testing.assert_allclose(Fused.load(again.out).mean[:, 0], counts / 3, atol=1e-6)
        assert not any("entropy of the votes" in note for note in again.notes)


class TestDawidSkene:
    def test_numbers(self, copy, three):
        result = m.fuse(fuse_config(copy, three, weighting="dawid-skene"))
        made = Fused.load(result.out)
        posterior, accuracy = fusion.dawid_skene(made.mean.argmax(axis=-1), 4)
        np.testing.assert_allclose(made.probs, posterior, atol=1e-6)
        np.testing.assert_allclose(made.weights[0], accuracy / accuracy.sum(), atol=1e-6)

    def test_two_teachers_are_refused(self, copy):
        with pytest.raises(UsageError, match=r"expected 2 LALMs or more .* no majority"):
            fuse_config(copy, copy.lalm, weighting="dawid-skene")

    def test_a_pool_besides_it_is_refused(self, copy, three):
        with pytest.raises(UsageError, match="--pool log: has no effect on --weighting dawid-skene"):
            fuse_config(copy, three, weighting="dawid-skene", pool="log")

    def test_a_teacher_who_speaks_twice_is_refused(self, copy, three):
        spec = Lalm.load(three[0]).header.parameters["spec"]
        again = ask_another(copy, "again.h5", 7, model="a", spec={**spec, "seed": 7})
        config = fuse_config(copy, [*three, again], weighting="dawid-skene")
        with pytest.raises(ArtifactError, match=r"again\.h5: is of the same model as \S+a\.h5"):
            m.fuse(config)
        ask_another(copy, "again.h5", 7, model="a", spec={**spec, "template": "Another prompt."})
        assert m.fuse(config).weighting == "dawid-skene"


class TestDiagnostics:
    def test_numbers(self, copy, three):
        result = m.fuse(fuse_config(copy, three, weighting="rank-mi", sharpen=0.5))
        made = Fused.load(result.out)
        told = made.header.parameters["diagnostics"]
        expected = {
            "mean_mi": made.mi.mean(axis=0),
            "mean_weight": made.weights.mean(axis=0),
            "mean_confidence": made.mean.max(axis=-1).mean(axis=0),
            "label_agreement": (made.mean.argmax(axis=-1) == made.probs.argmax(axis=-1)[:, None]).mean(
                axis=0
            ),
            "identical": [0, 0, 0, 0],
        }
        assert told.keys() == {*expected, "disagreement"}
        for name, values in expected.items():
            assert list(told[name].values()) == pytest.approx(list(values), abs=1e-6)
            if name != "identical":
                assert getattr(result, name) == told[name]
        js = fusion.entropy(made.mean.mean(axis=1)) - fusion.entropy(made.mean).mean(axis=1)
        assert told["disagreement"] == result.disagreement == pytest.approx(js.mean(), abs=1e-6)

    def test_on_the_command_line(self, copy):
        flags = ["--lalm", copy.lalm, "--source", copy.source, "--out", copy.root / "f.h5", "--json"]
        flags += ["--weighting", "mi"]
        found = json.loads(mifuse("fuse", *flags, "--calibrate-lalm", "self-agreement").stdout)
        assert found["mean_confidence"].keys() == {"lalm", "source"} and found["disagreement"] > 0
        assert found["weighting"] == "mi" and found["temperature"]["lalm"] > 0


class TestOptions:
    def test_sharpening(self, copy, three):
        flat = Fused.load(m.fuse(fuse_config(copy, three)).out).probs
        sharp = Fused.load(m.fuse(fuse_config(copy, three, sharpen=0.5, force=True)).out)
        np.testing.assert_allclose(sharp.probs, flat**2 / (flat**2).sum(axis=1, keepdims=True), atol=1e-5)
        assert sharp.header.parameters["sharpen"] == 0.5

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"sharpen": 0.0}, "--sharpen 0.0: expected more than 0"),
            ({"calibrate_lalm": "self"}, "--calibrate-lalm 'self': expected one of none"),
            ({"weighting": "muki"}, "--weighting 'muki'"),
            ({"weighting": "uniform", "tau": 0.2}, "--tau 0.2: has no effect on --weighting uniform"),
            ({"weighting": "entropy", "keep_weighting": True}, "--keep-weighting True: has no effect"),
            ({"without": "structure"}, "--without structure: is no part of --weighting mi; expected lalm"),
            ({"weighting": "cross-fit", "without": "voice"}, "did you mean 'voices'"),
            ({"weighting": "cross-fit", "without": "lalm,source"}, "leaves no teacher"),
            ({"without": "lalm", "weighting": "dawid-skene"}, "dawid-skene needs the LALMs"),
            ({"without": "lalm", "calibrate_lalm": "self-agreement"}, "has no effect --without lalm"),
            ({"weighting": "cross-fit", "pool": "log"}, "--pool log: has no effect on --weighting cross-fit"),
            ({"weighting": "cross-fit", "tau": 1.0}, "--tau 1.0: has no effect"),
            ({"weighting": "cross-fit", "mi_estimator": "plugin"}, "--mi-estimator plugin: has no effect"),
            ({"weighting": "cross-fit", "keep_weighting": True}, "--keep-weighting True: has no effect"),
        ],
    )
    def test_bad_values(self, copy, changes, message):
        with pytest.raises(UsageError, match=message):
            fuse_config(copy, copy.lalm, **changes)

    @pytest.mark.parametrize(
        "how",
        [{"weighting": name} for name in WEIGHTINGS]
        + [{"pool": name} for name in POOLS[1:]]
        + [{"mi_estimator": name} for name in MI_ESTIMATORS],
        ids=lambda how: "-".join(how.values()),
    )
    def test_all_of_them_can_be_fused_again_in_training(self, copy, three, monkeypatch, how):
        made = Fused.load(m.fuse(fuse_config(copy, three, **how)).out)
        method = FusedLabels(
            teachers_of(made), refresh=1, diversity_weight=1.0, diversity_prior="uniform", seed=0
        )
        samples = np.random.default_rng(5).dirichlet(np.ones(4), size=(24, 4))
        monkeypatch.setattr("mifuse_cli.methods.mifuse.sample", lambda *_: samples)
        method.begin_epoch(2, None, None)
        found = method.targets["fused"].numpy()
        np.testing.assert_allclose(found.sum(axis=1), 1, atol=1e-5)
        assert np.abs(found - made.probs).max() > 1e-3
