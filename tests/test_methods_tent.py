from dataclasses import replace

import adapting
import numpy as np
import torch
from adapting import K, U

from mifuse_cli.methods.tent import Tent
from mifuse_cli.model.classifier import predict


def test_parity():
    def reference(logits):
        p = adapting.softmax(logits)
        return {"entropy": -sum(p[i, k] * np.log(p[i, k]) for i in range(len(p)) for k in range(K)) / len(p)}

    batch = adapting.batch([4, 0, 22, 7, 9])
    adapting.agree(Tent().loss(batch), batch, reference)


def test_only_scale_and_shift_move():
    model = adapting.classifier()
    before = {name: value.clone() for name, value in model.head.named_parameters()}
    state = adapting.train(Tent(), model=model)
    moved = {name for name, value in model.head.named_parameters() if not torch.equal(value, before[name])}
    assert moved == {"scale", "shift"} and state.teacher is None


def test_nothing_holds_the_classes_apart():
    # Confident in one class for every clip: that costs nothing, and there is no way out of it.
    logits = torch.zeros(U, K)
    logits[:, 1] = 40
    batch = replace(adapting.batch(list(range(U))), logits=logits.requires_grad_())
    loss = Tent().loss(batch)["entropy"]
    (gradient,) = torch.autograd.grad(loss, logits)
    assert loss.item() < 1e-6 and gradient.abs().max() < 1e-6


def test_entropy_falls():
    def entropy():
        p = predict(model, inputs)
        return -(p * np.log(p)).sum(axis=1).mean()

    inputs, model = adapting.clips(), adapting.classifier()
    before = entropy()
    adapting.train(Tent(), replace(adapting.OPTIONS, epochs=30, learning_rate=0.1), model, inputs)
    assert entropy() < 0.5 * before


def test_resumes(tmp_path):
    adapting.resumes(Tent, tmp_path / "kept", 1)
