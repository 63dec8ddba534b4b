"""From clips to what is asked about: read into the journal, or only counted."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from itertools import islice

from mifuse_cli import audio, lalm
from mifuse_cli.config import Progress
from mifuse_cli.errors import InputError, listed
from mifuse_cli.manifest import Clip, Clips
from mifuse_cli.steps.query_lalm.config import QueryLalmConfig, QueryLalmResult


def _blocks(clips: Iterable[Clip]) -> Iterator[list[Clip]]:
    source = iter(clips)
    while block := list(islice(source, lalm.CLIPS_AT_A_TIME)):
        yield block


def context_of(clip: Clip, config: QueryLalmConfig) -> str:
    """What the prompt tells of the clip, "" if nothing."""
    return clip.extra.get(config.context_column, "").strip()


def read_clips(
    config: QueryLalmConfig,
    clips: Clips,
    options: lalm.QuestionOptions,
    journal: lalm.Journal,
    progress: Progress | None,
) -> None:
    """Decode every clip and note it in the journal as one of this run.

    Raises:
        InputError: naming all clips that cannot be heard; clips that are too long; a context that holds labels.
    """
    number, done = journal.new_run(), 0
    too_long, faults = _TooLong(config), list[str]()
    resolve, labels, contexts = lalm.resolver(options.classes), 0, 0
    for block in _blocks(clips):
        known = journal.known([clip.utt_id for clip in block])
        asked = []
        for clip in block:
            done += 1
            if progress:
                progress("reading", done, len(clips))
            context = context_of(clip, config)
            try:
                one = options.audio.read_clip(clip.utt_id, clip.excerpt, context, known.get(clip.utt_id))
            except InputError as error:
                faults.append(str(error))
                continue
            too_long.look(clip, one.duration)
            contexts, labels = contexts + bool(context), labels + (resolve(context) is not None)
            asked.append(one)
        journal.add_clips(number, asked)
    _refuse(clips, faults)
    too_long.refuse()
    if labels > contexts / 2:
        raise InputError(
            f"{clips.where}: the column {config.context_column!r} names an emotion in {labels} of {contexts} "
            "clips. It seems to hold labels, which must not be shown to the model. Name another column."
        )
    journal.mark_twins(number)


def _refuse(clips: Clips, faults: Sequence[str]) -> None:
    if faults:
        raise InputError(
            f"{clips.where}: {len(faults)} of {len(clips)} clips cannot be heard, so nothing was asked. "
            f"{listed(faults)}"
        )


class _TooLong:
    """Clips that are longer than may be sent, where nothing was said of what to do with them."""

    def __init__(self, config: QueryLalmConfig) -> None:
        self._config = config
        self._found = 0
        self._first = ""

    def look(self, clip: Clip, seconds: float) -> None:
        if self._config.long_clips == "stop" and seconds > self._config.max_seconds:
            self._first = self._first or f"{clip.path} of {seconds:.1f} s"
            self._found += 1

    def refuse(self) -> None:
        if self._found:
            raise InputError(
                f"{self._found} clips are longer than --max-seconds {self._config.max_seconds:g}, first "
                f"{self._first}. Many models hear only the beginning of long audio, and do not say so. Choose "
                "--long-clips skip, crop or chunk, or raise --max-seconds to what the model hears."
            )


def volume_of(
    config: QueryLalmConfig, clips: Clips, options: lalm.QuestionOptions, journal: lalm.Journal | None = None
) -> lalm.Volume:
    """What is to be sent, from durations alone; clips known to the journal by id and file count as unchanged.

    Raises:
        InputError: naming all clips whose duration cannot be read; clips that are too long.
    """
    total, too_long, faults = lalm.Volume(), _TooLong(config), list[str]()
    each = options.n_samples // options.choices_per_request
    for block in _blocks(clips):
        known = journal.known([clip.utt_id for clip in block]) if journal else {}
        for clip in block:
            try:
                seconds = audio.seconds(*clip.excerpt) if clip.duration_s is None else clip.duration_s
            except InputError as error:
                faults.append(str(error))
                continue
            too_long.look(clip, seconds)
            context = context_of(clip, config)
            pieces = options.audio.pieces(seconds)
            requests, one = len(pieces) * each, known.get(clip.utt_id)
            if journal and one and one.excerpt == clip.excerpt:
                now = replace(one, pieces=pieces, context=context)
                requests = sum(1 for _ in lalm.OpenQuestions(options, journal).missing([now]))
            length = pieces[0] if pieces else 0.0
            total += lalm.Volume.of_clip(
                length,
                requests=requests,
                answers=requests * options.choices_per_request,
                upload_bytes=options.audio.upload_bytes(length),
                text_bytes=options.text_bytes(context),
            )
    _refuse(clips, faults)
    too_long.refuse()
    return total


def dry_run(
    config: QueryLalmConfig, clips: Clips, options: lalm.QuestionOptions, price: lalm.Price | None
) -> QueryLalmResult:
    """Estimate a run from durations alone."""
    path, notes = lalm.journal_path(config.out), [priced(config.model, price)]
    journal: AbstractContextManager[lalm.Journal | None] = nullcontext()
    if path.exists():
        try:
            journal = lalm.Journal(path)
        except InputError as error:
            notes.append(f"answers that are there already are not subtracted: {error}")
    with journal as found:
        volume = volume_of(config, clips, options, found)
    guess = lalm.estimate(
        volume,
        price,
        labels=len(options.classes) if options.elicit == "verbalized" else 1,
        max_tokens=options.answer_tokens,
        rpm=config.rpm,
        tpm=config.tpm,
        batch=config.transport == "batch",
    )
    return QueryLalmResult(
        out=config.out,
        clips=len(clips),
        samples=config.n_samples,
        volume=volume,
        estimate=guess,
        notes=tuple(notes),
    )


def priced(model: str, price: lalm.Price | None) -> str:
    """Where the prices of an estimate are from."""
    if price is None:
        return f"the price of {model} is not known; give it in a file with --prices"
    return f"prices of {price.model} as of {price.date} ({price.source})"
