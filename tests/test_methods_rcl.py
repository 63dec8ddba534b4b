import adapting
import numpy as np
import pytest
import torch
from adapting import K, U

from mifuse_cli.methods.rcl import Rcl, reliability

INDEX = [0, 1, 2, 3, 4, 5]


def votes(seed=0):
    """Votes (U, K) of six voters; clips 0 and 3 are reliable, 1 and 4 less so, 2 and 5 not at all."""
    made = np.random.default_rng(seed).multinomial(6, np.full(K, 1 / K), size=U).astype(np.float32)
    made[:6] = [[6, 0, 0, 0], [1, 4, 1, 0], [3, 3, 0, 0], [0, 0, 6, 0], [0, 1, 1.5, 3.5], [0, 1, 0, 0]]
    return made


def test_reliability():
    assert reliability(votes())[:6].tolist() == [1, 2, 3, 1, 2, 3]
    assert reliability(np.array([[0, 0], [1, 0], [2, 0], [1, 1]])).tolist() == [3, 3, 1, 3]


def slow(stage, steady, logits, thresholds, consistency):
    """Reference: clip by clip."""
    p, losses, own = adapting.softmax(logits), [], []
    for b, i in enumerate(INDEX):
        mine = max(range(K), key=steady[b].item)
        sure = stage > 1 and steady[b][mine] >= thresholds[stage - 2]
        named = [k for k in range(K) if votes()[i, k] > 0]
        if stage == 3:
            label = mine if sure else max(named, key=steady[b].item)
        else:
            label = mine if sure else max(range(K), key=votes()[i].item)
        if reliability(votes())[i] <= stage:
            losses.append(-np.log(p[b, label]))
        own.append(-np.log(p[b, mine]))
    return {
        "pseudo_labels": np.mean(losses),
        "consistency": consistency * np.mean(own) if stage == 3 else 0.0,
    }


@pytest.mark.parametrize("options", [{}, {"thresholds": (0.3, 0.35), "consistency": 1.0}])
@pytest.mark.parametrize(("stage", "epoch"), [(1, 1), (1, 3), (2, 4), (2, 8), (3, 9), (3, 16)])
def test_parity(options, stage, epoch):
    method = Rcl(votes(), epochs=16, **options)
    method.begin_epoch(epoch, adapting.classifier(), adapting.clips())
    assert method.stage == stage
    batch = adapting.batch(INDEX)
    batch.units.data *= 3  # some predictions are sure
    weight, bias = (one.detach().numpy() for one in (batch.head.out.weight, batch.head.out.bias))
    steady = [adapting.softmax(weight @ unit + bias) for unit in batch.units.detach().numpy()]
    terms = method.loss(batch)
    assert tuple(terms) == method.terms
    how = {"thresholds": (0.7, 0.9), "consistency": 0.5, **options}

    def reference(logits):
        return slow(stage, steady, logits, **how)

    if stage == 3:
        adapting.agree(terms, batch, reference)
    else:
        assert terms["consistency"] == 0
        adapting.agree(
            {"pseudo_labels": terms["pseudo_labels"]},
            batch,
            lambda logits: {"pseudo_labels": reference(logits)["pseudo_labels"]},
        )


def test_a_batch_without_reliable_clips():
    method, batch = Rcl(votes(), epochs=16), adapting.batch([2, 5])
    (gradient,) = torch.autograd.grad(method.loss(batch)["pseudo_labels"], batch.logits)
    assert (gradient == 0).all()


@pytest.mark.parametrize("epochs", [1, 2, 3])
def test_short_runs_and_no_votes(epochs):
    from dataclasses import replace

    options = replace(adapting.OPTIONS, epochs=epochs)
    for given in (votes(), np.zeros((U, K), np.float32)):
        assert np.isfinite(adapting.train(Rcl(given, epochs=epochs), options).history).all()


@pytest.mark.parametrize("stop", [1, 2])
def test_resumes(tmp_path, stop):
    adapting.resumes(lambda: Rcl(votes(), epochs=3), tmp_path / "kept", stop)
