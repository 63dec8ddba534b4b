"""Clips to be labelled in the page: what the listener needs and nothing that a model says of them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class ClipToLabel:
    """A clip to label.

    Attributes:
        utt_id: id.
        file: its audio as the CSV of pick names it, for the CSV that the page hands out.
        speaker: its speaker, "" where not known.
        inclusion: probability with which it was picked, as text; "" where not known.
        audio: where the page finds it, None where it is not known.
    """

    utt_id: str
    file: str
    speaker: str
    inclusion: str
    audio: str | None


@dataclass(frozen=True)
class Labelling:
    """Clips to label, in order, and the classes to choose from."""

    classes: tuple[str, ...]
    clips: Sequence[ClipToLabel]

    def plain(self) -> dict[str, Any]:
        """For the page; ``key`` is that under which the browser keeps the labels."""
        content = json.dumps([self.classes, [one.utt_id for one in self.clips]])
        key = hashlib.sha256(content.encode()).hexdigest()[:16]
        clips = [asdict(one) for one in self.clips]
        return {"key": f"mifuse-labels-{key}", "classes": list(self.classes), "clips": clips}
