"""Several LALMs: ``fuse`` with any number of teachers, and training on what it gives."""

import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
from conftest import CLASSES, mifuse, refused, train_config, weights
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from teachers import ask_another, fuse_config

import mifuse_cli as m
from mifuse_cli import fusion
from mifuse_cli.artifacts import Fused, Lalm, Parent, Predictions, Source
from mifuse_cli.errors import ArtifactError, InputError, UsageError
from mifuse_cli.fusion import CROSS_FIT, POOLS, WEIGHTINGS, FusionSettings, fuse_answers
from mifuse_cli.methods.mifuse import FusedLabels
from mifuse_cli.methods.teachers import Teachers

SILENT = {"a": [1, 3], "b": [0, 1], "c": [1, 2]}
"""Clips that a teacher gives no answer to; 1 has none at all."""


@pytest.fixture
def three(copy):
    return [ask_another(copy, f"{name}.h5", seed, SILENT[name]) for seed, name in enumerate("abc")]


class TestFuse:
    def test_numbers(self, copy, three):
        result = m.fuse(fuse_config(copy, three))
        made = Fused.load(result.out)
        loaded = [Lalm.load(path) for path in three] + [Source.load(copy.source)]
        stats = [fusion.mean_and_mi(one.probs.astype(float)) for one in loaded]
        mean, mi = (np.stack(part, axis=1) for part in zip(*stats, strict=True))
        np.testing.assert_allclose(made.mean, mean, atol=1e-6)
        np.testing.assert_allclose(made.mi, mi, atol=1e-6)
        raw = np.nan_to_num(np.exp(-mi / 0.1))
        np.testing.assert_allclose(made.weights, raw / raw.sum(axis=1, keepdims=True), atol=1e-5)
        expected = (made.weights[..., None] * np.nan_to_num(mean)).sum(axis=1)
        np.testing.assert_allclose(made.probs, expected, atol=1e-5)
        assert made.weights[1].tolist() == [0, 0, 0, 1]
        names = ["a", "b", "c", "source"]
        assert made.header.parameters["teachers"] == names == list(result.mean_mi)
        assert list(result.mean_weight.values()) == pytest.approx(made.weights.mean(axis=0).tolist())
        assert result.without_answer == {"a": 2, "b": 2, "c": 2} and result.fallbacks == 1
        best = np.delete(mean, [0, 1, 2, 3], axis=0).argmax(axis=-1)
        assert result.agreement == pytest.approx((best == best[:, :1]).all(axis=1).mean())
        assert [note[:7] for note in result.notes] == ["1 clips"]

    def test_one_is_called_lalm_whatever_its_file(self, copy):
        path = ask_another(copy, "other.h5", silent=[0, 5])
        result = m.fuse(fuse_config(copy, path))
        assert list(result.mean_mi) == ["lalm", "source"]
        assert result.without_answer == {"lalm": 2} and result.fallbacks == 2

    @pytest.mark.parametrize(
        ("files", "names"),
        [
            ({"x/l.h5": "qwen", "y/l.h5": "gpt"}, ["qwen", "gpt"]),
            ({"x/l.h5": "m", "y/l.h5": "m", "z/l.h5": "m-2"}, ["m", "m-2", "m-2-2"]),
            ({"x/source.h5": "source", "y.h5": "m"}, ["source-2", "m"]),
        ],
    )
    def test_names_where_file_names_do_not_tell(self, copy, files, names):
        paths = [
            ask_another(copy, name, seed, model=model) for seed, (name, model) in enumerate(files.items())
        ]
        assert list(m.fuse(fuse_config(copy, paths)).mean_mi) == [*names, "source"]

    def test_constant_answers_are_told_by_teacher(self, copy, three):
        lalm = Lalm.load(three[1])
        replace(lalm, probs=lalm.probs[:, [0, 0, 0]]).save(three[1])
        notes = m.fuse(fuse_config(copy, three)).notes
        assert [note for note in notes if "identical on 100%" in note] == [notes[0]]
        assert notes[0].startswith("b: ") and "--keep-weighting" in notes[1]

    def test_a_silent_one_is_named(self, copy, three):
        silent = ask_another(copy, "silent.h5", silent=range(24))
        with pytest.raises(ArtifactError, match=r"silent\.h5: holds no valid answer"):
            m.fuse(fuse_config(copy, [*three, silent]))

    def test_people_read_who_is_silent(self, copy, three):
        flags = [word for path in three for word in ("--lalm", path)]
        tail = ["--source", copy.source, "--out", copy.root / "f.h5"]
        report = mifuse("fuse", *flags, *tail).stdout
        assert "clips                    24, 1 of them without a LALM answer\n" in report
        assert "clips without an answer  a 2, b 2, c 2\n" in report


class TestRefusals:
    def test_none_or_the_same_file(self, copy):
        with pytest.raises(UsageError, match="--lalm: expected at least one"):
            fuse_config(copy, [])
        with pytest.raises(UsageError, match=r"lalm\.h5: given 2 times"):
            fuse_config(copy, [copy.lalm, str(copy.lalm)])

    def test_the_same_answers(self, copy, three):
        shutil.copy(three[0], copy.root / "again.h5")
        with pytest.raises(InputError, match=r"again\.h5: holds the same as \S+a\.h5"):
            m.fuse(fuse_config(copy, [*three, copy.root / "again.h5"]))
        assert not (copy.root / "f.h5").exists()

    def test_any_of_them_may_not_fit(self, copy, three):
        lalm = Lalm.load(three[2])
        clips = lalm.header.parents[0]
        moved = replace(lalm.header, parents=(Parent("clips", clips.path, "0" * 64),))
        fewer = {name: array[1:] for name, array in lalm.arrays().items() if name != "raw"}
        for changed, message in [
            (replace(lalm, header=replace(lalm.header, classes=CLASSES[::-1])), "classes are sad"),
            (replace(lalm, **fewer), r"source\.h5 has 1 clips that \S+c\.h5 has not"),
            (replace(lalm, header=moved), r"c\.h5: was made from other audio"),
        ]:
            changed.save(three[2])
            with pytest.raises(ArtifactError, match=message):
                m.fuse(fuse_config(copy, three))


class TestForms:
    """Every way to give the option; all mean the same."""

    @pytest.fixture
    def lalms(self, copy, three):
        spaced = three[1].rename(copy.root / "b c.h5")
        return [str(three[0]), str(spaced)]

    @pytest.fixture
    def given(self, copy):
        def given(*arguments, **env):
            tail = ["--source", copy.source, "--out", copy.root / "f.h5", "--force"]
            result = mifuse("fuse", *tail, *arguments, **env)
            assert result.exit_code == 0, result.stderr
            return Fused.load(copy.root / "f.h5").header.config["lalm"]

        return given

    def test_python(self, lalms):
        one = m.FuseConfig(lalm=lalms[0], source="s", out="o")
        assert one.lalm == (one.lalm[0],) == m.FuseConfig(lalm=one.lalm[0], source="s", out="o").lalm
        assert m.FuseConfig(lalm=lalms, source="s", out="o").lalm[0] == one.lalm[0]

    def test_flags(self, given, lalms):
        assert given("--lalm", lalms[0], "--lalm", lalms[1]) == lalms
        assert given("--lalm", lalms[1]) == lalms[1:]

    def test_environment(self, given, lalms):
        assert given(MIFUSE_FUSE_LALM=os.pathsep.join(lalms)) == lalms
        assert given(MIFUSE_LALM=lalms[1]) == lalms[1:]

    def test_file(self, given, lalms, tmp_path):
        file = ["--config", tmp_path / "c.yaml"]
        (tmp_path / "c.yaml").write_text(f"lalm:\n- {lalms[0]}\n- {lalms[1]}\n")
        assert given(*file) == lalms
        assert given(*file, MIFUSE_LALM=lalms[1]) == lalms[1:]
        assert given(*file, "--lalm", lalms[0], MIFUSE_LALM=lalms[1]) == lalms[:1]
        (tmp_path / "c.yaml").write_text(f"lalm: {lalms[1]}\n")
        assert given(*file) == lalms[1:]

    @pytest.mark.parametrize("value", ["", "[]"])
    def test_a_file_that_gives_none(self, copy, tmp_path, value):
        (tmp_path / "c.yaml").write_text(f"lalm: {value}\n")
        tail = ["--source", copy.source, "--out", copy.root / "f.h5"]
        result = mifuse("fuse", *tail, "--config", tmp_path / "c.yaml")
        assert result.exit_code == 2 and "--lalm" in result.stderr


class TestLineage:
    def swap(self, one, other):
        kept = one.rename(one.with_name("kept"))
        other.rename(one)
        kept.rename(other)

    def test_one_of_several_changed(self, copy, corpora, three):
        m.fuse(fuse_config(copy, three, out=copy.fused, force=True))
        ask_another(copy, "b.h5", seed=9)
        shown = m.show(m.ShowConfig(file=copy.fused)).parents
        assert [(p["role"], p["path"], p["state"]) for p in shown[:4]] == [
            ("lalm", "a.h5", "unchanged"),
            ("lalm", "b.h5", "changed"),
            ("lalm", "c.h5", "unchanged"),
            ("source", "source.h5", "unchanged"),
        ]
        with pytest.raises(ArtifactError, match=r"its lalm \S+b\.h5 has changed"):
            m.train(train_config(copy, corpora, copy.root / "s"))

    def test_update(self, copy, three):
        a, b, c = three
        config = fuse_config(copy, three, update=True)
        assert not m.fuse(config).up_to_date
        assert m.fuse(config).up_to_date
        for other in ([b, a, c], [a, b], [a]):
            assert not m.fuse(replace(config, lalm=other)).up_to_date, other
            assert m.fuse(replace(config, lalm=other)).up_to_date, other

    def test_answers_of_the_same_names_in_another_order(self, copy, three):
        a, b, _ = three
        config = fuse_config(copy, [a, b], update=True)
        before = m.fuse(config).mean_mi
        self.swap(a, b)
        result = m.fuse(config)
        assert not result.up_to_date
        assert result.mean_mi == {"a": before["b"], "b": before["a"], "source": before["source"]}

    def test_names_follow_renamed_files(self, copy, three):
        a, b, _ = three
        config = fuse_config(copy, [a, b], update=True)
        before = m.fuse(config).mean_mi
        self.swap(a, b)
        result = m.fuse(replace(config, lalm=[b, a]))  # the same answers in the same order
        assert not result.up_to_date
        assert result.mean_mi == {"b": before["a"], "a": before["b"], "source": before["source"]}


class TestTrain:
    def test_end_to_end(self, copy, corpora, three):
        m.fuse(fuse_config(copy, three, out=copy.fused, force=True))
        result = m.train(train_config(copy, corpora, copy.root / "s", epochs=4))
        assert (result.clips, result.epochs) == (24, 4)
        assert np.isfinite(list(result.losses.values())).all()
        assert weights(copy.root / "s") != weights(copy.student)
        config = m.EvaluateConfig(model=copy.root / "s", manifest=corpora.labels, out=copy.root / "e.h5")
        score = m.evaluate(config)
        assert score.metrics["missing"] == 0

    def test_refresh_renews_the_last_teacher_alone(self, copy, three, monkeypatch):
        made = Fused.load(m.fuse(fuse_config(copy, three)).out)
        settings = FusionSettings(weighting="mi")
        teachers = Teachers(made.probs, made.mean, made.mi, settings, passes=4)
        method = FusedLabels(teachers, refresh=1, diversity_weight=1.0, diversity_prior="uniform", seed=0)
        samples = np.random.default_rng(5).dirichlet(np.ones(4), size=(24, 4))
        monkeypatch.setattr("mifuse_cli.methods.mifuse.sample", lambda *_: samples)
        method.begin_epoch(2, None, None)
        mean, mi = made.mean.astype(float), made.mi.astype(float)
        mean[:, 3], mi[:, 3] = fusion.mean_and_mi(samples)
        _, expected = fusion.fuse_means(mean, mi, settings)
        np.testing.assert_allclose(method.targets["fused"], expected, atol=1e-6)
        np.testing.assert_allclose(method.targets["fused"][1], samples[1].mean(axis=0), atol=1e-6)

    def test_two_lalms_of_one_mind_teach_what_one_does(self, copy, corpora):
        ask_another(copy, "a.h5", silent=[4])
        ask_another(copy, "twin.h5", silent=[4], model="twin")
        ask_another(copy, "b.h5", seed=1)
        found = {}
        for names in (["a"], ["a", "twin"], ["a", "b"]):
            lalms = [copy.root / f"{name}.h5" for name in names]
            m.fuse(fuse_config(copy, lalms, out=copy.fused, force=True))
            out = copy.root / "-".join(names)
            m.train(train_config(copy, corpora, out, method="lalm-sfuda"))
            found[out.name] = Predictions.load(out / "predictions.h5").probs
        np.testing.assert_allclose(found["a-twin"], found["a"], atol=1e-4)
        assert np.abs(found["a-b"] - found["a"]).max() > 1e-3


def fused_answers(mean, mi, **how):
    """Weights and distributions by these settings; those that the weighting has no use for are dropped."""
    return fuse_answers(mean, mi, FusionSettings.of(how))


class TestFusedAnswers:
    """Targets of lalm-sfuda."""

    MEAN = np.array([[[0.8, 0.2], [0.4, 0.6], [0.1, 0.9]], [[np.nan] * 2, [0.3, 0.7], [0.5, 0.5]]])
    MI = np.array([[0.1, 0.3, 0.0], [np.nan, 0.2, 0.2]])

    def test_by_hand(self):
        share = 1 / (1 + np.exp(-2))
        first = share * 0.8 + (1 - share) * 0.4
        expected = [[first, 1 - first], [0.3, 0.7]]
        weights, found = fused_answers(self.MEAN, self.MI, weighting="mi", tau=0.1, pool="linear")
        np.testing.assert_allclose(found, expected)
        np.testing.assert_allclose(weights, [[share, 1 - share], [0, 1]])
        # The labels are sharpened, the answers are not; cross-fit averages several models.
        sharp = fused_answers(self.MEAN, self.MI, weighting="mi", sharpen=0.5)[1]
        np.testing.assert_allclose(sharp, expected)
        weights, averaged = fused_answers(self.MEAN, self.MI, weighting=CROSS_FIT)
        np.testing.assert_allclose(averaged, [[0.6, 0.4], [0.3, 0.7]])
        np.testing.assert_allclose(weights, [[0.5, 0.5], [0, 1]])
        geometric = np.sqrt([0.8 * 0.4, 0.2 * 0.6])
        _, found = fused_answers(self.MEAN, self.MI, weighting="uniform", pool="log")
        np.testing.assert_allclose(found, [geometric / geometric.sum(), [0.3, 0.7]])

    def test_one_is_left_as_it_is(self):
        mean, mi = self.MEAN[:, [0, 2]].astype(np.float32), self.MI[:, [0, 2]].astype(np.float32)
        weights, found = fused_answers(mean, mi, weighting="rank-mi", pool="log")
        assert weights.tolist() == [[1], [0]]
        assert found.dtype == np.float32
        np.testing.assert_array_equal(found, mean[:, 0])

    @given(
        arrays(float, (5, 4, 3), elements=st.integers(1, 50)),
        arrays(int, (5, 4), elements=st.integers(0, 1000)),
        arrays(bool, (5, 3)),
        st.sampled_from(list(WEIGHTINGS)),
        st.sampled_from(POOLS),
    )
    def test_the_classifier_has_no_say(self, mean, mi, silent, weighting, pool):
        silent[0] = False
        mean, mi = mean / mean.sum(axis=-1, keepdims=True), mi / 1000
        mean[:, :3][silent], mi[:, :3][silent] = np.nan, np.nan
        how = {"weighting": weighting, "pool": pool}
        weights, found = fused_answers(mean, mi, **how)
        none = silent.all(axis=1)
        assert np.isnan(found[none]).all()
        np.testing.assert_allclose(found[~none].sum(axis=1), 1)
        np.testing.assert_allclose(weights.sum(axis=1), ~none)
        mean[:, 3], mi[:, 3] = [1, 0, 0], 0
        np.testing.assert_array_equal(fused_answers(mean, mi, **how)[1], found)


class TestPartial:
    """Artifacts whose questions have not all been asked."""

    @pytest.fixture
    def halted(self, copy):
        """72 questions, 5 of them about two clips not asked."""
        path = ask_another(copy, "halted.h5", seed=3, silent=[7], complete=False)
        lalm = Lalm.load(path)
        probs, status = lalm.probs.copy(), lalm.status.copy()
        probs[8, 1:] = np.nan
        status[np.isnan(probs).any(axis=-1)] = lalm.header.parameters["status_codes"]["missing"]
        header = replace(lalm.header, command="mifuse query-lalm --out halted.h5")
        replace(lalm, probs=probs, status=status, header=header).save(path)
        return path

    def arguments(self, copy, *lalms):
        flags = [word for path in lalms for word in ("--lalm", path)]
        return ["fuse", *flags, "--source", copy.source, "--out", copy.root / "f.h5", "--weighting", "mi"]

    def test_refused(self, copy, three, halted):
        result = mifuse(*self.arguments(copy, three[0], halted))
        words = ["5 of 72 questions are unanswered", "mifuse query-lalm --out halted.h5", "--partial"]
        line = refused(result, 4, "halted.h5: ", *words)
        assert "a.h5" not in line and not (copy.root / "f.h5").exists()

    def test_fused_on_demand(self, copy, three, halted):
        result = mifuse(*self.arguments(copy, three[0], halted), "--partial", "--quiet")
        assert result.exit_code == 0, result.stderr
        assert Fused.load(copy.root / "f.h5").header.parameters["unanswered"] == {"halted": 5}
        config = fuse_config(copy, [three[0], halted], update=True)
        with pytest.raises(ArtifactError, match="5 of 72"):
            m.fuse(config)
        again = m.fuse(replace(config, partial=True))
        assert again.up_to_date and again.without_answer == {"a": 2, "halted": 1}
        assert again.notes[0].startswith("halted: 5 questions are unanswered")
        ask_another(copy, "halted.h5", seed=3, complete=True)
        done = m.fuse(config)
        assert not done.up_to_date and not any("unanswered" in note for note in done.notes)
        assert m.fuse(replace(config, partial=True)).up_to_date

    def test_artifacts_that_do_not_tell_are_whole(self, copy):
        lalm = Lalm.load(copy.lalm)
        parameters = {k: v for k, v in lalm.header.parameters.items() if k != "complete"}
        replace(lalm, header=replace(lalm.header, parameters=parameters)).save(copy.lalm)
        assert not m.fuse(fuse_config(copy, copy.lalm)).notes
