"""A selective state space model along the positions of the map.

Shapes: B batch, L positions in their order, C width, U inner units, S states per unit, R rank of the steps.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers.choice import Mixer
from nas.layers.ffns.mlp import hidden_units
from nas.layers.fields import gene
from nas.layout import Layout

SCANS = ("rows", "rows_back", "columns", "columns_back")


@dataclass(frozen=True)
class StateSpace(Mixer):
    """The positions one after the other through a selective state space (Mamba, Gu & Dao, 2023, §3), in an
    order that every block chooses (Mamba-ND, Li et al., 2024, §3.2).

    Attributes:
        state: states per inner unit.
        scan: along the rows or along the columns, forth or back.
        ratio: of inner units to width.
        kernel: positions that the causal convolution sees.
        rank: of the step sizes; None: width / 16, rounded up.
    """

    state: int = gene(4, 8, 16)
    scan: str = gene(*SCANS, default="rows", among=SCANS)
    ratio: float = gene(1, 2, default=2, kw_only=True)
    kernel: int = gene(2, 4, default=4, kw_only=True)
    rank: int | None = field(default=None, kw_only=True)

    def build(self, width: int) -> nn.Module:
        return MapScan(width, self)


class MapScan(nn.Module):
    """The map as a sequence, and back; all orders share the weights `ssm`."""

    def __init__(self, width: int, mixer: StateSpace) -> None:
        super().__init__()
        self.columns, self.back = mixer.scan.startswith("columns"), mixer.scan.endswith("back")
        self.ssm = SelectiveStateSpace(width, mixer)

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        x = x_BHWC.transpose(1, 2) if self.columns else x_BHWC
        x_BLC = x.flatten(1, 2)
        y_BLC = self.ssm(x_BLC.flip(1)).flip(1) if self.back else self.ssm(x_BLC)
        y = y_BLC.reshape(x.shape)
        return y.transpose(1, 2) if self.columns else y


class SelectiveStateSpace(nn.Module):
    """Mamba's block: projection, causal depthwise convolution, scan, gate, projection.

    `conv_weight` (U, kernel) is stored by distance, 0 first, so that a shorter kernel keeps the nearest
    positions. The states are computed in float32 at least.
    """

    def __init__(self, width: int, mixer: StateSpace) -> None:
        super().__init__()
        units, rank = hidden_units(width, mixer.ratio), mixer.rank or math.ceil(width / 16)
        self.width, self.units, self.kernel = width, units, mixer.kernel
        self.in_ = nn.Linear(width, 2 * units, bias=False)
        self.conv_weight = nn.Parameter(torch.empty(units, mixer.kernel))
        self.conv_bias = nn.Parameter(torch.zeros(units))
        self.step_rank = nn.Linear(units, rank, bias=False)
        self.step = nn.Linear(rank, units)
        self.write = nn.Linear(units, mixer.state, bias=False)
        self.read = nn.Linear(units, mixer.state, bias=False)
        self.A_log = nn.Parameter(torch.arange(1.0, mixer.state + 1).log().repeat(units, 1))
        self.D = nn.Parameter(torch.ones(units))
        self.out = nn.Linear(units, width, bias=False)
        nn.init.kaiming_uniform_(self.conv_weight, a=math.sqrt(5))
        nn.init.uniform_(self.step.bias, *BIAS_OF_STEPS)

    def layouts(self) -> dict[str, Layout]:
        return {"in_.weight": Layout((2, self.units, self.width))}

    def scan_macs(self, x_BLC: Tensor) -> int:
        """Three products for each number of the states: Δ A, Δ B u, and the decay of what was there. What
        reads the states is a matrix product and counts as such."""
        return 3 * x_BLC.shape[0] * x_BLC.shape[1] * self.A_log.numel()

    def forward(self, x_BLC: Tensor) -> Tensor:
        """(B, L, C) to the same; what comes later does not count."""
        u_BLU, gate_BLU = self.in_(x_BLC).chunk(2, -1)
        u_BLU = F.silu(self.convolved(u_BLU))
        y_BLU = self.scanned(u_BLU) + self.D * u_BLU
        return self.out(y_BLU * F.silu(gate_BLU))

    def convolved(self, u_BLU: Tensor) -> Tensor:
        taps = self.conv_weight.unbind(1)[::-1]  # the exporter warns of a flip of weights
        kernel_U1K, past = torch.stack(taps, 1)[:, None], self.kernel - 1
        u_BUL = F.conv1d(u_BLU.transpose(1, 2), kernel_U1K, self.conv_bias, padding=past, groups=self.units)
        u_BUL = u_BUL[..., : u_BLU.shape[1]]
        # Of a transposed tensor, a product folds the batch or not, and so rounds, by who requires gradients.
        return u_BUL.transpose(1, 2).contiguous()

    def scanned(self, u_BLU: Tensor) -> Tensor:
        """Mamba's equations 1 and 4: h_t = exp(Δ_t A) h_{t−1} + Δ_t B_t u_t, and C_t · h_t for each unit."""
        exact = torch.promote_types(u_BLU.dtype, torch.float32)
        step_BLU1 = F.softplus(self.step(self.step_rank(u_BLU)).to(exact))[..., None]
        decay_BLUS = (step_BLU1 * -self.A_log.exp()).exp()
        drive_BLUS = step_BLU1 * self.write(u_BLU).to(exact)[..., None, :] * u_BLU.to(exact)[..., None]
        states_BLUS = scan(decay_BLUS, drive_BLUS)
        return (states_BLUS @ self.read(u_BLU).to(exact)[..., None])[..., 0].to(u_BLU.dtype)


BIAS_OF_STEPS = (-6.9, -2.25)
"""Between these, softplus(bias) is from 0.001 to 0.1, even in its logarithm as in Mamba (§3.6): softplus is
near exp there."""


def scan(decay: Tensor, drive: Tensor) -> Tensor:
    """h_t = decay_t · h_{t−1} + drive_t for all t along axis 1, from h_{−1} = 0; (B, L, …) to the same.

    Neighbours are joined into one step of a sequence half as long, which is scanned in turn (Blelloch, 1990):
    3 L products and 2 log₂ L stages. It only ever multiplies decays, so with decays in [0, 1] nothing
    overflows, however long the sequence.
    """
    length = drive.shape[1]
    if length == 1:
        return drive
    if length % 2:
        states = scan(decay[:, :-1], drive[:, :-1])
        return torch.cat([states, decay[:, -1:] * states[:, -1:] + drive[:, -1:]], 1)
    (decay_0, decay_1), (drive_0, drive_1) = (x.unflatten(1, (-1, 2)).unbind(2) for x in (decay, drive))
    second = scan(decay_0 * decay_1, decay_1 * drive_0 + drive_1)
    first = torch.cat([drive_0[:, :1], decay_0[:, 1:] * second[:, :-1] + drive_0[:, 1:]], 1)
    return torch.stack([first, second], 2).flatten(1, 2)
