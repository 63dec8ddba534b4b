"""Reading and encoding clips, against plain transformers and against the limits of the machine.

A Whisper encoder on real clips, and random networks of the size of WavLM-base and wav2vec2-base on noise of 1 to 20 s.
Times are of reading and encoding, without loading the network but for rows with several processes, which load it anew.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from measuring import Row, Spent, in_turn, spent
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.cores import free_cores
from mifuse_cli.model.encoder import Encoder
from mifuse_cli.model.encoding import Padding, encoded
from mifuse_cli.model.features import FrozenEncoder
from mifuse_cli.model.wavlm import GatedAttention

CPU = torch.device("cpu")
BATCH = 8
"""Clips in a batch of plain transformers."""
REAL, PLAIN, PLAIN_BUSY, NOISES = 300, 16, 8, 24
"""Clips of corpora; of these, those that the straightforward way gets, on an idle machine and on a busy one, since it
is slow; clips of noise."""


@dataclass(frozen=True)
class Preloaded:
    """A network that is in memory already."""

    encoder: Encoder

    def load(self, device: torch.device) -> Encoder:
        return self.encoder


@contextmanager
def threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def core_taken() -> Iterator[None]:
    """Another process computes all the time."""
    process = subprocess.Popen([sys.executable, "-c", "while True: pass"])
    try:
        yield
    finally:
        process.kill()
        process.wait()


def in_batches(paths: Sequence[Path], network: Preloaded | FrozenEncoder, processes: int = 1) -> Padding:
    """Our way."""
    padding = Padding()
    with threads(1):
        for _ in encoded(list(map(Excerpt, paths)), network, CPU, workers=processes, padding=padding):
            pass
    return padding


@torch.inference_mode()
def plain(
    paths: Sequence[Path], encoder: Encoder, how: Callable[[Encoder, list[np.ndarray]], object], number: int
) -> None:
    """The straightforward way: batches in the order of the files."""
    with threads(number), torch.inference_mode():
        for start in range(0, len(paths), BATCH):
            how(encoder, [audio.read(path) for path in paths[start : start + BATCH]])


def whisper_30_s(encoder: Encoder, clips: list[np.ndarray]) -> None:
    """Padded to 30 s, as the feature extractor does."""
    bands = encoder.extractor(clips, sampling_rate=audio.RATE, return_tensors="pt").input_features
    _means(encoder.wrapper.encoder(bands, output_hidden_states=True).hidden_states)


def to_the_longest(model: Any, encoder: Encoder, clips: list[np.ndarray]) -> None:
    """A model of transformers on clips padded to the longest of the batch."""
    values = encoder.extractor(
        clips, sampling_rate=audio.RATE, padding=True, return_tensors="pt"
    ).input_values
    _means(model(values, output_hidden_states=True).hidden_states)


def _means(states: Sequence[Tensor]) -> Tensor:
    return torch.stack([state.mean(dim=1) for state in states], dim=1)


def whisper(shared: Path) -> list[Row]:
    """whisper-tiny.en on the clips of three corpora."""
    files = [path for path in sorted((shared / "corpora").glob("*/audio/*")) if path.is_file()]
    paths = files[:: max(1, len(files) // REAL)][:REAL]
    network = FrozenEncoder(shared / "encoders" / "whisper-tiny.en", "fp32")
    encoder, cores = network.load(CPU), free_cores()
    in_batches(paths[:1], Preloaded(encoder))
    step, made = "features, whisper-tiny.en", []
    for when, few in (("machine idle", PLAIN), ("one core taken", PLAIN_BUSY)):
        some = paths[:: len(paths) // few][:few]

        def both(some: list[Path] = some) -> tuple[Spent, Spent]:
            return in_turn(
                lambda: in_batches(paths, network, cores),
                lambda: plain(some, encoder, whisper_30_s, os.cpu_count() or 1),
                1,
            )

        if few == PLAIN:
            ours, theirs = both()
        else:
            with core_taken():
                ours, theirs = both()
        mine, its = ours.wall_s / len(paths), theirs.wall_s / len(some)
        note = (
            f"wall clock a clip {mine * 1000:.0f} ms ({len(paths)} clips), {its * 1000:.0f} ms ({len(some)})"
        )
        made.append(
            Row(step, f"padded to 30 s, all threads, {when}", its / mine, "x as fast", least=25, note=note)
        )
    some = paths[:: len(paths) // PLAIN][:PLAIN]
    ours, theirs = in_turn(
        lambda: in_batches(some, Preloaded(encoder)), lambda: plain(some, encoder, whisper_30_s, 1), 1
    )
    note = f"{len(some)} clips, CPU {ours.cpu_s:.1f} s and {theirs.cpu_s:.1f} s"
    made.append(Row(step, "padded to 30 s, 1 thread", theirs.cpu_s / ours.cpu_s, "x as fast", note=note))
    reading = spent(lambda: [audio.read(path) for path in some])
    made.append(Row(step, "reading the audio alone", ours.cpu_s / reading.cpu_s, "x the CPU time"))
    made.append(_of_the_limit(step, some, encoder, ours.cpu_s))
    return made


@torch.inference_mode()
def _of_the_limit(step: str, paths: list[Path], encoder: Encoder, cpu_s: float) -> Row:
    """Share of the rate at which one thread multiplies matrices."""
    with threads(1), FlopCounterMode(display=False) as counter:
        for path in paths:
            encoder([torch.from_numpy(audio.read(path))])
    size, times = 1024, 10
    one, other = torch.randn(size, size), torch.randn(size, size)
    with threads(1):
        matrix = spent(lambda: [one @ other for _ in range(times)])
    limit = 2 * size**3 * times / matrix.cpu_s
    reached = counter.get_total_flops() / cpu_s
    return Row(
        step,
        "the rate of matrix products",
        100 * reached / limit,
        "% of the limit",
        note=f"{reached / 1e9:.0f} of {limit / 1e9:.0f} GFLOP/s, one thread, reading included",
    )


def noise(directory: Path, count: int) -> list[Path]:
    """Clips of 1 to 20 s, every length as likely as any other."""
    rng = np.random.default_rng(0)
    paths = [directory / f"{number}.wav" for number in range(count)]
    for path in paths:
        samples = rng.normal(0, 0.1, int(rng.uniform(1, 20) * audio.RATE))
        soundfile.write(path, samples, audio.RATE)
    return paths


def base(model: Any, directory: Path) -> Path:
    """A random network of a class of transformers, of the size that it has by default."""
    torch.manual_seed(0)
    model(model.config_class()).save_pretrained(directory)
    Wav2Vec2FeatureExtractor().save_pretrained(directory)
    return directory


def wavlm(place: Path, paths: list[Path]) -> list[Row]:
    """WavLM-base size: against plain transformers, and what parts are worth."""
    directory = base(WavLMModel, place / "wavlm")
    encoder = FrozenEncoder(directory, "fp32").load(CPU)
    of_transformers = partial(to_the_longest, WavLMModel.from_pretrained(directory).eval())
    in_batches(paths[:1], Preloaded(encoder))
    padding: list[Padding] = []
    ours, theirs = in_turn(
        lambda: padding.append(in_batches(paths, Preloaded(encoder))),
        lambda: plain(paths, encoder, of_transformers, 1),
        1,
    )
    step = "features, WavLM-base size"
    lengths = f"{len(paths)} clips of 1 to 20 s"
    made = [
        Row(
            step,
            "plain transformers, padded to the longest",
            theirs.cpu_s / ours.cpu_s,
            "x as fast",
            least=2,
            note=f"{lengths}, CPU {ours.cpu_s:.0f} s and {theirs.cpu_s:.0f} s",
        ),
        Row(step, "audio encoded", 100 * padding[0].share, "% padding", most=5, note=lengths),
    ]
    others = FrozenEncoder(directory).load(CPU)
    for module in others.modules():
        if isinstance(module, GatedAttention):
            module.__class__ = WavLMAttention
    half = FrozenEncoder(directory, states=(encoder.layers + 1) // 2).load(CPU)
    some = paths[::6]
    for what, other, against in (
        ("", others, "attention of transformers"),
        (", the first half of the blocks", half, "all blocks"),
    ):
        mine, its = in_turn(
            lambda: in_batches(some, Preloaded(encoder)),
            lambda other=other: in_batches(some, Preloaded(other)),
            1,
        )
        faster = its.cpu_s / mine.cpu_s if other is others else mine.cpu_s / its.cpu_s
        made.append(Row(step + what, against, faster, "x as fast", note=f"{len(some)} clips"))
    return made


def group_norm(place: Path, paths: list[Path]) -> list[Row]:
    """wav2vec2-base size: padded batches against clips of equal length only, of which these have none."""
    encoder = FrozenEncoder(base(Wav2Vec2Model, place / "wav2vec2")).load(CPU)
    in_batches(paths[:1], Preloaded(encoder))

    def equal() -> None:
        encoder.padding, before = 0.0, encoder.padding
        try:
            in_batches(paths, Preloaded(encoder))
        finally:
            encoder.padding = before

    ours, theirs = in_turn(lambda: in_batches(paths, Preloaded(encoder)), equal, 1)
    return [
        Row(
            "features, wav2vec2-base size",
            "clips of equal length only",
            theirs.cpu_s / ours.cpu_s,
            "x as fast",
            note=f"{len(paths)} clips of 1 to 20 s",
        )
    ]


def rows(place: Path, shared: Path | None) -> list[Row]:
    """All of them; those of real clips if they are at hand."""
    paths = noise(place, NOISES)
    made = [] if shared is None else whisper(shared)
    return [*made, *wavlm(place, paths), *group_norm(place, paths[::6])]
