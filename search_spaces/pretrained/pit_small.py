"""PiT-S as in `timm`."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: pit_s_224"
SIDES = (224,)
BUILT_FOR = (256,)  # sides for which it can be built, too


def reference(side: int = 224) -> nn.Module:
    """The published implementation, built for images of that side, with random weights."""
    prepare()
    import timm

    return timm.create_model("pit_s_224", img_size=side)


def channels_last(tensor: Tensor) -> Tensor:
    """(1, C, H, W) to (H, W, C)."""
    return tensor[0].permute(1, 2, 0)


_block, _here = r"transformers\.(\d)\.blocks\.(\d+)\.", r"stages.\1.blocks.\2."

RENAMES = [
    Rename(r"cls_token", "stages.0.token"),
    Rename(r"pos_embed", "stages.0.position.table", channels_last),
    Rename(r"patch_embed\.conv\.(\w+)", r"stem.conv.\1"),
    Rename(_block + r"(norm\d)\.(\w+)", _here + r"\3.\4"),
    Rename(_block + r"attn\.qkv\.(\w+)", tuple(_here + rf"mixer.{p}.\3" for p in "qkv")),
    Rename(_block + r"attn\.proj\.(\w+)", _here + r"mixer.o.\3"),
    Rename(_block + r"mlp\.fc1\.(\w+)", _here + r"ffn.up.\3"),
    Rename(_block + r"mlp\.fc2\.(\w+)", _here + r"ffn.down.\3"),
    Rename(r"transformers\.(\d)\.pool\.conv\.(\w+)", r"stages.\1.down.pool.\2"),
    Rename(r"transformers\.(\d)\.pool\.fc\.(\w+)", r"stages.\1.down.pool_token.\2"),
    Rename(r"norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.(\w+)", r"head.linear.\1"),
]
