"""One run of a comparison: every system for one transfer with one seed, from the same model and answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mifuse_cli import fusion, provenance
from mifuse_cli.artifacts import Compared, Header, Lalm
from mifuse_cli.manifest import Clip
from mifuse_cli.methods import loop, registry
from mifuse_cli.model import checkpoint
from mifuse_cli.model.classifier import Classifier, Features, predict, sample
from mifuse_cli.model.device import find_device
from mifuse_cli.model.prepare import all_layers, effective_mode
from mifuse_cli.model.standard import fit_standard, statistics
from mifuse_cli.steps.compare.systems import ORACLE, System


@dataclass(frozen=True)
class Task:
    """What a run needs; it can be sent to another process.

    Attributes:
        out: artifact to write.
        header: of the artifact; its parameters tell what was made how.
        systems: those to run.
        kept: predictions (U, K) of other systems, by name, that go into the artifact as they are.
        model, lalm: checkpoint of the source model and artifact of the answers.
        clips: U clips of the target, sorted by id.
        truth: (U,) class indices for the oracle, None where it does not run.
        normalize: how the head's input is standardised.
        answers, passes: of the LALM and of dropout, a clip.
        folds: 0 adapts to all clips; else speakers fall into that many, each predicted by students of the others.
        options: of the loop and, by name, of the methods.
        device: as of every step.
        cache: directory of the feature cache, None for the default.
    """

    out: Path
    header: Header
    systems: tuple[System, ...]
    kept: Mapping[str, np.ndarray]
    model: Path
    lalm: Path
    clips: tuple[Clip, ...]
    truth: np.ndarray | None
    normalize: str
    answers: int
    passes: int
    folds: int
    options: loop.LoopOptions
    diversity_weight: float
    refresh: int
    device: str
    cache: Path | None


def run(task: Task) -> int:
    """Run the systems, write the artifact, and tell how many were run."""
    world = _World(task)
    found = {system.name: world.predicted(system) for system in task.systems}
    everything = {**task.kept, **found}
    names = sorted(everything)
    Compared(
        header=task.header,
        utt_id=np.array([clip.utt_id for clip in task.clips]),
        systems=np.array(names),
        probs=np.stack([everything[name] for name in names]).astype(np.float32),
    ).save(task.out)
    return len(found)


def fold_of_speakers(clips: tuple[Clip, ...], folds: int, rng: np.random.Generator) -> np.ndarray:
    """Fold (U,) of every clip: whole speakers, as many clips in each as goes; clips where none is known."""
    names = [clip.speaker or f"\0{clip.utt_id}" for clip in clips]
    speakers, of, counts = np.unique(names, return_inverse=True, return_counts=True)
    fold, sizes = np.zeros(len(speakers), dtype=int), np.zeros(folds)
    # The largest speakers first, each to the fold that has least so far.
    for speaker in sorted(rng.permutation(len(speakers)), key=lambda one: -counts[one]):
        fold[speaker] = sizes.argmin()
        sizes[fold[speaker]] += counts[speaker]
    return fold[of]


class _World:
    """The model, the clips' features and the answers of one run."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.device = find_device(task.device)
        self.source = checkpoint.load(task.model)
        self.features = all_layers(
            self.source, task.clips, device=self.device, cache=task.cache, progress=None
        )
        self.lalm = Lalm.load(task.lalm).probs.astype(float)
        self.speakers = [clip.speaker for clip in task.clips]
        self.labels: dict[tuple, torch.Tensor] = {}
        self.parts = [(np.arange(len(task.clips)),) * 2]
        if task.folds:
            rng = provenance.rng(task.options.seed, "speaker folds")
            fold = fold_of_speakers(task.clips, task.folds, rng)
            self.parts = [(np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in range(task.folds)]

    def predicted(self, system: System) -> np.ndarray:
        """Distributions (U, K), each from a part that the system did not adapt to if there are folds."""
        probs = np.full((len(self.task.clips), len(self.source.shape.classes)), np.nan)
        for adapted, scored in self.parts:
            probs[scored] = self._part(system, adapted, scored)
        return probs

    def _part(self, system: System, adapted: np.ndarray, scored: np.ndarray) -> np.ndarray:
        standardised = self._standardised(adapted)
        theirs, ours = self._inputs(standardised, adapted), self._inputs(standardised, scored)
        model = Classifier(None, copy.deepcopy(self.source.head), self.source.shape.layers).to(self.device)
        if system.shows == "source":
            return predict(model, ours)
        if system.shows == "lalm":
            return fusion.mean_and_mi(self.answers(system)[scored])[0]
        if system.shows == "fused":
            return self._teachers(system, model, ours, scored).probs
        options = replace(self.task.options, **_known(system.training, loop.LoopOptions))
        method = self._method(system, options, model, theirs, adapted)
        if system.recipe == "best" and system.method == "mifuse":
            # Labels are made once for all students that learn from the same.
            made = (system.fusion, system.answers, system.without, int(scored[0]))
            if made not in self.labels:
                method.begin_epoch(1, model, theirs)
                self.labels[made] = method.targets["labels"]
            method.targets["labels"] = self.labels[made]
            if system.shows == "labels":
                return self.labels[made].numpy()
        loop.run(loop.start(model, method, options), theirs, method, options)
        return predict(model, ours)

    def answers(self, system: System) -> np.ndarray:
        """The LALM's (U, N, K) that the system hears."""
        heard = self.lalm[:, : system.answers or self.task.answers]
        deaf = system.recipe != "best" and "lalm" in system.without
        return np.full_like(heard, np.nan) if deaf else heard

    def _standardised(self, adapted: np.ndarray) -> torch.Tensor:
        """The head's input (U, L, D); by the statistics of the clips adapted to where those of the target count."""
        features = torch.from_numpy(self.features[:, list(self.source.shape.layers)]).to(self.device)
        mode = effective_mode(self.task.normalize, self.source.shape.statistics_of)
        of = np.arange(len(features)) if mode == "speaker" else adapted
        standard = fit_standard(
            mode, features[of], stored=self.source.statistics, speakers=[self.speakers[i] for i in of]
        )
        if mode != "speaker":
            standard = replace(standard, group=torch.zeros(len(features), dtype=torch.long))
        return standard(features, torch.arange(len(features)))

    def _inputs(self, standardised: torch.Tensor, index: np.ndarray) -> Features:
        values = standardised[torch.from_numpy(index)]
        return Features(values, statistics(values))

    def _teachers(
        self, system: System, model: Classifier, inputs: Features, index: np.ndarray
    ) -> registry.Teachers:
        seed = provenance.named_seed(self.task.options.seed, "sample-source")
        drawn = sample(model, inputs, self.task.passes, seed).astype(float)
        found = fusion.fuse_samples([self.answers(system)[index], drawn], system.fusion)
        how = system.fusion
        # Rounded as in the artifact of `mifuse fuse`, so that a student comes out the same as by the command line.
        return registry.Teachers(
            probs=found.probs.astype(np.float32),
            mean=found.mean.astype(np.float32),
            mi=found.mi.astype(np.float32),
            weighting=found.weighting,
            tau=how.tau,
            pool=how.pool,
            sharpen=how.sharpen,
            estimator=how.estimator,
            passes=self.task.passes,
        )

    def _method(
        self,
        system: System,
        options: loop.LoopOptions,
        model: Classifier,
        inputs: Features,
        index: np.ndarray,
    ) -> loop.Method:
        by_speaker = self.task.normalize == "speaker"
        target = registry.Target(
            classes=len(self.source.shape.classes),
            features=lambda: self.features[index],
            head_layers=self.source.shape.layers,
            speakers=[self.speakers[i] or "" for i in index] if by_speaker else None,
            truth=self.task.truth[index] if system.name == ORACLE and self.task.truth is not None else None,
        )
        teachers = None
        if system.method not in registry.WITHOUT_LALM:
            teachers = self._teachers(system, model, inputs, index)
        told = registry.Options(
            epochs=options.epochs,
            refresh=self.task.refresh,
            diversity_weight=self.task.diversity_weight,
            diversity_prior="uniform",
            seed=options.seed,
            without=system.without if system.recipe == "best" else (),
        )
        told = replace(told, **_known(system.training, registry.Options))
        return registry.make(system.method, system.recipe, told, teachers, target)


def _known(changes: Mapping[str, object], kind: Any) -> dict[str, Any]:
    """Those of the changes that the dataclass has a field for."""
    names = {field.name for field in fields(kind)}
    return {name: value for name, value in changes.items() if name in names}
