"""PVT v2-B2-Li as in `timm`."""

from __future__ import annotations

from torch import nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.pvt_v2_b2 import renames

SOURCE = "timm: pvt_v2_b2_li"
SIDES = (96, 224)


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    import timm

    return timm.create_model("pvt_v2_b2_li")


RENAMES = renames("pooled.linear", "pooled.norm")
