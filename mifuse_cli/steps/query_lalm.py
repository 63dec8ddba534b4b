"""``mifuse query-lalm``: ask an audio-language model several times about every clip."""

from __future__ import annotations

import asyncio
import hashlib
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from mifuse_cli import audio, fusion, lineage
from mifuse_cli.artifacts import Lalm
from mifuse_cli.config import Progress, StepConfig, above_zero, at_least, option, target_problems
from mifuse_cli.errors import ArtifactError, InputError, RemoteError, UsageError
from mifuse_cli.labels import CLASSES, parse_classes
from mifuse_cli.lalm import prompts
from mifuse_cli.lalm.journal import Journal, Utterance
from mifuse_cli.lalm.parsing import PARSER_VERSION, Status, parse_answer
from mifuse_cli.lalm.replies import content_of
from mifuse_cli.lalm.spec import KEY_VERSION, question_key, spec_hash
from mifuse_cli.manifest import Clip, clips_of

_USAGE = ("prompt", "completion", "total", "audio", "cached")
_LARGEST_ANSWER = 256
"""Tokens; a distribution over ten classes needs about 80."""


@dataclass(frozen=True, kw_only=True)
class QueryLalmConfig(StepConfig):
    """Ask an audio-language model several times about every clip for a distribution over emotions.

    Answers are kept in OUT.journal.sqlite as they come. Run the same command again to go on after an
    interruption, or with a larger --n-samples to ask for more: only what is missing is asked.
    """

    manifest: Path | None = option(None, "CSV of target clips; labels in it are not read.")
    wav_dir: Path | None = option(None, "Directory of target clips, instead of --manifest.")
    out: Path = option(help="Artifact to write.")
    model: str = option(help="Name of the model at the endpoint.")
    base_url: str = option(
        "", "Address of an OpenAI-compatible endpoint, up to /v1; default: OPENAI_BASE_URL, else OpenAI's."
    )
    n_samples: int = option(5, "Questions about every clip.")
    temperature: float = option(
        1.0, "Sampling temperature of the model; at 0 there is no uncertainty to measure."
    )
    classes: str = option(",".join(CLASSES), "Emotion classes, in the order of every probability.")
    api_key_file: Path | None = option(
        None, "File that holds the API key; default: OPENAI_API_KEY.", settles=False
    )
    concurrency: int = option(8, "Requests under way at the same time.", settles=False)
    timeout: float = option(120.0, "Seconds that one request may take.", settles=False)

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from target_problems(self.manifest, self.wav_dir)
        try:
            parse_classes(self.classes)
        except UsageError as error:
            yield str(error)
        yield from at_least("--n-samples", self.n_samples, 1)
        yield from at_least("--temperature", self.temperature, 0)
        yield from at_least("--concurrency", self.concurrency, 1)
        yield from above_zero("--timeout", self.timeout)


@dataclass(frozen=True)
class QueryLalmResult:
    """What was asked and answered.

    Attributes:
        out: the artifact.
        clips, samples: U and N.
        asked: questions sent in this run.
        statuses: answers by outcome.
        without_answer: clips without any valid answer.
        mean_mi: mean mutual information over clips, in nats.
        tokens: prompt and completion tokens of all answers, as far as the server tells.
        up_to_date: nothing was done, since --update found the output current.
        notes: what the user should know.
    """

    out: Path
    clips: int
    samples: int
    asked: int
    statuses: dict[str, int]
    without_answer: int
    mean_mi: float
    tokens: dict[str, int]
    up_to_date: bool = False
    notes: tuple[str, ...] = ()


@dataclass(frozen=True)
class _Ask:
    """One question about one clip: sample index, label order and key."""

    clip: int
    sample: int
    order: tuple[int, ...]
    key: str


def query_lalm(config: QueryLalmConfig, *, progress: Progress | None = None) -> QueryLalmResult:
    """Ask what the journal has no answer to yet, then derive the artifact from the journal.

    Every clip is decoded before the first question is sent. The key is read from ``api_key_file``, else
    from the environment variable OPENAI_API_KEY, and only if something is to be asked.

    Raises:
        InputError: clips that cannot be read, no API key, a journal in use.
        ArtifactError: ``out`` holds answers to other questions (another model, prompt, class list, ...).
        RemoteError: the service failed; its answers so far are in the journal.
    """
    classes = parse_classes(config.classes)
    base_url = config.base_url or os.environ.get("OPENAI_BASE_URL") or "https://api.openai.com/v1"
    config = replace(config, base_url=base_url)
    clips, where = clips_of(config.manifest, config.wav_dir)
    parents = [lineage.clips_parent(clips, where, config.out)]
    if lineage.is_current(config, config.out, parents):
        return _result(config.out, Lalm.load(config.out), asked=0, up_to_date=True)
    spec = _spec(config, classes, base_url)
    if config.out.exists() and not config.force and not config.update:
        _refuse_other_questions(config.out, spec)
    utterances = _utterances(clips, progress)
    asks = _asks(utterances, spec_hash(spec), config.n_samples, classes)
    config.out.parent.mkdir(parents=True, exist_ok=True)
    with Journal(journal_path(config.out)) as journal:
        journal.add_spec(spec)
        journal.add_utterances(utterances)
        missing = _missing(asks, journal)
        rejected: dict[str, str] = {}
        if missing:
            rejected = _ask_all(config, base_url, spec, clips, missing, journal, progress)
        artifact = _derive(journal, utterances, asks, classes, config.n_samples, rejected)
        unresolved = journal.unresolved()
    header = lineage.header(
        config,
        classes,
        parents,
        model=config.model,
        host=spec["host"],
        spec=spec,
        spec_hash=spec_hash(spec),
        parser_version=PARSER_VERSION,
        status_codes={status.name.lower(): int(status) for status in Status},
        usage_columns=list(_USAGE),
    )
    artifact = replace(artifact, header=header)
    artifact.save(config.out)
    notes = []
    if rejected:
        notes.append(
            f"{len(rejected)} questions were rejected, the last one with: {list(rejected.values())[-1]}"
        )
    if unresolved:
        notes.append(f"{unresolved} requests of interrupted runs may have been billed without an answer kept")
    return _result(config.out, artifact, asked=len(missing), notes=tuple(notes))


def journal_path(out: Path) -> Path:
    """Where the answers behind the artifact ``out`` are kept."""
    return out.with_name(out.name + ".journal.sqlite")


def _spec(config: QueryLalmConfig, classes: tuple[str, ...], base_url: str) -> dict[str, Any]:
    """Everything that changes what the model is asked; its hash is part of every question's key."""
    from urllib.parse import urlsplit

    return {
        "key_version": KEY_VERSION,
        "host": urlsplit(base_url).netloc.rpartition("@")[2],
        "model": config.model,
        "elicit": "verbalized",
        "system": prompts.DEFAULT_SYSTEM,
        "template": prompts.DEFAULT_TEMPLATE,
        "classes": sorted(classes),
        "temperature": config.temperature,
        "max_completion_tokens": _LARGEST_ANSWER,
    }


def _refuse_other_questions(out: Path, spec: dict[str, Any]) -> None:
    asked = Lalm.load(out).header.parameters["spec"]
    changed = sorted(name for name in spec.keys() | asked.keys() if spec.get(name) != asked.get(name))
    if changed:
        raise ArtifactError(
            f"{out}: holds answers to other questions: {', '.join(changed)} changed. "
            "Choose another --out, or pass --force to replace it (the answers stay in its journal)."
        )


def _utterances(clips: list[Clip], progress: Progress | None) -> list[Utterance]:
    """Every clip decoded once, with the hash of the audio that will be sent."""
    found = []
    for done, clip in enumerate(clips, start=1):
        samples = audio.read(clip.path)
        wav = audio.wav_bytes(samples)
        sha256 = hashlib.sha256(wav).hexdigest()
        seconds = len(samples) / audio.RATE
        found.append(Utterance(clip.utt_id, sha256, seconds, audio.RATE, len(wav), str(clip.path)))
        if progress:
            progress("reading", done, len(clips))
    return found


def _asks(utterances: list[Utterance], spec: str, samples: int, classes: tuple[str, ...]) -> list[_Ask]:
    """All questions, those about one clip together; clips with the same audio share keys.

    Label orders, and so keys, are made over the sorted class names: the order of --classes settles how
    probabilities are stored, not what is asked.
    """
    position = [classes.index(name) for name in sorted(classes)]
    asks = []
    for number, one in enumerate(utterances):
        for sample in range(samples):
            order = prompts.label_order(one.sha256, sample, len(classes))
            key = question_key(one.sha256, spec, sample, order)
            asks.append(_Ask(number, sample, tuple(position[k] for k in order), key))
    return asks


def _missing(asks: list[_Ask], journal: Journal) -> list[_Ask]:
    by_key = {ask.key: ask for ask in asks}
    answered = journal.answered(by_key)
    return [ask for key, ask in by_key.items() if key not in answered]


def _ask_all(
    config: QueryLalmConfig,
    base_url: str,
    spec: dict[str, Any],
    clips: list[Clip],
    missing: list[_Ask],
    journal: Journal,
    progress: Progress | None,
) -> dict[str, str]:
    """Ask the missing questions; returns the messages of rejected ones by key."""
    from mifuse_cli.lalm.client import Client, Question, answer_all

    classes = parse_classes(config.classes)
    api_key = _api_key(config)

    def question(ask: _Ask) -> Question:
        def build() -> list[dict[str, Any]]:
            wav = audio.wav_bytes(audio.read(clips[ask.clip].path))
            return prompts.messages(wav, classes, ask.order, system=spec["system"], template=spec["template"])

        return Question(ask.key, build)

    def settled(*counts: int) -> None:
        if progress:
            progress("asking", sum(counts), len(missing))

    async def run() -> Any:
        parameters = {name: spec[name] for name in ("temperature", "max_completion_tokens")}
        client = Client(base_url, config.model, api_key, timeout=config.timeout, parameters=parameters)
        questions: Iterator[Question] = map(question, missing)
        async with client:
            return await answer_all(
                questions, client=client, journal=journal, concurrency=config.concurrency, progress=settled
            )

    counts = asyncio.run(run())
    if counts.failed:
        raise RemoteError(
            f"{len(counts.failed)} of {len(missing)} questions got no answer, the last one because of: "
            f"{list(counts.failed.values())[-1]} The {counts.answered} answers of this run are kept; "
            "run the same command again to ask what is missing."
        )
    return counts.rejected


def _api_key(config: QueryLalmConfig) -> str:
    if config.api_key_file is not None:
        try:
            return config.api_key_file.read_text(encoding="utf-8").strip()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(f"--api-key-file {config.api_key_file}: cannot be read ({error}).") from None
    key = os.environ.get("OPENAI_API_KEY", "")
    if not key:
        raise InputError(
            "there is no API key: set OPENAI_API_KEY or give --api-key-file. "
            "For a local server that needs none, any word will do."
        )
    return key


def _derive(
    journal: Journal,
    utterances: list[Utterance],
    asks: list[_Ask],
    classes: tuple[str, ...],
    samples: int,
    rejected: dict[str, str],
) -> Lalm:
    """The artifact's arrays from what the journal holds; its header is still empty of lineage."""
    from mifuse_cli.artifacts import Header

    clips, k = len(utterances), len(classes)
    probs = np.full((clips, samples, k), np.nan, dtype=np.float32)
    status = np.full((clips, samples), Status.MISSING, dtype=np.uint8)
    order = np.zeros((clips, samples, k), dtype=np.uint8)
    usage = np.full((clips, samples, len(_USAGE)), -1, dtype=np.int32)
    raw, raw_end = bytearray(), np.zeros((clips, samples), dtype=np.int64)
    for ask in asks:
        place = ask.clip, ask.sample
        order[place] = ask.order
        answer = journal.answer(ask.key)
        if answer is not None:
            text, tokens = content_of(answer.raw, answer.choice)
            parsed = parse_answer(text, classes)
            status[place] = parsed.status
            if parsed.probs is not None:
                probs[place] = parsed.probs
            usage[place] = [tokens[name] for name in _USAGE]
            raw += text.encode("utf-8", errors="replace")
        elif ask.key in rejected:
            status[place] = Status.REJECTED
        raw_end[place] = len(raw)
    return Lalm(
        header=Header(classes=classes),
        utt_id=np.array([one.utt_id for one in utterances]),
        audio_sha256=np.array([one.sha256 for one in utterances]),
        probs=probs,
        status=status,
        order=order,
        usage=usage,
        raw=np.frombuffer(bytes(raw), dtype=np.uint8),
        raw_end=raw_end,
    )


def _result(
    out: Path, artifact: Lalm, *, asked: int, up_to_date: bool = False, notes: tuple[str, ...] = ()
) -> QueryLalmResult:
    codes, counts = np.unique(artifact.status, return_counts=True)
    _, mi = fusion.mean_and_mi(artifact.probs.astype(float))
    known = np.where(artifact.usage >= 0, artifact.usage, 0).sum(axis=(0, 1))
    return QueryLalmResult(
        out=out,
        clips=artifact.probs.shape[0],
        samples=artifact.probs.shape[1],
        asked=asked,
        statuses={Status(code).name.lower(): int(n) for code, n in zip(codes, counts, strict=True)},
        without_answer=int(np.isnan(mi).sum()),
        mean_mi=float(np.nanmean(mi)) if not np.isnan(mi).all() else float("nan"),
        tokens={"prompt": int(known[0]), "completion": int(known[1])},
        up_to_date=up_to_date,
        notes=notes,
    )
