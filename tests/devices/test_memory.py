"""Memory, against sums done by hand."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from nas.devices.memory import memory


def test_a_chain_needs_two_neighbours_at_a_time() -> None:
    chain = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 4))
    activations, peak = memory(chain, torch.empty(2, 8))
    assert activations == 4 * 2 * (16 + 16 + 4)
    assert peak == 4 * 2 * (16 + 16)


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(8, 32), nn.Linear(32, 8)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.down(self.up(x))


def test_a_residual_keeps_its_input_alive() -> None:
    activations, peak = memory(Residual(), torch.empty(1, 8))
    assert activations == 4 * (32 + 8 + 8)
    assert peak == 4 * (8 + 32 + 8)  # the input, the hidden units, what is made of them


class Views(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        return x.reshape(-1, 2).unsqueeze(0).transpose(1, 2)


def test_views_take_no_memory() -> None:
    assert memory(Views(), torch.empty(2, 8)) == (0, 4 * 16)


def test_the_output_lives_to_the_end() -> None:
    class Two(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            first = x + 1
            return first, (x * 2).sum(-1)

    assert memory(Two(), torch.empty(1, 8)) == (4 * (8 + 8 + 1), 4 * (8 + 8 + 8))
