import adapting
import numpy as np
import pytest
import torch
from adapting import H, K, U

from mifuse_cli.methods.t3a import adjust


def given(seed=0, count=U):
    """Hidden units (U, H) and predictions (U, K) that have nothing to do with each other."""
    rng = np.random.default_rng(seed)
    return rng.gamma(1, size=(count, H)), rng.dirichlet(np.ones(K), count)


def entropy(probs):
    return -sum(p * np.log(p) for p in probs)


def slow(head, units, probs, keep):
    """Reference: the centroids (K, H), class by class and support by support."""
    weights, bias = head.out.weight.detach().numpy(), head.out.bias.detach().numpy()
    rows = []
    for k in range(K):
        supports = [(entropy(adapting.softmax(weights @ weights[k] + bias)), weights[k])]
        supports += [
            (entropy(p), z) for z, p in zip(units, probs, strict=True) if max(range(K), key=p.item) == k
        ]
        supports.sort(key=lambda one: one[0])
        total = sum(z / np.sqrt(z @ z) for _, z in supports[:keep])
        rows.append(total / np.sqrt(total @ total))
    return np.array(rows)


@pytest.mark.parametrize("keep", [1, 3, 100])
def test_parity(keep):
    head, (units, probs) = adapting.head(), given()
    expected = slow(head, units, probs, keep)
    adjust(head, torch.tensor(units), torch.tensor(probs), keep=keep)
    np.testing.assert_allclose(head.out.weight.detach(), expected, atol=1e-12)
    assert (head.out.bias == 0).all()


def test_a_class_that_is_not_predicted_keeps_the_direction_of_its_weights():
    head, (units, probs) = adapting.head(), given()
    before = head.out.weight.detach().numpy().copy()
    probs[:, 2] = 0
    adjust(head, torch.tensor(units), torch.tensor(probs))
    np.testing.assert_allclose(head.out.weight[2].detach(), before[2] / np.linalg.norm(before[2]), atol=1e-12)


def test_one_clip():
    head, (units, probs) = adapting.head(), given(count=1)
    assert np.isfinite(adjust(head, torch.tensor(units), torch.tensor(probs)))
    assert torch.isfinite(head.out.weight).all()


def test_sure_supports_are_kept():
    """Unsure clips of a class that lie elsewhere do not move its centroid."""
    head, (units, probs) = adapting.head(), given(count=10)
    probs[:] = [0.97, 0.01, 0.01, 0.01]
    units[5:], probs[5:] = units[5:][:, ::-1] + 9, [0.4, 0.3, 0.2, 0.1]
    apart = adapting.head()
    adjust(head, torch.tensor(units), torch.tensor(probs), keep=5)
    adjust(apart, torch.tensor(units[:5]), torch.tensor(probs[:5]), keep=5)
    torch.testing.assert_close(head.out.weight, apart.out.weight)
