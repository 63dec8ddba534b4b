"""End to end against `transformers serve`: a real server, a real audio-language model, random weights.

Slow, since the server and its answers are; test_lalm_llmock.py asks a quick one.
Such a model answers gibberish. So nothing here is about what it says, all about what becomes of it.
"""

import numpy as np
import pytest
import soundfile
from conftest import HANG_SECONDS, KEY, RATE, start, tone
from servers import missing_to_serve, transformers_serve
from tiny_qwen2_audio import SHORTEST, TOKENS_PER_SECOND, make

import mifuse_cli as m
from mifuse_cli.artifacts import Lalm
from mifuse_cli.errors import RemoteError
from mifuse_cli.lalm.answers.parsing import Status

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        bool(missing_to_serve()),
        reason=f"needs {', '.join(missing_to_serve())} to serve a model: pip install 'mifuse[dev]'",
    ),
]

SECONDS = (0.5, 1.0, 4.0)


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    root = tmp_path_factory.mktemp("serve")
    with transformers_serve(make(root / "tiny-qwen2-audio"), root / "home") as server:
        yield server


@pytest.fixture(scope="module")
def clips(tmp_path_factory):
    """Clips of different lengths, the shortest first."""
    root, rng = tmp_path_factory.mktemp("clips"), np.random.default_rng(3)
    for number, seconds in enumerate(SECONDS):
        soundfile.write(root / f"{number}.wav", tone(200 + 90 * number, 0.3, rng, seconds), RATE)
    return root


@pytest.fixture
def ask(server, clips, tmp_path, key):
    """Ask with defaults that can be changed."""

    def ask(**changes):
        values = {"wav_dir": clips, "model": server.model, "base_url": server.url, "n_samples": 2}
        return m.query_lalm(m.QueryLalmConfig(out=tmp_path / "lalm.h5", **{**values, **changes}))

    return ask


def test_gibberish_is_kept_and_never_taken_for_an_answer(ask, tmp_path):
    with pytest.raises(RemoteError, match="holds 6 answers, and no distribution can be read"):
        ask()
    made = Lalm.load(tmp_path / "lalm.h5")
    summary = made.header.parameters["summary"]
    assert (summary["clips"], summary["samples"], summary["without_answer"]) == (3, 2, 3)
    assert summary["complete"] and summary["mean_mi"] is None
    answered = [Status.LABEL_ONLY, Status.REFUSED, Status.UNPARSED, Status.TRUNCATED]
    assert np.isin(made.status, answered).all()
    assert np.isnan(made.probs).all()
    raw = [made.raw_answer(clip, sample) for clip in range(3) for sample in range(2)]
    assert len(set(raw)) == 6 and all(raw)


def test_usage_is_what_the_server_says(ask, tmp_path):
    with pytest.raises(RemoteError, match="no distribution"):
        ask()
    made = Lalm.load(tmp_path / "lalm.h5")
    usage = made.usage
    prompt, completion, total, audio, cached = np.moveaxis(usage, -1, 0)
    np.testing.assert_array_equal(prompt + completion, total)
    assert (completion >= SHORTEST).all() and (completion <= 256).all()  # max_completion_tokens is obeyed
    np.testing.assert_array_equal(prompt[:, 0], prompt[:, 1])  # one token for each byte: the order is free
    heard = TOKENS_PER_SECOND * np.diff(SECONDS)
    np.testing.assert_allclose(np.diff(prompt[:, 0]), heard, atol=1)
    assert (audio == -1).all() and (cached == -1).all()  # this server does not tell
    summed = {"prompt": prompt.sum(), "completion": completion.sum()}
    assert made.header.parameters["summary"]["tokens"] == summed


def test_command_line_then_more_samples(ask, server, clips, tmp_path):
    out = tmp_path / "lalm.h5"
    options = {"--wav-dir": clips, "--model": server.model, "--base-url": server.url, "--out": out}
    process = start("query-lalm", *sum(options.items(), ()), "--n-samples", 2)
    stdout, stderr = process.communicate(timeout=HANG_SECONDS)
    # Gibberish is no success, but all of it is kept.
    assert process.returncode == 5 and "no distribution" in stderr, stderr
    first = Lalm.load(out)
    with pytest.raises(RemoteError, match="6 answers"):
        ask()
    assert Lalm.load(out).digest() == first.digest()
    with pytest.raises(RemoteError, match="9 answers"):
        ask(n_samples=3)
    more = Lalm.load(out)
    assert more.header.parameters["summary"]["requests"]["answered"] == 9
    assert [more.raw_answer(k, s) for k in range(3) for s in range(2)] == [
        first.raw_answer(k, s) for k in range(3) for s in range(2)
    ]
    files = [path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) >= 2
    assert all(KEY.encode() not in text for text in [*files, stdout.encode(), stderr.encode()])


def test_another_model_is_refused_in_the_servers_words(ask, server, tmp_path):
    with pytest.raises(RemoteError, match=r"Server is pinned to '.*tiny-qwen2-audio'; requested 'other'"):
        ask(model="other")
    assert not (tmp_path / "lalm.h5").exists()
