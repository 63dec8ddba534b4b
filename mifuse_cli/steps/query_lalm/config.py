"""The options and the result of query-lalm."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mifuse_cli import lalm
from mifuse_cli.config import (
    StepConfig,
    StepResult,
    above_zero,
    at_least,
    one_of,
    option,
    shard_option,
    shard_problems,
    target_problems,
)
from mifuse_cli.errors import UsageError
from mifuse_cli.labels import CLASSES, parse_classes

_CLIPS, _QUESTIONS, _SERVICE, _MONEY, _JOURNAL = "Clips", "Questions", "Service", "Money", "Journal"


@dataclass(frozen=True, kw_only=True)
class QueryLalmConfig(StepConfig):
    """Ask an audio-language model several times about every clip for a distribution over emotions.

    Answers are kept in OUT.journal.sqlite as they come. Run the same command again to go on after an
    interruption, or with a larger --n-samples to ask for more: only what is missing is asked.
    """

    manifest: Path | None = option(None, "CSV of target clips; labels in it are not read.", panel=_CLIPS)
    wav_dir: Path | None = option(None, "Directory of target clips, instead of --manifest.", panel=_CLIPS)
    context_column: str = option(
        "", "Column of the manifest whose text, such as a transcript, the model is shown.", panel=_CLIPS
    )
    max_seconds: float = option(
        30.0, "Longest audio to send, in seconds: many models hear no more, and do not say so.", panel=_CLIPS
    )
    long_clips: str = option(
        "stop",
        f"What to do with clips longer than --max-seconds: {', '.join(lalm.LONG_CLIPS)}.",
        panel=_CLIPS,
    )
    upload: str = option("wav", "Send audio as wav or mp3.", panel=_CLIPS)
    shard: str = shard_option(_CLIPS)
    out: Path = option(help="Artifact to write.", endings=(".h5", ".hdf5"))

    n_samples: int = option(5, "How many times to ask about every clip.", panel=_QUESTIONS)
    classes: str = option(
        ",".join(CLASSES), "Emotion classes, in the order of every probability.", panel=_QUESTIONS
    )
    elicit: str = option(
        "verbalized",
        f"Ask for a share of every label, for one label, or for its letter: {', '.join(lalm.MODES)}.",
        panel=_QUESTIONS,
    )
    temperature: float = option(
        1.0, "Sampling temperature of the model; at 0 there is no uncertainty to measure.", panel=_QUESTIONS
    )
    prompt: Path | None = option(
        None, "YAML file with the texts system, template and refused.", panel=_QUESTIONS
    )
    choices_per_request: int = option(
        1, "Answers that one request asks for: cheaper, but they share one order of labels.", panel=_QUESTIONS
    )
    max_tokens: int | None = option(None, "Most tokens of an answer; default: by --elicit.", panel=_QUESTIONS)
    json_schema: bool = option(
        False, "Send a JSON schema that the server makes every answer follow.", panel=_QUESTIONS
    )
    send_seed: bool = option(False, "Send a seed made from --seed with every request.", panel=_QUESTIONS)
    accept_label_only: bool = option(
        False, "Read an answer that names only one label as probability 1 for it.", panel=_QUESTIONS
    )
    reask: int = option(
        0, "How often to ask one question again if its answer cannot be read.", panel=_QUESTIONS
    )
    reask_refused: int = option(
        0, "How often to ask one question again, in other words, after a refusal.", panel=_QUESTIONS
    )

    model: str = option(help="Name of the model at the endpoint.", panel=_SERVICE)
    service: str = option(
        "",
        "Named profile that sets address and form of the requests: openai, azure, gemini, vllm, dashscope, mistral, "
        "openrouter, or a YAML file.",
        settles=False,
        panel=_SERVICE,
    )
    base_url: str = option(
        "",
        "Address of an OpenAI-compatible endpoint, up to /v1; default: by --service, OPENAI_BASE_URL, else OpenAI's.",
        panel=_SERVICE,
    )
    api_key_file: Path | None = option(
        None,
        "File that holds the API key; default: the variable of --service, else OPENAI_API_KEY.",
        settles=False,
        panel=_SERVICE,
    )
    token_limit: str = option(
        "",
        f"Field with the most tokens of an answer: {', '.join(lalm.TOKEN_LIMITS)}; default: by --service, else the "
        "first.",
        settles=False,
        panel=_SERVICE,
    )
    omit_temperature: bool = option(
        False, "Send no temperature, for services that refuse one.", settles=False, panel=_SERVICE
    )
    audio_part: str = option(
        "",
        f"Form of the audio in a request: {', '.join(lalm.AUDIO_PARTS)}; default: by --service, else the first.",
        settles=False,
        panel=_SERVICE,
    )
    modalities: str = option(
        "",
        "Outputs to ask for, such as text; default: by --service, else none are named.",
        settles=False,
        panel=_SERVICE,
    )
    extra_body: str = option(
        "",
        """Further fields of every request as JSON, such as '{"reasoning_effort": "low"}'.""",
        settles=False,
        panel=_SERVICE,
    )
    extra_headers: str = option(
        "",
        """Further headers of every request as JSON; a value "$NAME" is that of a variable.""",
        settles=False,
        panel=_SERVICE,
    )
    rpm: float | None = option(
        None,
        "Requests per minute that the service allows; without it the limit is found out.",
        settles=False,
        panel=_SERVICE,
    )
    tpm: float | None = option(
        None, "Tokens per minute that the service allows.", settles=False, panel=_SERVICE
    )
    concurrency: int = option(
        64, "Most requests waiting for an answer at the same time.", settles=False, panel=_SERVICE
    )
    timeout: float = option(120.0, "Seconds that one request may take.", settles=False, panel=_SERVICE)
    transport: str = option(
        "live",
        f"{', '.join(lalm.TRANSPORTS)}: one request a question, through the provider's batches (within a day and at a "
        "lower price), or as files for vllm run-batch on a machine of yours.",
        settles=False,
        panel=_SERVICE,
    )
    poll_seconds: float = option(
        60.0,
        "Seconds between two questions to the provider whether a batch is done.",
        settles=False,
        panel=_SERVICE,
    )
    probe: str = option(
        "auto",
        "What to find out about the server first: auto (what the options rely on), all, or off.",
        settles=False,
        panel=_SERVICE,
    )
    stream: bool = option(
        False, "Stream answers, for servers that require it.", settles=False, panel=_SERVICE
    )
    max_unreadable: float = option(
        0.5,
        "Share of the last 50 answers, from 0 to 1, that may be unreadable before the run stops.",
        settles=False,
        panel=_SERVICE,
    )

    yes: bool = option(
        False, "Agree that the audio is sent to a host other than this one.", settles=False, panel=_MONEY
    )
    dry_run: bool = option(
        False, "Send nothing; estimate requests, tokens, cost and hours.", settles=False, panel=_MONEY
    )
    pilot: int | None = option(
        None, "Ask about this many clips only, and project the cost.", settles=False, panel=_MONEY
    )
    budget: float | None = option(
        None, "Most USD that the artifact may cost in all runs.", settles=False, panel=_MONEY
    )
    max_requests: int | None = option(None, "Most requests in all runs.", settles=False, panel=_MONEY)
    prices: Path | None = option(
        None,
        "YAML file of prices, which replace the built-in ones of the same models.",
        settles=False,
        panel=_MONEY,
    )

    reparse: bool = option(
        False,
        "Make the artifact anew from the answers in the journal; the clips are read, nothing is asked.",
        settles=False,
        panel=_JOURNAL,
    )
    save_minutes: float = option(
        5.0,
        "Minutes after which the artifact is saved again while the run goes on.",
        settles=False,
        panel=_JOURNAL,
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from target_problems(self.manifest, self.wav_dir)
        yield from shard_problems(self.shard)
        try:
            parse_classes(self.classes)
        except UsageError as error:
            yield str(error)
        yield from one_of("--elicit", self.elicit, lalm.MODES)
        yield from one_of("--long-clips", self.long_clips, lalm.LONG_CLIPS)
        yield from one_of("--transport", self.transport, lalm.TRANSPORTS)
        yield from one_of("--probe", self.probe, ("auto", "all", "off"))
        if self.stream and self.transport != "live":
            yield "--stream: a batch has no streams"
        yield from one_of("--upload", self.upload, ("wav", "mp3"))
        yield from one_of("--token-limit", self.token_limit, ("", *lalm.TOKEN_LIMITS))
        yield from one_of("--audio-part", self.audio_part, ("", *lalm.AUDIO_PARTS))
        for flag, text, problems in (
            ("--extra-body", self.extra_body, lalm.body_problems),
            ("--extra-headers", self.extra_headers, lalm.header_problems),
        ):
            found = json_object(text)
            if found is None:
                yield f'{flag}: expected a JSON object such as {{"name": "value"}}'
            else:
                yield from (f"{flag}: {problem}" for problem in problems(found))
        yield from at_least("--n-samples", self.n_samples, 1)
        yield from at_least("--choices-per-request", self.choices_per_request, 1)
        if self.choices_per_request > 0 and self.n_samples % self.choices_per_request:
            yield f"--n-samples {self.n_samples}: expected a multiple of --choices-per-request"
        if not 0 <= self.max_unreadable <= 1:
            yield f"--max-unreadable {self.max_unreadable}: expected a share from 0 to 1"
        if self.context_column == "emotion":
            yield "--context-column emotion: the label must not be shown to the model"
        if self.context_column and self.wav_dir:
            yield "--context-column: needs a --manifest"
        for name in ("temperature", "reask", "reask_refused", "budget"):
            yield from at_least(f"--{name.replace('_', '-')}", getattr(self, name) or 0, 0)
        for name in ("concurrency", "max_tokens", "pilot", "max_requests"):
            value = getattr(self, name)
            yield from at_least(f"--{name.replace('_', '-')}", 1 if value is None else value, 1)
        for name in ("timeout", "max_seconds", "save_minutes", "poll_seconds", "rpm", "tpm"):
            value = getattr(self, name)
            yield from above_zero(f"--{name.replace('_', '-')}", 1 if value is None else value)


def json_object(text: str) -> dict[str, Any] | None:
    """The JSON object in an option, empty if the option is; None if it is no such object."""
    try:
        found = json.loads(text) if text.strip() else {}
        json.dumps(found, allow_nan=False)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) else None


@dataclass(frozen=True, kw_only=True)
class QueryLalmResult(StepResult):
    """What was asked and answered.

    Attributes:
        out: the artifact; not written by a dry run.
        clips, samples: U and N.
        asked: number of answers that came in during this run.
        waiting: files of questions that `vllm run-batch` has to answer.
        complete: whether nothing is left to ask.
        statuses: number of answers by the name of their `Status`.
        without_answer: clips without any valid answer.
        mean_mi: mean mutual information over clips with an answer, in nats; None without any.
        tokens: prompt and completion tokens of all answers, as far as the server tells.
        requests: numbers of requests over all runs by what became of them, see `Journal.accounts`.
        spent_usd: what they cost, None without a price.
        unresolved: requests of unknown outcome, which may have been billed: clip and sample.
        volume, estimate: what has to be sent for the whole corpus, and tokens, cost and hours of it, as far as a
            dry run or a pilot could tell.
    """

    clips: int
    samples: int
    asked: int = 0
    waiting: int = 0
    complete: bool = False
    statuses: dict[str, int] = field(default_factory=dict)
    without_answer: int = 0
    mean_mi: float | None = None
    tokens: dict[str, int] = field(default_factory=dict)
    requests: dict[str, int] = field(default_factory=dict)
    spent_usd: float | None = None
    unresolved: tuple[str, ...] = ()
    volume: lalm.Volume | None = None
    estimate: lalm.Estimate | None = None
