"""The recipe ``best``: a student of labels that both teachers and the clips' own structure agree on.

Labels q are made once, before the first epoch, by `cross_fit`: the log pool of the audio-language model and the
source classifier, each matched to uniform classes, and a linear student of other clips' labels. Loss:
CE(q, p) + weight * KL(batch marginal || prior), without an EMA teacher.

Where speakers are unknown or their statistics not wanted, a first fusion on features standardised by the target
finds pseudo-speakers; features standardised by these then give both the linear student's kernel and what the
source classifier says. Where no voices stand out, the features stay as they are.

What is ours and was chosen on whisper-tiny with four classes: the linear student sees the hidden states from a
quarter to three quarters of the encoder's depth (1 to 3 of whisper-tiny's 0 to 4), and voices are told apart by
the lowest of these.
"""

from __future__ import annotations

from collections.abc import Collection, Sequence

import numpy as np
import torch
from torch import Tensor

from mifuse_cli import provenance
from mifuse_cli.errors import InputError
from mifuse_cli.methods import cross_fit, ridge, voices
from mifuse_cli.methods.loop import Batch, Method
from mifuse_cli.methods.losses import diversity, soft_cross_entropy
from mifuse_cli.model.classifier import Classifier, Features, Waveforms, sample
from mifuse_cli.model.standard import fit_standard, statistics


def structure_layers(states: int) -> range:
    """Hidden states from a quarter to three quarters of the depth of an encoder that has this many of them.

    The first state is the input of the first block, so the depth is one less. The lowest layer of the range is
    the one that tells voices apart.
    """
    depth = states - 1
    return range(depth // 4, depth - depth // 4 + 1)


PARTS = ("lalm", "source", "matching", "structure", "voices")
"""What an ablation can leave out: either teacher, the matching of teachers to uniform classes, the linear student
of the clips' structure, the pseudo-speakers."""


class Best(Method):
    """Targets and loss of the recipe.

    Args:
        lalm: (U, K) mean answers of the audio-language model, NaN rows for clips without one, of which the
            source classifier and the structure decide.
        features: (U, L, D) mean over time of all L hidden states of the encoder, not standardised.
        head_layers: positions of the hidden states that the classifier's head sees.
        speakers: speaker of every clip if the classifier's input is standardised by speaker, else None for
            pseudo-speakers.
        passes: dropout passes of the source classifier.
        seed: of the passes, the folds and the clusters.
        diversity_weight: of the diversity term.
        diversity_prior: "uniform", or "labels" for the mean of the labels.
        without: of `PARTS`, for ablations.

    Raises:
        InputError: no clip has an answer.
    """

    terms = ("cross_entropy", "diversity")

    def __init__(
        self,
        lalm: np.ndarray,
        features: np.ndarray,
        *,
        head_layers: Sequence[int],
        speakers: Sequence[str] | None,
        passes: int,
        seed: int,
        diversity_weight: float,
        diversity_prior: str = "uniform",
        without: Collection[str] = (),
    ) -> None:
        super().__init__()
        if np.isnan(lalm).any(axis=1).all():
            raise InputError(
                f"--recipe best: none of {len(lalm)} clips has an answer of the LALM. "
                "Query it again, or use a method without one, such as shot."
            )
        self.lalm, self.features = lalm.astype(np.float64), features
        if "lalm" in without:
            self.lalm = np.full_like(self.lalm, np.nan)
        self.without = frozenset(without)
        self.head_layers, self.speakers = list(head_layers), speakers
        self.passes, self.seed = passes, seed
        self.diversity_weight, self.diversity_prior = diversity_weight, diversity_prior

    def begin_epoch(self, epoch: int, model: Classifier, inputs: Features | Waveforms) -> None:
        """Make the labels, unless there are any: before epoch 1 the model is still the source classifier."""
        if "labels" not in self.targets:
            labels = self._labels(model, inputs)
            self.targets["labels"] = torch.from_numpy(labels.astype(np.float32))

    def loss(self, batch: Batch) -> dict[str, Tensor]:
        """Cross-entropy to the labels and the weighted diversity term."""
        logits = batch.logits
        labels = self.targets["labels"].to(logits)
        uniform = torch.full_like(labels[0], 1 / labels.shape[1])
        prior = uniform if self.diversity_prior == "uniform" else labels.mean(dim=0)
        return {
            "cross_entropy": soft_cross_entropy(logits, labels[batch.index]),
            "diversity": self.diversity_weight * diversity(logits, prior),
        }

    def _labels(self, model: Classifier, inputs: Features | Waveforms) -> np.ndarray:
        """Labels (U, K)."""
        layers = structure_layers(self.features.shape[1])
        fold = ridge.folds(len(self.features), provenance.rng(self.seed, "folds"))
        teachers = self._pooled([self._source(model, inputs, "own")])
        if "structure" in self.without:
            return cross_fit.agreed(teachers, "matching" not in self.without)
        student = ridge.cross_fitted((self._standardised(layer) for layer in layers), fold)
        if self.speakers is not None or "voices" in self.without:
            return cross_fit.fuse(teachers, student)
        first = cross_fit.fuse(teachers, student, cross_fit.FIRST_ROUNDS)
        lowest, rng = self.features[:, layers[0]], provenance.rng(self.seed, "pseudo-speakers")
        groupings = voices.pseudo_speakers(lowest, first, rng)
        if not groupings:
            return cross_fit.fuse(teachers, student)
        clips, width = len(fold), len(layers) * self.features.shape[2]
        if not ridge.fits(clips, len(groupings) * width):
            groupings = groupings[:1]
        teachers = self._pooled(
            [self._source(model, self._by(groups, model), number) for number, groups in enumerate(groupings)]
        )
        evened = (
            voices.standardised(self.features[:, layer], groups) for groups in groupings for layer in layers
        )
        return cross_fit.fuse(teachers, ridge.cross_fitted(evened, fold))

    def _pooled(self, sources: list[np.ndarray]) -> np.ndarray:
        """What the teachers say together (U, K), without those left out."""
        return cross_fit.pooled(
            self.lalm, [] if "source" in self.without else sources, matched="matching" not in self.without
        )

    def _standardised(self, layer: int) -> np.ndarray:
        """Features (U, D) of a layer, standardised by speaker, or by all clips where speakers are None."""
        features = torch.from_numpy(self.features[:, [layer]])
        mode = "target" if self.speakers is None else "speaker"
        standard = fit_standard(mode, features, stored=None, speakers=self.speakers or ())
        return standard(features, torch.arange(len(features)))[:, 0].numpy()

    def _by(self, groups: np.ndarray, model: Classifier) -> Features:
        """The head's input standardised by groups (U,) of clips."""
        values = voices.standardised(self.features[:, self.head_layers], groups)
        device = model.head.out.weight.device
        return Features(torch.from_numpy(values).to(device), statistics(torch.from_numpy(values)))

    def _source(self, model: Classifier, inputs: Features | Waveforms, use: str | int) -> np.ndarray:
        """Mean prediction (U, K) of the source classifier over its dropout passes."""
        seed = provenance.named_seed(self.seed, "source classifier", use)
        return sample(model, inputs, self.passes, seed).astype(np.float64).mean(axis=1)
