"""Every weighting and pool against its formula in plain loops, and what holds of all of them."""

import math
from itertools import pairwise
from statistics import median

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mifuse_cli.fusion import LEAST_TEACHERS, OF_MI, POOLS, WEIGHTINGS, FusionSettings, fuse_means

HARD = ("max-confidence", "muki-hard")
FORMULAS = sorted(set(WEIGHTINGS) - {"dawid-skene", "shuffled-mi"})
TAU = 0.2


def fuse(mean, mi, **how):
    """The fusion by these settings; those that the weighting has no use for are dropped."""
    return fuse_means(mean, mi, FusionSettings.of({"weighting": "mi", **how}))


@st.composite
def teachers(draw, least=2):
    """Mean (U, T, K), zeros in it, and mi (U, T) with a teacher a clip or more; mi in whole thousandths."""
    u, t, k = draw(st.integers(1, 5)), draw(st.integers(least, 4)), draw(st.integers(2, 4))
    mean = draw(arrays(float, (u, t, k), elements=st.integers(0, 50)))
    mean[mean.sum(axis=-1) == 0, 0] = 1
    mean /= mean.sum(axis=-1, keepdims=True)
    mi = draw(arrays(int, (u, t), elements=st.integers(0, 1300))) / 1000
    silent = draw(arrays(bool, (u, t)))
    silent[np.arange(u), draw(arrays(int, u, elements=st.integers(0, t - 1)))] = False
    mean[silent], mi[silent] = math.nan, math.nan
    return mean, mi


def fits(weighting, mi):
    return weighting != "dawid-skene" or (~np.isnan(mi)).any(axis=0).sum() >= LEAST_TEACHERS


def without_ties(weighting, mean):
    """For choices of one: the first of several equals is taken, which the order of teachers changes."""
    if weighting in HARD:
        score = max if weighting == "max-confidence" else h
        for clip in mean.tolist():
            known = sorted(score(p) for p in clip if not math.isnan(p[0]))
            assume(all(b - a > 1e-6 for a, b in pairwise(known)))


def h(p):
    return -sum(x * math.log(x) for x in p if x > 0)


def js(p, q):
    return h([(a + b) / 2 for a, b in zip(p, q, strict=True)]) - (h(p) + h(q)) / 2


def average(vectors):
    return [sum(column) / len(vectors) for column in zip(*vectors, strict=True)]


def expected_weight(weighting, mean, mi, clip, teacher):
    """Before normalisation, from lists."""
    p, i, k = mean[clip][teacher], mi[clip][teacher], len(mean[0][0])
    speaking = [t for t, one in enumerate(mi[clip]) if not math.isnan(one)]
    column = [row[teacher] for row in mi if not math.isnan(row[teacher])]
    certainty = [1 - h(mean[clip][t]) / math.log(k) for t in speaking]
    sure = [max(mean[clip][t]) for t in speaking]
    mu = sum(column) / len(column)
    sigma = math.sqrt(sum((x - mu) ** 2 for x in column) / len(column))
    below, same = sum(x < i for x in column), sum(x == i for x in column)
    return {
        "uniform": lambda: 1,
        "mi": lambda: math.exp(-i / TAU),
        "one-minus-mi": lambda: max(1 - i / math.log(k), 1e-6),
        "inverse-mi": lambda: 1 / (i + 0.001),
        "rank-mi": lambda: math.exp(-(below + (same - 1) / 2) / max(len(column) - 1, 1) / 0.3),
        "z-mi": lambda: math.exp(-(i - mu) / sigma) if sigma > 1e-9 else 1,
        "entropy": lambda: max(1 - h(p) / math.log(k), 1e-6),
        "exp-entropy": lambda: math.exp(-h(p) / TAU),
        "muki-soft": lambda: math.exp((1 - h(p) / math.log(k)) / 0.2),
        "muki-hard": lambda: float(speaking[certainty.index(max(certainty))] == teacher),
        "max-confidence": lambda: float(speaking[sure.index(max(sure))] == teacher),
        "t3": lambda: t3(mean, mi, clip, teacher),
    }[weighting]()


def t3(mean, mi, clip, teacher):
    last = len(mi[0]) - 1
    speaking = [[t for t in range(last) if not math.isnan(row[t])] for row in mi]
    found = {
        u: js(average([mean[u][t] for t in speaking[u]]), mean[u][last])
        for u in range(len(mi))
        if speaking[u] and not math.isnan(mi[u][last])
    }
    if clip not in found:
        return 1
    share = 1 / (1 + math.exp(-10 * (found[clip] - median(found.values()))))
    return 1 - share if teacher == last else share / len(speaking[clip])


def expected_pool(pool, weights, vectors):
    if pool == "linear":
        raw = [sum(w * p[k] for w, p in zip(weights, vectors, strict=True)) for k in range(len(vectors[0]))]
    else:
        times = len(weights) if pool == "poe" else 1
        raw = [
            math.prod(max(p[k], 1e-3) ** (times * w) for w, p in zip(weights, vectors, strict=True))
            for k in range(len(vectors[0]))
        ]
    return [x / sum(raw) for x in raw]


@pytest.mark.parametrize("weighting", FORMULAS)
@settings(max_examples=25, deadline=None)
@given(teachers(), st.sampled_from(POOLS), st.sampled_from([0.5, 1.0, 2.0]))
def test_with_the_formula(weighting, given_teachers, pool, sharpen):
    mean, mi = given_teachers
    without_ties(weighting, mean)
    found = fuse(mean, mi, weighting=weighting, tau=TAU, pool=pool, sharpen=sharpen)
    for clip, (weights, probs) in enumerate(zip(*found, strict=True)):
        speaking = [t for t, one in enumerate(mi[clip]) if not np.isnan(one)]
        raw = [expected_weight(weighting, mean.tolist(), mi.tolist(), clip, t) for t in speaking]
        shares = [one / sum(raw) for one in raw]
        np.testing.assert_allclose(weights[speaking], shares, rtol=1e-6, atol=1e-9)
        heard = [(w, mean[clip, t].tolist()) for w, t in zip(shares, speaking, strict=True) if w > 0]
        powers = [p ** (1 / sharpen) for p in expected_pool(pool, *zip(*heard, strict=True))]
        np.testing.assert_allclose(probs, [one / sum(powers) for one in powers], rtol=1e-5, atol=1e-9)


one_weighting, one_pool = st.sampled_from(list(WEIGHTINGS)), st.sampled_from(POOLS)


def fused(mean, mi, weighting, pool):
    """What comes out, EM to the tolerance at which it stops."""
    assume(fits(weighting, mi))
    return fuse(
        mean, mi, weighting=weighting, tau=TAU, pool=pool
    ), 1e-3 if weighting == "dawid-skene" else 1e-9


@settings(max_examples=150, deadline=None)
@given(teachers(), one_weighting, one_pool, st.sampled_from([0.1, 1.0]))
def test_weights_and_labels_are_distributions(given_teachers, weighting, pool, sharpen):
    assume(fits(weighting, given_teachers[1]))
    weights, probs = fuse(*given_teachers, weighting=weighting, pool=pool, sharpen=sharpen)
    for found in (weights, probs):
        assert found.min() >= 0 and found.max() <= 1 + 1e-12
        np.testing.assert_allclose(found.sum(axis=1), 1)
    if pool != "linear" and weighting != "dawid-skene" and sharpen == 1:
        assert probs.min() > 0


@settings(max_examples=60, deadline=None)
@given(teachers(), one_weighting, one_pool, st.randoms(use_true_random=False))
def test_order_of_clips_does_not_matter(given_teachers, weighting, pool, random):
    assume(weighting != "shuffled-mi")  # which deals by position
    mean, mi = given_teachers
    order = random.sample(range(len(mi)), len(mi))
    before, close = fused(mean, mi, weighting, pool)
    after, _ = fused(mean[order], mi[order], weighting, pool)
    for one, other in zip(before, after, strict=True):
        np.testing.assert_allclose(one[order], other, atol=close)


@settings(max_examples=60, deadline=None)
@given(teachers(), one_weighting, one_pool, st.randoms(use_true_random=False))
def test_order_of_teachers_does_not_matter(given_teachers, weighting, pool, random):
    mean, mi = given_teachers
    without_ties(weighting, mean)
    last = mi.shape[1] - (weighting == "t3")  # whose last teacher is not like the others
    order = [*random.sample(range(last), last), *range(last, mi.shape[1])]
    (weights, probs), close = fused(mean, mi, weighting, pool)
    (turned, same), _ = fused(mean[:, order], mi[:, order], weighting, pool)
    np.testing.assert_allclose(turned, weights[:, order], atol=close)
    np.testing.assert_allclose(same, probs, atol=close)


@settings(max_examples=60, deadline=None)
@given(teachers(), one_weighting, one_pool, st.randoms(use_true_random=False))
def test_order_of_classes_does_not_matter(given_teachers, weighting, pool, random):
    mean, mi = given_teachers
    without_ties(weighting, mean)
    if weighting == "dawid-skene":  # of equally probable classes the first is the label
        ordered = np.sort(np.nan_to_num(mean, nan=0.5) + 0.0, axis=-1)
        assume((np.isnan(mi) | (ordered[..., -1] > ordered[..., -2])).all())
    order = random.sample(range(mean.shape[-1]), mean.shape[-1])
    (weights, probs), close = fused(mean, mi, weighting, pool)
    (same, turned), _ = fused(mean[..., order], mi, weighting, pool)
    np.testing.assert_allclose(same, weights, atol=close)
    np.testing.assert_allclose(turned, probs[:, order], atol=close)


@settings(max_examples=60, deadline=None)
@given(teachers(), one_weighting, one_pool)
def test_a_teacher_that_is_always_silent_is_as_good_as_none(given_teachers, weighting, pool):
    mean, mi = given_teachers
    (weights, probs), close = fused(mean, mi, weighting, pool)
    wider = np.concatenate([np.full_like(mean[:, :1], math.nan), mean], axis=1)
    more, same = fuse(wider, np.insert(mi, 0, math.nan, axis=1), weighting=weighting, tau=TAU, pool=pool)
    assert (more[:, 0] == 0).all()
    np.testing.assert_allclose(more[:, 1:], weights, atol=close)
    np.testing.assert_allclose(same, probs, atol=close)


@pytest.mark.parametrize("weighting", sorted(set(WEIGHTINGS) - set(OF_MI)))
@settings(max_examples=20, deadline=None)
@given(teachers(least=3))
def test_mutual_information_has_no_say_in_the_others(weighting, given_teachers):
    mean, mi = given_teachers
    (weights, probs), _ = fused(mean, mi, weighting, "linear")
    other = fuse(mean, mi * 0.5 + 0.1, weighting=weighting, tau=TAU)
    np.testing.assert_array_equal(other[0], weights)
    np.testing.assert_array_equal(other[1], probs)
