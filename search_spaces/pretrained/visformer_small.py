"""Visformer-S as in `timm`."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: visformer_small"
SIDES = (224,)
BUILT_FOR = (256,)  # sides for which it can be built, too


def reference(side: int = 224) -> nn.Module:
    """The published implementation, built for images of that side, with random weights."""
    prepare()
    import timm

    return timm.create_model("visformer_small", img_size=side)


def channels_last(tensor: Tensor) -> Tensor:
    """(1, C, H, W) to (H, W, C)."""
    return tensor[0].permute(1, 2, 0)


def _stage(theirs: int) -> list[Rename]:
    block, here = rf"stage{theirs}\.(\d)\.", rf"stages.{theirs - 1}.blocks.\1."
    entry = "stem" if theirs == 1 else f"stages.{theirs - 1}.down"
    projection = "early_patches" if theirs == 1 else "conv"
    return [
        Rename(rf"pos_embed{theirs}", f"stages.{theirs - 1}.position.table", channels_last),
        Rename(rf"patch_embed{theirs}\.proj\.(\w+)", rf"{entry}.{projection}.\1"),
        Rename(rf"patch_embed{theirs}\.norm\.(\w+)", rf"{entry}.norm.\1"),
        Rename(block + r"(norm\d)\.(\w+)", here + r"\2.\3"),
        Rename(block + r"attn\.qkv\.weight", tuple(here + f"mixer.{p}.weight" for p in "qkv")),
        Rename(block + r"attn\.proj\.weight", here + "mixer.o.weight"),
    ]


RENAMES = [
    Rename(r".*num_batches_tracked"),
    Rename(r"stem\.0\.weight", "stem.early.weight"),
    Rename(r"stem\.1\.(\w+)", r"stem.early_norm.\1"),
    *_stage(1),
    *_stage(2),
    *_stage(3),
    Rename(r"stage1\.(\d)\.mlp\.conv1\.weight", r"stages.0.blocks.\1.ffn.grouped_up.weight"),
    Rename(r"stage1\.(\d)\.mlp\.conv2\.weight", r"stages.0.blocks.\1.ffn.grouped.weight"),
    Rename(r"stage1\.(\d)\.mlp\.conv3\.weight", r"stages.0.blocks.\1.ffn.grouped_down.weight"),
    *(
        Rename(rf"stage{s}\.(\d)\.mlp\.conv1\.weight", rf"stages.{s - 1}.blocks.\1.ffn.up.weight")
        for s in (2, 3)
    ),
    *(
        Rename(rf"stage{s}\.(\d)\.mlp\.conv3\.weight", rf"stages.{s - 1}.blocks.\1.ffn.down.weight")
        for s in (2, 3)
    ),
    Rename(r"norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.(\w+)", r"head.linear.\1"),
]
