"""Reading audio files as float32 at 16 kHz mono, cutting them, and encoding them for sending."""

from __future__ import annotations

import hashlib
import io
import math
import mmap
import os
import re
import shutil
import subprocess
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryFile
from typing import IO, TYPE_CHECKING, NamedTuple

import numpy as np

from mifuse_cli.errors import DependencyError, InputError

if TYPE_CHECKING:
    import soundfile

RATE = 16_000
SUFFIXES = (".wav", ".flac", ".ogg", ".oga", ".opus", ".mp3", ".aiff", ".aif", ".aifc", ".caf")
"""Endings of files that libsndfile decodes."""
_WITH_FFMPEG = (".m4a", ".mp4", ".aac", ".wma", ".amr", ".webm")
"""Endings of files that are taken where ffmpeg is there to decode them."""
NOT_DECODED = (
    *_WITH_FFMPEG,
    ".mka",
    ".mkv",
    ".mov",
    ".avi",
    ".3gp",
    ".sph",
    ".ape",
    ".wv",
    ".ac3",
    ".mpga",
    ".au",
    ".snd",
)
"""Endings of files with sound that may not be taken."""
_DECODING_S = 300
_BEYOND_S = 0.1
"""How far a clip may end behind its recording, in seconds: annotators' times are rounded."""
_SHORT = 0.01
"""Share of what the header tells of that may be missing: MP3 rounds to frames."""
_BLOCK = 1 << 20
_RATES = (1_000, 1_000_000)
"""Sampling rates in Hz that are taken; with any other, a header is damaged, and a small file may be hours long."""
_OPEN_END = 1 << 62
"""Frames of a file whose header does not tell their number."""
_SILENT_PEAK = 1e-4
"""Largest sample of what is silent: three steps of 16 bits."""
_LARGEST_PEAK = 10.0
"""Largest sample in floating point; loud recordings exceed 1 a little, those at the scale of 16 bits by far."""
_CANCELLED = 0.02
"""Share of the power of the channels that is left in their mean; of unlike channels half is left."""
_LARGEST_OFFSET = 0.1
"""Largest mean of the samples, unless the sound is larger."""
_LFS = b"version https://git-lfs"
_LARGEST_FILTER = 1 << 20
"""Weights that torchaudio's filter may have. It has a set for every phase between the two rates: 70,560 weights at
44,100 Hz, 282,240 at 11,025 Hz, but 178 million at 11,127 Hz (3.4 GiB while they are made) and 706 million at
44,101 Hz (12 GiB)."""
_CROSSINGS, _ROLLOFF = 6, 0.99
"""Torchaudio's filter: zero crossings of the sinc on either side; cut-off as a share of the lower Nyquist rate."""
_CHUNK = 1 << 14
"""Samples that are resampled at a time where weights are made as they are needed."""
_PIECE = 4096
"""Bytes in the middle of a file by which it is told from others of the same size."""


class Excerpt(NamedTuple):
    """A recording, or the part of it that is one clip; `read` and the others take its fields.

    Attributes:
        path: the file.
        start, end: in seconds; None for the end of the file.
        channel: counted from 0; None for the mean of all.
    """

    path: Path
    start: float = 0.0
    end: float | None = None
    channel: int | None = None


def suffixes() -> tuple[str, ...]:
    """Endings of names that are taken for audio: those with a decoder on this machine."""
    return SUFFIXES + (_WITH_FFMPEG if shutil.which("ffmpeg") else ())


def read(path: Path, start: float = 0.0, end: float | None = None, channel: int | None = None) -> np.ndarray:
    """Samples (S,) float32 of one clip at 16 kHz, channels averaged unless one is chosen.

    Raises:
        InputError: the file cannot be decoded or is cut off, ends before the clip does, lacks the channel, or holds
            nothing that could be heard: no samples, NaN or infinity, silence, a constant, channels that cancel each
            other, or floating-point samples that are not in [-1, 1].
    """
    mono, rate = _heard(Excerpt(path, start, end, channel))
    return np.ascontiguousarray(mono if rate == RATE else resampled(mono, rate))


def check(path: Path, start: float = 0.0, end: float | None = None, channel: int | None = None) -> float:
    """Duration in seconds of a clip that `read` can read; it is decoded, but not resampled.

    Raises:
        InputError: as `read`.
    """
    mono, rate = _heard(Excerpt(path, start, end, channel))
    return len(mono) / rate


def key(path: Path, start: float = 0.0, end: float | None = None, channel: int | None = None) -> str:
    """Hex SHA-256 that stands for the content of a clip: of the file's bytes, and of its bounds if it has any.

    Raises:
        InputError: the file cannot be read.
    """
    if not start and end is None and channel is None:
        return file_sha256(path)
    whole = _kept_sha256(path, *_state(path))
    return hashlib.sha256(f"{whole} {start:.6f} {end} {channel}".encode()).hexdigest()


def resampled(samples: np.ndarray, rate: int) -> np.ndarray:
    """Samples (S,) float32 at ``rate`` Hz as (ceil(16000 S / rate),) float32 at 16 kHz, low-pass filtered.

    The filter is torchaudio's windowed sinc at every rate. Its weights repeat after 16000 / gcd(rate, 16000) samples;
    where these are too many to hold, those of each sample are made as it is reached, so that memory stays small.
    """
    divisor = math.gcd(rate, RATE)
    if (RATE // divisor) * (rate // divisor) <= _LARGEST_FILTER:
        import torch
        from torchaudio.functional import resample

        return resample(torch.from_numpy(samples), rate, RATE).numpy()
    cutoff = min(1.0, RATE / rate) * _ROLLOFF  # in cycles of the sinc a sample of the input
    width = math.ceil(_CROSSINGS / cutoff)
    padded = np.pad(samples, width)
    found = np.empty(-(-RATE * len(samples) // rate), dtype=np.float32)
    for start in range(0, len(found), _CHUNK):
        # In whole numbers, since times in seconds would lose precision towards the end of a long clip.
        whole, rest = np.divmod(np.arange(start, min(start + _CHUNK, len(found))) * rate, RATE)
        taps = np.arange(-width, width + 1)
        phase = ((taps - rest[:, None] / RATE) * cutoff).astype(np.float32).clip(-_CROSSINGS, _CROSSINGS)
        weights = np.sinc(phase) * np.cos(phase * np.float32(np.pi / _CROSSINGS / 2)) ** 2
        near = padded[whole[:, None] + (taps + width)]
        found[start : start + len(whole)] = cutoff * np.einsum("nt,nt->n", weights, near)
    return found


def seconds(path: Path, start: float = 0.0, end: float | None = None, channel: int | None = None) -> float:
    """Duration of one clip by its header, in seconds; the samples are not decoded.

    Raises:
        InputError: the file is no audio or is empty, or ends before the clip does.
    """
    excerpt = Excerpt(path, start, end, channel)
    with _opened(excerpt) as file:
        first, last = _frames(excerpt, file.frames, file.samplerate)
        return (last - first) / file.samplerate


def channels(path: Path) -> int:
    """Number of channels of a file.

    Raises:
        InputError: the file is no audio.
    """
    with _opened(Excerpt(path)) as file:
        return int(file.channels)


def crop(samples: np.ndarray, seconds: float) -> np.ndarray:
    """The middle of ``samples`` (S,), at most ``seconds`` long; all of them if they are no longer."""
    keep = min(_whole_samples(seconds), len(samples))
    start = (len(samples) - keep) // 2
    return samples[start : start + keep]


def chunks(samples: np.ndarray, seconds: float) -> list[np.ndarray]:
    """The fewest consecutive pieces of ``samples`` (S,) of at most ``seconds``, equal to within one sample."""
    return np.array_split(samples, max(1, -(-len(samples) // _whole_samples(seconds))))


def wav_bytes(samples: np.ndarray) -> bytes:
    """A 16 kHz mono 16-bit WAV file of ``samples`` (S,) in [-1, 1]; exact for audio that was 16-bit."""
    pcm = np.clip(np.round(samples * 32768.0), -32768, 32767).astype("<i2")
    buffer = io.BytesIO()
    with wave.open(buffer, "wb") as out:
        out.setnchannels(1)
        out.setsampwidth(2)
        out.setframerate(RATE)
        out.writeframes(pcm.tobytes())
    return buffer.getvalue()


def mp3_bytes(samples: np.ndarray) -> bytes:
    """A 16 kHz mono MP3 file of ``samples`` (S,) in [-1, 1], at a variable rate of about 50 kbit/s for speech.

    Raises:
        DependencyError: the installed libsndfile cannot write MP3.
    """
    import soundfile

    if "MP3" not in soundfile.available_formats():
        raise DependencyError(
            f"libsndfile {soundfile.__libsndfile_version__} cannot write MP3, expected 1.1 or later, built "
            "with MP3 support. Install the soundfile wheel from PyPI, which brings its own, or send WAV."
        )
    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), RATE, format="MP3")
    return buffer.getvalue()


def flac_bytes(samples: np.ndarray) -> bytes:
    """A 16 kHz mono 16-bit FLAC file of ``samples`` (S,) in [-1, 1]; half as large as WAV and as exact."""
    import soundfile

    buffer = io.BytesIO()
    soundfile.write(buffer, np.clip(samples, -1, 1), RATE, format="FLAC", subtype="PCM_16")
    return buffer.getvalue()


def file_sha256(path: Path) -> str:
    """Hex SHA-256 of a file's bytes.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None


def fingerprint(path: Path, start: float = 0.0, end: float | None = None, channel: int | None = None) -> int:
    """A number below 2**64 that copies of a clip share and other clips hardly ever; it takes no reading of all of it.

    Raises:
        InputError: the file cannot be read.
    """
    try:
        with path.open("rb") as file:
            size = os.fstat(file.fileno()).st_size
            file.seek(max(0, size - _PIECE) // 2)
            text = f"{size} {start:.6f} {end} {channel} ".encode() + file.read(_PIECE)
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    return int.from_bytes(hashlib.blake2b(text, digest_size=8).digest(), "big")


def _whole_samples(seconds: float) -> int:
    """Samples that fit into ``seconds``, at least one; the margin absorbs rounding, as in 0.29 * 16000."""
    return max(1, int(seconds * RATE + 1e-6))


def _state(path: Path) -> tuple[int, ...]:
    try:
        state = path.stat()
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror}).") from None
    return state.st_mtime_ns, state.st_size, state.st_ino


@lru_cache(maxsize=16)
def _kept_sha256(path: Path, *state: int) -> str:
    """Hash of a recording, taken once for all its clips while the file's time, size and inode stay as they are."""
    return file_sha256(path)


def _heard(excerpt: Excerpt) -> tuple[np.ndarray, int]:
    """Samples (S,) float32 of a clip at the rate of its file, and this rate in Hz."""
    with _opened(excerpt) as file:
        first, last = _frames(excerpt, file.frames, file.samplerate)
        if excerpt.channel is not None and excerpt.channel >= file.channels:
            raise InputError(
                f"{excerpt.path}: has {file.channels} channels, expected at least {excerpt.channel + 1}. Correct the "
                "column 'channel'."
            )
        samples, rate = _decoded(file, excerpt.path, first, last), file.samplerate
    if excerpt.channel is not None:
        samples = samples[:, excerpt.channel : excerpt.channel + 1]
    mono = samples[:, 0] if samples.shape[1] == 1 else samples.mean(axis=1)
    if fault := _fault(samples, mono):
        part = (
            f", {excerpt.start:g} to {excerpt.end or last / rate:g} s" if excerpt[1:3] != (0.0, None) else ""
        )
        raise InputError(f"{excerpt.path}{part}: {fault}")
    return mono, rate


def _frames(excerpt: Excerpt, frames: int, rate: int) -> tuple[int, int]:
    """First frame of a clip and the one behind its last, in a file of so many frames."""
    path, start, end, _ = excerpt
    if frames == 0:
        raise InputError(f"{path}: holds no audio samples. Replace the file or leave it out.")
    first, last = round(start * rate), frames if end is None else round(end * rate)
    if first >= frames or last > frames + _BEYOND_S * rate:
        until = "" if end is None else f" to {end:g} s"
        raise InputError(
            f"{path}: the clip is from {start:g} s{until}, but the file ends at {frames / rate:g} s. Expected start "
            "and end in seconds within the file. Correct the row, or rename columns that speak of another recording."
        )
    if first >= min(last, frames):
        raise InputError(
            f"{path}: the clip from {start:g} to {end:g} s is shorter than one sample. Drop its row."
        )
    return first, min(last, frames)


def _decoded(file: soundfile.SoundFile, path: Path, first: int, last: int) -> np.ndarray:
    """Samples (S, channels) float32 of the frames from ``first`` to before ``last``."""
    whole = (first, last) == (0, file.frames)
    if first and file.seekable():
        file.seek(first)
        wanted, before = last - first, 0
    else:
        wanted, before = last, first
    blocks, found = [], 0
    while found < wanted:  # a header may claim more than memory holds
        block = file.read(min(_BLOCK, wanted - found), dtype="float32", always_2d=True)
        if not len(block):
            break
        blocks.append(block)
        found += len(block)
    if whole and file.format == "OGG" and _is_chained(path):
        raise InputError(
            f"{path}: is made of several Ogg streams one after another, of which only the first can be decoded. Make "
            "one of them, for instance by ffmpeg -i IN.ogg OUT.flac."
        )
    declared = _declared_frames(file) if whole else None
    if found < wanted * (1 - _SHORT) - 1 or (declared or 0) * (1 - _SHORT) > found + 1:
        raise InputError(
            f"{path}: is cut off: its header tells of {(declared or wanted) / file.samplerate:.2f} s, of which "
            f"{found / file.samplerate:.2f} s are there. Replace the file or leave it out."
        )
    return np.concatenate(blocks)[before:] if blocks else np.zeros((0, file.channels), np.float32)


def _declared_frames(file: soundfile.SoundFile) -> int | None:
    """Frames that the header of a WAV or AIFF file tells of, if they are not all there; None if it does not know.

    Programs that write into a pipe leave the length open, as 0 or the largest number.
    """
    told = re.search(
        r"^ *(?:data|SSND) : (\d+|0x[0-9A-Fa-f]+) \(should be (\d+)\)", file.extra_info, re.MULTILINE
    )
    if not told:
        return None
    size, there = int(told[1], 0), int(told[2])
    if not there < size < 0x7FFFF000:
        return None
    return round(file.frames * size / there) if there else None


def _fault(samples: np.ndarray, mono: np.ndarray) -> str:
    """What is wrong with samples (S, channels) and their mean (S,), in a sentence; "" if nothing is."""
    if not mono.size:
        return "holds no audio samples. Replace the file or leave it out."
    peak = float(np.abs(samples).max())
    if not math.isfinite(peak):
        return "holds NaN or infinite samples. Replace the file or leave it out."
    if peak > _LARGEST_PEAK:
        return (
            f"its floating-point samples reach {peak:.6g}, expected at most 1. They seem to be at the scale of whole "
            "numbers: divide them by 32768, or write 16-bit samples."
        )
    power = float(np.mean(np.square(samples - samples.mean(axis=0), dtype=np.float64)))
    if peak < _SILENT_PEAK:
        return "is silent throughout. Replace the file or leave it out."
    if power < _SILENT_PEAK**2:
        return (
            f"holds one constant value ({float(mono[0]):.4g}) and no sound. Replace the file or leave it out."
        )
    offset = float(mono.mean(dtype=np.float64))
    left = float(np.mean(np.square(mono - offset, dtype=np.float64)))
    if left < _CANCELLED * power:
        return (
            "its channels are of opposite phase and cancel each other in their mean. Choose one of them with a column "
            "'channel' (left or right), or invert one."
        )
    if abs(offset) > max(_LARGEST_OFFSET, math.sqrt(left)):
        return (
            f"its samples are shifted by a constant of {offset:.3g} (DC), which is more than the sound itself. Remove "
            "it, for instance with sox highpass 10, or leave it out."
        )
    return ""


@contextmanager
def _opened(excerpt: Excerpt) -> Iterator[soundfile.SoundFile]:
    """The file of a clip, opened for decoding."""
    import soundfile

    path = excerpt.path
    try:
        try:
            # As bytes: names of files need not be UTF-8.
            file = soundfile.SoundFile(os.fsencode(path))
        except soundfile.SoundFileError:
            if path.suffix.lower() not in _WITH_FFMPEG:
                raise
            file = soundfile.SoundFile(io.BytesIO(_by_ffmpeg(path)))
        with file:
            if not _RATES[0] <= file.samplerate <= _RATES[1]:
                raise InputError(
                    f"{path}: its header tells of a sampling rate of {file.samplerate:,} Hz, expected {_RATES[0]:,} to "
                    f"{_RATES[1]:,} Hz. Correct the header, or leave the file out."
                )
            if file.frames < _OPEN_END:
                yield file
                return
        with soundfile.SoundFile(_to_its_end(path)) as file:
            yield file
    except (soundfile.SoundFileError, OSError) as error:
        if not os.path.lexists(path):
            raise InputError(
                f"{path}: no such file. Check its name, or the directory it is looked for in."
            ) from None
        if _is_lfs_pointer(path):
            raise InputError(
                f"{path}: is a Git LFS pointer, not audio. Fetch the files with git lfs pull."
            ) from None
        said = str(error).replace(repr(os.fsencode(path)), repr(str(path)))
        if isinstance(error, soundfile.LibsndfileError) and not error.error_string.strip("\0"):
            said = f"its content is damaged or cut off, code {error.code} of libsndfile"
        elif "does not exist" in said and path.is_file():  # as libsndfile says of what it takes for MP3
            said = "its content is nothing of the kind" if path.stat().st_size else "it is empty"
        raise InputError(
            f"{path}: cannot be decoded as audio ({said}); expected {', '.join(one[1:] for one in suffixes())}. "
            "Replace the file or leave it out."
        ) from None


def _to_its_end(path: Path) -> IO[bytes]:
    """A temporary WAV with the content of a file of unknown length, such as FLAC that was written into a pipe."""
    import soundfile

    class ReadOnce(soundfile.SoundFile):  # type: ignore[misc]
        """A file in which nothing is sought, since to seek its end fails."""

        def seekable(self) -> bool:
            return False

    whole = TemporaryFile()  # noqa: SIM115 - it is deleted once nobody holds it; hours of audio may not fit into memory
    with (
        ReadOnce(os.fsencode(path)) as file,
        soundfile.SoundFile(
            whole, "w", file.samplerate, file.channels, format="RF64", subtype="FLOAT"
        ) as known,
    ):
        while len(block := file.read(_BLOCK, dtype="float32", always_2d=True)):
            known.write(block)
    whole.seek(0)
    return whole


def _is_chained(path: Path) -> bool:
    """Whether an Ogg file holds streams one after another: whether one begins behind a page of another."""
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        begins = [found[1][0] & 2 for found in re.finditer(rb"OggS\0([\0-\7])", content)]
    return any(later and not earlier for earlier, later in pairwise(begins))


def _by_ffmpeg(path: Path) -> bytes:
    """A file as WAV, made by ffmpeg.

    Raises:
        InputError: there is no ffmpeg, or it cannot decode the file.
    """
    if shutil.which("ffmpeg") is None:
        raise InputError(
            f"{path}: cannot be decoded as audio, since {path.suffix} files need ffmpeg, which is not on the PATH. "
            "Install it, or convert the file to WAV or FLAC."
        )
    command = ["ffmpeg", "-nostdin", "-v", "error", "-i", f"file:{path.absolute()}", "-vn", "-f", "wav", "-"]
    try:
        done = subprocess.run(command, capture_output=True, check=False, timeout=_DECODING_S)
    except subprocess.TimeoutExpired:
        raise InputError(
            f"{path}: cannot be decoded as audio: ffmpeg takes longer than {_DECODING_S} s. Convert the file to WAV."
        ) from None
    if done.returncode:
        said = (done.stderr.decode(errors="replace").strip().splitlines() or ["no reason given"])[-1]
        raise InputError(f"{path}: cannot be decoded as audio ({said}). Replace the file or leave it out.")
    return done.stdout


def _is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer, which a clone without Git LFS has in place of the content."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False
