from dataclasses import replace

import adapting
import numpy as np
import pytest
import torch
from adapting import D, K, L, U

from mifuse_cli.methods.dine import Dine, smooth
from mifuse_cli.model.classifier import Classifier, Features, Head, predict
from mifuse_cli.model.standard import statistics

SILENT = (7, 22)
INDEX = [4, 0, 22, 7, 9, 1]


def answers(seed=0):
    probs = np.random.default_rng(seed).dirichlet(np.full(K, 0.5), U)
    probs[0] = [0.5, 0.0, 0.5, 0.0]
    probs[list(SILENT)] = np.nan
    return probs


def slow_smooth(row, top):
    if not 0 < top < K:
        return list(row)
    best = sorted(range(K), key=lambda k: -row[k])[:top]
    rest = 1 - sum(row[k] for k in best)
    return [row[k] if k in best else rest / (K - top) for k in range(K)]


def divergence(target, p):
    return sum(t * np.log(t / s) for t, s in zip(target, p, strict=True) if t > 0)


def information_maximisation(p, prior=None):
    prior = np.full(K, 1 / K) if prior is None else prior
    entropy = -np.mean([sum(row[k] * np.log(row[k]) for k in range(K)) for row in p])
    return {"entropy": entropy, "diversity": divergence(p.mean(axis=0), prior)}


def seen(index=INDEX, seed=0):
    """A batch with features, under a head in double precision and without dropout, so that it can be redone."""
    values = torch.tensor(np.random.default_rng(seed).normal(size=(len(index), L, D)))
    return replace(adapting.batch(index), features=values, head=adapting.head(seed).eval())


@pytest.mark.parametrize("top", [0, 1, 2, 3, 4])
def test_smoothing(top):
    probs = answers()
    expected = [slow_smooth(row, top) for i, row in enumerate(probs) if i not in SILENT]
    found = smooth(probs, top)
    np.testing.assert_allclose(np.delete(found, SILENT, axis=0), expected)
    assert np.isnan(found[list(SILENT)]).all()


@pytest.mark.parametrize("top", [0, 1])
@pytest.mark.parametrize("prior", [None, [0.1, 0.2, 0.3, 0.4]])
def test_parity(top, prior):
    method = Dine(answers(), 6, top=top, mixup=0, prior=None if prior is None else torch.tensor(prior))
    batch = seen()

    def reference(logits):
        p = adapting.softmax(logits)
        rows = [b for b, i in enumerate(INDEX) if i not in SILENT]
        kl = np.mean([divergence(slow_smooth(answers()[INDEX[b]], top), p[b]) for b in rows])
        return {"distillation": kl, **information_maximisation(p, prior)}

    terms = method.loss(batch)
    assert tuple(terms) == method.terms
    adapting.agree(terms, batch, reference)


def test_parity_of_mixup():
    method, batch = Dine(answers(), 6), seen()
    with torch.random.fork_rng():
        torch.manual_seed(5)
        found = method.loss(batch)["mixup"]
        torch.manual_seed(5)
        share = torch.distributions.Beta(0.3, 0.3).sample().item()
        partners = torch.randperm(len(INDEX)).tolist()
    assert 0 < share < 1 and partners != sorted(partners)
    probs, values = adapting.softmax(batch.logits.detach().numpy()), batch.features

    def expected():
        losses = []
        for b, a in enumerate(partners):
            logits = batch.head((share * values[b] + (1 - share) * values[a])[None])[0]
            target = share * probs[b] + (1 - share) * probs[a]
            losses.append(divergence(target, adapting.softmax(logits.detach().numpy())))
        return np.mean(losses)

    assert found.item() == pytest.approx(expected(), abs=1e-6)
    # The mixed predictions are constants; the head learns from the mixed features.
    weight = batch.head.out.weight
    logits, weights = torch.autograd.grad(found, (batch.logits, weight), allow_unused=True)
    assert logits is None
    for at in np.ndindex(*weight.shape):
        sides = []
        for step in (1e-5, -1e-5):
            with torch.no_grad():
                weight[at] += step
                sides.append(expected())
                weight[at] -= step
        assert weights[at].item() == pytest.approx((sides[0] - sides[1]) / 2e-5, abs=1e-5)


def test_mixup_comes_from_torch_alone():
    method, batch, found = Dine(answers(), 6), seen(), []
    with torch.random.fork_rng():
        for numpy_seed, torch_seed in ((0, 1), (1, 1), (1, 2)):
            np.random.seed(numpy_seed)
            torch.manual_seed(torch_seed)
            found.append(method.loss(batch)["mixup"].item())
    assert found[0] == found[1] != found[2]


def schedule(epochs):
    """Of a run: the share of the teacher in the memory at every epoch, and the epochs that fine-tune."""
    method, inputs, model = Dine(answers(), epochs, top=0), adapting.clips(), adapting.classifier()
    first, probs = method.targets["memory"].clone(), torch.from_numpy(predict(model, inputs))
    shares, tuned = [], []
    for epoch in range(1, epochs + 1):
        method.begin_epoch(epoch, model, inputs)
        moved = method.targets["memory"][1] - probs[1]
        shares.append((moved / (first[1] - probs[1])).mean().item())
        if method.loss(seen())["distillation"] == 0:
            tuned.append(epoch)
    return shares, tuned


def test_memory():
    shares, tuned = schedule(40)  # 20 of distillation, refreshed after every second one
    assert shares[:20] == pytest.approx([0.6 ** (epoch // 2) for epoch in range(20)], abs=1e-4)
    assert shares[20:] == [shares[19]] * 20 and tuned == list(range(21, 41))


def test_memory_in_few_epochs():
    shares, tuned = schedule(10)  # 5 of distillation, two tenths each
    assert shares[:5] == pytest.approx([0.6 ** (2 * epoch) for epoch in range(5)], abs=1e-4)
    assert tuned == [6, 7, 8, 9, 10]
    assert schedule(1) == ([1.0], [])


def test_clips_without_answers():
    method, model, batch = Dine(answers(), 4, mixup=0), adapting.classifier(), seen()

    def gradient():
        return torch.autograd.grad(method.loss(batch)["distillation"], batch.logits)[0]

    assert (gradient()[[2, 3]] == 0).all() and (gradient()[[0, 1]] != 0).any()
    assert method.loss(seen([7, 22]))["distillation"] == 0
    method.begin_epoch(2, model, adapting.clips())
    own = torch.from_numpy(predict(model, adapting.clips()))
    torch.testing.assert_close(method.targets["memory"][list(SILENT)], own[list(SILENT)])
    assert (gradient()[[2, 3]] != 0).any()


def test_fine_tuning_is_information_maximisation_alone():
    method, batch = Dine(answers(), 4), seen()
    method.begin_epoch(3, adapting.classifier(), adapting.clips())
    terms = method.loss(batch)
    assert terms.keys() == set(method.terms) and terms["distillation"] == terms["mixup"] == 0
    expected = information_maximisation(adapting.softmax(batch.logits.detach().numpy()))
    assert {name: terms[name].item() for name in expected} == pytest.approx(expected, abs=1e-6)


def test_fresh_head():
    models = [adapting.classifier(seed) for seed in (0, 1)]
    for model in models:
        adapting.train(Dine(answers(), 3), model=model)
    assert torch.equal(models[0].head.out.weight, models[1].head.out.weight)


def test_learns_from_the_teacher():
    """More than the teacher knows: it hears two of five clips wrong, and some not at all."""
    rng = np.random.default_rng(0)
    labels = rng.integers(K, size=300)
    values = torch.from_numpy((3 * np.eye(K)[labels] + rng.normal(size=(300, K))).astype(np.float32))
    inputs = Features(values[:, None], statistics(values[:, None]))
    model = Classifier(None, Head(1, K, K, hidden=16, dropout=0.3), [0])
    teacher = 0.6 * np.eye(K)[np.where(rng.random(300) < 0.6, labels, (labels + 1) % K)] + 0.1
    teacher[rng.random(300) < 0.1] = np.nan
    adapting.train(Dine(teacher, 60), replace(adapting.OPTIONS, epochs=60, batch_size=64), model, inputs)
    assert np.mean(predict(model, inputs).argmax(axis=1) == labels) > 0.85


@pytest.mark.parametrize("stop", [1, 2])
def test_resumes(tmp_path, stop):
    adapting.resumes(lambda: Dine(answers(), 3), tmp_path / "kept", stop)
