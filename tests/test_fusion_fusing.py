"""From answers to fused labels in one call: temperatures, guards, and that nothing else is done."""

import numpy as np
import pytest
from planted import planted

from mifuse_cli import fusion
from mifuse_cli.fusion import FusionSettings, fuse_samples
from mifuse_cli.fusion.cross_fit import Structure

U, K = 30, 4


def answers(seed, n=5, sharp=1.0):
    return np.random.default_rng(seed).dirichlet(np.full(K, sharp), size=(U, n))


def test_is_the_fusion_of_means_and_mutual_information():
    teachers = [answers(0), answers(1, n=7)]
    settings = FusionSettings(weighting="mi", tau=0.2, pool="log", sharpen=0.5)
    found = fuse_samples(teachers, settings)
    stats = [fusion.mean_and_mi(one, "bayes") for one in teachers]
    mean, mi = np.stack([s[0] for s in stats], axis=1), np.stack([s[1] for s in stats], axis=1)
    weights, probs = fusion.fuse_means(mean, mi, settings)
    for one, other in ((found.mean, mean), (found.mi, mi), (found.weights, weights), (found.probs, probs)):
        np.testing.assert_allclose(one, other, atol=1e-6)
    assert found.temperature == (None, None) and found.settings.weighting == "mi"


@pytest.mark.parametrize("weighting", sorted(fusion.OF_MI))
def test_a_dead_teacher_makes_all_weigh_the_same_unless_told_otherwise(weighting):
    dead = np.repeat(answers(0, n=1), 5, axis=1)
    found = fuse_samples([dead, answers(1)], FusionSettings(weighting=weighting))
    assert found.settings.weighting == "uniform" and found.identical[0] == 1
    np.testing.assert_array_equal(found.weights, 0.5)
    kept = fuse_samples([dead, answers(1)], FusionSettings(weighting=weighting, keep_weighting=True))
    assert kept.settings.weighting == weighting and np.abs(kept.weights - 0.5).max() > 0.01


def test_other_weightings_do_not_mind_a_dead_teacher():
    dead = np.repeat(answers(0, n=1), 5, axis=1)
    assert (
        fuse_samples([dead, answers(1)], FusionSettings(weighting="entropy")).settings.weighting == "entropy"
    )


@pytest.mark.parametrize("calibrate", fusion.CALIBRATIONS[1:])
def test_temperatures_are_of_all_but_the_classifier(calibrate):
    teachers = [answers(0, sharp=0.3), answers(1)]
    found = fuse_samples(teachers, FusionSettings(weighting="mi", calibrate_lalm=calibrate))
    believed = teachers[1].mean(axis=1).argmax(axis=-1)
    rate = (
        fusion.self_agreement(teachers[0])
        if calibrate == "self-agreement"
        else fusion.agreement_with(teachers[0], believed)
    )
    expected = fusion.temperature_for(teachers[0], rate)
    assert found.temperature == (pytest.approx(expected, abs=1e-4), None)
    cooled = fusion.with_temperature(teachers[0], expected)
    np.testing.assert_allclose(found.mean[:, 0], fusion.mean_and_mi(cooled)[0], atol=1e-6)
    np.testing.assert_allclose(found.mean[:, 1], teachers[1].mean(axis=1), atol=1e-6)


def test_votes_and_the_dead_have_no_temperature_by_self_agreement():
    votes = np.eye(K)[np.random.default_rng(0).integers(K, size=(U, 5))]
    dead = np.repeat(answers(0, n=1), 5, axis=1)
    found = fuse_samples(
        [votes, dead, answers(1)], FusionSettings(weighting="mi", calibrate_lalm="self-agreement")
    )
    assert found.temperature == (None, None, None)


def test_one_answer_cannot_agree_with_others():
    with pytest.raises(ValueError, match="a rate"):
        fuse_samples(
            [answers(0, n=1), answers(1)], FusionSettings(weighting="mi", calibrate_lalm="self-agreement")
        )


@pytest.mark.parametrize("given", [0, 30])
def test_labels_of_cross_fit_are_as_sure_as_they_are_expected_to_be_right(given):
    """Unless true classes were given, of which the forecast knows nothing; no decision changes."""
    truth, features, lalm, source = planted(told=(1.2, 1.2), sure=(2, 2), apart=2)
    structure = Structure(source, features[:, None].astype(np.float32), features[:, None], None)
    gold = np.where(np.arange(len(truth)) < given, truth, -1) if given else None
    found = fuse_samples(
        [lalm[:, None], source[:, None]],
        FusionSettings(),
        structure=structure,
        gold=gold,
        random=lambda _: np.random.default_rng(0),
    )
    assert found.cross_fit is not None and found.forecast is not None
    unsoftened = found.cross_fit.labels
    np.testing.assert_array_equal(found.probs.argmax(axis=1), unsoftened.argmax(axis=1))
    if given:
        assert found.softness == 1 and np.isnan(found.forecast.labels)
        np.testing.assert_allclose(found.probs, unsoftened, atol=1e-6)
    else:
        assert unsoftened.max(axis=1).mean() > found.forecast.labels + 0.02
        assert found.probs.max(axis=1).mean() == pytest.approx(found.forecast.labels, abs=1e-3)
