import adapting
import numpy as np
import pytest
import torch
from adapting import H, K, U
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.errors import InputError
from mifuse_cli.methods.shot import Shot, pseudo_labels
from mifuse_cli.model.classifier import predict, units


def information_maximisation(logits, prior=None):
    p = adapting.softmax(logits)
    prior = np.full(K, 1 / K) if prior is None else prior
    entropy = np.mean([-sum(row[k] * np.log(row[k]) for k in range(K)) for row in p])
    marginal = p.mean(axis=0)
    return {
        "entropy": entropy,
        "diversity": sum(marginal[k] * (np.log(marginal[k]) - np.log(prior[k])) for k in range(K)),
    }


def slow_labels(hidden, probs, threshold, *, stale=False):
    """Pseudo-labels clip by clip; stale: as released at first, candidates of the first round in both."""
    points = [np.array([*row, 1.0]) for row in hidden]
    points = [point / np.sqrt(point @ point) for point in points]
    shares, labels = probs, [int(np.argmax(row)) for row in probs]
    candidates = None
    for _ in range(2):
        if candidates is None or not stale:
            candidates = [k for k in range(K) if sum(label == k for label in labels) > threshold]
        centroids = {}
        for k in candidates:
            mass = sum(share[k] for share in shares)
            total = sum(share[k] * point for share, point in zip(shares, points, strict=True))
            centroids[k] = total / (1e-8 + mass)
        labels = []
        for point in points:
            distances = {}
            for k, centroid in centroids.items():
                length = np.sqrt(centroid @ centroid)
                distances[k] = 1 - point @ centroid / length if length else 1.0
            labels.append(min(distances, key=distances.get))
        shares = np.eye(K)[labels]
    return labels


def drawn(seed, count=U):
    rng = np.random.default_rng(seed)
    return rng.gamma(0.3, size=(count, H)), rng.dirichlet(np.full(K, 0.5), count)


def given_labels(hidden, probs, threshold=0):
    return pseudo_labels(torch.tensor(hidden), torch.tensor(probs), threshold).tolist()


@pytest.mark.parametrize("prior", [None, [0.1, 0.2, 0.3, 0.4]])
def test_parity(prior):
    method = Shot(beta=0.3, diversity_weight=0.7, prior=prior and torch.tensor(prior))
    labels = np.random.default_rng(0).integers(K, size=U)
    method.targets["pseudo_labels"] = torch.tensor(labels)
    index = [4, 0, 22, 7, 9]

    def reference(logits):
        terms = information_maximisation(logits, prior)
        p = adapting.softmax(logits)
        terms["diversity"] *= 0.7
        terms["pseudo_labels"] = 0.3 * np.mean([-np.log(p[b, labels[i]]) for b, i in enumerate(index)])
        return terms

    batch = adapting.batch(index)
    terms = method.loss(batch)
    assert tuple(terms) == method.terms
    adapting.agree(terms, batch, reference)


def test_without_pseudo_labels():
    method, batch = Shot(beta=0), adapting.batch([3, 1, 8])
    method.begin_epoch(1, adapting.classifier(), adapting.clips())
    terms = method.loss(batch)
    assert tuple(terms) == method.terms == ("entropy", "diversity") and not method.targets
    adapting.agree(terms, batch, information_maximisation)


@given(st.integers(0, 10**6), st.sampled_from([0, 2, 4]))
def test_labels(seed, threshold):
    hidden, probs = drawn(seed)
    assert given_labels(hidden, probs, threshold) == slow_labels(hidden, probs, threshold)


def test_candidates_are_those_of_the_round():
    # With the first round's candidates in the second one, a class that lost its clips has no centroid.
    threshold, differ = 3, 0
    for seed in range(40):
        hidden, probs = drawn(seed)
        expected = slow_labels(hidden, probs, threshold)
        assert given_labels(hidden, probs, threshold) == expected
        differ += expected != slow_labels(hidden, probs, threshold, stale=True)
    assert differ


def test_classes_that_are_not_predicted():
    hidden, probs = drawn(1)
    probs[:, 2] = 0.2 * probs.min(axis=1)
    assert 2 not in given_labels(hidden, probs)
    with pytest.raises(InputError, match="more than 23 of 23 clips"):
        given_labels(hidden, probs, threshold=U)


def test_labels_are_renewed_without_dropout():
    model, inputs, method = adapting.classifier(2), adapting.clips(), Shot()
    expected = slow_labels(units(model, inputs).double().numpy(), predict(model, inputs), 0)
    for seed in range(3):
        torch.manual_seed(seed)
        method.begin_epoch(1 + seed, model.train(), inputs)
        assert method.targets["pseudo_labels"].tolist() == expected
    method.begin_epoch(4, adapting.classifier(5), inputs)
    assert method.targets["pseudo_labels"].tolist() != expected


def test_classifier_stays():
    before, after = adapting.classifier(), adapting.train(Shot()).student
    for name, value in after.head.named_parameters():
        moved = not torch.equal(value, before.head.get_parameter(name))
        assert moved == (name in ("mix", "hidden.weight", "hidden.bias")), name


@pytest.mark.parametrize("beta", [0, 0.3])
def test_resumes(tmp_path, beta):
    adapting.resumes(lambda: Shot(beta=beta), tmp_path / "kept", stop=1)
