"""Convolutions whose channels lie side by side in memory: the same numbers."""

import pytest
import torch

from mifuse_cli.model.channels_last import ChannelsLast, keep_channels_last


@pytest.mark.parametrize("inputs", [1, 6])
@pytest.mark.parametrize("bias", [True, False])
def test_the_same_output_and_gradients(inputs, bias):
    torch.manual_seed(0)
    plain = torch.nn.Conv1d(inputs, 8, 10, stride=5, bias=bias)
    other = torch.nn.Conv1d(inputs, 8, 10, stride=5, bias=bias)
    other.load_state_dict(plain.state_dict())
    keep_channels_last([other])
    assert type(other) is ChannelsLast and list(other.state_dict()) == list(plain.state_dict())
    some = torch.randn(3, inputs, 203)
    one, two = some.clone().requires_grad_(), some.clone().requires_grad_()
    expected, found = plain(one), other(two)
    torch.testing.assert_close(found, expected)
    expected.square().sum().backward()
    found.square().sum().backward()
    torch.testing.assert_close(two.grad, one.grad)
    torch.testing.assert_close(other.weight.grad, plain.weight.grad)


@pytest.mark.parametrize("clips", [1, 2])
@pytest.mark.parametrize("inputs", [1, 4])
def test_norms_over_channels_need_no_copy(inputs, clips):
    first, second = (torch.nn.Conv1d(channels, 8, 3, stride=2) for channels in (inputs, 8))
    keep_channels_last([first, second])
    found = first(torch.randn(clips, inputs, 101))
    assert found.transpose(1, 2).is_contiguous() and second(found).transpose(1, 2).is_contiguous()


def test_other_modules_stay():
    class Own(torch.nn.Conv1d):
        pass

    own = Own(1, 1, 1)
    keep_channels_last([own, torch.nn.Linear(1, 1)])
    assert type(own) is Own
