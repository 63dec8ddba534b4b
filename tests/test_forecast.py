"""What is expected of labels: recalls against plain loops, and what users are told to beware of."""

import ast
from pathlib import Path

import numpy as np
import pytest

from mifuse_cli.fusion import forecast as module
from mifuse_cli.fusion.forecast import forecast, softness_of

U, K = 120, 4


def teachers(accuracies, seed=0, classes=K, clips=U):
    """Classes (U,), and means (U, T, K) of teachers that are right as often as told, else guess."""
    rng = np.random.default_rng(seed)
    truth = np.arange(clips) % classes
    means = []
    for accuracy in accuracies:
        said = np.where(rng.random(clips) < accuracy, truth, rng.integers(classes, size=clips))
        means.append(0.6 * np.eye(classes)[said] + 0.4 / classes)
    return truth, np.stack(means, axis=1)


def naming(recall, clips=400):
    """Labels of one class each, and a LALM that names class k on a share recall[k] of its clips, else the next."""
    classes = len(recall)
    truth, position = np.arange(clips) % classes, np.arange(clips) // classes
    hit = position < np.array(recall)[truth] * (clips // classes)
    said = np.where(hit, truth, (truth + 1) % classes)
    return np.eye(classes)[truth], np.eye(classes)[said]


def of_lalm(recall):
    """Forecast where the labels are known, one LALM has these recalls, and the classifier is as the labels."""
    labels, lalm = naming(recall)
    return forecast(np.stack([lalm, labels], axis=1), labels, 0.5)


def test_recall_is_the_share_of_the_labels_that_a_teacher_names():
    _, mean = teachers([0.6, 0.3, 0.8])
    mean[[3, 50], 1] = np.nan
    labels = np.random.default_rng(1).dirichlet(np.ones(K), U)
    found = forecast(mean, labels, 0.5)
    for t in range(3):
        told = [u for u in range(U) if not np.isnan(mean[u, t, 0])]
        for k in range(K):
            named = sum(labels[u, k] for u in told if mean[u, t].argmax() == k)
            assert found.recall[t, k] == pytest.approx(named / sum(labels[u, k] for u in told))
        assert found.teachers[t] == pytest.approx(sum(found.recall[t]) / K)


def test_with_true_labels_the_teachers_accuracies_are_right():
    truth, mean = teachers([0.4, 0.7], clips=2000)
    found = forecast(mean, np.eye(K)[truth], 0.5)
    expected = [np.mean([(mean[truth == k, t].argmax(axis=1) == k).mean() for k in range(K)]) for t in (0, 1)]
    np.testing.assert_allclose(found.teachers, expected)


@pytest.mark.parametrize("classes", [2, 4, 7])
def test_the_labels_are_expected_on_a_line_through_the_geometric_mean(classes):
    recall = np.linspace(0.5, 0.9, classes)
    labels, lalm = naming(recall, clips=100 * classes)
    found = forecast(np.stack([lalm, labels], axis=1), labels, 0.5)
    known = np.prod(found.recall[0]) ** (1 / classes)
    line = 0.49 + 0.58 * (known - 1 / classes) / (1 - 1 / classes)
    assert found.labels == pytest.approx(1 / classes + (1 - 1 / classes) * min(max(line, 0), 1))


def test_the_more_a_lalm_knows_the_more_is_expected():
    for k in range(K):
        for low, high in ((0.0, 0.1), (0.1, 0.4), (0.4, 0.8)):
            recall = np.full(K, 0.6)
            expected = [of_lalm(np.where(np.arange(K) == k, one, recall)).labels for one in (low, high)]
            assert expected[0] < expected[1]
    # The same recall on average, one class hardly known.
    assert of_lalm([0.75, 0.75, 0.75, 0.15]).labels < of_lalm([0.6] * K).labels
    assert of_lalm([1.0] * K).labels == 1 and 1 / K <= of_lalm([0.4, 0.4, 0.4, 0.3]).labels < 0.7


def test_a_lalm_that_guesses_says_nothing_of_the_labels():
    for recall in ([0.0] * K, [1.0] + [0.0] * (K - 1), [1 / K] * K):
        assert np.isnan(of_lalm(recall).labels)


def test_several_lalms_are_taken_together():
    labels, one = naming([0.8, 0.8, 0.8, 0.0])
    _, other = naming([0.0, 0.8, 0.8, 0.8])
    both = forecast(np.stack([one, other, labels], axis=1), labels, 0.5)
    assert both.unnamed == ()
    assert both.labels == pytest.approx(of_lalm([0.4, 0.8, 0.8, 0.4]).labels)


def test_classes_that_the_lalm_hardly_names_are_told():
    assert of_lalm([0.7, 0.04, 0.7, 0.06]).unnamed == (1,)
    assert of_lalm([0.02, 0.7, 0.7, 0.0]).unnamed == (0, 3)


class TestAtChance:
    def test_a_lalm_that_guesses(self):
        truth, mean = teachers([0.0, 0.7, 0.6], clips=2000)
        assert forecast(mean, np.eye(K)[truth], 0.5).at_chance == (0,)

    @pytest.mark.parametrize(
        ("accuracy", "correlation", "told"),
        [(0.0, 0.05, True), (0.0, 0.15, False), (0.4, 0.05, False), (0.15, 0.05, True), (0.0, np.nan, False)],
    )
    def test_a_classifier_that_guesses_and_agrees_with_nobody(self, accuracy, correlation, told):
        """Labels follow it, so that its recall alone would not do."""
        truth, mean = teachers([0.6, accuracy], clips=2000)
        assert forecast(mean, np.eye(K)[truth], correlation).at_chance == ((1,) if told else ())


class TestLeftOut:
    def test_the_lalms(self):
        _, mean = teachers([0.6, 0.6, 0.6])
        mean[:, :2] = np.nan
        found = forecast(mean, mean[:, 2], np.nan, left_out=[0, 1])
        assert np.isnan(found.recall[:2]).all() and np.isnan(found.teachers[:2]).all()
        assert np.isnan(found.labels) and found.unnamed == found.at_chance == ()

    def test_the_classifier(self):
        truth, mean = teachers([0.6, 0.0])
        found = forecast(mean, np.eye(K)[truth], np.nan, left_out=[1])
        assert np.isnan(found.recall[1]).all() and np.isnan(found.teachers[1]) and not found.at_chance
        assert found.labels > 0.5

    def test_a_silent_lalm_beside_another(self):
        truth, mean = teachers([0.6, 0.6, 0.6])
        mean[:, 0] = np.nan
        found = forecast(mean, np.eye(K)[truth], 0.5)
        alone = forecast(mean[:, 1:], np.eye(K)[truth], 0.5)
        assert found.labels == alone.labels and np.isnan(found.teachers[0])


def test_a_class_that_no_label_has():
    labels, lalm = naming([0.7] * K)
    labels = np.where(np.arange(K) == 3, 0, labels)
    labels[labels.sum(axis=1) == 0, 0] = 1
    found = forecast(np.stack([lalm, labels], axis=1), labels, 0.5)
    assert np.isfinite(found.recall).all() and found.unnamed == (3,) and 0 < found.labels < 1


def test_labels_have_no_way_in():
    tree = ast.parse(Path(module.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not {name for name in ours if name.startswith("mifuse_cli")}


class TestSoftness:
    """Labels that are surer than they are expected to be right are softened."""

    def labels(self, seed=0, clips=200):
        return np.random.default_rng(seed).dirichlet(np.full(4, 0.1), clips)

    @pytest.mark.parametrize("accuracy", [0.4, 0.6, 0.8])
    def test_mean_confidence_becomes_the_expected_accuracy(self, accuracy):
        sure = self.labels()
        assert sure.max(axis=1).mean() > 0.8
        softness = softness_of(sure, accuracy)
        soft = sure ** (1 / softness)
        soft /= soft.sum(axis=1, keepdims=True)
        assert soft.max(axis=1).mean() == pytest.approx(accuracy, abs=1e-3) and softness > 1
        np.testing.assert_array_equal(soft.argmax(axis=1), sure.argmax(axis=1))

    def test_never_the_other_way(self):
        assert softness_of(self.labels(), 1.0) == 1
        assert softness_of(self.labels(), float("nan")) == 1

    def test_an_end(self):
        assert softness_of(np.eye(4)[np.arange(40) % 4], 0.5) > 20
