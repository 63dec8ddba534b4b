import numpy as np
import pytest

from mifuse_cli.methods.emo_tta import emo_tta

U, H, K = 29, 6, 3


def given(seed=0, silent=(4, 11), count=U):
    rng = np.random.default_rng(seed)
    answers = rng.dirichlet(np.ones(K), count).round(1) + 1e-12
    answers /= answers.sum(axis=1, keepdims=True)
    answers[[i for i in silent if i < count]] = np.nan
    return rng.gamma(1, size=(count, H)), answers


def slow(units, answers, rounds):
    """Reference: every clip and class by itself, with an explicit inverse."""
    x = np.array([z / np.sqrt(sum(v * v for v in z)) for z in units])
    p = np.array([[1 / K] * K if np.isnan(a).any() else (a + 1e-3) / (1 + K * 1e-3) for a in answers])
    trust = [np.exp(sum(v * np.log(v) for v in one)) for one in p]
    gamma, clips = p, range(len(x))
    for _ in range(rounds + 1):
        n = [sum(trust[i] * gamma[i, k] for i in clips) for k in range(K)]
        mu = [sum(trust[i] * gamma[i, k] * x[i] for i in clips) / n[k] for k in range(K)]
        sigma = np.zeros((H, H))
        for i in clips:
            for k in range(K):
                sigma += trust[i] * gamma[i, k] * np.outer(x[i] - mu[k], x[i] - mu[k]) / sum(n)
        inverse = (sum(n) + H) * np.linalg.inv(sum(n) * sigma + sum(np.diag(sigma)) * np.eye(H))
        odds = np.array(
            [
                [
                    p[i, k] * n[k] / sum(n) * np.exp(x[i] @ inverse @ mu[k] - mu[k] @ inverse @ mu[k] / 2)
                    for k in range(K)
                ]
                for i in clips
            ]
        )
        gamma = odds / odds.sum(axis=1, keepdims=True)
    return gamma


@pytest.mark.parametrize(("seed", "rounds"), [(0, 0), (1, 1), (2, 5)])
def test_parity(seed, rounds):
    units, answers = given(seed)
    found = emo_tta(units, answers, rounds=rounds)
    np.testing.assert_allclose(found, slow(units, answers, rounds), atol=1e-9)
    np.testing.assert_allclose(found.sum(axis=1), 1)


def test_inputs_stay_as_they_are():
    units, answers = given()
    before = units.copy(), answers.copy()
    emo_tta(units, answers)
    np.testing.assert_array_equal(units, before[0])
    np.testing.assert_array_equal(answers, before[1])


def test_clips_in_another_order():
    units, answers = given()
    np.testing.assert_allclose(emo_tta(units[::-1], answers[::-1])[::-1], emo_tta(units, answers), atol=1e-9)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_few_clips_units_of_zeros_and_answers_that_are_certain(count):
    units, answers = given(count=count)
    units[0], answers[0] = 0, np.eye(K)[0]
    assert np.isfinite(emo_tta(units, answers)).all()


def test_clips_get_the_class_of_those_like_them():
    """Above all those without an answer, and those whose answer is wrong."""
    rng = np.random.default_rng(1)
    labels = rng.integers(K, size=300)
    units = 1 + 2 * np.eye(H)[labels] + 0.3 * rng.normal(size=(300, H))
    heard = np.where(rng.random(300) < 0.7, labels, rng.integers(K, size=300))
    answers = 0.7 * np.eye(K)[heard] + 0.3 / K
    answers[:60] = np.nan
    found = emo_tta(units, answers).argmax(axis=1)
    assert np.mean(found[:60] == labels[:60]) > 0.9
    assert np.mean(found[60:] == labels[60:]) > np.mean(heard[60:] == labels[60:]) + 0.05
