"""MViTv2-T as in `timm`."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: mvitv2_tiny"
SIDES = (224, 192)  # at larger ones, the reference reads past the end of its tables


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    import timm

    return timm.create_model("mvitv2_tiny")


def centred(span: int, queries: int, keys: int) -> Callable[[Tensor], Tensor]:
    """Moves offset 0 to the middle of a table: the reference has it where the last key's first query is."""
    step = max(1, queries // keys)
    return lambda tensor: tensor.roll(span - 1 - (keys - 1) * step, 0)


def _tables(image_side: int) -> list[Rename]:
    renames = []
    for stage, depth in enumerate((1, 2, 5, 2)):
        side, stride = image_side // 4 // 2**stage, max(1, 4 // 2**stage)
        for block in range(depth):
            scale = 2 if stage and block == 0 else 1  # keys are of the map before queries were pooled
            span = 56 // 2**stage * max(1, scale // stride)
            renames.append(
                Rename(
                    rf"stages\.{stage}\.blocks\.{block}\.attn\.rel_pos_(\w)",
                    rf"stages.{stage}.blocks.{block}.mixer.offsets_\1",
                    centred(span, side, scale * side // stride),
                )
            )
    return renames


def at(image_side: int) -> SimpleNamespace:
    """The renames for images of another side, where the reference has offset 0 at another row."""
    return SimpleNamespace(RENAMES=_tables(image_side) + _REST)


_block, _here = r"stages\.(\d)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."

_REST = [
    Rename(r"patch_embed\.proj\.(\w+)", r"stem.conv.\1"),
    Rename(_block + r"(norm\d)\.(\w+)", _here + r"\3.\4"),
    Rename(_block + r"shortcut_proj_attn\.(\w+)", _here + r"skip.\3"),
    Rename(_block + r"attn\.qkv\.(\w+)", tuple(_here + rf"mixer.{p}.\3" for p in "qkv")),
    Rename(_block + r"attn\.proj\.(\w+)", _here + r"mixer.o.\3"),
    Rename(_block + r"attn\.pool_(\w)\.(\w+)", _here + r"mixer.pool_\3.conv.\4"),
    Rename(_block + r"attn\.norm_(\w)\.(\w+)", _here + r"mixer.pool_\3.norm.\4"),
    Rename(_block + r"mlp\.fc1\.(\w+)", _here + r"ffn.up.\3"),
    Rename(_block + r"mlp\.fc2\.(\w+)", _here + r"ffn.down.\3"),
    Rename(r"norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.fc\.(\w+)", r"head.linear.\1"),
]

RENAMES = at(224).RENAMES
