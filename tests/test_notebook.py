"""The functions over arrays: what they give, that nothing changes under the caller, and what they refuse."""

import dataclasses
import runpy
from pathlib import Path

import numpy as np
import pytest
import torch

import mifuse_cli as m
from mifuse_cli import evaluation, fusion, provenance
from mifuse_cli.methods.adaptation import WITHOUT_STUDENT
from mifuse_cli.methods.lame import lame
from mifuse_cli.model.classifier import units

EXAMPLE = Path(__file__).resolve().parent.parent / "examples/notebook.py"
U, K, D = 40, 4, 6


def samples(seed=0, n=5):
    return np.random.default_rng(seed).dirichlet(np.ones(K), size=(U, n))


def features(seed=0):
    return np.random.default_rng(seed).normal(size=(U, D))


def truth(seed=0):
    return np.random.default_rng(seed).integers(K, size=U)


@pytest.fixture(scope="module")
def head():
    return m.train_head(features(1), truth(1), classes=K, hidden=8, epochs=3)


def test_the_example_runs_and_its_student_beats_both_teachers(capsys):
    made = runpy.run_path(str(EXAMPLE))
    lines = capsys.readouterr().out.splitlines()
    ua = {line.split()[0]: float(line.split()[2]) for line in lines}
    assert list(ua) == ["source", "LALM", "labels", "student"]
    assert ua["student"] > max(ua["source"], ua["LALM"]) + 5
    assert made["fused"].weights.shape == (400, 2)
    assert len(EXAMPLE.read_text().splitlines()) <= 32


class TestFuseArrays:
    def test_weightings_are_those_of_fusion(self):
        settings = m.FusionSettings(weighting="rank-mi", pool="log", sharpen=0.5)
        found = m.fuse_arrays([samples(0), samples(1)], settings=settings)
        expected = fusion.fuse_samples([samples(0), samples(1)], settings)
        for name in ("probs", "weights", "mean", "mi"):
            np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))

    def test_features_make_it_cross_fit(self):
        plain = m.fuse_arrays([samples(0), samples(1)])
        assert plain.settings.weighting == "mi" and plain.cross_fit is None
        found = m.fuse_arrays([samples(0), samples(1)], features=features())
        assert found.settings.weighting == "cross-fit" and found.cross_fit.voices == ()
        again = m.fuse_arrays([samples(0), samples(1)], features=features())
        np.testing.assert_array_equal(again.probs, found.probs)
        other = m.fuse_arrays([samples(0), samples(1)], features=features(1))
        assert np.abs(other.probs - found.probs).max() > 1e-3
        # Both guess.
        assert found.forecast.recall.shape == (2, K)
        assert 0 in found.forecast.at_chance and np.isnan(found.forecast.labels)
        agreed = m.fuse_arrays([samples(0), samples(0)], features=features())
        assert agreed.forecast.at_chance == () and 0 < agreed.forecast.labels < 1
        # Scale and offset of a feature do not matter.
        moved = m.fuse_arrays([samples(0), samples(1)], features=features() * 7 - 3)
        np.testing.assert_allclose(moved.probs, found.probs, atol=1e-3)

    def test_lists_and_missing_answers_will_do(self):
        answers = samples(0)
        answers[3] = np.nan
        found = m.fuse_arrays([answers.tolist(), samples(1).tolist()])
        assert found.weights[3].tolist() == [0, 1] and np.isfinite(found.probs).all()

    @pytest.mark.parametrize(
        ("given", "options", "message"),
        [
            ([samples()], {}, "samples: expected a list of two arrays or more"),
            ([samples()[0], samples()], {}, r"samples\[0\]: of shape \(5, 4\), expected \(U, N, K\)"),
            ([samples(), samples()[:9]], {}, r"samples\[1\]: 9 clips and 4 classes, samples\[0\] has 40"),
            ([samples() * 2, samples()], {}, "rows do not sum to 1, one sums to 2; divide"),
            ([samples() - 1, samples()], {}, "negative probabilities"),
            ([np.full((U, 2, K), np.nan), samples()], {}, r"samples\[0\]: holds no valid distribution"),
            ([samples(), "abc"], {}, r"samples\[1\]: is no array of numbers"),
            ([samples(), samples()], {"features": features()[:5]}, "features: of 5 clips, expected 40"),
            ([samples(), samples()], {"features": np.full((U, D), np.inf)}, "features: hold NaN or inf"),
            ([samples(), samples()], {"features": np.ones(U)}, r"features: of shape \(40,\), expected"),
            ([samples(), samples()], {"settings": m.FusionSettings()}, "features: cross-fit needs them"),
            ([samples(), samples()], {"settings": "mi"}, "settings: is of type str, expected FusionSettings"),
            ({"lalm": samples()}, {}, "samples: expected a list"),
            (
                [samples(), samples()],
                {"settings": m.FusionSettings(weighting="mi"), "features": features()},
                "features: --weighting mi makes no use of them",
            ),
        ],
    )
    def test_what_is_refused(self, given, options, message):
        with pytest.raises(m.InputError, match=message):
            m.fuse_arrays(given, **options)

    def test_a_part_of_a_row_and_a_classifier_with_gaps_are_refused(self):
        part, gap = samples(), samples()
        part[2, 1, 0] = gap[2, 1] = np.nan
        with pytest.raises(m.InputError, match="NaN or infinity in a part of a row"):
            m.fuse_arrays([part, samples()])
        with pytest.raises(m.InputError, match="the source classifier, the last teacher, has missing"):
            m.fuse_arrays([samples(), gap])

    def test_what_does_not_fit_the_settings(self):
        with pytest.raises(m.InputError, match="Dawid-Skene needs 3"):
            m.fuse_arrays([samples(), samples()], settings=m.FusionSettings(weighting="dawid-skene"))
        with pytest.raises(m.UsageError, match="--pool log: has no effect"):
            m.FusionSettings(pool="log")


class TestScore:
    def test_is_that_of_evaluation(self):
        probs, speakers = samples()[:, 0], [f"s{n % 5}" for n in range(U)]
        found = m.score_predictions(truth(), probs, speakers=speakers, resamples=200, seed=3)
        expected = evaluation.score(
            truth(), probs, speakers=speakers, resamples=200, rng=provenance.rng(3, "evaluate")
        )
        assert dataclasses.replace(found, confusion=0) == dataclasses.replace(expected, confusion=0)
        np.testing.assert_array_equal(found.confusion, expected.confusion)

    def test_a_part_is_scored_by_the_prior_of_all(self):
        probs, prior = samples()[:, 0], [0.7, 0.1, 0.1, 0.1]
        assert m.score_predictions(truth(), probs, prior=prior).ua_prior_corrected == evaluation.accuracy(
            truth(), (probs / prior).argmax(axis=1), K
        )

    @pytest.mark.parametrize(
        ("labels", "options", "message"),
        [
            (truth()[:3], {}, r"truth: of shape \(3,\), expected \(40,\)"),
            (truth() + 1, {}, "truth: holds 1 to 4, expected class indices from 0 to 3"),
            (truth().astype(float), {}, "truth: of type float64, expected class indices"),
            (["angry"] * U, {}, "expected class indices"),
            (truth(), {"speakers": ["a"]}, "speakers: of 1 clips, expected 40"),
            (truth(), {"speakers": [None] * U}, "speakers: some are unknown"),
            (truth(), {"prior": [0.5, 0.5]}, r"prior: of shape \(2,\), expected \(4,\)"),
            (truth(), {"prior": [0.5, 0.5, 0.5, 0.5]}, "prior: rows do not sum to 1"),
            (truth(), {"prior": [np.nan] * K}, "prior: holds NaN; leave clips without a prediction out"),
            (truth(), {"resamples": 0}, "resamples: 0, expected a whole number, 1 or more"),
        ],
    )
    def test_what_is_refused(self, labels, options, message):
        with pytest.raises(m.InputError, match=message):
            m.score_predictions(labels, samples()[:, 0], **options)


class TestHeads:
    def test_predictions_and_samples_are_distributions(self, head):
        assert head.history.shape == (3, 1) and head.terms == ("cross_entropy",)
        for layers in (features(), features()[:, None]):
            np.testing.assert_allclose(head.predict(layers).sum(axis=1), 1, atol=1e-5)
        drawn = head.sample(features(), passes=3)
        assert drawn.shape == (U, 3, K) and not np.array_equal(drawn[:, 0], drawn[:, 1])
        np.testing.assert_array_equal(head.sample(features(), passes=3), drawn)

    def test_a_head_learns(self):
        centres = np.random.default_rng(5).normal(size=(K, D)) * 3
        head = m.train_head(features() + centres[truth()], truth(), classes=K, epochs=40)
        said = head.predict(features(2) + centres[truth(2)]).argmax(axis=1)
        assert (said == truth(2)).mean() > 0.8

    @pytest.mark.parametrize(
        "method", ["mifuse", "lalm-sfuda", "nrc+lalm", "shot", "t3a", "t3a+lalm", "rcl", "duet"]
    )
    def test_adapting_leaves_the_source_head_as_it_was(self, head, method):
        before = {name: one.copy() for name, one in head.weights.items()}
        fused = m.fuse_arrays([samples(0), head.sample(features())])
        student = m.adapt_head(head, features(), fused, method=method, epochs=2)
        assert all(np.array_equal(head.weights[name], one) for name, one in before.items())
        assert any(not np.array_equal(student.weights[name], one) for name, one in before.items())

    @pytest.mark.parametrize("method", WITHOUT_STUDENT)
    def test_predicting_clips(self, head, method):
        heard = samples(0)
        heard[[3, 8]] = np.nan
        fused = m.fuse_arrays([heard, head.sample(features())])
        before = {name: one.copy() for name, one in head.weights.items()}
        found = m.predict_clips(head, features(), fused, method=method)
        assert found.shape == (U, K) and np.allclose(found.sum(axis=1), 1)
        assert np.abs(found - head.predict(features())).max() > 0.01
        assert all(np.array_equal(head.weights[name], one) for name, one in before.items())
        np.testing.assert_array_equal(m.predict_clips(head, features(), fused, method=method), found)
        others = m.fuse_arrays([samples(4), head.sample(features())])
        heeded = m.predict_clips(head, features(), others, method=method)
        assert np.array_equal(heeded, found) == (method == "lame")

    def test_lame_is_given_the_head_s_units_and_predictions_and_answers(self, head):
        fused = m.fuse_arrays([samples(0), head.sample(features())])
        hidden, probs = units(*head._ready(features())), head.predict(features())
        for method, given in (("lame", probs), ("lame+lalm", (probs + fused.mean[:, 0]) / 2)):
            found = m.predict_clips(head, features(), fused, method=method)
            np.testing.assert_allclose(found, lame(hidden, torch.from_numpy(given)), atol=1e-5)

    def test_predicting_clips_without_any_answer(self, head):
        silent = m.fuse_arrays(
            [samples(0), head.sample(features())],
            settings=m.FusionSettings(without="lalm"),
            features=features(),
        )
        assert np.isfinite(m.predict_clips(head, features(), silent, method="lame")).all()
        for method in ("emo-tta", "lame+lalm"):
            with pytest.raises(m.InputError, match="learns from answers of a LALM"):
                m.predict_clips(head, features(), silent, method=method)

    def test_refresh_is_the_paper_s_loop(self, head):
        fused = m.fuse_arrays([samples(0), head.sample(features())])
        kept, renewed, usual = (
            m.adapt_head(head, features(), fused, epochs=3, refresh=refresh).predict(features())
            for refresh in (0, 1, None)
        )
        np.testing.assert_array_equal(renewed, usual)
        assert np.abs(kept - renewed).max() > 1e-6
        crossed = m.fuse_arrays([samples(0), head.sample(features())], features=features())
        with pytest.raises(m.UsageError, match="labels of fuse --weighting cross-fit"):
            m.adapt_head(head, features(), crossed, refresh=1)

    def test_what_is_refused(self, head):
        fused = m.fuse_arrays([samples(0), samples(1)])
        with pytest.raises(m.InputError, match="1 layers of 5 features, the head was trained on 1 of 6"):
            head.predict(features()[:, :5])
        with pytest.raises(m.InputError, match="labels of 40 clips and 4 classes, expected 9"):
            m.adapt_head(head, features()[:9], fused)
        with pytest.raises(m.InputError, match="method 'oracle': expected one of mifuse"):
            m.adapt_head(head, features(), fused, method="oracle")
        with pytest.raises(m.InputError, match="method 'lame': expected one of mifuse"):
            m.adapt_head(head, features(), fused, method="lame")
        with pytest.raises(m.InputError, match=r"method 'shot': expected one of lame, lame\+lalm, emo-tta"):
            m.predict_clips(head, features(), fused, method="shot")
        with pytest.raises(m.InputError, match="passes: 1, expected a whole number, 2 or more"):
            head.sample(features(), passes=1)
        for options, message in (
            ({"epochs": 0}, "--epochs 0: expected 1 or more"),
            ({"refresh": -1}, "--refresh -1: expected 0 or more"),
            ({"learning_rate": -1.0}, "--learning-rate -1.0: expected more than 0"),
            ({"passes": 1}, "passes: 1, expected a whole number, 2 or more"),
            ({"method": "shot", "refresh": 2}, "--refresh 2: --method shot has no fused labels"),
        ):
            with pytest.raises(m.MifuseError, match=message):
                m.adapt_head(head, features(), m.fuse_arrays([samples(0), samples(1)]), **options)
        for options in ({"hidden": 0}, {"dropout": 1.5}, {"epochs": -1}, {"classes": ("a", "b")}):
            with pytest.raises(m.MifuseError, match="expected"):
                m.train_head(features(), truth(), **{"classes": K, **options})
        with pytest.raises(m.InputError, match="fused: is of type ndarray, expected Fusion"):
            m.adapt_head(head, features(), samples()[:, 0])
        with pytest.raises(m.InputError, match="no active dropout"):
            m.train_head(features(), truth(), classes=K, dropout=0.0, epochs=1).sample(features())


def test_parse_answer_reads_and_refuses():
    classes = ("angry", "sad")
    assert m.parse_answer('{"angry": 0.25, "sad": 0.75}', classes).probs == (0.25, 0.75)
    assert m.parse_answer("I cannot tell.", classes).probs is None
    with pytest.raises(ValueError):
        m.parse_answer("{}", ())
