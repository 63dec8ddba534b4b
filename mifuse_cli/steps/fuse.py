"""``mifuse fuse``: weight the teachers of every clip by their uncertainty and pool them."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mifuse_cli import artifacts, fusion, lineage
from mifuse_cli.artifacts import Fused, Lalm, Parent, Source
from mifuse_cli.config import Progress, StepConfig, above_zero, one_of, option
from mifuse_cli.errors import ArtifactError

_SILENT_MI = 1e-4
"""Mutual information in nats below which a teacher's answers count as identical."""


@dataclass(frozen=True, kw_only=True)
class FuseConfig(StepConfig):
    """Fuse the audio-language model's and the source classifier's distributions into one label a clip."""

    lalm: Path = option(help="Artifact of query-lalm.")
    source: Path = option(help="Artifact of sample-source.")
    out: Path = option(help="Artifact to write.")
    weighting: str = option("mi", f"Weight of a teacher: {', '.join(fusion.WEIGHTINGS)}.")
    tau: float = option(0.1, "Temperature of --weighting mi, w = exp(-I / tau), in nats: small is sharp.")
    pool: str = option("linear", "linear: weighted mean; log: weighted geometric mean.")
    mi_estimator: str = option(
        "scaled", "scaled: I * N/(N-1), which undoes the bias of few samples; plugin: I."
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from one_of("--weighting", self.weighting, fusion.WEIGHTINGS)
        yield from one_of("--pool", self.pool, fusion.POOLS)
        yield from one_of("--mi-estimator", self.mi_estimator, fusion.MI_ESTIMATORS)
        yield from above_zero("--tau", self.tau)


@dataclass(frozen=True)
class FuseResult:
    """What came of the fusion; teachers in the order LALM, source.

    Attributes:
        out: the artifact.
        clips: U.
        fallbacks: clips without a valid LALM answer, labelled by the source teacher alone.
        mean_mi: mean mutual information by teacher, in nats.
        mean_weight: mean weight by teacher.
        agreement: share of clips (with both teachers) on whose most probable class they agree.
        marginal: mean fused probability by class.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path
    clips: int
    fallbacks: int
    mean_mi: dict[str, float]
    mean_weight: dict[str, float]
    agreement: float
    marginal: dict[str, float]
    up_to_date: bool = False
    notes: tuple[str, ...] = ()


def fuse(config: FuseConfig, *, progress: Progress | None = None) -> FuseResult:
    """Fuse two artifacts, joined by utterance id.

    Raises:
        InputError: an artifact that cannot be read, or an output that exists.
        ArtifactError: artifacts over other classes or clips, of the wrong kind, or with changed parents.
    """
    lineage.refuse_overwrite(config, config.out)
    lalm, source = Lalm.load(config.lalm), Source.load(config.source)
    artifacts.check_same_clips(lalm, str(config.lalm), source, str(config.source))
    lineage.check_parents(source, config.source)
    heard = source.header.parent("clips")
    lineage.check_same_audio(lalm, str(config.lalm), heard, str(config.source))
    parents = [
        lineage.parent("lalm", config.lalm, config.out),
        lineage.parent("source", config.source, config.out),
    ]
    if heard is not None:
        clips = lineage.relative(config.source.parent / heard.path, config.out)
        parents.append(Parent("clips", clips, heard.sha256))
    if lineage.is_current(config, config.out, parents):
        return _result(config.out, Fused.load(config.out), up_to_date=True)
    stats = [
        fusion.mean_and_mi(teacher.probs.astype(float), config.mi_estimator) for teacher in (lalm, source)
    ]
    mean = np.stack([mean for mean, _ in stats], axis=1)
    mi = np.stack([mi for _, mi in stats], axis=1)
    if np.isnan(mi[:, 0]).all():
        raise ArtifactError(
            f"{config.lalm}: holds no valid answer at all. Look at it with: mifuse show {config.lalm}"
        )
    weights, probs = fusion.fuse(mean, mi, weighting=config.weighting, tau=config.tau, pool=config.pool)
    model = source.header.parent("model")
    artifact = Fused(
        header=lineage.header(
            config,
            source.header.classes,
            parents,
            teachers=["lalm", "source"],
            weighting=config.weighting,
            tau=config.tau,
            pool=config.pool,
            mi_estimator=config.mi_estimator,
            source_samples=source.probs.shape[1],
            source_normalize=source.header.parameters["normalize"],
            source_calibrate=source.header.parameters["calibrate"],
            source_model_sha256=model.sha256 if model else None,
        ),
        utt_id=source.utt_id,
        probs=probs.astype(np.float32),
        weights=weights.astype(np.float32),
        mean=mean.astype(np.float32),
        mi=mi.astype(np.float32),
    )
    artifact.save(config.out)
    return _result(config.out, artifact)


def _result(out: Path, artifact: Fused, *, up_to_date: bool = False) -> FuseResult:
    teachers = artifact.header.parameters["teachers"]
    answered = ~np.isnan(artifact.mi).any(axis=1)
    best = artifact.mean[answered].argmax(axis=-1)
    fallbacks = int(np.isnan(artifact.mi[:, 0]).sum())
    notes = [
        f"{name}: answers are identical on {share:.0%} of clips, so mutual information says nothing about it; "
        "sample it at a temperature above 0 or use --weighting uniform"
        for name, share in zip(teachers, np.nanmean(artifact.mi < _SILENT_MI, axis=0), strict=True)
        if share > 0.95
    ]
    if fallbacks:
        notes.append(
            f"{fallbacks} clips have no valid LALM answer and take the source teacher's distribution"
        )
    return FuseResult(
        out=out,
        clips=len(artifact.utt_id),
        fallbacks=fallbacks,
        mean_mi=dict(zip(teachers, map(float, np.nanmean(artifact.mi, axis=0)), strict=True)),
        mean_weight=dict(zip(teachers, map(float, artifact.weights.mean(axis=0)), strict=True)),
        agreement=float((best == best[:, :1]).all(axis=1).mean()) if answered.any() else float("nan"),
        marginal=dict(zip(artifact.header.classes, map(float, artifact.probs.mean(axis=0)), strict=True)),
        up_to_date=up_to_date,
        notes=tuple(notes),
    )
