"""``mifuse query-lalm``: ask an audio-language model several times about every clip."""

from __future__ import annotations

import logging
import os
import shlex
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from mifuse_cli import artifacts, audio, lalm, lineage, provenance
from mifuse_cli.artifacts import Lalm
from mifuse_cli.config import Progress, options_of
from mifuse_cli.errors import (
    ArtifactError,
    InputError,
    RemoteError,
    UsageError,
    duration_of,
    number_of,
    size_of,
)
from mifuse_cli.files import check_place, refuse_links, remove_leftovers
from mifuse_cli.labels import parse_classes
from mifuse_cli.manifest import Clips
from mifuse_cli.steps.query_lalm.addressing import address, api_key, profile_of
from mifuse_cli.steps.query_lalm.config import QueryLalmConfig, QueryLalmResult
from mifuse_cli.steps.query_lalm.reading import context_of, dry_run, priced, read_clips, volume_of
from mifuse_cli.steps.query_lalm.saving import (
    batch_directory,
    parents_of,
    save_artifact,
    summary_of,
)

__all__ = ["QueryLalmConfig", "QueryLalmResult", "query_lalm"]

_log = logging.getLogger("mifuse")


def query_lalm(config: QueryLalmConfig, *, progress: Progress | None = None) -> QueryLalmResult:
    """Ask what the journal has no answer to yet, then derive the artifact from the journal.

    Every clip is decoded before the first question is sent. The key is read from ``api_key_file``, else
    from the environment variable of the service or OPENAI_API_KEY, and only if something is to be asked.
    SIGINT and SIGTERM let what is under way come in; then, as after an error, the artifact is saved as far
    as it goes.

    Raises:
        InputError: clips that cannot be read, no API key, a journal in use.
        ArtifactError: ``out`` holds answers to other questions (another model, prompt, class list, ...) or is of
            another kind.
        RemoteError: the service failed, or a budget is used up; answers so far are kept.
        UsageError: audio would leave this machine without ``yes``; a budget for a model without a price; an
            address that is none.
        KeyboardInterrupt: after a signal, unless an error ended the run.
    """
    classes = parse_classes(config.classes)
    as_files = config.transport == "vllm-batch"
    if as_files and not (config.service or config.base_url):
        config = replace(config, service="vllm")
    profile = profile_of(config)
    base_url = address(config, profile)
    lalm.check_address(base_url)
    config = replace(config, base_url=base_url)
    clips = Clips(config.manifest, config.wav_dir, shard=config.shard)
    if config.context_column and config.context_column not in clips.columns:
        raise InputError(
            f"{clips.where}: has no column {config.context_column!r} (found: {', '.join(clips.columns)}). "
            "Name the column that holds the text."
        )
    options = options_of(
        config,
        lalm.QuestionOptions,
        host=lalm.host_of(config.base_url),
        wording=lalm.read_wording(config.prompt, config.elicit, context=bool(config.context_column)),
        classes=classes,
        seed=config.seed if config.send_seed else None,
        audio=options_of(config, lalm.AudioOptions),
        dialect=profile.dialect,
    )
    price = lalm.price_of(config.model, lalm.read_prices(config.prices))
    if config.budget is not None and price is None:
        raise UsageError(
            f"--budget: the price of {config.model} is not known. Give it in a file with --prices, or limit "
            "the number of requests with --max-requests."
        )
    if config.dry_run:
        return dry_run(config, clips, options, price)
    lineage.refuse_inputs(config, config.out)
    refuse_links(lalm.journal_path(config.out), lalm.journal_path(config.out).with_suffix(".sqlite.lock"))
    if config.force and os.path.lexists(config.out):
        lineage.refuse_other(config.out, Lalm)
    if config.update and config.out.exists():
        ordered = sorted(clips, key=lambda clip: clip.utt_id)
        files = ((one.utt_id, audio.key(*one.excerpt)) for one in ordered)
        texts = ((one.utt_id, context_of(one, config)) for one in ordered)
        parents = parents_of(config, clips.where, files, texts)
        if lineage.is_current(config, config.out, parents) and _holds_all(config.out, options.spec()):
            lalm.Journal.tidy(lalm.journal_path(config.out))
            return replace(summary_of(config.out), up_to_date=True)
    check_place(config.out)
    if config.out.exists() and not config.force:
        _refuse_to_replace(config.out, options.spec(), update=config.update)
    if not config.reparse and not lalm.journal_path(config.out).exists():
        # Everything is to be asked, so what would stop that later can stop it before clips are decoded.
        if not as_files:
            api_key(config, profile)
            lalm.check_environment()
        if not _agreed(config):
            raise _refusal(config, _amount(config, volume_of(config, clips, options)))
    with lalm.Journal(lalm.journal_path(config.out)) as journal:
        remove_leftovers(config.out)
        journal.settle_unread()
        journal.add_spec(options.spec())
        read_clips(config, clips, options, journal, progress)
        return _run(config, profile, clips, lalm.OpenQuestions(options, journal), price, progress)


def _holds_all(out: Path, spec: dict[str, Any]) -> bool:
    """Whether an artifact has all answers to these questions, as this parser reads them.

    The text of a prompt file is no setting, but changes the questions.
    """
    made = artifacts.read_header(out)[1].parameters
    read = made.get("parser_version") == lalm.PARSER_VERSION
    return read and made.get("spec") == spec and made.get("complete", False)


def _refuse_to_replace(out: Path, spec: dict[str, Any], *, update: bool) -> None:
    """Refuse to write over another kind of artifact or, without ``update``, over answers to other questions."""
    kind, header = artifacts.read_header(out)
    otherwise = "Choose another --out, or pass --force to replace it"
    if kind != Lalm.kind:
        raise ArtifactError(f"{out}: is of kind {kind!r}, expected {Lalm.kind!r}. Choose another --out.")
    if update:
        return
    asked = header.parameters.get("spec")
    if asked is None:
        raise ArtifactError(
            f"{out}: was made by an older mifuse and does not say what was asked. {otherwise}."
        )
    changed = sorted(name for name in spec.keys() | asked.keys() if spec.get(name) != asked.get(name))
    if changed:
        raise ArtifactError(
            f"{out}: holds answers to other questions: {', '.join(changed)} changed. "
            f"{otherwise} (the answers stay in its journal)."
        )


def _run(
    config: QueryLalmConfig,
    profile: lalm.Profile,
    clips: Clips,
    whole: lalm.OpenQuestions,
    price: lalm.Price | None,
    progress: Progress | None,
) -> QueryLalmResult:
    """Ask what is missing, unless told not to, and save the artifact."""
    options, journal, questions = whole.options, whole.journal, whole
    if config.pilot:
        questions = lalm.OpenQuestions(options, journal, only=_drawn(config, journal))
    volume = questions.volume()

    def save() -> QueryLalmResult:
        return save_artifact(config, clips.where, whole, price)

    ended = None
    # Batches of an earlier run are collected even if all that they were made for is there by now.
    waiting = config.transport != "live" and journal.open_batches(
        lalm.provider_of(config.transport, config.base_url)
    )
    if not config.reparse and (volume.requests or options.rounds or waiting):
        ended = _ask(config, profile, questions, volume, price, save, progress)
    early = ended is not None and bool(ended.interrupted or ended.error or ended.failed)
    result = None
    try:
        # Before the first answer there is nothing to save, and a run that ended early is no reason to.
        if journal.has_answers() or not early:
            result = save()
    except Exception as error:
        if not early:
            raise
        _log.warning("%s could not be saved: %s", config.out, error)
    if ended and ended.error:
        raise ended.error
    if ended and ended.interrupted:
        raise KeyboardInterrupt
    if ended and ended.failed:
        raise RemoteError(
            f"{len(ended.failed)} of {volume.requests} questions got no answer, the last one because of: "
            f"{list(ended.failed.values())[-1].rstrip('.')}. The {ended.answered} answers of this run are kept; "
            "run the same command again to ask what is missing."
        )
    assert result is not None
    if unreadable := _unreadable(config, result):
        raise unreadable
    result = replace(result, asked=ended.answered if ended else 0)
    if ended and ended.waiting:
        return replace(
            result, waiting=ended.waiting, notes=(*result.notes, _to_answer(config, ended.waiting))
        )
    return _projected(config, result, questions, whole, price) if config.pilot else result


_UNREADABLE_ADVICE = {
    "truncated": f"The token limit cut them off. {lalm.THINKING}",
    "label_only": "They name one label and no numbers: pass --accept-label-only, or ask with --elicit label.",
    "refused": "The model refuses: ask again in other words with --reask-refused 1, or choose another model.",
    "rejected": "The service rejects the audio: check --upload, --audio-part and the model.",
}


def _to_answer(config: QueryLalmConfig, files: int) -> str:
    """What has to happen to questions that wait in files."""
    directory = shlex.quote(str(batch_directory(config.out)))
    return (
        f"{files} {'file' if files == 1 else 'files'} with questions: see {directory}. Run the same command again "
        "when they are answered, where the model fits:\n"
        f'for q in {directory}/*.in.jsonl; do vllm run-batch -i "$q" -o "${{q%.in.jsonl}}.out.jsonl" '
        f"--model {shlex.quote(config.model)}; done"
    )


def _unreadable(config: QueryLalmConfig, result: QueryLalmResult) -> RemoteError | None:
    """The error of a run of whose answers not one can be read."""
    got = {name: number for name, number in result.statuses.items() if name not in ("missing", "skipped")}
    if not got or "ok" in got:
        return None
    most = max(got, key=lambda name: got[name])
    said = ", ".join(f"{name.replace('_', ' ')} {number}" for name, number in got.items())
    what = _UNREADABLE_ADVICE.get(most, "Check the prompt and the model.")
    return RemoteError(
        f"{config.out}: holds {sum(got.values())} answers, and no distribution can be read from any ({said}). "
        f"{what} The answers are kept in {lalm.journal_path(config.out).name}; --reparse reads them again."
    )


def _projected(
    config: QueryLalmConfig,
    result: QueryLalmResult,
    pilot: lalm.OpenQuestions,
    whole: lalm.OpenQuestions,
    price: lalm.Price | None,
) -> QueryLalmResult:
    """The result of a pilot with what the whole corpus will take, if the pilot could find that out."""
    assert pilot.only
    seen = lalm.observations(pilot, price, batch=config.transport == "batch")
    notes = list(result.notes)
    if silent := len(pilot.only) - len(seen):
        notes.append(
            f"the tokens of {silent} of the {len(pilot.only)} clips of the pilot are not known (rejected, or the "
            "server does not tell); the projection leaves them out"
        )
    if not seen:
        return replace(result, notes=tuple(notes))
    total = whole.volume(missing=False)
    guess = lalm.calibrated(seen, total, rpm=config.rpm, tpm=config.tpm)
    notes += [priced(config.model, price), f"projected from {len(seen)} clips drawn at random"]
    return replace(result, volume=total, estimate=guess, notes=tuple(notes))


def _drawn(config: QueryLalmConfig, journal: lalm.Journal) -> frozenset[str]:
    """Ids of the clips of a pilot: a uniform sample drawn in one pass."""
    rng = provenance.rng(config.seed, "pilot")
    assert config.pilot
    drawn: list[str] = []
    seen = 0
    for block in journal.clips():
        for one in block:
            if one.twin or not one.pieces:
                continue
            seen += 1
            if len(drawn) < config.pilot:
                drawn.append(one.utt_id)
            elif (place := int(rng.integers(seen))) < config.pilot:
                drawn[place] = one.utt_id
    if not drawn:
        raise InputError(
            f"--pilot: there is no clip to ask about: all are longer than --max-seconds {config.max_seconds:g} and "
            "left out. Choose --long-clips crop or chunk, or raise --max-seconds."
        )
    return frozenset(drawn)


def _ask(
    config: QueryLalmConfig,
    profile: lalm.Profile,
    questions: lalm.OpenQuestions,
    volume: lalm.Volume,
    price: lalm.Price | None,
    save: Callable[[], QueryLalmResult],
    progress: Progress | None,
) -> lalm.RunState:
    host, sends = questions.options.host, bool(volume.requests or questions.options.rounds)
    what = _amount(config, volume) if volume.requests else "questions to ask again"
    if sends and not _agreed(config):
        raise _refusal(config, what)
    service = options_of(
        config,
        lalm.ServiceOptions,
        api_key="" if config.transport == "vllm-batch" else api_key(config, profile),
        batch_directory=batch_directory(config.out),
        price=price,
        stream=profile.stream and config.transport == "live",
        headers=profile.extra_headers,
        key_header=profile.key_header,
    )
    as_files = config.transport == "vllm-batch"
    if profile.source and not as_files:
        _log.info("requests in the form that %s described on %s", profile.source, profile.date)
    if as_files:
        _log.info("questions and answers are files in %s", service.batch_directory)
    elif sends:
        _log.info("sending %s to %s", what, host)
    else:
        _log.info("collecting open batches from %s", host)
    accounts = questions.journal.accounts()
    if config.budget is not None and accounts["answered"] and not accounts["spent"]:
        _log.info(
            "%d earlier answers were made without a price and are not in the budget", accounts["answered"]
        )

    def report(done: int, total: int, facts: Mapping[str, Any]) -> None:
        if progress:
            progress("asking", done, total, facts)

    return lalm.run(questions, service, answers=volume.answers, save=save, report=report)


def _amount(config: QueryLalmConfig, volume: lalm.Volume) -> str:
    """What is sent, for a person to agree to."""
    drawn = f"a pilot of {config.pilot} clips out of " if config.pilot and config.pilot < volume.clips else ""
    return (
        f"{drawn}{number_of(volume.requests, 'request')} with {duration_of(volume.seconds)} of speech in all "
        f"({size_of(volume.upload_bytes)}, {number_of(volume.clips, 'clip')})"
    )


def _agreed(config: QueryLalmConfig) -> bool:
    """Whether audio may be sent to the host."""
    return config.yes or config.transport == "vllm-batch" or lalm.is_local(config.base_url)


def _refusal(config: QueryLalmConfig, what: str) -> UsageError:
    host = lalm.host_of(config.base_url)
    return UsageError(f"{what} would be sent to {host}. Pass --yes if the speakers' consent covers that.")
