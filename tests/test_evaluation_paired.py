import numpy as np
import pytest

from mifuse_cli.evaluation import METRICS, average_ranks, bootstrap_metrics, interval, rates, score, tally

K = 3


def corpus(seed=0, speakers=6, each=8):
    """True classes (U,) of clips by several speakers, and who speaks."""
    rng = np.random.default_rng(seed)
    truth = np.concatenate([np.arange(K), rng.integers(K, size=speakers * each - K)])
    return truth, [f"s{n % speakers}" for n in range(len(truth))]


def guesses(truth, rate, rng, systems=1, seeds=1):
    """Predictions (R, N, U) that are right with a probability."""
    right = rng.random((systems, seeds, len(truth))) < rate
    return np.where(right, truth, (truth + 1) % K)


def certain(predicted):
    """One-hot distributions (..., K) of class indices (...)."""
    return np.eye(K)[predicted]


def draws_of_ua(tallies, **options):
    return bootstrap_metrics(tallies, ["ua"], **options)["ua"]


@pytest.fixture
def unsure():
    """Truth (U,), speakers, and distributions (R, N, U, K) of two systems with three seeds, some of them missing."""
    truth, speakers = corpus()
    probs = np.random.default_rng(1).dirichlet([0.5, 0.3, 0.2], (2, 3, len(truth)))
    probs[1, :, [4, 20]] = np.nan
    return truth, speakers, probs


@pytest.mark.parametrize("metric", METRICS)
def test_metrics_of_a_tally_are_those_of_score(unsure, metric):
    truth, speakers, probs = unsure
    found = tally("a", truth, probs, speakers).metric(metric)
    expected = [[rates(truth, one)[metric] for one in seeds] for seeds in probs]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert len(np.unique(np.round(expected, 6))) > 2


@pytest.mark.parametrize("metric", METRICS)
def test_a_draw_has_the_metrics_of_the_clips_that_it_repeats(unsure, metric):
    """The prior of the corrected decision stays that of all clips."""
    truth, speakers, probs = unsure
    one = tally("a", truth, probs, speakers)
    times = np.array([[2, 0, 1, 0, 3, 0], [1, 1, 1, 1, 1, 1]])
    repeated = np.concatenate([[n] * times[0, int(speakers[n][1:])] for n in range(len(truth))]).astype(int)
    found = one.metric(metric, times)
    for system, seeds in enumerate(probs):
        for seed, of in enumerate(seeds):
            prior = np.nanmean(of, axis=0)
            expected = rates(truth[repeated], of[repeated], prior)[metric]
            assert found[system, seed, 0] == pytest.approx(expected, rel=1e-12)
    np.testing.assert_allclose(found[..., 1], one.metric(metric), rtol=1e-12)


def test_an_unknown_metric_is_an_error(unsure):
    truth, speakers, probs = unsure
    with pytest.raises(KeyError, match="uar"):
        tally("a", truth, probs, speakers).metric("uar")


def test_no_prediction_is_wrong():
    probs = np.array([[np.nan] * 3, [0.1, 0.9, 0], [0.2, 0.1, 0.7]])
    one = tally("a", np.array([0, 1, 2]), probs[None, None], None)
    for metric, expected in {
        "ua": 2 / 3,
        "ua_prior_corrected": 2 / 3,
        "wa": 2 / 3,
        "macro_f1": 2 / 3,
    }.items():
        assert one.metric(metric) == pytest.approx(expected)
    assert one.metric("ece") == pytest.approx((0.1 + 0.3) / 2)


def test_a_draw_counts_a_speaker_as_often_as_drawn():
    # Speaker x: class 0 right, class 1 wrong. Speaker y: class 0 wrong twice.
    truth, speakers = np.array([0, 1, 0, 0]), ["x", "x", "y", "y"]
    one = tally("a", truth, certain(np.array([[[0, 0, 1, 1]]])), speakers)
    assert one.units == ("x", "y")
    drawn = one.metric("ua", np.array([[1, 1], [2, 0], [0, 2]]))
    assert drawn[0, 0].tolist() == pytest.approx([(1 / 3 + 0) / 2, (1 + 0) / 2, 0])  # no class 1 in the third


def test_draws_are_shared_by_systems_seeds_and_transfers_to_the_same_corpus():
    rng = np.random.default_rng(3)
    truth, speakers = corpus(1)
    other, theirs = corpus(2, speakers=4)
    predicted = guesses(truth, 0.7, rng, systems=1, seeds=2)
    twice = certain(np.concatenate([predicted, predicted]))
    tallies = [tally("a", truth, twice, speakers), tally("a", truth, twice, speakers),
               tally("b", other, certain(np.repeat(guesses(other, 0.5, rng, seeds=2), 2, axis=0)), theirs)]  # fmt: skip
    draws = draws_of_ua(tallies, resamples=150, rng=np.random.default_rng(0))
    assert draws.shape == (2, 3, 150)
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    assert not np.allclose(draws[:, 0], draws[:, 2])
    assert np.ptp(draws[0, 0]) > 0.01


def test_speakers_of_the_same_corpus_are_drawn_together():
    """A transfer that has only some of the speakers of another one sees them as often as that does."""
    truth, speakers = np.array([0, 1, 0, 1]), ["x", "x", "y", "y"]
    right_by_x = certain(np.array([[[0, 1, 1, 0]]]))
    whole = tally("a", truth, right_by_x, speakers)
    part = tally("a", truth[:2], right_by_x[:, :, :2], speakers[:2])
    both = draws_of_ua([whole, part], resamples=200, rng=np.random.default_rng(0))[0]
    # Only y is drawn: nothing of the part is, and the whole is all wrong.
    np.testing.assert_array_equal(np.isnan(both[1]), both[0] == 0)
    assert set(both[0]) == {0, 0.5, 1} and set(both[1][both[0] > 0]) == {1}
    assert interval(both[1]) == (1, 1)
    assert np.isnan(interval(both[1][both[0] == 0])).all()


def test_the_interval_of_a_paired_difference_is_narrower_than_of_independent_ones():
    rng = np.random.default_rng(5)
    truth, speakers = corpus(3, speakers=12)
    # Speakers differ much in how hard they are, alike for both systems; the second is right a little more often.
    hard = np.array([int(name[1:]) % 2 for name in speakers])
    first = np.where(hard, (truth + 1) % K, truth)
    second = np.where((first != truth) & (rng.random(len(truth)) < 0.3), truth, first)
    one = tally("a", truth, certain(np.stack([first, second])[:, None]), speakers)
    draws = draws_of_ua([one], resamples=500, rng=np.random.default_rng(0))
    low, high = interval(draws[1, -1] - draws[0, -1])
    apart = interval(draws[1, -1] - np.roll(draws[0, -1], 1))
    assert 0 < low < np.diff(one.metric("ua")[:, 0])[0] < high
    assert high - low < 0.6 * (apart[1] - apart[0])


def test_single_transfer_interval_is_that_of_score():
    rng = np.random.default_rng(7)
    truth, speakers = corpus(4, speakers=10, each=12)
    predicted = guesses(truth, 0.6, rng)
    draws = draws_of_ua([tally("a", truth, certain(predicted), speakers)], resamples=4000, rng=rng)
    expected = score(truth, certain(predicted[0, 0]), speakers=speakers, resamples=4000, rng=rng)
    assert interval(draws[0, 0]) == pytest.approx((expected.ua_low, expected.ua_high), abs=0.01)


def test_clips_are_drawn_where_speakers_are_unknown():
    truth, _ = corpus()
    one = tally("a", truth, certain(truth[None, None]), None)
    assert one.support.shape == (len(truth), K)


def test_interval_is_of_percentiles():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(np.arange(1001.0), 0.5) == pytest.approx((250, 750))


def test_ranks_by_hand():
    # Two transfers, one seed: the first system is 1st and shares 2nd and 3rd place, ...
    ua = np.array([[[0.9], [0.5]], [[0.8], [0.5]], [[0.7], [0.6]]])
    assert average_ranks(ua).tolist() == [(1 + 2.5) / 2, (2 + 2.5) / 2, (3 + 1) / 2]
