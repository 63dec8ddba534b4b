"""Asking llmock, a server for faults that is not ours, and its verdict on how the client took them."""

import numpy as np
import pytest
from conftest import until

import mifuse_cli as m
from mifuse_cli.artifacts import Lalm
from mifuse_cli.errors import RemoteError

# The right classes in any order of the labels; scripted once, given to every question.
REPLY = '{"sad": 5, "neutral": 15, "angry": 70, "happy": 10}'
PROBS = (0.70, 0.10, 0.15, 0.05)
CLIPS = 24


@pytest.fixture
def ask(llmock, corpora, tmp_path, key):
    """Ask llmock with defaults that can be changed; ``ask.out`` is the artifact."""
    llmock.reply(REPLY, times=None)

    def ask(**changes):
        values = {"manifest": corpora.target, "model": "m", "base_url": llmock.base_url(), "n_samples": 1}
        return m.query_lalm(m.QueryLalmConfig(out=ask.out, **{**values, **changes}))

    ask.out = tmp_path / "lalm.h5"
    return ask


def spend(limiter, key):
    """Use up this minute's requests, as another program with the same key would."""
    while limiter.admit("openai", f"Bearer {key}", 0).allowed:
        pass


class TestVerdict:
    @pytest.mark.slow
    def test_spent_quota_and_a_shaky_server(self, ask, llmock, llmock_server, key):
        llmock.limits(rpm=1200).fail(503, times=3).rate_limit(times=2, retry_after=0.4)
        llmock_server.state.chaos.error_rates = {503: 0.03}
        spend(llmock_server.state.limiter, key)
        result = ask(n_samples=4)  # in four orders of the labels, so that no two requests are alike
        assert (result.asked, result.statuses) == (4 * CLIPS, {"ok": 4 * CLIPS})
        made = Lalm.load(ask.out)
        np.testing.assert_allclose(made.probs, np.broadcast_to(PROBS, (CLIPS, 4, 4)), atol=1e-6)
        verdict = llmock.verdict()
        verdict.assert_ok(strict=True)
        assert verdict.faults >= 5
        assert len(verdict.calls) == 4 * CLIPS and all(call.succeeded for call in verdict.calls)
        assert ask(n_samples=4).asked == 0 and len(llmock.requests) == verdict.attempts

    def test_errors_that_pass_without_advice_when(self, ask, llmock):
        for status in (408, 409, 500, 502):
            llmock.fail(status)
        assert ask().statuses == {"ok": CLIPS}
        llmock.assert_resilient()
        assert sorted(r.status for r in llmock.requests if r.failed) == [408, 409, 500, 502]

    def test_no_answer_in_time(self, ask, llmock):
        llmock.delay(4)
        assert ask(timeout=2).statuses == {"ok": CLIPS}
        until(lambda: len(llmock.requests) > CLIPS)  # the late one is noted when it ends
        llmock.assert_resilient(strict=True)
        assert len(llmock.requests) == CLIPS + 1

    def test_clip_that_is_too_long_for_the_model(self, ask, llmock):
        llmock.context_overflow()
        result = ask()
        assert result.statuses == {"ok": CLIPS - 1, "rejected": 1}
        assert "maximum context length" in " ".join(result.notes)
        llmock.assert_resilient(strict=True)
        assert len(llmock.requests) == CLIPS

    @pytest.mark.parametrize(
        ("status", "code"),
        [
            (400, "unsupported_parameter"),
            (401, "invalid_api_key"),
            (402, "billing_required"),
            (403, "forbidden"),
            (404, "model_not_found"),
            (429, "insufficient_quota"),
        ],
    )
    def test_fatal_error_is_not_repeated(self, ask, llmock, status, code):
        llmock.fail(status, times=None, code=code, message="Ask somebody else.")
        with pytest.raises(RemoteError, match=r"Ask somebody else\.") as caught:
            ask(concurrency=3)
        assert caught.value.exit_code == 5 and not ask.out.exists()
        llmock.assert_resilient()
        assert 1 <= len(llmock.requests) <= 3
