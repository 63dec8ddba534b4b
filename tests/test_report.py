import errno
import json
import os
import re
import shutil
import sys
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from conftest import CLASSES, mifuse, read_rows, refused, write_csv
from pretended import Corpus, pretend_experiment, pretend_lalm, pretend_transfer

import mifuse_cli as m
from mifuse_cli import artifacts, evaluation
from mifuse_cli.artifacts import Evaluation
from mifuse_cli.errors import ArtifactError, DependencyError, InputError, UsageError
from mifuse_cli.reporting import Predictor
from mifuse_cli.reporting.page import embedded
from mifuse_cli.reporting.predictors import agreements
from mifuse_cli.reporting.sections import _auroc

HOSTILE = "</script><img src=x onerror=alert(1)>{{7*7}}<!--\u2028&amp;'\""


class Page(HTMLParser):
    """What a browser would make of a page: elements, attributes, text, and the data in it."""

    def __init__(self, path: Path):
        super().__init__()
        self.elements: list[str] = []
        self.attributes: list[tuple[str, str | None]] = []
        self.text, self.data, self.titles = "", [], []
        self.kind = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag, attributes):
        self.elements.append(tag)
        self.attributes += attributes
        self.kind = dict(attributes).get("class", "") if tag == "script" else tag
        if tag == "script" and dict(attributes).get("type") == "application/json":
            self.kind = dict(attributes).get("class") or dict(attributes)["id"]
            self.data.append((self.kind, ""))
        if "data-title" in dict(attributes):
            self.titles.append(dict(attributes)["data-title"])

    def handle_endtag(self, tag):
        self.kind = ""

    def handle_data(self, text):
        if self.kind in ("data", "raw", "task"):
            self.data[-1] = (self.kind, self.data[-1][1] + text)
        elif self.kind not in ("style", ""):
            self.text += text + "\n"

    def of(self, kind: str) -> list:
        return [json.loads(text) for name, text in self.data if name == kind]


def made(tmp_path, *paths, **options) -> tuple[m.ReportResult, Page]:
    out = tmp_path / "report.html"
    result = m.report(m.ReportConfig(paths=paths, out=out, force=True, **options))
    return result, Page(out)


@pytest.fixture
def transfer(tmp_path):
    corpus = Corpus(tmp_path / "data", clips=40, sounds=6).write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5")
    pretend_transfer(corpus, tmp_path / "run", lalm)
    return corpus, tmp_path / "run"


EVERYTHING = [
    "Summary", "Results", "Confusion", "Calibration", "Agreement", "Uncertainty", "Forecast", "Classes", "Clips",
    "Training", "Answers", "Settings",
]  # fmt: skip
NEEDS_LABELS = {"Results", "Confusion", "Calibration"}


def test_a_transfer_has_every_section_and_without_labels_all_that_need_none(transfer, tmp_path):
    _, run = transfer
    result, page = made(tmp_path, run)
    assert page.titles == EVERYTHING and result.clips == 40 and result.runs == ("run",)
    assert result.bytes == (tmp_path / "report.html").stat().st_size
    for file in run.glob("eval-*.h5"):
        file.unlink()
    _, page = made(tmp_path, run)
    assert page.titles == [title for title in EVERYTHING if title not in NEEDS_LABELS]
    assert "No true class of the 40 clips is known" in page.text
    assert set(page.of("data")[0]["truth"]) == {-1}


def test_the_scores_are_those_of_evaluate(transfer, tmp_path):
    corpus, run = transfer
    _, page = made(tmp_path, run)
    scored = Evaluation.load(run / "eval-mifuse.h5")
    metrics = scored.header.parameters["metrics"]
    assert f"{100 * metrics['ua']:.1f}" in page.text
    assert f"[{100 * metrics['ua_low']:.1f}, {100 * metrics['ua_high']:.1f}]" in page.text
    assert scored.header.parameters["signature"] in page.text
    (data,) = page.of("data")
    assert data["truth"] == corpus.truth.tolist() and data["id"] == corpus.ids
    names = [one["name"] for one in data["predictors"]]
    assert names == ["LALM standin", "source model", "mi labels", "mifuse student"]
    student = data["predictors"][3]["probs"]
    np.testing.assert_allclose(student, scored.probs, atol=6e-4)
    assert data["disagreement"][0] is not None and data["predictors"][0]["mi"][1] is not None


def test_what_was_not_evaluated_is_scored_as_evaluate_does(transfer, tmp_path):
    _, run = transfer
    before = Evaluation.load(run / "eval-lalm.h5").header.parameters["metrics"]
    (run / "eval-lalm.h5").unlink()
    _, page = made(tmp_path, run)
    assert "scored for this report" in page.text and f"{100 * before['ua']:.1f}" in page.text


def test_labels_of_some_clips_leave_the_others_unknown(transfer, tmp_path):
    corpus, run = transfer
    for file in run.glob("eval-*.h5"):
        file.unlink()
    lines = corpus.labels.read_text().splitlines()
    (tmp_path / "data" / "some.csv").write_text("\n".join(lines[:11]) + "\n")
    m.evaluate(
        m.EvaluateConfig(
            predictions=run / "mifuse" / "predictions.h5",
            manifest=tmp_path / "data" / "some.csv",
            out=run / "eval-some.h5",
        )
    )
    _, page = made(tmp_path, run)
    (data,) = page.of("data")
    assert sum(k >= 0 for k in data["truth"]) == 10
    assert "Scored on 10 of 40 clips" in page.text


def test_nothing_from_files_or_the_lalm_breaks_out(tmp_path):
    classes = ("angry", "<b>happy", "neutral</td>", "sad")
    corpus = Corpus(tmp_path / "data", classes, clips=12, mark=HOSTILE.replace("/", "|")).write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5", text=HOSTILE, model=HOSTILE)
    pretend_transfer(corpus, tmp_path / "run", lalm)
    m.pick(m.PickConfig(fused=tmp_path / "run" / "fused.h5", n=3, out=tmp_path / "pick.csv"))
    result, page = made(tmp_path, tmp_path / "run", pick=tmp_path / "pick.csv", title=HOSTILE)
    assert "img" not in page.elements and page.elements.count("b") > 0
    assert not [name for name, _ in page.attributes if name.startswith("on")]
    assert page.elements.count("script") == len(page.data) + 1 == 4
    assert HOSTILE in page.text and "{{7*7}}" in page.text and "49" not in page.titles
    assert page.of("raw")[0]["LALM " + HOSTILE][1][0] == ["ok", HOSTILE]
    assert page.of("data")[0]["id"] == corpus.ids and page.of("data")[0]["classes"] == list(classes)
    assert {clip["utt_id"] for clip in page.of("task")[0]["clips"]} < set(corpus.ids)
    assert result.to_label == 3


def test_the_policy_lets_only_our_script_run(transfer, tmp_path):
    import base64
    import hashlib

    _, run = transfer
    made(tmp_path, run)
    text = (tmp_path / "report.html").read_text(encoding="utf-8")
    script = re.search(r"<script>(.*)</script>\s*</body>", text, re.DOTALL)
    assert script is not None
    digest = base64.b64encode(hashlib.sha256(script[1].encode()).digest()).decode()
    assert f"script-src &#39;sha256-{digest}&#39;" in text or f"script-src 'sha256-{digest}'" in text
    assert not re.search(r"(https?:)?//[a-z0-9.-]+\.[a-z]{2,}", re.sub(r"<script type.*?</script>", "", text))


def test_json_in_the_page_is_read_back_as_it_was():
    value = {"text": HOSTILE + "\u2029 ]]>", "number": [1.5, None, True]}
    text = embedded(value)
    assert not set("<>&\u2028\u2029") & set(text) and json.loads(text) == value


def test_an_experiment_has_a_run_for_every_transfer_and_seed_and_no_other(tmp_path):
    expdir = pretend_experiment(tmp_path, seeds=(0, 1), clips=20)
    result, page = made(tmp_path, expdir)
    names = ("anna", "bob", "carla")
    assert set(result.runs) == {f"{a}-{b}/seed{s}" for a in names for b in names if a != b for s in (0, 1)}
    assert page.titles.count("Clips") == 12 and page.titles[0] == "Overview"
    ua = [
        100
        * Evaluation.load(expdir / "anna-bob" / f"seed{s}" / "eval-mifuse.h5").header.parameters["metrics"][
            "ua"
        ]
        for s in (0, 1)
    ]
    assert f"{np.mean(ua):.1f} ± {np.std(ua, ddof=1):.1f}" in page.text


def test_an_artifact_by_itself_brings_what_it_was_made_from(transfer, tmp_path):
    _, run = transfer
    _, page = made(tmp_path, run / "mifuse" / "predictions.h5")
    (data,) = page.of("data")
    names = [one["name"] for one in data["predictors"]]
    assert names == ["LALM standin", "source model", "mi labels", "mifuse student"]
    (tmp_path / "lalm.h5").unlink()
    _, page = made(tmp_path, run / "fused.h5")
    (data,) = page.of("data")
    assert [one["name"] for one in data["predictors"]] == ["lalm", "source model", "mi labels"]
    assert not page.of("raw")[0]


def test_the_report_of_the_pipeline(pipeline, corpora, tmp_path):
    for name, what in (("student", {"model": pipeline.student}), ("source", {"model": pipeline.model})):
        m.evaluate(m.EvaluateConfig(manifest=corpora.labels, out=tmp_path / f"eval-{name}.h5", **what))
    result, page = made(
        tmp_path, pipeline.root, tmp_path / "eval-student.h5", tmp_path / "eval-source.h5", embed_audio=2
    )
    assert result.embedded == 2 and not result.notes
    shown = page.of("data")
    assert [len(one["id"]) for one in shown] == [24] * len(shown)
    audio = [one for one in shown[0]["audio"] if one.startswith("data:audio/flac;base64,")]
    assert len(audio) == 2
    linked = next(one for one in shown[0]["audio"] if not one.startswith("data:"))
    assert (tmp_path / linked).is_file()
    assert "The source model was trained on 24 clips" in page.text


def test_a_comparison(tmp_path, transfer):
    _, run = transfer
    directory = tmp_path / "compared"
    (directory / "runs" / "a" / "b").mkdir(parents=True)
    (directory / "targets").mkdir()
    scored = Evaluation.load(run / "eval-mifuse.h5")
    header = replace(scored.header, parents=(), parameters={})
    systems = np.array(["source-only", "lalm", "nrc", "mine"])
    artifacts.Compared(
        header=header, utt_id=scored.utt_id, systems=systems, probs=np.stack([scored.probs] * 4)
    ).save(directory / "runs/a/b/seed3.h5")
    artifacts.Target(header=header, utt_id=scored.utt_id, truth=scored.truth).save(directory / "targets/b.h5")
    ua = {"a>b": {"mean": 61.25, "std": 2.0}, "average": {"mean": 61.25, "std": 2.0}}
    rows = {name: {"ua": ua, "rank": 1.0 if name == "mine" else None} for name in systems.tolist()}
    told = {"systems": rows, "transfers": ["a>b"], "seeds": [3], "ours": "mine", "best_baseline": "nrc"}
    (directory / "results.json").write_text(json.dumps(told))
    result, page = made(tmp_path, directory)
    assert result.comparisons == ("compared",) and result.runs == ("compared: a>b seed 3",)
    assert (
        "61.2 ± 2.0" in page.text
        and "the best baseline is nrc" in page.text
        and "Overview" not in page.titles
    )
    (data,) = page.of("data")
    assert [one["name"] for one in data["predictors"]] == ["lalm", "source-only", "nrc", "mine"]
    metrics = scored.header.parameters["metrics"]
    assert f"{100 * metrics['ua']:.1f}" in page.text


def test_stale_files_are_marked(transfer, tmp_path):
    corpus, run = transfer
    _, page = made(tmp_path, run)
    assert "made from something that has changed" not in page.text
    pretend_lalm(corpus, tmp_path / "lalm.h5", seed=5)
    _, page = made(tmp_path, run)
    assert "made from something that has changed" in page.text


def test_clips_to_label_are_embedded_first_and_their_card_tells_nothing(transfer, tmp_path):
    corpus, run = transfer
    with (tmp_path / "pick.csv").open("w") as file:
        file.write("file,utt_id,speaker,emotion,inclusion\n")
        for n in (4, 2, 39):
            file.write(f"data/wav/{n:05}.wav,{corpus.ids[n]},voice {n % 10},,0.25\n")
    result, page = made(tmp_path, run, pick=tmp_path / "pick.csv", embed_audio=3)
    (task,) = page.of("task")
    assert [clip["utt_id"] for clip in task["clips"]] == [corpus.ids[n] for n in (4, 2, 39)]
    assert {key for clip in task["clips"] for key in clip} == {
        "utt_id",
        "file",
        "speaker",
        "inclusion",
        "audio",
    }
    starts = [(clip["audio"] or "")[:11] for clip in task["clips"]]
    assert starts == ["data:audio/", "data:audio/", ""]
    assert result.embedded == 3 and task["classes"] == list(CLASSES)
    assert task["clips"][0]["file"] == "data/wav/00004.wav"


def test_refusals(transfer, tmp_path):
    _, run = transfer
    out = tmp_path / "r.html"
    refused(mifuse("report", tmp_path / "nowhere", "--out", out), 3, "nowhere")
    (tmp_path / "empty").mkdir()
    refused(mifuse("report", tmp_path / "empty", "--out", out), 3, "nothing to report on")
    (tmp_path / "broken.h5").write_text("no")
    refused(mifuse("report", tmp_path / "broken.h5", "--out", out), 3, "broken.h5")
    refused(mifuse("report", run, "--embed-audio", "-1", "--out", out), 2, "--embed-audio")
    m.report(m.ReportConfig(paths=(run,), out=out))
    before = out.read_bytes()
    refused(mifuse("report", run, "--out", out), 3, "exists already", "--force")
    (tmp_path / "letter.html").write_text("<p>Dear reader</p>")
    refused(
        mifuse("report", run, "--force", "--out", tmp_path / "letter.html"), 3, "not made by this command"
    )
    other = Corpus(tmp_path / "other", clips=5, mark="x").write()
    rows = [{**row, "inclusion": "0.5"} for row in read_rows(other.labels)]
    picked = write_csv(other.directory / "pick.csv", rows)
    with pytest.raises(ArtifactError, match="none of the 1 runs"):
        m.report(m.ReportConfig(paths=(run,), out=out, force=True, pick=picked))
    told = "--pick .*labels.csv: has no column 'inclusion' .*not from mifuse pick"
    with pytest.raises(InputError, match=told):
        m.report(m.ReportConfig(paths=(run,), out=out, force=True, pick=other.labels))
    with pytest.raises(UsageError, match="at least one path"):
        m.ReportConfig(paths=(), out=out)
    assert out.read_bytes() == before


def test_without_jinja2_it_says_what_to_install(transfer, tmp_path, monkeypatch):
    _, run = transfer
    monkeypatch.setitem(sys.modules, "jinja2", None)
    with pytest.raises(DependencyError, match=r"pip install 'mifuse\[report\]'"):
        m.report(m.ReportConfig(paths=(run,), out=tmp_path / "r.html"))


def test_agreement_and_auroc():
    one = Predictor("a", "lalm", np.array([[0.9, 0.1], [0.2, 0.8], [np.nan, np.nan], [0.6, 0.4]]))
    other = Predictor("b", "source", np.array([[0.9, 0.1], [0.7, 0.3], [0.7, 0.3], [np.nan, np.nan]]))
    np.testing.assert_allclose(agreements([one, other]), [[1, 0.5], [0.5, 1]])
    values, wrong = np.array([0.1, 0.4, 0.35, 0.8]), np.array([False, False, True, True])
    assert _auroc(values, wrong) == pytest.approx(0.75)  # three of four pairs are in order
    assert np.isnan(_auroc(values, np.zeros(4, bool)))


def test_clips_that_cannot_be_heard_are_named(transfer, tmp_path):
    corpus, run = transfer
    corpus.manifest.unlink()
    corpus.labels.unlink()
    result, page = made(tmp_path, run)
    assert "cannot be heard" in result.notes[0]
    assert set(page.of("data")[0]["audio"]) == {None}


@pytest.mark.parametrize("segments", [None, 0.2])
@pytest.mark.parametrize("given", ["files", "wav_dir", "manifest"])
def test_predictions_name_their_files(pipeline, corpora, tmp_path, monkeypatch, caplog, given, segments):
    """By where they were as seen from where predict ran, without a look at what else is there."""
    home, out = tmp_path / "here" / "exp", tmp_path / "out"
    shutil.copytree(corpora.wav_dir, home / "some wav")
    (home / "README.txt").write_text("no audio")
    (home / "table.csv").write_text("file\nsome wav/" + "\nsome wav/".join(os.listdir(home / "some wav")))
    monkeypatch.chdir(home.parent)
    what = {
        "files": {"files": sorted(Path("exp/some wav").iterdir())},
        "wav_dir": {"wav_dir": Path("exp/some wav")},
        "manifest": {"manifest": Path("exp/table.csv")},
    }[given]
    out.mkdir()
    m.predict(m.PredictConfig(model=pipeline.model, segments=segments, out=out / "p.h5", **what))
    monkeypatch.chdir(tmp_path)
    caplog.set_level("INFO", "mifuse")
    result, page = made(tmp_path, out / "p.h5")
    assert (result.runs, result.notes, caplog.messages) == (("out",), (), [])
    (data,) = page.of("data")
    for name in data["audio"]:
        path, _, part = unquote(name).partition("#t=")
        assert (tmp_path / path).is_file() and bool(part) == (segments is not None)
    result, _ = made(tmp_path, out / "p.h5", embed_audio=1)
    assert result.embedded == 1
    shutil.rmtree(home)
    assert "cannot be heard" in made(tmp_path, out / "p.h5")[0].notes[0]


def test_other_clips_of_one_directory_are_named_by_their_file(pipeline, corpora, tmp_path):
    """As those that were adapted to, beside those that were predicted later."""
    out = tmp_path / "exp"
    out.mkdir()
    files = sorted(corpora.wav_dir.iterdir())[:3]
    copies = [Path(shutil.copy(file, tmp_path / f"new-{file.name}")) for file in files]
    m.predict(m.PredictConfig(model=pipeline.student, files=copies, out=out / "p.h5"))
    result, _ = made(tmp_path, out / "p.h5")
    assert result.runs == ("exp", "exp: p.h5") and not result.notes


def test_a_broken_manifest_does_not_end_the_report(transfer, tmp_path):
    corpus, run = transfer
    corpus.manifest.write_text("no,clips\n")
    result, _ = made(tmp_path, run)
    assert result.clips == 40


def test_a_disk_that_fails_to_read_the_manifest_ends_it(transfer, tmp_path, monkeypatch):
    """Once it works again, the page would be another."""
    corpus, run = transfer
    whole = Path.open

    def failing(path, *given, **named):
        if path == corpus.manifest:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return whole(path, *given, **named)

    monkeypatch.setattr(Path, "open", failing)
    with pytest.raises(InputError, match=r"manifest\.csv: cannot be read \(Input/output error\)"):
        made(tmp_path, run)


def test_reliability_in_the_page_is_that_of_evaluation(transfer):
    _, run = transfer
    scored = Evaluation.load(run / "eval-mifuse.h5")
    clips, _, _ = evaluation.reliability(scored.truth, scored.probs.astype(float))
    assert clips.tolist() == scored.reliability_clips.tolist()
    with pytest.raises(InputError):
        m.report(m.ReportConfig(paths=(run / "no.h5",), out=run / "r.html"))
