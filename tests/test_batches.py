"""Batches of nearly the same length, and what is padded in them left out of every mean."""

from itertools import count, pairwise

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mifuse_cli.model.batches import (
    MOST_PADDING,
    alike,
    batch_seconds,
    batches,
    frame_mask,
    in_batches,
    padded_to,
    stacked,
    strided,
    time_mean,
    time_std,
)

CPU = torch.device("cpu")
lengths = st.lists(st.integers(1, 60), min_size=1, max_size=80)


@given(lengths, st.sampled_from((0.0, 0.05, 0.3, 1.0)), st.integers(1, 400))
def test_every_clip_is_in_one_batch_of_its_like(lengths, padding, most):
    found = alike(lengths, most, padding)
    assert sorted(one for batch in found for one in batch) == list(range(len(lengths)))
    for batch in found:
        held = [lengths[one] for one in batch]
        assert held == sorted(held, reverse=True)
        assert len(batch) == 1 or padded_to(held) <= most
        assert padded_to(held) - sum(held) <= padding * padded_to(held)
    longest = [lengths[batch[0]] for batch in found]
    assert longest == sorted(longest, reverse=True)


@given(lengths, st.integers(1, 400))
def test_no_batch_ends_too_early(lengths, most):
    found = alike(lengths, most, 0.2)
    for batch, after in pairwise(found):
        held = [lengths[one] for one in (*batch, after[0])]
        assert padded_to(held) > most or padded_to(held) - sum(held) > 0.2 * padded_to(held)


def test_padding_of_speech_is_rare():
    seconds = (1 + 19 * torch.rand(3000, generator=torch.Generator().manual_seed(0))).tolist()
    found = [held for _, held in batches(seconds, float, batch_seconds(CPU))]
    waste = 1 - sum(map(sum, found)) / sum(map(padded_to, found))
    assert 0 < waste < MOST_PADDING and len(found) < len(seconds)


def test_no_more_is_looked_at_than_needed():
    seen = []

    def clips():
        for number in count():  # endless
            seen.append(number)
            yield 1 + number % 7

    found = batches(clips(), float, 50)
    for _ in range(3):
        next(found)
    assert len(seen) <= 2048


@pytest.mark.parametrize("padding", [0.0, 0.2])
def test_results_are_in_the_order_of_the_clips(padding):
    clips = [torch.full((size,), float(number)) for number, size in enumerate((5, 9, 5, 1, 10, 9))]
    given = []

    def network(some):
        given.append([len(one) for one in some])
        return torch.stack([one[:1] for one in some])

    found = in_batches(network, clips, 20, padding)
    assert found[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert given == ([[10], [9, 9], [5, 5], [1]] if padding == 0 else [[10, 9], [9], [5, 5], [1]])


def parts(sizes=(7, 3, 5)):
    return [torch.randn(size, 4, generator=torch.Generator().manual_seed(size)) for size in sizes]


@pytest.mark.parametrize("sizes", [(7, 3, 5), (4, 4), (2,)])
def test_means_and_deviations_are_those_of_each_clip(sizes):
    rows = parts(sizes)
    mask = frame_mask(list(sizes), CPU)
    assert (mask is None) == (len(set(sizes)) == 1)
    hidden = stacked(rows, CPU)
    assert hidden.shape == (len(sizes), max(sizes), 4)
    if mask is not None:
        assert not hidden[~mask].any()
        hidden = hidden.masked_fill(~mask[:, :, None], torch.nan)  # whatever is there is not looked at
    torch.testing.assert_close(time_mean(hidden, mask), torch.stack([one.mean(dim=0) for one in rows]))
    torch.testing.assert_close(time_std(hidden, mask), torch.stack([one.std(dim=0) for one in rows]))
    coarse = time_mean(hidden.bfloat16(), mask)
    assert coarse.dtype == torch.float32 and not torch.equal(coarse, coarse.bfloat16().float())


@pytest.mark.parametrize("sizes", [(7, 3), (4, 4)])
def test_a_constant_feature_has_a_gradient(sizes):
    hidden = torch.zeros(2, max(sizes), 4, requires_grad=True)
    deviation = time_std(hidden, frame_mask(list(sizes), CPU))
    deviation.sum().backward()
    assert not deviation.any() and torch.isfinite(hidden.grad).all()


@given(st.integers(1, 50), st.integers(1, 8), st.integers(1, 5), st.integers(0, 4))
def test_frames_after_a_convolution(frames, kernel, stride, padding):
    if frames + 2 * padding >= kernel:
        made = torch.nn.functional.conv1d(
            torch.zeros(1, 1, frames), torch.zeros(1, 1, kernel), stride=stride, padding=padding
        )
        assert strided(frames, kernel, stride, padding) == made.shape[-1]
