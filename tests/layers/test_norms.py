"""Norms against their formulas, channel by channel, and batch norms that fold into the layer behind them."""

from __future__ import annotations

import math

import pytest
import torch
from layers.cutting import cut_module, randomise
from layers.literal import rectangle
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers import BatchNorm, Block, Global, LayerNorm, Mlp, RepBN, RMSNorm
from nas.layers.norms import ChannelBatchNorm, NoNorm, ReparameterisedBatchNorm

WIDTH = 6
SIDES = [(3, 5), (4, 2)]


def map_of(width: int, sides: tuple[int, int]) -> Tensor:
    """Neither centred nor of variance 1, and other channels have other values."""
    return rectangle(width, *sides) * torch.arange(1, width + 1) + torch.arange(width)


def positions(x: Tensor):
    """Index of every position of a map (B, H, W, C)."""
    return [(b, r, c) for b in range(x.shape[0]) for r in range(x.shape[1]) for c in range(x.shape[2])]


def layer_norm(x: list[float], weight: list[float], bias: list[float], eps: float) -> list[float]:
    mean = sum(x) / len(x)
    variance = sum((value - mean) ** 2 for value in x) / len(x)
    return [(v - mean) / math.sqrt(variance + eps) * w + b for v, w, b in zip(x, weight, bias, strict=True)]


def rms_norm(x: list[float], weight: list[float], eps: float) -> list[float]:
    mean_square = sum(value**2 for value in x) / len(x)
    return [v / math.sqrt(mean_square + eps) * w for v, w in zip(x, weight, strict=True)]


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("eps", [1e-5, 0.5])
@pytest.mark.parametrize("width", [WIDTH, 4])
def test_layer_norm_of_the_channels_that_are_left(width, eps, sides):
    large = randomise(LayerNorm(eps).build(WIDTH))
    small, x = cut_module(large, LayerNorm(eps).build(width)), map_of(width, sides)
    y, weight, bias = small(x), large.weight.tolist()[:width], large.bias.tolist()[:width]
    for at in positions(x):
        torch.testing.assert_close(y[at].tolist(), layer_norm(x[at].tolist(), weight, bias, eps))


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("eps", [1e-6, 0.5])
@pytest.mark.parametrize("width", [WIDTH, 4])
def test_rms_norm_of_the_channels_that_are_left(width, eps, sides):
    large = randomise(RMSNorm(eps).build(WIDTH))
    small, x = cut_module(large, RMSNorm(eps).build(width)), map_of(width, sides)
    assert [n for n, _ in small.named_parameters()] == ["weight"]
    y, weight = small(x), large.weight.tolist()[:width]
    for at in positions(x):
        torch.testing.assert_close(y[at].tolist(), rms_norm(x[at].tolist(), weight, eps))


def test_no_norm_does_nothing():
    x = map_of(WIDTH, (3, 5))
    assert torch.equal(NoNorm().build(WIDTH)(x), x)


# --- batch norms --------------------------------------------------------------------------------


def batch_norm(x: Tensor, norm: ChannelBatchNorm, means: Tensor, variances: Tensor, alpha: float) -> Tensor:
    """Each channel by itself; `alpha` times the input goes past it (SLAB, Guo et al., 2024, eq. 4)."""
    y = torch.zeros_like(x)
    for channel in range(x.shape[-1]):
        mean, deviation = means[channel], math.sqrt(variances[channel] + norm.eps)
        here = (x[..., channel] - mean) / deviation
        y[..., channel] = here * norm.weight[channel] + norm.bias[channel] + alpha * x[..., channel]
    return y


def statistics(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (by n, not n − 1) of each channel over all positions of all examples."""
    values = [[float(x[*at, channel]) for at in positions(x)] for channel in range(x.shape[-1])]
    means = [sum(v) / len(v) for v in values]
    variances = [sum((a - m) ** 2 for a in v) / len(v) for v, m in zip(values, means, strict=True)]
    return torch.tensor(means, dtype=torch.double), torch.tensor(variances, dtype=torch.double)


BATCH_NORMS = [BatchNorm(), RepBN(), BatchNorm(0.5), RepBN(0.5)]


def share_past(norm: nn.Module) -> float:
    return norm.alpha.item() if isinstance(norm, ReparameterisedBatchNorm) else 0.0


def trained(module: nn.Module, width: int = WIDTH) -> nn.Module:
    """In evaluation mode, with statistics of maps that it saw in training."""
    randomise(module).train()
    with torch.no_grad():
        for side in (2, 3, 4):
            module(map_of(width, (side, 5)))
    return module.eval()


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("choice", BATCH_NORMS, ids=repr)
def test_training_normalises_by_the_batch(choice, sides):
    norm, x = randomise(choice.build(WIDTH)).train(), map_of(WIDTH, sides)
    torch.testing.assert_close(norm(x), batch_norm(x, norm, *statistics(x), share_past(norm)))


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("choice", BATCH_NORMS, ids=repr)
def test_evaluation_normalises_by_what_was_gathered(choice, sides):
    norm, x = randomise(choice.build(WIDTH)).train(), map_of(WIDTH, (2, 7))
    norm(x)
    means, variances = statistics(x)
    n = 2 * 2 * 7
    gathered = 0.1 * means, 0.9 + 0.1 * variances * n / (n - 1)  # from 0 and 1, at momentum 0.1
    norm.eval()
    x = map_of(WIDTH, sides)
    torch.testing.assert_close(norm(x), batch_norm(x, norm, *gathered, share_past(norm)))


def test_at_first_all_of_the_input_goes_past():
    norm, x = RepBN().build(WIDTH).double(), map_of(WIDTH, (3, 5))
    means, variances = statistics(x)
    torch.testing.assert_close(norm(x), batch_norm(x, norm, means, variances, 1.0))
    assert norm.alpha.shape == (1,)


@pytest.mark.parametrize("choice", BATCH_NORMS, ids=repr)
def test_tokens_are_normalised_like_positions(choice):
    norm, x = trained(choice.build(WIDTH)), map_of(WIDTH, (3, 5))
    torch.testing.assert_close(norm(x.flatten(1, 2)), norm(x).flatten(1, 2))


# --- folding ------------------------------------------------------------------------------------


def folded(norm: ChannelBatchNorm, linear: nn.Linear) -> nn.Linear:
    """The one linear layer that does what `norm`, in evaluation mode, and then `linear` do."""
    scale, shift = norm.as_affine()
    return _linear(linear.weight * scale, F.linear(shift, linear.weight, linear.bias))


def folded_behind(linear: nn.Linear, norm: ChannelBatchNorm) -> nn.Linear:
    """The one linear layer that does what `linear` and then `norm`, in evaluation mode, do."""
    scale, shift = norm.as_affine()
    bias = shift if linear.bias is None else scale * linear.bias + shift
    return _linear(scale[:, None] * linear.weight, bias)


def _linear(weight: Tensor, bias: Tensor) -> nn.Linear:
    joined = nn.Linear(weight.shape[1], weight.shape[0], device=weight.device, dtype=weight.dtype)
    with torch.no_grad():
        joined.weight.copy_(weight)
        joined.bias.copy_(bias)
    return joined


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("choice", BATCH_NORMS, ids=repr)
def test_a_norm_folds_into_the_linear_layer_behind_it(choice, bias):
    norm, linear = trained(choice.build(WIDTH)), randomise(nn.Linear(WIDTH, 4, bias=bias))
    before = {n: t.clone() for n, t in (norm.state_dict() | linear.state_dict()).items()}
    one, x = folded(norm, linear), map_of(WIDTH, (3, 5))
    assert type(one) is nn.Linear
    assert one.weight.dtype == torch.double
    torch.testing.assert_close(one(x), linear(norm(x)))
    after = norm.state_dict() | linear.state_dict()
    assert all(torch.equal(after[n], t) for n, t in before.items()), "what was folded is left as it was"


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("choice", BATCH_NORMS, ids=repr)
def test_a_norm_folds_into_the_linear_layer_before_it(choice, bias):
    linear, norm = randomise(nn.Linear(4, WIDTH, bias=bias)), trained(choice.build(WIDTH))
    x = map_of(4, (3, 5))
    torch.testing.assert_close(folded_behind(linear, norm)(x), norm(linear(x)))


@pytest.mark.parametrize("sides", SIDES)
def test_rep_bn_is_one_factor_and_one_shift_per_channel(sides):
    norm, x = trained(RepBN().build(WIDTH)), map_of(WIDTH, sides)
    scale, shift = norm.as_affine()
    y = torch.zeros_like(x)
    for channel in range(WIDTH):
        slope = norm.weight[channel] / math.sqrt(norm.running_var[channel].item() + norm.eps)
        torch.testing.assert_close(scale[channel], (slope + norm.alpha)[0])
        y[..., channel] = scale[channel] * x[..., channel] + shift[channel]
    torch.testing.assert_close(norm(x), y)


def fold(block: nn.Module) -> None:
    """Each norm of a block into all the layers that read it."""
    for norm, readers in (("norm1", ("mixer.q", "mixer.k", "mixer.v")), ("norm2", ("ffn.up",))):
        for reader in readers:
            parent, _, name = reader.rpartition(".")
            joined = folded(getattr(block, norm), block.get_submodule(reader))
            setattr(block.get_submodule(parent), name, joined)
        setattr(block, norm, nn.Identity())


class Blocks(nn.ModuleList):
    def forward(self, x: Tensor) -> Tensor:
        for block in self:
            (x,) = block(x)
        return x


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("choice", BATCH_NORMS, ids=repr)
def test_a_folded_network_has_no_batch_norm_and_answers_the_same(choice, sides):
    block = Block(Global(2, qkv_bias=False), Mlp(2), choice)
    network = trained(Blocks([block.build(WIDTH), block.build(WIDTH)]))
    x = map_of(WIDTH, sides)
    before = network(x)
    assert sum(isinstance(m, ChannelBatchNorm) for m in network.modules()) == 4
    for part in network:
        fold(part)
    assert not any(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in network.modules())
    assert not list(network.buffers())
    torch.testing.assert_close(network(x), before)
