"""Options of the training loop, for every step that trains students."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from mifuse_cli.config import StepConfig, above_zero, at_least, between, option

_PANEL = "Training"


@dataclass(frozen=True, kw_only=True)
class TrainingConfig(StepConfig):
    """Parent of the configurations of steps that train students."""

    epochs: int = option(30, "Epochs; the model after the last one is saved.", panel=_PANEL)
    batch_size: int = option(64, "Clips a batch, at most.", panel=_PANEL)
    learning_rate: float = option(5e-4, "AdamW learning rate of the head.", panel=_PANEL)
    weight_decay: float = option(0.01, "AdamW weight decay.", panel=_PANEL)
    diversity_weight: float = option(
        1.0,
        "Weight of the diversity loss of mifuse, lalm-sfuda, shot and nrc; 0 leaves it out.",
        panel=_PANEL,
    )
    ema: float = option(
        0.99,
        "Momentum a step of the classifier teacher of --recipe paper, which follows the student.",
        panel=_PANEL,
    )
    refresh: int = option(
        1, "Epochs between sampling the teacher of --recipe paper and fusing anew; 0: never.", panel=_PANEL
    )

    def problems(self) -> Iterable[str]:
        """Values that make no sense."""
        yield from at_least("--epochs", self.epochs, 1)
        yield from at_least("--batch-size", self.batch_size, 1)
        yield from at_least("--refresh", self.refresh, 0)
        yield from at_least("--diversity-weight", self.diversity_weight, 0)
        yield from above_zero("--learning-rate", self.learning_rate)
        yield from at_least("--weight-decay", self.weight_decay, 0)
        yield from between("--ema", self.ema, 0, 1)
