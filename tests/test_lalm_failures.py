"""What failed requests mean, and how long to wait after them."""

from mifuse_cli.lalm.service.failures import FailureKind, backoff, failure_kind, wait_of


def test_failure_kind_tells_a_rate_limit_from_an_empty_account():
    words = "You exceeded your current quota, please check your plan and billing details."
    assert (
        failure_kind(429, [{"error": {"message": words, "status": "RESOURCE_EXHAUSTED"}}])
        is FailureKind.THROTTLED
    )
    assert failure_kind(429, {"message": words, "type": "insufficient_quota"}) is FailureKind.FATAL
    assert failure_kind(400, {"message": "audio longer than the context"}) is FailureKind.REJECTED
    assert failure_kind(418, "teapot") is FailureKind.FATAL


def test_wait_of_reads_every_form():
    assert wait_of({"retry-after-ms": "250", "retry-after": "9"}) == 0.25
    assert wait_of({"retry-after": "1.5"}) == 1.5
    assert wait_of({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0
    assert wait_of({"retry-after": "nan"}) is None
    assert wait_of({}) is None


def test_backoff_doubles_up_to_a_bound():
    assert [backoff(attempt, 0.5, 3.0) for attempt in (1, 2, 3, 4, 9999)] == [0.5, 1.0, 2.0, 3.0, 3.0]
