"""The default fusion: labels by a mixture model of answers, source classifier and hidden states, voices evened out.

U clips, K classes, D features. `mixture.settled` finds labels. With them, voices are found: the known speakers, or
clusters of the vectors of a speaker encoder or of the hidden states. Hidden states and the input of the source
classifier are standardised within voices, as far as that does not erase emotion (`voices.class_mix_to_keep`), and the
labels are found anew; twice, since better labels find better voices. If no stable clusters are found, the hidden states
are used as they are. No argument of this module but ``gold`` carries a true label, and it imports
no torch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass

import numpy as np

from mifuse_cli.fusion import ridge
from mifuse_cli.fusion.mixture import ROUNDS, Mixture, TwoTeachers, alone, settled
from mifuse_cli.fusion.voices import class_mix_to_keep, clustered_vectors, evened, pseudo_speakers

FIRST_ROUNDS = 4
"""Rounds for the labels with which voices are found: they only have to remove the class means."""
_TIMES = 2


@dataclass(frozen=True)
class Structure:
    """What `cross_fit` uses of U clips besides the answers of the LALMs.

    Attributes:
        source: (U, K) mean prediction of the source classifier over dropout passes, sampled in the same
            way as in `classify`.
        hidden: (U, S, D) hidden states of S layers, averaged over time, as the encoder gives them; pseudo-speakers are
            found in the first of the layers.
        head_input: (U, L, D) hidden states that the source classifier sees, as the encoder gives them.
        classify: function from head inputs (U, L, D) standardised within voices and the number of the clustering (from
            0) to the source classifier's mean prediction (U, K); None if the classifier is not at hand, which disables
            voices.
        speakers: (U,) known speakers, which are taken as the voices; None: they are not known or not to be used.
        voice: (U, V) vector of length 1 of the voice in every clip, by a speaker encoder; None if there is
            none.
    """

    source: np.ndarray
    hidden: np.ndarray
    head_input: np.ndarray
    classify: Callable[[np.ndarray, int], np.ndarray] | None
    speakers: np.ndarray | None = None
    voice: np.ndarray | None = None


@dataclass(frozen=True)
class CrossFit:
    """Labels and what they are made of.

    Attributes:
        mixture: labels (U, K), what contributed to them, and labels from other starts.
        information: (2,) mutual information in nats between labels and each of the two, see `TwoTeachers.information`.
        correlation: of the two teachers over the clips, see `TwoTeachers.correlation`.
        voices: number of voices in every clustering that was used; empty if none were found.
        kept: how much of the difference in classes between voices was believed, for every clustering, 0 to 1.
    """

    mixture: Mixture
    information: np.ndarray
    correlation: float
    voices: tuple[int, ...] = ()
    kept: tuple[float, ...] = ()

    @property
    def labels(self) -> np.ndarray:
        """(U, K)."""
        return self.mixture.labels

    @property
    def views(self) -> np.ndarray:
        """(U, 2, K) likelihood of every class by the LALMs' answers, and by source classifier and hidden states; the
        labels are proportional to their product and the prior."""
        return np.stack([self.mixture.answers, self.mixture.acoustics], axis=1)


def cross_fit(
    lalm: np.ndarray,
    structure: Structure,
    *,
    without: Collection[str] = (),
    gold: np.ndarray | None = None,
    rng: np.random.Generator,
) -> CrossFit:
    """Labels of U clips.

    Args:
        lalm: (U, K) mean answers of the audio-language model, NaN rows for clips without an answer, which
            are labelled by the source classifier and the structure alone.
        structure: predictions of the source classifier and hidden states of the clips.
        without: parts to leave out, of `settings.PARTS`.
        gold: (U,) true class of the few clips where it is known, -1 elsewhere; None: of no clip.
        rng: random generator for drawing clips and initial cluster centres.
    """
    answers = None if "lalm" in without else lalm
    uniform = "prior" in without

    def teachers_with(sources: list[np.ndarray]) -> TwoTeachers:
        return TwoTeachers.of(answers, [] if "source" in without else sources)

    teachers = teachers_with([structure.source])
    if "structure" in without and answers is None:
        return _result(teachers, alone("source", structure.source, gold))
    if "structure" in without and "source" in without:
        return _result(teachers, alone("lalm", lalm, gold))
    if "structure" in without:
        return _result(teachers, settled(teachers, None, gold=gold, uniform=uniform))
    clips, count, width = structure.hidden.shape
    plain = (_standardised(structure.hidden[:, layer]) for layer in range(count))
    of_all = ridge.left_out(clips, plain, count * width)
    looks_for_voices = structure.classify is not None and "voices" not in without
    rounds = FIRST_ROUNDS if looks_for_voices else ROUNDS
    found = settled(teachers, of_all, gold=gold, uniform=uniform, rounds=rounds)
    voices: tuple[int, ...] = ()
    kept: tuple[float, ...] = ()
    own = teachers
    for time in range(_TIMES if looks_for_voices else 0):
        labels = found.labels
        groupings = _voices(structure, labels, rng)
        if not ridge.fits(clips, len(groupings) * count * width):
            groupings = groupings[:1]
        if not groupings and time:
            break
        if not groupings:
            found = settled(own, of_all, gold=gold, uniform=uniform)
            continue
        voices = tuple(len(np.unique(groups)) for groups in groupings)
        kept = tuple(_kept(labels, groups, own, of_all) for groups in groupings)
        evening = list(zip(groupings, kept, strict=True))
        assert structure.classify is not None
        heads = (evened(structure.head_input, groups, labels, keep) for groups, keep in evening)
        teachers = teachers_with([structure.classify(head, number) for number, head in enumerate(heads)])
        layers = (
            evened(structure.hidden[:, layer], groups, labels, keep)
            for groups, keep in evening
            for layer in range(count)
        )
        features = len(groupings) * count * width
        found = settled(teachers, ridge.left_out(clips, layers, features), gold=gold, uniform=uniform)
    return _result(teachers, found, voices, kept)


def _result(
    teachers: TwoTeachers, found: Mixture, voices: tuple[int, ...] = (), kept: tuple[float, ...] = ()
) -> CrossFit:
    return CrossFit(found, teachers.information(found.labels), teachers.correlation, voices, kept)


def _voices(structure: Structure, labels: np.ndarray, rng: np.random.Generator) -> list[np.ndarray]:
    """Clusterings (U,) of the clips by voice; an empty list if there are none."""
    if structure.speakers is not None:
        return [structure.speakers]
    if structure.voice is not None:
        return clustered_vectors(structure.voice, labels, rng)
    return pseudo_speakers(structure.hidden[:, 0], labels, rng)


def _kept(labels: np.ndarray, groups: np.ndarray, teachers: TwoTeachers, model: ridge.LeftOut) -> float:
    """How much of the class mix of voices to keep; all of it if the answers, which tell, are left out."""
    if teachers.lalm is None:
        return 1.0
    return class_mix_to_keep(labels, groups, teachers.answers, teachers.source, model)


def _standardised(layer: np.ndarray) -> np.ndarray:
    """Features (U, D) with mean 0 and deviation 1 over all clips."""
    return (layer - layer.mean(axis=0)) / np.maximum(layer.std(axis=0), 1e-5)
