"""Decoding every selected clip, and running the commands that produce clips."""

from __future__ import annotations

import subprocess
import unicodedata
from collections.abc import Sequence
from pathlib import Path

from mifuse_cli import audio
from mifuse_cli.config import Progress
from mifuse_cli.corpora import Corpus, Utterance
from mifuse_cli.corpora.selection import Chosen
from mifuse_cli.errors import InputError, UsageError, listed
from mifuse_cli.listing import portable_id
from mifuse_cli.steps.prepare.config import PrepareConfig
from mifuse_cli.steps.prepare.writing import Row


def hear(
    config: PrepareConfig,
    corpus: Corpus,
    chosen: Sequence[Chosen],
    directory: Path,
    progress: Progress | None,
) -> tuple[list[Row], list[str]]:
    """Rows with the duration of every clip, and why others were left out.

    Args:
        config: whether clips may be left out, and whether commands may be run.
        corpus: where they are from.
        chosen: at least one clip.
        directory: output of commands is written to its ``audio``.
        progress: called as clips are looked at.

    Raises:
        UsageError: commands that may not be run.
        InputError: clips without audio that can be heard, unless they may be left out; no clip with audio.
    """
    commands = [one.utterance for one in chosen if one.utterance.command]
    if commands and not config.allow_pipes:
        raise UsageError(
            f"{config.root}: {len(commands)} clips are commands, first {commands[0].command!r} of "
            f"{commands[0].utt_id}. They can do anything that you can: read wav.scp, then pass --allow-pipes "
            "to run them and keep the audio they write."
        )
    rows, faults, made = [], list[str](), dict[str, Path]()
    for done, (one, emotion) in enumerate(chosen, start=1):
        try:
            if one.command and one.command not in made:
                made[one.command] = _made(one, directory)
            path = made[one.command] if one.command else one.path
            if path is None or not path.is_file():
                found = "has no audio file" if path is None else f"{path} is no file"
                raise InputError(f"{one.utt_id}: {found}. Correct its path, or leave the clip out.")
            shown = path.relative_to(directory) if one.command else path
            if not str(shown).isascii() and portable_id(str(shown)) != unicodedata.normalize(
                "NFC", str(shown)
            ):
                raise InputError(
                    f"{portable_id(str(shown))}: its name is not UTF-8, as a manifest has to be. Rename the file, for "
                    "instance with convmv -f latin1 -t utf8."
                )
            rows.append(Row(one, emotion, shown.as_posix(), audio.check(path, *one.bounds)))
        except InputError as error:
            faults.append(str(error))
        if progress:
            progress("listening", done, len(chosen))
    if faults and not (config.allow_missing and rows):
        raise InputError(
            f"{corpus.name}: {len(faults)} of {len(chosen)} clips cannot be heard: {listed(faults)} Complete the copy"
            + (", or pass --allow-missing to leave them out." if rows else ".")
        )
    return rows, faults


def _made(one: Utterance, directory: Path) -> Path:
    """The audio that the utterance's command writes, as a file."""
    if "/" in one.utt_id or one.utt_id.startswith("."):
        raise InputError(f"{one.utt_id}: cannot be the name of a file. Rename the utterance.")
    path = directory / "audio" / f"{one.utt_id}.wav"
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        done = subprocess.run(
            ["sh", "-c", one.command],
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.PIPE,
            check=False,
        )
    if done.returncode:
        said = done.stderr.decode(errors="replace").strip().splitlines()[-1:] or [""]
        raise InputError(
            f"{one.utt_id}: the command {one.command!r} ended with exit code {done.returncode}: {said[0]}"
        )
    return path
