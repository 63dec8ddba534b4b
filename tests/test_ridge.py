import ast
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.fusion import ridge

U, K, D = 40, 3, 6


def between_clips(features, penalty=ridge.RIDGE):
    return ridge.BetweenClips(features @ features.T, penalty)


def between_features(features, penalty=ridge.RIDGE):
    return ridge.BetweenFeatures(features, penalty)


BOTH = pytest.mark.parametrize("make", [between_clips, between_features])


def clips(seed, groups=7):
    """Features, labels, and groups of which some have one clip and one has many."""
    rng = np.random.default_rng(seed)
    group = np.concatenate([[0], np.minimum(rng.geometric(0.4, size=U - 1), groups)])
    return rng.normal(size=(U, D)), rng.dirichlet(np.ones(K), U), group


def refitted(features, labels, unseen, penalty):
    """Predictions of the unseen clips by ridge regression, fitted to all the others."""
    train = [v for v in range(len(features)) if v not in unseen]
    scatter = sum(np.outer(features[v], features[v]) for v in train) + penalty * np.eye(features.shape[1])
    moments = sum(np.outer(features[v], labels[v]) for v in train)
    return features[unseen] @ np.linalg.solve(scatter, moments)


def test_gram_is_of_all_layers_side_by_side():
    rng = np.random.default_rng(2)
    layers = [rng.normal(size=(7, width)) for width in (4, 5)]
    expected = [[sum(sum(x[i] * x[j]) for x in layers) / 9 for j in range(7)] for i in range(7)]
    kernel = ridge.gram(iter(layers))
    assert kernel.dtype == np.float32
    np.testing.assert_allclose(kernel, expected, rtol=1e-4, atol=1e-6)
    features, steps = ridge.side_by_side(iter(layers), 7, 9)
    assert features.shape == (7, 9) and steps.tolist() == [1] * 9
    np.testing.assert_allclose(features @ features.T, kernel, rtol=1e-4, atol=1e-6)


@BOTH
@pytest.mark.parametrize("penalty", [0.05, 0.7])
def test_a_clip_is_predicted_as_by_a_fit_to_all_others(make, penalty):
    features, labels, _ = clips(3)
    predicted = make(features, penalty).predict(labels)
    for u in range(U):
        np.testing.assert_allclose(
            predicted[[u]], refitted(features, labels, [u], penalty), atol=1e-9, err_msg=str(u)
        )


@BOTH
@pytest.mark.parametrize("penalty", [0.05, 0.7])
def test_a_group_is_predicted_as_by_a_fit_to_all_other_groups(make, penalty):
    features, labels, group = clips(4)
    sizes = np.unique(group, return_counts=True)[1]
    assert 1 in sizes and max(sizes) > D
    predicted = make(features, penalty).predict(labels, group)
    for name in np.unique(group):
        own = np.flatnonzero(group == name)
        np.testing.assert_allclose(
            predicted[own], refitted(features, labels, own, penalty), atol=1e-9, err_msg=str(name)
        )


@BOTH
def test_groups_of_one_clip_are_no_groups(make):
    features, labels, _ = clips(5)
    model = make(features)
    np.testing.assert_allclose(model.predict(labels, np.arange(U)), model.predict(labels), atol=1e-9)


@BOTH
def test_nothing_is_known_about_a_single_group(make):
    features, labels, _ = clips(6)
    np.testing.assert_allclose(make(features).predict(labels, np.zeros(U)), 0, atol=1e-9)


@BOTH
@given(seed=st.integers(0, 10**6), clip=st.integers(0, U - 1), grouped=st.booleans())
def test_no_clip_sees_its_own_label_and_no_group_its_labels(make, seed, clip, grouped):
    features, labels, group = clips(seed)
    unseen, model = (group == group[clip]) if grouped else (np.arange(U) == clip), make(features)
    before = model.predict(labels, group if grouped else None)
    labels[clip] = np.roll(labels[clip], 1) + 1
    after = model.predict(labels, group if grouped else None)
    np.testing.assert_allclose(after[unseen], before[unseen], atol=1e-9)
    assert np.abs(after[~unseen] - before[~unseen]).max() > 1e-6


@BOTH
def test_predicting_leaves_the_model_as_it_was(make):
    """It is asked in every round, with other labels."""
    features, labels, group = clips(7)
    model = make(features)
    first = model.predict(labels)
    model.predict(np.roll(labels, 1, axis=0), group)
    np.testing.assert_array_equal(model.predict(labels), first)


class TestManyClips:
    """Above the limit the work is done between features, with the same result."""

    @pytest.mark.parametrize("grouped", [False, True])
    def test_same_predictions(self, monkeypatch, grouped):
        rng = np.random.default_rng(5)
        layers = [rng.normal(size=(U, 3)), rng.normal(size=(U, 4))]
        labels = rng.dirichlet(np.ones(K), U)
        group = rng.integers(5, size=U) if grouped else None
        few = ridge.left_out(U, iter(layers), 7)
        monkeypatch.setattr(ridge, "LARGEST", U - 1)
        many = ridge.left_out(U, iter(layers), 7)
        assert isinstance(few, ridge.BetweenClips) and isinstance(many, ridge.BetweenFeatures)
        np.testing.assert_allclose(many.predict(labels, group), few.predict(labels, group), atol=1e-5)
        both = np.hstack(layers) / np.sqrt(7)
        for model in (few, many):
            expected = refitted(both, labels, [0], ridge.RIDGE)[0]
            np.testing.assert_allclose(model.predict(labels)[0], expected, atol=1e-5)

    @pytest.mark.parametrize(("few", "features", "kind"), [(U, 7, "Clips"), (U - 1, 7, "Features")])
    def test_with_few_features_already_below_the_limit(self, monkeypatch, few, features, kind):
        layers = [np.random.default_rng(5).normal(size=(U, features))]
        monkeypatch.setattr(ridge, "FEW", few)
        assert type(ridge.left_out(U, layers, features)).__name__ == f"Between{kind}"
        assert isinstance(ridge.left_out(U, layers, U // 2 + 1), ridge.BetweenClips)

    def test_groups_of_more_clips_than_features(self, monkeypatch):
        rng = np.random.default_rng(6)
        layers, labels = [rng.normal(size=(U, 3))], rng.dirichlet(np.ones(K), U)
        group = np.arange(U) % 2
        few = ridge.left_out(U, iter(layers), 3)
        monkeypatch.setattr(ridge, "LARGEST", U - 1)
        many = ridge.left_out(U, iter(layers), 3)
        assert U // 2 > 3
        np.testing.assert_allclose(many.predict(labels, group), few.predict(labels, group), atol=1e-5)

    def test_of_more_features_than_fit_the_largest_components_are_used(self, monkeypatch):
        """Two directions have nearly all of the variance, so that little is lost."""
        rng = np.random.default_rng(7)
        layers = [
            rng.normal(size=(U, 2)) @ rng.normal(size=(2, 6)) + 1e-3 * rng.normal(size=(U, 6))
            for _ in range(2)
        ]
        labels = rng.dirichlet(np.ones(K), U)
        few = ridge.left_out(U, iter(layers), 12)
        monkeypatch.setattr(ridge, "LARGEST", U - 1)
        monkeypatch.setattr(ridge, "WIDEST", 4)
        many = ridge.left_out(U, iter(layers), 12)
        assert isinstance(many, ridge.BetweenFeatures) and many.features.shape == (U, 4)
        np.testing.assert_allclose(many.predict(labels), few.predict(labels), atol=1e-3)
        assert ridge.fits(U, 4) and ridge.fits(U - 1, 12) and not ridge.fits(U, 5)

    @pytest.mark.parametrize("grouped", [False, True])
    def test_very_many_numbers_are_kept_as_whole_ones(self, monkeypatch, grouped):
        """Columns of any scale, one of which is constant."""
        rng = np.random.default_rng(8)
        layers, labels = [rng.normal(size=(U, 4)) * [1, 1e-3, 50, 0]], rng.dirichlet(np.ones(K), U)
        group = rng.integers(5, size=U) if grouped else None
        monkeypatch.setattr(ridge, "LARGEST", U - 1)
        full = ridge.left_out(U, iter(layers), 4)
        monkeypatch.setattr(ridge, "_IN_FULL", 4 * U - 1)
        whole = ridge.left_out(U, iter(layers), 4)
        assert whole.features.dtype == np.int16 and full.features.dtype == np.float32
        assert np.abs(whole.features).max(axis=0).tolist() == [32767, 32767, 32767, 0]
        np.testing.assert_allclose(whole.predict(labels, group), full.predict(labels, group), atol=1e-4)

    def test_no_layer(self):
        with pytest.raises(ValueError, match="no layer"):
            ridge.left_out(U, [], 0)


def test_labels_have_no_way_in():
    tree = ast.parse(Path(ridge.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in ours if name.startswith("mifuse_cli")}
