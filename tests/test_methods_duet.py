from dataclasses import replace

import adapting
import numpy as np
import pytest
import torch
from adapting import K, U

from mifuse_cli.methods.duet import Duet
from mifuse_cli.model.classifier import predict

SILENT = (7, 22)
INDEX = [4, 0, 22, 7, 9, 1]


def answers(seed=0):
    probs = np.random.default_rng(seed).dirichlet(np.ones(K), U)
    probs[list(SILENT)] = np.nan
    return probs


def ready(**options):
    """A method after the start of epoch 1, and the source model's predictions."""
    method, model = Duet(answers(), epochs=8, **options), adapting.classifier()
    method.begin_epoch(1, model, adapting.clips())
    return method, predict(model, adapting.clips())


def agreed(probs):
    """Class of the mean of both, by clip, where both have the same class."""
    top = {i: max(range(K), key=probs[i].item) for i in range(U)}
    said = {i: max(range(K), key=answers()[i].item) for i in range(U) if i not in SILENT}
    return {i: max(range(K), key=(probs[i] + answers()[i]).item) for i in said if top[i] == said[i]}


@pytest.mark.parametrize(
    "options", [{}, {"pseudo_labels": 1.0, "answers": 0.1, "consistency": 0.5}, {"answers": 0.9}]
)
def test_parity(options):
    method, probs = ready(**options)
    weights = {"pseudo_labels": 0.4, "answers": 0.4, "consistency": 0.2, **options}
    batch, labels = adapting.batch(INDEX), agreed(probs)
    assert 0 < len([i for i in INDEX if i in labels]) < len(INDEX) - 2
    out, units = batch.head.out, batch.units.detach().numpy()
    weight, bias = out.weight.detach().numpy(), out.bias.detach().numpy()
    steady = [adapting.softmax(weight @ unit + bias) for unit in units]
    terms = method.loss(batch)
    assert tuple(terms) == method.terms

    def reference(logits):
        p = adapting.softmax(logits)
        own = [-np.log(p[b, labels[i]]) for b, i in enumerate(INDEX) if i in labels]
        said = [-(answers()[i] @ np.log(p[b])) for b, i in enumerate(INDEX) if i not in SILENT]
        views = [-(steady[b] @ np.log(p[b])) for b in range(len(INDEX))]
        return {
            "pseudo_labels": weights["pseudo_labels"] * np.mean(own),
            "lalm": weights["answers"] * np.mean(said),
            "consistency": weights["consistency"] * np.mean(views),
        }

    adapting.agree(terms, batch, reference)


def test_batch_without_answers():
    method, _ = ready()
    terms = method.loss(adapting.batch(list(SILENT)))
    assert terms["pseudo_labels"] == terms["lalm"] == 0 and terms["consistency"] > 0


@pytest.mark.parametrize(("epochs", "starts"), [(8, [1, 3, 5, 7]), (3, [1, 2, 3]), (10, [1, 4, 6, 9])])
def test_agreement_is_looked_for_in_cycles_and_is_kept(epochs, starts):
    method, found, before = Duet(answers(), epochs=epochs), [], torch.zeros(U, dtype=torch.bool)
    for epoch in range(1, epochs + 1):
        method.targets["labels"] = None
        method.begin_epoch(epoch, adapting.classifier(epoch), adapting.clips())
        if method.targets["labels"] is not None:
            found.append(epoch)
        now = method.targets["agreed"]
        assert (now | ~before).all() and not now[list(SILENT)].any()
        before = now
    assert found == starts


def test_no_answers_at_all():
    history = adapting.train(Duet(np.full((U, K), np.nan), epochs=3)).history
    assert np.isfinite(history).all() and np.array(history)[:, :2].max() == 0


def test_the_classifier_layer_stays():
    model = adapting.classifier()
    before = model.head.out.weight.detach().clone()
    student = adapting.train(Duet(answers(), epochs=3), model=model).student
    assert torch.equal(student.head.out.weight, before)


@pytest.mark.parametrize("stop", [1, 2])
def test_resumes(tmp_path, stop):
    adapting.resumes(lambda: Duet(answers(), epochs=3), tmp_path / "kept", stop)


def test_learns():
    """With answers that are right more often than the source model, the student comes nearer to them."""
    said = np.eye(K)[np.arange(U) % K] * 0.9 + 0.025
    options = replace(adapting.OPTIONS, epochs=40)
    student = adapting.train(Duet(said, epochs=40), options).student
    first = predict(adapting.classifier(), adapting.clips()).argmax(axis=1) == np.arange(U) % K
    last = predict(student, adapting.clips()).argmax(axis=1) == np.arange(U) % K
    assert last.mean() > first.mean() + 0.1
