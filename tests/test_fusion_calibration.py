"""Temperatures without labels, and what is said of teachers."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mifuse_cli.fusion import (
    HIGHEST_TEMPERATURE,
    LOWEST_TEMPERATURE,
    agreement_with,
    confidence,
    disagreement,
    label_agreement,
    self_agreement,
    temperature_for,
    with_temperature,
)

NONE = [math.nan, math.nan]


def test_temperature_inverts_the_softmax():
    logits = np.random.default_rng(0).normal(size=(5, 3, 4))
    probs = np.exp(logits) / np.exp(logits).sum(axis=-1, keepdims=True)
    for temperature in (0.5, 1.0, 3.0):
        powers = np.exp(logits / temperature)
        expected = powers / powers.sum(axis=-1, keepdims=True)
        np.testing.assert_allclose(with_temperature(probs, temperature), expected, atol=0.02)


def test_zeros_and_missing_answers_survive():
    found = with_temperature(np.array([[1.0, 0.0], NONE]), 2.0)
    odds = math.sqrt(1.001 / 0.001)
    np.testing.assert_allclose(found, [[odds / (1 + odds), 1 / (1 + odds)], NONE])


def test_self_agreement_by_hand():
    first, second, missing = [0.7, 0.3], [0.2, 0.8], NONE
    samples = [
        [first, first, second],  # 1 of 3 pairs
        [first, first, missing],  # 1 of 1
        [first, missing, missing],  # none
    ]
    assert self_agreement(np.array(samples)) == pytest.approx((1 / 3 + 1) / 2)
    assert math.isnan(self_agreement(np.array(samples[2:])))
    assert agreement_with(np.array(samples), np.array([1, 0, 1])) == pytest.approx((1 + 2 + 0) / 6)


@settings(max_examples=40, deadline=None)
@given(arrays(int, (6, 4), elements=st.integers(-1, 2)))
def test_self_agreement_with_pairs(labels):
    samples = np.where((labels >= 0)[..., None], np.eye(3)[labels] * 0.4 + 0.2, math.nan)
    shares = []
    for row in labels.tolist():
        said = [label for label in row if label >= 0]
        pairs = [a == b for i, a in enumerate(said) for b in said[:i]]
        shares += [sum(pairs) / len(pairs)] if pairs else []
    expected = sum(shares) / len(shares) if shares else math.nan
    assert self_agreement(samples) == pytest.approx(expected, nan_ok=True)


@pytest.mark.parametrize("truth", [0.5, 1.0, 2.5])
def test_the_temperature_of_one_who_exaggerates_is_found(truth):
    """Answers whose classes are drawn with the probabilities p, stated as p^T: right as often as p says."""
    rng = np.random.default_rng(3)
    honest = rng.dirichlet(np.ones(4), size=4000)
    stated = honest**truth / (honest**truth).sum(axis=-1, keepdims=True)
    found = temperature_for(stated[:, None], honest.max(axis=-1).mean())
    assert found == pytest.approx(truth, rel=0.08)


@settings(max_examples=30, deadline=None)
@given(arrays(float, (8, 3, 4), elements=st.integers(1, 60)), st.floats(0, 1))
def test_sureness_becomes_the_rate(counts, rate):
    samples = counts / counts.sum(axis=-1, keepdims=True)
    samples[0, 0] = math.nan
    temperature = temperature_for(samples, rate)
    sure = np.nanmean(with_temperature(samples, temperature).max(axis=-1))
    if 1.001 * LOWEST_TEMPERATURE < temperature < 0.999 * HIGHEST_TEMPERATURE:
        assert sure == pytest.approx(rate, abs=1e-3)
    else:
        assert (sure < rate) == (temperature < 1) or sure == pytest.approx(rate, abs=1e-3)


def test_nothing_to_fit():
    for samples, rate in (([[NONE]], 0.5), ([[[0.5, 0.5]]], math.nan)):
        with pytest.raises(ValueError, match="valid answers and a rate"):
            temperature_for(np.array(samples), rate)


class TestDiagnostics:
    MEAN = np.array([[[0.8, 0.2], [0.4, 0.6]], [NONE, [0.3, 0.7]], [[1.0, 0.0], [0.0, 1.0]]])

    def test_by_hand(self):
        np.testing.assert_allclose(confidence(self.MEAN), [0.9, (0.6 + 0.7 + 1) / 3])
        labels = np.array([[0.9, 0.1], [0.2, 0.8], [0.3, 0.7]])
        np.testing.assert_allclose(label_agreement(self.MEAN, labels), [0.5, 2 / 3])
        # H(.6, .4) - (H(.8, .2) + H(.4, .6)) / 2 = 0.673012 - 0.586707, and log 2.
        assert disagreement(self.MEAN) == pytest.approx((0.086305 + math.log(2)) / 2, abs=1e-6)

    def test_who_says_nothing(self):
        assert math.isnan(disagreement(self.MEAN[1:2]))
        np.testing.assert_array_equal(confidence(self.MEAN[1:2]), [math.nan, 0.7])
