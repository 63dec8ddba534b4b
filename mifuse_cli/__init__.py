"""mifuse: adapt a speech emotion model to unlabelled audio with the help of an audio-language model.

Every command of the ``mifuse`` program is a function here, ``x(config: XConfig) -> XResult``::

    from mifuse_cli import FuseConfig, fuse

    result = fuse(FuseConfig(lalm="lalm.h5", source="source.h5", out="fused.h5"))

Names are imported when first used, so that ``import mifuse_cli`` costs nothing.
"""

from importlib import import_module

__version__ = "0.1.0"

_STEPS = {
    "prepare": "Prepare",
    "train_source": "TrainSource",
    "query_lalm": "QueryLalm",
    "sample_source": "SampleSource",
    "fuse": "Fuse",
    "train": "Train",
    "evaluate": "Evaluate",
    "compare": "Compare",
    "show": "Show",
    "validate": "Validate",
}
_HOME = {
    name: f"mifuse_cli.steps.{step}"
    for step, stem in _STEPS.items()
    for name in (step, f"{stem}Config", f"{stem}Result")
}

__all__ = ["__version__", *_HOME]


def __getattr__(name: str):
    if name in _HOME:
        return getattr(import_module(_HOME[name]), name)
    raise AttributeError(f"module 'mifuse_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
