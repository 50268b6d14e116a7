"""CSWin-T as in its repository (microsoft/CSWin-Transformer, models/cswin.py), whose answers are golden."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor

from search_spaces.pretrained.translation import Rename

SOURCE = "github: microsoft/CSWin-Transformer models/cswin.py, CSWin_64_12211_tiny_224"
SIDES = (224, 448)
GOLDEN = Path(__file__).parent / "golden" / "cswin_tiny.json"

CROSSES = {0: 2, 1: 4, 2: 8}
"""Heads of the stages with stripes. The reference has all vertical heads first, here they take turns."""


def in_turn(rows: Tensor, heads: int) -> Tensor:
    """Rows of the heads, vertical ones first, to horizontal and vertical ones in turn."""
    vertical, horizontal = rows.unflatten(0, (heads, -1)).chunk(2)
    return torch.stack([horizontal, vertical], 1).flatten(0, 2)


def finish(ours: dict[str, Tensor]) -> dict[str, Tensor]:
    """Puts heads in turn, and the two convolutions of values into one."""
    done: dict[str, Tensor] = {}
    for name, tensor in ours.items():
        heads = CROSSES.get(int(name.split(".")[1])) if ".mixer." in name else None
        if name.endswith("#vertical"):
            both = torch.cat([tensor, ours[name.replace("#vertical", "#horizontal")]])
            done[name.removesuffix("#vertical")] = in_turn(both, heads or 1)
        elif heads and name.endswith("mixer.o.weight"):
            done[name] = in_turn(tensor.T, heads).T
        elif heads and ".mixer.o." not in name and "#" not in name:
            done[name] = in_turn(tensor, heads)
        elif "#" not in name:
            done[name] = tensor
    return done


def _stage(i: int) -> list[Rename]:
    block, here = rf"stage{i + 1}\.(\d+)\.", rf"stages.{i}.blocks.\1."
    lepe = here + "mixer.position.lepe."
    parts = ((0, "#vertical"), (1, "#horizontal")) if i < 3 else ((0, ""),)
    return [
        Rename(block + r"(norm\d)\.(\w+)", here + r"\2.\3"),
        Rename(block + r"qkv\.(\w+)", tuple(here + rf"mixer.{p}.\2" for p in "qkv")),
        Rename(block + r"proj\.(\w+)", here + r"mixer.o.\2"),
        *(Rename(block + rf"attns\.{k}\.get_v\.(\w+)", lepe + r"\2" + part) for k, part in parts),
        Rename(block + r"mlp\.fc1\.(\w+)", here + r"ffn.up.\2"),
        Rename(block + r"mlp\.fc2\.(\w+)", here + r"ffn.down.\2"),
        Rename(rf"merge{i}\.(\w+)\.(\w+)", rf"stages.{i}.down.\1.\2"),
    ]


RENAMES = [
    Rename(r"stage1_conv_embed\.0\.(\w+)", r"stem.conv.\1"),
    Rename(r"stage1_conv_embed\.2\.(\w+)", r"stem.norm.\1"),
    *(rename for i in range(4) for rename in _stage(i)),
    Rename(r"norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.(\w+)", r"head.linear.\1"),
]
