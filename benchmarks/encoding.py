"""Reading and encoding clips: ours against plain transformers, run in turn; prints CPU time, wall clock and ratios.

``python benchmarks/encoding.py --shared ../shared``: a Whisper encoder on the clips of a corpus, and random networks of
the size of WavLM-base and wav2vec2-base on noise of 1 to 20 s. Times are of reading and encoding, without loading the
network but for the rows with several processes, which load it anew. On a machine that others use, believe the ratios of
CPU time.
"""

from __future__ import annotations

import argparse
import os
import resource
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
import torch
from torch import Tensor
from transformers import Wav2Vec2FeatureExtractor, Wav2Vec2Model, WavLMModel
from transformers.models.wavlm.modeling_wavlm import WavLMAttention

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.cores import free_cores
from mifuse_cli.model import workers
from mifuse_cli.model.encoder import Encoder
from mifuse_cli.model.encoding import Padding, encoded
from mifuse_cli.model.features import FrozenEncoder
from mifuse_cli.model.wavlm import GatedAttention

CPU = torch.device("cpu")
BATCH = 8
"""Clips in a batch of plain transformers."""


@dataclass(frozen=True)
class Preloaded:
    """A network that is in memory already."""

    encoder: Encoder

    def load(self, device: torch.device) -> Encoder:
        return self.encoder


@dataclass(frozen=True)
class Row:
    name: str
    cpu_s: float
    wall_s: float
    note: str = ""


def timed(name: str, work: Callable[[], str], threads: int) -> Row:
    """CPU time of this process and of those that it started and that have ended, and wall clock."""

    def spent() -> float:
        mine, theirs = (resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return mine.ru_utime + mine.ru_stime + theirs.ru_utime + theirs.ru_stime

    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        cpu, wall = spent(), time.perf_counter()
        note = work()
        return Row(name, spent() - cpu, time.perf_counter() - wall, note)
    finally:
        torch.set_num_threads(before)


def in_batches(paths: Sequence[Path], network: Preloaded | FrozenEncoder, processes: int) -> str:
    padding = Padding()
    for _ in encoded(list(map(Excerpt, paths)), network, CPU, workers=processes, padding=padding):
        pass
    return f"padding {padding.share:.1%}"


@torch.inference_mode()
def one_by_one(paths: Sequence[Path], encoder: Encoder) -> str:
    for path in paths:
        encoder([torch.from_numpy(audio.read(path))])
    return ""


@torch.inference_mode()
def plain(paths: Sequence[Path], encoder: Encoder, how: Callable[[Encoder, list[np.ndarray]], float]) -> str:
    """Batches in the order of the files; `how` encodes one and tells its seconds with padding."""
    whole = heard = 0.0
    for start in range(0, len(paths), BATCH):
        clips = [audio.read(path) for path in paths[start : start + BATCH]]
        heard += sum(map(len, clips)) / audio.RATE
        whole += how(encoder, clips)
    return f"padding {1 - heard / whole:.1%}"


def whisper_30_s(encoder: Encoder, clips: list[np.ndarray]) -> float:
    bands = encoder.extractor(clips, sampling_rate=audio.RATE, return_tensors="pt").input_features
    states = encoder.wrapper.encoder(bands, output_hidden_states=True).hidden_states
    _means(states)
    return 30.0 * len(clips)


def to_the_longest(encoder: Encoder, clips: list[np.ndarray]) -> float:
    values = encoder.extractor(
        clips, sampling_rate=audio.RATE, padding=True, return_tensors="pt"
    ).input_values
    _means(encoder.model(values, output_hidden_states=True).hidden_states)
    return values.numel() / audio.RATE


def _means(states: Sequence[Tensor]) -> Tensor:
    return torch.stack([state.mean(dim=1) for state in states], dim=1)


def table(title: str, rows: list[Row], seconds: float) -> None:
    """Rows, each by how many times it takes the first one's time."""
    print(f"\n{title}: {seconds:.0f} s of audio")
    print(f"{'':46}  CPU s  wall s  CPU x  wall x")
    for row in rows:
        ratios = f"{row.cpu_s / rows[0].cpu_s:>5.2f}  {row.wall_s / rows[0].wall_s:>6.2f}"
        print(f"{row.name:46}  {row.cpu_s:>5.1f}  {row.wall_s:>6.1f}  {ratios}  {row.note}")


def compared(
    title: str,
    paths: list[Path],
    directory: Path,
    baseline: str,
    how: Callable[[Encoder, list[np.ndarray]], float],
) -> None:
    network = FrozenEncoder(directory, "fp32")
    encoder = network.load(CPU)
    one_by_one(paths[:1], encoder)
    default, several = os.cpu_count() or 1, max(2, free_cores())
    rows = [
        timed("in batches of like length, one process", lambda: in_batches(paths, Preloaded(encoder), 1), 1),
        timed("one clip at a time", lambda: one_by_one(paths, encoder), 1),
        timed(f"{baseline}, 1 thread", lambda: plain(paths, encoder, how), 1),
        timed(f"{baseline}, {default} threads", lambda: plain(paths, encoder, how), default),
        timed(f"in batches, up to {several} processes", lambda: in_batches(paths, network, several), 1),
    ]
    table(title, rows, sum(map(audio.seconds, paths)))


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


def parts_of(title: str, paths: list[Path], directory: Path, rows: Callable[[Encoder], list[Row]]) -> None:
    """A table of what one part of an encoder is worth, with one thread."""
    network = FrozenEncoder(directory).load(CPU)
    one_by_one(paths[:1], network)
    table(title, rows(network), sum(map(audio.seconds, paths)))


def of_wavlm(paths: list[Path], directory: Path) -> Callable[[Encoder], list[Row]]:
    """Attention against that of transformers, and the first half of the blocks against all."""

    def rows(encoder: Encoder) -> list[Row]:
        theirs = FrozenEncoder(directory).load(CPU)
        for module in theirs.modules():
            if isinstance(module, GatedAttention):
                module.__class__ = WavLMAttention
        half = FrozenEncoder(directory, states=(encoder.layers + 1) // 2).load(CPU)
        return [
            timed(name, lambda one=one: in_batches(paths, Preloaded(one), 1), 1)
            for name, one in (
                ("scaled-dot-product attention", encoder),
                ("attention of transformers", theirs),
                ("the first half of the blocks", half),
            )
        ]

    return rows


def of_group_norm(paths: list[Path]) -> Callable[[Encoder], list[Row]]:
    """Batches that are padded against clips of equal length only, of which these have none."""

    def rows(encoder: Encoder) -> list[Row]:
        def equal() -> str:
            encoder.padding, before = 0.0, encoder.padding
            try:
                return in_batches(paths, Preloaded(encoder), 1)
            finally:
                encoder.padding = before

        return [
            timed("group norm by clip, padded", lambda: in_batches(paths, Preloaded(encoder), 1), 1),
            timed("clips of equal length only", equal, 1),
        ]

    return rows


def main() -> None:
    """Print a table for either network."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, help="has encoders/whisper-tiny.en and corpora/emodb")
    parser.add_argument("--clips", type=int, default=64, help="of the corpus, spread over it")
    parser.add_argument("--noises", type=int, default=24, help="clips of noise; 0: only the corpus")
    parser.add_argument("--worth", type=float, default=workers._WORTH_S, help="seconds a process has to save")
    given = parser.parse_args()
    workers._WORTH_S = given.worth
    if given.shared is not None:
        files = sorted((given.shared / "corpora" / "emodb" / "audio").iterdir())
        chosen = files[:: max(1, len(files) // given.clips)][: given.clips]
        encoder = given.shared / "encoders" / "whisper-tiny.en"
        compared(
            f"whisper-tiny.en, {len(chosen)} clips of emodb", chosen, encoder, "padded to 30 s", whisper_30_s
        )
    if given.noises:
        with tempfile.TemporaryDirectory() as name:
            place = Path(name)
            clips = noise(place, given.noises)
            wavlm, group = base(WavLMModel, place / "wavlm"), base(Wav2Vec2Model, place / "wav2vec2")
            compared(
                f"WavLM-base size, {len(clips)} clips", clips, wavlm, "padded to the longest", to_the_longest
            )
            parts_of("WavLM-base size, parts", clips, wavlm, of_wavlm(clips, wavlm))
            parts_of("wav2vec2-base size, parts", clips, group, of_group_norm(clips))


if __name__ == "__main__":
    main()
