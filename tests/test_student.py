"""The student of cross-fit labels: its linear part, how it is joined with the head, and clips predicted together."""

from dataclasses import replace
from pathlib import Path

import adapting
import numpy as np
import pytest
import torch
from adapting import K

from mifuse_cli.config import options_of
from mifuse_cli.errors import UsageError
from mifuse_cli.fusion import FusionSettings
from mifuse_cli.methods import adaptation
from mifuse_cli.methods.adaptation import AdaptationConfig, Options, adapt, predict_clips
from mifuse_cli.methods.student import centred, with_linear_part
from mifuse_cli.methods.teachers import Teachers
from mifuse_cli.model.checkpoint import Checkpoint, new_head
from mifuse_cli.model.classifier import Classifier, Features, predict, sample
from mifuse_cli.model.linear import RIDGE, LinearPart
from mifuse_cli.model.shape import Shape
from mifuse_cli.model.standard import Statistics, statistics

STATES, WIDTH = 5, 6


def features(clips, seed=0, shift=0.0):
    """Features (U, STATES, WIDTH) of the classes, ``shift`` away, with the classes (U,) in turn."""
    emotion = torch.arange(clips) % K
    centres = torch.randn(K, STATES, WIDTH, generator=torch.Generator().manual_seed(7))
    noise = torch.randn(clips, STATES, WIDTH, generator=torch.Generator().manual_seed(seed))
    return 1.5 * centres[emotion] + noise + shift, emotion


def soft(emotion, share=0.8):
    """Labels (U, K) with this share on top of a uniform one."""
    return share * torch.eye(K)[emotion] + (1 - share) / K


def teachers(labels, **settings):
    probs = labels.numpy()
    passes = np.stack([probs, probs], axis=1)
    return Teachers(probs, passes, np.zeros(passes.shape[:2]), FusionSettings(**settings), passes=10)


def options(method="mifuse", **changes):
    return options_of(AdaptationConfig(epochs=3, **changes), Options, method=method)


@pytest.fixture
def source():
    """A classifier over the hidden states 0 and 2, with weights and statistics drawn at random."""
    shape = Shape(
        classes=tuple("abcd"), layers=(0, 2), width=WIDTH, hidden=16, dropout=0.3, normalize="source",
        statistics_of="source", tune="head", encoder="x", temperature=1.0,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(3)
        head = new_head(shape)
        head.mix.data.copy_(torch.tensor([0.3, -0.5]))
        seen = Statistics(torch.randn(2, WIDTH), torch.rand(2, WIDTH) + 0.5)
    return Checkpoint(shape, head.eval(), seen, Path("encoder"))


def classifier(found, values):
    """The checkpoint's classifier, and its input of hidden states that are standardised already."""
    seen = values[:, list(found.shape.layers)]
    return Classifier(None, found.head, found.shape.layers), Features(seen, statistics(seen))


class TestLinearPart:
    @pytest.mark.parametrize("clips", [20, 90])  # fewer than the 30 features: in the dual, else in the primal
    def test_ridge_by_hand(self, clips):
        values, emotion = features(clips)
        labels = soft(emotion).double()
        part = LinearPart(STATES, WIDTH, K)
        part.fit(values, labels)
        flat = values.reshape(clips, -1).double() / (STATES * WIDTH) ** 0.5

        def scores(rows, of):
            x, y = flat[rows], labels[rows]
            mean, prior = x.mean(dim=0), y.mean(dim=0)
            inner = (x - mean).T @ (x - mean) + RIDGE * torch.eye(STATES * WIDTH)
            return (flat[of] - mean) @ torch.linalg.solve(inner, (x - mean).T @ (y - prior)) + prior

        everyone = torch.arange(clips)
        whole = scores(everyone, everyone)
        slope = (part(values).double() / whole).mean()
        torch.testing.assert_close(part(values).double(), slope * whole, rtol=1e-4, atol=1e-4)
        # The penalty is that of as many clips: left out, a clip changes the means, which has its share in the leverage.
        alone = torch.cat([scores(everyone[everyone != at], everyone[at : at + 1]) for at in everyone])
        likelihood = [
            (labels * (alone * s).log_softmax(dim=1)).sum() for s in (slope / 1.2, slope, slope * 1.2)
        ]
        assert likelihood[1] > max(likelihood[0], likelihood[2])

    @pytest.mark.parametrize("share", [0.6, 1.0])
    def test_means_explain_any_mix_of_classes(self, share):
        """However soft the labels are, as long as those of other clips are as soft."""
        values, emotion = features(400)
        part = LinearPart(STATES, WIDTH, K)
        part.fit(values, soft(emotion, share))
        for mix in ([1], [0, 2], [0, 1, 2, 3]):
            own = torch.isin(emotion, torch.tensor(mix))
            rest = part.unexplained(values[own] + 3, soft(emotion[own], share))
            torch.testing.assert_close(rest, torch.full((STATES, WIDTH), 3.0), atol=0.05, rtol=0)

    def test_it_is_no_parameter(self):
        assert not list(LinearPart(2, 3, 4).parameters())


class TestWithLinearPart:
    def test_it_predicts_as_the_source_until_it_is_fitted(self, source):
        values, _ = features(30)
        wide = with_linear_part(source, values.numpy())
        assert wide.shape == replace(source.shape, layers=(0, 1, 2, 3), linear=True)
        torch.testing.assert_close(wide.head(values[:, :4]), source.head(values[:, [0, 2]]))
        assert source.head.linear is None and source.head.mix.shape == (2,)

    def test_statistics_are_the_source_s_where_it_has_any(self, source):
        values, _ = features(30, shift=2.0)
        found = with_linear_part(source, values.numpy()).statistics
        seen = statistics(values)
        for at, layer in enumerate((0, 1, 2, 3)):
            own = {0: 0, 2: 1}.get(layer)
            mean, std = (
                (seen.mean, seen.std) if own is None else (source.statistics.mean, source.statistics.std)
            )
            torch.testing.assert_close(found.mean[at], mean[layer if own is None else own])
            torch.testing.assert_close(found.std[at], std[layer if own is None else own])

    def test_a_student_can_go_on(self, source):
        values, emotion = features(60)
        first = with_linear_part(source, values.numpy())
        adapt(*classifier(first, values), options(), teachers=teachers(soft(emotion)))
        again = with_linear_part(first, values.numpy())
        assert again.shape == first.shape
        torch.testing.assert_close(again.head(values[:, :4]), first.head(values[:, :4]))


class TestStudent:
    def test_its_logits_are_the_mean_of_both(self, source):
        values, emotion = features(60)
        said = teachers(soft(emotion))
        wide, inputs = classifier(with_linear_part(source, values.numpy()), values)
        narrow, its = classifier(source, values)
        adapt(wide, inputs, options(), teachers=said)
        adapt(narrow, its, options(), teachers=said)
        part = LinearPart(4, WIDTH, K)
        part.fit(inputs.values, soft(emotion))
        with torch.no_grad():
            expected = (narrow.head(its.values) + part(inputs.values)) / 2
            torch.testing.assert_close(wide.head(inputs.values), expected, atol=1e-4, rtol=1e-4)

    def test_it_learns_what_only_other_layers_show(self, source):
        values, emotion = features(200)
        values[:, [0, 2]] = torch.randn(200, 2, WIDTH, generator=torch.Generator().manual_seed(1))
        said = teachers(soft(emotion))
        right = []
        for found in (source, with_linear_part(source, values.numpy())):
            student, inputs = classifier(found, values)
            adapt(student, inputs, options(), teachers=said)
            right.append((predict(student, inputs).argmax(axis=1) == emotion.numpy()).mean())
        assert right[0] < 0.5 and right[1] > 0.9

    def test_dropout_passes_are_around_its_prediction(self, source):
        values, emotion = features(60)
        student, inputs = classifier(with_linear_part(source, values.numpy()), values)
        adapt(student, inputs, options(), teachers=teachers(soft(emotion)))
        drawn = sample(student, inputs, 200, seed=0)
        assert drawn.std(axis=1).max() > 0.01
        np.testing.assert_allclose(drawn.mean(axis=1), predict(student, inputs), atol=0.03)

    @pytest.mark.parametrize("method", ["shot", "t3a", "lalm-sfuda"])
    def test_other_methods_refuse_it_as_source(self, source, method):
        values, emotion = features(30)
        student, inputs = classifier(with_linear_part(source, values.numpy()), values)
        with pytest.raises(UsageError, match="the model is a student of cross-fit labels"):
            adapt(student, inputs, options(method), teachers=teachers(soft(emotion)))
        with pytest.raises(UsageError, match="--method lame: the model is a student"):
            predict_clips(student, inputs, "lame")

    def test_only_cross_fit_labels_make_one(self):
        labels = soft(torch.arange(K))
        assert adaptation.has_linear_part("mifuse", teachers(labels))
        assert not adaptation.has_linear_part("mifuse", teachers(labels, weighting="mi"))
        assert not adaptation.has_linear_part("prode", teachers(labels))
        assert not adaptation.has_linear_part("shot", None)


class TestCentred:
    @pytest.fixture
    def student(self, source):
        values, emotion = features(400)
        student, inputs = classifier(with_linear_part(source, values.numpy()), values)
        adapt(student, inputs, options(), teachers=teachers(soft(emotion)))
        return student

    def of(self, student, values):
        seen = values[:, student.layers]
        return Features(seen, statistics(seen))

    def test_a_constant_shift_is_undone(self, student):
        values, emotion = features(200, seed=5)
        classes = torch.stack([values[emotion == k].mean(dim=0) for k in range(K)])
        shift = 0.6 * (classes[0] - classes[1])
        away = self.of(student, values + shift)
        found = centred(student, away)
        moved = (away.values - found.values)[0]
        assert (moved - shift[student.layers]).norm() < 0.5 * shift[student.layers].norm()
        before, after = (
            (predict(student, one).argmax(axis=1) == emotion.numpy()).mean() for one in (away, found)
        )
        assert after > before + 0.02

    def test_another_mix_of_classes_is_not_taken_for_a_shift(self, student):
        values, emotion = features(400, seed=5)
        given = self.of(student, values[emotion == 2])
        by_mean = given.values.mean(dim=0)
        moved = (given.values - centred(student, given).values)[0]
        assert moved.norm() < 0.6 * by_mean.norm()

    def test_one_clip_stays_almost_where_it_is(self, student):
        given = self.of(student, features(1, seed=5)[0])
        moved = given.values - centred(student, given).values
        assert 0 < moved.norm() < given.values.norm() / 10

    def test_others_are_left_alone(self):
        inputs = adapting.clips()
        assert centred(adapting.classifier(), inputs) is inputs
