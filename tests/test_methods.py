from dataclasses import replace
from itertools import chain

import numpy as np
import pytest
import torch
from conftest import CLASSES, read_rows
from torch import nn

from mifuse_cli import evaluation, fusion, provenance
from mifuse_cli.errors import MifuseError
from mifuse_cli.manifest import read_clips
from mifuse_cli.methods import loop, resume
from mifuse_cli.methods.lalm_sfuda import LalmLabels
from mifuse_cli.methods.losses import diversity, soft_cross_entropy
from mifuse_cli.methods.mifuse import FusedLabels
from mifuse_cli.methods.supervised import Supervised, choose_epoch
from mifuse_cli.methods.teachers import Teachers
from mifuse_cli.model.classifier import Classifier, Features, Head, Waveforms, sample
from mifuse_cli.model.encoder import LogMelEncoder
from mifuse_cli.model.standard import statistics

U, K, L, D = 21, 4, 2, 6
OPTIONS = loop.LoopOptions(
    epochs=6,
    batch_size=8,
    learning_rate=1e-2,
    encoder_learning_rate=1e-3,
    weight_decay=0.01,
    ema=0.9,
    seed=3,
)
SETTINGS = {"weighting": "mi", "mi_estimator": "scaled"}
OPTIONS_OF_MIFUSE = {"refresh": 1, "diversity_weight": 1.0, "diversity_prior": "uniform", "seed": 3}


def features(seed=0):
    values = torch.randn(U, L, D, generator=torch.Generator().manual_seed(seed))
    return Features(values, statistics(values))


def classifier(seed=0, encoder=None, layers=L, width=D):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(encoder, Head(layers, width, K, hidden=8, dropout=0.3), range(layers))


def teachers(seed=0, silent=()):
    """mean (U, 2, K) and mi (U, 2) of a LALM, which says nothing about some clips, and a classifier."""
    rng = np.random.default_rng(seed)
    samples = rng.dirichlet(np.ones(K), size=(U, 2, 5))
    samples[list(silent), 0] = np.nan
    stats = [fusion.mean_and_mi(samples[:, teacher]) for teacher in (0, 1)]
    return tuple(np.stack(part, axis=1) for part in zip(*stats, strict=True))


def fused_labels(settings=None, **changes):
    mean, mi = teachers(silent=(2, 5))
    how = fusion.FusionSettings(**{**SETTINGS, **(settings or {})})
    probs = fusion.fuse_means(mean, mi, fusion.FusionSettings(weighting="mi"))[1]
    return FusedLabels(Teachers(probs, mean, mi, how, passes=4), **{**OPTIONS_OF_MIFUSE, **changes})


def lalm_labels(**changes):
    mean, _ = teachers(silent=(2, 5))
    return LalmLabels(mean[:, 0], **{"diversity_weight": 1.0, "diversity_prior": "uniform", **changes})


def batch(logits, index):
    """A batch of which only the logits matter."""
    return loop.Batch(index, logits, logits, logits, None)


class Recorder(loop.Method):
    """A method that only takes down which clips every batch has."""

    terms = ("zero",)

    def __init__(self):
        super().__init__()
        self.epochs = []

    def begin_epoch(self, epoch, model, inputs):
        self.epochs.append([])

    def loss(self, batch):
        self.epochs[-1].append(batch.index.tolist())
        return {"zero": 0 * batch.logits.sum()}


class TestLosses:
    def test_soft_cross_entropy(self):
        p = torch.tensor([[0.5, 0.25, 0.25], [0.1, 0.6, 0.3]])
        q = torch.tensor([[1.0, 0.0, 0.0], [0.5, 0.25, 0.25]])
        each = [-np.log(0.5), -(0.5 * np.log(0.1) + 0.25 * np.log(0.6) + 0.25 * np.log(0.3))]
        logits = p.log() + 3.0  # a constant changes nothing
        assert soft_cross_entropy(logits, q).item() == pytest.approx(sum(each) / 2)
        weighted = soft_cross_entropy(logits, q, torch.tensor([3.0, 1.0]))
        assert weighted.item() == pytest.approx((3 * each[0] + each[1]) / 4)
        assert soft_cross_entropy(logits, q, torch.zeros(2)).item() == 0

    def test_diversity(self):
        p = torch.tensor([[0.9, 0.1], [0.3, 0.7]])
        uniform, prior = torch.tensor([0.5, 0.5]), torch.tensor([0.6, 0.4])
        assert diversity(p.log()).item() == diversity(p.log(), uniform).item()
        expected = 0.6 * np.log(0.6 / 0.5) + 0.4 * np.log(0.4 / 0.5)  # the marginal is 0.6, 0.4
        assert diversity(p.log(), uniform).item() == pytest.approx(expected, abs=1e-6)
        assert diversity(p.log(), prior).item() == pytest.approx(0, abs=1e-6)
        collapsed = torch.tensor([[50.0, 0.0]])
        assert diversity(collapsed, uniform).item() == pytest.approx(np.log(2), abs=1e-5)


class TestLoop:
    def test_follow(self):
        teacher, student = (nn.Sequential(nn.Linear(2, 2), nn.BatchNorm1d(2)) for _ in range(2))
        student[1].running_mean.fill_(7.0)
        expected = 0.75 * teacher[0].weight + 0.25 * student[0].weight
        loop.follow(teacher, student, 0.75)
        torch.testing.assert_close(teacher[0].weight, expected)
        assert (teacher[1].running_mean == 7).all()
        loop.follow(teacher, student, 0.0)
        assert torch.equal(teacher[0].weight, student[0].weight)

    def test_teacher_is_the_average_of_the_students(self):
        model, method, states = classifier(), fused_labels(), []
        state = loop.start(model, method, OPTIONS)
        first = state.teacher.head.out.weight.clone()
        assert torch.equal(first, model.head.out.weight) and not state.teacher.head.out.weight.requires_grad
        options = loop.LoopOptions(1, U, 1e-2, 1e-3, 0.0, 0.9, 0)  # a single batch, so a single step
        loop.run(state, features(), method, options, after_epoch=states.append)
        assert states == [state] and not torch.equal(model.head.out.weight, first)
        torch.testing.assert_close(state.teacher.head.out.weight, 0.9 * first + 0.1 * model.head.out.weight)

    def test_batches(self):
        method = Recorder()
        loop.run(loop.start(classifier(), method, OPTIONS), features(), method, OPTIONS)
        assert len(method.epochs) == 6
        for batches in method.epochs:
            assert [len(batch) for batch in batches] == [7, 7, 7]
            assert sorted(chain(*batches)) == list(range(U))
        assert method.epochs[0] != method.epochs[1]
        again = Recorder()
        loop.run(loop.start(classifier(), again, OPTIONS), features(), again, OPTIONS)
        assert again.epochs == method.epochs

    def test_some_clips_only(self):
        method, index = Recorder(), np.array([1, 3, 4, 8, 9, 10, 11, 12, 20, 19])
        loop.run(loop.start(classifier(), method, OPTIONS), features(), method, OPTIONS, index=index)
        assert all(sorted(chain(*batches)) == sorted(index) for batches in method.epochs)
        assert {len(batch) for batches in method.epochs for batch in batches} == {5}

    def test_loss_that_is_no_number(self):
        method = fused_labels()
        method.targets["fused"][4] = torch.nan
        with pytest.raises(MifuseError, match="epoch 1; try a lower --learning-rate"):
            loop.run(loop.start(classifier(), method, OPTIONS), features(), method, OPTIONS)

    def test_weights_that_are_no_numbers(self):
        """After the last step no loss tells of them."""
        once = replace(OPTIONS, epochs=1, batch_size=U, learning_rate=float("inf"))
        with pytest.raises(MifuseError, match="weights became NaN or infinite in epoch 1; try a lower"):
            loop.run(loop.start(classifier(), fused_labels(), once), features(), fused_labels(), once)

    def test_own_random_numbers(self):
        torch.manual_seed(0)
        expected = torch.rand(3)
        torch.manual_seed(0)
        loop.run(loop.start(classifier(), m := lalm_labels(), OPTIONS), features(), m, OPTIONS)
        assert torch.equal(torch.rand(3), expected)

    def test_history_is_the_mean_over_clips(self):
        method, seen = lalm_labels(), []
        plain = method.loss

        def loss(batch):
            terms = plain(batch)
            seen.append([terms[name].item() for name in method.terms])
            return terms

        method.loss = loss
        state = loop.run(loop.start(classifier(), method, OPTIONS), features(), method, OPTIONS)
        assert state.history[-1] == pytest.approx(np.mean(seen[-3:], axis=0))


class TestResume:
    def same(self, first, second):
        assert first.history == second.history and first.epoch == second.epoch
        assert (first.teacher is None) == (second.teacher is None)
        for part in ("student", "teacher") if first.teacher else ("student",):
            one, other = getattr(first, part).state_dict(), getattr(second, part).state_dict()
            assert one.keys() == other.keys()
            assert all(torch.equal(one[name], other[name]) for name in one)

    @pytest.mark.parametrize("make", [fused_labels, lambda: fused_labels(refresh=3), lalm_labels])
    @pytest.mark.parametrize("stop", [1, 4])
    def test_goes_on_to_the_same_bits(self, tmp_path, make, stop):
        from dataclasses import replace

        whole_method = make()
        whole = loop.start(classifier(), whole_method, OPTIONS)
        loop.run(whole, features(), whole_method, OPTIONS)
        method = make()

        def keep(state):
            resume.keep(tmp_path / "kept", "id", state, method)

        short = replace(OPTIONS, epochs=stop)
        loop.run(loop.start(classifier(), method, OPTIONS), features(), method, short, after_epoch=keep)
        method = make()
        state = loop.start(classifier(), method, OPTIONS)
        assert resume.restore(tmp_path / "kept", "id", state, method) == stop == state.epoch
        assert len(state.history) == stop
        loop.run(state, features(), method, OPTIONS)
        self.same(state, whole)
        for name in whole_method.targets:
            assert torch.equal(method.targets[name], whole_method.targets[name])

    def test_trained_encoder(self, tmp_path, corpora):
        from dataclasses import replace

        clips = read_clips(corpora.target)[:U]

        def parts():
            with torch.random.fork_rng():
                torch.manual_seed(1)
                encoder = LogMelEncoder(n_mels=8, channels=4)
            method = fused_labels()
            model = classifier(encoder=encoder, layers=3, width=8)
            inputs = Waveforms(clips, "target", None)
            return loop.start(model, method, options), inputs, method

        options = replace(OPTIONS, epochs=3)
        state, inputs, method = parts()
        loop.run(state, inputs, method, options)
        one, inputs, method = parts()
        loop.run(one, inputs, method, replace(options, epochs=1))
        resume.keep(tmp_path / "kept", "id", one, method)
        new, inputs, method = parts()
        resume.restore(tmp_path / "kept", "id", new, method)
        loop.run(new, inputs, method, options)
        self.same(new, state)
        start = parts()[0].student.encoder.blocks[0][0].weight
        assert not torch.equal(new.student.encoder.blocks[0][0].weight, start)

    def test_other_runs_are_left_alone(self, tmp_path):
        method = lalm_labels()
        state = loop.start(classifier(), method, OPTIONS)
        assert resume.restore(tmp_path / "nothing", "id", state, method) == 0
        loop.run(state, features(), method, OPTIONS)
        resume.keep(tmp_path / "kept", "id", state, method)
        new = loop.start(classifier(5), method, OPTIONS)
        before = new.student.head.out.weight.clone()
        assert resume.restore(tmp_path / "kept", "other", new, method) == 0
        (tmp_path / "broken").write_bytes((tmp_path / "kept").read_bytes()[:-10])
        assert resume.restore(tmp_path / "broken", "id", new, method) == 0
        assert torch.equal(new.student.head.out.weight, before) and new.epoch == 0


class TestMifuse:
    @pytest.mark.parametrize(("refresh", "renewed"), [(0, []), (1, [2, 3, 4, 5]), (2, [3, 5])])
    def test_when_labels_are_renewed(self, refresh, renewed):
        method, inputs = fused_labels(refresh=refresh), features()
        changed = []
        for epoch in range(1, 6):
            before = method.targets["fused"].clone()
            method.begin_epoch(epoch, classifier(epoch), inputs)
            if not torch.equal(before, method.targets["fused"]):
                changed.append(epoch)
        assert changed == renewed

    @pytest.mark.parametrize("pool", fusion.POOLS)
    @pytest.mark.parametrize("sharpen", [1.0, 0.5])
    def test_renewed_labels(self, pool, sharpen):
        options = {"pool": pool, "tau": 0.3, "weighting": "mi", "sharpen": sharpen}
        method, model, inputs = fused_labels(options), classifier(7), features()
        mean, mi = teachers(silent=(2, 5))
        method.begin_epoch(4, model, inputs)
        samples = sample(model, inputs, 4, provenance.named_seed(3, "teacher", 4)).astype(float)
        mean[:, 1], mi[:, 1] = fusion.mean_and_mi(samples, "scaled")
        expected = fusion.fuse_means(mean, mi, fusion.FusionSettings(**options))[1]
        np.testing.assert_allclose(method.targets["fused"], expected, atol=1e-6)
        alone = mean[2, 1] ** (1 / sharpen)
        np.testing.assert_allclose(method.targets["fused"][2], alone / alone.sum(), atol=2e-3)

    def test_teacher_is_sampled_not_student(self):
        method, inputs, seen = fused_labels(), features(), []
        plain = method.begin_epoch

        def begin_epoch(epoch, model, inputs):
            seen.append(model)
            plain(epoch, model, inputs)

        method.begin_epoch = begin_epoch
        state = loop.start(classifier(), method, OPTIONS)
        loop.run(state, inputs, method, OPTIONS)
        assert all(model is state.teacher for model in seen) and len(seen) == 6

    def test_loss(self):
        method, logits = fused_labels(diversity_weight=0.5), torch.randn(3, K)
        index = torch.tensor([4, 0, 9])
        terms, fused = method.loss(batch(logits, index)), method.targets["fused"]
        torch.testing.assert_close(terms["cross_entropy"], soft_cross_entropy(logits, fused[index]))
        torch.testing.assert_close(terms["diversity"], 0.5 * diversity(logits, torch.full((K,), 0.25)))
        terms = fused_labels(diversity_prior="labels").loss(batch(logits, index))
        torch.testing.assert_close(terms["diversity"], diversity(logits, fused.mean(dim=0)))

    def test_without_refresh_there_is_no_teacher(self):
        method = fused_labels(refresh=0)
        assert not method.teacher and fused_labels().teacher
        assert loop.start(classifier(), method, OPTIONS).teacher is None


class TestLalmSfuda:
    def test_clips_without_answers(self):
        method, index = lalm_labels(), torch.tensor([2, 0, 5, 1])
        logits = torch.randn(4, K, requires_grad=True)
        terms = method.loss(batch(logits, index))
        mean = torch.from_numpy(teachers(silent=(2, 5))[0][[0, 1], 0].astype(np.float32))
        torch.testing.assert_close(terms["cross_entropy"], soft_cross_entropy(logits[[1, 3]], mean))
        (gradient,) = torch.autograd.grad(terms["cross_entropy"], logits, retain_graph=True)
        assert (gradient[[0, 2]] == 0).all() and (gradient[[1, 3]] != 0).any()
        (gradient,) = torch.autograd.grad(terms["diversity"], logits)
        assert (gradient[[0, 2]] != 0).any()
        silent = method.loss(batch(logits[:2], torch.tensor([2, 5])))
        assert silent["cross_entropy"] == 0 and torch.isfinite(silent["diversity"])

    def test_prior(self):
        mean = np.array([[0.7, 0.1, 0.1, 0.1], [0.1, 0.5, 0.2, 0.2], [np.nan] * 4])
        assert LalmLabels(mean, 1.0, "uniform").prior is None
        expected = [0.4, 0.3, 0.15, 0.15]
        assert LalmLabels(mean, 1.0, "labels").prior.tolist() == pytest.approx(expected)

    def test_learns_the_answers(self, corpora):
        labels = [CLASSES.index(row["emotion"]) for row in read_rows(corpora.labels)][:U]
        inputs = features()
        inputs.values[torch.arange(U), :, labels] += 4
        method = LalmLabels(np.eye(K)[labels] * 0.8 + 0.05, 0.0, "uniform")
        state = loop.start(classifier(), method, OPTIONS)
        loop.run(state, inputs, method, loop.LoopOptions(60, 8, 1e-2, 1e-3, 0.0, 0.0, 0))
        state.student.eval()
        found = state.student(inputs, torch.arange(U)).argmax(dim=-1)
        assert (found == torch.tensor(labels)).float().mean() > 0.9


class TestSupervised:
    def test_every_class_weighs_the_same(self):
        labels = torch.tensor([0, 0, 0, 1])
        method = Supervised(labels, 2, smoothing=0.2)
        assert method.weights.tolist() == pytest.approx([2 / 3] * 3 + [2.0])
        torch.testing.assert_close(method.smoothed[[0, 3]], torch.tensor([[0.9, 0.1], [0.1, 0.9]]))

    def test_held_out_clips_are_only_looked_at(self):
        labels = torch.arange(U) % K
        held_out = np.arange(U) >= 15

        def history(labels):
            found = choose_epoch(
                classifier(),
                features(),
                labels,
                held_out,
                0.1,
                OPTIONS,
                accuracy=lambda truth, predicted: evaluation.accuracy(truth, predicted, K),
                after_epoch=lambda state: None,
            )
            truth, said = labels[15:].numpy(), found.logits.argmax(axis=1)
            recalls = [(said[truth == k] == k).mean() for k in range(K)]
            assert found.history[found.epoch - 1, 2] == pytest.approx(np.mean(recalls))
            assert found.logits.shape == (6, K) and found.history.shape == (6, 3)
            assert found.history[found.epoch - 1, 1] == found.history[:, 1].min()
            expected = nn.functional.cross_entropy(torch.from_numpy(found.logits), labels[15:]).item()
            assert found.history[found.epoch - 1, 1] == pytest.approx(expected)
            return found.history

        other = labels.clone()
        other[15:] = (other[15:] + 1) % K
        first, second = history(labels), history(other)
        np.testing.assert_array_equal(first[:, 0], second[:, 0])
        assert (first[:, 1] != second[:, 1]).all()
