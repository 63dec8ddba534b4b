"""Ways to split clips into parts: by whole speakers, the few whose class is given, or for several machines."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GOLD_POOL = 100


def gold_pool(clips: int, rng: np.random.Generator) -> np.ndarray:
    """Positions (P,) of the clips whose true class may be given in a comparison of few-gold protocols, in the order in
    which they are given: `GOLD_POOL` clips drawn at random, but at most half of all.
    """
    return rng.permutation(clips)[: min(GOLD_POOL, clips // 2)]


def speaker_folds(speakers: Sequence[str | None], folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold (U,) of every clip: whole speakers, with about as many clips in each fold as possible.

    Args:
        speakers: of every clip; a clip without one counts as its own speaker.
        folds: number of folds.
        rng: breaks ties between speakers with the same number of clips.
    """
    names = [speaker or f"\0{number:012}" for number, speaker in enumerate(speakers)]
    each, of, counts = np.unique(names, return_inverse=True, return_counts=True)
    fold, sizes = np.zeros(len(each), dtype=int), np.zeros(folds)
    # Speakers with most clips first, each into the smallest fold so far.
    for speaker in sorted(rng.permutation(len(each)), key=lambda one: -counts[one]):
        fold[speaker] = sizes.argmin()
        sizes[fold[speaker]] += counts[speaker]
    return fold[of]


def held_out_speakers(
    speakers: Sequence[str | None], share: float, rng: np.random.Generator
) -> tuple[np.ndarray, tuple[str, ...]]:
    """Which clips to hold out for validation: whole speakers, until ``share`` of the clips is reached.

    At least one known speaker and all clips of unknown speakers stay in training. With fewer than two known
    speakers, clips are drawn at random. The notes report both.

    Args:
        speakers: of every clip, None where unknown; two clips at least.
        share: of the clips, above 0.
        rng: draws the order of the speakers.

    Returns:
        held_out (U,) bool, and notes.
    """
    held_out = np.zeros(len(speakers), dtype=bool)
    named = np.array(speakers, dtype=object)
    names = sorted({name for name in speakers if name is not None})
    if len(names) < 2:
        count = min(max(1, round(share * len(speakers))), len(speakers) - 1)
        held_out[rng.permutation(len(speakers))[:count]] = True
        return held_out, ("fewer than two speakers are known: validation clips were drawn at random",)
    for name in rng.permutation(names)[:-1]:
        held_out |= named == name
        if held_out.mean() >= share:
            break
    unknown = sum(name is None for name in speakers)
    if not unknown:
        return held_out, ()
    return held_out, (
        f"{unknown} of {len(speakers)} clips have no known speaker: they stay in training when speakers are held "
        "out for validation, and some may be of a held-out speaker",
    )


def shard(fingerprints: np.ndarray, text: str) -> np.ndarray:
    """Which clips (U,) bool are in the part ``I/N`` of N; clips of the same fingerprint (U,) are in the same part.

    No clip is in two parts, and parts differ in the number of their fingerprints by one at most.
    """
    number, of = map(int, text.split("/"))
    _, rank = np.unique(fingerprints, return_inverse=True)
    return rank % of == number - 1
