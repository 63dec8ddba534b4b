"""Every method through the train step: it learns, it is marked, and no label reaches it but the oracle's."""

from dataclasses import replace

import numpy as np
import pytest
from conftest import mifuse, read_rows, refused, train_config, weights, write_csv

import mifuse_cli as m
from mifuse_cli import artifacts
from mifuse_cli.methods.adaptation import STUDENTS, WITHOUT_LALM, WITHOUT_STUDENT, WITHOUT_TRAINING


def run(pipeline, corpora, out, method, **changes):
    if method == "oracle":
        changes = {"labels": corpora.labels, **changes}
    m.train(train_config(pipeline, corpora, out, method=method, **changes))
    return artifacts.Training.load(out / "train.h5")


@pytest.fixture
def planted(corpora, tmp_path):
    """Manifests of the target with true and with wrong emotions in them."""
    rows = read_rows(corpora.labels)
    emotions = [row["emotion"] for row in rows]
    wrong = [
        {**row, "emotion": emotion} for row, emotion in zip(rows, emotions[1:] + emotions[:1], strict=True)
    ]
    return write_csv(corpora.target.parent / "true.csv", rows), write_csv(
        corpora.target.parent / "wrong.csv", wrong
    )


@pytest.mark.parametrize("method", STUDENTS)
def test_a_student_differs_from_its_source_and_says_by_what(pipeline, corpora, tmp_path, method):
    made = run(pipeline, corpora, tmp_path / "a", method)
    assert made.header.parameters["method"] == method and np.isfinite(made.history).all()
    epochs = 1 if method in WITHOUT_TRAINING else 2
    assert made.history.shape == (epochs, len(made.columns_of_history))
    assert weights(tmp_path / "a") != weights(pipeline.model)
    result = m.evaluate(
        m.EvaluateConfig(
            predictions=tmp_path / "a/predictions.h5", manifest=corpora.labels, out=tmp_path / "e.h5"
        )
    )
    assert f"system:{method}|" in result.signature


@pytest.mark.parametrize("method", [name for name in STUDENTS if name != "oracle"])
def test_planted_labels_change_nothing(pipeline, corpora, tmp_path, planted, method):
    run(pipeline, corpora, tmp_path / "plain", method)
    for number, manifest in enumerate(planted):
        run(pipeline, corpora, tmp_path / str(number), method, manifest=manifest)
        assert weights(tmp_path / str(number)) == weights(tmp_path / "plain")


def test_planted_labels_change_nothing_of_the_default(pipeline, corpora, tmp_path, planted):
    for name, manifest in zip(("plain", "true", "wrong"), (corpora.target, *planted), strict=True):
        root = tmp_path / name
        m.sample_source(
            m.SampleSourceConfig(model=pipeline.model, manifest=manifest, out=root / "source.h5", n_samples=4)
        )
        m.fuse(m.FuseConfig(lalm=pipeline.lalm, source=root / "source.h5", out=root / "fused.h5"))
        run(pipeline, corpora, root / "student", "mifuse", manifest=manifest, fused=root / "fused.h5")
        assert weights(root / "student") == weights(tmp_path / "plain/student")
    run(pipeline, corpora, tmp_path / "paper", "mifuse")
    assert weights(tmp_path / "paper") != weights(tmp_path / "plain/student")
    for name, labels in (
        ("plain/student", "weighting:cross-fit|refresh:0"),
        ("paper", "weighting:mi(0.1)|pool:linear|refresh:1"),
    ):
        result = m.evaluate(
            m.EvaluateConfig(
                model=tmp_path / name, manifest=corpora.labels, out=tmp_path / "e.h5", force=True
            )
        )
        assert labels in result.signature


def test_the_oracle_alone_learns_from_labels_and_is_marked(pipeline, corpora, tmp_path, planted):
    true, wrong = planted
    run(pipeline, corpora, tmp_path / "true", "oracle", labels=true)
    run(pipeline, corpora, tmp_path / "wrong", "oracle", labels=wrong)
    assert weights(tmp_path / "true") != weights(tmp_path / "wrong")
    done = mifuse(
        "train", "--method", "oracle", "--labels", true, "--model", pipeline.model, "--manifest", corpora.target,
        "--out", tmp_path / "o", "--epochs", "1",
    )  # fmt: skip
    assert done.exit_code == 0 and "an upper bound and not a result" in done.stderr
    refused(
        mifuse(
            "train", "--method", "shot", "--labels", true, "--model", pipeline.model, "--manifest",
            corpora.target, "--out", tmp_path / "x",
        ),
        2, "no other method may see them",
    )  # fmt: skip


@pytest.mark.parametrize("method", [name for name in STUDENTS if name in WITHOUT_LALM and name != "oracle"])
def test_methods_that_hear_no_lalm_need_no_fused_labels(pipeline, corpora, tmp_path, method):
    run(pipeline, corpora, tmp_path / "with", method)
    run(pipeline, corpora, tmp_path / "without", method, fused=None)
    assert weights(tmp_path / "with") == weights(tmp_path / "without")
    made = run(pipeline, corpora, tmp_path / "target", method, fused=None, normalize="target")
    assert made.header.parameters["normalize"] == "target"
    assert weights(tmp_path / "target") != weights(tmp_path / "without")


def refused_by_train(corpora, out, pipeline, *options):
    return mifuse(
        "train", "--fused", pipeline.fused, "--model", pipeline.model, "--manifest", corpora.target, "--out", out,
        *options,
    )  # fmt: skip


@pytest.mark.parametrize("method", WITHOUT_STUDENT)
def test_methods_that_make_no_student_say_where_they_are_found(pipeline, corpora, tmp_path, method):
    done = refused_by_train(corpora, tmp_path / "s", pipeline, "--method", method)
    refused(done, 2, "makes no student to save", f"mifuse compare --systems {method}", "predict_clips")
    assert not (tmp_path / "s").exists()


@pytest.mark.parametrize("method", WITHOUT_TRAINING)
def test_a_trained_encoder_has_no_use_for_methods_that_train_nothing(pipeline, corpora, tmp_path, method):
    done = refused_by_train(corpora, tmp_path / "s", pipeline, "--method", method, "--tune", "all")
    refused(done, 2, f"--tune all: --method {method} replaces only the weights of the classifier layer")


def test_votes_of_an_earlier_version_are_asked_for(pipeline, corpora, tmp_path):
    fused = artifacts.Fused.load(pipeline.fused)
    assert fused.top_counts.sum(axis=2).tolist() == [[answered(row), 4.0] for row in lalm_of(pipeline)]
    replace(fused, top_counts=None).save(tmp_path / "old.h5")
    with pytest.raises(m.InputError, match=r"did not count answers by class\. Fuse again"):
        run(pipeline, corpora, tmp_path / "s", "rcl", fused=tmp_path / "old.h5")


def lalm_of(pipeline):
    return artifacts.Lalm.load(pipeline.lalm).probs


def answered(samples):
    """Number of valid answers (N, K) to a clip."""
    return float((~np.isnan(samples).any(axis=1)).sum())
