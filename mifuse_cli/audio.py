"""Reading audio files as float32 at 16 kHz mono, cutting them, and encoding them for sending."""

from __future__ import annotations

import hashlib
import io
import math
import wave
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from mifuse_cli.errors import DependencyError, InputError

RATE = 16_000
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")
_LFS = b"version https://git-lfs"
_LARGEST_FILTER = 1 << 20
"""Weights that torchaudio's filter may have. It has a set for every phase between the two rates: 70,560 weights at
44,100 Hz, 282,240 at 11,025 Hz, but 178 million at 11,127 Hz (3.4 GiB while they are made) and 706 million at
44,101 Hz (12 GiB)."""
_CROSSINGS, _ROLLOFF = 6, 0.99
"""Torchaudio's filter: zero crossings of the sinc on either side; cut-off as a share of the lower Nyquist rate."""
_CHUNK = 1 << 14
"""Samples that are resampled at a time where weights are made as they are needed."""


def read(path: Path) -> np.ndarray:
    """Samples (S,) float32 of one clip, channels averaged, at 16 kHz.

    Raises:
        InputError: the file cannot be decoded, is empty, or holds NaN or infinity.
    """
    import soundfile

    with _decoding(path):
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    mono = samples.mean(axis=1)
    if mono.size == 0:
        raise _empty(path)
    if not np.isfinite(mono).all():
        raise InputError(f"{path}: holds NaN or infinite samples. Replace the file or drop its row.")
    return np.ascontiguousarray(mono if rate == RATE else resampled(mono, rate))


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


def seconds(path: Path) -> float:
    """Duration of one clip by its header, in seconds; the samples are not decoded.

    Raises:
        InputError: the file is no audio or is empty.
    """
    import soundfile

    with _decoding(path):
        header = soundfile.info(path)
    if header.frames == 0:
        raise _empty(path)
    return header.frames / header.samplerate


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


def _whole_samples(seconds: float) -> int:
    """Samples that fit into ``seconds``, at least one; the margin absorbs rounding, as in 0.29 * 16000."""
    return max(1, int(seconds * RATE + 1e-6))


@contextmanager
def _decoding(path: Path) -> Iterator[None]:
    import soundfile

    try:
        yield
    except (soundfile.SoundFileError, OSError) as error:
        if _is_lfs_pointer(path):
            raise InputError(
                f"{path}: is a Git LFS pointer, not audio. Fetch the files with git lfs pull."
            ) from None
        raise InputError(
            f"{path}: cannot be decoded as audio ({error}); expected wav, flac, ogg or mp3. "
            "Replace the file or drop its row from the manifest."
        ) from None


def _is_lfs_pointer(path: Path) -> bool:
    """Whether a file is a Git LFS pointer, which a clone without Git LFS has in place of the content."""
    try:
        with path.open("rb") as file:
            return file.read(len(_LFS)) == _LFS
    except OSError:
        return False


def _empty(path: Path) -> InputError:
    return InputError(f"{path}: holds no audio samples. Replace the file or drop its row.")
