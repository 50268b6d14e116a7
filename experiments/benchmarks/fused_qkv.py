"""Does one product for q, k and v pay on ONNX Runtime? Four layers of 64 positions, at 32 and 8 bits.

    python -m experiments.benchmarks.fused_qkv

Three products against one whose outputs are split, timed in turn, at batch 1 and 8, on one thread.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.benchmarks.results import write
from nas.calibration import gathering
from nas.devices import OnnxRuntime
from nas.devices.timing import round_robin, timing_lock
from nas.export.onnx import export_onnx
from nas.layers import Bits
from nas.quantize import Quantization, at_bits

WIDTHS, BATCHES, LAYERS, ROUNDS = (48, 96, 192), (1, 8), 4, 100


class Attention(nn.Module):
    """(B, N, C) to the same, its q, k and v by three layers or by one."""

    def __init__(self, width: int, fused: bool) -> None:
        super().__init__()
        self.qkv = nn.ModuleList(nn.Linear(width, width) for _ in "qkv")
        if fused:
            self.qkv = nn.ModuleList([nn.Linear(width, 3 * width)])

    def forward(self, x: Tensor) -> Tensor:
        made = [layer(x) for layer in self.qkv]
        parts = made if len(made) == 3 else made[0].split(x.shape[-1], -1)
        q, k, v = (p.reshape(*x.shape[:2], -1, 16).transpose(1, 2) for p in parts)
        y = ((q @ k.transpose(2, 3) / 4).softmax(-1) @ v).transpose(1, 2)
        return x + y.reshape(x.shape)


def main() -> None:
    torch.set_num_threads(1)
    rows = []
    for width in WIDTHS:
        for bits in (Bits(), Bits(8, 8)):
            for batch in BATCHES:
                speedup = measured(width, bits, batch)
                rows.append({"width": width, "bits": bits.weight, "batch": batch, "speedup": speedup})
                print(f"width {width}, {bits.weight} bits, batch {batch}: {speedup:.3f} times as fast")
    print(f"written to {write('fused_qkv', {'rows': rows, 'layers': LAYERS, 'rounds': ROUNDS})}")


def measured(width: int, bits: Bits, batch: int) -> float:
    """How many times as fast one product is."""
    x = torch.rand(batch, 64, width)
    runs = []
    with tempfile.TemporaryDirectory() as folder:
        for fused in (False, True):
            net = nn.Sequential(*(Attention(width, fused) for _ in range(LAYERS)))
            module, _ = at_bits(net, lambda _: bits, Quantization())
            with torch.no_grad(), gathering(module):
                module(x)
            path = Path(folder) / f"{fused}.onnx"
            export_onnx(module, x, path)
            runs.append(OnnxRuntime().load(path, x.numpy()))
        with timing_lock():
            apart, together = round_robin(runs, rounds=ROUNDS).ms
    return round(float(apart / together), 3)


if __name__ == "__main__":
    main()
