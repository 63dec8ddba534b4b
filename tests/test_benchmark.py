"""The benchmark recipe: from prepared corpora to the summary, and what a dry run prints."""

import json
import shlex
import shutil
from pathlib import Path

import pytest
from conftest import CLASSES, make_corpus, write_csv
from test_recipes import commands, counts, run, value

RECIPE = "run_benchmark.sh"

pytestmark = pytest.mark.skipif(shutil.which("bash") is None, reason="the recipes need bash")


@pytest.fixture
def place(tmp_path, encoders) -> Path:
    """Two corpora and quick settings; works in a directory with a space in its name."""
    root = tmp_path / "my work"
    for name, seed in (("a", 1), ("b", 2)):
        write_csv(root / "corpora" / name / "metadata.csv", make_corpus(root / "corpora" / name, seed))
    settings = {
        "train-source": f"encoder: {encoders['whisper']}\nepochs: 2\n",
        "query-lalm": "model: m\n",
        "compare": "epochs: 1\nn-samples: 2\nresamples: 100\n",
    }
    (root / "conf").mkdir()
    for step, text in settings.items():
        (root / "conf" / f"{step}.yaml").write_text(text)
    return root


@pytest.mark.parametrize(
    ("options", "complaint"),
    [
        ("", "--corpora is missing"),
        ("--corpora c", "--lalm-url is missing"),
        ("--corpora c --encoder E --lalm-url U", "two corpora or more are needed, found: none"),
        ("--corpora c --encoder E --lalm-url U --names 'a a'", "--names a a: names a more than once"),
        ("--corpora c --lalm-url U --names 'a b' --seeds 'x'", "--seeds x: expected numbers"),
        (
            "--corpora c --lalm-url U --names 'a b' --stage 5",
            "--stage and --stop-stage are numbers from 1 to 4",
        ),
        ("--corpora c --lalm-url U --names 'a b' --nj 0", "--nj 0: expected 1 or more"),
        ("--corpora c --bogus 1", "unknown option --bogus"),
    ],
)
def test_usage_errors(options, complaint, tmp_path):
    done = run(*shlex.split(options), cwd=tmp_path, recipe=RECIPE)
    assert done.returncode == 2 and complaint in done.stderr
    assert list(tmp_path.iterdir()) == []


def test_dry_run(place):
    options = ["--corpora", "corpora", "--conf", "conf", "--lalm-url", "U", "--seeds", "0 1", "--dry-run"]
    options += ["--speaker-encoder", "V"]
    done = run(*options, cwd=place, recipe=RECIPE)
    assert done.returncode == 0, done.stderr
    lines = commands(done.stdout)
    assert counts(lines) == {"query-lalm": 2, "train-source": 8, "compare": 4}
    models = {value(line, "--out"): value(line, "--normalize") for line in lines if line[0] == "train-source"}
    assert models["exp/benchmark/models-speaker/a/seed1"] == "speaker"
    compared = [line for line in lines if line[0] == "compare"]
    assert [value(line, "--normalize") for line in compared] == ["source", "target", "speaker", "target"]
    assert [value(line, "--models").rpartition("-")[2] for line in compared] == [
        "source", "source", "speaker", "source"
    ]  # fmt: skip
    assert value(compared[-1], "--protocol") == "inductive"
    assert {value(line, "--speaker-encoder") for line in compared} == {"V"}
    assert not (place / "exp").exists()


@pytest.mark.slow
@pytest.mark.parametrize("way", ["forked", "started"])
def test_from_corpora_to_the_summary(place, serve, way, request):
    """By commands that are forked, and that are started as users start them, each of which loads what it needs."""
    lalm, nursery = serve(), request.getfixturevalue("nursery") if way == "forked" else None
    options = [
        "--corpora", "corpora", "--conf", "conf", "--lalm-url", lalm.url, "--seeds", "0", "--n-samples", "3",
        "--n-answers", "2", "--folds", "3", "--nj", "1",
    ]  # fmt: skip
    done = run(*options, cwd=place, recipe=RECIPE, nursery=nursery)
    assert done.returncode == 0, done.stderr
    assert len(lalm.asked) == 2 * 24 * 3
    text = (place / "exp/benchmark/benchmark.md").read_text()
    for name in ("source", "target", "speaker", "target-inductive"):
        assert f"\n## {name}\n" in text
        found = json.loads((place / f"exp/benchmark/compare/{name}/results.json").read_text())
        average = found["systems"]["mifuse-cross-fit"]["ua"]["average"]["mean"]
        assert f"{average:.1f} ± " in text and found["classes"] == list(CLASSES)
    assert "| mifuse-cross-fit less | best baseline | uniform fusion |" in done.stdout
    assert "Other weightings" in text.partition("## source")[2].partition("## target")[0]
    assert "Ablations" in text.partition("## target")[2].partition("## speaker")[0]
    rows = [line for line in done.stdout.splitlines() if line.startswith("| mifuse-cross-fit |")]
    assert len(rows) == 1 and rows[0].count("±") == 4
