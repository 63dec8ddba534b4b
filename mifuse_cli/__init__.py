"""mifuse: adapt a speech emotion model to unlabelled audio with the help of an audio-language model.

Every command of the ``mifuse`` program is a function here, ``x(config: XConfig) -> XResult``, that reads and writes
files::

    from mifuse_cli import FuseConfig, fuse

    result = fuse(FuseConfig(lalm="lalm.h5", source="source.h5", out="fused.h5"))

Functions over arrays need no files: `parse_answer`, `fuse_arrays`, `train_head`, `adapt_head`, `predict_clips`,
`score_predictions`.

Names are imported when first used, so that ``import mifuse_cli`` costs nothing.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:  # The same names for type checkers; a test compares both.
    from mifuse_cli.errors import ArtifactError as ArtifactError
    from mifuse_cli.errors import DependencyError as DependencyError
    from mifuse_cli.errors import InputError as InputError
    from mifuse_cli.errors import MifuseError as MifuseError
    from mifuse_cli.errors import RemoteError as RemoteError
    from mifuse_cli.errors import UsageError as UsageError
    from mifuse_cli.evaluation import Score as Score
    from mifuse_cli.fusion import Fusion as Fusion
    from mifuse_cli.fusion import FusionSettings as FusionSettings
    from mifuse_cli.lalm import Parsed as Parsed
    from mifuse_cli.lalm import parse_answer as parse_answer
    from mifuse_cli.notebook import TrainedHead as TrainedHead
    from mifuse_cli.notebook import adapt_head as adapt_head
    from mifuse_cli.notebook import fuse_arrays as fuse_arrays
    from mifuse_cli.notebook import predict_clips as predict_clips
    from mifuse_cli.notebook import score_predictions as score_predictions
    from mifuse_cli.notebook import train_head as train_head
    from mifuse_cli.steps.cache import CacheConfig as CacheConfig
    from mifuse_cli.steps.cache import CacheResult as CacheResult
    from mifuse_cli.steps.cache import cache as cache
    from mifuse_cli.steps.compare import CompareConfig as CompareConfig
    from mifuse_cli.steps.compare import CompareResult as CompareResult
    from mifuse_cli.steps.compare import compare as compare
    from mifuse_cli.steps.compare_worlds import CompareWorldsConfig as CompareWorldsConfig
    from mifuse_cli.steps.compare_worlds import CompareWorldsResult as CompareWorldsResult
    from mifuse_cli.steps.compare_worlds import compare_worlds as compare_worlds
    from mifuse_cli.steps.doctor import DoctorConfig as DoctorConfig
    from mifuse_cli.steps.doctor import DoctorResult as DoctorResult
    from mifuse_cli.steps.doctor import doctor as doctor
    from mifuse_cli.steps.evaluate import EvaluateConfig as EvaluateConfig
    from mifuse_cli.steps.evaluate import EvaluateResult as EvaluateResult
    from mifuse_cli.steps.evaluate import evaluate as evaluate
    from mifuse_cli.steps.export import ExportConfig as ExportConfig
    from mifuse_cli.steps.export import ExportResult as ExportResult
    from mifuse_cli.steps.export import export as export
    from mifuse_cli.steps.fuse import FuseConfig as FuseConfig
    from mifuse_cli.steps.fuse import FuseResult as FuseResult
    from mifuse_cli.steps.fuse import fuse as fuse
    from mifuse_cli.steps.merge import MergeConfig as MergeConfig
    from mifuse_cli.steps.merge import MergeResult as MergeResult
    from mifuse_cli.steps.merge import merge as merge
    from mifuse_cli.steps.pick import PickConfig as PickConfig
    from mifuse_cli.steps.pick import PickResult as PickResult
    from mifuse_cli.steps.pick import pick as pick
    from mifuse_cli.steps.predict import PredictConfig as PredictConfig
    from mifuse_cli.steps.predict import PredictResult as PredictResult
    from mifuse_cli.steps.predict import predict as predict
    from mifuse_cli.steps.prepare import PrepareConfig as PrepareConfig
    from mifuse_cli.steps.prepare import PrepareResult as PrepareResult
    from mifuse_cli.steps.prepare import prepare as prepare
    from mifuse_cli.steps.query_lalm import QueryLalmConfig as QueryLalmConfig
    from mifuse_cli.steps.query_lalm import QueryLalmResult as QueryLalmResult
    from mifuse_cli.steps.query_lalm import query_lalm as query_lalm
    from mifuse_cli.steps.report import ReportConfig as ReportConfig
    from mifuse_cli.steps.report import ReportResult as ReportResult
    from mifuse_cli.steps.report import report as report
    from mifuse_cli.steps.sample_source import SampleSourceConfig as SampleSourceConfig
    from mifuse_cli.steps.sample_source import SampleSourceResult as SampleSourceResult
    from mifuse_cli.steps.sample_source import sample_source as sample_source
    from mifuse_cli.steps.show import ShowConfig as ShowConfig
    from mifuse_cli.steps.show import ShowResult as ShowResult
    from mifuse_cli.steps.show import show as show
    from mifuse_cli.steps.train import TrainConfig as TrainConfig
    from mifuse_cli.steps.train import TrainResult as TrainResult
    from mifuse_cli.steps.train import train as train
    from mifuse_cli.steps.train_source import TrainSourceConfig as TrainSourceConfig
    from mifuse_cli.steps.train_source import TrainSourceResult as TrainSourceResult
    from mifuse_cli.steps.train_source import train_source as train_source
    from mifuse_cli.steps.validate import ValidateConfig as ValidateConfig
    from mifuse_cli.steps.validate import ValidateResult as ValidateResult
    from mifuse_cli.steps.validate import validate as validate

_HOME = {
    "notebook": (
        "TrainedHead",
        "adapt_head",
        "fuse_arrays",
        "predict_clips",
        "score_predictions",
        "train_head",
    ),
    "errors": (
        "ArtifactError",
        "DependencyError",
        "InputError",
        "MifuseError",
        "RemoteError",
        "UsageError",
    ),
    "evaluation": ("Score",),
    "fusion": ("Fusion", "FusionSettings"),
    "lalm": ("Parsed", "parse_answer"),
    "steps.cache": ("CacheConfig", "CacheResult", "cache"),
    "steps.compare": ("CompareConfig", "CompareResult", "compare"),
    "steps.compare_worlds": ("CompareWorldsConfig", "CompareWorldsResult", "compare_worlds"),
    "steps.doctor": ("DoctorConfig", "DoctorResult", "doctor"),
    "steps.evaluate": ("EvaluateConfig", "EvaluateResult", "evaluate"),
    "steps.export": ("ExportConfig", "ExportResult", "export"),
    "steps.fuse": ("FuseConfig", "FuseResult", "fuse"),
    "steps.merge": ("MergeConfig", "MergeResult", "merge"),
    "steps.predict": ("PredictConfig", "PredictResult", "predict"),
    "steps.pick": ("PickConfig", "PickResult", "pick"),
    "steps.prepare": ("PrepareConfig", "PrepareResult", "prepare"),
    "steps.query_lalm": ("QueryLalmConfig", "QueryLalmResult", "query_lalm"),
    "steps.report": ("ReportConfig", "ReportResult", "report"),
    "steps.sample_source": ("SampleSourceConfig", "SampleSourceResult", "sample_source"),
    "steps.show": ("ShowConfig", "ShowResult", "show"),
    "steps.train": ("TrainConfig", "TrainResult", "train"),
    "steps.train_source": ("TrainSourceConfig", "TrainSourceResult", "train_source"),
    "steps.validate": ("ValidateConfig", "ValidateResult", "validate"),
}
_MODULE_OF = {name: f"mifuse_cli.{module}" for module, names in _HOME.items() for name in names}

__all__ = ["__version__", *_MODULE_OF]


def __getattr__(name: str) -> Any:
    if name in _MODULE_OF:
        return getattr(import_module(_MODULE_OF[name]), name)
    raise AttributeError(f"module 'mifuse_cli' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
