"""How labels are made: the options of ``mifuse fuse``, which are stored in its artifact and used again by
``train --refresh``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any, ClassVar

from mifuse_cli.config import Config, above_zero, one_of, option, words
from mifuse_cli.fusion.calibration import CALIBRATIONS
from mifuse_cli.fusion.estimators import MI_ESTIMATORS
from mifuse_cli.fusion.pools import POOLS
from mifuse_cli.fusion.weightings import OF_MI, OF_TAU, WEIGHTINGS

CROSS_FIT = "cross-fit"
"""Name of the fusion by `cross_fit`; all others are weightings, which weigh and pool the teachers."""
PARTS = ("lalm", "source", "structure", "voices", "prior")
"""Parts of `CROSS_FIT` that can be left out: the LALMs, the source classifier, the regression on hidden states
(structure), evening out voices, and estimating the class prior, which then is uniform.
"""


@dataclass(frozen=True, kw_only=True)
class FusionSettings(Config):
    """How the teachers' distributions are fused into one label a clip."""

    _parts: ClassVar[tuple[str, ...]] = PARTS

    weighting: str = option(
        CROSS_FIT,
        "cross-fit: a mixture model of the LALM's answers, the source classifier and a linear model of the encoder's "
        "hidden states, which estimates how reliable each of them is, and the class prior, without labels. "
        "mi: MI-Fuse as in the paper, a teacher weighs exp(-I / tau), I the mutual information of its answers. "
        f"Further: {', '.join(name for name in WEIGHTINGS if name != 'mi')}.",
    )
    tau: float = option(
        0.1,
        "Temperature of --weighting mi, w = exp(-I / tau), of shuffled-mi and of exp-entropy, in nats: small is "
        "sharp.",
    )
    keep_weighting: bool = option(
        False,
        "Keep a weighting by mutual information even if a teacher's answers never vary; default: uniform then.",
    )
    pool: str = option("linear", "linear: weighted mean; log: weighted geometric mean; poe: product.")
    sharpen: float = option(
        1.0, "Temperature T of the fused labels, p^(1/T): below 1, such as 0.5, sharpens."
    )
    mi_estimator: str = option(
        "bayes",
        "Estimate of mutual information from N answers. plugin: H(mean p) - mean H(p), which is too low for few "
        "answers; scaled: that times N/(N-1); bayes: scaled, and from the posterior mean entropy where answers are "
        "single labels; shrunk: scaled, drawn to the mean over the teacher's clips; jackknife; pairwise-js: twice the "
        "mean Jensen-Shannon divergence of two answers.",
    )
    calibrate_lalm: str = option(
        "none",
        "Temperature of the LALMs' distributions, fitted without labels: their mean confidence becomes the rate at "
        "which two answers about a clip agree (self-agreement), or at which answers agree with the classifier "
        "(source-agreement). The classifier's own is in its checkpoint: sample-source --calibrate.",
    )
    without: str = option(
        "",
        f"Parts of --weighting cross-fit to leave out, separated by commas: {', '.join(PARTS)}. Of other weightings: "
        "lalm, so that the source model is the only teacher.",
    )

    @property
    def left_out(self) -> frozenset[str]:
        """The parts named in `without`."""
        return frozenset(words(self.without))

    @property
    def is_weighted(self) -> bool:
        """Whether teachers are weighed and pooled; such labels can be fused anew with new samples of the
        classifier.
        """
        return self.weighting != CROSS_FIT

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from super().problems()
        yield from one_of("--weighting", self.weighting, (CROSS_FIT, *WEIGHTINGS))
        yield from one_of("--pool", self.pool, POOLS)
        yield from one_of("--mi-estimator", self.mi_estimator, MI_ESTIMATORS)
        yield from one_of("--calibrate-lalm", self.calibrate_lalm, CALIBRATIONS)
        yield from above_zero("--tau", self.tau)
        yield from above_zero("--sharpen", self.sharpen)
        for part in sorted(self.left_out):
            yield from one_of("--without", part, self._parts)
            if part in self._parts and self.is_weighted and part != "lalm":
                yield f"--without {part}: is no part of --weighting {self.weighting}; expected lalm"
        if {"lalm", "source"} <= self.left_out:
            yield "--without lalm,source: leaves no teacher; name one of them"
        if "lalm" in self.left_out and self.weighting == "dawid-skene":
            yield "--without lalm: --weighting dawid-skene needs the LALMs for a majority; give another --weighting"
        if "lalm" in self.left_out and self.calibrate_lalm != "none":
            yield f"--calibrate-lalm {self.calibrate_lalm}: has no effect --without lalm; leave it out"
        for field in dataclasses.fields(FusionSettings):
            value = getattr(self, field.name)
            if field.name in _unused(self.weighting) and value != field.default:
                flag = field.name.replace("_", "-")
                yield f"--{flag} {value}: has no effect on --weighting {self.weighting}; leave it out"

    def described(self) -> dict[str, str]:
        """The settings that matter and are not the default, as parts of a protocol line."""
        tau = f"({self.tau:g})" if self.weighting in OF_TAU else ""
        changed = {
            "sharpen": f"{self.sharpen:g}",
            "mi_estimator": self.mi_estimator,
            "calibrate_lalm": self.calibrate_lalm,
            "without": "+".join(sorted(self.left_out)),
        }
        return {
            "weighting": f"{self.weighting}{tau}",
            **({} if "pool" in _unused(self.weighting) else {"pool": self.pool}),
            **{name: told for name, told in changed.items() if getattr(self, name) != _DEFAULT[name]},
        }

    def parameters(self) -> dict[str, Any]:
        """The settings by name that have an effect on this weighting, without fields of subclasses."""
        return {name: getattr(self, name) for name in _DEFAULT if name not in _unused(self.weighting)}

    @staticmethod
    def of(parameters: Mapping[str, Any]) -> FusionSettings:
        """Settings from the parameters of an artifact; those that its weighting does not use are left out."""
        names = _DEFAULT.keys() - _unused(parameters["weighting"])
        kind = _EarlierSettings if "matching" in words(parameters.get("without", "")) else FusionSettings
        return kind(**{name: value for name, value in parameters.items() if name in names})

    def uniform(self) -> FusionSettings:
        """These settings with all teachers weighing the same; of the parts left out, only the LALMs stay out."""
        without = "lalm" if "lalm" in self.left_out else ""
        return FusionSettings.of({**self.parameters(), "weighting": "uniform", "without": without})


class _EarlierSettings(FusionSettings):
    """Settings in artifacts of cross-fit before version 2, which matched the teachers to a class prior."""

    _parts = (*PARTS, "matching")


_DEFAULT = {field.name: field.default for field in dataclasses.fields(FusionSettings)}


def _unused(weighting: str) -> set[str]:
    """Names of options that have no effect on a weighting."""
    unused = {
        "tau": weighting not in OF_TAU,
        "keep_weighting": weighting not in OF_MI,
        "pool": weighting in (CROSS_FIT, "dawid-skene"),
        "mi_estimator": weighting == CROSS_FIT,
    }
    return {name for name, never in unused.items() if never}
