"""The clips to predict: whole files, or windows of recordings."""

from __future__ import annotations

import os
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.errors import InputError, some
from mifuse_cli.manifest import Clip, Clips, audio_below, scan
from mifuse_cli.steps.predict.config import PredictConfig

STDIN = Path("-")


class Part(NamedTuple):
    """A clip or a window.

    Attributes:
        utt_id, excerpt: its id and where it is.
        speaker: who speaks, if that is known.
        state: size and time of the file when it was listed; -1 where there is none.
    """

    utt_id: str
    excerpt: Excerpt
    speaker: str | None = None
    state: tuple[int, int] = (-1, -1)


def parts_of(config: PredictConfig) -> list[Part]:
    """Everything to predict, in the order given, of a directory by id; listed files need not be there.

    Raises:
        InputError: a manifest that cannot be read, a directory without audio, no file at all, a name on the command
            line of nothing.
    """
    if config.files:
        clips: Sequence[Clip] = _named(config.files)
    elif config.wav_dir is not None:
        clips = scan(config.wav_dir)
    else:
        clips = list(Clips(config.manifest, None, need_audio=False))
    parts = [Part(clip.utt_id, Excerpt(clip.path), clip.speaker, _state(clip.path)) for clip in clips]
    if config.segments is None:
        return parts
    return [
        window for part in parts for window in _windows(part, config.segments, config.hop or config.segments)
    ]


def _named(files: Sequence[Path]) -> list[Clip]:
    """Clips of files, directories and the names on stdin; ids are stems, or paths where stems are not unique."""
    absent = [str(file) for file in files if file != STDIN and not os.path.lexists(file)]
    if absent:
        raise InputError(f"{some(absent)}: no such file or directory. Check the name; nothing was predicted.")
    paths = list(dict.fromkeys(_expanded(files)))
    if not paths:
        raise InputError("stdin: names no file. Expected one name a line.")
    stems = Counter(path.stem for path in paths)
    unique = len(stems) == len(paths)
    ids = [path.stem if unique else path.as_posix() for path in paths]
    return [Clip(utt_id, path) for utt_id, path in zip(ids, paths, strict=True)]


def _expanded(files: Sequence[Path]) -> Iterator[Path]:
    for file in files:
        if file == STDIN:
            yield from _on_stdin()
        elif file.is_dir():
            found = [file / name for name in sorted(audio_below(file))]
            if not found:
                raise InputError(
                    f"{file}: holds no audio ({', '.join(audio.SUFFIXES)}). Check the directory."
                )
            yield from found
        else:
            yield file


def _on_stdin() -> Iterator[Path]:
    """Names on stdin, between line ends, or between zero bytes as of ``find -print0``."""
    text = sys.stdin.buffer.read()
    names = text.split(b"\0") if b"\0" in text else text.splitlines()
    return (Path(os.fsdecode(name)) for name in names if name.strip())


def _windows(part: Part, length: float, hop: float) -> Iterator[Part]:
    """Windows of a recording: all of the same length, so the last one ends with the recording and may overlap more.

    A recording that is no longer than one window is one, and so is a file that cannot be read.
    """
    path, start, _, channel = part.excerpt
    try:
        seconds = audio.seconds(*part.excerpt)
    except InputError:  # told when it is read
        yield part
        return
    bounds, number = [(0.0, min(length, seconds))], 1
    while bounds[-1][1] < seconds:
        begin = min(number * hop, seconds - length)
        bounds.append((begin, min(begin + length, seconds)))
        number += 1
    for begin, end in bounds:
        begin, end = round(start + begin, 6), round(start + end, 6)
        name = f"{part.utt_id}_{_digits(begin)}-{_digits(end)}"
        yield part._replace(utt_id=name, excerpt=Excerpt(path, begin, end, channel))


def _state(path: Path) -> tuple[int, int]:
    try:
        state = path.stat()
    except OSError:  # told when it is read
        return -1, -1
    return state.st_size, state.st_mtime_ns


def _digits(seconds: float) -> str:
    return f"{seconds:.6f}".rstrip("0").rstrip(".") or "0"
