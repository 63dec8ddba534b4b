"""Fusing a million clips, the structure of 200,000, and scoring 100,000."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import h5py
import numpy as np
from measuring import Row, apart, in_turn

import mifuse_cli as mifuse
from mifuse_cli import fusion
from mifuse_cli.artifacts import Header, Lalm, Source
from mifuse_cli.evaluation import score
from mifuse_cli.fusion.cross_fit import Structure, cross_fit
from mifuse_cli.lalm.answers.parsing import Status

CLASSES = ("angry", "happy", "neutral", "sad")
CLIPS, ANSWERS, PASSES = 1_000_000, 5, 10
EPS = 1e-12


def teachers(place: Path, clips: int) -> tuple[Path, Path]:
    """Artifacts of both teachers with random distributions."""
    rng = np.random.default_rng(0)
    ids = np.char.add("clip", np.char.zfill(np.arange(clips).astype("U7"), 7))

    codes = {"status_codes": {one.name.lower(): int(one) for one in Status}, "spec": {}, "summary": {}}
    shape, lalm, source = (clips, ANSWERS), place / "lalm.h5", place / "source.h5"
    Lalm(
        Header(CLASSES, parameters={**codes, "model": "m", "host": "h"}),
        ids,
        np.full(clips, "0" * 64),
        _drawn(rng, clips, ANSWERS),
        np.full(shape, int(Status.OK), np.uint8),
        np.broadcast_to(np.arange(4, dtype=np.uint8), (*shape, 4)).copy(),
        np.full((*shape, 5), -1, np.int32),
        np.zeros(clips * ANSWERS, np.uint8),
        1 + np.arange(clips * ANSWERS).reshape(shape),
    ).save(lalm)
    passes = _drawn(rng, clips, PASSES)
    point = passes.mean(axis=1)
    made = Header(CLASSES, parameters={"normalize": "source", "calibrate": False})
    Source(made, ids, passes, point / point.sum(axis=-1, keepdims=True)).save(source)
    return lalm, source


def _drawn(rng: np.random.Generator, clips: int, times: int) -> np.ndarray:
    values = rng.random((clips, times, len(CLASSES)), dtype=np.float32)
    return values / values.sum(axis=-1, keepdims=True)


def weighted(samples: Sequence[np.ndarray]) -> dict[str, np.ndarray]:
    """The straightforward way, in float64: I = H(mean p) - mean H(p), and the mean weighted by 1 / I."""
    means, gains = [], []
    for stored in samples:
        p = stored.astype(float)
        mean = p.mean(axis=1)
        entropy = -(mean * np.log(mean + EPS)).sum(axis=-1)
        gains.append(entropy + (p * np.log(p + EPS)).sum(axis=-1).mean(axis=-1))
        means.append(mean)
    mean, gain = np.stack(means, axis=1), np.stack(gains, axis=1)
    weights = 1 / (gain + 1e-6)
    weights /= weights.sum(axis=1, keepdims=True)
    return {"mean": mean, "mi": gain, "weights": weights, "probs": np.einsum("ut,utk->uk", weights, mean)}


def plain(lalm: Path, source: Path, out: Path) -> None:
    """`weighted` from file to file."""
    samples = []
    for path in (lalm, source):
        with h5py.File(path) as file:
            samples.append(file["probs"][:])
            ids = file["utt_id"][:]
    with h5py.File(out, "w") as file:
        file["utt_id"] = ids
        for name, values in weighted(samples).items():
            file[name] = values


def weighting(place: Path) -> list[Row]:
    """`fuse --weighting mi` of a million clips."""
    lalm, source = place / "lalm.h5", place / "source.h5"
    apart(lambda: teachers(place, CLIPS))

    def ours() -> None:
        out = place / "fused.h5"
        mifuse.fuse(mifuse.FuseConfig(lalm=(lalm,), source=source, out=out, weighting="mi", force=True))

    mine, theirs = in_turn(ours, lambda: plain(lalm, source, place / "plain.h5"), 2, apart)
    lalm.unlink()
    source.unlink()
    size = f"{CLIPS:,} clips x ({ANSWERS} + {PASSES}) x {len(CLASSES)}: "
    return [
        Row(
            "fuse --weighting mi, files to files",
            "plain float64 NumPy and h5py, no checks",
            theirs.cpu_s / mine.cpu_s,
            "x as fast",
            note=f"{size}CPU {mine.cpu_s:.1f} s, plain {theirs.cpu_s:.1f} s",
        ),
        Row(
            "fuse --weighting mi, files to files",
            "plain float64 NumPy and h5py, no checks",
            mine.peak_mb,
            "MB at most",
            most=500,
            note=f"plain {theirs.peak_mb:.0f} MB",
        ),
    ]


def in_memory(place: Path) -> list[Row]:
    """The same of arrays, as in a notebook."""
    rng, samples = np.random.default_rng(0), []
    for times in (ANSWERS, PASSES):
        samples.append(_drawn(rng, CLIPS, times))
    settings = fusion.FusionSettings(weighting="mi")
    mine, theirs = in_turn(
        lambda: fusion.fuse_samples(samples, settings), lambda: weighted(samples), 3, apart
    )
    note = f"CPU {mine.cpu_s:.2f} s, plain {theirs.cpu_s:.2f} s"
    return [
        Row(
            "fuse --weighting mi, in memory",
            "plain float64 NumPy",
            theirs.cpu_s / mine.cpu_s,
            "x as fast",
            least=3,
            note=note,
        )
    ]


def structure_of(clips: int) -> None:
    """The default fusion of made-up clips: 3 layers of 384 features, 12 voices."""
    layers, features, voices, at_once = 3, 384, 12, 1000
    rng = np.random.default_rng(0)
    true, voice = rng.integers(len(CLASSES), size=clips), rng.integers(voices, size=clips)
    of_class = 0.1 * rng.standard_normal((len(CLASSES), layers, features), np.float32)
    of_voice = rng.standard_normal((voices, layers, features), np.float32)
    hidden = np.empty((clips, layers, features), np.float32)
    for start in range(0, clips, at_once):
        part = slice(start, start + at_once)
        hidden[part] = of_class[true[part]] + of_voice[voice[part]]
        hidden[part] += rng.standard_normal(hidden[part].shape, np.float32)

    def teacher() -> np.ndarray:
        right = np.where(rng.random(clips) < 0.6, true, rng.integers(len(CLASSES), size=clips))
        return 0.6 * np.eye(len(CLASSES))[right] + 0.1

    lalm, source = teacher(), teacher()
    with_source = Structure(source, hidden, hidden, lambda heads, number: source)
    cross_fit(lalm, with_source, rng=np.random.default_rng(1))


def structure(place: Path) -> list[Row]:
    """The default fusion of 20,000 clips and of ten times as many, their making included."""
    few, many = (apart(lambda clips=clips: structure_of(clips)) for clips in (20_000, 200_000))
    note = f"200,000 clips x 1,152 features: CPU {many.cpu_s:.0f} s, of 20,000 {few.cpu_s:.0f} s"
    step = "fuse, structure"
    return [
        Row(
            step,
            "20,000 clips",
            many.cpu_s / few.cpu_s,
            "x the CPU time for 10 x the clips",
            most=12,
            note=note,
        ),
        Row(step, "20,000 clips", many.peak_mb, "MB at most", most=4096, note=f"{few.peak_mb:.0f} MB"),
    ]


def scoring(place: Path) -> list[Row]:
    """Intervals of 100,000 clips by 10,000 draws."""
    from sklearn.metrics import balanced_accuracy_score

    clips, draws, some = 100_000, 10_000, 20
    rng = np.random.default_rng(0)
    truth, probs = rng.integers(4, size=clips), rng.dirichlet(np.ones(4), clips)
    said = probs.argmax(axis=1)

    def loop() -> None:
        for _ in range(some):
            chosen = rng.integers(clips, size=clips)
            balanced_accuracy_score(truth[chosen], said[chosen])

    mine, theirs = in_turn(lambda: score(truth, probs, resamples=draws, rng=rng), loop, 3)
    slower = theirs.cpu_s * draws / some
    note = f"{clips:,} clips, {draws:,} draws: CPU {mine.cpu_s:.2f} s, the loop {slower:.0f} s (measured: {some} draws)"
    return [
        Row("evaluate", "a loop over scikit-learn", slower / mine.cpu_s, "x as fast", least=50, note=note)
    ]


def rows(place: Path, shared: Path | None) -> list[Row]:
    return [*weighting(place), *in_memory(place), *scoring(place), *structure(place)]
