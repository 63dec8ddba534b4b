"""What failed requests mean, and how long to wait after them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.lalm.answers.response import Response
from mifuse_cli.lalm.service.failures import (
    FailureKind,
    backoff,
    failure_kind,
    failure_within,
    message_of,
    wait_of,
)


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


class TestWithinAResponse:
    """A 200 that holds an error counts as the status that it carries."""

    @pytest.mark.parametrize(
        ("error", "status", "kind"),
        [
            ({"code": 429, "message": "slow"}, 429, FailureKind.THROTTLED),
            ({"code": "429"}, 429, FailureKind.THROTTLED),
            ({"status": 503}, 503, FailureKind.TRANSIENT),
            ({"status_code": 401}, 401, FailureKind.FATAL),
            ({"code": "rate_limit_exceeded", "type": "requests"}, 429, FailureKind.THROTTLED),
            ({"code": "Throttling.RateQuota"}, 429, FailureKind.THROTTLED),
            ({"status": "RESOURCE_EXHAUSTED"}, 429, FailureKind.THROTTLED),
            ({"type": "insufficient_quota", "code": "insufficient_quota"}, 429, FailureKind.FATAL),
            ({"code": "invalid_api_key", "type": "invalid_request_error"}, 401, FailureKind.FATAL),
            ({"code": "InvalidApiKey"}, 401, FailureKind.FATAL),
            ({"code": "Arrearage"}, 402, FailureKind.FATAL),
            ({"type": "overloaded_error"}, 503, FailureKind.TRANSIENT),
            ({"code": 400, "message": "audio cannot be decoded"}, 400, FailureKind.REJECTED),
            ({"code": 400, "message": "Unsupported parameter: 'n'"}, 400, FailureKind.FATAL),
            ({"code": 402, "message": "no credit"}, 402, FailureKind.FATAL),
        ],
    )
    @pytest.mark.parametrize("shape", ["error", "list", "choice", "bare"])
    def test_counts_as_the_status_that_it_carries(self, error, status, kind, shape):
        choice = {"message": {"content": ""}, "finish_reason": "error", "error": error}
        body = {"error": {"error": error}, "choice": {"choices": [choice]}, "list": [{"error": error}]}
        failed = failure_within(Response.of(body.get(shape, error)), "words", {"retry-after": "7"})
        assert (failed.http_status, failed.kind, failed.wait) == (status, kind, 7)
        assert failed.billed == (shape == "choice") and "words" in failed.message

    @pytest.mark.parametrize(
        "body", [{}, {"choices": []}, {"error": {"message": "hm"}}, {"error": "hm"}, None]
    )
    def test_that_carries_none_may_have_been_billed(self, body):
        failed = failure_within(Response.of(body), "", {})
        assert (failed.http_status, failed.kind, failed.billed) == (200, FailureKind.TRANSIENT, True)

    @pytest.mark.parametrize(
        ("body", "name"),
        [
            ({"candidates": [{"content": {"parts": [{"text": "{}"}]}}], "usageMetadata": {}}, "candidates"),
            (
                {"type": "message", "role": "assistant", "content": [{"type": "text", "text": "{}"}]},
                "content",
            ),
            ({"object": "response", "status": "completed", "output": [{"type": "message"}]}, "output"),
            ({"model": "m", "message": {"role": "assistant", "content": "{}"}, "done": True}, "message"),
        ],
    )
    def test_of_another_kind_of_interface_ends_the_run(self, body, name):
        failed = failure_within(Response.of(body), "words", {})
        assert (failed.http_status, failed.kind, failed.billed) == (200, FailureKind.FATAL, True)
        assert f"{name!r} instead of 'choices'" in failed.message and "--base-url" in failed.message

    @pytest.mark.parametrize(
        "body", [{"message": "try later"}, {"choices": [], "content": []}, {"output": ""}]
    )
    def test_that_only_looks_like_one_does_not(self, body):
        assert failure_within(Response.of(body), "", {}).kind is FailureKind.TRANSIENT


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=9),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(
                ["error", "choices", "message", "content", "code", "status", "finish_reason", "usage", "x"]
            ),
            inner,
            max_size=4,
        )
    ),
    max_leaves=12,
)


@given(JSON)
def test_no_body_makes_it_raise(body):
    response = Response.of(body)
    failed = failure_within(response, message_of(response.error), {})
    assert failed.http_status == 200 or 400 <= failed.http_status <= 599
    assert failed.message.encode() and failed.message.isprintable()


@pytest.mark.parametrize(
    "value",
    ["9" * 400, "1e308", "-1e308", "Wed, 21 Oct 9999999999 07:28:00 GMT", "Mon, 01 Jan 0001 00:00:00 +2399"],
)
def test_an_absurd_wait_is_a_bounded_one(value):
    wait = wait_of({"retry-after": value})
    assert wait is None or 0 <= wait <= 10 * 366 * 86400


def test_a_message_can_be_printed_and_stored():
    text = message_of({"error": {"message": "a\x1b[2Jb\ud800c\x00" + "x" * 9000}})
    assert text.isprintable() and text.encode("utf-8") and len(text) < 5000


@pytest.mark.parametrize(
    "body",
    [
        {"object": "error", "message": {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]}},
        {"detail": [{"loc": ["body", "seed"], "msg": "Extra inputs"}]},
    ],
)
def test_a_message_of_several_parts_keeps_them(body):
    assert "seed" in message_of(body) and "Extra inputs" in message_of(body)
