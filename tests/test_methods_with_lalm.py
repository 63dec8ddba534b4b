from dataclasses import replace

import adapting
import numpy as np
import pytest
import torch
from adapting import K, U

from mifuse_cli.methods.aad import Aad
from mifuse_cli.methods.loop import Method
from mifuse_cli.methods.nrc import Nrc
from mifuse_cli.methods.shot import Shot
from mifuse_cli.methods.with_lalm import WithLalm, mean_with_lalm

SILENT = (2, 5)


def answers():
    labels = torch.tensor(np.random.default_rng(0).dirichlet(np.ones(K), U))
    labels[list(SILENT)] = torch.nan
    return labels


MAKE = {
    "shot": lambda: Shot(beta=0.3),
    "nrc": lambda: Nrc(neighbours=3, expanded=2),
    "aad": lambda: Aad(epochs=3, neighbours=3, beta=1.0),
}


class Fresh(Method):
    terms, teacher, fresh, rates = ("zero",), True, True, {"mix": 0.5}

    def loss(self, batch):
        return {"zero": 0 * batch.logits.sum()}


@pytest.mark.parametrize("index", [[4, 2, 0, 5, 9], [1, 3, 7], [2, 5, 6]])
def test_parity(index):
    labels, batch = answers(), adapting.batch(index)
    method = WithLalm(Fresh(), labels=labels, weight=0.6)

    def reference(logits):
        p = adapting.softmax(logits)
        each = [-(labels[i].numpy() @ np.log(p[b])) for b, i in enumerate(index) if i not in SILENT]
        return {"lalm": 0.6 * sum(each) / len(each)}

    adapting.agree({"lalm": method.loss(batch)["lalm"]}, batch, reference)


def test_clips_without_answers():
    batch = adapting.batch([*SILENT, 4])
    method = WithLalm(Fresh(), labels=answers())
    (gradient,) = torch.autograd.grad(method.loss(batch)["lalm"], batch.logits)
    assert (gradient[:2] == 0).all() and (gradient[2] != 0).any()
    batch = adapting.batch([*SILENT])
    (gradient,) = torch.autograd.grad(method.loss(batch)["lalm"], batch.logits)
    assert method.loss(batch)["lalm"] == 0 and (gradient == 0).all()


@pytest.mark.parametrize("name", MAKE)
def test_the_other_method_is_as_it_was(name):
    plain, method = MAKE[name](), WithLalm(MAKE[name](), labels=answers())
    assert method.terms == (*plain.terms, "lalm") and method.rates == plain.rates
    for each in (plain, method):
        each.begin_epoch(1, adapting.classifier().double(), adapting.clips(torch.float64))
    terms = method.loss(adapting.batch([4, 2, 0]))
    assert tuple(terms) == method.terms
    for term, expected in plain.loss(adapting.batch([4, 2, 0])).items():
        assert torch.equal(terms[term], expected)


def test_how_the_other_method_is_trained():
    method = WithLalm(Fresh(), labels=answers())
    assert method.teacher and method.fresh and method.rates == {"mix": 0.5}


def test_answers_are_learned():
    labels = answers()
    known = torch.tensor([i for i in range(U) if i not in SILENT])
    distance = []
    for method in (Shot(beta=0), WithLalm(Shot(beta=0), labels=labels, weight=5.0)):
        student = adapting.train(method, replace(adapting.OPTIONS, epochs=30)).student.eval()
        found = student(adapting.clips(), known).softmax(dim=1)
        distance.append((found - labels[known]).abs().sum(dim=1).mean().item())
    assert distance[1] < 0.7 * distance[0]


@pytest.mark.parametrize("name", MAKE)
def test_resumes(tmp_path, name):
    adapting.resumes(lambda: WithLalm(MAKE[name](), labels=answers()), tmp_path / "kept", stop=2)


def test_mean_of_predictions_and_answers():
    probs, said = torch.tensor([[0.5, 0.5], [0.2, 0.8]]), np.array([[0.9, 0.1], [np.nan, np.nan]])
    torch.testing.assert_close(mean_with_lalm(probs, said), torch.tensor([[0.7, 0.3], [0.2, 0.8]]))
