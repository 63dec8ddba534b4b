from dataclasses import replace

import adapting
import numpy as np
import pytest
import torch
from adapting import K, U

from mifuse_cli.methods.prode import Prode, centred
from mifuse_cli.model.classifier import Classifier, Features, Head, predict
from mifuse_cli.model.standard import statistics

SILENT = (7, 22)
INDEX = [4, 0, 22, 7, 9, 1]


def answers(seed=0):
    """Mean answers (U, K) with exact zeros, NaN for two clips."""
    probs = np.random.default_rng(seed).dirichlet(np.full(K, 0.5), U).round(1) + 1e-9
    probs /= probs.sum(axis=1, keepdims=True)
    probs[list(SILENT)] = np.nan
    return probs


def ready(**options):
    """A method after the start of epoch 1, and the source model's logits, centred clip by clip."""
    method, model = Prode(answers(), **options), adapting.classifier()
    method.begin_epoch(1, model, adapting.clips())
    logs = np.log(predict(model, adapting.clips()).astype(float))
    return method, logs - logs.mean(axis=1, keepdims=True)


def slow(source, *, omega=1.0, c=0.1, weights=(1.3, 0.4, 1.0), matched=True, epsilon=1e-3, prior=None):
    """Reference: terms as a function of the logits, z' being held at that of the first logits."""
    known = [i for i in range(U) if i not in SILENT]
    lalm = {i: [np.log(p + epsilon) for p in answers()[i]] for i in known}
    lalm = {i: np.array(z) - np.mean(z) for i, z in lalm.items()}
    if matched:
        ratio = np.std([source[i] for i in known]) / np.std([lalm[i] for i in known])
        lalm = {i: ratio * z for i, z in lalm.items()}
    rows = [b for b, i in enumerate(INDEX) if i not in SILENT]
    held: dict[int, np.ndarray] = {}

    def terms(logits):
        if not held:
            for b in rows:
                drift = logits[b] - np.mean(logits[b]) - c * source[INDEX[b]]
                held[b] = lalm[INDEX[b]] + omega * drift
        p, q = adapting.softmax(logits), {b: adapting.softmax(z) for b, z in held.items()}
        joint = np.zeros((K, K))
        for b in rows:
            for k in range(K):
                for m in range(K):
                    joint[k, m] += (p[b, k] * q[b][m] + p[b, m] * q[b][k]) / (2 * len(rows))
        left, right = joint.sum(axis=1), joint.sum(axis=0)
        shared = sum(
            joint[k, m] * np.log(joint[k, m] / (left[k] * right[m])) for k in range(K) for m in range(K)
        )
        marginal, pi = p.mean(axis=0), np.full(K, 1 / K) if prior is None else prior
        return {
            "information": -weights[0] * shared,
            "cross_entropy": -weights[1] * np.mean([np.log(p[b, np.argmax(held[b])]) for b in rows]),
            "diversity": weights[2] * sum(marginal[k] * np.log(marginal[k] / pi[k]) for k in range(K)),
        }

    return terms


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"c": 1.0, "omega": 0.5},
        {"matched": False, "epsilon": 1e-2},
        {"information": 1.0, "cross_entropy": 0.05, "diversity_weight": 0.1},
        {"prior": [0.1, 0.2, 0.3, 0.4]},
    ],
)
def test_parity(options):
    given = {**options, "prior": torch.tensor(options["prior"])} if "prior" in options else options
    method, source = ready(**given)
    names = {"information": 1.3, "cross_entropy": 0.4, "diversity_weight": 1.0}
    weights = tuple(options.get(name, value) for name, value in names.items())
    reference = slow(source, weights=weights, **{k: v for k, v in options.items() if k not in names})
    batch = adapting.batch(INDEX)
    terms = method.loss(batch)
    assert tuple(terms) == method.terms
    adapting.agree(terms, batch, reference)


def test_clips_without_answers():
    method, _ = ready()
    batch = adapting.batch(INDEX)
    terms = method.loss(batch)
    for name in ("information", "cross_entropy"):
        (gradient,) = torch.autograd.grad(terms[name], batch.logits, retain_graph=True)
        assert (gradient[[2, 3]] == 0).all() and (gradient[[0, 1]] != 0).any()
    (gradient,) = torch.autograd.grad(terms["diversity"], batch.logits)
    assert (gradient[[2, 3]] != 0).all()


def test_batch_without_answers():
    method, _ = ready()
    batch = adapting.batch([7, 22])
    terms = method.loss(batch)
    assert terms["information"] == 0 and terms["cross_entropy"] == 0
    (gradient,) = torch.autograd.grad(sum(terms.values()), batch.logits)
    assert torch.isfinite(gradient).all()


def test_source_is_that_before_training_and_without_dropout():
    method, model = Prode(answers()), adapting.classifier()
    before = predict(model, adapting.clips())
    adapting.train(method, model=model)
    kept = method.targets["source"]
    torch.testing.assert_close(kept.softmax(dim=-1), torch.from_numpy(before))
    torch.testing.assert_close(kept, centred(kept))
    assert not np.allclose(before, predict(model, adapting.clips()))


def test_no_answers_at_all_and_answers_that_say_nothing():
    for empty in (np.full((U, K), np.nan), np.full((U, K), 1 / K)):
        assert np.isfinite(adapting.train(Prode(empty)).history).all()


def test_classifier_learns_at_a_tenth_of_the_rate():
    # A single step of Adam moves every weight with a gradient by the learning rate.
    model = adapting.classifier()
    before = {name: value.clone() for name, value in model.head.named_parameters()}
    options = replace(adapting.OPTIONS, epochs=1, batch_size=U, weight_decay=0.0)
    adapting.train(Prode(answers()), options, model)
    steps = {name: (v - before[name]).abs().max().item() for name, v in model.head.named_parameters()}
    assert steps["out.weight"] == pytest.approx(1e-3, rel=0.01)
    assert steps["hidden.weight"] == pytest.approx(1e-2, rel=0.01)
    assert steps["scale"] == steps["shift"] == 0


def simulated(c):
    """Accuracy of a good source model and of the student that a mediocre proxy gives."""
    rng = np.random.default_rng(1)
    labels = rng.integers(K, size=300)
    values = torch.from_numpy((2.2 * np.eye(K)[labels] + rng.normal(size=(300, K))).astype(np.float32))
    inputs = Features(values[:, None], statistics(values[:, None]))
    model = Classifier(None, Head(1, K, K, hidden=16, dropout=0.3), [0])
    with torch.no_grad():  # the best linear classifier there is
        model.head.hidden.weight.zero_()[:K] = torch.eye(K)
        model.head.hidden.bias.fill_(2)
        model.head.out.weight.zero_()[:, :K] = 2 * torch.eye(K)
        model.head.out.bias.zero_()
    heard = np.where(rng.random(300) < 0.4, labels, rng.integers(K, size=300))
    said = 0.6 * np.eye(K)[heard] + 0.4 / K
    accuracies = [np.mean(predict(model, inputs).argmax(axis=1) == labels)]
    adapting.train(Prode(said, c=c), replace(adapting.OPTIONS, epochs=80, batch_size=64), model, inputs)
    return *accuracies, np.mean(predict(model, inputs).argmax(axis=1) == labels)


def test_sound_by_default_and_not_with_all_of_the_source_taken_off():
    before, after = simulated(0.1)
    assert after > before - 0.05 > 0.7
    assert simulated(1.0)[1] < after - 0.2


@pytest.mark.parametrize("stop", [1, 2])
def test_resumes(tmp_path, stop):
    adapting.resumes(lambda: Prode(answers()), tmp_path / "kept", stop)
