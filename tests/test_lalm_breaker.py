import pytest

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
    pattern = [True] * 40 + [False] * 10
    assert [one.judged(readable, "text") for readable in pattern] == [None] * 50
    assert one.judged(False, "no idea") is not None


def test_a_rate_limit_without_end(breaker):
    one = breaker()
    assert one.throttled(FAILURE, stopping.PATIENCE) is None
    assert "limits the rate: oops." in str(one.throttled(FAILURE, stopping.PATIENCE + 1))
