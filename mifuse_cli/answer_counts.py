"""What can be said of the answers of an audio-language model in numbers."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from mifuse_cli import fusion


class AnswerCounts:
    """Counts, tokens and mutual information of answers, summed up block by block."""

    def __init__(self) -> None:
        self.clips = self.without_answer = 0
        self.mi = 0.0
        self.statuses: Counter[int] = Counter()
        self.tokens = np.zeros(2, dtype=np.int64)

    def add(self, probs: np.ndarray, status: np.ndarray, usage: np.ndarray) -> None:
        """Count a block of U clips: distributions (U, N, K), outcomes (U, N), tokens (U, N, V)."""
        _, mi = fusion.mean_and_mi(probs.astype(float))
        self.clips += len(probs)
        self.without_answer += int(np.isnan(mi).sum())
        self.mi += float(np.nansum(mi))
        self.statuses.update(status.ravel().tolist())
        self.tokens += np.where(usage[..., :2] > 0, usage[..., :2], 0).sum(axis=(0, 1))

    def summary(
        self,
        samples: int,
        accounts: Mapping[str, float],
        *,
        priced: bool,
        codes: Mapping[str, int],
        usage: Sequence[str],
    ) -> dict[str, Any]:
        """Fields of a `QueryLalmResult`, fit for JSON; they are stored in the artifact.

        Args:
            samples: N.
            accounts: of the journal, see `Journal.accounts`.
            priced: whether the price of the model is known.
            codes: of the outcomes, by name.
            usage: names of the token counts.
        """
        answered = self.clips - self.without_answer
        sent = {name: int(number) for name, number in accounts.items() if name != "spent"}
        names = {code: name for name, code in codes.items()}
        return {
            "clips": self.clips,
            "samples": samples,
            "complete": not self.statuses[codes["missing"]],
            "statuses": {names[code]: number for code, number in sorted(self.statuses.items())},
            "without_answer": self.without_answer,
            "mean_mi": self.mi / answered if answered else None,
            "tokens": dict(zip(usage, self.tokens.tolist(), strict=False)),
            "requests": sent,
            "spent_usd": accounts["spent"] if priced else None,
        }
