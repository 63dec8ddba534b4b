"""Drawing many units by their outcomes gives the same intervals as drawing them one by one."""

import numpy as np
import pytest

from mifuse_cli.evaluation import bootstrap, bootstrap_metrics, interval, tally

COUNTED = ("ua", "ua_prior_corrected", "wa", "macro_f1")


def tallies(rng, transfers=1, clips=1200):
    """Transfers to one corpus, each of other clips of it, some of them without a prediction."""
    found = []
    truth = rng.integers(3, size=clips)
    for _ in range(transfers):
        there = np.sort(rng.permutation(clips)[: clips - 20 * (transfers - 1)])
        probs = rng.dirichlet(np.ones(3), (2, 1, len(there)))
        probs[0, 0, :5] = np.nan
        found.append(tally("corpus", truth[there], probs, [f"{n:04}" for n in there]))
    return found


@pytest.fixture
def by_outcome(monkeypatch):
    monkeypatch.setattr(bootstrap, "_MANY", 0)


@pytest.mark.parametrize("transfers", [1, 2])
def test_the_units_of_an_outcome_stand_for_all_of_them(by_outcome, transfers):
    made, metrics = tallies(np.random.default_rng(0), transfers), COUNTED if transfers == 1 else COUNTED[::2]
    corpus = bootstrap._corpus(made, metrics)
    assert len(corpus.counts) < 1200 / 2
    assert corpus.counts.sum() == len({unit for one in made for unit in one.units})
    for one, chosen, of in zip(made, corpus.tallies, corpus.columns, strict=True):
        for name in metrics:
            np.testing.assert_allclose(chosen.metric(name, corpus.counts[None, of])[..., 0], one.metric(name))


@pytest.mark.parametrize("transfers", [1, 2])
def test_intervals_are_the_same_but_for_chance(monkeypatch, transfers):
    made, metrics = tallies(np.random.default_rng(1), transfers), COUNTED if transfers == 1 else COUNTED[::2]
    one_by_one = bootstrap_metrics(made, metrics, resamples=4000, rng=np.random.default_rng(2))
    monkeypatch.setattr(bootstrap, "_MANY", 0)
    together = bootstrap_metrics(made, metrics, resamples=4000, rng=np.random.default_rng(2))
    for name in metrics:
        assert one_by_one[name].shape == together[name].shape == (2, transfers, 4000)
        for first, second in zip(
            one_by_one[name].reshape(-1, 4000), together[name].reshape(-1, 4000), strict=True
        ):
            assert second.std() == pytest.approx(first.std(), rel=0.06)
            assert interval(second) == pytest.approx(interval(first), abs=0.004)
    if transfers == 2:  # of the same draws: what two transfers share, they share in both
        shared = [np.corrcoef(draws["ua"][1])[0, 1] for draws in (one_by_one, together)]
        assert shared[0] == pytest.approx(shared[1], abs=0.06)


def test_confidences_are_drawn_with_their_clips(by_outcome):
    made = tallies(np.random.default_rng(3))
    assert len(bootstrap._corpus(made, (*COUNTED, "ece")).counts) == 1200


def test_draws_do_not_depend_on_how_many_are_made_at_once(monkeypatch):
    made = tallies(np.random.default_rng(4))
    whole = bootstrap_metrics(made, ["ua"], resamples=250, rng=np.random.default_rng(5))["ua"]
    monkeypatch.setattr(bootstrap, "_DRAWN", 1200 * 7)
    np.testing.assert_array_equal(
        bootstrap_metrics(made, ["ua"], resamples=250, rng=np.random.default_rng(5))["ua"], whole
    )
