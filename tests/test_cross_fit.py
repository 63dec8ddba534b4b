import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.errors import InputError
from mifuse_cli.methods import cross_fit

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
    together = cross_fit.pooled(lalm, sources)
    np.testing.assert_allclose(together[silent], source[silent], atol=1e-10)
    np.testing.assert_allclose(together[heard], (answers + source[heard]) / 2, atol=1e-10)


def test_gram():
    rng = np.random.default_rng(2)
    layers = [rng.normal(size=(7, 4)), rng.normal(size=(7, 5))]
    expected = [[sum(sum(x[i] * x[j]) for x in layers) / 9 for j in range(7)] for i in range(7)]
    kernel = cross_fit.gram(iter(layers))
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-6)


def test_too_many_clips():
    with pytest.raises(InputError, match=r"20001 clips.*--recipe paper"):
        cross_fit.gram([np.zeros((cross_fit.LARGEST + 1, 1))])


def test_out_of_fold_is_ridge_regression_on_the_other_folds():
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(U, D)), rng.dirichlet(np.ones(K), U)
    fold = cross_fit.folds(U, rng)
    predicted = cross_fit.out_of_fold(features @ features.T, fold, ridge=0.7) @ labels
    for u in range(U):
        train = [v for v in range(U) if fold[v] != fold[u]]
        scatter = sum(np.outer(features[v], features[v]) for v in train) + 0.7 * np.eye(D)
        moments = sum(np.outer(features[v], labels[v]) for v in train)
        np.testing.assert_allclose(predicted[u], features[u] @ np.linalg.solve(scatter, moments), atol=1e-9)


@given(st.integers(0, 10**6), st.integers(0, U - 1))
def test_a_clip_never_sees_its_own_label(seed, clip):
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(U, D)), rng.dirichlet(np.ones(K), U)
    fold = cross_fit.folds(U, rng)
    smoother = cross_fit.out_of_fold(features @ features.T, fold)
    before = smoother @ labels
    labels[clip] = np.roll(labels[clip], 1) + 1
    after = smoother @ labels
    own = fold == fold[clip]
    np.testing.assert_array_equal(after[own], before[own])
    assert (after[~own] != before[~own]).any()


def test_student_weight():
    features = np.random.default_rng(4).normal(size=(U, D)).astype(np.float32)
    kernel = cross_fit.gram([features])
    values = np.linalg.eigvalsh(kernel.astype(float))
    expected = 1 - sum(value / (value + 0.3) for value in values) / U
    assert cross_fit.student_weight(kernel) == pytest.approx(expected, abs=1e-5)
    assert 1 - D / U < expected < 1  # no more degrees of freedom than features


def test_calibrated():
    rng = np.random.default_rng(5)
    scores, labels = 0.1 * rng.normal(size=(U, K)), rng.dirichlet(np.ones(K), U)
    labels += 5 * np.array([softmax(20 * row) for row in scores])
    slopes = np.geomspace(0.5, 100, 40)
    likelihood = [sum(labels[u] @ np.log(softmax(slope * scores[u])) for u in range(U)) for slope in slopes]
    best = slopes[int(np.argmax(likelihood))]
    assert 0.5 < best < 100
    np.testing.assert_allclose(cross_fit.calibrated(scores, labels), best * scores)


def slow_fuse(teachers, kernel, fold, rounds):
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
def test_fuse_parity(rounds):
    rng = np.random.default_rng(6)
    teachers = np.log(rng.dirichlet(np.ones(K), U))
    features, fold = rng.normal(size=(U, D)), cross_fit.folds(U, rng)
    kernel = features @ features.T / D
    labels = cross_fit.fuse(teachers, kernel, fold, rounds)
    np.testing.assert_allclose(labels, slow_fuse(teachers, kernel, fold, rounds), atol=1e-6)
    order = rng.permutation(U)
    permuted = cross_fit.fuse(teachers[order], kernel[np.ix_(order, order)], fold[order], rounds)
    np.testing.assert_allclose(permuted, labels[order], atol=1e-8)


def test_rounds_end_when_the_labels_stand_still():
    _, features, lalm, source = planted()
    teachers, kernel = cross_fit.pooled(lalm, [source]), cross_fit.gram([features])
    fold = cross_fit.folds(len(features), np.random.default_rng(0))
    one, many, more = (cross_fit.fuse(teachers, kernel, fold, rounds) for rounds in (1, 50, 100))
    np.testing.assert_array_equal(many, more)
    assert (one.argmax(axis=1) != many.argmax(axis=1)).any()


@pytest.mark.parametrize("seed", range(3))
def test_structure_makes_better_labels_than_either_teacher(seed):
    truth, features, lalm, source = planted(seed)
    teachers = cross_fit.pooled(lalm, [source])
    kernel = cross_fit.gram([(features - features.mean(axis=0)) / features.std(axis=0)])
    labels = cross_fit.fuse(teachers, kernel, cross_fit.folds(len(truth), np.random.default_rng(seed)))
    others = {"lalm": lalm, "source": source, "uniform": (lalm + source) / 2, "pooled": teachers}
    assert accuracy(labels, truth) > max(accuracy(probs, truth) for probs in others.values()) + 0.08
    silent = lalm.copy()
    silent[::3] = np.nan
    labels = cross_fit.fuse(
        cross_fit.pooled(silent, [source]), kernel, cross_fit.folds(len(truth), np.random.default_rng(seed))
    )
    assert accuracy(labels[::3], truth[::3]) > accuracy(source[::3], truth[::3]) + 0.08


def voices(clips=200, count=5, apart=1.0, seed=8, width=60):
    """Features of several voices that say all classes; ``apart`` scales how much the voices differ."""
    rng = np.random.default_rng(seed)
    voice, emotion = rng.permutation(clips) % count, rng.integers(K, size=clips)
    layer = 3 * rng.normal(size=(K, width))[emotion] + apart * 2 * rng.normal(size=(count, width))[voice]
    return voice, emotion, layer + rng.normal(size=layer.shape)


@pytest.mark.parametrize("count", [5, 8])
def test_pseudo_speakers_are_the_voices(count):
    voice, emotion, layer = voices(count=count, width=24)
    groupings = cross_fit.pseudo_speakers(layer, np.eye(K)[emotion], np.random.default_rng(0))
    assert len(groupings) == 3
    for groups in groupings:
        assert len(np.unique(groups)) == count
        purity = sum(np.bincount(voice[groups == g]).max() for g in np.unique(groups)) / len(voice)
        assert purity > 0.95


def test_more_voices_than_can_be_told_apart_with_so_few_clips():
    _, emotion, layer = voices(clips=200, count=20, width=24)
    groupings = cross_fit.pseudo_speakers(layer, np.eye(K)[emotion], np.random.default_rng(0))
    assert groupings and all(1 < len(np.unique(groups)) <= 200 // 15 for groups in groupings)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [12, 60])
def test_where_no_voices_stand_out_there_are_none(seed, width):
    """Neither noise nor emotions, which the labels tell of, pass for voices."""
    _, emotion, layer = voices(apart=0, seed=seed, width=width)
    assert cross_fit.pseudo_speakers(layer, np.eye(K)[emotion], np.random.default_rng(0)) == []


def test_few_clips_have_one_voice():
    rng = np.random.default_rng(0)
    layer, labels = rng.normal(size=(29, 12)), rng.dirichlet(np.ones(K), 29)
    assert cross_fit.pseudo_speakers(layer, labels, rng) == []


def test_standardised():
    rng = np.random.default_rng(9)
    features, groups = rng.normal(3, 2, size=(U, 2, D)), rng.integers(3, size=U)
    done = cross_fit.standardised(features, groups)
    centred = np.array([features[u] - features[groups == groups[u]].mean(axis=0) for u in range(U)])
    overall = centred.var(axis=0)
    for u in range(U):
        mine = centred[groups == groups[u]]
        variance = (sum(row**2 for row in mine) + 10 * overall) / (len(mine) + 10)
        np.testing.assert_allclose(done[u], centred[u] / np.sqrt(variance))
    assert np.isfinite(cross_fit.standardised(np.ones((5, 2)), np.zeros(5, dtype=int))).all()


def test_labels_have_no_way_in():
    tree = ast.parse(Path(cross_fit.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in ours if name.startswith("mifuse_cli")} == {"mifuse_cli.errors"}
