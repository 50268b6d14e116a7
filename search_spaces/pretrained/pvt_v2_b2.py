"""PVT v2-B2 as in `timm`."""

from __future__ import annotations

from torch import nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: pvt_v2_b2"
SIDES = (64, 224)


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    import timm

    return timm.create_model("pvt_v2_b2")


_block = r"stages\.(\d)\.blocks\.(\d+)\."
_here = r"stages.\1.blocks.\2."


def renames(reduction: str, norm: str) -> list[Rename]:
    """Names of `timm`'s PVT v2, whose reduction's weights are called so here; \\1 is the stage."""
    return [
        Rename(r"patch_embed\.proj\.(\w+)", r"stem.conv.\1"),
        Rename(r"patch_embed\.norm\.(\w+)", r"stem.norm.\1"),
        Rename(_block + r"(norm\d)\.(\w+)", _here + r"\3.\4"),
        Rename(_block + r"attn\.q\.(\w+)", _here + r"mixer.q.\3"),
        Rename(_block + r"attn\.kv\.(\w+)", (_here + r"mixer.k.\3", _here + r"mixer.v.\3")),
        Rename(_block + r"attn\.proj\.(\w+)", _here + r"mixer.o.\3"),
        Rename(_block + r"mlp\.fc1\.(\w+)", _here + r"ffn.up.\3"),
        Rename(_block + r"mlp\.dwconv\.(\w+)", _here + r"ffn.depthwise.\3"),
        Rename(_block + r"mlp\.fc2\.(\w+)", _here + r"ffn.down.\3"),
        *(
            Rename(
                _block.replace(r"(\d)", f"({i})") + rf"attn\.{theirs}\.(\w+)",
                _here + "mixer." + ours.format(ratio=8 // 2**i) + r".\3",
            )
            for i in range(4)
            for theirs, ours in (("sr", reduction), ("norm", norm))
        ),
        Rename(r"stages\.(\d)\.downsample\.proj\.(\w+)", r"stages.\1.down.conv.\2"),
        Rename(r"stages\.(\d)\.downsample\.norm\.(\w+)", r"stages.\1.down.norm.\2"),
        Rename(r"stages\.(\d)\.norm\.(\w+)", r"stages.\1.norm.\2"),
        Rename(r"head\.(\w+)", r"head.linear.\1"),
    ]


RENAMES = renames("reduce{ratio}.conv", "reduce{ratio}.norm")
