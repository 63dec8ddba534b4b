"""Options and result of ``mifuse fuse``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from mifuse_cli import fusion
from mifuse_cli.config import StepConfig, above_zero, one_of, option


@dataclass(frozen=True, kw_only=True)
class FuseConfig(StepConfig):
    """Fuse the audio-language models' and the source classifier's distributions into one label a clip."""

    lalm: tuple[Path, ...] = option(
        help="Artifact of query-lalm; give the option again for every further LALM "
        "(in the environment: separated as in PATH)."
    )
    source: Path = option(help="Artifact of sample-source.")
    out: Path = option(help="Artifact to write.")
    weighting: str = option("mi", f"Weight of a teacher: {', '.join(fusion.WEIGHTINGS)}.")
    tau: float = option(
        0.1,
        "Temperature of --weighting mi, w = exp(-I / tau), and of exp-entropy, in nats: small is sharp.",
    )
    keep_weighting: bool = option(
        False, "Weight by mutual information even if a teacher's answers never vary; else all weigh the same."
    )
    pool: str = option("linear", "linear: weighted mean; log: weighted geometric mean; poe: product.")
    sharpen: float = option(1.0, "Temperature T of the fused labels, p^(1/T): 0.5 to 1 sharpens.")
    mi_estimator: str = option(
        "bayes",
        "scaled: I * N/(N-1), which undoes the bias of few samples; bayes: scaled, and for answers that are "
        "single labels the posterior mean entropy; shrunk: scaled, drawn to the teacher's mean; jackknife; "
        "pairwise-js; plugin: I.",
    )
    calibrate_lalm: str = option(
        "none",
        "Give LALMs the temperature at which an answer is as sure as often it agrees with the others about "
        "the clip (self-agreement) or with the classifier (source-agreement); or none. The classifier's is in "
        "its checkpoint: sample-source --calibrate.",
    )
    partial: bool = option(False, "Fuse although some questions to a LALM are unanswered.", settles=False)

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        if not self.lalm:
            yield "--lalm: expected at least one artifact"
        for path in dict.fromkeys(self.lalm):
            if self.lalm.count(path) > 1:
                yield f"--lalm {path}: given {self.lalm.count(path)} times, expected once"
        yield from one_of("--weighting", self.weighting, fusion.WEIGHTINGS)
        yield from one_of("--pool", self.pool, fusion.POOLS)
        yield from one_of("--mi-estimator", self.mi_estimator, fusion.MI_ESTIMATORS)
        yield from one_of("--calibrate-lalm", self.calibrate_lalm, fusion.CALIBRATIONS)
        yield from above_zero("--tau", self.tau)
        yield from above_zero("--sharpen", self.sharpen)
        if self.weighting == "dawid-skene":
            if 0 < len(self.lalm) < fusion.LEAST_TEACHERS - 1:
                yield (
                    f"--weighting dawid-skene: expected {fusion.LEAST_TEACHERS - 1} LALMs or more beside the "
                    "classifier; with two teachers there is no majority that tells who errs"
                )
            if self.pool != "linear":
                yield f"--pool {self.pool}: dawid-skene pools by itself; leave out --pool"


@dataclass(frozen=True)
class FuseResult:
    """What came of the fusion.

    Teachers are the LALMs in the order given, then the source classifier. One LALM is named "lalm", several by
    their artifacts' file names or, if those do not tell them apart, by their models; the classifier is "source".

    Attributes:
        out: the artifact.
        clips: U.
        fallbacks: clips that no LALM gave a valid answer to, labelled by the source teacher alone.
        without_answer: by LALM, the clips that it gave no valid answer to.
        mean_mi: mean mutual information by teacher, in nats.
        mean_weight: mean weight by teacher.
        mean_confidence: mean highest probability of a teacher's mean distribution, by teacher.
        label_agreement: share of clips on which a teacher's most probable class is the fused one, by teacher.
        agreement: share of clips (with all teachers) on whose most probable class all agree.
        disagreement: mean Jensen-Shannon divergence between the teachers, in nats; NaN if none share a clip.
        weighting: as configured, or "uniform" where a teacher's answers never vary.
        temperature: by LALM that was calibrated.
        marginal: mean fused probability by class.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path
    clips: int
    fallbacks: int
    without_answer: dict[str, int]
    mean_mi: dict[str, float]
    mean_weight: dict[str, float]
    mean_confidence: dict[str, float]
    label_agreement: dict[str, float]
    agreement: float
    disagreement: float
    weighting: str
    temperature: dict[str, float]
    marginal: dict[str, float]
    up_to_date: bool = False
    notes: tuple[str, ...] = ()
