import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from scipy.special import digamma

from mifuse_cli.fusion import (
    MI_ESTIMATORS,
    are_votes,
    entropy,
    js_divergence,
    mean_and_mi,
    share_identical,
    top_counts,
)

LOG2 = math.log(2)
FIRST, SECOND, EVEN, NONE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [math.nan, math.nan]


def test_entropy_in_nats_with_zero_log_zero():
    assert entropy(np.array([FIRST, EVEN, [0.25, 0.75]])) == pytest.approx([0, 0.693147, 0.562335], abs=1e-6)


@pytest.mark.parametrize(
    ("samples", "plugin"),
    [
        ([FIRST, SECOND], LOG2),  # all disagreement, none within a sample
        ([FIRST, FIRST], 0),
        ([EVEN, EVEN], 0),  # unsure, but always in the same way
        ([FIRST, EVEN], 0.215762),  # H(.75, .25) - (0 + log 2) / 2 = 0.562335 - 0.346574
        ([FIRST, FIRST, SECOND], 0.636514),  # H(2/3, 1/3)
    ],
)
def test_mutual_information_by_hand(samples, plugin):
    n = len(samples)
    assert mean_and_mi(np.array([samples]), "plugin")[1][0] == pytest.approx(plugin, abs=1e-6)
    assert mean_and_mi(np.array([samples]), "scaled")[1][0] == pytest.approx(plugin * n / (n - 1), abs=1e-6)


def test_missing_samples_are_left_out_of_mean_and_count():
    mean, mi = mean_and_mi(np.array([[FIRST, NONE, SECOND], [FIRST, FIRST, SECOND]]))
    np.testing.assert_allclose(mean, [[0.5, 0.5], [2 / 3, 1 / 3]])
    np.testing.assert_allclose(mi, [LOG2 * 2, 0.636514 * 1.5], atol=1e-5)  # n = 2 and n = 3


def test_a_single_sample_gets_the_mean_mi_of_the_other_clips():
    mean, mi = mean_and_mi(np.array([[FIRST, SECOND], [FIRST, FIRST], [NONE, [0.9, 0.1]]]), "plugin")
    np.testing.assert_allclose(mi, [LOG2, 0, LOG2 / 2])
    np.testing.assert_allclose(mean[2], [0.9, 0.1])


@pytest.mark.parametrize("estimator", ["plugin", "scaled"])
def test_single_samples_alone_get_log_k(estimator):
    _, mi = mean_and_mi(np.array([[[1, 0, 0, 0]], [[0.25] * 4]]), estimator)
    np.testing.assert_allclose(mi, [math.log(4)] * 2)


def test_a_silent_teacher_has_nan_and_does_not_change_the_other_clips():
    mean, mi = mean_and_mi(np.array([[NONE, NONE], [FIRST, SECOND], [FIRST, NONE]]), "plugin")
    assert np.isnan(mean[0]).all() and np.isnan(mi[0])
    np.testing.assert_allclose(mi[1:], [LOG2, LOG2])  # the single sample takes the mean of clip 1 alone


def test_js_divergence_by_hand():
    assert js_divergence(np.array(FIRST), np.array(SECOND)) == pytest.approx(LOG2)
    assert js_divergence(np.array([FIRST, EVEN]), np.array([EVEN, EVEN])) == pytest.approx(
        [0.215762, 0], abs=1e-6
    )


def plugin(rows):
    """I of some samples, in words of the formula."""

    def h(p):
        return -sum(x * math.log(x) for x in p if x > 0)

    mean = [sum(column) / len(rows) for column in zip(*rows, strict=True)]
    return h(mean) - sum(map(h, rows)) / len(rows)


def parity(rows, estimator):
    """What an estimator is for two samples of a clip and more, before the floor at 0."""
    n = len(rows)
    if estimator == "jackknife":
        without = [plugin(rows[:i] + rows[i + 1 :]) for i in range(n)]
        return n * plugin(rows) - (n - 1) * sum(without) / n
    if estimator == "pairwise-js":
        pairs = [plugin(pair) for pair in permutations(rows, 2)]
        return 2 * sum(pairs) / len(pairs)
    return plugin(rows) * (1 if estimator == "plugin" else n / (n - 1))


@st.composite
def several(draw):
    """Samples (U, N, K) of which at least two a clip are valid; zeros among the probabilities."""
    u, n, k = draw(st.integers(1, 4)), draw(st.integers(2, 5)), draw(st.integers(2, 4))
    samples = draw(arrays(float, (u, n, k), elements=st.integers(0, 9)))
    samples[samples.sum(axis=-1) == 0, 0] = 1
    samples /= samples.sum(axis=-1, keepdims=True)
    missing = draw(arrays(bool, (u, n)))
    missing[:, :2] = False
    samples[missing] = math.nan
    return samples


class TestParity:
    @pytest.mark.parametrize("estimator", ["plugin", "scaled", "jackknife", "pairwise-js"])
    @settings(max_examples=30, deadline=None)
    @given(several())
    def test_with_the_formula(self, estimator, samples):
        mean, mi = mean_and_mi(samples, estimator)
        for clip, found_mean, found in zip(samples, mean, mi, strict=True):
            rows = [row.tolist() for row in clip if not np.isnan(row).any()]
            np.testing.assert_allclose(found_mean, np.mean(rows, axis=0))
            assert found == pytest.approx(max(parity(rows, estimator), 0), abs=1e-9)

    @settings(max_examples=30, deadline=None)
    @given(several())
    def test_shrunk(self, samples):
        _, scaled = mean_and_mi(samples, "scaled")
        _, found = mean_and_mi(samples, "shrunk")
        centre = sum(scaled) / len(scaled)
        for clip, one, shrunk in zip(samples, scaled, found, strict=True):
            n = int((~np.isnan(clip[:, 0])).sum())
            assert shrunk == pytest.approx(n / (n + 1) * one + 1 / (n + 1) * centre)

    @given(arrays(int, (3, 4), elements=st.integers(-1, 2)))
    def test_bayes(self, labels):
        samples = np.where((labels >= 0)[..., None], np.eye(3)[labels], math.nan)
        mean, mi = mean_and_mi(samples, "bayes")
        for given_labels, found_mean, found in zip(labels.tolist(), mean, mi, strict=True):
            votes = [label for label in given_labels if label >= 0]
            if not votes:
                assert np.isnan(found_mean).all() and np.isnan(found)
                continue
            alpha = [votes.count(k) + 0.5 for k in range(3)]
            total = sum(alpha)
            np.testing.assert_allclose(found_mean, [a / total for a in alpha])
            expected = digamma(total + 1) - sum(a / total * digamma(a + 1) for a in alpha)
            assert found == pytest.approx(expected)


def test_bayes_is_the_mean_entropy_of_drawn_posteriors():
    votes = np.eye(3)[[[0, 0, 1, 0, 2]]]
    drawn = np.random.default_rng(0).dirichlet([3.5, 1.5, 1.5], 40_000)
    mean, mi = mean_and_mi(votes, "bayes")
    assert mi[0] == pytest.approx(entropy(drawn).mean(), abs=5e-3)
    np.testing.assert_allclose(mean[0], drawn.mean(axis=0), atol=5e-3)


def test_bayes_beats_the_plug_in_on_few_votes():
    rng = np.random.default_rng(1)
    truth = rng.dirichlet(np.full(4, 0.5), 1000)
    samples = np.eye(4)[np.array([rng.choice(4, 5, p=p) for p in truth])]
    error = {
        name: math.sqrt(((mean_and_mi(samples, name)[1] - entropy(truth)) ** 2).mean())
        for name in ("plugin", "bayes")
    }
    assert error["plugin"] == pytest.approx(0.39, abs=0.03) and error["bayes"] == pytest.approx(
        0.22, abs=0.03
    )


@pytest.mark.parametrize("estimator", ["scaled", "jackknife", "pairwise-js"])
def test_few_samples_say_what_many_do(estimator):
    rng = np.random.default_rng(2)
    centres = rng.dirichlet(np.ones(4), 600)
    many = np.stack([rng.dirichlet(8 * centre + 0.1, 400) for centre in centres])
    truth = mean_and_mi(many, "plugin")[1].mean()
    found = mean_and_mi(many[:, :5], estimator)[1].mean()
    assert mean_and_mi(many[:, :5], "plugin")[1].mean() / truth == pytest.approx(0.8, abs=0.03)
    assert found / truth == pytest.approx(1, abs=0.06)


@settings(max_examples=60, deadline=None)
@given(several(), st.sampled_from(MI_ESTIMATORS), st.randoms(use_true_random=False))
def test_order_of_samples_and_classes_does_not_matter(samples, estimator, random):
    mean, mi = mean_and_mi(samples, estimator)
    assert np.isfinite(mean).all() and np.isfinite(mi).all() and (mi >= 0).all()
    np.testing.assert_allclose(mean.sum(axis=1), 1)
    rows, classes = (random.sample(range(size), size) for size in samples.shape[1:])
    other_mean, other = mean_and_mi(samples[:, rows][..., classes], estimator)
    np.testing.assert_allclose(other, mi, atol=1e-9)
    np.testing.assert_allclose(other_mean, mean[:, classes])


def test_votes():
    assert are_votes(np.array([[FIRST, NONE], [SECOND, FIRST]]))
    assert not are_votes(np.array([[FIRST, NONE], [SECOND, EVEN]]))
    assert not are_votes(np.array([[NONE]]))
    soft = np.array([[FIRST, [0.9, 0.1]]])
    for found, expected in zip(mean_and_mi(soft, "bayes"), mean_and_mi(soft, "scaled"), strict=True):
        np.testing.assert_array_equal(found, expected)


def test_share_of_identical_samples():
    samples = [[EVEN, EVEN], [FIRST, EVEN], [FIRST, FIRST], [FIRST, NONE], [NONE, NONE]]
    assert share_identical(np.array(samples)) == pytest.approx(2 / 3)
    assert math.isnan(share_identical(np.array(samples[3:])))


def test_samples_are_counted_by_their_most_probable_class():
    samples = [[FIRST, FIRST, SECOND], [EVEN, SECOND, NONE], [NONE, NONE, NONE]]
    assert top_counts(np.array(samples)).tolist() == [[2, 1], [0.5, 1.5], [0, 0]]
