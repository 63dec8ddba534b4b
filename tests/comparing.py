"""What the tests of `mifuse compare` share: two corpora with models and answers, and two comparisons of them."""

import os
import threading
from pathlib import Path

import pytest
from conftest import KEY, Lalm, make_corpus, write_csv

import mifuse_cli as m
from mifuse_cli.artifacts import Compared

SEEDS = (0, 1)


@pytest.fixture(scope="session")
def world(tmp_path_factory, encoders) -> Path:
    """Two corpora, a with labels in its one manifest and b with them apart; models of two seeds; four answers."""
    root = tmp_path_factory.mktemp("world")
    server = Lalm()
    threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True).start()
    os.environ["OPENAI_API_KEY"] = KEY
    try:
        for name, seed in (("a", 1), ("b", 2)):
            directory = root / "data" / name
            rows = make_corpus(directory, seed)
            labels = write_csv(directory / ("metadata.csv" if name == "a" else "labels.csv"), rows)
            if name == "b":
                write_csv(directory / "manifest.csv", [{k: r[k] for k in ("file", "speaker")} for r in rows])
            for seed in SEEDS:
                out = root / "models" / name / f"seed{seed}"
                m.train_source(
                    m.TrainSourceConfig(
                        manifest=labels, encoder=str(encoders["whisper"]), out=out, epochs=4, seed=seed
                    )
                )
            m.query_lalm(
                m.QueryLalmConfig(
                    manifest=labels, out=root / f"lalm/{name}.h5", model="m", base_url=server.url, n_samples=4
                )
            )
    finally:
        del os.environ["OPENAI_API_KEY"]
        server.shutdown()
        server.server_close()
    return root


def config(world, out, **changes) -> m.CompareConfig:
    values = {"seeds": "0", "systems": "main", "epochs": 2, "n_answers": 3, "n_samples": 3, "jobs": 1}
    places = {"data": world / "data", "models": world / "models", "lalm": world / "lalm"}
    return m.CompareConfig(out=out, **{**places, **values, "resamples": 100, **changes})


def predictions(out, run="a/b/seed0"):
    """Predictions (U, K) of a run by the name of the system."""
    made = Compared.load(out / f"runs/{run}.h5")
    return dict(zip(made.systems.tolist(), made.probs, strict=True))


@pytest.fixture(scope="session")
def compared(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("compared") / "out"
    return m.compare(config(world, out, systems="main,oracle,ablations"))


@pytest.fixture(scope="session")
def inductive(world, tmp_path_factory):
    out = tmp_path_factory.mktemp("inductive") / "out"
    return m.compare(config(world, out, protocol="inductive", folds=3))
