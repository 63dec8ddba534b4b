"""Caps on money and on requests, which hold however many requests are under way at once."""

from __future__ import annotations

from collections.abc import Mapping

from mifuse_cli.lalm.cost.prices import Price, cost_of, prompt_and_answer

MARGIN = 1.25  # reserved above the dearest prompt seen, as a share of it
BYTES_PER_TOKEN = 2  # of text; fewer than in any usual language and tokenizer
FRAME_TOKENS = 32  # what a chat template adds to a prompt
BLIND = 3  # answers without a usage after which none is waited for

MOST_PROMPT = 2_000_000
"""Tokens: ten hours of audio at 50 a second. A usage with more is not believed."""
MOST_COMPLETION = 1_000_000
"""Tokens of one answer, with all thinking."""
_MOST_PER_BYTE = 2  # tokens of a prompt; a byte of text makes one at most
_MOST_PER_SECOND = 1000  # of audio; the highest rate known is 50
_MOST_ADDED = 20_000  # by a service, with instructions of its own

_UNIT = 10**12  # picodollars: whole numbers, so that a million small sums add up exactly


class Budget:
    """Caps over the life of an artifact, kept by reserving before a request is sent.

    ``spent + reserved <= usd`` and ``sent <= requests`` hold at all times, in whatever order requests end,
    as long as none costs more than was reserved for it. One that does is counted in full: ``spent`` tells
    the truth, and nothing more is granted until it fits again.

    Not thread-safe: used from one event loop.

    Args:
        usd: cap on money, None for none.
        requests: cap on requests, None for none.
        spent: USD of earlier runs, with reservations of requests whose outcome nobody knows.
        sent: requests of earlier runs.

    Attributes:
        sent: requests granted so far; one that failed counts too.
        in_flight: requests granted and not settled. After a refusal there may yet be room when these are.
    """

    def __init__(self, *, usd: float | None, requests: int | None, spent: float = 0.0, sent: int = 0) -> None:
        self._cap = None if usd is None else _whole(usd)
        self._requests = requests
        self._spent = _whole(spent)
        self._reserved = 0
        self.sent = sent
        self.in_flight = 0

    @property
    def spent(self) -> float:
        """USD of settled requests."""
        return self._spent / _UNIT

    @property
    def reserved(self) -> float:
        """USD set aside for requests under way."""
        return self._reserved / _UNIT

    def reserve(self, cost: float) -> bool:
        """Set ``cost`` USD and one request aside; False, and nothing set aside, if a cap would be passed.

        Each True is followed by one `settle` with the same cost.
        """
        amount = _whole(cost)
        if self._requests is not None and self.sent >= self._requests:
            return False
        if self._cap is not None and self._spent + self._reserved + amount > self._cap:
            return False
        self._reserved += amount
        self.sent += 1
        self.in_flight += 1
        return True

    def settle(self, reserved: float, actual: float, *, left: bool = True) -> None:
        """Replace a reservation by what the request cost.

        Args:
            reserved: as given to `reserve`.
            actual: USD; 0 if the request never left or was refused, ``reserved`` if nobody knows.
            left: whether it left at all; else it counts for nothing.
        """
        assert self.in_flight, "settled more often than reserved"
        self._reserved -= _whole(reserved)
        self._spent += _whole(actual)
        self.in_flight -= 1
        self.sent -= not left


class Meter:
    """The most that a request can cost, before it is sent, corrected by what others did cost.

    Without a price nothing is known to cost anything.

    The first guess is a high one: a token per two bytes of text, the audio rate of the price, and every
    answer as long as it may be. If a prompt turns out dearer, all later guesses are raised so that they
    would have covered it with a quarter to spare; the same holds for answers of a server that does not keep
    to ``max_tokens``. A guess is never lowered.

    Before the first usage a guess may be wrong by any factor: send one request at a time until `calibrated`,
    and no more than that one can cost more than its reservation.

    Args:
        price: of the model, None if it is not known.
        max_tokens: cap on the tokens of one answer.
    """

    def __init__(self, price: Price | None, *, max_tokens: int) -> None:
        self._price = price
        self._max_tokens = max_tokens
        self._prompt_scale = 1.0
        self._answer_scale = 1.0
        self._seen = False
        self._blind = 0

    @property
    def calibrated(self) -> bool:
        """Whether a usage was seen, or there is no reason to wait for one: no price, or no answer with a usage."""
        return self._price is None or self._seen or self._blind >= BLIND

    def worst(self, seconds: float, text_bytes: int, choices: int = 1, *, batch: bool = False) -> float:
        """USD to reserve for one request.

        Args:
            seconds: audio sent.
            text_bytes: all text sent, in UTF-8.
            choices: answers asked for.
            batch: whether it is sent in batch mode.
        """
        if self._price is None:
            return 0.0
        prompt, answer = self._guess(self._price, seconds, text_bytes, choices)
        live = self._prompt_scale * prompt + self._answer_scale * answer
        return live * self._price.batch_factor if batch else live

    def observe(
        self, usage: Mapping[str, int], seconds: float, text_bytes: int, choices: int = 1
    ) -> float | None:
        """USD that an answered request cost; its worst case if the service sent no usage; None without a price.

        A usage that no such request can have, be it one in millions, counts as none: what is booked stays booked.

        Args:
            usage: tokens of the response, see `response.Response`.
            seconds: as given to `worst`.
            text_bytes: as given to `worst`.
            choices: as given to `worst`.
        """
        if self._price is None:
            return None
        most = _MOST_ADDED + _MOST_PER_BYTE * text_bytes + round(_MOST_PER_SECOND * seconds)
        cost = cost_of(usage, self._price, seconds=seconds)
        if cost is None or not _believable(usage, min(most, MOST_PROMPT), choices):
            self._blind += 1
            return self.worst(seconds, text_bytes, choices)
        # The next prompt may not be in the cache.
        parts = prompt_and_answer({**usage, "cached": 0}, self._price, seconds)
        assert parts is not None
        prompt, answer = self._guess(self._price, seconds, text_bytes, choices)
        if prompt:
            self._prompt_scale = max(self._prompt_scale, MARGIN * parts[0] / prompt)
        if answer and parts[1] > answer:
            self._answer_scale = max(self._answer_scale, MARGIN * parts[1] / answer)
        self._seen = True
        return cost

    def cost_in_batch(self, usage: Mapping[str, int], choices: int = 1) -> float | None:
        """USD that a request in batch mode cost; None, to let its reservation stand, where that is a guess.

        Args:
            usage: tokens of the response; without the number of audio tokens the cost is not known.
            choices: answers asked for.
        """
        if self._price is None or usage["audio"] <= 0 or not _believable(usage, MOST_PROMPT, choices):
            return None
        return cost_of(usage, self._price, seconds=0.0, batch=True)

    def _guess(self, price: Price, seconds: float, text_bytes: int, choices: int) -> tuple[float, float]:
        text = text_bytes / BYTES_PER_TOKEN + FRAME_TOKENS
        prompt = text * price.text_in + seconds * price.audio_rate * price.audio_in
        return prompt / 1e6, self._max_tokens * choices * price.out / 1e6


def _believable(usage: Mapping[str, int], most_prompt: int, choices: int) -> bool:
    """Whether a request can have used these tokens; -1 is a number that is not known."""
    prompt, completion = usage.get("prompt", -1), usage.get("completion", -1)
    answered = max(completion, usage.get("total", -1) - max(prompt, 0))
    return prompt <= most_prompt and answered <= MOST_COMPLETION * choices


def _whole(usd: float) -> int:
    if not usd >= 0:
        raise ValueError(f"{usd} USD, expected 0 or more")
    return round(usd * _UNIT)
