"""What the tests of the adaptation methods share: small clips and models, gradients by differences, resuming."""

from dataclasses import replace

import numpy as np
import torch
from torch.nn.functional import normalize

from mifuse_cli.methods import loop, resume
from mifuse_cli.model.classifier import Classifier, Features, Head
from mifuse_cli.model.standard import statistics

U, K, L, D, H = 23, 4, 2, 6, 5
OPTIONS = loop.LoopOptions(
    epochs=3,
    batch_size=8,
    learning_rate=1e-2,
    encoder_learning_rate=0.0,
    weight_decay=0.01,
    ema=0.9,
    seed=3,
)


def clips(dtype=torch.float32):
    values = torch.randn(U, L, D, generator=torch.Generator().manual_seed(0)).to(dtype)
    return Features(values, statistics(values))


def classifier(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Classifier(None, Head(L, D, K, hidden=H, dropout=0.4), range(L))


def head(seed=0):
    """A head in double precision, with dropout at work."""
    return classifier(seed).double().train().head


def batch(index, seed=1):
    """A batch with units and logits that have nothing to do with each other, both with gradients."""
    rng = np.random.default_rng(seed)
    units = torch.tensor(rng.gamma(1, size=(len(index), H)), requires_grad=True)
    logits = torch.tensor(2 * rng.normal(size=(len(index), K)), requires_grad=True)
    return loop.Batch(torch.tensor(index), units, units, logits, head(seed))


def banks(seed=0, count=U):
    """Units of unit length and probabilities, in double precision."""
    rng = np.random.default_rng(seed)
    return {
        "units": normalize(torch.tensor(rng.gamma(1, size=(count, H)))),
        "probs": torch.tensor(rng.dirichlet(np.ones(K), count)),
    }


def softmax(logits):
    shares = np.exp(logits - logits.max(axis=-1, keepdims=True))
    return shares / shares.sum(axis=-1, keepdims=True)


def agree(terms, batch, reference):
    """The terms and their gradients are those of ``reference(logits)``, by central differences."""
    logits = batch.logits.detach().numpy()
    expected = reference(logits)
    assert terms.keys() == expected.keys()
    for name, term in terms.items():
        assert abs(term.item() - expected[name]) < 1e-5, name
        logit_gradient, unit_gradient = torch.autograd.grad(
            term, (batch.logits, batch.units), retain_graph=True, allow_unused=True
        )
        assert unit_gradient is None, name  # banks are constants
        slopes = np.zeros_like(logits)
        for at in np.ndindex(logits.shape):
            step = np.zeros_like(logits)
            step[at] = 1e-5
            slopes[at] = (reference(logits + step)[name] - reference(logits - step)[name]) / 2e-5
        assert np.abs(slopes).max() > 1e-3, name
        np.testing.assert_allclose(logit_gradient, slopes, atol=1e-5, err_msg=name)


def train(method, options=OPTIONS, model=None, inputs=None, **hooks):
    state = loop.start(model or classifier(), method, options)
    return loop.run(state, inputs or clips(), method, options, **hooks)


def resumes(make, path, stop):
    """A run stopped after some epochs, and gone on with from the disk, ends in the same bits as a whole one."""
    whole_method = make()
    whole = train(whole_method)
    first = make()
    state = train(first, replace(OPTIONS, epochs=stop))
    resume.keep(path, "id", state, first)
    method = make()
    state = loop.start(classifier(), method, OPTIONS)
    assert resume.restore(path, "id", state, method) == stop
    loop.run(state, clips(), method, OPTIONS)
    assert state.history == whole.history and len(whole.history) == 3
    weights = state.student.state_dict()
    assert all(torch.equal(weights[name], value) for name, value in whole.student.state_dict().items())
    assert method.targets.keys() == whole_method.targets.keys()
    assert all(torch.equal(method.targets[name], value) for name, value in whole_method.targets.items())
