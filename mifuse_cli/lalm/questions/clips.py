"""A clip as it is asked about: what its hash stands for, which parts are sent, and their bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass

import numpy as np

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.errors import InputError

LONG_CLIPS = ("stop", "skip", "crop", "chunk")

_WAV_HEADER = 44  # bytes


@dataclass(frozen=True)
class AskedClip:
    """A clip as it is asked about.

    Attributes:
        utt_id, excerpt: its name, and its file with the part of that.
        sha256, bytes: hash and size of the 16-bit WAV that holds what is asked about; the hash stands for the
            audio in every key.
        duration, sr: length in seconds and sampling rate in Hz.
        file_sha256: hash of the file as it lies on the disk, and of the part of it, see `audio.key`.
        context: what the prompt tells of the clip, "" if nothing.
        pieces: seconds of each piece that is asked about on its own; none for a clip that is left out.
        twin: whether another clip with the same audio and context is asked about instead.
    """

    utt_id: str
    sha256: str
    duration: float
    sr: int
    bytes: int
    excerpt: Excerpt
    file_sha256: str = ""
    context: str = ""
    pieces: tuple[float, ...] = ()
    twin: bool = False


@dataclass(frozen=True)
class AudioOptions:
    """How audio is sent.

    Attributes:
        max_seconds: longest part that is sent at once.
        long_clips: what becomes of longer clips: ``skip`` leaves them out, ``crop`` sends their middle,
            ``chunk`` asks about equal pieces one by one; with ``stop`` there are none.
        upload: format that is sent, "wav" or "mp3".
    """

    max_seconds: float = 30.0
    long_clips: str = "stop"
    upload: str = "wav"

    def pieces(self, seconds: float) -> tuple[float, ...]:
        """Seconds of every piece that is asked about, of a clip of ``seconds``."""
        if seconds <= self.max_seconds or self.long_clips == "stop":
            return (seconds,)
        if self.long_clips == "skip":
            return ()
        if self.long_clips == "crop":
            return (self.max_seconds,)
        number = len(audio.chunks(np.empty(round(seconds * audio.RATE), np.uint8), self.max_seconds))
        return (seconds / number,) * number

    def read_clip(self, utt_id: str, excerpt: Excerpt, context: str, known: AskedClip | None) -> AskedClip:
        """Decode and hash a clip, unless its file is the one that ``known`` was made from.

        Args:
            utt_id: name of the clip.
            excerpt: its file, and the part of that.
            context: what the prompt tells of it, "" if nothing.
            known: the clip of that name in an earlier run, None if there was none.

        Raises:
            InputError: the file cannot be decoded.
        """
        file_sha256 = audio.key(*excerpt)
        if known and known.file_sha256 == file_sha256 and self._whole(known):
            sha256, seconds, size = known.sha256, known.duration, known.bytes
        else:
            samples = audio.read(*excerpt)
            seconds = len(samples) / audio.RATE
            wav = audio.wav_bytes(self._cropped(samples))
            sha256, size = hashlib.sha256(wav).hexdigest(), len(wav)
        return AskedClip(
            utt_id, sha256, seconds, audio.RATE, size, excerpt, file_sha256, context, self.pieces(seconds)
        )

    def bytes_of(self, clip: AskedClip, piece: int) -> bytes:
        """Bytes of one piece as they are sent.

        Raises:
            InputError: the file cannot be decoded, or is another one than when it was hashed.
        """
        samples = self._cropped(audio.read(*clip.excerpt))
        wav = audio.wav_bytes(samples)
        if hashlib.sha256(wav).hexdigest() != clip.sha256:
            raise InputError(
                f"{clip.excerpt.path}: was changed since the run began. Run the command again: "
                "what did not change is not asked again."
            )
        if len(clip.pieces) > 1:
            samples = audio.chunks(samples, self.max_seconds)[piece]
        return self.encoded(samples)

    def encoded(self, samples: np.ndarray) -> bytes:
        """Bytes of audio, shape (S,) at 16 kHz, in the format in which it is sent."""
        return audio.mp3_bytes(samples) if self.upload == "mp3" else audio.wav_bytes(samples)

    def upload_bytes(self, seconds: float) -> int:
        """Size of ``seconds`` of audio as sent in base64; a guess for MP3."""
        rate = 2 * audio.RATE if self.upload == "wav" else 50_000 / 8
        return round((_WAV_HEADER + seconds * rate) * 4 / 3)

    def _cropped(self, samples: np.ndarray) -> np.ndarray:
        too_long = len(samples) > self.max_seconds * audio.RATE
        return audio.crop(samples, self.max_seconds) if too_long and self.long_clips == "crop" else samples

    def _whole(self, known: AskedClip) -> bool:
        """Whether its hash is that of the whole clip, and would be again."""
        whole = known.bytes == _WAV_HEADER + 2 * round(known.duration * audio.RATE)
        return whole and not (self.long_clips == "crop" and known.duration > self.max_seconds)
