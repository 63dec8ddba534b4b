import numpy as np
import pytest
import torch
from adapting import H, K, U
from test_methods_nrc import slow_nearest
from torch.nn.functional import normalize

from mifuse_cli.methods.lame import lame


def given(seed=0, count=U):
    rng = np.random.default_rng(seed)
    return torch.tensor(rng.gamma(1, size=(count, H))), torch.tensor(rng.dirichlet(np.ones(K), count))


def slow(units, probs, n, weight, rounds):
    """Reference: every clip and class by itself."""
    points, q = normalize(units).numpy(), probs.numpy()
    z = q.copy()
    for _ in range(rounds):
        new = np.zeros_like(z)
        for i in range(len(z)):
            near = slow_nearest(points, i, n)
            for k in range(K):
                new[i, k] = q[i, k] * np.exp(weight * sum(z[j, k] for j in near))
            new[i] /= new[i].sum()
        z = new
    return z


@pytest.mark.parametrize(("n", "weight", "rounds"), [(5, 1.0, 1), (3, 0.5, 4), (4, 2.0, 9), (1, 1.0, 30)])
def test_parity(n, weight, rounds):
    units, probs = given()
    found = lame(units, probs, neighbours=n, weight=weight, rounds=rounds)
    np.testing.assert_allclose(found, slow(units, probs, n, weight, rounds), atol=1e-4)
    np.testing.assert_allclose(found.sum(dim=1), 1)


def test_rounds_end_at_a_fixed_point():
    units, probs = given()
    found = lame(units, probs, weight=0.3)
    np.testing.assert_allclose(found, slow(units, probs, 5, 0.3, 200), atol=1e-5)


def test_neighbours_correct_a_clip_that_is_unsure():
    units = torch.eye(H).double()[torch.tensor([0, 0, 0, 0, 1, 1, 1, 1])]
    probs = torch.tensor([[0.9, 0.1], [0.9, 0.1], [0.9, 0.1], [0.4, 0.6]] + 4 * [[0.2, 0.8]])
    found = lame(units, probs, neighbours=3)
    assert found.argmax(dim=1).tolist() == [0] * 4 + [1] * 4


def test_without_weight_nothing_is_corrected():
    units, probs = given()
    torch.testing.assert_close(lame(units, probs, weight=0.0), probs, atol=1e-8, rtol=0)


@pytest.mark.parametrize("count", [1, 2])
def test_few_clips_and_certain_predictions(count):
    units, _ = given(count=count)
    probs = torch.eye(K)[:count]
    found = lame(units, probs)
    assert found.argmax(dim=1).tolist() == list(range(count)) and torch.isfinite(found).all()
