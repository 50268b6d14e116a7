"""Published models as points, against their references: parameters, answers, multiply-accumulates.

    python -m experiments.benchmarks.published_points

Where a reference is in no package, its answers are in `golden/NAME.json` (see `Golden`).
"""

from __future__ import annotations

import copy
import dataclasses
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.devices.costs import count, macs
from search_spaces.hierarchical import HierarchicalTransformer, build
from search_spaces.pretrained.translation import load, translated

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

    parameters: int
    reference_parameters: int
    mmacs: float
    reference_mmacs: float
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
    shapes: dict[str, tuple[int, ...]]
    parameters: int
    mmacs: float
    answers: dict[int, list[list[float]]]  # by side of the image, (2, classes)

    @classmethod
    def read(cls, path: Path) -> Golden:
        data = json.loads(path.read_text())
        shapes = {n: tuple(s) for n, s in data["shapes"].items()}
        answers = {int(side): y for side, y in data["answers"].items()}
        return cls(data["made"], shapes, data["parameters"], data["mmacs"], answers)

    @classmethod
    def record(cls, path: Path, reference: nn.Module, sides: tuple[int, ...], made: str) -> None:
        """Writes the golden answers of a module of the published repository."""
        shapes = shapes_of(reference)
        reference.eval().load_state_dict(randomised(shapes, reference.state_dict()))
        answers = {side: answer(copy.deepcopy(reference), images(side)).tolist() for side in sides}
        cost = mmacs(reference, sides[0])
        golden = cls(made, shapes, parameters(reference), cost, answers)
        path.write_text(json.dumps(dataclasses.asdict(golden)) + "\n")


def compare(point: HierarchicalTransformer, model: Any) -> tuple[Parity, nn.Module]:
    """The parity of a point with its reference, and our module with the reference's weights."""
    if hasattr(model, "GOLDEN"):
        golden = Golden.read(model.GOLDEN)
        state, shape = randomised(golden.shapes), (golden.parameters, golden.mmacs)
        answers = {side: torch.tensor(golden.answers[side]) for side in model.SIDES}
    else:
        reference = with_random_weights(model.reference(), model.SIDES[0])
        state = reference.state_dict()
        shape = parameters(reference), mmacs(reference, model.SIDES[0])
        # Copies: some implementations note the size of the first image that they see.
        answers = {side: answer(copy.deepcopy(reference), images(side)) for side in model.SIDES}
    ours = load(build(point), translated(state, model)).eval()
    difference = {side: relative(answer(ours, images(side)), y) for side, y in answers.items()}
    return Parity(parameters(ours), shape[0], mmacs(ours, model.SIDES[0]), shape[1], difference), ours


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def mmacs(module: nn.Module, side: int) -> float:
    return float(macs(count(module, torch.empty(1, 3, side, side, device="meta"))))


def skip_block(module: nn.Module, stage: int, block: int, x: Tensor) -> Tensor:
    """The answer when one block passes its input on."""
    kept = module.stages[stage].blocks[block]
    module.stages[stage].blocks[block] = Skip()
    try:
        return answer(module, x)
    finally:
        module.stages[stage].blocks[block] = kept


class Skip(nn.Module):
    def forward(self, *parts: Tensor) -> tuple[Tensor, ...]:
        return parts
