"""In which order cross-fit finds labels and voices, and what it hands from one to the other."""

import ast
import inspect
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from planted import planted, right, softmax

from mifuse_cli.fusion import PARTS, cross_fit, ridge
from mifuse_cli.fusion.cross_fit import Structure
from mifuse_cli.fusion.mixture import TwoTeachers, settled
from mifuse_cli.fusion.voices import class_mix_to_keep, evened

VOICE = np.arange(300) % 2
LEFT_OUT = [part for part in PARTS if part != "voices"]


class Classifier:
    """A linear classifier of the first layer, that notes what it was given."""

    def __init__(self, width):
        self.weights, self.seen = np.random.default_rng(5).normal(size=(width, 4)), []

    def __call__(self, standardised, number):
        self.seen.append((standardised, number))
        return softmax(standardised[:, 0] @ self.weights / 5)


@pytest.fixture
def clips():
    """Planted clips of two layers in two voices, far apart."""
    truth, features, lalm, source = planted(1, sure=(2, 2))
    rng = np.random.default_rng(1)
    hidden = np.stack([features, features + rng.normal(size=features.shape)], axis=1)
    hidden[VOICE == 1] = 2 * hidden[VOICE == 1] + 8 * rng.normal(size=hidden.shape[1:])
    structure = Structure(source, hidden.astype(np.float32), hidden[:, :1], Classifier(24))
    return truth, lalm, structure


def fitted(lalm, structure, without=(), seed=0):
    return cross_fit.cross_fit(lalm, structure, without=without, rng=np.random.default_rng(seed))


def standardised(hidden):
    return [(layer - layer.mean(axis=0)) / layer.std(axis=0) for layer in np.moveaxis(hidden, 1, 0)]


@pytest.fixture
def rounds(monkeypatch):
    """Every call of `settled`, with what it gave; and the labels with which voices were looked for."""
    calls, looked = [], []

    def noting(teachers, structure, **options):
        found = settled(teachers, structure, **options)
        calls.append((teachers, structure, options, found))
        return found

    def two(layer, labels, rng):
        looked.append((layer, labels))
        return [VOICE, 1 - VOICE]

    monkeypatch.setattr(cross_fit, "settled", noting)
    monkeypatch.setattr(cross_fit, "pseudo_speakers", two)
    return calls, looked


class TestVoices:
    def test_are_evened_out_twice(self, clips, rounds):
        """With better labels the second time; from the hidden states as they are, not from those evened before."""
        _, lalm, structure = clips
        calls, looked = rounds
        made = fitted(lalm, structure)
        assert len(calls) == 3 and len(looked) == 2
        assert calls[0][2]["rounds"] == cross_fit.FIRST_ROUNDS
        assert calls[1][2] == calls[2][2] == {"gold": None, "uniform": False}
        for time, (layer, labels) in enumerate(looked):
            np.testing.assert_array_equal(layer, structure.hidden[:, 0])
            np.testing.assert_array_equal(labels, calls[time][3].labels)
        assert made.voices == (2, 2) and made.labels is calls[2][3].labels

    def test_the_classifier_and_the_linear_model_get_what_is_left(self, clips, rounds):
        _, lalm, structure = clips
        calls, looked = rounds
        made = fitted(lalm, structure)
        own = calls[0][0]
        labels = looked[1][1]
        kept = [
            class_mix_to_keep(labels, groups, own.starts()["lalm"], own.source, calls[0][1])
            for groups in (VOICE, 1 - VOICE)
        ]
        assert made.kept == tuple(kept)
        heads = [evened(structure.head_input, VOICE, labels, keep) for keep in kept]
        seen = structure.classify.seen
        assert [number for _, number in seen] == [0, 1, 0, 1]
        for head, (given, _) in zip(heads, seen[2:], strict=True):
            np.testing.assert_array_equal(given, head)
        again = Classifier(24)
        expected = TwoTeachers.of(lalm, [again(head, 0) for head in heads])
        np.testing.assert_array_equal(calls[2][0].source, expected.source)
        layers = [
            evened(structure.hidden[:, layer], VOICE, labels, keep) for keep in kept for layer in range(2)
        ]
        np.testing.assert_allclose(
            calls[2][1].predict(labels), ridge.left_out(300, layers, 4 * 24).predict(labels), atol=1e-5
        )

    @pytest.mark.parametrize("share", [0.0, 1.0])
    def test_how_much_of_their_classes_is_kept_is_heeded_and_told(self, clips, rounds, monkeypatch, share):
        _, lalm, structure = clips
        monkeypatch.setattr(cross_fit, "class_mix_to_keep", lambda *_: share)
        made = fitted(lalm, structure)
        assert made.kept == (share, share)
        labels = rounds[1][1][1]
        np.testing.assert_array_equal(
            structure.classify.seen[-1][0], evened(structure.head_input, 1 - VOICE, labels, share)
        )

    def test_all_of_them_without_answers_that_tell(self, clips, rounds):
        _, lalm, structure = clips
        assert fitted(lalm, structure, ("lalm",)).kept == (1, 1)

    def test_make_better_labels(self, clips):
        """Two voices far apart hide the classes in the hidden states."""
        truth, lalm, structure = clips
        structure = replace(structure, classify=lambda *_: structure.source)
        plain = fitted(lalm, structure, ("voices",))
        made = fitted(lalm, replace(structure, speakers=VOICE))
        assert right(made.labels, truth) > right(plain.labels, truth) and made.voices == (2,)

    def test_known_speakers_are_taken_as_they_are(self, clips, monkeypatch):
        _, lalm, structure = clips
        monkeypatch.setattr(cross_fit, "pseudo_speakers", None)
        monkeypatch.setattr(cross_fit, "clustered_vectors", None)
        speakers = np.arange(300) % 3
        made = fitted(lalm, replace(structure, speakers=speakers, voice=np.ones((300, 2))))
        assert made.voices == (3,) and len(made.kept) == 1

    def test_vectors_of_a_speaker_encoder_are_clustered_where_there_are_any(self, clips, monkeypatch):
        _, lalm, structure = clips
        vectors, given = np.random.default_rng(0).normal(size=(300, 2)), []
        monkeypatch.setattr(cross_fit, "pseudo_speakers", None)
        monkeypatch.setattr(
            cross_fit, "clustered_vectors", lambda *arguments: given.append(arguments[0]) or [VOICE]
        )
        assert fitted(lalm, replace(structure, voice=vectors)).voices == (2,)
        assert len(given) == 2 and given[0] is vectors

    def test_where_none_are_found_hidden_states_stay_as_they_are(self, clips, monkeypatch):
        _, lalm, structure = clips
        looked = []
        monkeypatch.setattr(cross_fit, "pseudo_speakers", lambda *_: looked.append(1) or [])
        made = fitted(lalm, structure)
        assert made.voices == made.kept == () and not structure.classify.seen
        plain = fitted(lalm, structure, ("voices",))
        np.testing.assert_array_equal(made.labels, plain.labels)
        # The first labels are of few rounds: better ones may show voices.
        assert len(looked) == 2

    def test_found_with_better_labels_alone(self, clips, monkeypatch):
        _, lalm, structure = clips
        found = iter([[], [VOICE]])
        monkeypatch.setattr(cross_fit, "pseudo_speakers", lambda *_: next(found))
        assert fitted(lalm, structure).voices == (2,)

    def test_those_of_the_first_time_stay_if_none_are_found_again(self, clips, monkeypatch):
        _, lalm, structure = clips
        found = iter([[VOICE], []])
        monkeypatch.setattr(cross_fit, "pseudo_speakers", lambda *_: next(found))
        assert fitted(lalm, structure).voices == (2,) and len(structure.classify.seen) == 1

    def test_one_clustering_will_do_where_three_are_too_large(self, clips, rounds, monkeypatch):
        _, lalm, structure = clips
        monkeypatch.setattr(ridge, "LARGEST", 50)
        monkeypatch.setattr(ridge, "WIDEST", 50)  # two layers of 24 features, once
        assert fitted(lalm, structure).voices == (2,)
        monkeypatch.setattr(ridge, "WIDEST", 100)
        assert fitted(lalm, structure).voices == (2, 2)

    def test_without_the_classifier_none_are_looked_for(self, clips, monkeypatch):
        _, lalm, structure = clips
        monkeypatch.setattr(cross_fit, "pseudo_speakers", None)
        made = fitted(lalm, replace(structure, classify=None, speakers=VOICE))
        np.testing.assert_array_equal(made.labels, fitted(lalm, structure, ("voices",)).labels)


class TestParts:
    """What is left of the mixture without them."""

    def expected(self, lalm, structure, without):
        model = None
        if "structure" not in without:
            model = ridge.left_out(300, standardised(structure.hidden), 2 * 24)
        sources = [] if "source" in without else [structure.source]
        teachers = TwoTeachers.of(None if "lalm" in without else lalm, sources)
        return settled(teachers, model, uniform="prior" in without)

    @pytest.mark.parametrize("part", ["", *LEFT_OUT])
    def test_parity(self, clips, part):
        _, lalm, structure = clips
        without = {"voices", part}
        made, expected = fitted(lalm, structure, without), self.expected(lalm, structure, without)
        np.testing.assert_allclose(made.labels, expected.labels, atol=1e-6)
        np.testing.assert_allclose(
            made.views, np.stack([expected.answers, expected.acoustics], axis=1), atol=1e-6
        )
        assert (made.mixture.prior == 0.25).all() == (part == "prior")

    @pytest.mark.parametrize("part", LEFT_OUT)
    def test_every_part_matters(self, clips, rounds, part):
        _, lalm, structure = clips
        assert np.abs(fitted(lalm, structure).labels - fitted(lalm, structure, (part,)).labels).max() > 0.01

    @pytest.mark.parametrize("part", ["lalm", "source"])
    def test_what_a_teacher_says_does_not_matter_without_it(self, clips, rounds, part):
        _, lalm, structure = clips
        one = fitted(lalm, structure, (part,))
        if part == "lalm":
            other = fitted(np.roll(lalm, 1, axis=0), structure, (part,))
        else:
            changed = replace(
                structure, source=np.roll(structure.source, 1, axis=0), classify=lambda *_: lalm
            )
            other = fitted(lalm, changed, (part,))
        np.testing.assert_array_equal(one.labels, other.labels)
        assert one.information[["lalm", "source"].index(part)] == 0 and np.isnan(one.correlation)

    def test_without_structure_no_voices_are_looked_for(self, clips, monkeypatch):
        _, lalm, structure = clips
        monkeypatch.setattr(cross_fit, "pseudo_speakers", None)
        assert fitted(lalm, structure, ("structure",)).voices == ()


def test_the_result_tells_how_the_teachers_go_together(clips):
    _, lalm, structure = clips
    made, teachers = fitted(lalm, structure, ("voices",)), TwoTeachers.of(lalm, [structure.source])
    assert made.correlation == teachers.correlation > 0
    np.testing.assert_array_equal(made.information, teachers.information(made.labels))
    product = made.mixture.prior * made.views.prod(axis=1)
    np.testing.assert_allclose(made.labels, product / product.sum(axis=1, keepdims=True), atol=1e-9)


def test_the_seed_settles_the_labels(clips, monkeypatch):
    _, lalm, structure = clips
    monkeypatch.setattr("mifuse_cli.fusion.voices._VOICES", (2, 3))
    one, again = (fitted(lalm, structure, seed=3) for _ in range(2))
    np.testing.assert_array_equal(one.labels, again.labels)
    assert one.voices  # found in earnest


def test_labels_have_no_way_in_but_gold():
    tree = ast.parse(Path(cross_fit.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in ours if name.startswith("mifuse_cli")} == {
        "mifuse_cli.fusion",
        "mifuse_cli.fusion.mixture",
        "mifuse_cli.fusion.voices",
    }
    parameters = set(inspect.signature(cross_fit.cross_fit).parameters)
    assert parameters == {"lalm", "structure", "without", "gold", "rng"}
    assert Structure.__dataclass_fields__.keys() == {
        "source", "hidden", "head_input", "classify", "speakers", "voice",
    }  # fmt: skip
