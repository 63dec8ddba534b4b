"""Time and memory of every step for n, 4n and 16n clips."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import scipy.stats  # noqa: F401  These are loaded here, so that no step is measured with loading them.
import sklearn.cluster  # noqa: F401
import torch  # noqa: F401
import transformers  # noqa: F401
from asking import service
from measuring import Row, Spent, apart

import mifuse_cli as mifuse
from mifuse_cli.audio import RATE, wav_bytes

FEW = 150
TIMES = (1, 4, 16)
CLASSES = ("angry", "happy", "neutral", "sad")


def steps(place: Path, manifest: Path, url: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every step on the clips of a manifest, in the order of their files, which are written to a directory."""
    at = {name: place / name for name in ("lalm.h5", "source.h5", "fused.h5", "scores.h5", "page.html")}
    cache: dict[str, Any] = {"cache_dir": place / "cache", "workers": 1}
    yield "validate", lambda: mifuse.validate(mifuse.ValidateConfig(paths=(manifest,)))
    yield (
        "query-lalm",
        lambda: mifuse.query_lalm(
            mifuse.QueryLalmConfig(
                manifest=manifest,
                out=at["lalm.h5"],
                model="m",
                base_url=url,
                n_samples=1,
                rpm=1e6,
                concurrency=8,
            )
        ),
    )
    yield (
        "train-source",
        lambda: mifuse.train_source(
            mifuse.TrainSourceConfig(
                manifest=manifest, encoder="logmel", out=place / "model", epochs=2, device="cpu", **cache
            )
        ),
    )
    yield (
        "sample-source",
        lambda: mifuse.sample_source(
            mifuse.SampleSourceConfig(
                model=place / "model", manifest=manifest, out=at["source.h5"], device="cpu", **cache
            )
        ),
    )
    for weighting in ("mi", "cross-fit"):
        yield (
            f"fuse --weighting {weighting}",
            lambda weighting=weighting: mifuse.fuse(
                mifuse.FuseConfig(
                    lalm=(at["lalm.h5"],),
                    source=at["source.h5"],
                    out=at["fused.h5"],
                    weighting=weighting,
                    force=True,
                )
            ),
        )
    yield (
        "train",
        lambda: mifuse.train(
            mifuse.TrainConfig(
                fused=at["fused.h5"],
                model=place / "model",
                manifest=manifest,
                out=place / "student",
                epochs=3,
                device="cpu",
                **cache,
            )
        ),
    )
    yield (
        "evaluate",
        lambda: mifuse.evaluate(
            mifuse.EvaluateConfig(
                model=place / "student", manifest=manifest, out=at["scores.h5"], device="cpu", **cache
            )
        ),
    )
    yield (
        "predict",
        lambda: mifuse.predict(
            mifuse.PredictConfig(
                model=place / "student",
                manifest=manifest,
                out=place / "predicted.csv",
                device="cpu",
                workers=1,
            )
        ),
    )
    yield "pick", lambda: mifuse.pick(mifuse.PickConfig(fused=at["fused.h5"], out=place / "pick.csv"))
    yield (
        "report",
        lambda: mifuse.report(
            mifuse.ReportConfig(paths=(at["fused.h5"], at["scores.h5"]), out=at["page.html"])
        ),
    )


def corpus(place: Path, clips: int) -> list[str]:
    """Lines of a manifest of clips of 1 s, four classes of which differ in their noise."""
    rng = np.random.default_rng(0)
    (place / "wav").mkdir()
    lines = []
    for number in range(clips):
        kind = number % len(CLASSES)
        samples = np.convolve(rng.normal(0, 0.1, RATE), np.ones(kind + 1) / (kind + 1), "same")
        (place / "wav" / f"{number:06}.wav").write_bytes(wav_bytes(samples))
        lines.append(f"wav/{number:06}.wav,{CLASSES[kind]},speaker{number // 4 % 20}")
    return lines


def rows(place: Path, shared: Path | None) -> list[Row]:
    """For every step how much longer 16n clips take than n, and the peak memory."""
    os.environ["OPENAI_API_KEY"] = "none"
    lines = corpus(place, FEW * TIMES[-1])
    found: dict[str, list[Spent]] = {}
    with service() as url:
        for times in TIMES:
            here = place / str(times)
            here.mkdir()
            manifest = place / f"{times}.csv"
            manifest.write_text("\n".join(["file,emotion,speaker", *lines[: FEW * times]]) + "\n")
            for name, work in steps(here, manifest, url):
                found.setdefault(name, []).append(apart(work))
    few, many = FEW * TIMES[0], FEW * TIMES[-1]
    made = []
    for name, (one, four, sixteen) in found.items():
        seconds = ", ".join(f"{each.cpu_s:.1f}" for each in (one, four, sixteen))
        made.append(
            Row(
                name,
                f"{few} clips of 1 s",
                sixteen.cpu_s / one.cpu_s,
                "x the CPU time for 16 x the clips",
                most=17,
                note=f"{seconds} s",
            )
        )
        megabytes = ", ".join(f"{each.peak_mb:.0f}" for each in (one, four, sixteen))
        made.append(
            Row(name, f"{many:,} clips of 1 s", sixteen.peak_mb, "MB at most", note=f"{megabytes} MB")
        )
    return made
