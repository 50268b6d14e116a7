"""Published backbones as points of the hierarchical space, each from its paper's table of variants.

A function gives the architecture; `from_pretrained` gives the module with a published checkpoint's weights.
`search_spaces/pretrained/NAME.py` says where the reference is and how its weights are called.
"""

from __future__ import annotations

from importlib import import_module
from pathlib import Path

from torch import nn

from nas.errors import DataError
from nas.layers import Block, LayerNorm, Mlp, NoPositionEncoding, PatchMerging, PatchStem, Window
from nas.training import load_tensors
from search_spaces.hierarchical import HierarchicalTransformer, Stage, build
from search_spaces.pretrained.translation import load, translated


def from_pretrained(name: str, path: str | Path) -> nn.Module:
    """The published model `name` with the weights of a safetensors file, in evaluation mode.

    Example:
        >>> from_pretrained("swin_tiny", "swin-tiny-patch4-window7-224/model.safetensors")

    Raises:
        DataError: an unknown name, or a file that is none of that model's.
        RunError: a damaged file.
    """
    if name not in POINTS:
        raise DataError(f"A published model must be one of {', '.join(sorted(POINTS))}: got {name!r}.")
    model = import_module(f"search_spaces.pretrained.{name}")
    path = Path(path)
    if path.suffix != ".safetensors" or not path.is_file():
        raise DataError(f"A checkpoint must be a .safetensors file that exists: got {path}.")
    weights = translated(load_tensors(path)[0], model.RENAMES)
    classes = len(weights["head.linear.bias"])
    return load(build(POINTS[name](classes)), weights).eval()


def swin_tiny(classes: int = 1000) -> HierarchicalTransformer:
    """Swin-T (Liu et al., 2021, Table 7)."""

    def stage(width: int, depth: int, heads: int) -> Stage:
        blocks = tuple(
            Block(Window(heads=heads, size=7, shift=bool(i % 2), head_dim=32), Mlp(4)) for i in range(depth)
        )
        down = PatchMerging(bias=False) if width > 96 else None
        return Stage(width, blocks, down, NoPositionEncoding())

    return HierarchicalTransformer(
        PatchStem(4, norm=LayerNorm()),
        (stage(96, 2, 3), stage(192, 2, 6), stage(384, 6, 12), stage(768, 2, 24)),
        classes,
        channels=3,
    )


POINTS = {point.__name__: point for point in (swin_tiny,)}
