"""When a run of questions has to stop because it leads nowhere."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable

from mifuse_cli.errors import RemoteError
from mifuse_cli.lalm.answers.parsing import Status, visible
from mifuse_cli.lalm.service.advice import THINKING, option_for
from mifuse_cli.lalm.service.failures import RequestFailed
from mifuse_cli.lalm.service.service_options import ServiceOptions

PATIENCE = 900.0  # seconds without any answer after which failures and rate limits end the run
HOPELESS = 5  # questions without an answer, and none with one
GIVEN_UP_IN_A_ROW = 20  # questions
LOST_AND_MORE = 5  # requests lost in a row, after all that were under way at once
REJECTED_IN_A_ROW = 20  # clips
BILLED_IN_A_ROW = 20  # responses without an answer
BILLED_AT_FIRST = 10  # the same, and none with one
MUTE = 10  # answers without a word, such as those used up by thinking, and none that can be read
JUDGED = 50  # last answers that are looked at


class Breaker:
    """Looks at what becomes of requests, and says when to stop and why.

    Args:
        service: whom the messages speak of; its ``max_unreadable`` is the share of the last `JUDGED` answers
            that may hold no distribution.
        resumed: whether an earlier run got answers; clips that are rejected may then be all that it left over.
        now: clock in seconds.
    """

    def __init__(self, service: ServiceOptions, *, resumed: bool, now: Callable[[], float]) -> None:
        self._host = service.host
        self._concurrency = service.concurrency
        self._most = service.max_requests
        self._max_unreadable = service.max_unreadable
        self._resumed = resumed
        self._now = now
        self._last_answer = now()
        self._answered = False
        self._judged: deque[Status] = deque(maxlen=JUDGED)
        self._readable = False
        self._mute = 0
        self._given_up = self._lost = self._billed = 0
        self._rejected: set[str] = set()

    def answered(self) -> None:
        """A response with answers came."""
        self._last_answer, self._answered = self._now(), True
        self._given_up = self._lost = self._billed = 0
        self._rejected.clear()

    def judged(self, status: Status, text: str) -> RemoteError | None:
        """An answer to a question that was asked for the first time was read."""
        self._readable |= status is Status.OK
        self._judged.append(status)
        if status is Status.EMPTY or (status is Status.TRUNCATED and not visible(text)):
            self._mute += 1
            if self._mute >= MUTE and not self._readable and self._max_unreadable < 1:
                return self._all_mute()
        unreadable = 1 - self._judged.count(Status.OK) / JUDGED
        if len(self._judged) < JUDGED or unreadable <= self._max_unreadable:
            return None
        cut = self._judged.count(Status.TRUNCATED)
        cut_off = f" The token limit cut off {cut} of them. {THINKING}" if cut > JUDGED / 4 else ""
        return RemoteError(
            f"{self._host}: {unreadable:.0%} of the last {JUDGED} answers hold no distribution, the last one: "
            f"{text[:200]!r}.{cut_off} Check the prompt and the model, or raise --max-unreadable."
        )

    def _all_mute(self) -> RemoteError:
        """The error of a run that got answers without a word, and none that can be read."""
        if Status.TRUNCATED in self._judged:
            return RemoteError(
                f"{self._host}: the token limit cut off answers before a word of them was there, {self._mute} so far, "
                f"and no other can be read. {THINKING}"
            )
        return RemoteError(
            f"{self._host}: {self._mute} answers are empty, and no other can be read. Check the model and the prompt."
        )

    def throttled(self, failure: RequestFailed, wait: float) -> RemoteError | None:
        """The rate is limited, and requests go out again in ``wait`` seconds."""
        silence = self._now() + wait - self._last_answer
        if silence <= PATIENCE:
            return None
        return RemoteError(
            f"{self._host} limits the rate: {failure.sentence} The next request would go out in {wait:.0f} s, "
            f"{silence:.0f} s after the last answer or the start. Run the command again later."
        )

    def held(self, why: str) -> RemoteError | None:
        """No request may go out, and none is under way."""
        silence = self._now() - self._last_answer
        if silence <= PATIENCE:
            return None
        return RemoteError(
            f"{self._host} lets no request out: {why}, {silence:.0f} s after the last answer or the start. Give the "
            "limits that you have with --rpm and --tpm, or run the command again later."
        )

    def failed(self, failure: RequestFailed, *, lost: bool) -> RemoteError | None:
        """A request failed in a way that may pass; ``lost`` if it may have been billed nevertheless."""
        self._lost += lost
        self._billed += failure.billed
        most = BILLED_IN_A_ROW if self._answered else BILLED_AT_FIRST
        silence = self._now() - self._last_answer
        if silence > PATIENCE:
            why = f"no answer came for {silence:.0f} s"
        elif self._lost > self._concurrency + LOST_AND_MORE:
            why = f"{self._lost} requests in a row got no answer, though they may have been billed"
        elif self._billed >= most:
            why = f"{self._billed} responses in a row held no answer, though they may have been billed"
        else:
            return None
        return RemoteError(
            f"{self._host}: {why}. The last failure: {failure.sentence} Run the command again later."
        )

    def given_up(self, failure: RequestFailed) -> RemoteError | None:
        """A question failed too often."""
        self._given_up += 1
        if not self._answered:
            return self._hopeless(failure)
        if self._given_up < GIVEN_UP_IN_A_ROW:
            return None
        return RemoteError(
            f"{self._host}: {self._given_up} questions in a row got no answer, the last one because of: "
            f"{failure.sentence} Run the command again later."
        )

    def rejected(self, clip: str, failure: RequestFailed) -> RemoteError | None:
        """A clip is not accepted."""
        if self._resumed and not self._answered:
            return None
        self._rejected.add(clip)
        if not self._answered:
            self._given_up += 1
            return self._hopeless(failure)
        if len(self._rejected) < REJECTED_IN_A_ROW:
            return None
        return RemoteError(
            f"{self._host} rejected {len(self._rejected)} clips in a row, the last one with: {failure.sentence} "
            f"{option_for(failure.http_status, failure.message) or 'Check the audio and the model.'}"
        )

    def _hopeless(self, failure: RequestFailed) -> RemoteError | None:
        if self._given_up < HOPELESS:
            return None
        what = option_for(failure.http_status, failure.message)
        what = what or "Check the address, the model and the audio, then run again."
        unsent = failure.http_status == 0 and self._most is not None
        uncounted = " Connections that failed are no requests, and count for no cap." if unsent else ""
        return RemoteError(
            f"{self._host}: the first {self._given_up} questions got no answer, the last one because of: "
            f"{failure.sentence}{uncounted} {what}"
        )
