import adapting
import numpy as np
import pytest
import torch
from adapting import H, K, U

from mifuse_cli.methods import bank
from mifuse_cli.methods.bank import nearest
from mifuse_cli.methods.nrc import Nrc
from mifuse_cli.model.classifier import predict, units


def slow_nearest(points, i, count):
    others = [j for j in range(len(points)) if j != i]
    return sorted(others, key=lambda j: -(points[i] @ points[j]))[:count]


def renewed(banks, batch):
    """Banks after a batch: its units at unit length, its predictions without dropout."""
    points, said = banks["units"].numpy().copy(), banks["probs"].numpy().copy()
    weight, bias = (batch.head.out.get_parameter(name).detach().numpy() for name in ("weight", "bias"))
    for row, i in zip(batch.units.detach().numpy(), batch.index.tolist(), strict=True):
        points[i] = row / np.sqrt(row @ row)
        said[i] = adapting.softmax((weight @ row + bias) / batch.head.temperature.item())
    return points, said


def reference(points, said, index, n, m, w, prior):
    def terms(logits):
        p = adapting.softmax(logits)
        near = expanded = 0.0
        for b, i in enumerate(index):
            for k in slow_nearest(points, i, n):
                theirs = slow_nearest(points, k, m)
                near -= (1 if i in theirs else w) * (said[k] @ p[b]) / len(index)
                expanded -= sum(w * (said[j] @ p[b]) for j in theirs) / len(index)
        marginal = p.mean(axis=0)
        diversity = sum(marginal[c] * np.log(marginal[c] / prior[c]) for c in range(K))
        return {"neighbours": near, "expanded": expanded, "diversity": diversity}

    return terms


@pytest.mark.parametrize(("n", "m", "w"), [(5, 5, 0.1), (2, 4, 0.3), (6, 1, 0.25)])
@pytest.mark.parametrize("prior", [None, [0.1, 0.2, 0.3, 0.4]])
def test_parity(n, m, w, prior):
    method = Nrc(neighbours=n, expanded=m, weight=w, prior=prior and torch.tensor(prior))
    method.targets, index = adapting.banks(), [4, 0, 22, 7, 9]
    batch = adapting.batch(index)
    batch.head.temperature.fill_(1.7)
    points, said = renewed(method.targets, batch)
    terms = method.loss(batch)
    assert tuple(terms) == method.terms
    np.testing.assert_allclose(method.targets["units"], points)
    np.testing.assert_allclose(method.targets["probs"], said)
    adapting.agree(terms, batch, reference(points, said, index, n, m, w, prior or np.full(K, 1 / K)))


def test_a_clip_is_not_its_own_neighbour_but_its_double_is():
    points = adapting.banks()["units"]
    points[[3, 11, 19]] = points[5].clone()
    found = nearest(points, torch.tensor([3, 5, 11, 19]), 3)
    assert [set(row) for row in found.tolist()] == [{5, 11, 19}, {3, 11, 19}, {3, 5, 19}, {3, 5, 11}]


def test_units_that_are_all_zero():
    method, batch = Nrc(), adapting.batch([1, 2, 3])
    method.targets = adapting.banks()
    with torch.no_grad():
        batch.units.zero_()
    assert all(torch.isfinite(term) for term in method.loss(batch).values())


def test_fewer_clips_than_neighbours():
    assert sorted(nearest(adapting.banks(count=4)["units"], torch.tensor([2]), 9)[0].tolist()) == [0, 1, 3]


@pytest.mark.parametrize("cells", [1, 3 * U, 10**6])
def test_parts_of_the_search(monkeypatch, cells):
    points, index = adapting.banks()["units"], torch.tensor([4, 4, 0, 19, 22, 1, 2])
    monkeypatch.setattr(bank, "_CELLS", cells)
    expected = [slow_nearest(points.numpy(), i, 6) for i in index.tolist()]
    assert nearest(points, index, 6).tolist() == expected


def test_a_clip_holds_itself_where_it_is_mutual():
    # Two clips far from all others: each is the other's neighbour, and its neighbour's neighbour is itself.
    method = Nrc(neighbours=1, expanded=1)
    method.targets = adapting.banks()
    method.targets["units"] = torch.nn.functional.normalize(torch.rand(U, H).double() * torch.arange(H))
    batch = adapting.batch([7])
    with torch.no_grad():
        batch.units.copy_(torch.eye(H)[:1])
    method.targets["units"][3] = torch.eye(H)[0]
    terms = method.loss(batch)
    said, p = method.targets["probs"], batch.probs[0]
    torch.testing.assert_close(terms["neighbours"], -(said[3] @ p))
    torch.testing.assert_close(terms["expanded"], -0.1 * (said[7] @ p))


def test_banks_are_filled_once_and_then_follow_the_batches():
    model, inputs, method = adapting.classifier(2), adapting.clips(), Nrc()
    method.begin_epoch(1, model.train(), inputs)
    np.testing.assert_allclose(method.targets["probs"], predict(model, inputs), atol=1e-6)
    expected = torch.nn.functional.normalize(units(model, inputs), dim=1)
    torch.testing.assert_close(method.targets["units"], expected)
    kept = {name: value.clone() for name, value in method.targets.items()}
    method.begin_epoch(2, adapting.classifier(5), inputs)
    assert all(torch.equal(method.targets[name], value) for name, value in kept.items())
    batch = adapting.batch([4, 9])
    method.targets = {name: value.double() for name, value in method.targets.items()}
    method.loss(batch)
    changed = (method.targets["probs"] != kept["probs"]).any(dim=1)
    assert changed.nonzero().flatten().tolist() == [4, 9]


def test_everything_but_scale_and_shift_is_trained():
    before, after = adapting.classifier(), adapting.train(Nrc(neighbours=3)).student
    for name, value in after.head.named_parameters():
        moved = not torch.equal(value, before.head.get_parameter(name))
        assert moved == (name not in ("scale", "shift")), name


@pytest.mark.parametrize("stop", [1, 2])
def test_resumes(tmp_path, stop):
    adapting.resumes(lambda: Nrc(neighbours=3, expanded=2), tmp_path / "kept", stop)
