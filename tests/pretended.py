"""Artifacts of transfers that nobody ran: planted distributions, with their lineage, in the recipes' directories."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import soundfile
from conftest import CLASSES, RATE, tone, write_csv

import mifuse_cli as m
from mifuse_cli import fusion, lineage, provenance
from mifuse_cli.artifacts import Fused, Header, Lalm, Parent, Predictions, Source, Training
from mifuse_cli.lalm import USAGE, Status

MI = m.FusionSettings(weighting="mi")


@dataclass(frozen=True)
class Corpus:
    """A target: ``clips`` clips of ten voices, of which the first ``sounds`` have audio."""

    directory: Path
    classes: tuple[str, ...] = CLASSES
    clips: int = 24
    sounds: int = 0
    seed: int = 0
    mark: str = ""

    @property
    def ids(self) -> list[str]:
        return sorted(f"clip-{n:05}{self.mark}" for n in range(self.clips))

    @property
    def truth(self) -> np.ndarray:
        return np.random.default_rng(self.seed).integers(0, len(self.classes), self.clips)

    @property
    def manifest(self) -> Path:
        return self.directory / "manifest.csv"

    @property
    def labels(self) -> Path:
        return self.directory / "labels.csv"

    def write(self) -> "Corpus":
        self.directory.mkdir(parents=True)
        rows = []
        for n, (name, label) in enumerate(zip(self.ids, self.truth, strict=True)):
            file = f"wav/{n:05}.wav"
            if n < self.sounds:
                (self.directory / "wav").mkdir(exist_ok=True)
                sound = tone(200 + 40 * (n % 9), 0.3, np.random.default_rng(n), 0.6)
                soundfile.write(self.directory / file, sound, RATE)
            rows.append({"file": file, "utt_id": name, "speaker": f"voice {n % 10}{self.mark}"})
            rows[-1]["emotion"] = self.classes[label]
        write_csv(self.labels, rows)
        write_csv(self.manifest, [{k: v for k, v in row.items() if k != "emotion"} for row in rows])
        return self

    def header(self, out: Path, parents=(), seed=0, **parameters) -> Header:
        clips = Parent(
            "clips", lineage.relative(self.manifest, out), provenance.text_digest(str(self.directory))
        )
        return Header(self.classes, seed, {"settings": {}, "out": str(out)}, parameters, (*parents, clips))

    def samples(self, seed: int, number: int, skill: float) -> np.ndarray:
        """Distributions (U, N, K) that favour the true class by so much."""
        rng = np.random.default_rng(seed)
        logits = rng.normal(0, 1, (self.clips, 1, len(self.classes)))
        logits = logits + rng.normal(0, 0.5, (self.clips, number, len(self.classes)))
        logits[np.arange(self.clips), :, self.truth] += skill
        weights = np.exp(logits)
        return (weights / weights.sum(axis=-1, keepdims=True)).astype(np.float32)


def pretend_lalm(
    corpus: Corpus, out: Path, text: str = '{"angry": 100}', seed: int = 0, model: str = "standin"
) -> Path:
    """Three answers a clip, the first clip's last one refused."""
    probs = corpus.samples(10 + seed, 3, 1.0)
    status = np.full(probs.shape[:2], int(Status.OK), dtype=np.uint8)
    status[0, 2], probs[0, 2] = int(Status.REFUSED), np.nan
    raw = np.frombuffer((text * status.size).encode(), dtype=np.uint8)
    ends = (1 + np.arange(status.size)).reshape(status.shape) * len(text.encode())
    summary = {
        "clips": corpus.clips, "samples": 3, "complete": True, "without_answer": 0, "mean_mi": 0.1,
        "statuses": {"ok": status.size - 1, "refused": 1}, "tokens": {"prompt": 720, "completion": 360},
        "requests": {"sent": status.size, "answered": status.size}, "spent_usd": 0.0123,
    }  # fmt: skip
    Lalm(
        header=corpus.header(
            out,
            model=model,
            host="localhost",
            status_codes={one.name.lower(): int(one) for one in Status},
            spec={"system": f"You listen. {text}", "template": "Which emotion?", "elicit": "verbalized"},
            summary=summary,
        ),
        utt_id=np.array(corpus.ids),
        audio_sha256=np.array(["0" * 64] * corpus.clips),
        probs=probs,
        status=status,
        order=np.broadcast_to(np.arange(len(corpus.classes), dtype=np.uint8), probs.shape).copy(),
        usage=np.full((*status.shape, len(USAGE)), -1, dtype=np.int32),
        raw=raw,
        raw_end=ends.astype(np.int64),
    ).save(out)
    return out


def pretend_transfer(
    corpus: Corpus,
    directory: Path,
    lalm: Path,
    seed: int = 0,
    evaluated: bool = True,
    model: Path | None = None,
) -> None:
    """Source samples, by a model if one is given, fused labels and a student in ``directory``, and its evaluations
    if wanted.
    """
    directory.mkdir(parents=True, exist_ok=True)
    ids = np.array(corpus.ids)
    source, fused, student = directory / "source.h5", directory / "fused.h5", directory / "mifuse"
    samples = corpus.samples(100 + seed, 4, 0.6)
    Source(
        header=corpus.header(
            source,
            () if model is None else (Parent("model", lineage.relative(model, source), "0" * 64),),
            seed,
            normalize="source",
            calibrate=False,
            seen_in_training=0.0,
        ),
        utt_id=ids,
        probs=samples,
        point=samples.mean(axis=1),
        speaker=np.array([f"voice {n % 10}{corpus.mark}" for n in range(corpus.clips)]),
    ).save(source)
    answers = Lalm.load(lalm).probs
    found = fusion.fuse_samples([answers, samples], MI, random=np.random.default_rng)
    parents = (lineage.parent("lalm", lalm, fused), lineage.parent("source", source, fused))
    forecast = {"ua": {"lalm": 0.6, "source": 0.5, "labels": 0.7}, "at_chance": [], "unnamed": []}
    Fused(
        header=corpus.header(
            fused, parents, seed, teachers=["lalm", "source"], **MI.parameters(), forecast=forecast
        ),
        utt_id=ids,
        probs=found.probs.astype(np.float32),
        weights=found.weights.astype(np.float32),
        mean=found.mean.astype(np.float32),
        mi=found.mi.astype(np.float32),
        recall=np.full((2, len(corpus.classes)), 0.5, dtype=np.float32),
        prior=np.full(len(corpus.classes), 1 / len(corpus.classes), dtype=np.float32),
    ).save(fused)
    student.mkdir()
    history = np.linspace(1, 0.4, 12).reshape(6, 2)
    parent = (lineage.parent("fused", fused, student / "train.h5"),)
    told = {
        "method": "mifuse",
        "checkpoint": "last",
        "normalize": "source",
        "refresh": 1,
        "fusion": MI.parameters(),
    }
    Training(
        header=corpus.header(student / "train.h5", parent, seed, **told),
        utt_id=ids,
        columns_of_history=np.array(["cross_entropy", "diversity"]),
        history=history,
    ).save(student / "train.h5")
    Predictions(
        header=corpus.header(student / "predictions.h5", parent, seed, **told),
        utt_id=ids,
        probs=corpus.samples(200 + seed, 1, 1.6)[:, 0],
    ).save(student / "predictions.h5")
    if evaluated:
        rows = {"source-only": source, "lalm": lalm, "fused": fused, "mifuse": student / "predictions.h5"}
        for name, predictions in rows.items():
            out = directory / f"eval-{name}.h5"
            m.evaluate(
                m.EvaluateConfig(predictions=predictions, manifest=corpus.labels, out=out, resamples=100)
            )


def pretend_model(corpus: Corpus, directory: Path) -> Path:
    """The history of a source model that was trained on a corpus."""
    directory.mkdir(parents=True)
    Training(
        header=corpus.header(directory / "train.h5", encoder="logmel"),
        utt_id=np.array([f"{corpus.directory.name}-{name}" for name in corpus.ids]),
        columns_of_history=np.array(["cross_entropy"]),
        history=np.linspace(1, 0.4, 6).reshape(6, 1),
    ).save(directory / "train.h5")
    return directory


def pretend_experiment(
    root: Path, names=("anna", "bob", "carla"), seeds=(0, 1), clips: int = 24, sounds: int = 3
) -> Path:
    """The directory that recipes/run_all_transfers.sh makes: all transfers between the corpora."""
    expdir = root / "exp"
    corpora = {
        name: Corpus(root / "data" / name, clips=clips, sounds=sounds, seed=number).write()
        for number, name in enumerate(names)
    }
    for name, corpus in corpora.items():
        (expdir / "lalm").mkdir(parents=True, exist_ok=True)
        pretend_lalm(corpus, expdir / "lalm" / f"{name}.h5")
    for source in names:
        models = {
            seed: pretend_model(corpora[source], expdir / "models" / source / f"seed{seed}") for seed in seeds
        }
        for target, corpus in corpora.items():
            for seed in seeds if source != target else ():
                directory = expdir / f"{source}-{target}" / f"seed{seed}"
                pretend_transfer(
                    corpus, directory, expdir / "lalm" / f"{target}.h5", seed, model=models[seed]
                )
    return expdir
