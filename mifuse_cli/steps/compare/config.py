"""Options and result of ``mifuse compare``."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mifuse_cli import evaluation
from mifuse_cli.config import EncodingConfig, StepResult, at_least, normalize_problems, one_of, option, words
from mifuse_cli.errors import did_you_mean
from mifuse_cli.methods.adaptation import AdaptationConfig
from mifuse_cli.steps.compare.systems import GROUPS, SYSTEMS

PROTOCOLS = ("transductive", "inductive", "few-gold")


@dataclass(frozen=True, kw_only=True)
class CompareConfig(AdaptationConfig, EncodingConfig):
    """Run many systems on every transfer between corpora and write tables; finished runs are kept."""

    data: Path = option(
        help="Directory with one of each target corpus: manifest.csv and labels.csv, as prepare writes them, or "
        "metadata.csv. Labels are read to score, to train the oracle, and for the few true classes of "
        "--protocol few-gold."
    )
    models: Path = option(help="Directory of source models: CORPUS/seedN for every source and seed.")
    lalm: Path = option(help="Directory of the artifacts of query-lalm: CORPUS.h5 for every target.")
    out: Path = option(help="Directory for the runs and the tables.")
    names: str = option(
        "",
        "Corpora, separated by commas, each the source and the target of every other; default: all of --data "
        "that have models and answers.",
    )
    sources: str = option(
        "",
        "Instead of --names: source models, separated by commas; their corpora need neither data nor answers. "
        "Default with --targets: all of --models.",
    )
    targets: str = option(
        "",
        "Instead of --names: target corpora, separated by commas. Default with --sources: all of --data that "
        "have answers.",
    )
    seeds: str = option("0,1,2,3,4", "Seeds of source models and students, separated by commas.")
    systems: str = option(
        "main", f"Names of systems or of groups, separated by commas: main, {', '.join(GROUPS)}; main is the "
        "first four."
    )  # fmt: skip
    normalize: str = option(
        "", "source, target or speaker, for all systems; default: as the models' checkpoints say."
    )
    protocol: str = option(
        "transductive",
        "transductive: adapted to and scored on the same clips; inductive: scored on speakers that were not "
        "adapted to; few-gold: transductive, but systems named /gold-N are given the true class of N clips; 100 clips "
        "of every target, at most half of them, are kept for that and scored for no system.",
    )
    folds: int = option(4, "Number of speaker folds with --protocol inductive.")
    n_answers: int = option(5, "Number of LALM answers used for every clip: the first ones.")
    n_samples: int = option(10, "Dropout passes of the source model.")
    speaker_encoder: str = option(
        "",
        "As of sample-source: a vector of the voice in every clip, for systems with cross-fit labels.",
        settles=False,  # compared by content, as a parent
    )
    resamples: int = option(evaluation.RESAMPLES, "Bootstrap draws of the 95 % intervals.")
    jobs: int = option(0, "Processes at a time; 0: one for each core.", settles=False)

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        names = words(self.names)
        if self.names and len(names) < 2:
            yield f"--names {self.names}: expected two corpora or more"
        yield from _once("--names", names)
        sources, targets = words(self.sources), words(self.targets)
        if self.names and (sources or targets):
            yield "--names: is for all pairs of corpora; leave it out with --sources or --targets"
        yield from _once("--sources", sources)
        yield from _once("--targets", targets)
        if len(sources) == 1 and sources == targets:
            yield f"--sources {self.sources} --targets {self.targets}: a corpus is no target of its own model"
        if not all(seed.isdigit() for seed in words(self.seeds)) or not words(self.seeds):
            yield f"--seeds {self.seeds!r}: expected whole numbers, separated by commas"
        yield from _once("--seeds", words(self.seeds))
        for name in words(self.systems):
            if name not in ("main", *GROUPS, *SYSTEMS):
                hint = did_you_mean(name, [*GROUPS, *SYSTEMS])
                yield f"--systems {name!r}: no system or group is called so{hint}; groups: main, {', '.join(GROUPS)}"
        if not words(self.systems):
            yield "--systems: expected at least one"
        yield from normalize_problems(self.normalize)
        yield from one_of("--protocol", self.protocol, PROTOCOLS)
        yield from at_least("--folds", self.folds, 2)
        yield from at_least("--n-answers", self.n_answers, 1)
        yield from at_least("--n-samples", self.n_samples, 2)
        yield from at_least("--resamples", self.resamples, 100)
        yield from at_least("--jobs", self.jobs, 0)
        yield from super().problems()


@dataclass(frozen=True, kw_only=True)
class CompareResult(StepResult):
    """What was compared.

    Attributes:
        out: directory of the tables: ``table.md``, ``table.tex``, ``scores.csv``, ``results.json``.
        protocol: in one line.
        runs: number of runs: predictions of one system for one transfer and seed.
        made: how many of them were made now.
        results: what ``results.json`` holds.
    """

    protocol: str
    runs: int
    made: int
    results: dict[str, Any]


def _once(flag: str, values: list[str]) -> Iterable[str]:
    twice = sorted({value for value in values if values.count(value) > 1})
    if twice:
        yield f"{flag}: {', '.join(twice)} given more than once"
