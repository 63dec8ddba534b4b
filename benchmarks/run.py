"""Ratios that users feel: cached features, dropout passes, the journal and its artifact. Run with ``make bench``."""

from __future__ import annotations

import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from mifuse_cli import audio
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.lalm import Journal, OpenQuestions, QuestionOptions, journal_path
from mifuse_cli.lalm.answers.response import decode
from mifuse_cli.lalm.questions.clips import AskedClip
from mifuse_cli.lalm.questions.plan import first_questions
from mifuse_cli.lalm.questions.prompts import Wording
from mifuse_cli.lineage import digest
from mifuse_cli.manifest import scan
from mifuse_cli.model.classifier import Classifier, Features, Head, predict, sample
from mifuse_cli.model.encoder import LogMelEncoder
from mifuse_cli.model.features import FrozenEncoder, pooled_features
from mifuse_cli.model.standard import statistics as feature_statistics
from mifuse_cli.steps.query_lalm import QueryLalmConfig
from mifuse_cli.steps.query_lalm.saving import save_artifact

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
        here = Encoding(cache_dir=directory / str(next(places)))
        pooled_features(clips, FrozenEncoder(encoder), key, device=cpu, encoding=here)

    cold = seconds(fresh)
    filled = Encoding(cache_dir=directory / "0")
    warm = seconds(lambda: pooled_features(clips, FrozenEncoder(encoder), key, device=cpu, encoding=filled))
    return cold / warm


def dropout_passes() -> tuple[float, float]:
    """Cost of 30 dropout passes over that of one plain prediction, 2,000 clips, 5 layers of 384.

    With the features at hand, and with their encoding: as measured for 64 clips of 2 s by the log-mel encoder, the
    cheapest there is.
    """
    features = torch.randn(2000, 5, 384)
    model = Classifier(None, Head(5, 384, 4, 128, 0.3), range(5))
    inputs = Features(features, feature_statistics(features))
    many, one = seconds(lambda: sample(model, inputs, 30, 0)), seconds(lambda: predict(model, inputs))
    encoder, clips = LogMelEncoder().eval(), [torch.randn(2 * audio.RATE) for _ in range(64)]
    with torch.inference_mode():
        encoding = seconds(lambda: encoder(clips)) * len(features) / len(clips)
    return many / one, (encoding + many) / (encoding + one)


BODY = json.dumps(
    {
        "choices": [{"message": {"content": '{"angry": 70, "happy": 10, "neutral": 5, "sad": 15}'}}],
        "usage": {"prompt_tokens": 120, "completion_tokens": 40, "total_tokens": 160},
    }
).encode()


def group_commit(directory: Path) -> float:
    """How many times as fast 64 requests at once are kept as one after the other."""
    keys = iter(range(10**9))
    with Journal(directory / "bench.sqlite") as journal:

        def keep(waiting: int) -> None:
            for _ in range(256 // waiting):
                begun = [(key := str(next(keys)), journal.begin(key, 1)) for _ in range(waiting)]
                done = []
                for key, intent in begun:
                    number = intent.result()
                    done.append(journal.store(number, key, BODY, http_status=200))
                    done.append(journal.settle(number, key, decode(BODY)))
                for one in done:
                    one.result()

        return seconds(lambda: keep(1)) / seconds(lambda: keep(64))


def compaction(directory: Path, clips: int = 2000) -> float:
    """Cost of making the artifact from a journal, over that of decoding the JSON of its answers alone."""
    options = QuestionOptions("h", "m", Wording(), ("angry", "happy", "neutral", "sad"), n_samples=5)
    path = journal_path(directory / "lalm.h5")
    with Journal(path) as journal:
        found = [
            AskedClip(f"{i:06}", f"{i:064}", 2.0, audio.RATE, 64044, audio.Excerpt(Path()), pieces=(2.0,))
            for i in range(clips)
        ]
        journal.add_clips(journal.new_run(), found)
        begun = [(one.key, journal.begin(one.key, 1)) for one in first_questions(options, found)]
        for key, intent in begun:
            journal.store(intent.result(), key, BODY, http_status=200)
            last = journal.settle(intent.result(), key, decode(BODY))
        last.result()
        config = QueryLalmConfig(wav_dir=directory, out=directory / "lalm.h5", model="m")
        questions = OpenQuestions(options, journal)

        def decode_json() -> None:
            for _ in begun:
                json.loads(json.loads(BODY)["choices"][0]["message"]["content"])

        return seconds(lambda: save_artifact(config, directory, questions, None)) / seconds(decode_json)


def main() -> None:
    """Print one line a benchmark."""
    with tempfile.TemporaryDirectory() as name:
        print(f"cached features: {feature_cache(Path(name)):.0f} times as fast as encoding")
        alone, encoded = dropout_passes()
        print(
            f"30 dropout passes: {alone:.1f} times the cost of one prediction, {encoded:.3f} with the encoding"
        )
        print(
            f"journal: 64 requests at once are kept {group_commit(Path(name)):.0f} times as fast as one by one"
        )
        print(
            f"artifact of 10,000 answers: {compaction(Path(name)):.0f} times the cost of decoding their JSON"
        )


if __name__ == "__main__":
    main()
