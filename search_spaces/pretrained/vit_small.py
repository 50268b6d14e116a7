"""ViT-S/16 as in `timm`."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: vit_small_patch16_224"
SIDES = (224, 288)


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    import timm

    return timm.create_model("vit_small_patch16_224", dynamic_img_size=True)


def position(tensor: Tensor) -> tuple[Tensor, Tensor]:
    """(1, 1 + 14 · 14, C) to that of the class token (C,) and those of the map (14, 14, C)."""
    return tensor[0, 0], tensor[0, 1:].unflatten(0, (14, 14))


_block, _here = r"blocks\.(\d+)\.", r"stages.0.blocks.\1."

RENAMES = [
    Rename(r"cls_token", "stages.0.token"),
    Rename(r"pos_embed", ("stages.0.token_position", "stages.0.position.table"), position),
    Rename(r"patch_embed\.proj\.(\w+)", r"stem.patches.\1"),
    Rename(_block + r"(norm\d)\.(\w+)", _here + r"\2.\3"),
    Rename(_block + r"attn\.qkv\.(\w+)", tuple(_here + rf"mixer.{p}.\2" for p in "qkv")),
    Rename(_block + r"attn\.proj\.(\w+)", _here + r"mixer.o.\2"),
    Rename(_block + r"mlp\.fc1\.(\w+)", _here + r"ffn.up.\2"),
    Rename(_block + r"mlp\.fc2\.(\w+)", _here + r"ffn.down.\2"),
    Rename(r"norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.(\w+)", r"head.linear.\1"),
]
