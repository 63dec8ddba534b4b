"""What tokens cost: a dated table of prices, and the bill of one request."""

from __future__ import annotations

import datetime
import math
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import Any

from mifuse_cli.config import load_yaml
from mifuse_cli.errors import InputError, did_you_mean

AUDIO_RATE = 50.0  # tokens per second of audio where nobody knows; above every rate known

_HIGHEST = 1e9
"""No price, rate or factor is above it; what is, is a mistake."""
_BUILT_IN = Path(__file__).with_name("prices.yaml")
_DATED = re.compile(r"(.+)-20\d\d-(?:0[1-9]|1[0-2])-(?:0[1-9]|[12]\d|3[01])")


@dataclass(frozen=True, kw_only=True)
class Price:
    """Prices of a model in USD per million tokens.

    Attributes:
        model: its name, as the server knows it.
        text_in: prompt tokens of text.
        audio_in: prompt tokens of audio.
        out: completion tokens, reasoning included.
        date: day on which the price was valid, YYYY-MM-DD.
        source: where it was read.
        cached_in: prompt tokens read from a cache; None charges them like any others, which is never too low.
        audio_tokens_per_second: None if unknown.
        batch_factor: cost in batch mode as a share of these prices.
    """

    model: str
    text_in: float
    audio_in: float
    out: float
    date: str
    source: str
    cached_in: float | None = None
    audio_tokens_per_second: float | None = None
    batch_factor: float = 1.0

    @property
    def audio_rate(self) -> float:
        """Tokens per second of audio, a high guess if unknown."""
        return AUDIO_RATE if self.audio_tokens_per_second is None else self.audio_tokens_per_second


_FIELDS = {field.name: field for field in fields(Price) if field.name != "model"}


def read_prices(path: Path | None = None) -> dict[str, Price]:
    """Built-in prices, replaced and extended model by model by those of a YAML file.

    Args:
        path: file of the form of the built-in ``prices.yaml``, or None.

    Raises:
        InputError: the file cannot be read, or a field of a model is missing, unknown or no price.
    """
    prices = _read(_BUILT_IN)
    return prices if path is None else prices | _read(path)


def price_of(model: str, prices: Mapping[str, Price]) -> Price | None:
    """Price of a model by its exact name, else by its name without a date at the end, else None."""
    if model in prices:
        return prices[model]
    dated = _DATED.fullmatch(model)
    return prices.get(dated[1]) if dated else None


def cost_of(usage: Mapping[str, int], price: Price, *, seconds: float, batch: bool = False) -> float | None:
    """Cost of one request in USD, None if the server did not count prompt and completion tokens.

    Where the server does not tell tokens of audio and of text apart, they are estimated from the duration.
    Tokens from a cache are taken for text as far as there is text, since audio would save more.

    Args:
        usage: tokens of a response, see `response.Response`.
        price: of the model.
        seconds: audio sent.
        batch: whether it was sent in batch mode.
    """
    parts = prompt_and_answer(usage, price, seconds)
    return sum(parts) * (price.batch_factor if batch else 1.0) if parts else None


def prompt_and_answer(usage: Mapping[str, int], price: Price, seconds: float) -> tuple[float, float] | None:
    """The two parts of `cost_of` outside batch mode: cost of the prompt and of all answers, in USD."""
    prompt, completion = usage.get("prompt", -1), usage.get("completion", -1)
    if prompt < 0 or completion < 0:
        return None
    # Some servers leave reasoning out of the completion and count it in the total alone.
    completion = max(completion, usage.get("total", -1) - prompt)
    audio = usage.get("audio", -1)
    if audio <= 0:  # a zero beside audio that was sent is a field that nobody filled in
        audio = math.ceil(seconds * price.audio_rate)
    audio = min(audio, prompt)
    text = prompt - audio
    cost = text * price.text_in + audio * price.audio_in
    cached = min(max(usage.get("cached", -1), 0), prompt)
    if price.cached_in is not None and cached:
        of_text = min(cached, text)
        of_audio = cached - of_text
        cost -= of_text * (price.text_in - price.cached_in) + of_audio * (price.audio_in - price.cached_in)
    return cost / 1e6, completion * price.out / 1e6


def _read(path: Path) -> dict[str, Price]:
    entries = load_yaml(path, f"--prices {path}", InputError)
    if not isinstance(entries, dict):
        raise InputError(f"{path}: found {type(entries).__name__}, expected a mapping of models to prices.")
    return {str(model): _price(path, str(model), entry) for model, entry in entries.items()}


def _price(path: Path, model: str, entry: Any) -> Price:
    where = f"{path}, {model}"
    if not isinstance(entry, dict):
        raise InputError(f"{where}: found {repr(entry)[:60]}, expected a mapping with {', '.join(_FIELDS)}.")
    for name in entry:
        if name not in _FIELDS:
            hint = did_you_mean(name, _FIELDS, "did you mean {}?") or f"expected {', '.join(_FIELDS)}."
            raise InputError(f"{where}: unknown field {name!r}; {hint}")
    given = {"source": str(path)} | entry
    for name, field in _FIELDS.items():
        if name not in given and field.default is MISSING:
            raise InputError(f"{where}: no {name}. Add it; prices are in USD per million tokens.")
    return Price(model=model, **{name: _checked(where, name, value) for name, value in given.items()})


def _checked(where: str, name: str, value: Any) -> Any:
    """Value of one field, if it may have it."""
    if name == "date":
        try:
            return datetime.date.fromisoformat(str(value)).isoformat()
        except ValueError:
            raise InputError(f"{where}: date {value!r}, expected one like 2026-01-31.") from None
    if name == "source":
        if isinstance(value, str) and value:
            return value
        raise InputError(f"{where}: source {value!r}, expected a text.")
    if value is None and _FIELDS[name].default is None:
        return None
    if type(value) not in (int, float) or not 0 <= value <= _HIGHEST:
        raise InputError(f"{where}: {name} {value!r}, expected a number from 0 to {_HIGHEST:g}.")
    return float(value)
