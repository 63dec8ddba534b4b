from functools import partial

import pytest

from mifuse_cli.lalm.answers.parsing import Status
from mifuse_cli.lalm.service import breaker as stopping
from mifuse_cli.lalm.service.breaker import Breaker
from mifuse_cli.lalm.service.failures import FailureKind, RequestFailed
from mifuse_cli.lalm.service.service_options import ServiceOptions

FAILURE = RequestFailed(FailureKind.TRANSIENT, 500, "oops")


class Clock:
    time = 1000.0

    def __call__(self):
        return self.time


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def breaker(clock):
    def make(**changes):
        options = {"concurrency": 4, "max_unreadable": 0.5, **changes}
        resumed = options.pop("resumed", False)
        return Breaker(ServiceOptions("http://host/v1", "m", "key", **options), resumed=resumed, now=clock)

    return make


def first(say, most=1000):
    """Number of calls until there is an error, and its text."""
    for number in range(1, most + 1):
        if error := say():
            return number, str(error)
    return None


def test_failures_for_too_long_end_the_run(breaker, clock):
    one = breaker()
    one.answered()
    clock.time += stopping.PATIENCE
    assert one.failed(FAILURE, lost=False) is None
    clock.time += 1
    assert "no answer came for 901 s. The last failure: oops." in str(one.failed(FAILURE, lost=False))
    one.answered()
    assert one.failed(FAILURE, lost=False) is None


def test_requests_that_may_be_billed_end_it_sooner(breaker):
    one = breaker(concurrency=4)
    assert first(lambda: one.failed(FAILURE, lost=True))[0] == 4 + stopping.LOST_AND_MORE + 1
    one.answered()
    assert one.failed(FAILURE, lost=True) is None
    assert first(lambda: one.failed(FAILURE, lost=False)) is None


def test_questions_given_up(breaker):
    one = breaker()
    number, text = first(lambda: one.given_up(FAILURE))
    assert number == stopping.HOPELESS and "the first 5 questions got no answer" in text
    assert "no requests" not in text
    unsent = RequestFailed(FailureKind.TRANSIENT, 0, "connection refused")
    one = breaker(max_requests=3)
    assert "Connections that failed are no requests" in first(lambda: one.given_up(unsent))[1]
    one = breaker()
    for _ in range(3):
        one.answered()
        assert first(lambda: one.given_up(FAILURE), stopping.GIVEN_UP_IN_A_ROW - 1) is None
    assert "20 questions in a row" in str(one.given_up(FAILURE))


def test_samples_of_one_clip_are_one_rejection(breaker):
    one = breaker()
    one.answered()
    assert first(lambda: one.rejected("clip", FAILURE)) is None
    names = iter(map(str, range(1000)))
    number, text = first(lambda: one.rejected(next(names), FAILURE))
    assert number == stopping.REJECTED_IN_A_ROW - 1 and "rejected 20 clips in a row" in text


def test_rejections_may_be_all_that_an_earlier_run_left(breaker):
    names = iter(map(str, range(2000)))
    one = breaker(resumed=True)
    assert first(lambda: one.rejected(next(names), FAILURE)) is None
    one.answered()
    assert first(lambda: one.rejected(next(names), FAILURE))[0] == stopping.REJECTED_IN_A_ROW


def test_unreadable_answers(breaker):
    one = breaker(max_unreadable=0.2)
    pattern = [Status.OK] * 40 + [Status.UNPARSED] * 10
    assert [one.judged(status, "text") for status in pattern] == [None] * 50
    assert "Check the prompt" in str(one.judged(Status.UNPARSED, "no idea"))


class TestThinking:
    """Answers of which the token limit left nothing but thoughts are told from those to a bad prompt."""

    def test_ends_the_run_soon_if_nothing_else_came(self, breaker):
        texts = ("", "<think>The pitch is")
        for text in texts:
            number, said = first(partial(breaker().judged, Status.TRUNCATED, text))
            assert number == stopping.MUTE and "--max-tokens" in said and "reasoning_effort" in said
        assert first(partial(breaker(max_unreadable=1.0).judged, Status.TRUNCATED, "")) is None

    def test_is_not_what_a_service_that_says_nothing_does(self, breaker):
        number, said = first(partial(breaker().judged, Status.EMPTY, ""))
        assert number == stopping.MUTE and "are empty" in said and "--max-tokens" not in said

    def test_is_named_where_some_answers_can_be_read(self, breaker):
        one = breaker()
        one.judged(Status.OK, "{}")
        number, said = first(lambda: one.judged(Status.TRUNCATED, ""))
        assert number == stopping.JUDGED - 1 and "cut off 49 of them" in said and "--max-tokens" in said

    def test_is_not_what_an_answer_cut_off_in_the_middle_is(self, breaker):
        one = breaker()
        assert first(lambda: one.judged(Status.TRUNCATED, "Well, the pitch"), stopping.MUTE) is None


def test_answers_that_may_be_billed_and_hold_nothing(breaker):
    empty = RequestFailed(FailureKind.TRANSIENT, 200, "nothing", billed=True)
    one = breaker()
    number, said = first(lambda: one.failed(empty, lost=False))
    assert number == stopping.BILLED_AT_FIRST and "10 responses in a row held no answer" in said
    one.answered()
    assert first(lambda: one.failed(empty, lost=False))[0] == stopping.BILLED_IN_A_ROW


def test_a_rate_limit_without_end(breaker):
    one = breaker()
    assert one.throttled(FAILURE, stopping.PATIENCE) is None
    assert "limits the rate: oops." in str(one.throttled(FAILURE, stopping.PATIENCE + 1))
