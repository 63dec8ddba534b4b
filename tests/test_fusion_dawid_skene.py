import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mifuse_cli.fusion import FusionSettings, dawid_skene, fuse_means


def plain(labels, classes):
    """EM with loops over clips, teachers and classes."""
    clips, teachers = len(labels), len(labels[0])
    posterior = []
    for row in labels:
        votes = [row.count(k) for k in range(classes)]
        posterior.append([v / sum(votes) for v in votes])
    for _ in range(100):
        before = posterior
        share = [1 + sum(row[k] for row in posterior) for k in range(classes)]
        share = [one / sum(share) for one in share]
        confusion = []
        for t in range(teachers):
            table = [[5.0 if k == c else 1.0 for c in range(classes)] for k in range(classes)]
            for u in range(clips):
                if labels[u][t] >= 0:
                    for k in range(classes):
                        table[k][labels[u][t]] += posterior[u][k]
            confusion.append([[x / sum(row) for x in row] for row in table])
        posterior = []
        for row in labels:
            likelihood = [
                share[k] * math.prod(confusion[t][k][label] for t, label in enumerate(row) if label >= 0)
                for k in range(classes)
            ]
            posterior.append([x / sum(likelihood) for x in likelihood])
        if np.abs(np.subtract(posterior, before)).max() < 1e-5:
            break
    return posterior, [sum(share[k] * confusion[t][k][k] for k in range(classes)) for t in range(teachers)]


@settings(max_examples=40, deadline=None)
@given(arrays(int, st.tuples(st.integers(1, 8), st.integers(3, 5)), elements=st.integers(-1, 2)))
def test_with_plain_loops(labels):
    labels[:, 0] = np.maximum(labels[:, 0], 0)
    labels[0] = np.maximum(labels[0], 0)
    posterior, accuracy = dawid_skene(labels, 3)
    expected, shares = plain(labels.tolist(), 3)
    np.testing.assert_allclose(posterior, expected, atol=1e-3)  # either may stop a step earlier
    np.testing.assert_allclose(accuracy, shares, atol=1e-3)


def workers(accuracies, clips=3000, classes=4, seed=0):
    """True classes, and the labels of workers that err at random."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(classes, size=clips)
    wrong = (truth[:, None] + rng.integers(1, classes, size=(clips, len(accuracies)))) % classes
    return truth, np.where(rng.random(wrong.shape) < accuracies, truth[:, None], wrong)


def test_three_workers_beat_the_best_one():
    truth, labels = workers([0.65, 0.5, 0.55])
    posterior, accuracy = dawid_skene(labels, 4)
    assert (posterior.argmax(axis=1) == truth).mean() > 0.66
    np.testing.assert_allclose(accuracy, [0.65, 0.5, 0.55], atol=0.05)


def test_a_worker_who_mixes_up_two_classes_is_understood():
    truth, labels = workers([0.8, 0.8, 1.0], seed=1)
    labels[:, 2] = np.array([1, 0, 2, 3])[labels[:, 2]]
    posterior, accuracy = dawid_skene(labels, 4)
    assert (posterior.argmax(axis=1) == truth).mean() > 0.97
    assert accuracy[2] == pytest.approx(0.5, abs=0.05)


def test_many_teachers_do_not_underflow():
    posterior, _ = dawid_skene(np.tile([[0], [1]], (1, 2000)), 2)
    np.testing.assert_allclose(posterior, np.eye(2), atol=1e-6)


def test_two_are_too_few():
    for labels in (np.zeros((4, 2), int), np.array([[0, 1, -1]] * 4)):
        with pytest.raises(ValueError, match=r"3 distinct teachers, found 2: .* majority"):
            dawid_skene(labels, 2)


def test_fusing_takes_the_posterior_and_the_accuracies():
    _, labels = workers([0.9, 0.6, 0.6], clips=200, seed=2)
    mean = np.eye(4)[labels] * 0.6 + 0.1
    mi = np.full(labels.shape, 0.2)
    mean[:20, 1], mi[:20, 1] = math.nan, math.nan
    labels[:20, 1] = -1
    weights, probs = fuse_means(mean, mi, FusionSettings(weighting="dawid-skene"))
    posterior, accuracy = dawid_skene(labels, 4)
    np.testing.assert_array_equal(probs, posterior)
    np.testing.assert_allclose(weights[20:], np.tile(accuracy / accuracy.sum(), (180, 1)))
    np.testing.assert_allclose(weights[:20], np.tile(accuracy * [1, 0, 1] / accuracy[[0, 2]].sum(), (20, 1)))
