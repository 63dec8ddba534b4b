import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli import splits
from mifuse_cli.fusion import cross_fit, ridge

U, K, D = 40, 3, 6


def softmax(row):
    shares = [np.exp(value - max(row)) for value in row]
    return np.array([share / sum(shares) for share in shares])


def slow_match(logits, prior, steps=50):
    shift = [0.0] * len(prior)
    for _ in range(steps):
        rows = [softmax([value + shift[k] for k, value in enumerate(row)]) for row in logits]
        for k in range(len(prior)):
            shift[k] += np.log(prior[k]) - np.log(sum(row[k] for row in rows) / len(rows))
    return np.array([softmax(row + np.array(shift)) for row in logits])


def planted(seed=0, clips=240, classes=4, width=24):
    """Features in noisy clusters, and two teachers that are wrong on other clips, one with a bias to a class."""
    rng = np.random.default_rng(seed)
    truth = rng.permutation(clips) % classes
    features = 1.3 * rng.normal(size=(classes, width))[truth] + 2 * rng.normal(size=(clips, width))
    teachers = []
    for accuracy, bias in ((0.55, [0.8, 0, 0, 0]), (0.5, [0, 0, 0.8, 0])):
        said = np.where(rng.random(clips) < accuracy, truth, rng.integers(classes, size=clips))
        logits = 1.2 * np.eye(classes)[said] + bias + 0.5 * rng.normal(size=(clips, classes))
        teachers.append(np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True))
    return truth, features, *teachers


def accuracy(probs, truth):
    return (probs.argmax(axis=1) == truth).mean()


@given(st.integers(0, 10**6), st.floats(0.1, 3))
def test_match(seed, spread):
    rng = np.random.default_rng(seed)
    logits, prior = spread * rng.normal(size=(U, K)), 0.5 / K + 0.5 * rng.dirichlet(np.ones(K))
    matched = cross_fit.match(logits, prior)
    np.testing.assert_allclose(matched.sum(axis=1), 1)
    np.testing.assert_allclose(cross_fit.match(logits, prior, steps=300).mean(axis=0), prior, atol=1e-4)
    odds = np.log(matched) - logits  # b, up to a constant of the clip
    odds -= odds[:, :1]
    np.testing.assert_allclose(odds, np.broadcast_to(odds[0], odds.shape), atol=1e-8)


def test_match_parity():
    rng = np.random.default_rng(0)
    logits, prior = rng.normal(size=(U, K)), np.array([0.2, 0.5, 0.3])
    matched = cross_fit.match(logits, prior)
    np.testing.assert_allclose(matched, slow_match(logits, prior), atol=1e-12)
    np.testing.assert_allclose(matched.mean(axis=0), prior, atol=1e-6)


def test_pooled_parity_and_silence():
    rng = np.random.default_rng(1)
    lalm, *sources = (rng.dirichlet(np.full(K, 0.3), U) for _ in range(3))
    silent = [4, 5, 30]
    lalm[silent] = np.nan
    heard = [u for u in range(U) if u not in silent]
    third = np.full(K, 1 / K)
    by_source = [np.log(slow_match(np.log(np.maximum(probs, 1e-3)), third)) for probs in sources]
    source = (by_source[0] + by_source[1]) / 2
    answers = np.log(slow_match(np.log(np.maximum(lalm[heard], 1e-2)), third))
    together = cross_fit.MatchedTeachers.of(lalm, sources).pooled()
    np.testing.assert_allclose(together[silent], source[silent], atol=1e-10)
    np.testing.assert_allclose(together[heard], (answers + source[heard]) / 2, atol=1e-10)


def test_calibrated():
    rng = np.random.default_rng(5)
    scores, labels = 0.1 * rng.normal(size=(U, K)), rng.dirichlet(np.ones(K), U)
    labels += 5 * np.array([softmax(20 * row) for row in scores])
    slopes = np.geomspace(0.5, 100, 40)
    likelihood = [sum(labels[u] @ np.log(softmax(slope * scores[u])) for u in range(U)) for slope in slopes]
    best = slopes[int(np.argmax(likelihood))]
    assert 0.5 < best < 100
    np.testing.assert_allclose(cross_fit.calibrated(scores, labels), best * scores)


def slow_agree(teachers, kernel, fold, rounds):
    prior = np.full(K, 1 / K)
    labels = slow_match(teachers, prior)
    hat = kernel @ np.linalg.inv(kernel + 0.3 * np.eye(U))
    weight = 1 - np.trace(hat) / U
    for _ in range(rounds):
        scores = np.zeros((U, K))
        for u in range(U):
            train = [v for v in range(U) if fold[v] != fold[u]]
            inner = np.linalg.inv(kernel[np.ix_(train, train)] + 0.3 * np.eye(len(train)))
            scores[u] = kernel[u, train] @ inner @ (labels[train] - 1 / K)  # softmax does not see the 1 / K
        scores = cross_fit.calibrated(scores, labels)
        student = np.log(slow_match(scores, prior))
        mean = sum(softmax(teachers[u] + weight * student[u]) for u in range(U)) / U
        prior = 0.5 / K + 0.5 * mean
        before = labels.argmax(axis=1)
        labels = slow_match(teachers + weight * np.log(slow_match(scores, prior)), prior)
        if sum(a != b for a, b in zip(before, labels.argmax(axis=1), strict=True)) < 0.005 * U:
            break
    return labels


@pytest.mark.parametrize("rounds", [1, 3])
def test_agree_parity(rounds):
    rng = np.random.default_rng(6)
    teachers = np.log(rng.dirichlet(np.ones(K), U))
    features, fold = rng.normal(size=(U, D)), splits.random_folds(U, 5, rng)
    kernel = features @ features.T / D
    labels, _ = cross_fit.agree(teachers, ridge.BetweenClips(kernel, fold), rounds)
    np.testing.assert_allclose(labels, slow_agree(teachers, kernel, fold, rounds), atol=1e-6)
    order = rng.permutation(U)
    permuted, _ = cross_fit.agree(
        teachers[order], ridge.BetweenClips(kernel[np.ix_(order, order)], fold[order]), rounds
    )
    np.testing.assert_allclose(permuted, labels[order], atol=1e-8)


def test_rounds_end_when_the_labels_stand_still():
    _, features, lalm, source = planted()
    teachers = cross_fit.MatchedTeachers.of(lalm, [source]).pooled()
    student = ridge.cross_fitted([features], splits.random_folds(len(features), 5, np.random.default_rng(0)))
    one, many, more = (cross_fit.agree(teachers, student, rounds)[0] for rounds in (1, 50, 100))
    np.testing.assert_array_equal(many, more)
    assert (one.argmax(axis=1) != many.argmax(axis=1)).any()


@pytest.mark.parametrize("seed", range(3))
def test_structure_makes_better_labels_than_either_teacher(seed):
    truth, features, lalm, source = planted(seed)
    teachers = cross_fit.MatchedTeachers.of(lalm, [source]).pooled()
    fold = splits.random_folds(len(truth), 5, np.random.default_rng(seed))
    student = ridge.cross_fitted([(features - features.mean(axis=0)) / features.std(axis=0)], fold)
    labels, _ = cross_fit.agree(teachers, student)
    others = {"lalm": lalm, "source": source, "uniform": (lalm + source) / 2, "pooled": teachers}
    assert accuracy(labels, truth) > max(accuracy(probs, truth) for probs in others.values()) + 0.08
    silent = lalm.copy()
    silent[::3] = np.nan
    labels, _ = cross_fit.agree(cross_fit.MatchedTeachers.of(silent, [source]).pooled(), student)
    assert accuracy(labels[::3], truth[::3]) > accuracy(source[::3], truth[::3]) + 0.08


def test_labels_have_no_way_in():
    tree = ast.parse(Path(cross_fit.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in ours if name.startswith("mifuse_cli")} == {
        "mifuse_cli.fusion",
        "mifuse_cli.fusion.voices",
    }
