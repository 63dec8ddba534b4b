"""More LALMs that were asked about the clips of a run."""

from dataclasses import replace

import numpy as np

import mifuse_cli as m
from mifuse_cli.artifacts import Lalm


def ask_another(run, name, seed=0, silent=(), model="m", **parameters):
    """The answers of another LALM about the same clips, in a file of this name."""
    lalm = Lalm.load(run.lalm)
    rng = np.random.default_rng(seed)
    probs = rng.dirichlet(np.ones(4), size=lalm.probs.shape[:2]).astype(np.float32)
    probs[list(silent)] = np.nan
    path = run.root / name
    path.parent.mkdir(exist_ok=True)
    header = replace(lalm.header, parameters={**lalm.header.parameters, "model": model, **parameters})
    replace(lalm, probs=probs, header=header).save(path)
    return path


def fuse_config(run, lalm, **changes):
    values = {"lalm": lalm, "source": run.source, "out": run.root / "f.h5", "weighting": "mi"}
    return m.FuseConfig(**{**values, **changes})
