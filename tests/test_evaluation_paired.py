import numpy as np
import pytest

from mifuse_cli.evaluation import average_ranks, bootstrap_ua, interval, predicted_classes, score, tally

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


def test_ua_of_a_tally_is_that_of_score():
    truth, speakers = corpus()
    predicted = guesses(truth, 0.6, np.random.default_rng(1), systems=2, seeds=3)
    found = tally("a", truth, predicted, K, speakers).ua()
    for system in range(2):
        for seed in range(3):
            expected = score(
                truth, np.eye(K)[predicted[system, seed]], resamples=100, rng=np.random.default_rng(0)
            )
            assert found[system, seed] == pytest.approx(expected.ua)


def test_no_prediction_is_wrong():
    probs = np.array([[np.nan] * 3, [0, 1, 0], [0.2, 0.1, 0.7]])
    assert predicted_classes(probs).tolist() == [3, 1, 2]
    predicted = predicted_classes(probs)[None, None]
    assert tally("a", np.array([0, 1, 2]), predicted, 3, None).ua() == pytest.approx(2 / 3)


def test_a_draw_counts_a_speaker_as_often_as_drawn():
    # Speaker x: class 0 right, class 1 wrong. Speaker y: class 0 wrong twice.
    truth, speakers = np.array([0, 1, 0, 0]), ["x", "x", "y", "y"]
    one = tally("a", truth, np.array([[[0, 0, 1, 1]]]), 2, speakers)
    drawn = one.drawn(np.array([[0, 1], [0, 0], [1, 1]]))
    assert drawn[0].tolist() == pytest.approx([(1 / 3 + 0) / 2, (1 + 0) / 2, 0])  # no class 1 in the third


def test_draws_are_shared_by_systems_seeds_and_transfers_to_the_same_corpus():
    rng = np.random.default_rng(3)
    truth, speakers = corpus(1)
    other, theirs = corpus(2, speakers=4)
    predicted = guesses(truth, 0.7, rng, systems=1, seeds=2)
    twice = np.concatenate([predicted, predicted])
    tallies = [tally("a", truth, twice, K, speakers), tally("a", truth, twice, K, speakers),
               tally("b", other, np.repeat(guesses(other, 0.5, rng, seeds=2), 2, axis=0), K, theirs)]  # fmt: skip
    draws = bootstrap_ua(tallies, resamples=150, rng=np.random.default_rng(0))
    assert draws.shape == (2, 4, 150)
    np.testing.assert_array_equal(draws[0], draws[1])
    np.testing.assert_array_equal(draws[:, 0], draws[:, 1])
    assert not np.allclose(draws[:, 0], draws[:, 2])
    np.testing.assert_allclose(draws[:, 3], draws[:, :3].mean(axis=1))
    assert np.ptp(draws[0, 0]) > 0.01


def test_the_interval_of_a_paired_difference_is_narrower_than_of_independent_ones():
    rng = np.random.default_rng(5)
    truth, speakers = corpus(3, speakers=12)
    # Speakers differ much in how hard they are, alike for both systems; the second is right a little more often.
    hard = np.array([int(name[1:]) % 2 for name in speakers])
    first = np.where(hard, (truth + 1) % K, truth)
    second = np.where((first != truth) & (rng.random(len(truth)) < 0.3), truth, first)
    one = tally("a", truth, np.stack([first, second])[:, None], K, speakers)
    draws = bootstrap_ua([one], resamples=500, rng=np.random.default_rng(0))
    low, high = interval(draws[1, -1] - draws[0, -1])
    apart = interval(draws[1, -1] - np.roll(draws[0, -1], 1))
    assert 0 < low < (one.ua()[1] - one.ua()[0]).mean() < high
    assert high - low < 0.6 * (apart[1] - apart[0])


def test_single_transfer_interval_is_that_of_score():
    rng = np.random.default_rng(7)
    truth, speakers = corpus(4, speakers=10, each=12)
    predicted = guesses(truth, 0.6, rng)
    draws = bootstrap_ua([tally("a", truth, predicted, K, speakers)], resamples=4000, rng=rng)
    expected = score(truth, np.eye(K)[predicted[0, 0]], speakers=speakers, resamples=4000, rng=rng)
    assert interval(draws[0, 0]) == pytest.approx((expected.ua_low, expected.ua_high), abs=0.01)


def test_clips_are_drawn_where_speakers_are_unknown():
    truth, _ = corpus()
    one = tally("a", truth, truth[None, None], K, None)
    assert one.support.shape == (len(truth), K)


def test_interval_is_of_percentiles():
    assert interval(np.arange(1001.0)) == pytest.approx((25, 975))
    assert interval(np.arange(1001.0), 0.5) == pytest.approx((250, 750))


def test_ranks_by_hand():
    # Two transfers, one seed: the first system is 1st and shares 2nd and 3rd place, ...
    ua = np.array([[[0.9], [0.5]], [[0.8], [0.5]], [[0.7], [0.6]]])
    assert average_ranks(ua).tolist() == [(1 + 2.5) / 2, (2 + 2.5) / 2, (3 + 1) / 2]
