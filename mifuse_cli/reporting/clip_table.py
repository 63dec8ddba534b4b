"""The table of clips as the page draws it: columns of plain values, which the page sorts and filters itself."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from mifuse_cli import fusion
from mifuse_cli.artifacts import Lalm
from mifuse_cli.reporting.predictors import Run

_LONGEST = 2000
"""Characters of a raw answer that are shown."""


def clips_of(run: Run, audio: Sequence[str | None]) -> dict[str, Any]:
    """Columns of the table, all of length U.

    Args:
        run: with its clips.
        audio: for every clip where the page finds its audio, or None.
    """
    main = [run.predictors.index(one) for one in run.main]
    teachers = [one for one in run.main if one.role in ("lalm", "source")]
    means = np.stack([one.probs for one in teachers], axis=1) if teachers else None
    disagreement = None if means is None else fusion.disagreements(means)
    uncertain = [one.mi for one in teachers if one.mi is not None]
    return {
        "classes": list(run.classes),
        "id": run.utt_id.tolist(),
        "speaker": run.speaker.tolist(),
        "audio": list(audio),
        "truth": run.truth.tolist(),
        "main": main,
        "disagreement": _rounded(disagreement, len(run.utt_id)),
        "uncertainty": _rounded(_highest(uncertain), len(run.utt_id)),
        "predictors": [
            {
                "name": one.name,
                "role": one.role,
                "probs": _rows(one.probs),
                "mi": None if one.mi is None else _rounded(one.mi, len(run.utt_id)),
            }
            for one in run.predictors
        ],
    }


def answers_of(run: Run) -> dict[str, list[list[list[str]]]]:
    """By LALM, for every clip its answers as pairs of outcome and raw text."""
    return {name: _answers(one, run.utt_id) for name, one in run.lalms.items()}


def _answers(one: Lalm, utt_id: np.ndarray) -> list[list[list[str]]]:
    codes = {code: name for name, code in one.header.parameters["status_codes"].items()}
    at = {name: number for number, name in enumerate(one.utt_id.tolist())}
    found = []
    for name in utt_id.tolist():
        u = at.get(name)
        samples = range(one.status.shape[1]) if u is not None else ()
        found.append(
            [
                [codes.get(int(one.status[u, n]), "?").replace("_", " "), one.raw_answer(u, n)[:_LONGEST]]
                for n in samples
                if u is not None
            ]
        )
    return found


def _highest(columns: Sequence[np.ndarray]) -> np.ndarray | None:
    """The highest value (U,) of several columns (U,), NaN where none has one."""
    if not columns:
        return None
    values = np.stack(columns)
    found = np.where(np.isnan(values), -np.inf, values).max(axis=0)
    return np.where(np.isfinite(found), found, np.nan)


def _rows(probs: np.ndarray) -> list[list[float] | None]:
    rounded = np.round(probs, 3).tolist()
    missing = np.isnan(probs).any(axis=1)
    return [None if gone else row for row, gone in zip(rounded, missing, strict=True)]


def _rounded(values: np.ndarray | None, clips: int) -> list[float | None]:
    if values is None:
        return [None] * clips
    return [None if np.isnan(value) else round(float(value), 4) for value in values]
