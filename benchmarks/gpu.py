"""A GPU: features and training of an encoder of the size of WavLM-large, against plain transformers.

``python benchmarks/gpu.py``, on a machine with a GPU of CUDA. Random weights, noise of 1 to 20 s, read from files.
``--profile`` also prints what the GPU did in one step of training.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

import torch
from encoding import BATCH, in_batches, noise
from measuring import Row, line
from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    Trainer,
    TrainingArguments,
    Wav2Vec2FeatureExtractor,
    WavLMConfig,
    WavLMForSequenceClassification,
    WavLMModel,
)

from mifuse_cli import audio
from mifuse_cli.audio import Excerpt
from mifuse_cli.cores import free_cores
from mifuse_cli.manifest import Clip
from mifuse_cli.model.classifier import Classifier, Head, Waveforms, dropout_active
from mifuse_cli.model.encoder import load_encoder
from mifuse_cli.model.encoding import Padding, encoded
from mifuse_cli.model.features import FrozenEncoder
from mifuse_cli.model.prepare import trainable_part
from mifuse_cli.model.read_ahead import reading_threads

LARGE = WavLMConfig(
    hidden_size=1024,
    num_hidden_layers=24,
    num_attention_heads=16,
    intermediate_size=4096,
    do_stable_layer_norm=True,
    feat_extract_norm="layer",
    conv_bias=True,
)
CUDA = torch.device("cuda")
CLIPS, TIMES, TRAINED, TOGETHER = 512, 20, 128, 32
"""Clips encoded, how often, clips of an epoch of training, and of a batch of it."""


def seconds(work: Callable[[], object]) -> float:
    """Wall clock until the GPU is done."""
    torch.cuda.synchronize()
    start = time.perf_counter()
    work()
    torch.cuda.synchronize()
    return time.perf_counter() - start


def matrix_rate() -> float:
    """FLOP/s of products of large bf16 matrices."""
    size, times = 8192, 20
    one, other = (torch.randn(size, size, device=CUDA, dtype=torch.bfloat16) for _ in range(2))
    seconds(lambda: one @ other)
    return 2 * size**3 * times / seconds(lambda: [one @ other for _ in range(times)])


def flops(directory: Path, paths: list[Path]) -> float:
    """FLOP that the encoder needs for these clips without padding."""
    # Attention of transformers, all of whose products are counted.
    model = WavLMModel.from_pretrained(directory).to(CUDA).eval()
    with torch.no_grad(), FlopCounterMode(display=False) as counter:
        for path in paths:
            model(torch.from_numpy(audio.read(path))[None].to(CUDA))
    return float(counter.get_total_flops())


def features(directory: Path, paths: list[Path]) -> list[Row]:
    """All hidden states, averaged over time."""
    network, padding = FrozenEncoder(directory, "bf16"), Padding()

    def ours() -> None:
        clips = list(map(Excerpt, paths * TIMES))
        for _ in encoded(clips, network, CUDA, workers=0, padding=padding):
            pass

    model = WavLMModel.from_pretrained(directory).to(CUDA).eval()
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)

    @torch.inference_mode()
    def theirs(some: list[Path]) -> None:
        for start in range(0, len(some), BATCH):
            clips = [audio.read(path) for path in some[start : start + BATCH]]
            inputs = extractor(clips, sampling_rate=audio.RATE, padding=True, return_tensors="pt").to(CUDA)
            states = model(**inputs, output_hidden_states=True).hidden_states
            torch.stack([state.mean(dim=1) for state in states], dim=1).cpu()

    theirs(paths[:BATCH])
    mine = seconds(ours) / TIMES
    some = paths[: len(paths) // 4]
    its = seconds(lambda: theirs(some)) * sum(map(audio.seconds, paths)) / sum(map(audio.seconds, some))
    heard, step = sum(map(audio.seconds, paths)), "features, WavLM-large size, bf16"
    part = paths[:: len(paths) // 32]
    reached = flops(directory, part) * heard / sum(map(audio.seconds, part)) / mine
    limit, readers = matrix_rate(), reading_threads()
    an_hour, theirs_an_hour = mine * 3600 / heard, its * 3600 / heard
    note = f"an hour of audio in {an_hour:.2f} s and {theirs_an_hour:.2f} s, padding {padding.share:.1%}"
    return [
        Row(step, "plain transformers, padded, fp32", its / mine, "x as fast", least=6, note=note),
        Row(
            step,
            "the rate of bf16 matrix products",
            100 * reached / limit,
            "% of the limit",
            least=30,
            note=f"{reached / 1e12:.0f} of {limit / 1e12:.0f} TFLOP/s, reading included, {readers} threads that read",
        ),
    ]


def training(directory: Path, paths: list[Path], profiled: bool) -> list[Row]:
    """An epoch of `--tune all`, audio read from files, against the Trainer of transformers."""
    mine, memory = _ours(directory, paths, profiled)
    torch.cuda.empty_cache()
    its, how = _trainer(directory, paths)
    heard = sum(map(audio.seconds, paths))
    note = f"{len(paths)} clips, {heard:.0f} s of audio in {mine:.2f} s ({memory:.0f} GiB) and {its:.2f} s ({how})"
    against = "Trainer of transformers, padded, bf16"
    return [Row("--tune all, WavLM-large size", against, its / mine, "x as fast", least=2, note=note)]


def _ours(directory: Path, paths: list[Path], profiled: bool) -> tuple[float, float]:
    """Seconds of an epoch, and the highest memory in GiB."""
    torch.manual_seed(0)
    encoder = trainable_part(load_encoder(directory), "all", device=CUDA)
    encoder.precision = "bf16"
    model = Classifier(encoder, Head(25, 1024, 4, 256, 0.2).to(CUDA), range(25))
    inputs = Waveforms([Clip(str(path), path) for path in paths], "source", None)
    inputs.refresh(model)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)

    def step(some: torch.Tensor) -> None:
        with dropout_active(model):
            loss = model(inputs, some).logsumexp(dim=-1).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    def epoch() -> None:
        for some in torch.randperm(len(paths)).split(TOGETHER):
            step(some)

    epoch()
    best = min(seconds(epoch) for _ in range(2))
    if profiled:
        kinds = [torch.profiler.ProfilerActivity.CPU, torch.profiler.ProfilerActivity.CUDA]
        with torch.profiler.profile(activities=kinds) as found:
            seconds(lambda: step(torch.arange(TOGETHER)))
        for order in ("cuda_time_total", "cpu_time_total"):
            table = found.key_averages().table(sort_by=order, row_limit=25, max_name_column_width=60)
            print("\n".join(row[:62] + row[-170:] for row in table.splitlines()))
    return best, torch.cuda.max_memory_allocated() / 2**30


class _Files(torch.utils.data.Dataset):  # type: ignore[type-arg]
    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, position: int) -> dict[str, Any]:
        return {"input_values": audio.read(self.paths[position]), "labels": position % 4}


def _trainer(directory: Path, paths: list[Path]) -> tuple[float, str]:
    """Seconds of the second epoch, with the largest part of a batch that fits into memory at a time."""
    extractor = Wav2Vec2FeatureExtractor(return_attention_mask=True)

    def collate(rows: list[dict[str, Any]]) -> dict[str, Any]:
        clips = [row["input_values"] for row in rows]
        inputs = extractor(clips, sampling_rate=audio.RATE, padding=True, return_tensors="pt")
        return {**inputs, "labels": torch.tensor([row["labels"] for row in rows])}

    for at_once in (TOGETHER, TOGETHER // 2, TOGETHER // 4, TOGETHER // 8):
        torch.manual_seed(0)
        model = WavLMForSequenceClassification.from_pretrained(directory, num_labels=4)
        times: list[float] = []

        class Timed(Trainer):  # type: ignore[misc]
            def training_step(self, *given: Any, times: list[float] = times, **named: Any) -> Any:
                found = super().training_step(*given, **named)
                torch.cuda.synchronize()
                times.append(time.perf_counter())
                return found

        with tempfile.TemporaryDirectory() as place:
            arguments = TrainingArguments(
                place,
                num_train_epochs=2,
                per_device_train_batch_size=at_once,
                gradient_accumulation_steps=TOGETHER // at_once,
                bf16=True,
                dataloader_num_workers=min(4, free_cores()),
                report_to=[],
                save_strategy="no",
                logging_strategy="no",
                disable_tqdm=True,
            )
            try:
                Timed(model, arguments, train_dataset=_Files(paths), data_collator=collate).train()
            except torch.cuda.OutOfMemoryError:
                del model
                torch.cuda.empty_cache()
                continue
        of_epoch = len(times) // 2
        return times[-1] - times[of_epoch - 1], f"{at_once} at a time"
    return float("nan"), "out of memory"


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--json", type=Path, help="file to write the rows to")
    parser.add_argument(
        "--profile", action="store_true", help="print what the GPU does in a step of training"
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        torch.manual_seed(0)
        WavLMModel(LARGE).save_pretrained(place / "wavlm")
        Wav2Vec2FeatureExtractor(return_attention_mask=True).save_pretrained(place / "wavlm")
        (place / "noise").mkdir()
        paths = noise(place / "noise", CLIPS)
        in_batches(paths[:1], FrozenEncoder(place / "wavlm"))
        card = torch.cuda.get_device_name()
        print(f"{card}, torch {torch.__version__}", flush=True)
        rows = []
        for some in (
            lambda: training(place / "wavlm", paths[:TRAINED], given.profile),
            lambda: features(place / "wavlm", paths),
        ):
            for row in some():
                print(line(row), flush=True)
                rows.append(row)
        if given.json is not None:
            found = [{**asdict(row), "met": row.met} for row in rows]
            given.json.write_text(json.dumps({"card": card, "rows": found}, indent=1))


if __name__ == "__main__":
    main()
