"""Cross-fitted labels from answers, hidden states and the source classifier, with what leaves each of them out."""

import inspect
from functools import partial

import adapting
import numpy as np
import pytest
import torch
from adapting import K, U

from mifuse_cli import fusion, provenance
from mifuse_cli.fusion import FusionSettings, cross_fit, fuse_samples
from mifuse_cli.methods.structure import structure_layers, structure_of
from mifuse_cli.model.classifier import Classifier, Features, Head
from mifuse_cli.model.standard import fit_standard, statistics

STATES, WIDTH, CLIPS = 5, 8, 40
SPEAKERS = ["ann", "bob", "cy", "di"]


def raw(clips=U, shift=0.0, seed=0):
    """Features of two voices, ``shift`` apart, that both say all classes."""
    rng = np.random.default_rng(seed)
    emotion, voice = np.arange(clips) % K, np.arange(clips) // K % 2
    values = rng.normal(size=(clips, STATES, WIDTH)) + 1.5 * rng.normal(size=(K, STATES, WIDTH))[emotion]
    values[voice == 1] += shift
    return values.astype(np.float32)


def answers(clips=U, silent=(), seed=1):
    probs = np.random.default_rng(seed).dirichlet(np.full(K, 0.5), clips)
    probs[np.arange(clips), np.arange(clips) % K] += 0.5
    probs /= probs.sum(axis=1, keepdims=True)
    probs[list(silent)] = np.nan
    return probs


def model_of(features):
    """A head over two hidden states, and its input standardised over the clips."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Classifier(None, Head(2, WIDTH, K, hidden=16, dropout=0.3), [1, 3])
    seen = torch.from_numpy(features[:, [1, 3]])
    standard = fit_standard("target", seen, stored=None, speakers=())
    return model, Features(standard(seen, torch.arange(len(seen))), statistics(seen))


def structure(features, speakers=None, sign=1, seed=0):
    model, inputs = model_of(features)
    inputs.values *= sign
    return structure_of(features, model, inputs, speakers=speakers, passes=10, seed=seed)


def fused(features, lalm, speakers=None, sign=1, seed=0, **changes):
    """What `fuse_samples` makes of one answer a clip and the structure."""
    found = structure(features, speakers, sign, seed)
    said = [lalm[:, None], np.stack([found.source, found.source], axis=1)]
    random = partial(provenance.rng, seed)
    return fuse_samples(said, FusionSettings(**changes), structure=found, random=random)


def labels(*args, **changes):
    return fused(*args, **changes).probs


def test_no_true_label_has_a_way_in():
    assert set(inspect.signature(structure_of).parameters) == {
        "hidden", "classifier", "inputs", "speakers", "passes", "seed", "voice",
    }  # fmt: skip
    assert set(inspect.signature(fuse_samples).parameters) == {"samples", "settings", "structure", "random"}


def test_the_labels_are_made_of_what_the_artifact_tells():
    """prod views^exponents, with the bias that makes their mean the prior."""
    features, silent = raw(CLIPS), [0, 5, 11]
    made = fused(features, answers(CLIPS, silent)).cross_fit
    logs = (made.exponents[..., None] * np.log(made.views)).sum(axis=1)
    np.testing.assert_allclose(cross_fit.match(logs, made.prior, steps=200), made.labels, atol=1e-3)
    np.testing.assert_allclose(made.labels.mean(axis=0), made.prior)
    heard = np.setdiff1d(np.arange(CLIPS), silent)
    assert (made.exponents[heard, :2] == 0.5).all() and (made.exponents[silent, :2] == [0, 1]).all()
    assert 0 < made.exponents[0, 2] < 1 and len(set(made.exponents[:, 2])) == 1
    np.testing.assert_allclose(made.views.sum(axis=-1), 1)


def test_weights_are_shares_among_the_teachers():
    made = fused(raw(CLIPS), answers(CLIPS, [3]))
    assert made.weights[3].tolist() == [0, 1] and (np.delete(made.weights, 3, axis=0) == 0.5).all()
    alone = fused(raw(CLIPS), answers(CLIPS, [3]), without="source")
    assert np.isnan(alone.weights[3]).all() and (np.delete(alone.weights, 3, axis=0) == [1, 0]).all()


def test_sharpening_is_of_the_labels():
    plain, sharp = (labels(raw(CLIPS), answers(CLIPS), sharpen=t).astype(float) for t in (1.0, 0.5))
    np.testing.assert_allclose(sharp, plain**2 / (plain**2).sum(axis=1, keepdims=True), atol=1e-6)


def test_needs_structure_and_a_seed():
    said = [answers()[:, None], answers(seed=2)[:, None]]
    with pytest.raises(ValueError, match="needs the structure"):
        fuse_samples(said, FusionSettings())


def test_the_source_classifier_has_a_say():
    one, other = (labels(raw(CLIPS), answers(CLIPS), sign=sign) for sign in (1, -3))
    assert np.abs(one - other).max() > 0.05


def test_the_seed_settles_the_labels():
    one, again, other = (labels(raw(), answers(), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-4


def test_clips_without_an_answer_go_by_source_and_structure():
    features, silent = raw(CLIPS), [0, 5, 11]
    heard = labels(features, answers(CLIPS))
    made = labels(features, answers(CLIPS, silent))
    assert np.isfinite(made).all() and not np.allclose(made[silent], heard[silent], atol=0.01)
    # The rest of an unheard row does not matter.
    partly = answers(CLIPS, silent)
    partly[silent, :2] = 0.5
    np.testing.assert_array_equal(labels(features, partly), made)


def test_without_the_lalm_its_answers_do_not_matter():
    features = raw(CLIPS)
    one, other = (labels(features, answers(CLIPS, seed=seed), without="lalm") for seed in (1, 2))
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - labels(features, answers(CLIPS))).max() > 0.01


def test_without_the_source_classifier_it_does_not_matter():
    one, other = (labels(raw(CLIPS), answers(CLIPS), sign=sign, without="source") for sign in (1, -1))
    np.testing.assert_array_equal(one, other)


def test_without_structure_the_labels_are_the_teachers_pool():
    features, lalm = raw(CLIPS), answers(CLIPS)
    made = labels(features, lalm, without="structure")
    np.testing.assert_allclose(made.mean(axis=0), 1 / K, atol=1e-3)
    plain = labels(features, lalm, without="structure,matching")
    assert np.abs(plain.mean(axis=0) - 1 / K).max() > 0.005
    source = structure(features).source
    logs = 0.5 * np.log(np.maximum(lalm, 1e-2) / np.maximum(lalm, 1e-2).sum(axis=1, keepdims=True))
    logs += 0.5 * np.log(np.maximum(source, 1e-3) / np.maximum(source, 1e-3).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(plain, adapting.softmax(logs), atol=1e-5)


def test_without_voices_none_are_looked_for(monkeypatch):
    expected = labels(raw(CLIPS), answers(CLIPS), without="voices")
    monkeypatch.setattr(cross_fit, "pseudo_speakers", None)
    np.testing.assert_array_equal(labels(raw(CLIPS), answers(CLIPS), without="voices"), expected)
    with pytest.raises(TypeError):
        labels(raw(CLIPS), answers(CLIPS))


def test_known_speakers_are_evened_out():
    # Offset and scale of a speaker's features are of no account, where speakers are known.
    features, speakers = raw(CLIPS), [SPEAKERS[u // 4 % 4] for u in range(CLIPS)]
    moved = features.copy()
    for number, name in enumerate(SPEAKERS):
        mine = [u for u, speaker in enumerate(speakers) if speaker == name]
        moved[mine] = (1 + number) * moved[mine] - 2 * number
    # The classifier's own input is standardised before: it is the same here.
    one, other = (labels(each, answers(CLIPS), speakers, without="source") for each in (features, moved))
    np.testing.assert_allclose(one, other, atol=1e-3)
    assert np.abs(labels(features, answers(CLIPS), without="source") - one).max() > 0.01


@pytest.fixture
def found(monkeypatch):
    """The two voices are found; what the source classifier says is noted."""
    noted, teachers = [], cross_fit.MatchedTeachers.of

    def note(lalm, sources, matched):
        noted.append(list(sources))
        return teachers(lalm, noted[-1], matched=matched)

    monkeypatch.setattr(cross_fit.MatchedTeachers, "of", note)
    groups = np.arange(CLIPS) // K % 2
    monkeypatch.setattr(cross_fit, "pseudo_speakers", lambda *args: [groups] * 3)
    return noted


def test_found_voices_are_evened_out(found):
    near, far = (fused(raw(CLIPS, shift), answers(CLIPS)) for shift in (2, 60))
    np.testing.assert_allclose(near.probs, far.probs, atol=1e-3)
    assert near.cross_fit.voices == (2, 2, 2)


def test_the_source_classifier_hears_what_found_voices_leave(found):
    labels(raw(CLIPS, 20), answers(CLIPS))
    (own,), by_voice = found
    assert len(by_voice) == 3

    def gap(probs):
        voice = np.arange(CLIPS) // K % 2
        return np.abs(probs[voice == 1].mean(axis=0) - probs[voice == 0].mean(axis=0)).max()

    # Standardised over both voices, the classifier hears little but which of them it is.
    assert gap(own) > 3 * max(map(gap, by_voice))


def test_several_models_are_averaged():
    features = raw(CLIPS)
    said = [np.random.default_rng(n).dirichlet(np.ones(K), (CLIPS, 4)) for n in range(3)]
    said[0][7] = np.nan
    found = structure(features)
    random = partial(provenance.rng, 0)
    three = fuse_samples(said, FusionSettings(), structure=found, random=random)
    weights, together = fusion.fuse_answers(three.mean, three.mi, FusionSettings())
    one = cross_fit.cross_fit(together.astype(float), found, rng=provenance.rng(0, "pseudo-speakers"))
    np.testing.assert_allclose(three.probs, one.labels, atol=1e-6)
    np.testing.assert_allclose(three.weights, np.hstack([weights / 2, np.full((CLIPS, 1), 0.5)]), atol=1e-6)


@pytest.mark.parametrize(
    ("states", "first", "last"),
    [(5, 1, 3), (7, 1, 5), (13, 3, 9), (25, 6, 18), (33, 8, 24), (2, 0, 1), (1, 0, 0)],
)
def test_structure_layers(states, first, last):
    assert list(structure_layers(states)) == list(range(first, last + 1))
