from dataclasses import replace

import adapting
import numpy as np
import pytest
import torch
from test_methods_nrc import renewed, slow_nearest

from mifuse_cli.methods.aad import Aad


@pytest.mark.parametrize("normalise", [True, False])
@pytest.mark.parametrize(
    ("n", "alpha", "beta", "epoch"), [(5, 1.25, 0.0, 3), (3, 1.0, 2.0, 1), (2, 0.8, 5.0, 2)]
)
def test_parity(normalise, n, alpha, beta, epoch):
    method, index = Aad(epochs=4, neighbours=n, alpha=alpha, beta=beta, normalise=normalise), [4, 0, 22, 7, 9]
    method.targets = adapting.banks()
    method.begin_epoch(epoch, adapting.classifier(), adapting.clips())
    method.targets = adapting.banks()
    batch = adapting.batch(index)
    points, said = renewed(method.targets, batch)
    terms = method.loss(batch)
    assert tuple(terms) == method.terms
    decayed = alpha * (1 + 10 * (epoch - 1) / 4) ** (-beta)

    def reference(logits):
        p = adapting.softmax(logits)
        attraction = dispersion = 0.0
        for b, i in enumerate(index):
            attraction -= sum(said[k] @ p[b] for k in slow_nearest(points, i, n))
            dispersion += sum(p[b] @ p[j] for j in range(len(index)) if j != b)
        pairs_of = len(index) - 1 if normalise else 1
        return {
            "attraction": attraction / len(index),
            "dispersion": decayed * dispersion / (len(index) * pairs_of),
        }

    if decayed > 0.1:
        adapting.agree(terms, batch, reference)
    else:
        expected = reference(batch.logits.detach().numpy())
        assert {name: term.item() for name, term in terms.items()} == pytest.approx(expected, abs=1e-7)


def dispersion(logits, **options):
    method, batch = Aad(epochs=5, **options), adapting.batch(list(range(len(logits))))
    method.targets = adapting.banks(count=200)
    return method.loss(replace(batch, logits=logits))["dispersion"].item()


def test_dispersion_and_the_size_of_the_batch():
    small = torch.tensor(np.random.default_rng(0).normal(size=(20, adapting.K)))
    large = small.repeat(10, 1)
    assert dispersion(large) == pytest.approx(dispersion(small), rel=0.05)
    growth = dispersion(large, normalise=False) / dispersion(small, normalise=False)
    assert growth == pytest.approx(199 / 19, rel=0.05)


def test_a_batch_of_one():
    assert dispersion(torch.randn(1, adapting.K).double()) == pytest.approx(0, abs=1e-6)


def test_decay():
    method, seen = Aad(epochs=5, alpha=2.0, beta=1.0), []
    for epoch in range(1, 6):
        method.begin_epoch(epoch, adapting.classifier(), adapting.clips())
        seen.append(method.weight)
    assert seen == pytest.approx([2, 2 / 3, 2 / 5, 2 / 7, 2 / 9])


@pytest.mark.parametrize("stop", [1, 2])
def test_resumes(tmp_path, stop):
    adapting.resumes(lambda: Aad(epochs=3, neighbours=3, beta=1.5), tmp_path / "kept", stop)
