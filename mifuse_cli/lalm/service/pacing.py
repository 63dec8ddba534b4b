"""When the next request may go out: limits per minute, requests in flight, and the pause after a 429."""

from __future__ import annotations

import asyncio
import math
import random
import re
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from enum import Enum

from mifuse_cli.lalm.service.failures import backoff
from mifuse_cli.lalm.service.service_options import ServiceOptions

_FIRST_LIMIT = 8  # requests in flight
_CUT_SECONDS = 5.0  # between two cuts of that limit
_SHORTEST_PAUSE = 0.05
_LONGEST_PAUSE = 30.0  # where the server does not say how long
_LONGEST_RESET = 60.0  # in the headers; longer ones are limits per day, which a 429 will tell

_FEWEST_TOKENS = 100.0  # a minute, in the headers; with fewer no question could ever be sent
_MOST = 1e12  # of anything, in the headers

_BURST = 0.25  # seconds of a schedule that may be caught up
_AT_ONCE = 1e-6  # seconds that are no wait

_HEADER_SHARE = 0.95  # of a limit in the headers
_LEARNED_SHARE = 0.97  # of a limit inferred from 429s
_FIRST_RATE = 30.0  # requests per second before anything is known
_FIRST_CUT = 2.5  # the first 429 comes at up to 2.7 times the limit if a second's worth may be saved up
_LARGEST_STEP = 0.25
_SMALLEST_STEP = 0.005

_DURATION = re.compile(r"(?=[\d.])(?:(\d+)h)?(?:(\d+)m(?!s))?(?:(\d+\.?\d*|\.\d+)(?:s|$))?(?:(\d+\.?\d*)ms)?")


class TurnResult(Enum):
    """What became of a request, as far as the pace is concerned."""

    ANSWERED = "the server dealt with it, even if by refusing the clip"
    THROTTLED = "429"
    FAILED = "5xx, timeout, lost connection, or given up"


@dataclass(frozen=True)
class Turn:
    """Permission to send one request: its number from 1, the tokens charged for it, and when, in seconds."""

    number: int
    tokens: float
    time: float


class Pacer:
    """Lets the requests of one event loop out at the pace at which the server takes them.

    A request waits, first come first served, until the shared pause is over, fewer than `limit` requests are
    in flight, and the schedules of requests and tokens have room. The limit grows by one with every answer
    until the first 429, then by ``1/limit``; a 429 cuts it to 70 %. Where answers come quickly that cannot
    hold a rate, so requests are also spread over time: at the rate given, else at the one in the headers of
    the responses, else at one learned from what got through between two 429s. What is learned also corrects
    a rate that proves too high, whether the server counts requests or tokens.

    Args:
        service: its ``concurrency`` is the most requests in flight; ``rpm`` and ``tpm`` are used in full.
        now: clock of the event loop, in seconds.

    Attributes:
        running: requests in flight.
        answered: requests answered so far.
        throttled: requests that got a 429 so far.
    """

    def __init__(self, service: ServiceOptions, now: Callable[[], float]) -> None:
        rpm, tpm = service.rpm, service.tpm
        self.running = 0
        self.answered = 0
        self.throttled = 0
        self._now = now
        self._concurrency = service.concurrency
        self._limit = float(min(_FIRST_LIMIT, service.concurrency))
        self._next_cut = -math.inf
        self._resume_at = now()
        self._resume_by = ""  # whose word that is
        self._pauses = 0  # in a row, without an answer to a request sent after one
        self._sent = 0
        self._rpm_given = rpm is not None
        self._rate_by = "--rpm" if rpm else ""
        self._tokens_by = "--tpm" if tpm else ""
        self._tpm_given = tpm is not None
        self._rate = _Rate(None if rpm is None else rpm / 60, now())
        self._requests = _Schedule(self._rate.value, now())
        self._tokens = None if tpm is None else _Schedule(tpm / 60, now())
        self._waiting: deque[tuple[asyncio.Future[Turn | None], float]] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._stopped = False

    @property
    def limit(self) -> int:
        """Most requests in flight, as things stand."""
        return int(self._limit)

    @property
    def rate(self) -> float | None:
        """Requests per minute in force; None as long as no limit is known."""
        return self._rate.value * 60 if self._rate.known else None

    @property
    def holding(self) -> str:
        """Why no request goes out at present, in words; "" if none waits, or the next one goes at once."""
        waiting = sum(not future.done() for future, _ in self._waiting)
        if not waiting:
            return ""
        if self.running >= self.limit:
            return f"{self.running} requests are under way, and more are not sent at once"
        now = self._now()
        reasons = [
            (self._resume_at - now, self._resume_by),
            (self._requests.due - now, f"{self._rate.value * 60:.3g} requests a minute by {self._rate_by}"),
        ]
        if self._tokens:
            tokens = f"{self._tokens.rate * 60:.3g} tokens a minute by {self._tokens_by}"
            reasons.append((self._tokens.due - now, tokens))
        wait, why = max(reasons)
        return f"the next request goes out in {wait:.0f} s ({why})" if wait > _AT_ONCE else ""

    @property
    def held_by_service(self) -> bool:
        """Whether requests wait, none is under way, and it is not the user who asked for that."""
        given = self._rpm_given or self._tpm_given
        return bool(self.holding) and not self.running and not given

    async def enter(self, tokens: float = 0.0) -> Turn | None:
        """Wait until a request that may use ``tokens`` tokens may go out; None if the run was stopped.

        Every turn has to be handed back with `leave`. A call that is cancelled keeps none.
        """
        future: asyncio.Future[Turn | None] = asyncio.get_running_loop().create_future()
        self._waiting.append((future, tokens))
        self._admit()
        try:
            return await future
        except asyncio.CancelledError:
            if not future.cancelled() and (turn := future.result()):
                self.leave(turn, TurnResult.FAILED, tokens=0.0)
            raise

    def leave(
        self,
        turn: Turn,
        result: TurnResult,
        *,
        tokens: float | None = None,
        headers: Mapping[str, str] | None = None,
        wait: float | None = None,
    ) -> float:
        """Hand a turn back, once, when its request is through.

        Args:
            turn: what `enter` returned.
            result: what became of the request.
            tokens: used by it; None if unknown: then the estimate stands, or nothing for a 429.
            headers: of the response, with names in lower case or of any case if the mapping does not mind.
            wait: seconds that a 429 asks to wait, if it does.

        Returns:
            Seconds until requests go out again, 0 if there is no pause.
        """
        now = self._now()
        self.running -= 1
        if result is TurnResult.THROTTLED:
            self.throttled += 1
            self._pause(turn, wait, now)
            tokens = tokens or 0.0
        elif result is TurnResult.ANSWERED:
            self.answered += 1
            self._grow(turn, now)
        if headers:
            self._read(headers, turn, now)
        self._requests.rate = self._rate.value
        if self._tokens and tokens is not None:
            self._tokens.take(tokens - turn.tokens, now)
        self._admit()
        return max(self._resume_at - now, 0.0)

    def stop(self) -> None:
        """Give no further turn: whoever waits, or comes later, gets None."""
        self._stopped = True
        self._admit()

    def _admit(self) -> None:
        """Let out all that may go now, and come back when the next one may."""
        if self._timer:
            self._timer.cancel()
            self._timer = None
        while self._waiting:
            future, tokens = self._waiting[0]
            if not future.done():
                now = self._now()
                if self._stopped:
                    future.set_result(None)
                elif self.running >= self.limit:
                    return
                elif (wait := self._wait(now)) > _AT_ONCE:
                    self._timer = asyncio.get_running_loop().call_later(wait, self._admit)
                    return
                else:
                    future.set_result(self._turn(tokens, now))
            self._waiting.popleft()

    def _wait(self, now: float) -> float:
        due = max(self._resume_at, self._requests.due)
        return max(due, self._tokens.due if self._tokens else due) - now

    def _turn(self, tokens: float, now: float) -> Turn:
        self.running += 1
        self._sent += 1
        self._requests.take(1.0, now)
        if self._tokens:
            self._tokens.take(tokens, now)
        return Turn(self._sent, tokens if self._tokens else 0.0, now)

    def _grow(self, turn: Turn, now: float) -> None:
        self._limit = min(self._concurrency, self._limit + (1 / self._limit if self.throttled else 1))
        self._rate.rise(self._sent, now)
        if turn.time >= self._resume_at:
            self._pauses = 0

    def _pause(self, turn: Turn, wait: float | None, now: float) -> None:
        if now >= self._resume_at:
            self._pauses += 1  # once for all the requests that the same limit hit
        if wait is None:
            wait = random.uniform(0.5, 1) * backoff(self._pauses, 1.0, _LONGEST_PAUSE)
        if now >= self._next_cut:
            self._limit = max(self._limit * 0.7, 1.0)
            self._next_cut = now + max(wait, _CUT_SECONDS)
        self._rate.fall(turn, turn.number - self.throttled, self._sent, wait, now)
        self._rate_by = self._rate_by or "what was learned from 429s"
        self._resume(now + max(wait, _SHORTEST_PAUSE), "after a 429")

    def _resume(self, time: float, why: str) -> None:
        """Let nothing out before ``time``, and let nobody catch up on the pause then."""
        if time > self._resume_at:
            self._resume_at, self._resume_by = time, why
        self._requests.due = max(self._requests.due, self._resume_at)

    def _read(self, headers: Mapping[str, str], turn: Turn, now: float) -> None:
        """Follow the limits that a response tells, where the user gave none."""
        requests = _number(headers.get("x-ratelimit-limit-requests"))
        tokens = _number(headers.get("x-ratelimit-limit-tokens"))
        if requests and requests >= 1 and not self._rpm_given:
            self._rate.allow(requests * _HEADER_SHARE / 60)
            self._rate_by = "x-ratelimit-limit-requests"
        if tokens and tokens >= _FEWEST_TOKENS and not self._tpm_given:
            self._tokens_by = "x-ratelimit-limit-tokens"
            rate = tokens * _HEADER_SHARE / 60
            self._tokens = self._tokens or _Schedule(rate, now)
            self._tokens.rate = rate
        if _number(headers.get("x-ratelimit-remaining-requests")) == 0:
            # The server counted when the request came in, which may be long ago.
            reset = _seconds(headers.get("x-ratelimit-reset-requests"))
            if reset is not None and reset <= _LONGEST_RESET:
                self._resume(turn.time + reset, "by x-ratelimit-reset-requests")


class _Schedule:
    """Spreads what is taken evenly over time: ``rate`` units per second, the next one from ``due`` on.

    A due time follows from the one before, not from when somebody woke up to use it; who comes late catches
    up on a quarter of a second at most. More than that holds may be taken at once, and is paid off later.
    """

    def __init__(self, rate: float, now: float) -> None:
        self.rate = rate
        self.due = now

    def take(self, units: float, now: float) -> None:
        """Take ``units``; negative ones are given back."""
        seconds = units / self.rate
        self.due = max(self.due, now - max(_BURST - abs(seconds), 0.0)) + seconds


class _Rate:
    """Requests per second that are worth a try.

    A 429 says that the server has nothing left. What gets through from one to the next, while the rate is
    not raised, is therefore what the server allows, to within one request: the longer that takes, the better
    is the estimate. In between the rate goes up a step each time that it was used in full for long enough to
    have met a 429 if it were a step too high. Steps are of the size of the estimate's error; they grow as
    long as they succeed, and shrink to a third when one did not.

    Attributes:
        value: the rate.
        known: whether it comes from a limit rather than from the wish to find one.
    """

    def __init__(self, given: float | None, now: float) -> None:
        self.value = given or _FIRST_RATE
        self.known = given is not None
        self._most = given or math.inf
        self._step = _SMALLEST_STEP if given else _LARGEST_STEP
        self._since = (now, 0)  # time of the last change, and requests sent until then
        self._empty: tuple[float, int] | None = None  # time of a 429, and requests let through before it
        self._saved = 0.0  # seconds in which the server may have saved up what has to be used up first

    def allow(self, most: float) -> None:
        """Never go above ``most``."""
        if most != self._most:
            self._most = most
            self.known = True
            self._cap()

    def rise(self, sent: int, now: float) -> None:
        """Go up a step if it is time; ``sent`` requests went out so far."""
        requests, seconds = sent - self._since[1], now - self._since[0]
        if requests < max(2, (0.1 + self._saved) * self.value) / self._step:
            return
        if requests > 0.9 * self.value * seconds:
            self.value *= 1 + self._step
            self._step = min(self._step * 1.25, _LARGEST_STEP)
            self._cap()
        self._since = (now, sent)
        self._empty = None

    def fall(self, turn: Turn, passed: int, sent: int, wait: float, now: float) -> None:
        """Go down because of a 429.

        Args:
            turn: that of the request.
            passed: requests sent before it that got no 429.
            sent: requests sent until now.
            wait: seconds of the pause.
            now: time in seconds.
        """
        if self._empty is None:
            self.value /= 1 + self._step if self.known else _FIRST_CUT
            if self.known:
                self._step = max(self._step / 3, _SMALLEST_STEP)
            self._empty = (turn.time, passed)
        elif turn.number <= self._since[1]:
            return  # sent before the last change
        else:
            got = passed - self._empty[1]
            if got <= 0:
                return  # the first one after a pause: that was too short, which says nothing about the rate
            estimate = _LEARNED_SHARE * (got + 0.5) / (turn.time - self._empty[0])
            if estimate < 0.9 * self.value:
                self._step = min(max(1 / got, _SMALLEST_STEP), _LARGEST_STEP)
            self.value = min(max(estimate, self.value / 4), self.value)
        self.known = True
        self._saved = min(wait, _CUT_SECONDS)
        self._since = (now, sent)

    def _cap(self) -> None:
        if self.value >= self._most:
            self.value, self._step = self._most, _SMALLEST_STEP


def _number(text: str | None) -> float | None:
    """A number from 0 on that a service may mean; None for anything else."""
    try:
        number = float(text or "")
    except ValueError:
        return None
    return number if 0 <= number <= _MOST else None


def _seconds(text: str | None) -> float | None:
    """Seconds of a duration such as 0.5, 20ms, 1.5s or 6m0s; None for anything else."""
    match = _DURATION.fullmatch((text or "").strip())
    if not match:
        return None
    hours, minutes, seconds, milliseconds = (float(part or 0) for part in match.groups())
    return hours * 3600 + minutes * 60 + seconds + milliseconds / 1000
