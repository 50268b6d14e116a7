"""Counts, against sums done by hand."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from nas.devices.costs import FEATURES, count, macs
from nas.layers.mixers.state_space import StateSpace


def counted(module: nn.Module, *shape: int) -> dict[str, float]:
    """What is not zero."""
    found = dict(zip(FEATURES, count(module, torch.empty(shape)).tolist(), strict=True))
    return {name: value for name, value in found.items() if value}


class Attention(nn.Module):
    """Two heads of eight channels over the last but one axis."""

    def forward(self, x_BNC: Tensor) -> Tensor:
        q_BHNC = x_BNC.unflatten(-1, (2, 8)).transpose(1, 2)
        return nn.functional.scaled_dot_product_attention(q_BHNC, q_BHNC, q_BHNC)


class Biased(nn.Module):
    """Adds what it gathers from a table of weights."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.zeros(9, 4))
        self.register_buffer("index", torch.zeros(5, dtype=torch.long), persistent=False)

    def forward(self, x_B5C: Tensor) -> Tensor:
        return x_B5C + self.table[self.index]


class Rolled(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return torch.roll(x, (1, 1), (1, 2))


def test_linear() -> None:
    assert counted(nn.Linear(20, 50), 2, 3, 20) == {
        "products": 1,
        "products_mmacs": pytest.approx(2 * 3 * 20 * 50 / 1e6),
        "weight_kelements": pytest.approx((20 * 50 + 50) / 1e3),
    }


def test_attention_counts_its_heads_as_single_matrices() -> None:
    found = counted(Attention(), 3, 5, 16)
    assert found["batched_products"] == 2
    assert found["batched_products_matrices"] == 2 * 3 * 2  # two products, batch, heads
    assert found["batched_products_mmacs"] == pytest.approx(2 * 3 * 2 * 5 * 5 * 8 / 1e6)
    assert found["softmaxes"] == 1
    assert "products" not in found


@pytest.mark.parametrize("groups", [1, 8])
def test_convolution(groups: int) -> None:
    found = counted(nn.Conv2d(8, 16, 3, padding=1, groups=groups), 2, 8, 5, 5)
    assert found["convolutions"] == 1
    assert found["convolutions_mmacs"] == pytest.approx(2 * 25 * 16 * 9 * 8 / groups / 1e6)


@pytest.mark.parametrize(
    ("module", "kind"),
    [
        (nn.LayerNorm(4), "norms"),
        (nn.Softmax(-1), "softmaxes"),
        (nn.GELU(), "elementwise"),
        (Rolled(), "joins"),
        (nn.ZeroPad2d(1), "joins"),
    ],
)
def test_kinds_that_move_memory(module: nn.Module, kind: str) -> None:
    found = counted(module, 1, 6, 6, 4)
    assert found[kind] == 1
    assert found["moved_kelements"] >= 6 * 6 * 4 / 1e3
    assert len(found) == 2


def test_views_are_free() -> None:
    assert counted(nn.Sequential(nn.Flatten(), nn.Unflatten(1, (2, 8))), 3, 4, 4) == {}


def test_what_weights_alone_determine_is_free() -> None:
    assert counted(Biased(), 2, 5, 4) == {"elementwise": 1, "moved_kelements": pytest.approx(0.04)}


def test_parts_add_up_to_the_whole() -> None:
    first = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.GELU(), nn.BatchNorm2d(8))
    second = nn.Sequential(nn.Flatten(), nn.Linear(8 * 36, 10), nn.LayerNorm(10))
    whole = count(nn.Sequential(first, second), torch.empty(2, 3, 6, 6))
    parts = count(first, torch.empty(2, 3, 6, 6)) + count(second, torch.empty(2, 8, 6, 6))
    np.testing.assert_allclose(whole, parts)


def test_meta_modules_with_real_buffers_are_counted_and_left_as_they_are() -> None:
    with torch.device("meta"):
        module = nn.Sequential(nn.Linear(4, 4), nn.Dropout(0.5), Biased())
    module[2].index = torch.zeros(5, dtype=torch.long)
    found = counted(module, 2, 5, 4)
    assert found["elementwise"] == 1  # the sum; dropout is off
    assert module.training
    assert module[2].index.device.type == "cpu"


def test_macs_sum_all_kinds() -> None:
    features = np.zeros((2, len(FEATURES)))
    features[1, [FEATURES.index(f"{k}_mmacs") for k in ("products", "batched_products")]] = 1, 2
    features[:, FEATURES.index("convolutions_mmacs")] = 4
    assert macs(features).tolist() == [4, 7]


class Circular(nn.Module):
    def forward(self, x_BCHW: Tensor) -> Tensor:
        return torch.fft.irfft2(torch.fft.rfft2(x_BCHW), s=x_BCHW.shape[-2:])


def test_transforms_count_by_formula() -> None:
    found = counted(Circular(), 2, 3, 8, 8)
    assert found["transforms"] == 2
    assert found["transforms_mmacs"] == pytest.approx(2 * 2 * 3 * 64 * 6 / 1e6)  # N log2 N, there and back


class Recurrence(nn.Module):
    def scan_macs(self, x_BNC: Tensor) -> int:
        return 3 * x_BNC.numel()

    def forward(self, x_BNC: Tensor) -> Tensor:
        return x_BNC.cumsum(1)


def test_a_state_space_counts_its_scan() -> None:
    found = counted(StateSpace(16).build(32), 2, 6, 5, 32)
    units = 2 * 32
    assert found["scans"] == 1
    assert found["scans_mmacs"] == pytest.approx(3 * 2 * 30 * units * 16 / 1e6)


def test_scans_count_by_their_own_formula() -> None:
    found = counted(nn.Sequential(Recurrence(), Recurrence()), 2, 5, 4)
    assert found["scans"] == 2
    assert found["scans_mmacs"] == pytest.approx(2 * 3 * 40 / 1e6)
    assert macs(count(Recurrence(), torch.empty(2, 5, 4))) == pytest.approx(120 / 1e6)
