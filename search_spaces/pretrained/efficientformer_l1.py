"""EfficientFormer-L1 as in `timm`."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "timm: efficientformer_l1"
SIDES = (224,)
ONE_SIDE_BECAUSE = "its table of attention biases is for a map of 7 × 7 alone"


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    import timm

    return timm.create_model("efficientformer_l1")


def by_role(tensor: Tensor) -> tuple[Tensor, ...]:
    """Rows of q, k (32) and v (128) that are stored head by head."""
    q, k, v = tensor.unflatten(0, (8, 32 + 32 + 128)).split((32, 32, 128), 1)
    return q.flatten(0, 1), k.flatten(0, 1), v.flatten(0, 1)


def table(tensor: Tensor) -> Tensor:
    """(heads, distances) to (8, 7, 7)."""
    return tensor.unflatten(1, (7, 7))


_pool = r"stages\.(\d)\.blocks\.(\d+)\."
_here = r"stages.\1.blocks.\2."
_attend, _there = r"stages\.3\.blocks\.4\.", "stages.3.blocks.3."  # behind a reshape, which is number 3

RENAMES = [
    Rename(r".*num_batches_tracked"),
    Rename(_attend + r"token_mixer\.attention_bias_idxs"),
    Rename(_attend + r"token_mixer\.attention_biases", _there + "mixer.position.offset", table),
    Rename(_attend + r"token_mixer\.qkv\.(\w+)", tuple(_there + rf"mixer.{p}.\1" for p in "qkv"), by_role),
    Rename(_attend + r"token_mixer\.proj\.(\w+)", _there + r"mixer.o.\1"),
    Rename(_attend + r"(norm\d)\.(\w+)", _there + r"\1.\2"),
    Rename(_attend + r"ls(\d)\.gamma", _there + r"scale\1"),
    Rename(_attend + r"mlp\.fc1\.(\w+)", _there + r"ffn.up.\1"),
    Rename(_attend + r"mlp\.fc2\.(\w+)", _there + r"ffn.down.\1"),
    Rename(r"stem\.(conv|norm)1\.(\w+)", r"stem.layers.0_of_2.\1.\2"),
    Rename(r"stem\.(conv|norm)2\.(\w+)", r"stem.layers.1_of_2.\1.\2"),
    Rename(_pool + r"ls(\d)\.gamma", _here + r"scale\3"),
    Rename(_pool + r"mlp\.fc1\.(\w+)", _here + r"ffn.up.\3"),
    Rename(_pool + r"mlp\.norm1\.(\w+)", _here + r"ffn.up_norm.\3"),
    Rename(_pool + r"mlp\.fc2\.(\w+)", _here + r"ffn.down.\3"),
    Rename(_pool + r"mlp\.norm2\.(\w+)", _here + r"ffn.down_norm.\3"),
    Rename(r"stages\.(\d)\.downsample\.(\w+)\.(\w+)", r"stages.\1.down.\2.\3"),
    Rename(r"norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.(\w+)", r"head.linear.\1"),
    Rename(r"head_dist\.(\w+)", r"head.others.0.\1"),
]
