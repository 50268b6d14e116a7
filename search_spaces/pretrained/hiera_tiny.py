"""Hiera-T as in `timm`."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: hiera_tiny_224"
SIDES = (224,)
BUILT_FOR = (256,)  # sides for which it can be built, too


def reference(side: int = 224) -> nn.Module:
    """The published implementation, built for images of that side, with random weights."""
    prepare()
    import timm

    return timm.create_model("hiera_tiny_224", img_size=side)


def table(tensor: Tensor) -> Tensor:
    """(1, side · side, C) to (side, side, C)."""
    side = round(tensor.shape[1] ** 0.5)
    return tensor[0].unflatten(0, (side, side))


def _block(theirs: int, stage: int, ours: int) -> list[Rename]:
    block, here = rf"blocks\.{theirs}\.", f"stages.{stage}.blocks.{ours}."
    return [
        Rename(block + r"(norm\d)\.(\w+)", here + r"\1.\2"),
        Rename(block + r"proj\.(\w+)", here + r"skip.\1"),
        Rename(block + r"attn\.qkv\.(\w+)", tuple(here + rf"mixer.{p}.\1" for p in "qkv")),
        Rename(block + r"attn\.proj\.(\w+)", here + r"mixer.o.\1"),
        Rename(block + r"mlp\.fc1\.(\w+)", here + r"ffn.up.\1"),
        Rename(block + r"mlp\.fc2\.(\w+)", here + r"ffn.down.\1"),
    ]


_places = [(stage, block) for stage, depth in enumerate((1, 2, 7, 2)) for block in range(depth)]

RENAMES = [
    Rename(r"pos_embed", "stages.0.position.table", table),
    Rename(r"patch_embed\.proj\.(\w+)", r"stem.conv.\1"),
    *(rename for i, place in enumerate(_places) for rename in _block(i, *place)),
    Rename(r"head\.norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.fc\.(\w+)", r"head.linear.\1"),
]
