"""A block that pools queries: what goes past its mixer, and what its mixer sees, token by token."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import cut_module, randomise
from layers.literal import SIDES, answer, by_head, gelu, layer_norm, max_pooling, places, rectangle
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import Block, Global, Mlp, NoFfn, Window
from nas.layers.downsampling.query_pooling import QueryPooling

WIDTH, OUT = 8, 12


def attention(x: Tensor, mixer: nn.Module) -> Tensor:
    """The largest of 2 × 2 queries, to all positions of the larger map."""
    q = by_head(max_pooling(mixer.q(x), 2, 2), mixer.heads)
    k, v = (by_head(p(x), mixer.heads).flatten(1, 2) for p in (mixer.k, mixer.v))
    y = torch.zeros_like(q)
    for head in range(mixer.heads):
        for place in places(q):
            y[:, *place, head] = answer(q[:, *place, head], k[:, :, head], v[:, :, head])
    return mixer.o(y.flatten(3))


def literal(x: Tensor, block: nn.Module, kernel: int) -> Tensor:
    """A window of 2 lies beside the next; one of 3 takes the row and column before as well."""
    normed = layer_norm(x, block.norm1)
    past = max_pooling(block.skip(normed), kernel, 2, kernel - 2)
    y = past[:, : x.shape[1] // 2, : x.shape[2] // 2] + attention(normed, block.mixer) * block.scale1
    if block.ffn is None:
        return y
    hidden = gelu(layer_norm(y, block.norm2) @ block.ffn.up.weight.T + block.ffn.up.bias)
    return y + block.ffn.down(hidden) * block.scale2


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("ffn", [NoFfn(), Mlp(2)], ids=["no ffn", "ffn"])
@pytest.mark.parametrize("kernel", [2, 3])
def test_the_mixer_and_what_goes_past_it_pool_alike(kernel, ffn, sides):
    spec = Block(Global(2), ffn, layer_scale=1)
    block = randomise(spec.build_pooling(WIDTH, OUT, QueryPooling(kernel)))
    x = rectangle(WIDTH, *sides)
    (y,) = block(x)
    assert y.shape == (2, sides[0] // 2, sides[1] // 2, OUT)
    torch.testing.assert_close(y, literal(x, block, kernel))


@pytest.mark.parametrize("sides", SIDES)
def test_windows_of_both_sizes_share_everything(sides):
    spec, x = Block(Global(2), NoFfn(), layer_scale=1), rectangle(WIDTH, *sides)
    large = randomise(spec.build_pooling(WIDTH, OUT, QueryPooling(3)))
    small = cut_module(large, spec.build_pooling(WIDTH, OUT, QueryPooling(2)))
    torch.testing.assert_close(small(x)[0], literal(x, large, 2))


@pytest.mark.parametrize("kernel", [2, 3])
@pytest.mark.parametrize(("height", "width"), [(5, 4), (4, 7)])
def test_odd_maps_are_refused(height, width, kernel):
    block = Block(Global(2), NoFfn()).build_pooling(WIDTH, OUT, QueryPooling(kernel))
    with pytest.raises(SpaceError, match=rf"Query pooling must .* multiples of 2: .*{height}×{width}"):
        block(torch.zeros(1, height, width, WIDTH))
    assert f"{height}×{width}" in QueryPooling(kernel).misfit(height, width)
    assert QueryPooling(kernel).misfit(4, 6) is None


@pytest.mark.parametrize(
    ("block", "message"),
    [
        (Block(Window(2, 2), NoFfn()), "a mixer that can pool its queries, which Window cannot"),
        (Block(Global(2), Mlp(1), topology="parallel"), "must be in series.*topology='parallel'"),
        (Block(Global(2), Mlp(1), placement="post"), "must be in series.*placement='post'"),
        (Block(Global(2), Mlp(1), mixer2=Global(1)), "must be in series.*mixer2=Global"),
    ],
    ids=["windows", "parallel", "post", "two mixers"],
)
def test_blocks_that_cannot_pool_are_refused(block, message):
    with pytest.raises(SpaceError, match=message):
        block.build_pooling(WIDTH, OUT, QueryPooling())


def test_it_cannot_stand_by_itself():
    with pytest.raises(SpaceError, match="with the first block of its stage: `build_pooling`"):
        QueryPooling().build(WIDTH, OUT)
