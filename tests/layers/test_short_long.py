"""Short and long distances, token by token: who sees whom, biased by a network of its offset."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import cut_module, randomise
from layers.literal import SIDES, answer, by_head, places, rectangle
from layers.test_dynamic import number
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers import Global, NoPosition, RelativeBias, Window
from nas.layers.mixers.short_long import LongDistance, ShortDistance
from nas.layers.positions_in_attention.dynamic import DynamicBias

WIDTH, HIDDEN = 8, 4
DYNAMIC = DynamicBias(HIDDEN)


def near(size: int):
    """Neighbours, in tiles of size × size (CrossFormer, Wang et al., 2022, §3.2.1)."""
    return lambda a, b: all(m // size == n // size for m, n in zip(a, b, strict=True))


def far(interval: int):
    """Those that lie a multiple of the interval apart, both ways."""
    return lambda a, b: all((m - n) % interval == 0 for m, n in zip(a, b, strict=True))


def literal(x: Tensor, layer: nn.Module, heads: int, together, step: int = 1) -> Tensor:
    """Of the first `heads` heads; the offset is counted in steps of the group."""
    q, k, v = (by_head(p(x), layer.heads) for p in (layer.q, layer.k, layer.v))
    y = torch.zeros_like(v)[..., :heads, :]
    network = getattr(layer.position, "dynamic", None)
    for r, c in places(x):
        peers = [other for other in places(x) if together((r, c), other)]
        rows, columns = zip(*peers, strict=True)
        for head in range(heads):
            bias: Tensor | float = 0.0
            if network is not None:
                offsets = [((r - i) // step, (c - j) // step) for i, j in peers]
                bias = torch.stack([number(*offset, network, HIDDEN, head) for offset in offsets])
            seen = (t[:, rows, columns, head] for t in (k, v))
            y[:, r, c, head] = answer(q[:, r, c, head], *seen, bias)
    return y.flatten(3) @ layer.o.weight[:, : heads * layer.value_dim].T + layer.o.bias


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("size", [1, 2, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_short_distance_sees_neighbours(heads, size, sides):
    large = randomise(ShortDistance(2, size=4, position=NoPosition()).build(WIDTH))
    small = cut_module(large, ShortDistance(heads, size=size, position=NoPosition()).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(small(x), literal(x, large, heads, near(size)))


@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("interval", [1, 2, 4])
@pytest.mark.parametrize("heads", [1, 2])
def test_long_distance_sees_those_an_interval_apart(heads, interval, sides):
    large = randomise(LongDistance(2, interval=4, position=NoPosition()).build(WIDTH))
    small = cut_module(large, LongDistance(heads, interval=interval, position=NoPosition()).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(small(x), literal(x, large, heads, far(interval)))


@pytest.mark.parametrize("sides", [(4, 4), (2, 6)])
@pytest.mark.parametrize("heads", [1, 2])
@pytest.mark.parametrize(
    ("make", "together", "step"),
    [
        (lambda h: ShortDistance(h, size=2, position=DYNAMIC), near(2), 1),
        (lambda h: LongDistance(h, interval=2, position=DYNAMIC), far(2), 2),
    ],
    ids=["short", "long"],
)
def test_offsets_are_counted_within_the_group(make, together, step, heads, sides):
    large = randomise(make(2).build(WIDTH))
    small = cut_module(large, make(heads).build(WIDTH))
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(small(x), literal(x, large, heads, together, step))


@pytest.mark.parametrize("sides", SIDES)
def test_short_distance_is_a_window_that_does_not_shift(sides):
    short = randomise(ShortDistance(2, size=4, position=RelativeBias()).build(WIDTH))
    window = Window(2, 4).build(WIDTH).double()
    window.load_state_dict(short.state_dict())
    x = rectangle(WIDTH, *sides)
    torch.testing.assert_close(short(x), window(x))


@pytest.mark.parametrize("mixer", [ShortDistance, LongDistance])
def test_weights_are_shared_by_all_settings_and_with_attention_to_all(mixer):
    small, large, every = (
        {n: p.shape for n, p in m.build(WIDTH).named_parameters()}
        for m in (mixer(2, 2), mixer(2, 4), Global(2, position=DynamicBias()))
    )
    assert small == large == every


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6), (6, 6)])
@pytest.mark.parametrize(
    ("mixer", "message"),
    [
        (ShortDistance(2, size=4), "Short-distance attention must get .* multiples of 4: groups of neighb"),
        (LongDistance(2, interval=4), "Long-distance attention must get .* multiples of 4: an interval got"),
    ],
    ids=["short", "long"],
)
def test_maps_that_do_not_fit_are_refused(mixer, message, height, width):
    assert f"got {height}×{width}" in mixer.misfit(height, width)
    with pytest.raises(SpaceError, match=f"{message}.*{height}×{width}"):
        mixer.build(WIDTH)(torch.zeros(1, height, width, WIDTH))
    assert mixer.misfit(8, 12) is None


def test_long_distance_has_no_largest_offset():
    with pytest.raises(SpaceError, match=r"tell RelativeBias its largest offset.*Use it in windows"):
        LongDistance(2, interval=2, position=RelativeBias()).build(WIDTH)
