"""The source classifier: cached features, and dropout passes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from measuring import Row, in_turn

import mifuse_cli as mifuse
from mifuse_cli import audio
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.lineage import digest
from mifuse_cli.manifest import scan
from mifuse_cli.model.classifier import Classifier, Features, Head, predict, sample
from mifuse_cli.model.encoder import LogMelEncoder
from mifuse_cli.model.features import FrozenEncoder, pooled_features
from mifuse_cli.model.standard import statistics as feature_statistics

PASSES = 30


def feature_cache(place: Path) -> list[Row]:
    """Features from the cache against those of a log-mel encoder, 64 clips of 2 s."""
    wav, encoder = place / "cached", place / "encoder"
    wav.mkdir()
    encoder.mkdir()
    rng = np.random.default_rng(0)
    for number in range(64):
        samples = rng.normal(0, 0.1, 2 * audio.RATE).astype(np.float32)
        (wav / f"{number}.wav").write_bytes(audio.wav_bytes(samples))
    LogMelEncoder().save(encoder)
    clips, key, cpu, places = scan(wav), digest(encoder), torch.device("cpu"), iter(range(10**6))

    def features(cache: str) -> None:
        here = Encoding(cache_dir=place / cache)
        pooled_features(clips, FrozenEncoder(encoder), key, device=cpu, encoding=here)

    features("filled")
    cold, warm = in_turn(lambda: features(f"cold{next(places)}"), lambda: features("filled"), 5)
    return [
        Row(
            "features, cached", "encoding by log-mel", cold.wall_s / warm.wall_s, "x as fast", note="64 clips"
        )
    ]


def dropout_passes() -> list[Row]:
    """Passes with the features at hand: 2,000 clips, 5 layers of 384."""
    features = torch.randn(2000, 5, 384)
    model = Classifier(None, Head(5, 384, 4, 128, 0.3), range(5))
    inputs = Features(features, feature_statistics(features))
    many, one = in_turn(lambda: sample(model, inputs, PASSES, 0), lambda: predict(model, inputs), 5)
    return [
        Row(
            f"{PASSES} dropout passes, features at hand",
            "one prediction",
            many.cpu_s / one.cpu_s,
            "x the CPU time",
            note="2,000 clips, 5 x 384 features; most of it draws the masks",
        )
    ]


def sample_source(place: Path, clips: int = 400) -> list[Row]:
    """The command with 30 passes and with one, from audio, by the cheapest encoder there is."""
    wav, lines = place / "sampled", ["file,emotion"]
    wav.mkdir()
    rng = np.random.default_rng(0)
    for number in range(clips):
        samples = rng.normal(0, 0.1, 3 * audio.RATE).astype(np.float32)
        (wav / f"{number}.wav").write_bytes(audio.wav_bytes(samples))
        lines.append(f"{number}.wav,{('angry', 'happy', 'neutral', 'sad')[number % 4]}")
    manifest = wav / "manifest.csv"
    manifest.write_text("\n".join(lines) + "\n")
    model, places = place / "sampling", iter(range(10**6))
    mifuse.train_source(
        mifuse.TrainSourceConfig(
            manifest=manifest, encoder="logmel", out=model, epochs=1, device="cpu", workers=1
        )
    )

    def passes(number: int) -> None:
        here = place / f"passes{next(places)}"
        mifuse.sample_source(
            mifuse.SampleSourceConfig(
                model=model,
                manifest=manifest,
                out=here.with_suffix(".h5"),
                n_samples=number,
                device="cpu",
                cache_dir=here,
                workers=1,
            )
        )

    many, one = in_turn(lambda: passes(PASSES), lambda: passes(2), 3)
    return [
        Row(
            f"sample-source, M = {PASSES}, log-mel",
            "two passes, the fewest",
            many.cpu_s / one.cpu_s,
            "x the CPU time",
            most=1.2,
            note=f"{clips} clips of 3 s, encoding included, CPU {many.cpu_s:.1f} s and {one.cpu_s:.1f} s",
        )
    ]


def rows(place: Path, shared: Path | None) -> list[Row]:
    return [*feature_cache(place), *dropout_passes(), *sample_source(place)]
