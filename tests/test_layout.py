"""Cuts along logical axes."""

from __future__ import annotations

import pytest
import torch

from nas.errors import LayoutError
from nas.layout import Layout, cut, slices, union


def test_prefix_of_plain_axes_is_a_view():
    stored = torch.arange(12.0).reshape(3, 4)
    small = cut("w", stored, Layout((3, 4)), Layout((2, 3)), (2, 3))
    assert small.tolist() == [[0, 1, 2], [4, 5, 6]]
    assert small.untyped_storage().data_ptr() == stored.untyped_storage().data_ptr()


def test_merged_axes_keep_their_roles():
    large, small = Layout((3, 4, 2)), Layout((3, 2, 2))  # q/k/v, head, channel
    codes = torch.tensor([[[100 * p + 10 * h + d for d in range(2)] for h in range(4)] for p in range(3)])
    wanted = [100 * p + 10 * h + d for p in range(3) for h in range(2) for d in range(2)]
    assert cut("qkv", codes, large, small, (12,)).tolist() == wanted


def test_centred_axes_keep_offsets():
    table = torch.arange(-6, 7)[None]
    middle = cut("b", table, Layout((1, 13), (1,)), Layout((1, 5), (1,)), (1, 5))
    assert middle.tolist() == [[-2, -1, 0, 1, 2]]


@pytest.mark.parametrize(
    ("stored", "wanted", "message"),
    [
        (Layout((2, 2)), Layout((3, 2)), r"`w` must fit the bank: .*\(3, 2\).*\(2, 2\)"),
        (Layout((2, 2)), Layout((2,)), "must fit the bank"),
        (Layout((5,), (0,)), Layout((2,), (0,)), "all odd or all even"),
    ],
)
def test_what_does_not_fit_is_named(stored, wanted, message):
    with pytest.raises(LayoutError, match=message):
        slices("w", stored, wanted)


def test_union_refuses_weights_that_cannot_be_shared():
    with pytest.raises(LayoutError, match="names of their own"):
        union("w", Layout((2, 2)), Layout((2,)))
    assert union("w", Layout((2, 5)), Layout((3, 4))) == Layout((3, 5))
