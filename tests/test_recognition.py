"""What a command says of a path where something else is than it expected."""

import shutil
from pathlib import Path

import pytest
from conftest import mifuse, read_rows, refused, write_csv
from test_artifacts import MAKERS

from mifuse_cli import artifacts
from mifuse_cli.artifacts import recognition
from mifuse_cli.files import nearest


@pytest.fixture
def here(copy, corpora, monkeypatch):
    """The directory of a run, in which there are a table and a recording too."""
    monkeypatch.chdir(copy.root)
    rows = read_rows(corpora.labels)
    write_csv(Path("labels.csv"), [{**row, "file": corpora.labels.parent / row["file"]} for row in rows])
    shutil.copyfile(next(corpora.wav_dir.iterdir()), "clip.wav")
    return copy.root


def test_every_kind_has_a_command():
    assert recognition.MADE_BY.keys() == artifacts.KINDS.keys()


@pytest.mark.parametrize("kind", MAKERS)
def test_every_kind_is_recognised(tmp_path, kind):
    MAKERS[kind]().save(tmp_path / "x.h5")
    assert recognition.kind_of(tmp_path / "x.h5") == kind
    assert recognition.MADE_BY[kind].split()[0] in artifacts.made_by(kind) or kind == "training"


class TestWhereAnArtifactIsExpected:
    """Which word stands before the error's, by what is given; the command is that for what was expected."""

    CASES = (
        ("model", 3, "model: is a checkpoint"),
        (".", 3, "is a directory that holds fused.h5 (fused), lalm.h5 (lalm), model (checkpoint)"),
        ("clip.wav", 3, "clip.wav: is no mifuse artifact, but a WAV file"),
        ("labels.csv", 3, "labels.csv: is no mifuse artifact, but text"),
        ("lalm.h5.journal.sqlite", 3, "is no mifuse artifact, but an SQLite database"),
        ("lalm.h", 3, "lalm.h: no such file (did you mean 'lalm.h5'?)"),
        ("model/train.h5", 4, "is of kind 'training'"),
    )
    COMMANDS = (
        ("fuse --lalm GIVEN --source source.h5 --out x.h5", "mifuse query-lalm --manifest CSV"),
        ("fuse --lalm lalm.h5 --source GIVEN --out x.h5", "mifuse sample-source --model "),
        ("train --fused GIVEN --model model --manifest labels.csv --out x", "mifuse fuse --lalm FILE"),
        ("pick --fused GIVEN --n 2 --out x.csv", "mifuse fuse --lalm FILE"),
        ("export --model model --evaluation GIVEN --out x", "mifuse evaluate --model "),
    )

    @pytest.mark.parametrize(("given", "code", "told"), CASES)
    @pytest.mark.parametrize(("command", "make"), COMMANDS)
    def test_is_said_what_is_there_and_how_to_make_the_other(self, here, command, make, given, code, told):
        found = mifuse(*command.replace("GIVEN", given).split())
        refused(found, code, told, make)
        assert not (here / "x.h5").exists()

    def test_the_command_is_for_the_model_that_was_given(self, here):
        found = mifuse("fuse", "--lalm", "lalm.h5", "--source", "model", "--out", "x.h5")
        refused(found, 3, "mifuse sample-source --model model --manifest CSV --out FILE")

    def test_a_model_given_for_its_predictions(self, here):
        found = mifuse("evaluate", "--predictions", "student", "--manifest", "labels.csv")
        refused(found, 3, "--model student", "predictions.h5")

    def test_what_is_no_prediction_to_score(self, here):
        """Scores of evaluate neither, which tell no more of how they were made."""
        score = ["evaluate", "--manifest", "labels.csv", "--out"]
        assert mifuse(*score, "eval.h5", "--predictions", "fused.h5").exit_code == 0
        found = mifuse(*score, "x.h5", "--predictions", "eval.h5")
        refused(
            found,
            4,
            "is an artifact of evaluate",
            "query-lalm, sample-source, fuse or predict",
            "show eval.h5",
        )
        refused(mifuse(*score, "x.h5", "--predictions", "model/train.h5"), 4, "the history of a training")

    @pytest.mark.parametrize("name", ["x.csv", "x.jsonl", "x.rttm"])
    def test_predictions_as_text(self, here, name):
        assert mifuse("predict", "--model", "model", "clip.wav", "--out", name).exit_code == 0
        found = mifuse("evaluate", "--manifest", "labels.csv", "--predictions", name)
        refused(
            found,
            3,
            f"{name}: is no mifuse artifact, but predictions as text",
            "mifuse predict --out FILE.h5",
        )

    def test_what_is_truncated_is_an_artifact(self, here):
        whole = (here / "source.h5").read_bytes()
        (here / "source.h5").write_bytes(whole[:-1000])
        refused(mifuse("show", "source.h5"), 3, "may be truncated")

    def test_answers_that_were_paid_for(self, here):
        (here / "lalm.h5").write_bytes(b"x")
        refused(mifuse("show", "lalm.h5"), 3, "no mifuse artifact", "--force", "lalm.h5.journal.sqlite")


@pytest.mark.parametrize(
    ("given", "code", "told"),
    [
        ("source.h5", 3, "is no readable checkpoint, but an artifact of sample-source (kind 'source')"),
        (".", 3, "model (checkpoint)"),
        ("clip.wav", 3, "a WAV file"),
        ("modle", 3, "no such directory (did you mean 'model'?)"),
        ("model/train.h5", 3, "Give the directory model."),
    ],
)
@pytest.mark.parametrize(
    "command",
    [
        "sample-source --manifest labels.csv --out x.h5",
        "train --fused fused.h5 --manifest labels.csv --out x",
        "evaluate --manifest labels.csv --out x.h5",
        "predict clip.wav --out x.csv",
        "export --out x",
    ],
)
def test_where_a_model_is_expected(here, command, given, code, told):
    refused(mifuse(*command.split(), "--model", given), code, told)


class TestShow:
    def test_a_directory_of_an_experiment(self, here):
        refused(mifuse("show", "."), 3, "source.h5 (source), student (checkpoint)", "mifuse report")

    def test_what_lies_below(self, here):
        refused(mifuse("show", ".."), 3, "run/fused.h5 (fused)")

    def test_nothing(self, tmp_path):
        refused(mifuse("show", tmp_path), 3, "is a directory without artifacts")


def test_the_nearest_path(tmp_path, monkeypatch):
    (tmp_path / "exp/models/seed0").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    for given, hint in (
        ("exp/modles", "exp/models"),
        ("epx/modles/seed1", "exp/models/seed0"),
        (tmp_path / "exp/modls", tmp_path / "exp/models"),
        ("./exp/modls", "exp/models"),
    ):
        assert nearest(Path(given)) == f" (did you mean '{hint}'?)"
    for given in ("exp/xyz", "nothing", "exp/models/seed0/a"):
        assert nearest(Path(given)) == ""
    (tmp_path / "link").symlink_to("gone")
    assert nearest(Path("link")) == ""
