"""Two small corpora of synthetic emotional speech that differ in speakers, language, habits and channel.

The source corpus is American English, spoken close to a microphone. The target corpus is German, by faster
and higher voices in a small room, through a thin and bright channel. Sadness there shows in slowness more
than in softness, and the channel makes calm speech as bright as excited speech is in the source corpus.
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from scipy import signal

from mifuse_cli.demo.espeak import Synthesiser
from mifuse_cli.labels import CLASSES

RATE = 16000
_SHORTEST, _LONGEST = 1.0, 2.5  # seconds


@dataclass(frozen=True)
class Style:
    """How an emotion departs from a speaker's habit.

    Attributes:
        tempo: factor on the speaking rate.
        pitch: semitones.
        melody: factor on the pitch range.
        level: dB.
        tilt: dB per octave; positive is brighter.
        ring: dB in the octave around 2.8 kHz, which a smile lifts.
    """

    tempo: float
    pitch: float
    melody: float
    level: float
    tilt: float
    ring: float


@dataclass(frozen=True)
class Speaker:
    """A voice of espeak-ng with the habits of one person.

    Attributes:
        voice: espeak-ng voice.
        rate: words per minute.
        pitch: semitones above the voice's own pitch.
    """

    voice: str
    rate: float
    pitch: float


@dataclass(frozen=True)
class Channel:
    """What the sound passes through between mouth and file.

    Attributes:
        band: lower and upper edge of the pass band in Hz.
        tilt: dB per octave.
        level: of the speech in the file, dBFS.
        noise: level of the noise floor, dBFS.
        reverberation: time in seconds until an echo has faded by 60 dB; 0 is a dead room.
    """

    band: tuple[float, float]
    tilt: float
    level: float
    noise: float
    reverberation: float


@dataclass(frozen=True)
class Domain:
    """Everything that defines a corpus but the random numbers."""

    name: str
    sentences: tuple[str, ...]
    speakers: tuple[Speaker, ...]
    styles: Mapping[str, Style]
    channel: Channel


SOURCE = Domain(
    name="source",
    sentences=(
        "The package came this morning.",
        "I put the keys on the table.",
        "They will be here by eleven.",
        "She told me about the meeting.",
        "We are going back to the office.",
        "The window was open all night.",
        "He has called me every day.",
        "It is seven in the evening.",
    ),
    speakers=(
        Speaker("en-us+m1", 172, 0),
        Speaker("en-us+m3", 180, -1),
        Speaker("en-us+m7", 165, 1),
        Speaker("en-us+Andy", 185, 0),
        Speaker("en-us+edward", 176, 2),
        Speaker("en-us+f1", 178, 0),
        Speaker("en-us+f2", 168, 1),
        Speaker("en-us+f4", 186, -1),
        Speaker("en-us+Annie", 174, 0),
        Speaker("en-us+linda", 182, 1),
    ),
    styles={
        "angry": Style(tempo=1.12, pitch=1.0, melody=1.25, level=6.0, tilt=3.5, ring=-2.0),
        "happy": Style(tempo=1.08, pitch=4.0, melody=1.7, level=2.5, tilt=0.0, ring=8.0),
        "neutral": Style(tempo=1.0, pitch=0.0, melody=1.0, level=0.0, tilt=0.0, ring=0.0),
        "sad": Style(tempo=0.86, pitch=-1.5, melody=0.6, level=-6.0, tilt=-3.5, ring=-2.0),
    },
    channel=Channel(band=(80, 7000), tilt=0.0, level=-26, noise=-58, reverberation=0),
)

TARGET = Domain(
    name="target",
    sentences=(
        "Das Paket kam heute Morgen.",
        "Der Schlüssel liegt auf dem Tisch.",
        "Sie sind um elf Uhr hier.",
        "Wir gehen zurück ins Büro.",
        "Das Fenster war die ganze Nacht offen.",
        "Er ruft mich jeden Tag an.",
    ),
    speakers=(
        Speaker("de+m2", 196, 2),
        Speaker("de+m4", 205, 2),
        Speaker("de+m8", 190, 3),
        Speaker("de+Denis", 200, 2),
        Speaker("de+Michael", 208, 1),
        Speaker("de+f3", 198, 1),
        Speaker("de+f5", 206, 0),
        Speaker("de+Andrea", 194, 1),
        Speaker("de+steph", 202, 2),
        Speaker("de+belinda", 192, 1),
    ),
    styles={
        "angry": Style(tempo=1.2, pitch=2.0, melody=1.3, level=5.0, tilt=4.5, ring=-2.0),
        "happy": Style(tempo=1.08, pitch=4.0, melody=1.8, level=1.0, tilt=0.5, ring=9.0),
        "neutral": Style(tempo=1.0, pitch=0.0, melody=1.0, level=0.0, tilt=0.0, ring=0.0),
        "sad": Style(tempo=0.73, pitch=-0.5, melody=0.6, level=-1.8, tilt=-4.4, ring=-1.0),
    },
    channel=Channel(band=(150, 6000), tilt=2.0, level=-24, noise=-56, reverberation=0.15),
)


def make_corpora(
    root: Path,
    *,
    seed: int = 0,
    takes: tuple[int, int] = (8, 6),
    progress: Callable[[int, int], None] | None = None,
) -> None:
    """Write the corpora ``root/source`` and ``root/target``; the same seed gives the same bytes.

    Each corpus is a folder ``audio`` of 16 kHz mono PCM16 files and a ``manifest.csv`` beside it, whose
    column ``file`` is relative to the CSV. The source manifest has the columns file, speaker, emotion and
    duration_s. The target manifest has no emotion column; the same rows with it are in ``target/labels.csv``.

    Args:
        root: folder to write into; created if missing.
        seed: of everything random.
        takes: clips per speaker and emotion in the source and in the target corpus.
        progress: called with the number of clips written and to write.

    Raises:
        DependencyError: espeakng-loader is not installed.
    """
    plan = tuple(zip((SOURCE, TARGET), takes, strict=True))
    total = sum(len(domain.speakers) * len(CLASSES) * n for domain, n in plan)
    done = 0
    for domain, n in plan:
        folder = root / domain.name
        (folder / "audio").mkdir(parents=True, exist_ok=True)
        rows = []
        for row in _write_clips(folder, domain, n, seed):
            rows.append(row)
            done += 1
            if progress is not None:
                progress(done, total)
        rows.sort()
        header = ("file", "speaker", "emotion", "duration_s")
        if domain is SOURCE:
            _write_csv(folder / "manifest.csv", header, rows)
        else:
            _write_csv(folder / "labels.csv", header, rows)
            _write_csv(folder / "manifest.csv", header[:2] + header[3:], [row[:2] + row[3:] for row in rows])


def _write_clips(folder: Path, domain: Domain, takes: int, seed: int) -> Iterator[tuple[str, str, str, str]]:
    """Write a corpus's audio files; gives file, speaker, emotion and duration of each."""
    rng = np.random.default_rng([seed, *domain.name.encode()])
    # Shuffled numbers, so that neither the name nor the place of a clip tells its emotion or speaker.
    numbers = iter(rng.permutation(len(domain.speakers) * len(CLASSES) * takes))
    for place, speaker in enumerate(domain.speakers):
        synthesiser = Synthesiser()
        for emotion in CLASSES:
            for take in range(takes):
                text = domain.sentences[(place + take) % len(domain.sentences)]
                clip = _record(synthesiser, text, speaker, domain.styles[emotion], domain.channel, rng)
                file = f"audio/{domain.name}-{next(numbers):04d}.wav"
                soundfile.write(folder / file, clip, RATE, subtype="PCM_16")
                yield file, f"{domain.name}-{place}", emotion, f"{len(clip) / RATE:.3f}"


def _write_csv(path: Path, header: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> None:
    with path.open("w", encoding="utf-8", newline="") as stream:
        csv.writer(stream, lineterminator="\n").writerows([header, *rows])


def _record(
    synthesiser: Synthesiser,
    text: str,
    speaker: Speaker,
    style: Style,
    channel: Channel,
    rng: np.random.Generator,
) -> np.ndarray:
    """One clip, float32, shape (time,), 16 kHz: the text in this style, acted more or less strongly."""
    strength = rng.uniform(0.7, 1.2)
    acted = Style(
        tempo=style.tempo**strength * 2 ** rng.normal(0, 0.05),
        pitch=style.pitch * strength + rng.normal(0, 0.6),
        melody=style.melody**strength * 2 ** rng.normal(0, 0.15),
        level=style.level * strength + rng.normal(0, 1.2),
        tilt=style.tilt * strength + rng.normal(0, 0.4),
        ring=style.ring * strength + rng.normal(0, 0.8),
    )
    spoken, sample_rate = synthesiser.speak(
        text,
        speaker.voice,
        rate=speaker.rate * acted.tempo,
        pitch=np.clip(50 + (speaker.pitch + acted.pitch) * 50 / 12, 0, 99),
        pitch_range=np.clip(50 * acted.melody, 0, 99),
    )
    clip = signal.resample_poly(_trim(spoken, sample_rate), RATE, sample_rate)[: round(_LONGEST * RATE)]
    clip = np.pad(clip, (0, max(0, round(_SHORTEST * RATE) - len(clip))))
    clip = _transmit(clip, acted, channel, rng)
    return np.clip(clip, -1, 1).astype(np.float32)


def _trim(clip: np.ndarray, sample_rate: int) -> np.ndarray:
    """The clip without the silence around it, up to 50 ms of margin."""
    loud = np.flatnonzero(np.abs(clip) > 0.02 * np.abs(clip).max())
    margin = sample_rate // 20
    return clip[max(0, loud[0] - margin) : loud[-1] + margin]


def _transmit(clip: np.ndarray, acted: Style, channel: Channel, rng: np.random.Generator) -> np.ndarray:
    """The clip with its level and tilt, through room, channel and noise."""
    if channel.reverberation:
        time = np.arange(round(channel.reverberation * RATE)) / RATE
        echo = rng.standard_normal(time.size) * 10 ** (-3 * time / channel.reverberation)
        echo *= 0.5 / np.linalg.norm(echo)
        echo[0] = 1.0
        clip = signal.fftconvolve(clip, echo)[: len(clip)]
    frequency = np.clip(np.fft.rfftfreq(len(clip), 1 / RATE), 100, None)
    gain = (acted.tilt + channel.tilt) * np.log2(frequency / 1000)
    gain += acted.ring * np.exp(-2 * np.log2(frequency / 2800) ** 2)
    clip = np.fft.irfft(np.fft.rfft(clip) * 10 ** (gain / 20), len(clip))
    clip = signal.sosfilt(signal.butter(4, channel.band, "bandpass", fs=RATE, output="sos"), clip)
    clip *= 10 ** ((channel.level + acted.level) / 20) / (np.sqrt(np.mean(clip**2)) + 1e-9)
    return clip + rng.normal(0, 10 ** (channel.noise / 20), len(clip))
