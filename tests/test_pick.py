import csv

import numpy as np
import pytest
from conftest import mifuse, read_rows, refused, write_csv
from hypothesis import given
from hypothesis import strategies as st
from pretended import Corpus, pretend_lalm, pretend_transfer

import mifuse_cli as m
from mifuse_cli import evaluation, fusion
from mifuse_cli.fusion.picking import inclusion_probabilities

K = 4


def planted(clips=600, seed=0):
    """Labels, means and uncertainties of two teachers of which the second is unsure on every third clip."""
    rng = np.random.default_rng(seed)
    labels = rng.dirichlet(np.full(K, 0.3), clips)
    mean = np.stack([labels, labels], axis=1)
    mean[::3, 1] = 1 / K
    mi = np.full((clips, 2), 0.01)
    mi[::3, 1] = 0.4
    return labels, mean, mi


def draw(seed=0, number=60, voices=None, clips=600):
    labels, mean, mi = planted(clips)
    return fusion.picked(labels, mean, mi, voices, number, np.random.default_rng(seed))


@given(
    st.lists(st.floats(0.01, 100), min_size=1, max_size=40).flatmap(
        lambda sizes: st.tuples(st.just(np.array(sizes)), st.integers(1, len(sizes)))
    )
)
def test_inclusion_probabilities_sum_to_the_number_and_follow_the_sizes(given):
    sizes, number = given
    chance = inclusion_probabilities(sizes, number)
    assert chance.sum() == pytest.approx(number) and (chance > 0).all() and (chance <= 1 + 1e-12).all()
    below = chance < 1
    if below.any():
        ratio = chance[below] / sizes[below]
        np.testing.assert_allclose(ratio, ratio[0])


def test_each_clip_is_drawn_as_often_as_its_probability_says():
    labels, mean, mi = planted(40)
    drawn, told = np.zeros(40), np.zeros(40)
    for seed in range(1000):
        found = fusion.picked(labels, mean, mi, None, 12, np.random.default_rng(seed))
        assert len(set(found.position)) == 12
        drawn[found.position] += 1
        told[found.position] = found.inclusion
    error = np.sqrt(told * (1 - told) / 1000)
    assert (np.abs(drawn / 1000 - told) < 4.5 * error + 1e-9).all()


def test_accuracy_is_estimated_without_bias_where_the_plain_one_is_biased():
    labels, _, _ = planted()
    right = np.random.default_rng(1).random(600) < np.where(np.arange(600) % 3 == 0, 0.3, 0.9)
    truth = np.where(right, labels.argmax(axis=1), (labels.argmax(axis=1) + 1) % K)
    total, hajek, plain, ua = [], [], [], []
    for seed in range(200):
        found = draw(seed)
        hit = right[found.position]
        total.append((hit / found.inclusion).sum() / 600)  # Horvitz-Thompson
        plain.append(hit.mean())
        one = evaluation.estimated_accuracy(
            truth[found.position], labels[found.position], found.inclusion,
            resamples=100, rng=np.random.default_rng(0),
        )  # fmt: skip
        hajek.append(one["wa"])
        ua.append(one["ua"])
        assert one["wa_low"] <= one["wa"] <= one["wa_high"]
    standard_error = np.std(total) / np.sqrt(200)
    assert abs(np.mean(total) - right.mean()) < 4 * standard_error
    assert abs(np.mean(hajek) - right.mean()) < 0.01 < 0.05 < right.mean() - np.mean(plain)
    counts = evaluation.confusion(truth, labels.argmax(axis=1), K)
    whole = evaluation.unweighted_accuracy(np.diag(counts), counts.sum(axis=1))
    assert abs(np.mean(ua) - whole) < 0.02


def test_with_equal_probabilities_the_estimate_is_the_score():
    labels, _, _ = planted()
    truth = np.random.default_rng(3).integers(0, K, 600)
    found = evaluation.estimated_accuracy(
        truth, labels, np.full(600, 0.1), resamples=100, rng=np.random.default_rng(0)
    )
    rates = evaluation.rates(truth, labels)
    assert found["wa"] == pytest.approx(rates["wa"]) and found["ua"] == pytest.approx(rates["ua"])


def test_what_the_teachers_disagree_on_is_likelier_and_classes_and_voices_are_covered():
    voices = np.arange(600) % 12
    odd = np.arange(600) % 3 == 0
    shares, covered = [], []
    for seed in range(20):
        found = draw(seed, voices=voices)
        assert np.bincount(found.stratum, minlength=K).tolist() == [15] * K
        shares.append(odd[found.position].mean())
        covered.append(len(set(voices[found.position])))
    assert np.mean(shares) > 0.5 and min(covered) == 12
    informative = draw().informative
    assert informative[odd].mean() > informative[~odd].mean() + 0.2


def test_a_rare_class_gives_all_of_its_clips_and_the_others_fill_up():
    labels = np.zeros((50, K))
    labels[:47, 0], labels[47:, 1] = 1, 1
    found = fusion.picked(
        labels, np.stack([labels] * 2, axis=1), np.zeros((50, 2)), None, 20, np.random.default_rng(0)
    )
    assert np.bincount(found.stratum, minlength=K).tolist() == [17, 3, 0, 0]
    np.testing.assert_allclose(found.inclusion[found.stratum == 1], 1)


def test_clips_without_an_answer_can_be_picked():
    labels, mean, mi = planted(40)
    mean[:10, 0], mi[:10, 0] = np.nan, np.nan
    mean[:5, 1], mi[:5, 1] = np.nan, np.nan
    found = fusion.picked(labels, mean, mi, None, 40, np.random.default_rng(0))
    assert sorted(found.position) == list(range(40)) and np.isfinite(found.informative).all()


# The command


@pytest.fixture
def transfer(tmp_path):
    corpus = Corpus(tmp_path / "data", clips=120).write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5")
    pretend_transfer(corpus, tmp_path / "run", lalm, evaluated=False)
    return corpus, tmp_path / "run"


def label(pick, corpus, out):
    """The file with the true classes filled in."""
    truth = {row["utt_id"]: row["emotion"] for row in read_rows(corpus.labels)}
    return write_csv(out, [{**row, "emotion": truth[row["utt_id"]]} for row in read_rows(pick)])


def test_the_file_says_where_the_audio_is_and_nothing_of_what_is_predicted(transfer, tmp_path):
    corpus, run = transfer
    out = tmp_path / "sub" / "pick.csv"
    result = m.pick(m.PickConfig(fused=run / "fused.h5", n=20, out=out))
    rows = read_rows(out)
    assert list(rows[0]) == ["file", "utt_id", "speaker", "emotion", "inclusion"]
    assert (result.clips, result.of, len(rows)) == (20, 120, 20) and sum(result.by_label.values()) == 20
    assert result.speakers >= 7
    for row in rows:
        assert not row["emotion"] and 0 < float(row["inclusion"]) <= 1
        assert (out.parent / row["file"]).resolve().parent == (corpus.directory / "wav").resolve()
    assert [row["utt_id"] for row in rows] != sorted(row["utt_id"] for row in rows)
    again = tmp_path / "again.csv"
    m.pick(m.PickConfig(fused=run / "fused.h5", n=20, out=again))
    assert [r["utt_id"] for r in read_rows(again)] == [r["utt_id"] for r in rows]
    m.pick(m.PickConfig(fused=run / "fused.h5", n=20, out=again, seed=1, force=True))
    assert [r["utt_id"] for r in read_rows(again)] != [r["utt_id"] for r in rows]


def test_evaluate_estimates_the_accuracy_over_all_clips(transfer, tmp_path):
    corpus, run = transfer
    m.pick(m.PickConfig(fused=run / "fused.h5", n=60, out=tmp_path / "pick.csv"))
    gold = label(tmp_path / "pick.csv", corpus, tmp_path / "gold.csv")
    predictions = run / "mifuse" / "predictions.h5"
    scored = m.evaluate(m.EvaluateConfig(predictions=predictions, manifest=gold, out=tmp_path / "some.h5"))
    whole = m.evaluate(
        m.EvaluateConfig(predictions=predictions, manifest=corpus.labels, out=tmp_path / "all.h5")
    )
    assert scored.metrics["n"] == 60 and not whole.estimate
    assert scored.estimate["wa_low"] <= whole.metrics["wa"] <= scored.estimate["wa_high"]
    assert abs(scored.estimate["wa"] - whole.metrics["wa"]) < 0.1
    assert any("unequal probabilities" in note for note in scored.notes)
    printed = mifuse("evaluate", "--predictions", predictions, "--manifest", gold, "--out", tmp_path / "c.h5")
    assert "WA of all clips" in printed.stdout
    rows = read_rows(gold)
    # Other probabilities are another input for --update.
    for value, current in ((rows[0]["inclusion"], True), ("0.5", False)):
        rows[0]["inclusion"] = value
        write_csv(gold, rows)
        config = m.EvaluateConfig(
            predictions=predictions, manifest=gold, out=tmp_path / "some.h5", update=True
        )
        assert m.evaluate(config).up_to_date is current
    for value in ("0", "1.5", "often"):
        rows[0]["inclusion"] = value
        write_csv(gold, rows)
        answer = mifuse(
            "evaluate", "--predictions", predictions, "--manifest", gold, "--out", tmp_path / "d.h5"
        )
        refused(answer, 3, "inclusion", value, "gold.csv")


def test_clips_whose_class_was_given_are_not_picked_again(pipeline, corpora, tmp_path):
    gold = write_csv(tmp_path / "gold.csv", read_rows(corpora.labels)[:10])
    fused = tmp_path / "fused.h5"
    m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, gold=gold, out=fused))
    result = m.pick(m.PickConfig(fused=fused, n=50, out=tmp_path / "pick.csv"))
    assert result.clips == result.of == 14 and "only 14 clips" in result.notes[0]
    given = {row["file"].split("/")[-1] for row in read_rows(gold)}
    assert not given & {row["file"].split("/")[-1] for row in read_rows(tmp_path / "pick.csv")}


def test_what_was_picked_and_labelled_is_gold_for_fuse(pipeline, corpora, tmp_path):
    fused = tmp_path / "fused.h5"
    m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, out=fused))
    m.pick(m.PickConfig(fused=fused, n=12, out=tmp_path / "pick.csv"))
    truth = {row["file"].split("/")[-1]: row["emotion"] for row in read_rows(corpora.labels)}
    rows = [{**row, "emotion": truth[row["file"].split("/")[-1]]} for row in read_rows(tmp_path / "pick.csv")]
    gold = write_csv(tmp_path / "gold.csv", rows)
    made = m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=pipeline.source, gold=gold, out=tmp_path / "g.h5"))
    assert made.gold == 12


def test_refusals(transfer, tmp_path):
    corpus, run = transfer
    refused(mifuse("pick", "--fused", run / "source.h5", "--out", tmp_path / "p.csv"), 4, "kind 'source'")
    refused(mifuse("pick", "--fused", run / "fused.h5", "--n", "0", "--out", tmp_path / "p.csv"), 2, "--n 0")
    (tmp_path / "there.csv").touch()
    refused(mifuse("pick", "--fused", run / "fused.h5", "--out", tmp_path / "there.csv"), 3, "--force")
    corpus.manifest.unlink()
    refused(mifuse("pick", "--fused", run / "fused.h5", "--out", tmp_path / "p.csv"), 3, "is not there")
    assert not (tmp_path / "p.csv").exists()


def test_the_csv_is_read_by_others_as_it_was_meant(tmp_path):
    corpus = Corpus(tmp_path / "data", clips=30, mark=', "quoted"').write()
    lalm = pretend_lalm(corpus, tmp_path / "lalm.h5")
    pretend_transfer(corpus, tmp_path / "run", lalm, evaluated=False)
    m.pick(m.PickConfig(fused=tmp_path / "run" / "fused.h5", n=5, out=tmp_path / "pick.csv"))
    with (tmp_path / "pick.csv").open(newline="", encoding="utf-8") as file:
        assert {row["utt_id"] for row in csv.DictReader(file)} < set(corpus.ids)
