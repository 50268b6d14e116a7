"""NesT-T as in `timm`."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: nest_tiny"
SIDES = (224,)
BUILT_FOR = (256,)  # sides for which it can be built, too


def reference(side: int = 224) -> nn.Module:
    """The published implementation, built for images of that side, with random weights."""
    prepare()
    import timm

    return timm.create_model("nest_tiny", img_size=side)


def spread(tensor: Tensor) -> Tensor:
    """Positions block by block, (1, blocks, side · side, C), to a map (H, W, C)."""
    count, side = (round(length**0.5) for length in tensor.shape[1:3])
    blocks = tensor[0].unflatten(0, (count, count)).unflatten(2, (side, side))
    return blocks.transpose(1, 2).flatten(0, 1).flatten(1, 2)


def by_head(tensor: Tensor) -> Tensor:
    """Columns, in the reference by place in the head and then by head, to head and then place."""
    if tensor.ndim == 1:
        return tensor
    return tensor.unflatten(1, (32, -1)).transpose(1, 2).flatten(1)


_block, _here = r"levels\.(\d)\.transformer_encoder\.(\d+)\.", r"stages.\1.blocks.\2."

RENAMES = [
    Rename(r"levels\.(\d)\.pos_embed", r"stages.\1.position.table", spread),
    Rename(r"patch_embed\.proj\.(\w+)", r"stem.patches.\1"),
    Rename(_block + r"(norm\d)\.(\w+)", _here + r"\3.\4"),
    Rename(_block + r"attn\.qkv\.(\w+)", tuple(_here + rf"mixer.{p}.\3" for p in "qkv")),
    Rename(_block + r"attn\.proj\.(\w+)", _here + r"mixer.o.\3", by_head),
    Rename(_block + r"mlp\.fc1\.(\w+)", _here + r"ffn.up.\3"),
    Rename(_block + r"mlp\.fc2\.(\w+)", _here + r"ffn.down.\3"),
    Rename(r"levels\.(\d)\.pool\.conv\.(\w+)", r"stages.\1.down.aggregate.\2"),
    Rename(r"levels\.(\d)\.pool\.norm\.(\w+)", r"stages.\1.down.aggregate_norm.\2"),
    Rename(r"norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.(\w+)", r"head.linear.\1"),
]
