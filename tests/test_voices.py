import ast
from pathlib import Path

import numpy as np
import pytest

from mifuse_cli.fusion import voices

U, K, D = 40, 3, 6


def clips_of(clips=200, count=5, apart=1.0, seed=8, width=60):
    """Features of several voices that say all classes; ``apart`` scales how much the voices differ."""
    rng = np.random.default_rng(seed)
    voice, emotion = rng.permutation(clips) % count, rng.integers(K, size=clips)
    layer = 3 * rng.normal(size=(K, width))[emotion] + apart * 2 * rng.normal(size=(count, width))[voice]
    return voice, emotion, layer + rng.normal(size=layer.shape)


@pytest.mark.parametrize("count", [5, 8])
def test_pseudo_speakers_are_the_voices(count):
    voice, emotion, layer = clips_of(count=count, width=24)
    groupings = voices.pseudo_speakers(layer, np.eye(K)[emotion], np.random.default_rng(0))
    assert len(groupings) == 3
    for groups in groupings:
        assert len(np.unique(groups)) == count
        purity = sum(np.bincount(voice[groups == g]).max() for g in np.unique(groups)) / len(voice)
        assert purity > 0.95


def test_more_voices_than_can_be_told_apart_with_so_few_clips():
    _, emotion, layer = clips_of(clips=200, count=20, width=24)
    groupings = voices.pseudo_speakers(layer, np.eye(K)[emotion], np.random.default_rng(0))
    assert groupings and all(1 < len(np.unique(groups)) <= 200 // 15 for groups in groupings)


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("width", [12, 60])
def test_where_no_voices_stand_out_there_are_none(seed, width):
    """Neither noise nor emotions, which the labels tell of, pass for voices."""
    _, emotion, layer = clips_of(apart=0, seed=seed, width=width)
    assert voices.pseudo_speakers(layer, np.eye(K)[emotion], np.random.default_rng(0)) == []


def test_few_clips_have_one_voice():
    rng = np.random.default_rng(0)
    layer, labels = rng.normal(size=(29, 12)), rng.dirichlet(np.ones(K), 29)
    assert voices.pseudo_speakers(layer, labels, rng) == []


def vectors_of(clips=120, count=6, apart=1.0, seed=3, width=16):
    """Vectors of length 1 of several voices that say all classes; emotion moves them too."""
    rng = np.random.default_rng(seed)
    voice, emotion = rng.permutation(clips) % count, rng.integers(K, size=clips)
    vectors = 1.5 * rng.normal(size=(K, width))[emotion] + apart * 2 * rng.normal(size=(count, width))[voice]
    vectors += 0.5 * rng.normal(size=vectors.shape)
    return voice, emotion, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


class TestVectors:
    @pytest.mark.parametrize("count", [4, 6, 12])
    def test_clusters_of_vectors_are_the_voices(self, count):
        voice, emotion, vectors = vectors_of(count=count)
        groupings = voices.clustered_vectors(vectors, np.eye(K)[emotion], np.random.default_rng(0))
        assert len(groupings) == 3
        for groups in groupings:
            assert len(np.unique(groups)) == count
            assert sum(np.bincount(voice[groups == g]).max() for g in np.unique(groups)) > 0.95 * len(voice)

    def test_the_labels_keep_emotions_from_being_voices(self):
        """Here emotions are all that tells the clips apart."""
        _, emotion, vectors = vectors_of(apart=0)
        labels, rng = np.eye(K)[emotion], np.random.default_rng(0)
        assert voices.clustered_vectors(vectors, labels, rng) == []
        uniform = np.full((len(vectors), K), 1 / K)
        assert voices.clustered_vectors(vectors, uniform, rng) != []

    def test_noise_is_no_voice(self):
        rng = np.random.default_rng(0)
        vectors, labels = rng.normal(size=(120, 16)), rng.dirichlet(np.ones(K), 120)
        assert voices.clustered_vectors(vectors, labels, rng) == []

    def test_few_clips_have_one_voice(self):
        _, emotion, vectors = vectors_of(clips=19, count=4)
        assert voices.clustered_vectors(vectors, np.eye(K)[emotion], np.random.default_rng(0)) == []
        _, emotion, vectors = vectors_of(clips=20, count=4)
        assert voices.clustered_vectors(vectors, np.eye(K)[emotion], np.random.default_rng(0)) != []

    def test_the_seed_settles_them(self):
        _, emotion, vectors = vectors_of(apart=0.3)
        one, again = (
            voices.clustered_vectors(vectors, np.eye(K)[emotion], np.random.default_rng(0)) for _ in range(2)
        )
        np.testing.assert_array_equal(one, again)


def spoken(mix, clips=600, right=0.6, seed=0):
    """Classes and voices (U,), voice v saying class k in a share of mix[v][k], and two views that err each alone."""
    rng = np.random.default_rng(seed)
    voice = np.arange(clips) % len(mix)
    emotion = np.array([rng.choice(K, p=mix[v]) for v in voice])
    views = []
    for _ in range(2):
        said = np.where(rng.random(clips) < right, emotion, rng.integers(K, size=clips))
        views.append(0.7 * np.eye(K)[said] + 0.1)
    return emotion, voice, *views


SAME, ONE = np.full((3, K), 1 / K), np.eye(K)
"""Voices that say all classes equally often, and voices that say one class each."""


def slow_share(one, other, groups):
    """Covariance between the groups' means, less what chance puts there, of the whole."""
    one, other = one - one.mean(axis=0), other - other.mean(axis=0)
    clips, names = len(one), sorted(set(groups.tolist()))
    total = sum(one[u] @ other[u] for u in range(clips))
    between = 0.0
    for name in names:
        own = [u for u in range(clips) if groups[u] == name]
        between += len(own) * (sum(one[u] for u in own) / len(own)) @ (sum(other[u] for u in own) / len(own))
    within = (total - between) / (clips - len(names))
    share = (between - (len(names) - 1) * within) / (total + within)
    norm = sum(row @ row for row in one) * sum(row @ row for row in other)
    return share, total / np.sqrt(norm)


class TestShareBetween:
    def test_parity(self):
        _, voice, one, other = spoken(0.5 * SAME + 0.5 * ONE, clips=60)
        np.testing.assert_allclose(voices.share_between(one, other, voice), slow_share(one, other, voice))
        # Voices may have any names.
        named = voices.share_between(one, other, 10 - 3 * voice)
        np.testing.assert_allclose(named, slow_share(one, other, voice))

    def test_none_where_all_voices_say_all_classes(self):
        found = [voices.share_between(*spoken(SAME, seed=seed)[2:], spoken(SAME)[1])[0] for seed in range(20)]
        assert abs(np.mean(found)) < 0.02 and max(np.abs(found)) < 0.1

    def test_all_where_every_voice_says_one_class(self):
        """Although the views err about single clips."""
        _, voice, one, other = spoken(ONE)
        assert voices.share_between(one, other, voice)[0] > 0.9

    def test_errors_about_whole_voices_are_no_agreement(self):
        """One view hears a class in every voice; the other, which errs alone, does not agree."""
        _, voice, one, other = spoken(SAME)
        one = (one + 2 * np.eye(K)[voice]) / 3
        assert voices.share_between(one, one, voice)[0] > 0.7
        assert voices.share_between(one, other, voice)[0] < 0.1

    def test_views_that_never_vary(self):
        constant, voice = np.full((30, K), 1 / K), np.arange(30) % 3
        assert voices.share_between(constant, constant, voice) == (0, 0)

    def test_one_voice_and_a_voice_a_clip(self):
        _, _, one, other = spoken(ONE, clips=60)
        assert voices.share_between(one, other, np.zeros(60))[0] == pytest.approx(0, abs=0.05)
        assert voices.share_between(one, other, np.arange(60))[0] == pytest.approx(1)


class Said:
    """In place of a linear model: predicts the same whatever it is asked, and notes with which groups."""

    def __init__(self, scores):
        self.scores, self.asked = scores, []

    def predict(self, labels, groups=None):
        self.asked.append(groups)
        return self.scores


class TestClassMixToKeep:
    @pytest.mark.parametrize(("mix", "low", "high"), [(SAME, 0, 0.5), (ONE, 0.9, 1)])
    def test_what_both_teachers_hear_is_believed(self, mix, low, high):
        emotion, voice, lalm, source = spoken(mix)
        labels, unasked = 0.9 * np.eye(K)[emotion] + 0.1 / K, Said(None)
        assert low <= voices.class_mix_to_keep(labels, voice, lalm, source, unasked) <= high
        assert not unasked.asked

    def test_the_slope_is_shared_by_what_the_labels_have(self):
        mix = 0.6 * SAME + 0.4 * ONE
        emotion, voice, lalm, source = spoken(mix, right=0.8)
        # Labels that are wrong about voices: they differ more than the teachers agree.
        labels = (np.eye(K)[emotion] + np.eye(K)[voice]) / 2
        share, correlation = slow_share(lalm, source, voice)
        differ, _ = slow_share(labels, labels, voice)
        assert correlation > 0.2 and 0 < share < differ
        found = voices.class_mix_to_keep(labels, voice, lalm, source, Said(None))
        assert found == pytest.approx(share / differ)

    @pytest.mark.parametrize("source", ["uncorrelated", None])
    @pytest.mark.parametrize(("mix", "kept"), [(SAME, 0), (ONE, 1)])
    def test_the_linear_model_stands_in_for_a_source_that_knows_nothing(self, mix, kept, source):
        emotion, voice, lalm, heard = spoken(mix)
        other = None if source is None else np.roll(spoken(SAME, seed=1)[3], 1, axis=0)
        model = Said(heard)
        labels = np.eye(K)[emotion]
        assert voices.class_mix_to_keep(labels, voice, lalm, other, model) == kept
        assert len(model.asked) == 1 and model.asked[0] is voice


def slow_evened(features, groups, labels, kept):
    """Standardised, less every voice's mean but for what its classes account for, over its deviation."""
    features = np.array([(column - column.mean()) / column.std() for column in features.T]).T
    clips, classes = labels.shape
    own = {g: [u for u in range(clips) if groups[u] == g] for g in set(groups.tolist())}
    offset = {g: sum(features[u] for u in mine) / len(mine) for g, mine in own.items()}
    mix = {g: sum(labels[u] for u in mine) / len(mine) for g, mine in own.items()}
    within = [features[u] - offset[groups[u]] for u in range(clips)]
    told = [labels[u] - mix[groups[u]] for u in range(clips)]
    scatter = sum(np.outer(row, row) for row in told) + 0.5 * np.eye(classes)
    means = np.linalg.solve(scatter, sum(np.outer(a, b) for a, b in zip(told, within, strict=True)))
    pooled = sum(row**2 for row in within) / clips
    done = np.zeros(features.shape)
    for g, mine in own.items():
        variance = (sum(within[u] ** 2 for u in mine) + 10 * pooled) / (len(mine) + 10)
        stays = kept * (mix[g] - labels.mean(axis=0)) @ means
        for u in mine:
            done[u] = (within[u] + stays) / np.sqrt(variance)
    return done


class TestEvened:
    @pytest.mark.parametrize("kept", [0, 0.4, 1])
    def test_parity(self, kept):
        rng = np.random.default_rng(9)
        features, groups = rng.normal(3, 2, size=(U, D)), rng.integers(3, size=U)
        labels = rng.dirichlet(np.ones(K), U)
        done = voices.evened(features, groups, labels, kept)
        np.testing.assert_allclose(done, slow_evened(features, groups, labels, kept), atol=1e-5)
        layers = voices.evened(features.reshape(U, 2, D // 2), groups + 5, labels, kept)
        np.testing.assert_array_equal(layers.reshape(U, D), done)
        assert done.dtype == np.float32

    def test_nothing_kept_is_standardising_within_voices(self):
        """But for the weight of 10 clips of the pooled variance: with many clips a voice, it is hardly felt."""
        rng = np.random.default_rng(1)
        groups = np.arange(3000) % 3
        features = (1 + groups[:, None]) * rng.normal(size=(3000, D)) + 5 * groups[:, None]
        done = voices.evened(features, groups, rng.dirichlet(np.ones(K), 3000), 0)
        for g in range(3):
            np.testing.assert_allclose(done[groups == g].mean(axis=0), 0, atol=1e-5)
            np.testing.assert_allclose(done[groups == g].std(axis=0), 1, atol=0.03)

    def test_emotion_of_voices_with_one_emotion_is_kept(self):
        """Voices 0 to 2 say all classes, from which these are known; voice 3 says the first class alone."""
        rng = np.random.default_rng(2)
        groups = np.repeat(np.arange(4), 100)
        emotion = np.where(groups < 3, np.arange(400) % K, 0)
        classes, offsets = 2 * rng.normal(size=(K, D)), 3 * rng.normal(size=(4, D))
        clean = classes[emotion] + 0.3 * rng.normal(size=(400, D))
        features, labels = clean + offsets[groups], np.eye(K)[emotion]

        def likeness(kept):
            """Of the last voice to every class as the others say it: cosine, with how far it is from the middle."""
            done = voices.evened(features, groups, labels, kept)
            centres = np.array([done[(groups < 3) & (emotion == k)].mean(axis=0) for k in range(K)])
            middle, last = centres.mean(axis=0), done[groups == 3].mean(axis=0)
            centres, last = centres - middle, last - middle
            return centres @ last / np.linalg.norm(centres, axis=1) / np.linalg.norm(last), np.linalg.norm(
                last
            )

        (kept, far), (_, near) = likeness(1), likeness(0)
        assert kept[0] > 0.95 > 0 > max(kept[1:])
        assert far > 1 and near < 1e-4

    def test_constant_features_and_voices_of_one_clip(self):
        labels = np.full((5, K), 1 / K)
        for features in (np.ones((5, 2)), np.random.default_rng(0).normal(size=(5, 2))):
            for groups in (np.zeros(5, dtype=int), np.arange(5)):
                assert np.isfinite(voices.evened(features, groups, labels, 1)).all()


def test_labels_have_no_way_in():
    tree = ast.parse(Path(voices.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert {name for name in ours if name.startswith("mifuse_cli")} == {"mifuse_cli.fusion"}
