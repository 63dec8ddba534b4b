import math

import numpy as np
import pytest
from scipy.stats import bootstrap
from sklearn.metrics import accuracy_score, confusion_matrix, f1_score, recall_score

from mifuse_cli.evaluation import (
    accuracy,
    expected_calibration_error,
    predicted_classes,
    predicted_prior,
    prior_corrected_classes,
    rates,
    reliability,
    score,
    signature,
)


def certain(predicted, classes):
    """(U, K) one-hot rows; None stands for no prediction."""
    rows = np.full((len(predicted), classes), math.nan)
    for row, k in zip(rows, predicted, strict=True):
        if k is not None:
            row[:] = np.eye(classes)[k]
    return rows


def scored(truth, probs, *, seed=0, resamples=200, **options):
    rng = np.random.default_rng(seed)
    return score(np.array(truth), probs, resamples=resamples, rng=rng, **options)


def test_scores_by_hand_with_a_class_that_does_not_occur():
    found = scored([0, 0, 0, 0, 1, 1], certain([0, 0, 0, 1, 1, 2], 3))
    assert found.recall == (0.75, 0.5, None)
    assert found.ua == pytest.approx(0.625)
    assert found.wa == pytest.approx(4 / 6)
    assert found.macro_f1 == pytest.approx((6 / 7 + 1 / 2) / 2)  # F1 = 2 TP / (2 TP + FP + FN)
    assert found.confusion.tolist() == [[3, 1, 0, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    assert found.marginal == pytest.approx((3 / 6, 2 / 6, 1 / 6))
    assert (found.n, found.missing, found.speakers, found.interval) == (6, 0, 0, "clips")


def test_ua_weighs_classes_alike_and_wa_clips():
    found = scored([0] * 9 + [1], certain([0] * 10, 2))
    assert (found.ua, found.wa) == (0.5, 0.9)


def test_the_prior_corrected_decision_by_hand():
    # prior = (2.1, 0.9) / 3 = (0.7, 0.3): p/prior = (8/7, 2/3), (6/7, 4/3), (1, 1)
    probs = np.array([[0.8, 0.2], [0.6, 0.4], [0.7, 0.3]])
    assert predicted_prior(probs) == pytest.approx((0.7, 0.3))
    assert prior_corrected_classes(probs[:2], predicted_prior(probs)).tolist() == [0, 1]
    found = scored([0, 1], probs[:2], prior=predicted_prior(probs))
    assert (found.ua, found.ua_prior_corrected) == (0.5, 1)
    assert found.recall == (1, 0) and found.confusion.tolist() == [[1, 0, 0], [1, 0, 0]]


def test_the_prior_is_of_the_clips_with_a_prediction():
    probs = np.array([[0.9, 0.1], [np.nan, np.nan], [0.7, 0.3]])
    assert predicted_prior(probs) == pytest.approx((0.8, 0.2))
    assert prior_corrected_classes(probs).tolist() == [0, 2, 1]
    assert predicted_prior(np.full((2, 3), np.nan)).tolist() == [0, 0, 0]
    assert prior_corrected_classes(np.full((2, 3), np.nan)).tolist() == [3, 3]


def test_the_prior_of_all_clips_decides_on_a_part_of_them():
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.6, 0.4], [0.6, 0.4]])  # prior (0.75, 0.25)
    whole = scored([0, 0, 1, 1], probs)
    part = scored([1, 1], probs[2:], prior=predicted_prior(probs))
    assert whole.ua_prior_corrected == part.ua_prior_corrected == 1
    assert scored([1, 1], probs[2:]).ua_prior_corrected == 0  # prior (0.6, 0.4): 1 = 1, the first class


def test_a_class_that_is_never_predicted_is_never_chosen():
    probs = np.array([[1.0, 0.0, 0.0], [0.4, 0.6, 0.0]])
    assert prior_corrected_classes(probs).tolist() == [0, 1]


def test_intervals_of_both_decisions_are_over_the_same_draws():
    rng = np.random.default_rng(4)
    truth = rng.integers(2, size=60)
    first = np.where(truth == 0, 0.8, 0.6) + 0.2 * rng.random(60)
    found = scored(truth, np.stack([first, 1 - first], axis=1))
    assert found.ua == 0.5 == found.ua_low == found.ua_high
    assert 0.7 < found.ua_prior_corrected_low < found.ua_prior_corrected < found.ua_prior_corrected_high
    even = certain(truth, 2)
    same = scored(truth, np.where(even == 1, 0.7, 0.3), seed=2)
    assert (same.ua_low, same.ua, same.ua_high) == (
        same.ua_prior_corrected_low, same.ua_prior_corrected, same.ua_prior_corrected_high
    )  # fmt: skip


def test_a_missing_prediction_is_wrong():
    found = scored([0, 0, 1], certain([0, None, 1], 2))
    assert found.recall == (0.5, 1.0)
    assert found.ua == pytest.approx(0.75)
    assert found.wa == pytest.approx(2 / 3)
    assert found.macro_f1 == pytest.approx((2 / 3 + 1) / 2)
    assert found.confusion.tolist() == [[1, 0, 1], [0, 1, 0]]
    assert found.missing == 1
    assert found.marginal == pytest.approx((0.5, 0.5))  # of the clips with a prediction
    assert found.ece == 0


def test_no_prediction_at_all():
    found = scored([0, 1], certain([None, None], 2))
    assert (found.ua, found.wa, found.macro_f1, found.missing) == (0, 0, 0, 2)
    assert found.marginal == () and math.isnan(found.ece)


def test_calibration_error_by_hand():
    # 0.9 twice, right once: gap 0.4 for 2 of 3 clips; 0.6, right: gap 0.4 for 1 of 3.
    probs = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    assert expected_calibration_error(np.array([0, 1, 1]), probs) == pytest.approx(0.4)


def test_calibration_error_cancels_only_within_a_bin():
    truth, probs = np.array([1, 0]), np.array([[0.75, 0.25], [0.9, 0.1]])  # wrong, right
    assert expected_calibration_error(truth, probs) == pytest.approx((0.75 + 0.1) / 2)
    assert expected_calibration_error(truth, probs, bins=3) == pytest.approx((0.75 - 0.1) / 2)


def test_full_confidence_falls_into_the_last_bin():
    probs = np.array([[0.0, 1.0], [0.95, 0.05]])  # wrong, right: cancel in part
    assert expected_calibration_error(np.array([0, 0]), probs) == pytest.approx((1 - 0.05) / 2)


def clustered():
    """Eight speakers with ten clips of two classes: four speakers all right, four all wrong."""
    truth = np.array([0, 1] * 40)
    speakers = [f"s{n // 10}" for n in range(80)]
    right = np.arange(80) < 40
    return truth, certain(np.where(right, truth, 1 - truth), 2), speakers


def test_interval_over_speakers_contains_ua_and_is_wider_than_over_clips():
    truth, probs, speakers = clustered()
    by_speaker, by_clip = scored(truth, probs, speakers=speakers), scored(truth, probs)
    assert (by_speaker.interval, by_speaker.speakers) == ("speakers", 8)
    for found in (by_speaker, by_clip):
        assert found.ua_low < found.ua == 0.5 < found.ua_high
    # 3.92 * 0.5 / sqrt(8) = 0.69 and 3.92 * 0.5 / sqrt(80) = 0.22
    assert by_speaker.ua_high - by_speaker.ua_low == pytest.approx(0.69, abs=0.15)
    assert by_clip.ua_high - by_clip.ua_low == pytest.approx(0.22, abs=0.06)


def test_interval_depends_on_the_generator_alone():
    first_class = np.random.default_rng(5).random(80)
    truth, probs = [0, 1] * 40, np.stack([first_class, 1 - first_class], axis=1)
    first, again, other = (scored(truth, probs, seed=seed) for seed in (1, 1, 2))
    assert (first.ua_low, first.ua_high) == (again.ua_low, again.ua_high)
    assert (first.ua_low, first.ua_high) != (other.ua_low, other.ua_high)


def test_interval_of_certain_results_is_a_point():
    found = scored([0, 1, 0, 1], certain([0, 1, 0, 1], 2))
    assert (found.ua_low, found.ua, found.ua_high) == (1, 1, 1)


def test_one_speaker_gives_no_interval():
    found = scored([0, 1], certain([0, 0], 2), speakers=["a", "a"])
    assert found.speakers == 1 and math.isnan(found.ua_low) and math.isnan(found.ua_high)


def test_signature_is_one_line_of_keys_and_values():
    text = signature(classes=("angry", "sad"), n=3, ci="95%")
    assert text == "UA|classes:angry+sad|n:3|ci:95%"


def test_reliability_by_hand():
    # Confidences .5, .55 (bin 5 of 10, one right), .91 (bin 9, right) and 1 (the last bin, wrong).
    probs = np.array([[0.5, 0.5], [0.45, 0.55], [0.91, 0.09], [1.0, 0.0]])
    clips, sure, right = reliability(np.array([0, 0, 0, 1]), probs, bins=10)
    assert clips.tolist() == [0, 0, 0, 0, 0, 2, 0, 0, 0, 2]
    assert np.isnan(sure[:5]).all() and np.isnan(right[:5]).all()
    assert sure[[5, 9]] == pytest.approx([0.525, 0.955]) and right[[5, 9]] == pytest.approx([0.5, 0.5])
    ece = expected_calibration_error(np.array([0, 0, 0, 1]), probs, bins=10)
    assert ece == pytest.approx((2 * 0.025 + 2 * 0.455) / 4)


def test_reliability_of_nothing():
    clips, sure, _ = reliability(np.zeros(0, int), np.zeros((0, 2)), bins=3)
    assert clips.tolist() == [0, 0, 0] and np.isnan(sure).all()


def test_rates_and_score_are_those_of_scikit_learn():
    rng = np.random.default_rng(0)
    truth, probs = rng.integers(3, size=60), rng.dirichlet(np.ones(4), 60)  # the fourth class does not occur
    probs[[3, 9]] = np.nan
    found = rates(truth, probs)
    said = predicted_classes(probs)
    recalls = recall_score(truth, said, labels=range(4), average=None, zero_division=0)
    assert found["ua"] == accuracy(truth, said, 4) == pytest.approx(recalls[:3].mean())
    assert found["wa"] == pytest.approx(accuracy_score(truth, said))
    f1 = f1_score(truth, said, labels=range(3), average="macro", zero_division=0)
    assert found["macro_f1"] == pytest.approx(f1)
    score = scored(truth, probs)
    assert found == {name: getattr(score, name) for name in found}
    assert score.recall[:3] == pytest.approx(recalls[:3]) and score.recall[3] is None
    matrix = confusion_matrix(truth, said, labels=range(5))[:4]
    np.testing.assert_array_equal(score.confusion, matrix)


def test_the_interval_is_that_of_scipy():
    rng = np.random.default_rng(1)
    truth, probs = rng.integers(3, size=70), rng.dirichlet(np.ones(4), 70)  # the fourth class does not occur
    probs[[5, 40, 41]] = np.nan
    predicted = predicted_classes(probs)
    found = scored(truth, probs, seed=3, resamples=250)

    def unweighted_accuracy(drawn, axis=-1):
        right, of = predicted[drawn] == truth[drawn], truth[drawn]
        return np.mean([right[of == k].mean() for k in np.unique(of)])

    expected = bootstrap(
        (np.arange(70),), unweighted_accuracy, n_resamples=250, batch=100, method="percentile",
        vectorized=False, rng=np.random.default_rng(3),
    ).confidence_interval  # fmt: skip
    assert (found.ua_low, found.ua_high) == pytest.approx((expected.low, expected.high))
