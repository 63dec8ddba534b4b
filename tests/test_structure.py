"""Cross-fitted labels from answers, hidden states and the source classifier, with what leaves each of them out."""

import inspect
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from adapting import K, U

from mifuse_cli import fusion, provenance
from mifuse_cli.fusion import FusionSettings, cross_fit, fuse_samples
from mifuse_cli.fusion.forecast import forecast
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
    return structure_of(features, model, inputs, states=0, speakers=speakers, passes=10, seed=seed)


def fused(features, lalm, speakers=None, sign=1, seed=0, **changes):
    """What `fuse_samples` makes of one answer a clip and the structure."""
    found = structure(features, speakers, sign, seed)
    said = [lalm[:, None], np.stack([found.source, found.source], axis=1)]
    random = partial(provenance.rng, seed)
    return fuse_samples(said, FusionSettings(**changes), structure=found, random=random)


def labels(*args, **changes):
    return fused(*args, **changes).probs


def test_no_true_label_has_a_way_in_but_gold():
    assert set(inspect.signature(structure_of).parameters) == {
        "hidden", "classifier", "inputs", "states", "speakers", "passes", "seed", "voice",
    }  # fmt: skip
    assert set(inspect.signature(fuse_samples).parameters) == {
        "samples", "settings", "structure", "gold", "random",
    }  # fmt: skip


def test_the_labels_are_made_of_what_the_artifact_tells():
    """The prior times both views; a clip without an answer has one that tells nothing."""
    made = fused(raw(CLIPS), answers(CLIPS, [0, 5, 11])).cross_fit
    product = made.mixture.prior * made.views.prod(axis=1)
    np.testing.assert_allclose(product / product.sum(axis=1, keepdims=True), made.labels, atol=1e-9)
    np.testing.assert_allclose(made.views[[0, 5, 11], 0], 1 / K)
    np.testing.assert_allclose(made.views.sum(axis=-1), 1)


def test_weights_are_the_teachers_shares_of_what_is_known_about_the_labels():
    made = fused(raw(CLIPS), answers(CLIPS, [3]))
    lalm, source = made.cross_fit.information
    assert made.weights[3].tolist() == [0, 1] and min(lalm, source) > 0
    shares = np.tile([lalm, source] / (lalm + source), (CLIPS - 1, 1))
    np.testing.assert_allclose(np.delete(made.weights, 3, axis=0), shares, atol=1e-6)
    alone = fused(raw(CLIPS), answers(CLIPS, [3]), without="source")
    assert np.isnan(alone.weights[3]).all() and (np.delete(alone.weights, 3, axis=0) == [1, 0]).all()


def test_the_forecast_is_of_the_labels_before_they_are_sharpened():
    lalm = answers(CLIPS, [3])
    made, sharp = (fused(raw(CLIPS), lalm, sharpen=t) for t in (1.0, 0.5))
    expected = forecast(made.mean.astype(float), made.cross_fit.labels, made.cross_fit.correlation)
    for one in (made.forecast, sharp.forecast):
        np.testing.assert_array_equal(one.recall, expected.recall)
        assert one.labels == expected.labels and one.at_chance == expected.at_chance
    for part, position in (("lalm", 0), ("source", 1)):
        told = fused(raw(CLIPS), lalm, without=part).forecast
        assert np.isnan(told.recall[position]).all() and np.isfinite(told.recall[1 - position]).all()
    assert fuse_samples([answers()[:, None]] * 2, FusionSettings(weighting="uniform")).forecast is None


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


def test_without_structure_hidden_states_do_not_matter():
    made, lalm = structure(raw(CLIPS)), answers(CLIPS)
    assert made.hidden.shape == (CLIPS, 3, WIDTH) and made.head_input.shape == (CLIPS, 2, WIDTH)
    one = cross_fit.cross_fit(lalm, made, without={"structure"}, rng=provenance.rng(0, "a"))
    other = replace(made, hidden=np.random.default_rng(0).normal(size=made.hidden.shape))
    again = cross_fit.cross_fit(lalm, other, without={"structure"}, rng=provenance.rng(0, "a"))
    np.testing.assert_array_equal(one.labels, again.labels)
    assert (
        np.abs(one.labels - cross_fit.cross_fit(lalm, other, rng=provenance.rng(0, "a")).labels).max() > 0.01
    )
    np.testing.assert_allclose(labels(raw(CLIPS), lalm, without="structure"), one.labels, atol=1e-6)


def test_without_the_prior_it_is_uniform():
    lalm = answers(CLIPS)
    lalm[: CLIPS // 2] = [0.85, 0.05, 0.05, 0.05]
    free, uniform = (fused(raw(CLIPS), lalm, without=part).cross_fit.mixture.prior for part in ("", "prior"))
    assert free.max() > 0.3 and (uniform == 1 / K).all()


def test_without_voices_none_are_looked_for(monkeypatch):
    expected = labels(raw(CLIPS), answers(CLIPS), without="voices")
    monkeypatch.setattr(cross_fit, "pseudo_speakers", None)
    np.testing.assert_array_equal(labels(raw(CLIPS), answers(CLIPS), without="voices"), expected)
    with pytest.raises(TypeError):
        labels(raw(CLIPS), answers(CLIPS))


def test_known_speakers_are_evened_out(monkeypatch):
    """Where speakers are known, the offsets of their features are of no account."""
    features, speakers = raw(CLIPS), [SPEAKERS[u // 4 % 4] for u in range(CLIPS)]
    found = structure(features, speakers).speakers
    assert [found[u] == found[v] for u in range(CLIPS) for v in range(CLIPS)] == [
        one == other for one in speakers for other in speakers
    ]
    monkeypatch.setattr(cross_fit, "class_mix_to_keep", lambda *_: 0.0)
    moved = features.copy()
    for number, name in enumerate(SPEAKERS):
        mine = [u for u, speaker in enumerate(speakers) if speaker == name]
        moved[mine] -= 2 * number
    model = model_of(features)

    def made(each, of):
        # The classifier's own input is standardised before: it is the same for both.
        prepared = structure_of(each, *model, states=0, speakers=of, passes=10, seed=0)
        rng = provenance.rng(0, "pseudo-speakers")
        return cross_fit.cross_fit(answers(CLIPS), prepared, without={"source"}, rng=rng)

    one, other = (made(each, speakers) for each in (features, moved))
    assert one.voices == (4,)
    np.testing.assert_allclose(one.labels, other.labels, atol=1e-3)
    assert np.abs(made(features, None).labels - one.labels).max() > 0.01


def test_what_is_above_the_highest_state_in_use_is_not_needed():
    features = raw(CLIPS)
    model, inputs = model_of(features)
    last = structure_layers(STATES)[-1]
    options = {"speakers": None, "passes": 10, "seed": 0}
    whole = structure_of(features, model, inputs, states=0, **options)
    cut = structure_of(features[:, : last + 1], model, inputs, states=STATES, **options)
    np.testing.assert_array_equal(cut.hidden, whole.hidden)
    np.testing.assert_array_equal(cut.head_input, whole.head_input)


@pytest.fixture
def found(monkeypatch):
    """The two voices are found; what the source classifier says is noted."""
    noted, teachers = [], cross_fit.TwoTeachers.of

    def note(lalm, sources):
        noted.append(list(sources))
        return teachers(lalm, noted[-1])

    monkeypatch.setattr(cross_fit.TwoTeachers, "of", note)
    groups = np.arange(CLIPS) // K % 2
    monkeypatch.setattr(cross_fit, "pseudo_speakers", lambda *args: [groups] * 3)
    return noted


def test_found_voices_are_evened_out(found):
    near, far = (fused(raw(CLIPS, shift), answers(CLIPS)) for shift in (2, 60))
    assert (near.probs.argmax(axis=1) == far.probs.argmax(axis=1)).mean() > 0.95
    assert near.cross_fit.voices == (2, 2, 2) and len(near.cross_fit.kept) == 3


def test_the_source_classifier_hears_what_found_voices_leave(found):
    labels(raw(CLIPS, 20), answers(CLIPS))
    (own,), first, by_voice = found
    assert len(first) == len(by_voice) == 3

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
    shares, together = fusion.fuse_answers(three.mean, three.mi, FusionSettings())
    assert (shares[7] == [0, 1]).all() and (np.delete(shares, 7, axis=0) == 0.5).all()
    one = cross_fit.cross_fit(together.astype(float), found, rng=provenance.rng(0, "pseudo-speakers"))
    np.testing.assert_allclose(three.probs, one.labels, atol=1e-6)
    source = one.information[1] / one.information.sum()
    np.testing.assert_allclose(three.weights[:, 2], source, atol=1e-6)
    np.testing.assert_allclose(three.weights[:, :2], shares * (1 - source), atol=1e-6)


@pytest.mark.parametrize("part", fusion.PARTS)
def test_parts_can_be_left_out_of_several_models(part):
    said = [np.random.default_rng(n).dirichlet(np.ones(K), (CLIPS, 4)) for n in range(3)]
    made = fuse_samples(
        said, FusionSettings(without=part), structure=structure(raw(CLIPS)), random=partial(provenance.rng, 0)
    )
    np.testing.assert_allclose(made.probs.sum(axis=1), 1, atol=1e-6)
    heard = fusion.fuse_answers(made.mean, made.mi, made.settings)[1]
    assert np.isnan(heard).all() == (part == "lalm")


@pytest.mark.parametrize(
    ("states", "first", "last"),
    [(5, 1, 3), (7, 1, 5), (13, 3, 9), (25, 6, 18), (33, 8, 24), (2, 0, 1), (1, 0, 0)],
)
def test_structure_layers(states, first, last):
    assert list(structure_layers(states)) == list(range(first, last + 1))
