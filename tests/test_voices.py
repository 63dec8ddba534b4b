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


def test_standardised():
    rng = np.random.default_rng(9)
    features, groups = rng.normal(3, 2, size=(U, 2, D)), rng.integers(3, size=U)
    done = voices.standardised(features, groups)
    centred = np.array([features[u] - features[groups == groups[u]].mean(axis=0) for u in range(U)])
    overall = centred.var(axis=0)
    for u in range(U):
        mine = centred[groups == groups[u]]
        variance = (sum(row**2 for row in mine) + 10 * overall) / (len(mine) + 10)
        np.testing.assert_allclose(done[u], centred[u] / np.sqrt(variance))
    assert np.isfinite(voices.standardised(np.ones((5, 2)), np.zeros(5, dtype=int))).all()


def test_labels_have_no_way_in():
    tree = ast.parse(Path(voices.__file__).read_text(encoding="utf-8"))
    ours = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    assert not any(name.startswith("mifuse_cli") for name in ours)
