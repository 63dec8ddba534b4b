"""A clip as it is asked about: what its hash stands for, which parts are sent, and their bytes."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mifuse_cli import audio
from mifuse_cli.errors import InputError
from mifuse_cli.lalm.journal.journal import Utterance

RULES = ("stop", "skip", "crop", "chunk")

_WAV_HEADER = 44  # bytes


@dataclass(frozen=True)
class Rule:
    """How audio is sent.

    Attributes:
        max_seconds: longest part that is sent at once.
        long: what becomes of longer clips: ``skip`` leaves them out, ``crop`` sends their middle, ``chunk``
            asks about equal pieces one by one; with ``stop`` there are none.
        audio_format: "wav" or "mp3".
    """

    max_seconds: float
    long: str
    audio_format: str

    def pieces(self, seconds: float) -> tuple[float, ...]:
        """Seconds of every piece of a clip that is asked about."""
        if seconds <= self.max_seconds or self.long == "stop":
            return (seconds,)
        if self.long == "skip":
            return ()
        if self.long == "crop":
            return (self.max_seconds,)
        number = len(audio.chunks(np.empty(round(seconds * audio.RATE), np.uint8), self.max_seconds))
        return (seconds / number,) * number

    def utterance(self, utt_id: str, path: Path, context: str, known: Utterance | None) -> Utterance:
        """Decode and hash a clip, unless its file is the one that ``known`` was made from.

        Raises:
            InputError: the file cannot be decoded.
        """
        file_sha256 = audio.file_sha256(path)
        if known and known.file_sha256 == file_sha256 and self._whole(known):
            sha256, seconds, size = known.sha256, known.duration, known.bytes
        else:
            samples = audio.read(path)
            seconds = len(samples) / audio.RATE
            wav = audio.wav_bytes(self._sent(samples))
            sha256, size = hashlib.sha256(wav).hexdigest(), len(wav)
        return Utterance(
            utt_id, sha256, seconds, audio.RATE, size, str(path), file_sha256, context, self.pieces(seconds)
        )

    def sent(self, utterance: Utterance, piece: int) -> bytes:
        """Bytes of one piece as they are sent.

        Raises:
            InputError: the file cannot be decoded, or is another one than when it was hashed.
        """
        samples = self._sent(audio.read(Path(utterance.path)))
        wav = audio.wav_bytes(samples)
        if hashlib.sha256(wav).hexdigest() != utterance.sha256:
            raise InputError(
                f"{utterance.path}: was changed since the run began. Run the command again: "
                "what did not change is not asked again."
            )
        if len(utterance.pieces) > 1:
            samples = audio.chunks(samples, self.max_seconds)[piece]
        return self.encoded(samples)

    def encoded(self, samples: np.ndarray) -> bytes:
        """Bytes of audio (S,) in the format in which it is sent."""
        return audio.mp3_bytes(samples) if self.audio_format == "mp3" else audio.wav_bytes(samples)

    def upload_bytes(self, seconds: float) -> int:
        """Size of that many seconds as sent in base64; a guess for MP3."""
        rate = 2 * audio.RATE if self.audio_format == "wav" else 50_000 / 8
        return round((_WAV_HEADER + seconds * rate) * 4 / 3)

    def _sent(self, samples: np.ndarray) -> np.ndarray:
        too_long = len(samples) > self.max_seconds * audio.RATE
        return audio.crop(samples, self.max_seconds) if too_long and self.long == "crop" else samples

    def _whole(self, known: Utterance) -> bool:
        """Whether its hash is that of the whole clip, and would be again."""
        whole = known.bytes == _WAV_HEADER + 2 * round(known.duration * audio.RATE)
        return whole and not (self.long == "crop" and known.duration > self.max_seconds)
