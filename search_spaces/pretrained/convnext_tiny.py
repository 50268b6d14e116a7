"""ConvNeXt-T as in `timm`."""

from __future__ import annotations

from torch import nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: convnext_tiny"
SIDES = (64, 96)


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    import timm

    return timm.create_model("convnext_tiny")


_block = r"stages\.(\d)\.blocks\.(\d+)\."
_here = r"stages.\1.blocks.\2."

RENAMES = [
    Rename(r"stem\.0\.(\w+)", r"stem.patches.\1"),
    Rename(r"stem\.1\.(\w+)", r"stem.norm.\1"),
    Rename(_block + r"gamma", _here + "scale2"),
    Rename(_block + r"conv_dw\.(\w+)", _here + r"mixer.depthwise.\3"),
    Rename(_block + r"norm\.(\w+)", _here + r"norm2.\3"),
    Rename(_block + r"mlp\.fc1\.(\w+)", _here + r"ffn.up.\3"),
    Rename(_block + r"mlp\.fc2\.(\w+)", _here + r"ffn.down.\3"),
    Rename(r"stages\.(\d)\.downsample\.0\.(\w+)", r"stages.\1.down.norm.\2"),
    Rename(r"stages\.(\d)\.downsample\.1\.(\w+)", r"stages.\1.down.conv.\2"),
    Rename(r"head\.norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.fc\.(\w+)", r"head.linear.\1"),
]
