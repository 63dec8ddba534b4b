"""``mifuse fuse``: fuse the teachers' distributions into one label for every clip, and record what each
contributed.
"""

from __future__ import annotations

import math
import shlex
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from itertools import chain, count
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from mifuse_cli import artifacts, fusion, lineage, provenance, truth
from mifuse_cli.artifacts import Column, Fused, Lalm, Parent, Reader, Source
from mifuse_cli.config import Progress, StepConfig, StepResult, option
from mifuse_cli.errors import ArtifactError, InputError
from mifuse_cli.fusion import CROSS_FIT, Fusion, FusionSettings

if TYPE_CHECKING:
    from mifuse_cli.fusion.cross_fit import Structure

_VIEWS = ("lalm", "acoustics")
_PARTS = 100
"""In which answers are looked at, until one is found."""
_FEW_GOLD = 20
"""True classes below which some targets lose by them, see docs/experiments.md."""
_FEW_CLIPS = 150
"""Clips below which cross-fit often loses to its better teacher, see docs/experiments.md."""
_QUESTION = ("elicit", "system", "template")
"""Parts of a LALM's spec by which the same model counts as another teacher."""


@dataclass(frozen=True, kw_only=True)
class FuseConfig(FusionSettings, StepConfig):
    """Fuse what audio-language models and the source classifier say into one label a clip, which train learns.

    Without options: labels by a mixture model of both teachers and the structure of the clips (cross-fit), which
    estimates how reliable each is. The paper's: --weighting mi.
    """

    lalm: tuple[Path, ...] = option(
        help="Artifact of query-lalm; give the option again for every further LALM "
        "(in the environment: separated as in PATH)."
    )
    source: Path = option(help="Artifact of sample-source.")
    gold: Path | None = option(
        None,
        "CSV with the columns file and emotion of 10 to 100 clips whose true class you know, such as from listening. "
        "Cross-fit then finds out better whom to trust. Another protocol than without labels: every score says "
        "few-gold:N, and leaves these N clips out.",
    )
    out: Path = option(help="Artifact to write.", endings=(".h5", ".hdf5"))
    partial: bool = option(False, "Fuse although some questions to a LALM are unanswered.", settles=False)

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        if not self.lalm:
            yield "--lalm: expected at least one artifact"
        for path in dict.fromkeys(self.lalm):
            if self.lalm.count(path) > 1:
                yield f"--lalm {path}: given {self.lalm.count(path)} times, expected once"
        if self.weighting == "dawid-skene" and 0 < len(self.lalm) < fusion.LEAST_TEACHERS - 1:
            yield (
                f"--weighting dawid-skene: expected {fusion.LEAST_TEACHERS - 1} LALMs or more beside the "
                "classifier; with two teachers there is no majority that tells who errs"
            )
        if self.gold is not None and self.is_weighted:
            yield f"--gold: --weighting {self.weighting} makes no use of true labels; leave it out"
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class FuseResult(StepResult):
    """Result of the fusion.

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
        how: in one line, how the labels were made.
        temperature: by LALM that was calibrated.
        marginal: mean fused probability by class.
        gold: clips whose true class was given.
        forecast: of cross-fit, estimated unweighted accuracy of every teacher and of the "labels", as far as there is
            one.
    """

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
    how: str
    temperature: dict[str, float]
    marginal: dict[str, float]
    gold: int
    forecast: dict[str, float]


def fuse(config: FuseConfig, *, progress: Progress | None = None) -> FuseResult:
    """Fuse the artifacts of any number of LALMs and of the classifier, joined by utterance id.

    Raises:
        InputError: an artifact that cannot be read, the same answers twice, or an output that exists.
        ArtifactError: artifacts over other classes or clips, of the wrong kind, or with changed parents; a LALM
            without any answer, or with unanswered questions unless ``partial``; answers that
            ``calibrate_lalm`` or ``weighting`` cannot use.
    """
    lineage.refuse_overwrite(config, config.out, Fused)
    with ExitStack() as opened:
        lalms = {path: opened.enter_context(artifacts.reading(path, Lalm)) for path in config.lalm}
        source = opened.enter_context(artifacts.reading(config.source, Source))
        return _fuse(config, lalms, source)


def _fuse(config: FuseConfig, lalms: Mapping[Path, Reader], source: Reader) -> FuseResult:
    _check(config, lalms, source)
    parents = _parents(config, source)
    gold = None
    if config.gold is not None:
        gold = truth.read_gold(config.gold, source.header.classes, source.utt_id, str(config.source))
        parents.append(truth.gold_parent(config.gold, source.utt_id, gold, config.out))
    teachers = _names(lalms)
    if lineage.is_current(config, config.out, parents):
        made = Fused.load(config.out)
        # Labels of earlier cross-fits were surer than right.
        of_now = config.is_weighted or "label_temperature" in made.header.parameters
        if of_now and made.header.parameters["teachers"] == teachers:
            return _result(config.out, made, up_to_date=True)
    samples = [one.column("probs") for one in (*lalms.values(), source)]
    for path, probs in zip(lalms, samples, strict=False):
        _check_answers(config, path, probs)
    found = fusion.fuse_samples(
        samples,
        FusionSettings.of(config.parameters()),
        structure=None if config.is_weighted else _structure(config, source),
        gold=gold,
        random=partial(provenance.rng, config.seed),
    )
    temperature = {
        name: value for name, value in zip(teachers, found.temperature, strict=True) if value is not None
    }
    unanswered = {
        name: _unanswered(lalm)
        for name, lalm in zip(teachers, lalms.values(), strict=False)
        if not _is_complete(lalm)
    }
    model, agreed = source.header.parent("model"), found.cross_fit
    artifact = Fused(
        header=lineage.header(
            config,
            source.header.classes,
            parents,
            teachers=teachers,
            **found.settings.parameters(),
            lalm_temperature=temperature,
            votes=[name for name, votes in zip(teachers[:-1], found.votes, strict=False) if votes],
            diagnostics=_diagnostics(teachers, found),
            source_samples=source.shape("probs")[1],
            source_normalize=source.header.parameters["normalize"],
            source_calibrate=source.header.parameters["calibrate"],
            source_model_sha256=model.sha256 if model else None,
            **({"unanswered": unanswered} if unanswered else {}),
            **({} if agreed is None else _of_cross_fit(teachers, source.header.classes, found)),
        ),
        utt_id=source.utt_id,
        probs=found.probs,
        weights=found.weights,
        mean=found.mean,
        mi=found.mi,
        top_counts=found.top_counts,
        views=None if agreed is None else agreed.views.astype(np.float32),
        recall=None if found.forecast is None else found.forecast.recall.astype(np.float32),
        prior=None if agreed is None else agreed.mixture.prior.astype(np.float32),
        gold=artifacts.united(None if gold is None else source.utt_id[gold >= 0], _if_there(source, "gold")),
    )
    artifact.save(config.out, replace=config.replaces)
    return _result(config.out, artifact)


def _if_there(found: Reader, name: str) -> np.ndarray | None:
    return found.read(name) if name in found else None


def _structure(config: FuseConfig, source: Reader) -> Structure:
    """Input of cross-fit: hidden states from the artifact, and the classifier from which it was sampled.

    Raises:
        ArtifactError: the artifact holds no hidden states.
        InputError: the classifier is not where it was, or there are too many clips and features.
    """
    if "hidden" not in source:
        raise ArtifactError(
            f"{config.source}: holds no hidden states of the encoder, which --weighting {CROSS_FIT} looks at (it was "
            "made by an older mifuse, or with --no-hidden-states). Give another --weighting, such as mi, or make it "
            f"anew with its command, without that flag and with --force: {source.header.command}"
        )
    parent = source.header.parent("model")
    model = lineage.place_of(parent, config.source) if parent else None
    if model is None or not model.is_dir():
        raise InputError(
            f"{config.source}: its model {model or ''} is not there, of which --weighting {CROSS_FIT} needs the head. "
            "Put it back, or give another --weighting, such as mi."
        )
    from mifuse_cli.methods.structure import structure_of
    from mifuse_cli.model import checkpoint
    from mifuse_cli.model.device import find_device
    from mifuse_cli.model.prepare import frozen_classifier, standardised_inputs

    loaded = checkpoint.load(model)
    if source.header.parameters["calibrate"]:
        loaded.calibrate()
    normalize, device = source.header.parameters["normalize"], find_device(config.device)
    speakers = source.read("speaker").tolist() if "speaker" in source else []
    known = [speaker or None for speaker in speakers]
    hidden = source.read("hidden")
    return structure_of(
        hidden,
        frozen_classifier(loaded, device),
        standardised_inputs(loaded, hidden, known, normalize=normalize, device=device),
        states=loaded.shape.states,
        speakers=speakers if normalize == "speaker" else None,
        passes=source.shape("probs")[1],
        seed=config.seed,
        voice=_if_there(source, "voice"),
    )


def _of_cross_fit(teachers: list[str], classes: tuple[str, ...], found: Fusion) -> dict[str, Any]:
    """Parameters of the artifact that tell how cross-fit came to its labels, and what to expect of them."""
    agreed, told = found.cross_fit, found.forecast
    assert agreed is not None and told is not None
    accuracy = dict(zip([*teachers, "labels"], [*told.teachers, told.labels], strict=True))
    return {
        "views": _VIEWS,
        "start": agreed.mixture.start,
        "teacher_correlation": _finite(agreed.correlation),
        "pseudo_speakers": agreed.voices,
        "class_mix_kept": agreed.kept,
        "label_temperature": found.softness,
        "forecast": {
            "ua": {name: _finite(value) for name, value in accuracy.items()},
            "at_chance": [teachers[t] for t in told.at_chance],
            "unnamed": [classes[k] for k in told.unnamed],
        },
    }


def _check_answers(config: FuseConfig, path: Path, probs: Column) -> None:
    """Refuse a LALM without any answer, or with too few to calibrate it by."""
    at_once = max(1, len(probs) // _PARTS)
    # What is missing is missing for all classes.
    if all(np.isnan(probs[start : start + at_once][..., 0]).all() for start in range(0, len(probs), at_once)):
        raise ArtifactError(
            f"{path}: holds no valid answer at all. Look at it with: mifuse show {shlex.quote(str(path))}"
        )
    if config.calibrate_lalm == "self-agreement" and _single(probs[:]):
        raise ArtifactError(
            f"{path}: has one answer a clip, which cannot agree with others. Ask for more with "
            "query-lalm --n-samples, or use --calibrate-lalm source-agreement."
        )


def _single(samples: np.ndarray) -> bool:
    """Whether no clip has two answers that could agree; False for votes, which are not calibrated."""
    return not fusion.are_votes(samples) and np.isnan(fusion.self_agreement(samples))


def _diagnostics(teachers: list[str], found: Fusion) -> dict[str, Any]:
    """Statistics for the artifact, by teacher and overall; None where there is no value to average."""
    columns = {
        "mean_mi": fusion.mean_mi(found.mi),
        "mean_weight": np.nanmean(found.weights, axis=0),
        "mean_confidence": fusion.confidence(found.mean),
        "label_agreement": fusion.label_agreement(found.mean, found.probs),
        "identical": np.array(found.identical),
    }
    by_teacher = {
        column: {name: _finite(value) for name, value in zip(teachers, values, strict=True)}
        for column, values in columns.items()
    }
    return {**by_teacher, "disagreement": _finite(fusion.disagreement(found.mean))}


def _finite(value: float) -> float | None:
    return float(value) if np.isfinite(value) else None


def _check(config: FuseConfig, lalms: Mapping[Path, Reader], source: Reader) -> None:
    """Refuse artifacts that are not whole or not over the same clips."""
    for path, lalm in lalms.items():
        artifacts.check_same_clips(lalm, str(path), source, str(config.source))
    lineage.check_parents(source, config.source)
    for path, lalm in lalms.items():
        lineage.check_same_audio(lalm, str(path), source.header.parent("clips"), str(config.source))
    incomplete = {path: lalm for path, lalm in lalms.items() if not _is_complete(lalm)}
    if incomplete and not config.partial:
        counts = [
            f"{path}: {_unanswered(lalm)} of {math.prod(lalm.shape('status'))} questions are unanswered"
            for path, lalm in incomplete.items()
        ]
        commands = " && ".join(lalm.header.command for lalm in incomplete.values())
        raise ArtifactError(
            f"{'; '.join(counts)}. Pass --partial to fuse the answers that there are; to ask them, run "
            f"{'its command' if len(incomplete) == 1 else 'their commands'} again: {commands}"
        )
    if config.weighting == "dawid-skene":
        _check_distinct(lalms)


def _check_distinct(lalms: Mapping[Path, Reader]) -> None:
    """Refuse one model asked twice in the same way: it repeats its errors, which would pass for a majority."""
    first: dict[str, Path] = {}
    for path, lalm in lalms.items():
        spec = lalm.header.parameters["spec"]
        asked = repr((lalm.header.parameters["model"], [spec.get(part) for part in _QUESTION]))
        other = first.setdefault(asked, path)
        if other != path:
            raise ArtifactError(
                f"{path}: is of the same model as {other}, asked in the same way, so that Dawid-Skene would "
                "count its errors twice. Give other models or prompts, or another --weighting."
            )


def _is_complete(lalm: Reader) -> bool:
    """Whether every question was asked; older artifacts do not record it and are complete."""
    return lalm.header.parameters.get("complete", True)


def _unanswered(lalm: Reader) -> int:
    return int((lalm.read("status") == lalm.header.parameters["status_codes"]["missing"]).sum())


def _parents(config: FuseConfig, source: Reader) -> list[Parent]:
    parents = [lineage.parent("lalm", path, config.out) for path in config.lalm]
    first: dict[str, Path] = {}
    for path, one in zip(config.lalm, parents, strict=True):
        other = first.setdefault(one.sha256, path)
        if other != path:
            raise InputError(f"{path}: holds the same as {other}, which would count twice. Give one of them.")
    parents.append(lineage.parent("source", config.source, config.out))
    heard = source.header.parent("clips")
    if heard is not None:
        clips = lineage.relative(lineage.place_of(heard, config.source), config.out)
        parents.append(Parent("clips", clips, heard.sha256))
    return parents


def _names(lalms: Mapping[Path, Reader]) -> list[str]:
    """Names of the teachers, no two the same, the classifier's last."""
    if len(lalms) == 1:
        return ["lalm", "source"]
    stems = [path.stem for path in lalms]
    if len({*stems, "source"}) > len(stems):
        return [*stems, "source"]
    names: list[str] = []
    for lalm in lalms.values():
        model = lalm.header.parameters["model"]
        numbered = chain([model], (f"{model}-{number}" for number in count(2)))
        names.append(next(name for name in numbered if name not in (*names, "source")))
    return [*names, "source"]


def _result(out: Path, artifact: Fused, *, up_to_date: bool = False) -> FuseResult:
    parameters = artifact.header.parameters
    told = parameters["diagnostics"]
    silent = np.isnan(artifact.mi)
    answered = ~silent.any(axis=1)
    best = artifact.mean[answered].argmax(axis=-1)
    fallbacks = int(silent[:, :-1].all(axis=1).sum())
    by_class = zip(artifact.header.classes, map(float, artifact.probs.mean(axis=0)), strict=True)
    return FuseResult(
        out=out,
        clips=len(artifact.utt_id),
        fallbacks=fallbacks,
        without_answer=dict(
            zip(parameters["teachers"][:-1], map(int, silent[:, :-1].sum(axis=0)), strict=True)
        ),
        mean_mi=told["mean_mi"],
        mean_weight=told["mean_weight"],
        mean_confidence=told["mean_confidence"],
        label_agreement=told["label_agreement"],
        agreement=float((best == best[:, :1]).all(axis=1).mean()) if answered.any() else float("nan"),
        disagreement=float("nan") if told["disagreement"] is None else told["disagreement"],
        weighting=parameters["weighting"],
        how=_how(parameters),
        temperature=parameters["lalm_temperature"],
        marginal=dict(by_class),
        gold=0 if artifact.gold is None else len(artifact.gold),
        forecast={
            name: value
            for name, value in parameters.get("forecast", {}).get("ua", {}).items()
            if value is not None
        },
        up_to_date=up_to_date,
        notes=tuple(_notes(artifact, fallbacks)),
    )


def _how(parameters: Mapping[str, Any]) -> str:
    """In one line, how labels with these parameters of an artifact were made."""
    settings = FusionSettings.of(parameters)
    told = settings.described()
    weighting = told.pop("weighting")
    further = "".join(f", {name.replace('_', ' ')} {value}" for name, value in told.items())
    if settings.is_weighted:
        paper = " (MI-Fuse)" if settings == FusionSettings(weighting="mi") else ""
        return f"teachers weighed by {weighting}{further}{paper}; our default: --weighting {CROSS_FIT}"
    parts = {"lalm": "answers", "source": "source model", "structure": "hidden states"}
    used = [name for part, name in parts.items() if part not in settings.left_out]
    named = f"mixture of {', '.join(used[:-1])} and {used[-1]}" if used[1:] else f"{used[0]} alone"
    return f"{named}{further}, {_voices(parameters, settings)}; the paper's way: --weighting mi"


def _voices(parameters: Mapping[str, Any], settings: FusionSettings) -> str:
    if settings.left_out & {"voices", "structure"}:
        return "voices not looked for"
    counts = parameters["pseudo_speakers"]
    if not counts:
        return "no voices found"
    what = "known speakers" if parameters["source_normalize"] == "speaker" else "voices"
    told = f"{' / '.join(map(str, counts))} {what} evened out"
    kept = f"{np.mean(parameters.get('class_mix_kept') or 0):.0%}"
    return told if kept == "0%" else f"{told}, but for {kept} of their differences in emotion"


def _notes(artifact: Fused, fallbacks: int) -> Iterator[str]:
    parameters = artifact.header.parameters
    for name, share in parameters["diagnostics"]["identical"].items():
        # Cross-fit makes no use of mutual information.
        if share is not None and fusion.is_dead(share) and parameters["weighting"] != CROSS_FIT:
            yield (
                f"{name}: answers are identical on {share:.0%} of clips, so its mutual information is meaningless; "
                "sample it at a temperature above 0 or use --weighting uniform"
            )
        elif share is None and np.isfinite(artifact.mi[:, parameters["teachers"].index(name)]).any():
            yield (
                f"{name}: has one answer a clip, so that nothing tells how sure it is; ask for more with query-lalm "
                "--n-samples"
            )
    if parameters["weighting"] == CROSS_FIT and len(artifact.utt_id) < _FEW_CLIPS:
        yield (
            f"{len(artifact.utt_id)} clips are few for cross-fit: of fewer than about {_FEW_CLIPS}, its labels can be "
            "worse than the better teacher's, and only labels of yours tell; give the true class of some (--gold)"
        )
    if parameters["weighting"] != artifact.header.config["weighting"]:
        yield "all teachers weigh the same therefore; --keep-weighting insists on the weighting"
    for number, name in enumerate(parameters["teachers"]):
        yield from fusion.one_sided(name, artifact.mean[:, number], artifact.header.classes)
    yield from fusion.one_sided("labels", artifact.probs, artifact.header.classes)
    votes = parameters["votes"]
    if votes and parameters["weighting"] in fusion.OF_RAW_MI:
        yield (
            f"{', '.join(votes)}: answers are single labels, whose mutual information is the entropy of the "
            "votes and no match for that of distributions; use --weighting rank-mi or z-mi"
        )
    if artifact.gold is not None:
        yield (
            f"few-gold:{len(artifact.gold)}: made with the true class of {len(artifact.gold)} clips, so it is not a "
            "label-free result"
        )
        if len(artifact.gold) == len(artifact.utt_id):
            yield "the true class of every clip was given, so that none is left to score"
        elif len(artifact.gold) < _FEW_GOLD:
            yield (f"fewer than {_FEW_GOLD} true classes may do harm on a single target; label more")
    expected = parameters.get("forecast", {})
    at_chance, teachers = expected.get("at_chance", []), parameters["teachers"]
    if len(at_chance) == len(teachers):
        yield (
            f"{', '.join(teachers)}: contradict each other, and nothing tells which one is no better than chance; give "
            "the true class of some clips (--gold), or leave one out (--without)"
        )
        at_chance = []
    for name in at_chance:
        one_of_several = name != "source" and len(teachers) > 2
        yield f"{name}: seems to be no better than chance on these clips{'; leave it out' if one_of_several else ''}"
    if expected.get("unnamed"):
        yield (
            f"{', '.join(expected['unnamed'])}: hardly ever named by the LALM, so that its clips may have got other "
            "labels; look at some, or ask another LALM"
        )
    temperature = parameters["lalm_temperature"]
    if artifact.header.config["calibrate_lalm"] != "none":
        for name in parameters["teachers"][:-1]:
            if name not in temperature:
                why = "are single labels" if name in votes else "do not vary"
                yield f"{name}: is left as it is, since its answers {why}"
    for name, value in temperature.items():
        if not fusion.LOWEST_TEMPERATURE * 1.01 < value < fusion.HIGHEST_TEMPERATURE / 1.01:
            yield f"{name}: its temperature {value:.3g} is the last one tried; its answers cannot be calibrated"
    for name, number in parameters.get("unanswered", {}).items():
        yield f"{name}: {number} questions are unanswered; fuse again once they are answered"
    left_out = FusionSettings.of(parameters).left_out
    if fallbacks and "lalm" not in left_out:
        others = "the source classifier"
        if parameters["weighting"] == CROSS_FIT:
            named = {"source": others, "structure": "the structure of the clips"}
            others = (
                " and ".join(told for part, told in named.items() if part not in left_out)
                or "the class prior"
            )
        yield f"{fallbacks} clips have no valid LALM answer and are labelled by {others} alone"
