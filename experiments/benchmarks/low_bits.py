"""What few bits buy on ONNX Runtime, by size of model: latency at batch 1 and 8, and bytes, against fp32.

    python -m experiments.benchmarks.low_bits

Plain transformers of 64 positions and six blocks, 13 to 320 million multiply-accumulates, random weights; all
forms of one size are timed in turn, in one process, on one thread. The fastest form of 8 bits is the default
of `nas.quantize.Quantization`. Accuracy is not looked at here: random weights would say nothing.
"""

from __future__ import annotations

import itertools
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import torch

from experiments.benchmarks.results import FOLDER, between_marks, table, write
from nas.devices import OnnxRuntime
from nas.devices.costs import count, macs
from nas.devices.timing import round_robin, timing_lock
from nas.export.onnx import export_onnx, kernels_of
from nas.layers import AbsolutePosition, Bits, Block, Global, Mlp, PatchStem
from nas.quantize import DYNAMIC, GROUP, Quantization
from nas.space import Space
from nas.supernet import Supernet
from search_spaces.hierarchical import HierarchicalTransformer, Stage, build

WIDTHS = (48, 64, 96, 128, 192, 256)
BATCHES = (1, 8)
ROUNDS = 60
PAGE = Path(__file__).parents[2] / "docs" / "bits.md"


@dataclass(frozen=True)
class Form:
    """Bits of all blocks, and how they are computed."""

    name: str
    bits: Bits
    quantization: Quantization = Quantization()
    portable: bool = False


FP32 = "fp32"
FORMS = (
    Form(FP32, Bits()),
    Form("8 bits, calibrated ranges", Bits(8, 8)),
    Form("8 bits, dynamic ranges", Bits(8, 8), Quantization(DYNAMIC, images=8)),
    Form("8 bits in blocks (nested)", Bits(8, 8), Quantization(nested=True)),
    Form("8 bits, QDQ", Bits(8, 8), portable=True),
    Form("8-bit weights", Bits(8)),
    Form("4-bit weights, 8-bit inputs", Bits(4, 8)),
    Form("4-bit weights", Bits(4)),
)


def architecture(width: int, bits: Bits) -> HierarchicalTransformer:
    """A ViT for 32 × 32 pixels."""
    block = Block(Global(width // 16, head_dim=16, bits=bits), Mlp(4, bits=bits))
    return HierarchicalTransformer(
        PatchStem(4), (Stage(width, (block,) * 6, None, AbsolutePosition(8)),), classes=10, channels=3
    )


def main() -> None:
    torch.set_num_threads(1)
    rows: list[dict[str, Any]] = []
    for width in WIDTHS:
        row = measured(width)
        rows.append(row)
        print(f"{row['mmacs']:.0f} MMACs", {n: f["speedup"] for n, f in row["forms"].items()}, flush=True)
    results = {"sizes": rows, "group": GROUP, "positions": 64, "rounds": ROUNDS}
    draw(rows)
    print(f"written to {write('low_bits', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), rows))


def with_table(page: str, rows: list[dict[str, Any]]) -> str:
    """`page` with a row for each form, and a column for each size."""

    def cell(found: dict[str, Any]) -> str:
        first, second = found["speedup"].values()
        return f"{first:.2f} \\| {second:.2f}"

    columns = ["MMACs", *(f"{row['mmacs']:.0f}" for row in rows), "bytes, % of fp32"]
    lines = []
    for form in FORMS[1:]:
        of = [row["forms"][form.name] for row in rows]
        shares = [100 * found["share_of_fp32"] for found in of]
        lines.append([form.name, *map(cell, of), f"{max(shares):.1f} to {min(shares):.1f}"])
    return between_marks(page, "python -m experiments.benchmarks.low_bits", table(columns, lines))


def measured(width: int) -> dict[str, Any]:
    """All forms of one size."""
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for form in FORMS:
            place = Path(folder) / form.name.replace(" ", "_")
            place.mkdir()
            files[form.name] = exported(form, width, place)
        latency: dict[int, dict[str, tuple[float, float]]] = {
            batch: timed({name: file for name, (file, _) in files.items()}, batch) for batch in BATCHES
        }
    forms = {}
    for form in FORMS:
        file, payload = files[form.name]
        forms[form.name] = {
            "ms": {batch: latency[batch][form.name][0] for batch in BATCHES},
            "spread": {batch: latency[batch][form.name][1] for batch in BATCHES},
            "speedup": {
                batch: round(latency[batch][FP32][0] / latency[batch][form.name][0], 3) for batch in BATCHES
            },
            "weight_bytes": payload,
            "share_of_fp32": round(payload / files[FP32][1], 4),
            "kernels": file.kernels,
        }
    plain = build(architecture(width, Bits()))
    work = float(macs(count(plain, torch.empty(1, 3, 32, 32))))
    return {"width": width, "mmacs": work, "forms": forms}


@dataclass(frozen=True)
class File:
    path: Path
    kernels: dict[str, int]


def exported(form: Form, width: int, folder: Path) -> tuple[File, int]:
    """An ONNX file of random weights, with the kernels that the runtime's own profile shows, and bytes of
    its weights."""
    chosen = architecture(width, form.bits)
    supernet = Supernet(build, Space(chosen), quantization=form.quantization)
    x = torch.rand(8, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    module = supernet.extract(chosen, buffers=supernet.calibrate(chosen, [x]))
    path = folder / "model.onnx"
    export_onnx(module, x[:2], path, portable=form.portable)
    ran = kernels_of(path, x[:1].numpy())
    kernels = {name: n for name, n in ran.items() if "MatMul" in name or "Gemm" in name}
    return File(path, kernels), supernet.size_bytes(chosen)


def timed(files: dict[str, File], batch: int) -> dict[str, tuple[float, float]]:
    """Milliseconds and their spread of each file, timed in turn."""
    x = torch.rand(batch, 3, 32, 32).numpy()
    runtime = OnnxRuntime()
    runs = [runtime.load(file.path, x) for file in files.values()]
    with timing_lock():
        timing = round_robin(runs, rounds=ROUNDS)
    return dict(zip(files, zip(timing.ms.tolist(), timing.spread_ms.tolist(), strict=True), strict=True))


def draw(rows: list[dict[str, Any]]) -> None:
    """results/low_bits.png."""
    figure, axes = plt.subplots(1, 3, figsize=(11, 3.4), layout="constrained")
    work = [row["mmacs"] for row in rows]
    colours = itertools.cycle(plt.get_cmap("tab10").colors)  # type: ignore[attr-defined]
    for form, colour in zip(FORMS, colours, strict=False):
        for axis, batch in zip(axes, BATCHES, strict=False):
            axis.plot(work, [r["forms"][form.name]["speedup"][batch] for r in rows], "o-", ms=3, color=colour)
            axis.set(title=f"speed-up, batch {batch}")
        shares = [100 * r["forms"][form.name]["share_of_fp32"] for r in rows]
        axes[2].plot(work, shares, "o-", ms=3, color=colour, label=form.name)
    axes[2].set(title="bytes of weights, % of fp32")
    for axis in axes:
        axis.set(xscale="log", xlabel="million multiply-accumulates")
        axis.set_xticks(work, [f"{w:.0f}" for w in work])
        axis.minorticks_off()
    axes[2].legend(fontsize=6, frameon=False)
    figure.savefig(FOLDER / "low_bits.png", dpi=150)


if __name__ == "__main__":
    main()
