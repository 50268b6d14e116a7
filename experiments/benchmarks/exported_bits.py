"""Does an exported file answer as was simulated, and what do bits cost in accuracy? Trained models, CIFAR-10.

    python -m experiments.benchmarks.exported_bits DATA [share/shares]

Three plain transformers of 64 positions and six blocks, 6, 13 and 47 million multiply-accumulates, each
trained once on 10,000 images with bits drawn anew for every mixer and channel mixer in every step. Then, with
all parts at the same bits (and once at mixed ones), the 5,000 images of *select* go through the supernet and
through the ONNX file that is exported of it. DATA is as of `cifar10_small`. A size is done once and kept,
with the classes that both gave, in results/exported_bits/.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import torch

from experiments import cifar10_small
from experiments.benchmarks.pieces import Piece, select, share_of, unpacked
from experiments.benchmarks.results import FOLDER, between_marks, table, write
from nas.devices.costs import count, macs
from nas.evaluation import statistics
from nas.export.onnx import export_onnx, onnx_session
from nas.layers import AbsolutePosition, Bits, Block, Global, Mlp, PatchStem
from nas.quantize import DYNAMIC, Quantization
from nas.space import Constraint, Space, oneof
from nas.supernet import Supernet
from nas.tasks import ImageClassification
from nas.training import Recipe, train
from search_spaces.hierarchical import HierarchicalTransformer, Stage, build
from search_spaces.laws import find_a_kernel

EPOCHS = {32: 60, 48: 40, 96: 24}  # by width: some 25 core-minutes for the largest
BATCH = 50  # of both, since dynamic ranges are those of a batch
PLAIN, NESTED, WHOLE = Quantization(), Quantization(nested=True), Quantization(DYNAMIC, images=BATCH)
FP32 = "32"
FORMS = {
    FP32: (Bits(), PLAIN),
    "16": (Bits(16), PLAIN),
    "8, inputs 8": (Bits(8, 8), PLAIN),
    "8, inputs 8, dynamic": (Bits(8, 8), WHOLE),
    "8, inputs 8, nested": (Bits(8, 8), NESTED),
    "8": (Bits(8), PLAIN),
    "4, inputs 8": (Bits(4, 8), PLAIN),
    "4": (Bits(4), PLAIN),
    "4, nested": (Bits(4), NESTED),
    "2": (Bits(2), PLAIN),
    "2, nested": (Bits(2), NESTED),
}
MIXED = "mixed"
IMAGES = 5000
RAW = FOLDER / "exported_bits"
PAGE = FOLDER.parent.parent / "docs" / "bits.md"


def template(width: int, bits: Any) -> HierarchicalTransformer:
    """A ViT for 32 × 32 pixels."""
    blocks = tuple(Block(Global(width // 16, head_dim=16, bits=bits), Mlp(4, bits=bits)) for _ in range(6))
    stage = Stage(width, blocks, None, AbsolutePosition(8))
    return HierarchicalTransformer(PatchStem(4), (stage,), classes=10, channels=3)


def main(data: str, share: str = "") -> None:
    torch.set_num_threads(1)
    task = cifar10_small.cifar10(data)
    for width in share_of(sorted(EPOCHS, reverse=True), share):
        if not _file(width).exists():
            piece(task, width)
    if not share:
        report(task)


def piece(task: ImageClassification, width: int) -> None:
    """Trains one size, and keeps what supernet and files say."""
    bits = Bits(oneof(2, 4, 8, 16, 32), oneof(8, 32))
    space = Space(template(width, bits), [Constraint(Bits, find_a_kernel)])
    supernet = Supernet(build, space)
    recipe = Recipe(epochs=EPOCHS[width], learning_rate=1e-3, device="cpu", threads=1)
    start = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        train(supernet, task, recipe, Path(folder))
    seconds = time.process_time() - start
    forms = {name: (template(width, bits), how) for name, (bits, how) in FORMS.items()}
    forms[MIXED] = (space.sample(np.random.default_rng(0)), PLAIN)
    held = {how: Supernet(build, space, quantization=how).with_state(supernet.state()) for how in HOWS}
    found = [answers(held[how], architecture, task) for architecture, how in forms.values()]
    work = float(macs(count(build(template(width, Bits())), torch.empty(1, 3, 32, 32))))
    figures = {
        "width": width,
        "mmacs": work,
        "epochs": EPOCHS[width],
        "core_seconds": seconds,
        "bytes": [held[how].size_bytes(architecture) for architecture, how in forms.values()],
        "median_difference": [difference for *_, difference in found],
    }
    simulated, exported = (np.array([row[i] for row in found]) for i in (0, 1))
    Piece.write(_file(width), figures, {"simulated": simulated, "exported": exported})
    print(f"{width}: {seconds:.0f} core-seconds", flush=True)


HOWS = (PLAIN, NESTED, WHOLE)


def answers(
    supernet: Supernet, architecture: Any, task: ImageClassification
) -> tuple[np.ndarray, np.ndarray, float]:
    """Classes that the supernet and the ONNX file give, uint8 (IMAGES,), and the median difference of their
    outputs, relative to the largest."""
    buffers = statistics(supernet, architecture, task)
    module = supernet.extract(architecture, buffers=buffers)
    classes, apart, largest = [], [], 0.0
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        path = Path(folder) / "model.onnx"
        export_onnx(module, torch.zeros(2, *task.image_shape), path)
        session = onnx_session(path)
        for chosen in np.array_split(select(task)[:IMAGES], IMAGES // BATCH):
            x = task.prepared(chosen)
            theirs = session.run(["y"], {"x": x.numpy()})[0]
            ours = supernet(architecture, x, buffers=buffers).numpy()
            classes.append((ours.argmax(-1), theirs.argmax(-1)))
            apart.append(np.abs(theirs - ours).ravel())
            largest = max(largest, float(np.abs(ours).max()))
    ours, theirs = (np.concatenate(rows).astype(np.uint8) for rows in zip(*classes, strict=True))
    return ours, theirs, float(np.median(np.concatenate(apart))) / largest


# --- what all of them say -------------------------------------------------------------------------


def report(task: ImageClassification) -> None:
    np.save(RAW / "labels.npy", task.labels[select(task)].astype(np.uint8))
    results = evaluated()
    print(json.dumps(results, indent=1))
    draw(results)
    print(f"written to {write('exported_bits', results)}")
    PAGE.write_text(with_table(PAGE.read_text(), results))


def evaluated() -> dict[str, Any]:
    """Every figure of the sizes that there are, from the raw classes alone."""
    labels = np.load(RAW / "labels.npy", allow_pickle=False)
    sizes = []
    for width in (width for width in EPOCHS if _file(width).exists()):
        found = Piece.read(_file(width), labels)
        with np.load(_file(width), allow_pickle=False) as data:
            agreement = 100 * (unpacked(data["simulated"]) == unpacked(data["exported"])).mean(1)
        simulated, files = (found.accuracies(name) for name in ("simulated", "exported"))
        right = found.right["exported"]
        forms = {}
        for i, name in enumerate([*FORMS, MIXED]):
            lost = 100 * (right[0].astype(float) - right[i])
            forms[name] = {
                "simulated": round(float(simulated[i]), 3),
                "exported": round(float(files[i]), 3),
                "agreement": round(float(agreement[i]), 3),
                "median_difference": found.figures["median_difference"][i],
                "bytes": found.figures["bytes"][i],
                "lost_points": round(float(lost.mean()), 3),
                "lost_error": round(float(lost.std() / np.sqrt(len(lost))), 3),
            }
        about = {key: found.figures[key] for key in ("width", "mmacs", "epochs", "core_seconds")}
        sizes.append(about | {"forms": forms})
    return {"sizes": sizes, "images": IMAGES, "without_2_and_16": _without_2_and_16(labels)}


def _without_2_and_16(labels: np.ndarray) -> dict[str, float]:
    """Accuracy at 32 bits by width of the same trainings without these among the choices: an earlier version
    of this file had them, and its raw classes are kept."""
    pieces = {w: Piece.read(RAW / "without_2_and_16" / f"{w}.npz", labels) for w in EPOCHS}
    return {str(w): round(float(piece.accuracies("simulated")[0]), 3) for w, piece in pieces.items()}


def with_table(page: str, results: dict[str, Any]) -> str:
    """`page` with a row for each form of each size."""
    rows = []
    for size in results["sizes"]:
        for name, f in size["forms"].items():
            rows.append(
                (
                    f"{size['mmacs']:.0f}",
                    name,
                    f"{f['simulated']:.2f}",
                    f"{f['exported']:.2f}",
                    f"{f['agreement']:.2f}",
                    f"{f['lost_points']:+.2f} ± {f['lost_error']:.2f}",
                    f"{100 * f['bytes'] / size['forms'][FP32]['bytes']:.1f}",
                )
            )
    columns = (
        "MMACs",
        "bits",
        "simulated, %",
        "exported, %",
        "same answer, %",
        "lost to 32 bits, points",
        "bytes, %",
    )
    return between_marks(page, "python -m experiments.benchmarks.exported_bits DATA", table(columns, rows))


def draw(results: dict[str, Any]) -> None:
    """results/exported_bits.png."""
    figure, axis = plt.subplots(figsize=(6, 3), layout="constrained")
    work = [size["mmacs"] for size in results["sizes"]]
    for name in [*FORMS, MIXED]:
        forms = [size["forms"][name] for size in results["sizes"]]
        (line,) = axis.plot(work, [f["exported"] for f in forms], "o-", ms=3, label=name)
        axis.plot(work, [f["simulated"] for f in forms], "x", ms=6, color=line.get_color())
    axis.set(xscale="log", xlabel="million multiply-accumulates", ylabel="accuracy, %")
    axis.set_xticks(work, [f"{w:.0f}" for w in work])
    axis.minorticks_off()
    axis.legend(fontsize=7, frameon=False, title="bits (× simulated)", title_fontsize=7)
    figure.savefig(FOLDER / "exported_bits.png", dpi=150)


def _file(width: int) -> Path:
    return RAW / f"{width}.npz"


if __name__ == "__main__":
    main(*sys.argv[1:])
