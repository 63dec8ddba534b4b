import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli import splits
from mifuse_cli.fusion import ridge

U, K, D = 40, 3, 6


def between_clips(features, fold, penalty=ridge.RIDGE):
    return ridge.BetweenClips(features @ features.T, fold, penalty)


def between_features(features, fold, penalty=ridge.RIDGE):
    return ridge.BetweenFeatures(features, fold, penalty)


BOTH = pytest.mark.parametrize("make", [between_clips, between_features])


def test_gram_is_of_all_layers_side_by_side():
    rng = np.random.default_rng(2)
    layers = [rng.normal(size=(7, width)) for width in (4, 5)]
    expected = [[sum(sum(x[i] * x[j]) for x in layers) / 9 for j in range(7)] for i in range(7)]
    kernel = ridge.gram(iter(layers))
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-6)
    features = ridge.side_by_side(iter(layers))
    assert features.shape == (7, 9)
    np.testing.assert_allclose(features @ features.T, kernel, rtol=1e-4, atol=1e-6)


@BOTH
def test_it_is_ridge_regression_on_the_other_folds(make):
    rng = np.random.default_rng(3)
    features, labels = rng.normal(size=(U, D)), rng.dirichlet(np.ones(K), U)
    fold = splits.random_folds(U, 5, rng)
    predicted = make(features, fold, 0.7).predict(labels)
    for u in range(U):
        train = [v for v in range(U) if fold[v] != fold[u]]
        scatter = sum(np.outer(features[v], features[v]) for v in train) + 0.7 * np.eye(D)
        moments = sum(np.outer(features[v], labels[v]) for v in train)
        np.testing.assert_allclose(predicted[u], features[u] @ np.linalg.solve(scatter, moments), atol=1e-9)


@BOTH
@given(seed=st.integers(0, 10**6), clip=st.integers(0, U - 1))
def test_a_clip_never_sees_its_own_label(make, seed, clip):
    rng = np.random.default_rng(seed)
    features, labels = rng.normal(size=(U, D)), rng.dirichlet(np.ones(K), U)
    fold = splits.random_folds(U, 5, rng)
    student = make(features, fold)
    before = student.predict(labels)
    labels[clip] = np.roll(labels[clip], 1) + 1
    after = student.predict(labels)
    own = fold == fold[clip]
    np.testing.assert_allclose(after[own], before[own], atol=1e-9)
    assert np.abs(after[~own] - before[~own]).max() > 1e-6


@BOTH
def test_weight_is_the_share_that_is_no_degree_of_freedom(make):
    features = np.random.default_rng(4).normal(size=(U, D)) / np.sqrt(D)
    values = np.linalg.eigvalsh(features @ features.T)
    expected = 1 - sum(value / (value + 0.3) for value in values) / U
    found = make(features, splits.random_folds(U, 5, np.random.default_rng(0))).weight
    assert found == pytest.approx(expected, abs=1e-9)
    assert 1 - D / U < expected < 1  # no more degrees of freedom than features


def test_folds_are_even_and_random():
    fold = splits.random_folds(43, 5, np.random.default_rng(0))
    assert sorted(np.bincount(fold)) == [8, 8, 9, 9, 9]
    assert (fold != splits.random_folds(43, 5, np.random.default_rng(1))).any()


class TestManyClips:
    """Above the limit the work is done between features, with the same result."""

    def test_same_predictions_and_weight(self, monkeypatch):
        rng = np.random.default_rng(5)
        layers = [rng.normal(size=(U, 3)), rng.normal(size=(U, 4))]
        fold, labels = splits.random_folds(U, 5, rng), rng.dirichlet(np.ones(K), U)
        few = ridge.cross_fitted(iter(layers), fold)
        monkeypatch.setattr(ridge, "LARGEST", U - 1)
        many = ridge.cross_fitted(iter(layers), fold)
        assert isinstance(few, ridge.BetweenClips) and isinstance(many, ridge.BetweenFeatures)
        np.testing.assert_allclose(many.predict(labels), few.predict(labels), atol=1e-5)
        assert many.weight == pytest.approx(few.weight, abs=1e-5)

    def test_too_many_clips_and_features(self, monkeypatch):
        monkeypatch.setattr(ridge, "LARGEST", 9)
        with pytest.raises(ValueError, match="12 clips with 10 features: at most 9"):
            ridge.cross_fitted([np.zeros((12, 10))], np.zeros(12, int))


def test_labels_have_no_way_in():
    tree = ast.parse(Path(ridge.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in ours if name.startswith("mifuse_cli")}
