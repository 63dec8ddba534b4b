import math

import numpy as np
import pytest

from mifuse_cli.fusion import POOLS, WEIGHTINGS, FusionSettings, fuse_means

LOG2 = math.log(2)
FIRST, SECOND, EVEN, NONE = [1.0, 0.0], [0.0, 1.0], [0.5, 0.5], [math.nan, math.nan]


def fuse(mean, mi, **how):
    """Of these teachers by these settings; those that the weighting has no use for are dropped."""
    return fuse_means(mean, mi, FusionSettings.of({"weighting": "mi", **how}))


# What the mean is where only the mutual information counts.
ANY = [[0.7, 0.3], [0.4, 0.6]]

BY_HAND = {
    # weighting: mean (U, T, K), mi (U, T), weight of the first teacher (U,)
    "mi": ([ANY], [[0.1, 0.3]], [0.880797]),  # 1 / (1 + exp(-0.2 / 0.1))
    "uniform": ([ANY], [[0.1, 0.3]], [0.5]),
    "one-minus-mi": ([ANY], [[LOG2 / 4, LOG2 / 2]], [0.6]),  # 0.75 : 0.5
    "inverse-mi": ([ANY], [[0.009, 0.039]], [0.8]),  # 100 : 25
    "entropy": ([[[1, 0, 0, 0], [0.5, 0.5, 0, 0]]], [[0.1, 0.1]], [2 / 3]),  # 1 : 1 - log 2 / log 4
    # 1 / (1 + exp(-log 2 / 0.1))
    "exp-entropy": ([[FIRST, EVEN]], [[0.1, 0.1]], [0.999024]),
    "muki-soft": ([[[1, 0, 0, 0], [0.5, 0.5, 0, 0]]], [[0.1, 0.1]], [0.924142]),  # 1 / (1 + exp(-0.5 / 0.2))
    "muki-hard": ([[[0.5, 0.5, 0], [0.6, 0.2, 0.2]]], [[0.1, 0.1]], [1]),  # though the second is surer
    "max-confidence": ([ANY, ANY[::-1]], [[0.1, 0.3]] * 2, [1, 0]),
    # JS 0, 0.215762 (the median) and log 2: sigmoid(-2.15762), 1/2, sigmoid(4.77386).
    "t3": (
        [[EVEN, EVEN], [FIRST, EVEN], [FIRST, SECOND]],
        [[0.1, 0.1]] * 3,
        [0.103622, 0.5, 0.991623],
    ),
    # Ranks 0, 1/2, 1 beside 1, 1/4, 1/4 (a tie), over 0.3.
    "rank-mi": ([ANY] * 3, [[0.1, 0.9], [0.2, 0.5], [0.3, 0.5]], [0.965555, 0.302941, 0.075858]),
    # z of -1 and 1 beside 1 and -1, whatever the scale: e : 1/e.
    "z-mi": ([ANY] * 2, [[1, 0.003], [3, 0.001]], [0.880797, 0.119203]),
}


def test_every_weighting_of_two_is_checked_by_hand():
    assert BY_HAND.keys() | {"dawid-skene", "shuffled-mi"} == WEIGHTINGS.keys()


def test_shuffled_mi_deals_every_teacher_s_out_to_other_clips():
    """The same weights as those of mi for some assignment of the teachers' mutual information to clips."""
    rng = np.random.default_rng(0)
    mean, mi = rng.dirichlet(np.ones(4), size=(40, 2)), rng.random((40, 2))
    mi[[3, 17], 0] = np.nan
    mean[[3, 17], 0] = np.nan
    weights, _ = fuse(mean, mi, weighting="shuffled-mi")
    np.testing.assert_array_equal(weights[[3, 17]], [[0, 1]] * 2)
    assert np.isfinite(weights).all()
    # log(w_0 / w_1) is (I_1 - I_0) / tau: of what was dealt out, so the sum over clips is that of all.
    heard = np.delete(np.arange(40), [3, 17])
    ratios = np.log(weights[heard, 0] / weights[heard, 1]) * 0.1
    assert np.corrcoef(ratios, mi[heard, 1] - mi[heard, 0])[0, 1] < 0.5
    again, _ = fuse(mean, mi, weighting="shuffled-mi")
    np.testing.assert_array_equal(again, weights)
    even = mi.copy()
    even[:, 0] = np.where(np.isnan(mi[:, 0]), np.nan, 0.2)
    ratios = fuse(mean, even, weighting="shuffled-mi")[0][heard]
    dealt = np.log(ratios[:, 0] / ratios[:, 1]) * 0.1 + 0.2
    assert set(np.round(dealt, 6)) <= set(np.round(mi[:, 1], 6))


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


def test_product_of_experts_by_hand():
    mean, mi = np.array([[[0.9, 0.1], [0.5, 0.5], [0.75, 0.25]]]), np.zeros((1, 3))
    _, probs = fuse(mean, mi, weighting="uniform", pool="poe")
    np.testing.assert_allclose(probs, [[27 / 28, 1 / 28]])  # .9 * .5 * .75 : .1 * .5 * .25
    silent = np.array([[0, math.nan, 0]])
    np.testing.assert_allclose(fuse(mean + silent[..., None], silent, pool="poe")[1], probs)
    # 0.8 : 0.2, times two teachers.
    _, probs = fuse(mean[:, :2], np.array([[0.009, 0.039]]), weighting="inverse-mi", pool="poe")
    np.testing.assert_allclose(probs[0, 0] / probs[0, 1], 9**1.6)


def test_sharpening_by_hand():
    mean, mi = np.array([[[0.8, 0.2], [0.4, 0.6]]]), np.zeros((1, 2))  # 0.6 : 0.4
    for temperature, odds in ((0.5, 2.25), (1, 1.5), (2, 1.5**0.5), (1e-4, math.inf)):
        _, (probs,) = fuse(mean, mi, weighting="uniform", sharpen=temperature)
        assert probs[0] == pytest.approx(1 / (1 + 1 / odds)) and probs.sum() == pytest.approx(1)


@pytest.mark.parametrize("pool", POOLS)
@pytest.mark.parametrize("weighting", WEIGHTINGS)
def test_a_silent_teacher_has_no_weight(weighting, pool):
    mean = np.array([[NONE, NONE, [0.7, 0.3]], [[0.2, 0.8], NONE, NONE], [*ANY, FIRST]])
    mi = np.where(np.isnan(mean[..., 0]), math.nan, 0.2)
    weights, probs = fuse(mean, mi, weighting=weighting, pool=pool)
    np.testing.assert_array_equal(weights[:2], [[0, 0, 1], [1, 0, 0]])
    if weighting != "dawid-skene":
        np.testing.assert_allclose(probs[:2], [[0.7, 0.3], [0.2, 0.8]])


def test_a_clip_without_any_teacher_is_refused():
    with pytest.raises(ValueError, match="at least one teacher"):
        fuse(np.array([ANY, [NONE, NONE]]), np.array([[0.1, 0.2], [math.nan, math.nan]]))
