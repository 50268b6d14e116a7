"""SpectFormer-S as its repository builds it for `--arch spectformer-s` (badripatro/SpectFormers,
vanilla_architecture). The repository has no licence: it was run once to record what it answers."""

from __future__ import annotations

from pathlib import Path

from torch import Tensor

from search_spaces.pretrained.translation import Rename

SOURCE = "github: badripatro/SpectFormers vanilla_architecture/spectformer.py, spectformer-s"
GOLDEN = Path(__file__).parent / "golden" / "spectformer_small.json"
SIDES = (224,)
BUILT_FOR = (256,)  # sides for which it can be built, too


def table(tensor: Tensor) -> Tensor:
    """(1, side · side, C) to (side, side, C)."""
    side = round(tensor.shape[1] ** 0.5)
    return tensor[0].unflatten(0, (side, side))


def ascending(tensor: Tensor) -> Tensor:
    """Rows from the lowest frequency up; the reference has 0 … 6, −7 … −1, say, as Fourier transforms do."""
    return tensor.roll(len(tensor) // 2, 0)


_block = r"blocks\.(\d+)\."
_here = r"stages.0.blocks.\1."

RENAMES = [
    Rename(r"patch_embed\.proj\.(\w+)", r"stem.patches.\1"),
    Rename(r"pos_embed", "stages.0.position.table", table),
    Rename(_block + r"(norm[12])\.(\w+)", _here + r"\2.\3"),
    Rename(_block + r"filter\.complex_weight", _here + "mixer.spectral_gate", ascending),
    Rename(_block + r"attn\.qkv\.(\w+)", tuple(_here + rf"mixer.{p}.\2" for p in "qkv")),
    Rename(_block + r"attn\.proj\.(\w+)", _here + r"mixer.o.\2"),
    Rename(_block + r"mlp\.fc1\.(\w+)", _here + r"ffn.up.\2"),
    Rename(_block + r"mlp\.fc2\.(\w+)", _here + r"ffn.down.\2"),
    Rename(r"norm\.(\w+)", r"head.norm.\1"),
    Rename(r"head\.(\w+)", r"head.linear.\1"),
]
