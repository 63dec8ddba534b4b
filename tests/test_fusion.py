import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mifuse_cli.fusion import POOLS, WEIGHTINGS, entropy, fuse, mean_and_mi

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


# What the mean is where only the mutual information counts.
ANY = [[0.7, 0.3], [0.4, 0.6]]

BY_HAND = {
    # weighting: mean (U, T, K), mi (U, T), weight of the first teacher (U,)
    "mi": ([ANY], [[0.1, 0.3]], [0.880797]),  # 1 / (1 + exp(-0.2 / 0.1))
    "uniform": ([ANY], [[0.1, 0.3]], [0.5]),
    "one-minus-mi": ([ANY], [[LOG2 / 4, LOG2 / 2]], [0.6]),  # 0.75 : 0.5
    "inverse-mi": ([ANY], [[0.009, 0.039]], [0.8]),  # 100 : 25
    "entropy": ([[[1, 0, 0, 0], [0.5, 0.5, 0, 0]]], [[0.1, 0.1]], [2 / 3]),  # 1 : 1 - log 2 / log 4
    "max-confidence": ([ANY, ANY[::-1]], [[0.1, 0.3]] * 2, [1, 0]),
    # Ranks 0, 1/2, 1 beside 1, 1/4, 1/4 (a tie), over 0.3.
    "rank-mi": ([ANY] * 3, [[0.1, 0.9], [0.2, 0.5], [0.3, 0.5]], [0.965555, 0.302941, 0.075858]),
    # z of -1 and 1 beside 1 and -1, whatever the scale: e : 1/e.
    "z-mi": ([ANY] * 2, [[1, 0.003], [3, 0.001]], [0.880797, 0.119203]),
}


def test_every_weighting_is_checked_by_hand():
    assert BY_HAND.keys() == WEIGHTINGS.keys()


@pytest.mark.parametrize("weighting", BY_HAND)
def test_weighting_by_hand(weighting):
    mean, mi, first = BY_HAND[weighting]
    weights, _ = fuse(np.array(mean, float), np.array(mi, float), weighting=weighting)
    np.testing.assert_allclose(weights[:, 0], first, atol=1e-6)
    np.testing.assert_allclose(weights[:, 1], 1 - np.array(first), atol=1e-6)


@pytest.mark.parametrize("weighting", ["one-minus-mi", "entropy"])
def test_a_teacher_at_the_floor_keeps_a_little_weight(weighting):
    weights, _ = fuse(np.array([[FIRST, EVEN]]), np.array([[0, 2 * LOG2]]), weighting=weighting)
    assert 0 < weights[0, 1] < 1e-5


@pytest.mark.parametrize("weighting", ["z-mi", "rank-mi"])
def test_teachers_of_constant_mi_weigh_the_same(weighting):
    # 0.1 three times: the mean is 0.10000000000000002 and the spread 1e-17, which is no spread.
    weights, _ = fuse(np.array([ANY] * 3), np.array([[0.1, 0.9]] * 3), weighting=weighting)
    np.testing.assert_allclose(weights, 0.5)


def test_tau_sharpens():
    mean, mi = np.array([ANY]), np.array([[0.1, 0.3]])
    sharp, flat = (fuse(mean, mi, tau=tau)[0][0, 0] for tau in (0.05, 1.0))
    assert sharp == pytest.approx(0.982014, abs=1e-6)  # 1 / (1 + exp(-4))
    assert flat == pytest.approx(0.549834, abs=1e-6)  # 1 / (1 + exp(-0.2))


def test_mi_weights_do_not_underflow():
    weights, _ = fuse(np.array([ANY]), np.array([[900.0, 901.0]]), tau=1.0)
    assert weights[0, 0] == pytest.approx(0.731059, abs=1e-6)  # 1 / (1 + exp(-1))


def test_linear_pool_by_hand():
    mean, mi = np.array([[[0.8, 0.2], [0.4, 0.6]]]), np.array([[0.009, 0.039]])
    np.testing.assert_allclose(fuse(mean, mi, weighting="inverse-mi")[1], [[0.72, 0.28]])  # 0.8 : 0.2
    np.testing.assert_allclose(fuse(mean, mi, weighting="uniform")[1], [[0.6, 0.4]])


def test_log_pool_by_hand():
    mean = np.array([[[0.9, 0.1], [0.5, 0.5]]])  # sqrt(.45) : sqrt(.05) = 3 : 1
    _, probs = fuse(mean, np.zeros((1, 2)), weighting="uniform", pool="log")
    np.testing.assert_allclose(probs, [[0.75, 0.25]])


def test_a_zero_is_no_veto_in_the_log_pool():
    _, probs = fuse(np.array([[FIRST, EVEN]]), np.zeros((1, 2)), weighting="uniform", pool="log")
    assert probs[0, 1] == pytest.approx(math.sqrt(0.001) / (1 + math.sqrt(0.001)))
    _, probs = fuse(np.array([[FIRST, SECOND]]), np.zeros((1, 2)), weighting="uniform", pool="log")
    np.testing.assert_allclose(probs, [EVEN])


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_silent_teacher_has_no_weight(weighting, pool):
    mean = np.array([[NONE, [0.7, 0.3]], [[0.2, 0.8], NONE], ANY])
    mi = np.array([[math.nan, 0.2], [0.3, math.nan], [0.1, 0.1]])
    weights, probs = fuse(mean, mi, weighting=weighting, pool=pool)
    np.testing.assert_array_equal(weights[:2], [[0, 1], [1, 0]])
    np.testing.assert_allclose(probs[:2], [[0.7, 0.3], [0.2, 0.8]])


def test_a_clip_without_any_teacher_is_refused():
    with pytest.raises(ValueError, match="at least one teacher"):
        fuse(np.array([ANY, [NONE, NONE]]), np.array([[0.1, 0.2], [math.nan, math.nan]]))


@st.composite
def teachers(draw):
    """Mean (U, T, K) and mi (U, T) with at least one teacher a clip; mi in whole thousandths."""
    u, t, k = draw(st.integers(1, 5)), draw(st.integers(2, 3)), draw(st.integers(2, 4))
    mean = draw(arrays(float, (u, t, k), elements=st.integers(1, 50)))
    mean /= mean.sum(axis=-1, keepdims=True)
    mi = draw(arrays(int, (u, t), elements=st.integers(0, 1300))) / 1000
    silent = draw(arrays(bool, (u, t)))
    silent[np.arange(u), draw(arrays(int, u, elements=st.integers(0, t - 1)))] = False
    mean[silent], mi[silent] = math.nan, math.nan
    return mean, mi


one_weighting, one_pool = st.sampled_from(list(WEIGHTINGS)), st.sampled_from(POOLS)


# A teacher that is silent on every clip has no spread, which numpy says aloud.
@pytest.mark.filterwarnings("ignore::RuntimeWarning")
class TestProperties:
    @settings(max_examples=150, deadline=None)
    @given(teachers(), one_weighting, one_pool)
    def test_weights_and_labels_are_distributions(self, given_teachers, weighting, pool):
        weights, probs = fuse(*given_teachers, weighting=weighting, pool=pool)
        assert weights.min() >= 0 and weights.max() <= 1
        assert probs.min() > 0 and probs.max() <= 1
        np.testing.assert_allclose(weights.sum(axis=1), 1)
        np.testing.assert_allclose(probs.sum(axis=1), 1)

    @settings(max_examples=60, deadline=None)
    @given(teachers(), one_weighting, one_pool, st.randoms(use_true_random=False))
    def test_order_of_clips_does_not_matter(self, given_teachers, weighting, pool, random):
        mean, mi = given_teachers
        order = random.sample(range(len(mi)), len(mi))
        before = fuse(mean, mi, weighting=weighting, pool=pool)
        after = fuse(mean[order], mi[order], weighting=weighting, pool=pool)
        for one, other in zip(before, after, strict=True):
            np.testing.assert_allclose(one[order], other, rtol=1e-9)

    @settings(max_examples=60, deadline=None)
    @given(teachers(), one_weighting, one_pool)
    def test_order_of_teachers_does_not_matter(self, given_teachers, weighting, pool):
        mean, mi = given_teachers
        if weighting == "max-confidence":  # a tie goes to the first teacher
            sure = np.sort(np.nan_to_num(mean.max(axis=-1)), axis=1)
            assume((sure[:, -1] - sure[:, -2] > 1e-9).all())
        weights, probs = fuse(mean, mi, weighting=weighting, pool=pool)
        turned, same = fuse(mean[:, ::-1], mi[:, ::-1], weighting=weighting, pool=pool)
        np.testing.assert_allclose(turned[:, ::-1], weights, rtol=1e-9)
        np.testing.assert_allclose(same, probs, rtol=1e-9)

    @settings(max_examples=60, deadline=None)
    @given(arrays(float, (3, 4, 3), elements=st.integers(1, 50)), st.randoms(use_true_random=False))
    def test_mi_is_bounded_and_blind_to_the_order_of_samples(self, counts, random):
        samples = counts / counts.sum(axis=-1, keepdims=True)
        mean, mi = mean_and_mi(samples, "plugin")
        assert (mi >= 0).all() and (mi <= entropy(mean) + 1e-12).all()
        turned = mean_and_mi(samples[:, random.sample(range(4), 4)], "plugin")
        np.testing.assert_allclose(turned[1], mi, atol=1e-12)
