"""Labels are made in ``fuse`` and learned in ``train``: whatever was chosen in one reaches the other."""

import dataclasses
import json
import re
from dataclasses import replace
from functools import partial

import numpy as np
import pytest
import torch
from conftest import mifuse, refused, train_config, weights
from teachers import ask_another

import mifuse_cli as m
from mifuse_cli import provenance
from mifuse_cli.artifacts import Fused, Lalm, Predictions, Source
from mifuse_cli.encoding_settings import Encoding
from mifuse_cli.errors import InputError, UsageError
from mifuse_cli.fusion import fuse_samples
from mifuse_cli.manifest import read_clips
from mifuse_cli.methods import loop
from mifuse_cli.methods.structure import structure_of
from mifuse_cli.model import checkpoint
from mifuse_cli.model.prepare import frozen_classifier, frozen_inputs, hidden_states

VALUES = {
    "weighting": "entropy",
    "tau": 0.5,
    "keep_weighting": True,
    "pool": "log",
    "sharpen": 0.5,
    "mi_estimator": "plugin",
    "calibrate_lalm": "source-agreement",
    "without": "lalm",
    "seed": 1,
}
"""Another value for every option that settles something."""
REFUSED = {"cross-fit": {"tau", "keep_weighting", "pool", "mi_estimator"}, "mi": set()}
DRAWS_NOTHING = {"mi"}
"""Weightings that have no use for the seed, an option of every step."""


@pytest.fixture
def targets(copy, corpora, monkeypatch):
    """Fuses with some options, trains, and gives the labels of the artifact and those that the student learns."""
    run, learned = loop.run, []

    def noting(state, inputs, method, *args, **hooks):
        learned.append(method.targets["fused"].numpy().copy())
        return run(state, inputs, method, *args, **hooks)

    monkeypatch.setattr(loop, "run", noting)

    def make(**options):
        config = m.FuseConfig(
            **{"lalm": copy.lalm, "source": copy.source, "out": copy.root / "f.h5", "force": True, **options}
        )
        m.fuse(config)
        m.train(train_config(copy, corpora, copy.root / "s", fused=config.out, epochs=1, force=True))
        np.testing.assert_array_equal(learned[-1], Fused.load(config.out).probs)
        return learned[-1]

    return make


def never_vary(lalm):
    made = Lalm.load(lalm)
    replace(made, probs=np.repeat(made.probs[:, :1], made.probs.shape[1], axis=1)).save(lalm)


def test_every_option_that_settles_something_is_gone_through():
    inputs = {"lalm", "source", "gold", "out"}
    settling = {field.name for field in dataclasses.fields(m.FuseConfig) if field.metadata["settles"]}
    assert settling - inputs == VALUES.keys()


@pytest.mark.parametrize("option", VALUES)
@pytest.mark.parametrize("weighting", REFUSED)
def test_every_option_reaches_the_student_or_is_refused(copy, targets, weighting, option):
    changed = {"weighting": weighting, option: VALUES[option]}
    if option in REFUSED[weighting]:
        with pytest.raises(UsageError, match="has no effect"):
            m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.root / "f.h5", **changed)
        return
    if option == "keep_weighting":
        never_vary(copy.lalm)
    plain, other = targets(weighting=weighting), targets(**changed)
    same = np.abs(plain - other).max() < 1e-5
    assert same == (option == "seed" and weighting in DRAWS_NOTHING)


@pytest.mark.parametrize("weighting", REFUSED)
def test_inputs_reach_the_student(copy, targets, weighting):
    plain = targets(weighting=weighting)
    other = ask_another(copy, "other.h5", seed=1)
    assert np.abs(targets(weighting=weighting, lalm=other) - plain).max() > 1e-3
    assert np.abs(targets(weighting=weighting, lalm=(copy.lalm, other)) - plain).max() > 1e-3


def test_the_default_is_cross_fit_and_its_labels_stay(copy, corpora):
    result = m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.root / "f.h5"))
    made = Fused.load(result.out)
    assert result.weighting == "cross-fit" and made.views.shape == (24, 2, 4)
    assert made.exponents is None and made.recall.shape == (2, 4)
    np.testing.assert_allclose(made.prior.sum(), 1, atol=1e-6)
    softness = made.header.parameters["label_temperature"]
    product = (made.prior * made.views.prod(axis=1)) ** (1 / softness)
    np.testing.assert_allclose(product / product.sum(axis=1, keepdims=True), made.probs, atol=1e-5)
    # No surer on average than the labels are expected to be right.
    expected = made.header.parameters["forecast"]["ua"]["labels"]
    assert made.probs.max(axis=1).mean() <= expected + 1e-3 and (softness == 1) == (
        made.probs.max(axis=1).mean() < expected - 1e-3
    )
    assert "--weighting mi" in result.how
    for refresh in (None, 0):
        options = {"fused": result.out, "refresh": refresh, "force": True}
        trained = m.train(train_config(copy, corpora, copy.root / "s", **options))
        assert trained.labels == "cross-fit, as fuse made them"
    line = refused(
        mifuse(
            "train", "--fused", result.out, "--model", copy.model, "--manifest", corpora.target,
            "--out", copy.root / "t", "--refresh", "1",
        ),
        2, "--refresh 1",
    )  # fmt: skip
    assert "cross-fit are not renewed" in line


class TestForecast:
    def test_is_in_the_artifact_and_in_what_people_read(self, copy):
        flags = ["fuse", "--lalm", copy.lalm, "--source", copy.source, "--out", copy.root / "f.h5"]
        report = mifuse(*flags).stdout
        made = Fused.load(copy.root / "f.h5")
        told = made.header.parameters
        ua = dict(zip(["lalm", "source"], made.recall.mean(axis=1), strict=True))
        assert told["forecast"]["ua"] == pytest.approx({**ua, "labels": told["forecast"]["ua"]["labels"]})
        values = ", ".join(f"{name} {value:.2f}" for name, value in told["forecast"]["ua"].items())
        assert f"expected UA       {values}; the labels' is off by 0.08 on average\n" in report
        assert told["start"] in ("both", "source", "lalm") and -1 <= told["teacher_correlation"] <= 1
        again = mifuse(*flags, "--update", "--json")
        assert json.loads(again.stdout)["forecast"] == told["forecast"]["ua"]

    def test_is_of_cross_fit_alone(self, copy):
        result = m.fuse(
            m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.root / "f.h5", weighting="mi")
        )
        assert result.forecast == {} and Fused.load(result.out).recall is None

    @pytest.mark.parametrize(("without", "known"), [("lalm", {"source"}), ("source", {"lalm", "labels"})])
    def test_of_what_is_left_out_there_is_none(self, copy, without, known):
        result = m.fuse(
            m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.root / "f.h5", without=without)
        )
        assert result.forecast.keys() == known
        made = Fused.load(result.out)
        assert np.isnan(made.recall).all(axis=1).tolist() == [without == "lalm", without == "source"]
        assert made.header.parameters["forecast"]["ua"][without] is None

    @pytest.mark.parametrize(
        ("without", "how"), [("source,structure", "answers alone"), ("lalm,structure", "source model alone")]
    )
    def test_one_teacher_alone_tells_nothing_of_itself(self, copy, without, how):
        flags = ("fuse", "--lalm", copy.lalm, "--source", copy.source, "--out", copy.root / "f.h5")
        told = mifuse(*flags, "--without", without)
        assert told.exit_code == 0 and how in told.stdout
        assert "expected UA" not in told.stdout and "None" not in told.stdout and "nan" not in told.stdout
        made = Fused.load(copy.root / "f.h5")
        assert np.isnan(made.recall).all()
        if how == "answers alone":
            mean = np.nanmean(Lalm.load(copy.lalm).probs, axis=1)
            answered = ~np.isnan(mean).any(axis=1)
            np.testing.assert_array_equal(made.probs[answered].argmax(axis=1), mean[answered].argmax(axis=1))

    def test_what_to_beware_of_is_told(self, copy):
        """A LALM that guesses and never names the last class."""
        probs = Lalm.load(copy.lalm).probs.copy()
        probs[..., 3] = 0.001
        probs[::2] = np.roll(probs[::2], 1, axis=0)
        replace(Lalm.load(copy.lalm), probs=probs / probs.sum(axis=-1, keepdims=True)).save(copy.lalm)
        result = m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.root / "f.h5"))
        told = Fused.load(result.out).header.parameters["forecast"]
        last = Lalm.load(copy.lalm).header.classes[3]
        assert last in told["unnamed"]
        assert any(note.startswith(", ".join(told["unnamed"])) for note in result.notes)

    @pytest.mark.parametrize("several", [False, True])
    @pytest.mark.parametrize("both", [False, True])
    def test_teachers_at_chance_are_told(self, copy, several, both):
        lalms = [copy.lalm, ask_another(copy, "other.h5", seed=1)][: 1 + several]
        config = m.FuseConfig(lalm=tuple(lalms), source=copy.source, out=copy.root / "f.h5", update=True)
        m.fuse(config)
        made = Fused.load(config.out)
        teachers = made.header.parameters["teachers"]
        told = {**made.header.parameters["forecast"], "at_chance": teachers if both else [teachers[0]]}
        parameters = {**made.header.parameters, "forecast": told}
        replace(made, header=replace(made.header, parameters=parameters)).save(config.out)
        [note] = (note for note in m.fuse(config).notes if "no better than chance" in note)
        if both:
            assert note.startswith(f"{', '.join(teachers)}: contradict each other") and "--gold" in note
        else:
            assert note.startswith("lalm: seems to be") and note.endswith("leave it out") == several


def test_the_diversity_loss_draws_to_the_class_prior_that_was_estimated(copy, corpora):
    """Unless told otherwise; of weighed teachers, to uniform classes as in the paper."""
    for weighting, usual in (("cross-fit", "labels"), ("mi", "uniform")):
        fused = copy.root / f"{weighting}.h5"
        m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=fused, weighting=weighting))
        found = {}
        for prior in (None, "labels", "uniform"):
            out = copy.root / f"{weighting}-{prior}"
            m.train(train_config(copy, corpora, out, fused=fused, epochs=2, diversity_prior=prior))
            found[prior] = weights(out)
        assert found["labels"] != found["uniform"] and found[None] == found[usual]


def test_refresh_is_an_option_of_training(pipeline, corpora, tmp_path):
    """With ``mi`` it is on unless told otherwise; the labels of the artifact are learned as they are without it."""
    for name, changes in (("a", {}), ("b", {"refresh": 1}), ("c", {"refresh": 0}), ("d", {"refresh": 3})):
        m.train(train_config(pipeline, corpora, tmp_path / name, epochs=4, **changes))
    found = {name: weights(tmp_path / name) for name in "abcd"}
    assert found["a"] == found["b"] and len(set(found.values())) == 3
    with pytest.raises(UsageError, match="--refresh 1: --method nrc has no fused labels"):
        train_config(pipeline, corpora, tmp_path / "x", method="nrc", refresh=1)


class TestHiddenStates:
    def test_fuse_needs_no_audio_and_no_encoder(self, copy, monkeypatch):
        def unwanted(*args, **hooks):
            raise AssertionError("audio was read, or an encoder loaded")

        for name in ("audio.read", "model.encoder.load_encoder", "model.features.load_encoder"):
            monkeypatch.setattr(f"mifuse_cli.{name}", unwanted)
        m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.root / "f.h5"))

    def test_can_be_left_out(self, copy, corpora):
        source = copy.root / "small.h5"
        done = mifuse(
            "sample-source", "--model", copy.model, "--manifest", corpora.target, "--out", source,
            "--n-samples", "4", "--no-hidden-states",
        )  # fmt: skip
        assert done.exit_code == 0 and Source.load(source).hidden is None
        flags = ["fuse", "--lalm", copy.lalm, "--source", source, "--out", copy.root / "f.h5"]
        line = refused(mifuse(*flags), 4, "holds no hidden states", "--weighting, such as mi")
        assert Source.load(source).header.command in line
        assert mifuse(*flags, "--weighting", "mi").exit_code == 0

    def test_the_head_of_the_model_is_needed(self, copy):
        (copy.root / "model").rename(copy.root / "elsewhere")
        flags = ["fuse", "--lalm", copy.lalm, "--source", copy.source, "--out", copy.root / "f.h5"]
        refused(mifuse(*flags), 3, "model is not there", "Put it back")
        assert mifuse(*flags, "--weighting", "mi").exit_code == 0

    def test_many_clips_take_features_in_place_of_pairs(self, copy, monkeypatch):
        """With the same labels, but for rounding."""
        flags = ["fuse", "--lalm", copy.lalm, "--source", copy.source, "--without", "voices"]
        assert mifuse(*flags, "--out", copy.root / "few.h5").exit_code == 0
        monkeypatch.setattr("mifuse_cli.fusion.ridge.LARGEST", 20)
        assert mifuse(*flags, "--out", copy.root / "many.h5").exit_code == 0
        few, many = (Fused.load(copy.root / name).probs for name in ("few.h5", "many.h5"))
        np.testing.assert_allclose(few, many, atol=1e-3)

    @pytest.mark.parametrize(
        "options",
        [{}, {"normalize": "speaker"}, {"normalize": "target"}, {"calibrate": True}, {"n_samples": 7}],
        ids=str,
    )
    def test_labels_are_those_of_the_classifier_as_it_was_sampled(self, copy, corpora, monkeypatch, options):
        """Made here from the model and the encoder's states, with two voices that are always found."""
        groups = np.arange(24) % 2
        monkeypatch.setattr("mifuse_cli.fusion.cross_fit.pseudo_speakers", lambda *_: [groups])
        config = m.SampleSourceConfig(
            model=copy.model, manifest=corpora.target, out=copy.root / "s.h5", **{"n_samples": 4, **options}
        )
        m.sample_source(config)
        result = m.fuse(m.FuseConfig(lalm=copy.lalm, source=config.out, out=copy.root / "f.h5", seed=3))
        by_speaker = options.get("normalize") == "speaker"
        assert ("2 voices evened out" in result.how) != by_speaker
        assert ("known speakers evened out" in result.how) == by_speaker
        loaded, clips = checkpoint.load(copy.model), read_clips(corpora.target)
        if options.get("calibrate"):
            loaded.calibrate()
        device, here = torch.device("cpu"), Encoding(cache_dir=copy.root / "cache", workers=1)
        normalize = options.get("normalize", "source")
        structure = structure_of(
            hidden_states(loaded, clips, states=0, device=device, encoding=here, progress=None),
            frozen_classifier(loaded, device),
            frozen_inputs(loaded, clips, normalize=normalize, device=device, encoding=here, progress=None),
            states=0,
            speakers=[clip.speaker for clip in clips] if by_speaker else None,
            passes=config.n_samples,
            seed=3,
        )
        samples = [Lalm.load(copy.lalm).probs.astype(float), Source.load(config.out).probs.astype(float)]
        random = partial(provenance.rng, 3)
        expected = fuse_samples(samples, m.FusionSettings(), structure=structure, random=random)
        np.testing.assert_array_equal(Fused.load(result.out).probs, expected.probs)

    def test_the_model_is_found_beyond_links(self, copy, corpora, tmp_path):
        (tmp_path / "large").mkdir()
        (copy.root / "exp").symlink_to(tmp_path / "large", target_is_directory=True)
        source = copy.root / "exp/source.h5"
        m.sample_source(
            m.SampleSourceConfig(model=copy.model, manifest=corpora.target, out=source, n_samples=4)
        )
        m.fuse(m.FuseConfig(lalm=copy.lalm, source=source, out=copy.root / "exp/f.h5"))


class TestWithoutAnswers:
    def test_methods_that_learn_from_a_lalm_refuse_labels_without_one(self, copy, corpora):
        config = m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.root / "f.h5", without="lalm")
        (note,) = m.fuse(config).notes
        assert note.startswith("24 clips are few for cross-fit")
        for method in ("lalm-sfuda", "dine", "prode", "shot+lalm", "nrc+lalm"):
            with pytest.raises(InputError, match=f"--method {re.escape(method)}: learns from answers"):
                m.train(train_config(copy, corpora, copy.root / method, fused=config.out, method=method))
        assert m.train(train_config(copy, corpora, copy.root / "s", fused=config.out)).clips == 24

    def test_who_labels_a_clip_without_an_answer_is_told(self, copy):
        silent, told = ask_another(copy, "silent.h5", silent=[2, 9]), {}
        for name, options in {
            "mi": {"weighting": "mi"},
            "both": {},
            "structure": {"without": "source"},
            "source": {"without": "structure"},
        }.items():
            config = {
                "lalm": silent,
                "source": copy.source,
                "out": copy.root / f"labels-{name}.h5",
                **options,
            }
            result = m.fuse(m.FuseConfig(**config))
            (told[name],) = [note for note in result.notes if note.startswith("2 clips")]
            assert all(np.isfinite(list(result.mean_weight.values())))
        assert all("by the source classifier alone" in told[name] for name in ("mi", "source"))
        assert "by the source classifier and the structure of the clips alone" in told["both"]
        assert "by the structure of the clips alone" in told["structure"]

    def test_several_models_are_averaged_even_if_one_never_varies(self, copy):
        other = ask_another(copy, "other.h5", seed=1)
        never_vary(other)
        made = m.fuse(m.FuseConfig(lalm=(copy.lalm, other), source=copy.source, out=copy.root / "f.h5"))
        weight = made.mean_weight
        assert weight["lalm"] == weight["other"] > 0
        assert sum(weight.values()) == pytest.approx(1) and weight["source"] != pytest.approx(1 / 3, abs=0.01)


def test_what_was_chosen_is_in_the_protocol_line_and_the_result(copy, corpora):
    """Of the labels, and of the student that learned them."""
    protocol, how = {}, {}
    for number, options in enumerate(
        ({"without": "structure,voices"}, {}, {"weighting": "mi", "tau": 0.5, "sharpen": 0.5, "pool": "log"})
    ):
        fused, student = copy.root / f"{number}.h5", copy.root / f"student{number}"
        how[number] = m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=fused, **options)).how
        m.train(train_config(copy, corpora, student, fused=fused))
        for file in (fused, student / "predictions.h5"):
            config = m.EvaluateConfig(
                predictions=file, manifest=corpora.labels, out=copy.root / "e.h5", force=True
            )
            protocol.setdefault(number, []).append(m.evaluate(config).signature)
    for line in protocol[0]:
        assert "|weighting:cross-fit|without:structure+voices|" in line
    for line in protocol[1]:
        assert "|weighting:cross-fit|" in line and "without" not in line
    for line in protocol[2]:
        assert "|weighting:mi(0.5)|pool:log|sharpen:0.5|" in line
    assert "without structure+voices, voices not looked for" in how[0]
    assert "no voices found" in how[1] and "(MI-Fuse)" not in how[2]


class TestArtifactsOfEarlierVersions:
    """Of these the fused labels told less of how they were made, and a student told its recipe."""

    @pytest.mark.parametrize(
        "lost", [{"calibrate_lalm", "keep_weighting", "without"}, {"sharpen", "without"}]
    )
    def test_fused_labels_are_learned_as_before(self, copy, corpora, lost):
        made = Fused.load(copy.fused)
        told = {name: value for name, value in made.header.parameters.items() if name not in lost}
        # Uniform weights in place of those by mutual information kept the temperature of these.
        for weighting, tau in (("mi", 0.1), ("uniform", 0.5)):
            parameters = {**told, "weighting": weighting, "tau": tau}
            replace(made, header=replace(made.header, parameters=parameters)).save(copy.root / "old.h5")
            out = copy.root / f"student-{weighting}"
            m.train(train_config(copy, corpora, out, fused=copy.root / "old.h5", epochs=4))
        assert weights(copy.root / "student-mi") == weights(copy.student)
        assert weights(copy.root / "student-uniform") != weights(copy.student)

    @pytest.fixture(params=["", "matching,structure,voices"])
    def cross_fitted(self, copy, request):
        """Labels of cross-fit before version 2, with a part left out that there is no more."""
        out = copy.root / "f.h5"
        m.fuse(m.FuseConfig(lalm=copy.lalm, source=copy.source, out=out))
        made = Fused.load(out)
        new = ("start", "teacher_correlation", "class_mix_kept", "forecast")
        told = {name: value for name, value in made.header.parameters.items() if name not in new}
        told |= {"without": request.param, "views": ["lalm", "source", "structure"]}
        del told["label_temperature"]
        older = replace(
            made,
            header=replace(made.header, parameters=told),
            views=np.full((24, 3, 4), 0.25, np.float32),
            exponents=np.full((24, 3), 0.5, np.float32),
            recall=None,
            prior=None,
        )
        older.save(out)
        return out, made, request.param.replace(",", "+")

    def test_labels_of_the_first_cross_fit_can_be_shown_learned_and_scored(self, copy, corpora, cross_fitted):
        out, made, without = cross_fitted
        shown = mifuse("show", out)
        assert shown.exit_code == 0 and "cross-fit before version 2" in shown.stdout
        trained = m.train(train_config(copy, corpora, copy.root / "s", fused=out))
        assert trained.labels == "cross-fit, as fuse made them"
        np.testing.assert_array_equal(Fused.load(out).probs, made.probs)
        for file in (out, copy.root / "s/predictions.h5"):
            config = m.EvaluateConfig(
                predictions=file, manifest=corpora.labels, out=copy.root / "e.h5", force=True
            )
            line = m.evaluate(config).signature
            assert "|weighting:cross-fit|" in line
            assert (f"|without:{without}|" in line) == bool(without)
        flags = ["fuse", "--lalm", copy.lalm, "--source", copy.source, "--out", copy.root / "g.h5"]
        if without:
            refused(mifuse(*flags, "--without", "matching"), 2, "--without 'matching': expected one of lalm")

    def test_labels_of_the_first_cross_fit_are_not_up_to_date(self, copy, cross_fitted):
        out, _, _ = cross_fitted
        config = m.FuseConfig(lalm=copy.lalm, source=copy.source, out=out, update=True)
        assert not m.fuse(config).up_to_date and m.fuse(config).up_to_date
        assert Fused.load(out).prior is not None

    def test_labels_that_were_too_sure_are_not_up_to_date(self, copy):
        config = m.FuseConfig(lalm=copy.lalm, source=copy.source, out=copy.root / "f.h5", update=True)
        made = Fused.load(m.fuse(config).out)
        told = {name: value for name, value in made.header.parameters.items() if name != "label_temperature"}
        replace(made, header=replace(made.header, parameters=told)).save(config.out)
        assert not m.fuse(config).up_to_date and m.fuse(config).up_to_date

    def test_source_samples_without_hidden_states_can_be_weighed_alone(self, copy):
        replace(Source.load(copy.source), hidden=None, speaker=None).save(copy.source)
        flags = ["fuse", "--lalm", copy.lalm, "--source", copy.source, "--out", copy.root / "f.h5"]
        line = refused(mifuse(*flags), 4, "holds no hidden states", "made by an older mifuse", "make it anew")
        assert Source.load(copy.source).header.command in line
        assert mifuse(*flags, "--weighting", "mi").exit_code == 0

    def test_a_student_of_a_recipe_can_be_scored(self, copy, corpora):
        file = copy.student / "predictions.h5"
        made = Predictions.load(file)
        told = {k: v for k, v in made.header.parameters.items() if k not in ("weighting", "refresh")}
        replace(made, header=replace(made.header, parameters={**told, "recipe": "best"})).save(file)
        result = m.evaluate(
            m.EvaluateConfig(predictions=file, manifest=corpora.labels, out=copy.root / "e.h5")
        )
        assert "|recipe:best|" in result.signature and "refresh" not in result.signature
