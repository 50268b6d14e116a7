"""A learned filter of the frequencies of the map."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers.choice import Mixer
from nas.layers.fields import gene
from nas.layout import Layout


@dataclass(frozen=True)
class Spectral(Mixer):
    """Fourier transform of the map, product with a complex number per frequency and channel, and back
    (GFNet, Rao et al., 2021, §3.2; SpectFormer, Patro et al., 2023, §3.1): a depthwise convolution that is
    circular and as large as the map.

    Attributes:
        side: of the map for whose frequencies the filter has numbers; to any other map it is interpolated,
            as a function of frequency in cycles per position.
    """

    side: int = gene(4, 8)

    def build(self, width: int) -> nn.Module:
        return SpectralGate(width, self.side)


class SpectralGate(nn.Module):
    """Computes in float32, or in float64 where the map is float64, also under autocast.

    `spectral_gate` is (side, side // 2 + 1, C, 2): frequencies down the columns, from −(side // 2) up, and
    along the rows, from 0 up (the rest are conjugates), in cycles per map; real and imaginary part. A smaller
    side cut out of it keeps the low frequencies.
    """

    def __init__(self, width: int, side: int) -> None:
        super().__init__()
        self.side = side
        self.spectral_gate = nn.Parameter(torch.empty(side, side // 2 + 1, width, 2))
        nn.init.normal_(self.spectral_gate, std=0.02)

    def layouts(self) -> dict[str, Layout]:
        return {"spectral_gate": Layout(tuple(self.spectral_gate.shape), centred=(0,))}

    def forward(self, x_BHWC: Tensor) -> Tensor:
        """(B, H, W, C) to the same."""
        _, H, W, _ = x_BHWC.shape
        x = x_BHWC.to(torch.promote_types(x_BHWC.dtype, torch.float32))
        gate = self.resized(int(H), int(W))
        if torch.onnx.is_in_onnx_export():  # its exporter knows no Fourier transform
            return filtered_by_products(x, gate)
        spectrum = torch.fft.rfft2(x, dim=(1, 2), norm="ortho") * torch.view_as_complex(gate)
        return torch.fft.irfft2(spectrum, s=(H, W), dim=(1, 2), norm="ortho").to(x_BHWC.dtype)

    def resized(self, height: int, width: int) -> Tensor:
        """The gate of a map, (H, W // 2 + 1, C, 2), rows as Fourier transforms order them: 0, 1 … −2, −1."""
        if height == width == self.side:
            return self.spectral_gate.roll(-(self.side // 2), 0)
        places = torch.from_numpy(places_of(height, width, self.side))
        places = places.to(self.spectral_gate.device, self.spectral_gate.dtype)
        planes = F.grid_sample(
            self.spectral_gate.permute(3, 2, 0, 1),  # (2, C, side, side // 2 + 1)
            places.expand(2, -1, -1, -1),
            mode="bicubic",
            padding_mode="border",
            align_corners=True,
        )
        return planes.permute(2, 3, 1, 0).contiguous()


@lru_cache(maxsize=64)
def places_of(height: int, width: int, side: int) -> np.ndarray:
    """Where the frequencies of a map lie in the gate of another, (H, W // 2 + 1, 2), −1 to 1, x then y.

    A frequency keeps its cycles per position, so 0 stays 0.
    """
    rows = np.fft.fftfreq(height) * side + side // 2
    columns = np.fft.rfftfreq(width) * side
    y, x = np.meshgrid(rows, columns, indexing="ij")
    ends = np.array([max(1, side // 2), max(1, side - 1)])
    return np.stack([x, y], -1) / ends * 2 - 1


def filtered_by_products(x_BHWC: Tensor, gate: Tensor) -> Tensor:
    """What the gate does, with products of matrices for transforms; p is 0 for real, 1 for imaginary."""
    _, H, W, _ = x_BHWC.shape
    matrices = (torch.from_numpy(m).to(x_BHWC.device, x_BHWC.dtype) for m in transforms(int(H), int(W)))
    rows, columns, rows_back, columns_back = matrices
    z = torch.einsum("bhwc,wvp->bhvcp", x_BHWC, columns)
    real, imaginary = torch.einsum("bhvcp,hpgq->bgvcq", z, rows).unbind(-1)
    a, b = gate.unbind(-1)
    z = torch.stack([real * a - imaginary * b, real * b + imaginary * a], -1)
    z = torch.einsum("bhvcp,hpgq->bgvcq", z, rows_back)
    return torch.einsum("bhvcp,vpw->bhwc", z, columns_back)


@lru_cache(maxsize=64)
def transforms(height: int, width: int) -> tuple[np.ndarray, ...]:
    """Of rows, of columns, and back, as real matrices: what each makes of 1 and of i at every place."""
    units, half = np.stack([np.eye(height), 1j * np.eye(height)], 1), np.eye(width // 2 + 1)
    rows, rows_back = np.fft.fft(units, norm="ortho"), np.fft.ifft(units, norm="ortho")
    columns = np.fft.rfft(np.eye(width), norm="ortho")
    columns_back = np.fft.irfft(np.stack([half, 1j * half], 1), width, norm="ortho")
    split = (np.stack([m.real, m.imag], -1) for m in (rows, columns, rows_back))
    return (*split, columns_back)
