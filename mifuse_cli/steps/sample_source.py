"""``mifuse sample-source``: MC-dropout predictions of the source classifier."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mifuse_cli import fusion, lineage, provenance
from mifuse_cli.artifacts import Parent, Source, Training
from mifuse_cli.config import (
    EncodingConfig,
    Progress,
    StepResult,
    at_least,
    normalize_problems,
    option,
    shard_option,
    shard_problems,
    target_problems,
)
from mifuse_cli.manifest import Clip, clips_of
from mifuse_cli.model import processes
from mifuse_cli.model.hub import find_speaker_encoder
from mifuse_cli.model.shape import Shape, read_shape

if TYPE_CHECKING:
    from mifuse_cli.model.checkpoint import Checkpoint

_OF_THE_MODEL = ("method", "fusion", "refresh", "checkpoint")
"""Parameters of a sampled student that are copied to the artifact of its samples."""


@dataclass(frozen=True, kw_only=True)
class SampleSourceConfig(EncodingConfig):
    """Draw MC-dropout predictions of the source classifier for unlabelled clips."""

    model: Path = option(help="Checkpoint directory of the source classifier.")
    manifest: Path | None = option(None, "CSV of target clips; labels in it are not read.")
    wav_dir: Path | None = option(None, "Directory of target clips, instead of --manifest.")
    shard: str = shard_option()
    out: Path = option(help="Artifact to write.", endings=(".h5", ".hdf5"))
    n_samples: int = option(10, "Dropout passes.")
    normalize: str = option(
        "",
        "Statistics that standardise the head's input: source, target or speaker; default: the checkpoint's.",
    )
    calibrate: bool = option(
        False, "Divide logits by the temperature fitted on the source's validation clips."
    )
    no_hidden_states: bool = option(
        False,
        "Leave out the encoder's hidden states (4 bytes for every clip, layer and feature), which fuse needs for "
        "--weighting cross-fit alone.",
    )
    speaker_encoder: str = option(
        "",
        "Keep a vector of the voice in every clip, from this speaker encoder: local directory or hub name of a "
        "transformers model *ForXVector, or directory of a GE2E d-vector model.",
        settles=False,  # compared by content, as a parent
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from target_problems(self.manifest, self.wav_dir)
        yield from at_least("--n-samples", self.n_samples, 2)
        yield from normalize_problems(self.normalize)
        yield from shard_problems(self.shard)
        if self.shard and self.no_hidden_states:
            yield "--shard: merge draws the predictions from the hidden states that --no-hidden-states leaves out"
        if self.speaker_encoder and self.no_hidden_states:
            yield (
                "--speaker-encoder: its vectors are for fuse --weighting cross-fit, which needs the hidden states that "
                "--no-hidden-states leaves out"
            )
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class SampleSourceResult(StepResult):
    """What was sampled.

    Attributes:
        out: the artifact.
        clips, samples: U and M.
        mean_mi: mean mutual information over clips, in nats.
        marginal: mean predicted probability by class.
    """

    clips: int
    samples: int
    mean_mi: float
    marginal: dict[str, float]


@processes.divided
def sample_source(config: SampleSourceConfig, *, progress: Progress | None = None) -> SampleSourceResult:
    """Draw M predictions with the head's dropout active, and one without, for every clip.

    Raises:
        InputError: model, manifest, audio or speaker encoder that cannot be used; a model without dropout; an
            output that exists.
        ArtifactError: the model is no mifuse checkpoint.
        DependencyError: the speaker encoder is not on the hub, or the hub cannot be reached.
    """
    lineage.refuse_overwrite(config, config.out, Source)
    clips, where = clips_of(config.manifest, config.wav_dir, shard=config.shard)
    shape = read_shape(config.model)
    parents = [
        lineage.parent("model", config.model, config.out),
        lineage.clips_parent(clips, where, config.out),
        lineage.speakers_parent(clips, where, config.out),
    ]
    speaker_encoder = find_speaker_encoder(config.speaker_encoder) if config.speaker_encoder else None
    if speaker_encoder is not None:
        parents.append(lineage.parent("speaker-encoder", speaker_encoder, config.out))
    if lineage.is_current(config, config.out, parents):
        return _result(config.out, Source.load(config.out), up_to_date=True)

    from mifuse_cli.methods.structure import states_in_use
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.prepare import hidden_states
    from mifuse_cli.model.speaker_encoder import speaker_vectors

    loaded = checkpoint.load(config.model)
    how: dict[str, Any] = {
        "device": find_device(config.device),
        "encoding": config.encoding,
        "progress": progress,
    }
    states = states_in_use(shape, cross_fit=not config.no_hidden_states)

    def encoded(some: Sequence[Clip]) -> tuple[np.ndarray, np.ndarray | None]:
        voice = None if speaker_encoder is None else speaker_vectors(some, speaker_encoder, **how)
        return hidden_states(loaded, some, states=states, **how), voice

    processes.in_shares(encoded, clips)
    return processes.by_first(lambda: _sample(config, clips, shape, parents, loaded, *encoded(clips)))


def _sample(
    config: SampleSourceConfig,
    clips: Sequence[Clip],
    shape: Shape,
    parents: Sequence[Parent],
    loaded: Checkpoint,
    hidden: np.ndarray,
    voice: np.ndarray | None,
) -> SampleSourceResult:
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.sampling import sampled

    normalize = config.normalize or shape.normalize
    speakers = [clip.speaker for clip in clips]
    probs, point = sampled(
        loaded,
        hidden,
        speakers,
        normalize=normalize,
        calibrate=config.calibrate,
        passes=config.n_samples,
        seed=provenance.named_seed(config.seed, "sample-source"),
        device=find_device(config.device),
    )
    ids, heard = np.array([clip.utt_id for clip in clips]), lineage.content(clips)
    trained = Training.load(config.model / "train.h5")
    artifact = Source(
        header=lineage.header(
            config,
            shape.classes,
            parents,
            normalize=normalize,
            calibrate=config.calibrate,
            seen_in_training=float(lineage.heard_of(trained, ids, heard).mean()),
            **{name: value for name, value in trained.header.parameters.items() if name in _OF_THE_MODEL},
        ),
        utt_id=ids,
        probs=probs,
        point=point,
        hidden=None if config.no_hidden_states else hidden,
        speaker=np.array([speaker or "" for speaker in speakers]),
        voice=voice,
        gold=trained.gold,
        audio_sha256=heard if config.shard else None,
    )
    artifact.save(config.out, replace=config.replaces)
    return _result(config.out, artifact)


def _result(out: Path, artifact: Source, *, up_to_date: bool = False) -> SampleSourceResult:
    _, mi = fusion.mean_and_mi(artifact.probs.astype(float))
    heard = artifact.header.parameters.get("seen_in_training", 0.0)
    notes = (f"{heard:.1%} of the clips were heard in training of the model: unlike in use",) if heard else ()
    marginal = artifact.point.mean(axis=0)
    return SampleSourceResult(
        out=out,
        clips=artifact.probs.shape[0],
        samples=artifact.probs.shape[1],
        mean_mi=float(mi.mean()),
        marginal=dict(zip(artifact.header.classes, map(float, marginal), strict=True)),
        up_to_date=up_to_date,
        notes=notes,
    )
