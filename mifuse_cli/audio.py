"""Audio in and out: any file to float32 at 16 kHz mono, and back to WAV bytes for sending."""

from __future__ import annotations

import hashlib
import io
import wave
from pathlib import Path

import numpy as np

from mifuse_cli.errors import InputError

RATE = 16_000
SUFFIXES = (".wav", ".flac", ".ogg", ".mp3")


def read(path: Path) -> np.ndarray:
    """Samples (S,) float32 of one clip, channels averaged, at 16 kHz.

    Raises:
        InputError: the file cannot be decoded, is empty, or holds NaN or infinity.
    """
    import soundfile

    try:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
    except (soundfile.SoundFileError, OSError) as error:
        raise InputError(
            f"{path}: cannot be decoded as audio ({error}); expected wav, flac, ogg or mp3. "
            "Replace the file or drop its row from the manifest."
        ) from None
    mono = samples.mean(axis=1)
    if mono.size == 0:
        raise InputError(f"{path}: holds no audio samples. Replace the file or drop its row.")
    if not np.isfinite(mono).all():
        raise InputError(f"{path}: holds NaN or infinite samples. Replace the file or drop its row.")
    if rate != RATE:
        import torch
        from torchaudio.functional import resample

        mono = resample(torch.from_numpy(mono), rate, RATE).numpy()
    return np.ascontiguousarray(mono)


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
