"""Published models as points, against their references: parameters, answers, multiply-accumulates.

    python -m experiments.benchmarks.published_points

also writes the table of docs/published-models.md. Where a reference is in no package, its answers are in
`golden/NAME.json` (see `Golden`).
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from experiments.benchmarks.results import FOLDER, between_marks, table, write
from nas.devices.costs import count, macs
from nas.layers.block import PoolingBlock
from search_spaces.hierarchical import HierarchicalTransformer, build
from search_spaces.pretrained.translation import load, translated
from search_spaces.published import POINTS

SIDE = 224  # for which all were published
RELATIVE = 1e-4
LIVELY = 0.01


def randomised(
    shapes: Mapping[str, tuple[int, ...]], kept: Mapping[str, Tensor] | None = None
) -> dict[str, Tensor]:
    """Weights by name and shape alone, such that every part of a network matters: layer scales, norms
    and biases too. `kept` are values that are not weights (indices)."""
    generator = torch.Generator().manual_seed(0)
    return {n: _random(n, shape, (kept or {}).get(n), generator) for n, shape in sorted(shapes.items())}


def _random(name: str, shape: tuple[int, ...], kept: Tensor | None, generator: torch.Generator) -> Tensor:
    if kept is not None and not kept.is_floating_point():
        return kept
    if name.endswith("num_batches_tracked"):
        return torch.tensor(0)
    normal = torch.randn(shape, generator=generator)
    if name.endswith("running_var"):
        return 0.5 + torch.rand(shape, generator=generator)
    if "bias" in name and len(shape) > 1:  # tables of position biases
        return 0.5 * normal
    if "pos" in name or "token" in name:
        return 0.5 * normal
    if len(shape) > 1:
        return normal / float(np.prod(shape[1:])) ** 0.5
    if name.endswith(("bias", "running_mean")):
        return 0.2 * normal
    return 0.5 + torch.rand(shape, generator=generator)  # norms, layer scales


def with_random_weights(reference: nn.Module, side: int) -> nn.Module:
    """In evaluation mode. Batch norms then get the statistics of random images: with others activations grow
    from block to block, until a last bit decides which way a softmax goes."""
    reference = reference.eval()
    reference.load_state_dict(randomised(shapes_of(reference), reference.state_dict()))
    norms = [m for m in reference.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    if norms:
        for norm in norms:
            norm.train()
            norm.momentum = 1.0
        answer(reference, images(side))
    return reference.eval()


def shapes_of(module: nn.Module) -> dict[str, tuple[int, ...]]:
    return {n: tuple(t.shape) for n, t in module.state_dict().items()}


@dataclass(frozen=True)
class Parity:
    """How a point compares with its reference."""

    implementation: str  # of the reference: its class, or how its answers were recorded
    parameters: int
    reference_parameters: int
    mmacs: float  # for an image of 224 × 224, by our counter
    reference_mmacs: float  # by PyTorch's
    difference: dict[int, float]  # by side of the image: largest, relative to the largest answer


def images(side: int) -> Tensor:
    return torch.randn(2, 3, side, side, generator=torch.Generator().manual_seed(side))


def relative(ours: Tensor, reference: Tensor) -> float:
    return float((ours - reference).abs().max() / reference.abs().max())


def answer(module: nn.Module, x: Tensor) -> Tensor:
    with torch.inference_mode():
        y = module(x)
    return getattr(y, "logits", y)


@dataclass(frozen=True)
class Golden:
    """What a reference that is in no package answered, and what it is made of.

    Written by `record`, from the published repository's own code, once; `made` says how.
    """

    made: str
    shapes: dict[int, dict[str, tuple[int, ...]]]  # by side of the images that it was built for
    parameters: int
    mmacs: float
    answers: dict[int, list[list[float]]]  # by side of the image, (2, classes)

    @classmethod
    def read(cls, path: Path) -> Golden:
        data = json.loads(path.read_text())
        shapes = {int(at): {n: tuple(s) for n, s in of.items()} for at, of in data["shapes"].items()}
        answers = {int(side): y for side, y in data["answers"].items()}
        return cls(data["made"], shapes, data["parameters"], data["mmacs"], answers)

    @classmethod
    def of(cls, references: Mapping[int, nn.Module], made: str) -> Golden:
        """What the same model of the published repository, built for each side, answers."""
        answers = {}
        for side, reference in references.items():
            reference.eval().load_state_dict(randomised(shapes_of(reference), reference.state_dict()))
            answers[side] = answer(reference, images(side)).tolist()
        reference = references[SIDE]
        cost = torch_mmacs(reference, SIDE)
        shapes = {side: shapes_of(built) for side, built in references.items()}
        return cls(made, shapes, parameters(reference), cost, answers)

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(dataclasses.asdict(self)) + "\n")


def compare(point: HierarchicalTransformer, model: Any) -> tuple[Parity, nn.Module]:
    """The parity of a point with its reference, and our module with the reference's weights."""
    if hasattr(model, "GOLDEN"):
        golden = Golden.read(model.GOLDEN)
        state, shape = randomised(golden.shapes[SIDE]), (golden.made, golden.parameters, golden.mmacs)
        answers = {side: torch.tensor(golden.answers[side]) for side in model.SIDES}
    else:
        reference = with_random_weights(model.reference(), model.SIDES[0])
        state = reference.state_dict()
        shape = class_of(reference), parameters(reference), torch_mmacs(reference, SIDE)
        # Copies: some implementations note the size of the first image that they see.
        answers = {side: answer(copy.deepcopy(reference), images(side)) for side in model.SIDES}
    ours, difference = build(point), {}
    for side in reversed(model.SIDES):  # `ours` is left with the weights for the first
        renames = model.at(side) if hasattr(model, "at") else model
        load(ours, translated(state, renames)).eval()
        difference[side] = relative(answer(ours, images(side)), answers[side])
    for side in getattr(model, "BUILT_FOR", ()):
        difference[side] = _at_another_side(model, side)
    made, weights, work = shape
    return Parity(made, parameters(ours), weights, mmacs(ours, SIDE), work, difference), ours


def _at_another_side(model: Any, side: int) -> float:
    """The difference where both are built for images of another side."""
    if hasattr(model, "GOLDEN"):
        golden = Golden.read(model.GOLDEN)
        state, answers = randomised(golden.shapes[side]), torch.tensor(golden.answers[side])
    else:
        reference = with_random_weights(model.reference(side), side)
        state, answers = reference.state_dict(), answer(reference, images(side))
    point = POINTS[model.__name__.rpartition(".")[2]](side=side)
    ours = load(build(point), translated(state, model)).eval()
    return relative(answer(ours, images(side)), answers)


def class_of(module: nn.Module) -> str:
    return f"{type(module).__module__}.{type(module).__qualname__}"


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def mmacs(module: nn.Module, side: int) -> float:
    """Millions of multiply-accumulates for one image, by our counter."""
    return float(macs(count(module, torch.empty(1, 3, side, side, device="meta"))))


def torch_mmacs(module: nn.Module, side: int) -> float:
    """The same by PyTorch's own counter, which does not know Fourier transforms.

    On the meta device, where attention comes apart into products: on a CPU it is one kernel, of which that
    counter knows nothing (7.8 % of ViT-S).
    """
    module = copy.deepcopy(module).to("meta").eval().requires_grad_(False)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(torch.empty(1, 3, side, side, device="meta"))
    return counter.get_total_flops() / 2e6


def without(module: nn.Module, stage: int, block: int, x: Tensor) -> Tensor:
    """The answer when one block does nothing."""
    blocks = module.stages[stage].blocks
    kept = blocks[block]
    blocks[block] = Skip(kept)
    try:
        return answer(module, x)
    finally:
        blocks[block] = kept


class Skip(nn.Module):
    """What goes past a block's branches: its input; where it pools queries, that projected and pooled."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        if not isinstance(self.block, PoolingBlock):
            return parts
        (x,) = parts
        return (self.block.pooling.pooled(self.block.skip(self.block.norm1(x))),)


def changes(module: nn.Module, x: Tensor) -> dict[str, float]:
    """By how much the answer changes without each block, by its path, relative to the largest answer."""
    whole = answer(module, x)
    return {
        f"stages.{s}.blocks.{b}": relative(without(module, s, b, x), whole)
        for s, stage in enumerate(module.stages)
        for b in range(len(stage.blocks))
    }


# --- the table ------------------------------------------------------------------------------------

PAGE = FOLDER.parent.parent / "docs" / "published-models.md"
COLUMNS = (
    "point",
    "parameters",
    "MMACs",
    "of the reference",
    "largest difference (side)",
    "least change without a block",
    "reference",
)


def main() -> None:
    torch.set_num_threads(1)
    rows = {}
    for name in sorted(POINTS):
        rows[name] = row = measured(POINTS[name](), import_module(f"search_spaces.pretrained.{name}"))
        print(*line(name, row), flush=True)
    print(f"written to {write('published_points', {'points': rows})}")
    PAGE.write_text(with_table(PAGE.read_text(), rows))


def measured(point: HierarchicalTransformer, model: Any) -> dict[str, Any]:
    """All that is reported of a point."""
    parity, ours = compare(point, model)
    least = changes(ours, images(model.SIDES[0])[:1])
    where = min(least, key=lambda path: least[path])
    return dataclasses.asdict(parity) | {
        "source": model.SOURCE,
        "one side because": getattr(model, "ONE_SIDE_BECAUSE", None),
        "least change without a block": least[where],
        "that block": where,
        "blocks": len(least),
    }


def with_table(page: str, rows: Mapping[str, Any]) -> str:
    """The page with the table of `rows` between its marks."""
    cells = [line(name, row) for name, row in rows.items()]
    return between_marks(page, "python -m experiments.benchmarks.published_points", table(COLUMNS, cells))


def line(name: str, row: Mapping[str, Any]) -> list[str]:
    apart = ", ".join(f"{d:.1e} ({side})" for side, d in sorted(row["difference"].items(), key=_by_side))
    same = row["parameters"] == row["reference_parameters"]
    weights = f"{row['parameters']:,}" + ("" if same else f" (reference: {row['reference_parameters']:,})")
    return [
        f"`{name}`",
        weights,
        f"{row['mmacs']:,.1f}",
        f"{row['reference_mmacs']:,.1f}",
        apart,
        f"{row['least change without a block']:.1%} of {row['blocks']}",
        row["source"],
    ]


def _by_side(item: tuple[Any, float]) -> int:
    return int(item[0])  # in JSON, keys are strings


if __name__ == "__main__":
    main()
