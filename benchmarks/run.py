"""Ratios that users feel: the feature cache, dropout passes, and the journal. Run with ``make bench``."""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mifuse_cli import audio
from mifuse_cli.lalm.journal import Journal
from mifuse_cli.lineage import digest
from mifuse_cli.manifest import scan
from mifuse_cli.model.classifier import Classifier, Features, Head, predict, sample
from mifuse_cli.model.encoder import LogMelEncoder
from mifuse_cli.model.features import pooled_features
from mifuse_cli.model.standard import statistics as feature_statistics

REPEATS = 5


def seconds(work: Callable[[], object]) -> float:
    """Median of the wall-clock times of several runs."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        work()
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def feature_cache(directory: Path) -> float:
    """Times faster that features come from the cache than from a log-mel encoder, 64 clips of 2 s."""
    rng = np.random.default_rng(0)
    (directory / "wav").mkdir()
    for number in range(64):
        samples = rng.normal(0, 0.1, 2 * audio.RATE).astype(np.float32)
        (directory / "wav" / f"{number}.wav").write_bytes(audio.wav_bytes(samples))
    encoder = directory / "encoder"
    encoder.mkdir()
    LogMelEncoder().save(encoder)
    clips, key, cpu = scan(directory / "wav"), digest(encoder), torch.device("cpu")
    places = iter(range(REPEATS))

    def fresh() -> None:
        pooled_features(clips, encoder, key, device=cpu, cache=directory / str(next(places)))

    cold = seconds(fresh)
    warm = seconds(lambda: pooled_features(clips, encoder, key, device=cpu, cache=directory / "0"))
    return cold / warm


def dropout_passes() -> float:
    """Cost of 10 dropout passes over that of one plain prediction, 2,000 clips, 5 layers of 384."""
    features = torch.randn(2000, 5, 384)
    model = Classifier(None, Head(5, 384, 4, 128, 0.3), range(5))
    inputs = Features(features, feature_statistics(features))
    return seconds(lambda: sample(model, inputs, 10, 0)) / seconds(lambda: predict(model, inputs))


def journal_share(directory: Path) -> float:
    """Time that the journal takes for one question (three durable commits), over a request of 0.5 s."""
    with Journal(directory / "bench.sqlite") as journal:
        keys = iter(range(10**6))

        def ask() -> None:
            for _ in range(50):
                key = str(next(keys))
                intent = journal.begin(key, 1)
                journal.store(intent, key, b"{}" * 400, http_status=200)
                journal.settle(key, outcome="ok")

        return seconds(ask) / 50 / 0.5


def main() -> None:
    """Print one line a benchmark."""
    with tempfile.TemporaryDirectory() as name:
        print(f"cached features: {feature_cache(Path(name)):.0f} times as fast as encoding")
        print(f"10 dropout passes: {dropout_passes():.1f} times the cost of one prediction")
        print(f"journal: {100 * journal_share(Path(name)):.2f} % of a request of half a second")


if __name__ == "__main__":
    main()
