from dataclasses import replace

import adapting
import numpy as np
import pytest
import torch
from adapting import K, U

from mifuse_cli.methods.oracle import Oracle

LABELS = torch.tensor([0, 0, 0, 0, 1, 2] * 4)[:U]  # the last class does not occur


def test_parity():
    index = [4, 0, 22, 7, 5]
    counts = [sum(label == k for label in LABELS.tolist()) for k in range(K)]

    def reference(logits):
        p = adapting.softmax(logits)
        weights = [1 / counts[LABELS[i]] for i in index]
        losses = [-np.log(p[b, LABELS[i]]) for b, i in enumerate(index)]
        return {"cross_entropy": np.dot(weights, losses) / sum(weights)}

    batch = adapting.batch(index)
    adapting.agree(Oracle(LABELS, K).loss(batch), batch, reference)


def test_learns_the_labels():
    inputs, model = adapting.clips(), adapting.classifier()
    inputs.values[torch.arange(U), :, LABELS] += 4
    adapting.train(Oracle(LABELS, K), replace(adapting.OPTIONS, epochs=60), model, inputs)
    found = model.eval()(inputs, torch.arange(U)).argmax(dim=-1)
    assert (found == LABELS).float().mean() > 0.9


@pytest.mark.parametrize("stop", [1, 2])
def test_resumes(tmp_path, stop):
    adapting.resumes(lambda: Oracle(LABELS, K), tmp_path / "kept", stop)
