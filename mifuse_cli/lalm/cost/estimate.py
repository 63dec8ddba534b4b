"""Tokens, cost and hours of a run: guessed from the corpus alone, or projected from a pilot."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from mifuse_cli.lalm.cost.prices import AUDIO_RATE, Price, cost_of

CONFIDENCE = 0.95

_BYTES_PER_TOKEN = (5, 4, 3)
_AUDIO_RATES = (10.0, 25.0, AUDIO_RATE)
_ANSWER = ((2, 4), (5, 7))  # tokens around the labels, tokens per label with its number


@dataclass(frozen=True)
class Volume:
    """What has to be sent, summed over all requests; volumes can be added.

    Attributes:
        clips: different clips to ask about.
        requests: requests for them.
        answers: answers expected, one or more per request.
        seconds: audio sent; a clip counts once per request.
        upload_bytes: size of that audio as sent.
        text_bytes: prompt text in UTF-8.
    """

    clips: int = 0
    requests: int = 0
    answers: int = 0
    seconds: float = 0.0
    upload_bytes: int = 0
    text_bytes: int = 0

    @classmethod
    def of_clip(
        cls, seconds: float, *, requests: int, answers: int, upload_bytes: int = 0, text_bytes: int = 0
    ) -> Volume:
        """What one clip comes to; nothing if no request is to be made for it.

        Args:
            seconds: its duration as sent.
            requests: requests that are still to be made for it.
            answers: answers that they ask for together.
            upload_bytes: audio of one request.
            text_bytes: text of one request.
        """
        if not requests:
            return cls()
        return cls(1, requests, answers, seconds * requests, upload_bytes * requests, text_bytes * requests)

    def __add__(self, other: Volume) -> Volume:
        return Volume(
            self.clips + other.clips,
            self.requests + other.requests,
            self.answers + other.answers,
            self.seconds + other.seconds,
            self.upload_bytes + other.upload_bytes,
            self.text_bytes + other.text_bytes,
        )


@dataclass(frozen=True)
class Range:
    """A total between two limits. From a pilot of one clip the limits are None."""

    low: float | None
    expected: float
    high: float | None


@dataclass(frozen=True)
class Estimate:
    """Totals of a run.

    Attributes:
        prompt_tokens: text and audio; None if a pilot did not learn it.
        completion_tokens: answers; None if a pilot did not learn it.
        usd: None without a price.
        hours: at the limits given, None without any or if a pilot did not learn the tokens.
    """

    prompt_tokens: Range | None
    completion_tokens: Range | None
    usd: Range | None
    hours: Range | None


@dataclass(frozen=True)
class Observation:
    """What one clip of a pilot took, over all its requests.

    Attributes:
        seconds: audio sent, once per request.
        prompt_tokens: None if the server did not tell.
        completion_tokens: None if the server did not tell.
        usd: None without a price.
    """

    seconds: float
    prompt_tokens: int | None
    completion_tokens: int | None
    usd: float | None


def estimate(
    volume: Volume,
    price: Price | None,
    *,
    labels: int,
    max_tokens: int,
    rpm: float | None = None,
    tpm: float | None = None,
    batch: bool = False,
) -> Estimate:
    """Tokens, cost and hours of a run, without asking anybody.

    Assumed are, for low, expected and high:

    - text: a token per 5, 4 and 3 bytes;
    - audio: the rate of the price in all three; without one 10, 25 and 50 tokens per second;
    - an answer: 2 tokens and 4 per label, 5 and 7 per label, and ``max_tokens``.

    An answer never has more than ``max_tokens``. No request is repeated, no prompt is read from a cache, and
    the server answers as fast as the limits allow.

    Args:
        volume: what has to be sent.
        price: of the model, None if unknown.
        labels: labels that one answer lists; 1 if it names the label alone.
        max_tokens: cap on the tokens of one answer.
        rpm: requests per minute, None for no limit.
        tpm: tokens per minute, None for no limit.
        batch: whether batch mode is used.
    """
    known = price.audio_tokens_per_second if price else None
    rates = _AUDIO_RATES if known is None else (known,) * 3
    answers = (*(around + each * labels for around, each in _ANSWER), max_tokens)
    columns = []
    for size, rate, answer in zip(_BYTES_PER_TOKEN, rates, answers, strict=True):
        audio = round(volume.seconds * rate)
        prompt = audio + round(volume.text_bytes / size)
        completion = volume.answers * min(answer, max_tokens)
        usage = {"prompt": prompt, "completion": completion, "audio": audio}
        usd = cost_of(usage, price, seconds=volume.seconds, batch=batch) if price else None
        hours = hours_at(volume.requests, prompt + completion, rpm=rpm, tpm=tpm)
        columns.append((prompt, completion, usd, hours))
    return Estimate(*(_range(row) for row in zip(*columns, strict=True)))


def hours_at(requests: int, tokens: float, *, rpm: float | None, tpm: float | None) -> float | None:
    """Hours that limits per minute leave no way around, None without limits."""
    minutes = [amount / limit for amount, limit in ((requests, rpm), (tokens, tpm)) if limit]
    return max(minutes) / 60 if minutes else None


def calibrated(
    observations: Sequence[Observation],
    volume: Volume,
    *,
    rpm: float | None = None,
    tpm: float | None = None,
) -> Estimate:
    """Totals of a run with 95 % intervals, projected from a pilot.

    Where durations vary, a line over the audio sent is fitted to what the clips of the pilot took, and the
    other clips are predicted by it; else, and below 3 clips, they are taken for average. The interval
    (Student's t) has the scatter around the line, the error of the line at the other clips' mean duration,
    and the share of clips already known: it closes when the pilot was the whole corpus. A pilot of one clip
    has no interval. No total is lower than what the pilot itself took.

    The interval holds for a pilot drawn at random, and with all clips asked equally often.

    Args:
        observations: N >= 1 clips of the pilot.
        volume: the whole corpus of U >= N clips, the pilot's included.
        rpm: requests per minute, None for no limit.
        tpm: tokens per minute, None for no limit.

    Raises:
        ValueError: no observation, or more than the volume has clips.
    """
    if not 0 < len(observations) <= volume.clips:
        raise ValueError(f"a pilot of {len(observations)} of {volume.clips} clips")
    prompt = [seen.prompt_tokens for seen in observations]
    completion = [seen.completion_tokens for seen in observations]
    both = [None if p is None or c is None else p + c for p, c in zip(prompt, completion, strict=True)]
    usd = [seen.usd for seen in observations]
    seconds = [seen.seconds for seen in observations]
    tokens = _total(seconds, both, volume)
    limits = (tokens.low, tokens.expected, tokens.high) if tokens else (None,) * 3
    hours = [
        None if total is None else hours_at(volume.requests, total, rpm=rpm, tpm=tpm) for total in limits
    ]
    return Estimate(
        _total(seconds, prompt, volume),
        _total(seconds, completion, volume),
        _total(seconds, usd, volume),
        _range(hours),
    )


def _range(row: Sequence[float | None]) -> Range | None:
    low, expected, high = row
    return None if expected is None else Range(low, expected, high)


def _total(seconds: Sequence[float], values: Sequence[float | None], volume: Volume) -> Range | None:
    """Total of ``values`` over the whole corpus, known for the clips of ``seconds``; None if one is None."""
    known = [value for value in values if value is not None]
    if len(known) < len(values):
        return None
    seen, others = len(known), volume.clips - len(known)
    spent = math.fsum(known)
    if not others:
        return Range(spent, spent, spent)
    mean = spent / seen
    centre = math.fsum(seconds) / seen
    spread = math.fsum((second - centre) ** 2 for second in seconds)
    slope, shift, freedom, extrapolated = 0.0, 0.0, seen - 1, 0.0
    if seen > 2 and spread > 1e-9 * seen * centre**2:
        slope = math.fsum((x - centre) * (y - mean) for x, y in zip(seconds, known, strict=True)) / spread
        shift = (volume.seconds - math.fsum(seconds)) / others - centre
        freedom -= 1
        extrapolated = shift**2 / spread
    expected = max(spent, spent + others * (mean + slope * shift))
    if not freedom:
        return Range(None, expected, None)

    from scipy.special import stdtrit

    scatter = math.fsum((y - mean - slope * (x - centre)) ** 2 for x, y in zip(seconds, known, strict=True))
    variance = scatter / freedom * (others + others**2 * (1 / seen + extrapolated))
    half = float(stdtrit(freedom, (1 + CONFIDENCE) / 2)) * math.sqrt(variance)
    return Range(max(spent, expected - half), expected, expected + half)
