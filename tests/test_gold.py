"""The few-gold protocol: the true class of a few clips is given to ``fuse``, and these clips are left out of scores."""

import json

import numpy as np
import pytest
from conftest import mifuse, read_rows, refused, train_config, write_csv

import mifuse_cli as m
from mifuse_cli import truth
from mifuse_cli.artifacts import Evaluation, Fused, Predictions, Training
from mifuse_cli.errors import ArtifactError, InputError, UsageError
from mifuse_cli.fusion import ridge
from mifuse_cli.fusion.mixture import settled

GOLD = 6
CLASSES = ("angry", "happy", "neutral", "sad")


@pytest.fixture
def gold(copy, corpora):
    """Labels of a few clips, of every class."""
    chosen = read_rows(corpora.labels)[::4][:GOLD]
    return write_csv(copy.root / "gold.csv", [{"file": r["file"], "emotion": r["emotion"]} for r in chosen])


def fused(run, gold, out="gold.h5", **changes):
    return m.fuse(m.FuseConfig(lalm=(run.lalm,), source=run.source, gold=gold, out=run.root / out, **changes))


def test_the_clips_have_their_class_and_the_artifact_names_them(copy, gold):
    result = fused(copy, gold)
    made = Fused.load(result.out)
    known = {row["file"].rpartition("/")[2].rpartition(".")[0]: row["emotion"] for row in read_rows(gold)}
    assert set(made.gold) == set(known) and len(known) == GOLD
    for name, emotion in known.items():
        row = made.probs[made.utt_id.tolist().index(name)]
        np.testing.assert_array_equal(row, np.eye(4)[CLASSES.index(emotion)])
    assert any(note.startswith(f"few-gold:{GOLD}: ") for note in result.notes)
    assert made.header.parent("gold") is not None


def test_without_gold_the_artifact_says_nothing_of_it(copy):
    made = Fused.load(m.fuse(m.FuseConfig(lalm=(copy.lalm,), source=copy.source, out=copy.root / "f.h5")).out)
    assert made.gold is None and made.header.parent("gold") is None


def test_another_label_makes_the_artifact_anew(copy, gold):
    fused(copy, gold)
    assert fused(copy, gold, update=True).up_to_date
    rows = read_rows(gold)
    rows[0]["emotion"] = "sad" if rows[0]["emotion"] != "sad" else "angry"
    write_csv(gold, rows)
    assert not fused(copy, gold, update=True).up_to_date


def test_gold_clips_are_left_out_of_every_score(copy, corpora, gold):
    labels = fused(copy, gold).out
    out = copy.root / "student-gold"
    m.train(train_config(copy, corpora, out, fused=labels))
    clips = len(Fused.load(labels).utt_id)
    assert set(Training.load(out / "train.h5").gold) == set(Predictions.load(out / "predictions.h5").gold)
    for number, scored in enumerate(
        ({"model": out}, {"predictions": labels}, {"predictions": out / "predictions.h5"})
    ):
        result = m.evaluate(
            m.EvaluateConfig(manifest=corpora.labels, out=copy.root / f"e{number}.h5", **scored)
        )
        made = Evaluation.load(result.out)
        assert result.metrics["n"] == len(made.utt_id) == clips - GOLD
        assert not set(made.utt_id) & set(Fused.load(labels).gold)
        assert f"few-gold:{GOLD}" in result.signature
        assert any("left out" in note for note in result.notes)
    plain = m.evaluate(
        m.EvaluateConfig(manifest=corpora.labels, out=copy.root / "plain.h5", predictions=copy.fused)
    )
    assert plain.metrics["n"] == clips and "few-gold" not in plain.signature


def test_with_and_without_gold_can_be_scored_on_the_same_clips(copy, corpora, gold):
    labels = fused(copy, gold).out
    known = {row["file"] for row in read_rows(gold)}
    rest = [row for row in read_rows(corpora.labels) if row["file"] not in known]
    manifest = write_csv(corpora.labels.parent / "rest.csv", rest)
    made = {}
    for name, predictions in {"gold": labels, "plain": copy.fused}.items():
        out = copy.root / f"{name}-rest.h5"
        result = m.evaluate(m.EvaluateConfig(manifest=manifest, predictions=predictions, out=out))
        made[name] = Evaluation.load(result.out)
        clips = len(Fused.load(predictions).utt_id)
        assert any(f"{len(rest)} of {clips} predictions are scored" in note for note in result.notes)
        assert f"|n:{len(rest)}|" in result.signature
        assert ("few-gold" in result.signature) == (name == "gold")
    np.testing.assert_array_equal(made["gold"].utt_id, made["plain"].utt_id)
    stored = Fused.load(copy.fused)
    at = [stored.utt_id.tolist().index(name) for name in made["plain"].utt_id]
    np.testing.assert_array_equal(made["plain"].probs, stored.probs[at])


def test_methods_without_fused_labels_saw_no_gold(copy, corpora, gold):
    labels = fused(copy, gold).out
    assert m.train(train_config(copy, corpora, copy.root / "ours", fused=labels)).gold == GOLD
    result = m.train(train_config(copy, corpora, copy.root / "shot", fused=labels, method="shot"))
    assert result.gold == 0 and Training.load(result.out / "train.h5").gold is None


def test_what_a_model_was_trained_with_stays_known(copy, corpora, gold):
    """A student made with true classes, as the model of other steps."""
    labels = fused(copy, gold).out
    student = m.train(train_config(copy, corpora, copy.root / "student-gold", fused=labels, tune="top-1")).out
    given = set(Fused.load(labels).gold)
    other = m.train(train_config(copy, corpora, copy.root / "tent", model=student, fused=None, method="tent"))
    assert other.gold == GOLD and set(Training.load(other.out / "train.h5").gold) == given
    samples = copy.root / "samples.h5"
    m.sample_source(m.SampleSourceConfig(model=student, manifest=corpora.target, out=samples))
    again = m.fuse(
        m.FuseConfig(lalm=(copy.lalm,), source=samples, out=copy.root / "again.h5", weighting="uniform")
    )
    assert again.gold == GOLD and set(Fused.load(again.out).gold) == given
    scored = ({"model": other.out}, {"predictions": samples}, {"predictions": again.out})
    for number, system in enumerate(scored):
        out = copy.root / f"s{number}.h5"
        result = m.evaluate(m.EvaluateConfig(manifest=corpora.labels, out=out, **system))
        assert f"few-gold:{GOLD}" in result.signature and not given & set(Evaluation.load(out).utt_id)


def test_labels_made_with_gold_are_neither_forecast_nor_softened(copy, gold):
    result = fused(copy, gold)
    made = Fused.load(result.out)
    assert made.header.parameters["label_temperature"] == 1 and "labels" not in result.forecast
    product = made.prior * made.views.prod(axis=1)
    rest = ~np.isin(made.utt_id, made.gold)
    expected = product / product.sum(axis=1, keepdims=True)
    np.testing.assert_allclose(made.probs[rest], expected[rest], atol=1e-5)


def test_few_are_said_to_help_little(copy, gold):
    assert any("fewer than 20 true classes" in note for note in fused(copy, gold).notes)


def test_the_protocol_is_printed(copy, gold):
    given = ("--lalm", copy.lalm, "--source", copy.source, "--out", copy.root / "p.h5")
    assert f"few-gold:{GOLD}" in mifuse("fuse", *given, "--gold", gold).stdout
    assert "few-gold" not in mifuse("fuse", *given, "--force").stdout


def test_nothing_is_left_to_score(copy, corpora):
    rows = read_rows(corpora.labels)
    everything = write_csv(
        copy.root / "all.csv", [{"file": r["file"], "emotion": r["emotion"]} for r in rows]
    )
    result = fused(copy, everything)
    assert any("none is left to score" in note for note in result.notes)
    labels = result.out
    with pytest.raises(ArtifactError, match="none is left to score"):
        m.evaluate(m.EvaluateConfig(manifest=corpora.labels, predictions=labels, out=copy.root / "e.h5"))


def test_blank_rows_are_no_labels(copy, gold):
    rows = read_rows(gold)
    blank = [{**row, "emotion": " "} if number else row for number, row in enumerate(rows)]
    assert len(Fused.load(fused(copy, write_csv(gold, blank)).out).gold) == 1
    write_csv(gold, [{**row, "emotion": ""} for row in rows])
    with pytest.raises(InputError, match="is empty throughout"):
        fused(copy, gold, "none.h5")


def test_a_model_is_scored_on_the_clips_with_a_label(pipeline, corpora, tmp_path):
    rows = read_rows(corpora.labels)
    some = [{**row, "file": corpora.labels.parent / row["file"]} for row in rows]
    options = ["--model", pipeline.student, "--manifest"]
    few = mifuse("evaluate", *options, write_csv(tmp_path / "few.csv", some[:20]), "--json")
    for row in some[20:]:
        row["emotion"] = ""
    blank = mifuse("evaluate", *options, write_csv(tmp_path / "blank.csv", some), "--json")
    assert json.loads(blank.stdout)["metrics"] == json.loads(few.stdout)["metrics"]
    assert f"note: {len(rows) - 20} of {len(rows)} clips have no label and are left out" in blank.stderr


def test_clips_of_another_corpus(copy, gold):
    write_csv(gold, [{"file": "elsewhere/x.wav", "emotion": "sad"}, *read_rows(gold)])
    result = mifuse(
        "fuse", "--lalm", copy.lalm, "--source", copy.source, "--gold", gold, "--out", copy.root / "x.h5"
    )
    refused(result, 4, f"1 of {GOLD + 1} labelled clips, such as 'x'", "not among")
    assert not (copy.root / "x.h5").exists()


def test_an_unknown_class(copy, gold):
    write_csv(gold, [{**row, "emotion": "hapy"} for row in read_rows(gold)])
    result = mifuse(
        "fuse", "--lalm", copy.lalm, "--source", copy.source, "--gold", gold, "--out", copy.root / "x.h5"
    )
    refused(result, 3, "'hapy'", "did you mean 'happy'?")


def test_weightings_make_no_use_of_it(copy, gold):
    with pytest.raises(UsageError, match="makes no use of true labels"):
        fused(copy, gold, weighting="mi")


def simulated(clips=300, seed=0):
    """Clips whose LALM takes one class for another, and a source classifier at chance."""
    rng = np.random.default_rng(seed)
    true = rng.integers(4, size=clips)
    heard = np.where(true == 2, 3, np.where(true == 3, 2, true))
    lalm = 0.8 * np.eye(4)[np.where(rng.random(clips) < 0.85, heard, rng.integers(4, size=clips))] + 0.05
    source = rng.dirichlet(np.ones(4), clips)
    layer = rng.normal(size=(clips, 24)) + 1.5 * rng.normal(size=(4, 24))[true]
    return true, lalm, source, ridge.left_out(clips, [layer], 24)


def test_a_few_labels_undo_what_the_teachers_confuse():
    from mifuse_cli.fusion import mixture

    true, lalm, source, model = simulated()
    [teachers_of] = [
        kind for kind in vars(mixture).values() if isinstance(kind, type) and hasattr(kind, "starts")
    ]
    teachers = teachers_of.of(lalm, [source])
    known = np.full(len(true), -1)
    known[:60] = true[:60]
    rest = known < 0
    alone, helped = (settled(teachers, model, gold=gold).labels.argmax(axis=1) for gold in (None, known))
    assert (alone == true)[rest].mean() < 0.6 < 0.85 < (helped == true)[rest].mean()


def test_positions_are_by_id_not_by_row(tmp_path):
    ids = np.array(["a", "b", "c"])
    file = write_csv(
        tmp_path / "g.csv", [{"file": "c.wav", "emotion": "sad"}, {"file": "a.wav", "emotion": "happy"}]
    )
    assert truth.read_gold(file, CLASSES, ids, "x").tolist() == [1, -1, 3]
