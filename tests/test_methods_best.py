import inspect
from dataclasses import replace

import adapting
import numpy as np
import pytest
import torch
from adapting import K, U

from mifuse_cli.errors import InputError
from mifuse_cli.methods import cross_fit, voices
from mifuse_cli.methods.best import Best, structure_layers
from mifuse_cli.model.classifier import Classifier, Features, Head, predict
from mifuse_cli.model.standard import fit_standard, statistics

STATES, WIDTH, CLIPS = 5, 8, 40
SPEAKERS = ["ann", "bob", "cy", "di"]


def raw(clips=U, shift=0.0, seed=0):
    """Features of two voices, ``shift`` apart, that both say all classes."""
    rng = np.random.default_rng(seed)
    emotion, voice = np.arange(clips) % K, np.arange(clips) // K % 2
    values = rng.normal(size=(clips, STATES, WIDTH)) + 1.5 * rng.normal(size=(K, STATES, WIDTH))[emotion]
    values[voice == 1] += shift
    return values.astype(np.float32)


def answers(clips=U, silent=(), seed=1):
    probs = np.random.default_rng(seed).dirichlet(np.full(K, 0.5), clips)
    probs[np.arange(clips), np.arange(clips) % K] += 0.5
    probs /= probs.sum(axis=1, keepdims=True)
    probs[list(silent)] = np.nan
    return probs


def model_of(features):
    """A head over two hidden states, and its input standardised over the clips."""
    with torch.random.fork_rng():
        torch.manual_seed(4)
        model = Classifier(None, Head(2, WIDTH, K, hidden=16, dropout=0.3), [1, 3])
    seen = torch.from_numpy(features[:, [1, 3]])
    standard = fit_standard("target", seen, stored=None, speakers=())
    return model, Features(standard(seen, torch.arange(len(seen))), statistics(seen))


def best(features, lalm, speakers=None, **changes):
    options = {"head_layers": [1, 3], "passes": 10, "seed": 0, "diversity_weight": 1.0}
    return Best(lalm, features, speakers=speakers, **(options | changes))


def labels(features, lalm, speakers=None, **changes):
    method = best(features, lalm, speakers, **changes)
    method.begin_epoch(1, *model_of(features))
    return method.targets["labels"].numpy()


def test_no_true_label_has_a_way_in():
    assert set(inspect.signature(Best).parameters) == {
        "lalm", "features", "head_layers", "speakers", "passes", "seed", "diversity_weight", "diversity_prior",
        "without",
    }  # fmt: skip


@pytest.mark.parametrize("prior", ["uniform", "labels"])
def test_loss_parity(prior):
    method = best(raw(), answers(), diversity_weight=0.7, diversity_prior=prior)
    rows = np.random.default_rng(0).dirichlet(np.ones(K), U)
    method.targets["labels"] = torch.tensor(rows)
    index = [4, 0, 22, 7, 9]
    towards = [1 / K] * K if prior == "uniform" else rows.mean(axis=0)

    def reference(logits):
        p = adapting.softmax(logits)
        marginal = [sum(row[k] for row in p) / len(p) for k in range(K)]
        return {
            "cross_entropy": np.mean([-(rows[i] @ np.log(p[b])) for b, i in enumerate(index)]),
            "diversity": 0.7 * sum(m * np.log(m / t) for m, t in zip(marginal, towards, strict=True)),
        }

    batch = adapting.batch(index)
    terms = method.loss(batch)
    assert tuple(terms) == method.terms and not method.teacher
    adapting.agree(terms, batch, reference)


def test_labels_are_made_once_by_the_source_classifier():
    features = raw()
    method = best(features, answers())
    model, inputs = model_of(features)
    method.begin_epoch(1, model, inputs)
    made = method.targets["labels"]
    assert made.shape == (U, K) and made.dtype == torch.float32
    torch.testing.assert_close(made.sum(dim=1), torch.ones(U))
    with torch.no_grad():
        model.head.out.bias += torch.arange(K)
    method.begin_epoch(2, model, inputs)
    assert method.targets["labels"] is made
    other = best(features, answers())
    model.head.out.weight.data *= -3
    other.begin_epoch(1, model, inputs)
    assert not torch.allclose(other.targets["labels"], made, atol=0.05)


def test_the_seed_settles_the_labels():
    one, again, other = (labels(raw(), answers(), seed=seed) for seed in (0, 0, 1))
    np.testing.assert_array_equal(one, again)
    assert np.abs(one - other).max() > 1e-4


def test_clips_without_an_answer_go_by_source_and_structure():
    features, silent = raw(CLIPS), [0, 5, 11]
    heard = labels(features, answers(CLIPS))
    made = labels(features, answers(CLIPS, silent))
    assert np.isfinite(made).all() and not np.allclose(made[silent], heard[silent], atol=0.01)
    # The rest of an unheard row does not matter.
    partly = answers(CLIPS, silent)
    partly[silent, :2] = 0.5
    np.testing.assert_array_equal(labels(features, partly), made)


def test_without_the_lalm_its_answers_do_not_matter():
    features = raw(CLIPS)
    one, other = (labels(features, answers(CLIPS, seed=seed), without=("lalm",)) for seed in (1, 2))
    np.testing.assert_array_equal(one, other)
    assert np.abs(one - labels(features, answers(CLIPS))).max() > 0.01


def test_without_the_source_classifier_it_does_not_matter():
    features = raw(CLIPS)
    found = []
    for sign in (1, -1):
        method = best(features, answers(CLIPS), without=("source",))
        model, inputs = model_of(features)
        inputs.values *= sign
        method.begin_epoch(1, model, inputs)
        found.append(method.targets["labels"].numpy())
    np.testing.assert_array_equal(*found)


def test_without_structure_the_labels_are_the_teachers_pool():
    features, lalm = raw(CLIPS), answers(CLIPS)
    made = labels(features, lalm, without=("structure",))
    np.testing.assert_allclose(made.mean(axis=0), 1 / K, atol=1e-3)
    plain = labels(features, lalm, without=("structure", "matching"))
    assert np.abs(plain.mean(axis=0) - 1 / K).max() > 0.005
    # The log pool of both, the source classifier being sampled as the method does.
    method = best(features, lalm)
    source = method._source(*model_of(features), "own")
    logs = 0.5 * np.log(np.maximum(lalm, 1e-2) / np.maximum(lalm, 1e-2).sum(axis=1, keepdims=True))
    logs += 0.5 * np.log(np.maximum(source, 1e-3) / np.maximum(source, 1e-3).sum(axis=1, keepdims=True))
    np.testing.assert_allclose(plain, adapting.softmax(logs), atol=1e-5)


def test_without_voices_none_are_looked_for(monkeypatch):
    expected = labels(raw(CLIPS), answers(CLIPS), without=("voices",))
    monkeypatch.setattr(voices, "pseudo_speakers", None)
    np.testing.assert_array_equal(labels(raw(CLIPS), answers(CLIPS), without=("voices",)), expected)
    with pytest.raises(TypeError):
        labels(raw(CLIPS), answers(CLIPS))


def test_a_silent_model_is_refused():
    with pytest.raises(InputError, match="none of 23 clips"):
        best(raw(), answers(silent=range(U)))


def test_known_speakers_are_evened_out():
    # Offset and scale of a speaker's features are of no account, where speakers are known.
    features, speakers = raw(CLIPS), [SPEAKERS[u // 4 % 4] for u in range(CLIPS)]
    moved = features.copy()
    for number, name in enumerate(SPEAKERS):
        mine = [u for u, speaker in enumerate(speakers) if speaker == name]
        moved[mine] = (1 + number) * moved[mine] - 2 * number
    plain, method = best(features, answers(CLIPS), speakers), best(moved, answers(CLIPS), speakers)
    for each in (plain, method):
        each.begin_epoch(1, *model_of(features))
    torch.testing.assert_close(method.targets["labels"], plain.targets["labels"], atol=1e-3, rtol=0)
    assert np.abs(labels(features, answers(CLIPS)) - plain.targets["labels"].numpy()).max() > 0.01


@pytest.fixture
def found(monkeypatch):
    """The two voices are found; what the engine is asked to pool is noted."""
    noted, pooled = [], cross_fit.pooled

    def note(lalm, sources, matched):
        noted.append(list(sources))
        return pooled(lalm, noted[-1], matched=matched)

    monkeypatch.setattr(cross_fit, "pooled", note)
    monkeypatch.setattr(voices, "pseudo_speakers", lambda *args: [np.arange(CLIPS) // K % 2] * 3)
    return noted


def test_found_voices_are_evened_out(found):
    near, far = (labels(raw(CLIPS, shift), answers(CLIPS)) for shift in (2, 60))
    np.testing.assert_allclose(near, far, atol=1e-3)


def test_the_source_classifier_hears_what_found_voices_leave(found):
    labels(raw(CLIPS, 20), answers(CLIPS))
    (own,), by_voice = found
    assert len(by_voice) == 3

    def gap(probs):
        voice = np.arange(CLIPS) // K % 2
        return np.abs(probs[voice == 1].mean(axis=0) - probs[voice == 0].mean(axis=0)).max()

    # Standardised over both voices, the classifier hears little but which of them it is.
    assert gap(own) > 3 * max(map(gap, by_voice))


@pytest.mark.parametrize(
    ("states", "first", "last"),
    [(5, 1, 3), (7, 1, 5), (13, 3, 9), (25, 6, 18), (33, 8, 24), (2, 0, 1), (1, 0, 0)],
)
def test_structure_layers(states, first, last):
    assert list(structure_layers(states)) == list(range(first, last + 1))


@pytest.mark.parametrize("stop", [1, 2])
@pytest.mark.parametrize("speakers", [None, [SPEAKERS[u % 4] for u in range(U)]])
def test_resumes(tmp_path, stop, speakers):
    features = np.random.default_rng(0).normal(size=(U, STATES, adapting.D)).astype(np.float32)
    adapting.resumes(
        lambda: best(features, answers(silent=[3]), speakers, head_layers=range(adapting.L)),
        tmp_path / "kept",
        stop,
    )


def test_the_student_learns_the_labels():
    features = raw(CLIPS)
    method, (model, inputs) = best(features, answers(CLIPS)), model_of(features)

    def agreement():
        wanted = method.targets["labels"].argmax(dim=1).numpy()
        return (predict(model, inputs).argmax(axis=1) == wanted).mean()

    method.begin_epoch(1, model, inputs)
    before = agreement()
    adapting.train(method, replace(adapting.OPTIONS, epochs=30), model, inputs)
    assert before < 0.5 and agreement() > 0.9
