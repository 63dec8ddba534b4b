import csv
import io
import json
import os
import pty
import re
import subprocess
import sys

import numpy as np
import pytest
from conftest import mifuse, refused
from pretended import Corpus, pretend_lalm, pretend_transfer

import mifuse_cli as m
from mifuse_cli import console
from mifuse_cli.artifacts import Evaluation


@pytest.fixture
def scored(tmp_path):
    """Arguments of an evaluation of four classes, one with a name that LaTeX and Markdown would take for more."""
    corpus = Corpus(tmp_path / "data", ("angry", "so_so|$", "neutral", "sad"), clips=60).write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5")
    pretend_transfer(corpus, tmp_path / "run", lalm, evaluated=False)
    return {"predictions": tmp_path / "run" / "mifuse" / "predictions.h5", "manifest": corpus.labels}


def printed(scored, out, *more):
    arguments = [x for key, value in scored.items() for x in (f"--{key}", value)]
    return mifuse("evaluate", *arguments, "--out", out, "--force", *more)


def test_all_forms_hold_the_same_numbers(scored, tmp_path):
    out = tmp_path / "eval.h5"
    texts = {form: printed(scored, out, "--format", form).stdout for form in ("md", "latex", "csv", "json")}
    made = Evaluation.load(out)
    metrics = made.header.parameters["metrics"]
    for form in ("md", "latex"):
        assert f"{100 * metrics['ua']:.1f}" in texts[form]
        assert f"[{100 * metrics['ua_low']:.1f}, {100 * metrics['ua_high']:.1f}]" in texts[form]
        assert made.header.parameters["signature"] in texts[form]
    assert r"so_so\|$" in texts["md"] and r"so\_so|\$" in texts["latex"]
    for line in texts["md"].splitlines():
        if line.startswith("| "):
            assert len(re.findall(r"(?<!\\)\|", line)) in (4, 7)
    assert texts["latex"].count(r"\begin{tabular}") == texts["latex"].count(r"\end{tabular}") == 2
    counts = re.findall(r"^sad & (\d+) & (\d+) & (\d+) & (\d+) &", texts["latex"], re.MULTILINE)
    assert list(map(int, counts[0])) == made.confusion[3, :4].tolist()

    rows = list(csv.DictReader(io.StringIO(texts["csv"])))
    values = {(row["what"], row["name"], row["predicted"]): row["value"] for row in rows}
    assert float(values["score", "ua", ""]) == metrics["ua"]
    assert float(values["recall", "sad", ""]) == metrics["recall"][3]
    assert int(values["clips", "so_so|$", "sad"]) == made.confusion[1, 3]
    assert int(values["clips", "angry", ""]) == made.confusion[0, 4] == 0

    found = json.loads(texts["json"])
    assert found["confusion"] == made.confusion.tolist() and found["metrics"]["ua"] == metrics["ua"]
    assert found["signature"] == made.header.parameters["signature"]


@pytest.mark.parametrize("suffix", ["png", "svg", "pdf"])
def test_plots(scored, tmp_path, suffix):
    plot = tmp_path / f"plot.{suffix}"
    m.evaluate(m.EvaluateConfig(**scored, out=tmp_path / "eval.h5", plot=plot))
    content = plot.read_bytes()
    assert content.startswith({"png": b"\x89PNG", "svg": b"<?xml", "pdf": b"%PDF"}[suffix])
    if suffix == "svg":
        text = content.decode()
        assert all(word in text for word in ("neutral", "confidence", "accuracy", "predicted"))
        made = Evaluation.load(tmp_path / "eval.h5")
        assert f"ECE {made.header.parameters['metrics']['ece']:.3f}" in text
        again = tmp_path / "again.svg"
        m.evaluate(m.EvaluateConfig(**scored, out=tmp_path / "eval.h5", plot=again, update=True))
        assert again.read_bytes() == content


def test_plot_refusals(scored, tmp_path):
    out = tmp_path / "eval.h5"
    refused(printed(scored, out, "--plot", tmp_path / "a.jpg"), 2, "a.jpg", ".png")
    refused(printed(scored, out, "--format", "html"), 2, "--format", "html")
    (tmp_path / "a.png").write_text("a letter")
    with pytest.raises(m.InputError, match="not made by this command"):
        m.evaluate(m.EvaluateConfig(**scored, out=out, plot=tmp_path / "a.png", force=True))
    assert not out.exists() and (tmp_path / "a.png").read_text() == "a letter"
    plot = tmp_path / "b.png"
    m.evaluate(m.EvaluateConfig(**scored, out=out, plot=plot))
    before = plot.read_bytes()
    with pytest.raises(m.InputError, match="exists already"):
        m.evaluate(m.EvaluateConfig(**scored, out=tmp_path / "other.h5", plot=plot))
    assert not (tmp_path / "other.h5").exists() and plot.read_bytes() == before


def test_a_bar_is_as_long_as_the_share(monkeypatch):
    class Terminal(io.StringIO):
        encoding = "utf-8"

        def isatty(self):
            return True

    monkeypatch.setattr(sys, "stdout", Terminal())
    assert console.bar(0.0) == "" and console.bar(1.0) == "█" * 20 and console.bar(0.5, 4) == "██"
    lengths = [len(console.bar(share)) for share in np.linspace(0, 1, 50)]
    assert lengths == sorted(lengths)
    assert console.bar(None) == console.bar(float("nan")) == ""
    monkeypatch.setattr(Terminal, "encoding", "ascii")
    assert console.bar(0.5, 4) == "##"
    monkeypatch.setattr(Terminal, "isatty", lambda self: False)
    assert console.bar(1.0) == ""


def test_bars_are_drawn_on_a_terminal_alone(scored, tmp_path):
    out = tmp_path / "eval.h5"
    assert "█" not in printed(scored, out).stdout
    fused = scored["predictions"].parent.parent / "fused.h5"
    for command, words in (
        (["show", str(out)], ("mean probability", "recall")),
        (["show", str(fused)], ("estimated prior", "estimated recall, lalm")),
    ):
        shown = on_terminal(*command)
        assert "█" in shown and all(word in shown for word in words)
        assert "█" not in mifuse(*command).stdout


def on_terminal(*arguments) -> str:
    """What a command prints where its stdout is a terminal."""
    ours, theirs = pty.openpty()
    done = subprocess.Popen(
        [sys.executable, "-m", "mifuse_cli", *arguments], stdout=theirs, env={**os.environ, "PYTHONUTF8": "1"}
    )
    os.close(theirs)
    text = b""
    try:
        while part := os.read(ours, 65536):
            text += part
    except OSError:  # the other end is closed
        pass
    assert done.wait() == 0
    os.close(ours)
    return text.decode()
