"""One run of a comparison: every system for one transfer with one seed, from the same model and answers."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mifuse_cli import fusion, provenance, splits
from mifuse_cli.artifacts import Compared, Header, Lalm
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.manifest import Clip
from mifuse_cli.methods.adaptation import WITHOUT_LALM, Options, adapt, has_linear_part, predict_clips
from mifuse_cli.methods.structure import states_in_use, structure_of
from mifuse_cli.methods.student import centred, with_linear_part
from mifuse_cli.methods.teachers import Teachers
from mifuse_cli.model import checkpoint
from mifuse_cli.model.classifier import Classifier, Features, predict, sample
from mifuse_cli.model.device import find_device
from mifuse_cli.model.prepare import effective_mode, hidden_states
from mifuse_cli.model.speaker_encoder import speaker_vectors
from mifuse_cli.model.standard import fit_standard, statistics
from mifuse_cli.steps.compare.systems import ORACLE, System


@dataclass(frozen=True)
class Task:
    """Everything a run needs; picklable, so that it can be sent to another process.

    Attributes:
        out: artifact to write.
        header: of the artifact; its parameters record how every prediction was made.
        systems: those to run.
        kept: predictions (U, K) of other systems, by name, that are copied to the artifact.
        model, lalm: checkpoint of the source model and artifact of the answers.
        speaker_encoder: its directory, None where no system looks at speaker vectors.
        clips: U clips of the target, sorted by id.
        truth: (U,) class indices for the oracle, None where it does not run.
        gold: (U,) class indices of the clips whose class may be given, -1 elsewhere.
        pool: (P,) positions of these clips, in the order in which they are given.
        normalize: how the head's input is standardised.
        answers, passes: number of LALM answers and of dropout passes for every clip.
        folds: 0: transductive; else the number of speaker folds, each predicted by students adapted to
            the others.
        options: of the adaptation; a system may override them.
        device: as of every step.
        encoding: how the clips' features were made, and where they are kept.
    """

    out: Path
    header: Header
    systems: tuple[System, ...]
    kept: Mapping[str, np.ndarray]
    model: Path
    lalm: Path
    speaker_encoder: Path | None
    clips: tuple[Clip, ...]
    truth: np.ndarray | None
    gold: np.ndarray
    pool: np.ndarray
    normalize: str
    answers: int
    passes: int
    folds: int
    options: Options
    device: str
    encoding: Encoding


def run(task: Task) -> int:
    """Run the systems and write the artifact; returns the number of systems run."""
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


class _World:
    """The model, the clips' features and the answers of one run."""

    def __init__(self, task: Task) -> None:
        self.task = task
        self.device = find_device(task.device)
        self.source = checkpoint.load(task.model)
        here = replace(task.encoding, workers=1, engine="local", cache_limit=None)
        states = states_in_use(self.source.shape)
        self.features = hidden_states(
            self.source, task.clips, states=states, device=self.device, encoding=here, progress=None
        )
        self.voice: np.ndarray | None = None
        if task.speaker_encoder is not None:
            self.voice = speaker_vectors(task.clips, task.speaker_encoder, device=self.device, encoding=here)
        self.lalm = Lalm.load(task.lalm).probs.astype(float)
        self.speakers = [clip.speaker for clip in task.clips]
        self.fused: dict[tuple[Any, ...], Teachers] = {}
        self.parts = [(np.arange(len(task.clips)),) * 2]
        if task.folds:
            rng = provenance.rng(task.options.seed, "speaker folds")
            fold = splits.speaker_folds(self.speakers, task.folds, rng)
            self.parts = [(np.flatnonzero(fold != n), np.flatnonzero(fold == n)) for n in range(task.folds)]

    def predicted(self, system: System) -> np.ndarray:
        """Predictions (U, K); with folds, every clip is predicted by a student that was not adapted to its
        fold.
        """
        probs = np.full((len(self.task.clips), len(self.source.shape.classes)), np.nan)
        for adapted, scored in self.parts:
            probs[scored] = self._part(system, adapted, scored)
        return probs

    def _part(self, system: System, adapted: np.ndarray, scored: np.ndarray) -> np.ndarray:
        model, theirs, ours = self._model_and_inputs(self.source, adapted, scored)
        if system.shows == "source":
            return predict(model, ours)
        if system.shows == "lalm":
            return fusion.mean_and_mi(self.answers(system)[scored])[0]
        if system.shows == "labels":
            return self._teachers(system, model, ours, scored).probs
        teachers = None if system.method in WITHOUT_LALM else self._teachers(system, model, theirs, adapted)
        if system.shows == "predictions":
            # Not in the inductive protocol: the clips that are scored are those it was given.
            return predict_clips(model, theirs, system.method, teachers=teachers)
        if has_linear_part(system.method, teachers):
            wide = with_linear_part(self.source, self.features[adapted])
            model, theirs, ours = self._model_and_inputs(wide, adapted, scored)
        options = replace(self.task.options, method=system.method)
        if not system.fusion.is_weighted:
            options = replace(options, refresh=None)
        truth = None
        if system.name == ORACLE and self.task.truth is not None:
            truth = self.task.truth[adapted]
        adapt(
            model,
            theirs,
            replace(options, **system.training),
            teachers=teachers,
            truth=truth,
        )
        return predict(model, centred(model, ours) if system.together else ours)

    def answers(self, system: System) -> np.ndarray:
        """The LALM's answers (U, N, K) that the system uses."""
        return self.lalm[:, : system.answers or self.task.answers]

    def _gold(self, system: System) -> np.ndarray:
        """Class indices (U,) of the clips whose class is given to a system, -1 elsewhere."""
        gold = np.full(len(self.task.clips), -1)
        given = self.task.pool[: system.gold]
        gold[given] = self.task.gold[given]
        return gold

    def _model_and_inputs(
        self, source: checkpoint.Checkpoint, adapted: np.ndarray, scored: np.ndarray
    ) -> tuple[Classifier, Features, Features]:
        """A copy of the classifier, and its input for the clips that it is adapted to and for those that are scored."""
        standardised = self._standardised(source, adapted)
        model = Classifier(None, copy.deepcopy(source.head), source.shape.layers).to(self.device)
        return model, self._inputs(standardised, adapted), self._inputs(standardised, scored)

    def _standardised(self, source: checkpoint.Checkpoint, adapted: np.ndarray) -> torch.Tensor:
        """The head's input (U, L, D); with mode target, by the statistics of the clips that are adapted to."""
        features = torch.from_numpy(self.features[:, list(source.shape.layers)]).to(self.device)
        mode = effective_mode(self.task.normalize, source.shape.statistics_of)
        of = np.arange(len(features)) if mode == "speaker" else adapted
        standard = fit_standard(
            mode, features[of], stored=source.statistics, speakers=[self.speakers[i] for i in of]
        )
        if mode != "speaker":
            standard = replace(standard, group=torch.zeros(len(features), dtype=torch.long))
        return standard(features, torch.arange(len(features)))

    def _inputs(self, standardised: torch.Tensor, index: np.ndarray) -> Features:
        values = standardised[torch.from_numpy(index)]
        return Features(values, statistics(values))

    def _teachers(self, system: System, model: Classifier, inputs: Features, index: np.ndarray) -> Teachers:
        """The fused labels of the clips at ``index``, computed once for all systems with the same fusion."""
        made = (system.fusion, system.answers, system.gold, index.tobytes())
        if made not in self.fused:
            seed = self.task.options.seed
            passes = sample(model, inputs, self.task.passes, provenance.named_seed(seed, "sample-source"))
            structure = None
            if not system.fusion.is_weighted:
                by_speaker = self.task.normalize == "speaker"
                structure = structure_of(
                    self.features[index],
                    model,
                    inputs,
                    states=self.source.shape.states,
                    speakers=[self.speakers[i] or "" for i in index] if by_speaker else None,
                    passes=self.task.passes,
                    seed=seed,
                    voice=None if self.voice is None else self.voice[index],
                )
            found = fusion.fuse_samples(
                [self.answers(system)[index], passes.astype(float)],
                system.fusion,
                structure=structure,
                gold=self._gold(system)[index] if system.gold else None,
                random=partial(provenance.rng, seed),
            )
            self.fused[made] = Teachers(
                found.probs,
                found.mean,
                found.mi,
                found.settings,
                passes=self.task.passes,
                top_counts=found.top_counts,
            )
        return self.fused[made]
