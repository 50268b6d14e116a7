"""Swin-T as in `transformers` (microsoft/swin-tiny-patch4-window7-224)."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "transformers: SwinForImageClassification"
SIDES = (224, 448)


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    from transformers import SwinConfig, SwinForImageClassification

    return SwinForImageClassification(SwinConfig(num_labels=1000))


def neighbours(tensor: Tensor) -> Tensor:
    """Channels of the four neighbours: the reference goes down the columns, we along the rows."""
    four = tensor.unflatten(-1, (4, -1))
    return four[..., [0, 2, 1, 3], :].flatten(-2)


def table(tensor: Tensor) -> Tensor:
    """(offsets, heads) to (heads, 13, 13)."""
    return tensor.T.unflatten(1, (13, 13))


_block = r"swin\.encoder\.layers\.(\d)\.blocks\.(\d+)\."
_here = r"stages.\1.blocks.\2."

# Names of transformers 5; those of its checkpoints from before are the alternatives.
RENAMES = [
    Rename(r"swin\.embeddings\.patch_embeddings\.projection\.(\w+)", r"stem.patches.\1"),
    Rename(r"swin\.embeddings\.norm\.(\w+)", r"stem.norm.\1"),
    Rename(_block + r"layernorm_before\.(\w+)", _here + r"norm1.\3"),
    Rename(_block + r"layernorm_after\.(\w+)", _here + r"norm2.\3"),
    Rename(_block + r"attention\.(?:self\.)?.*relative_position_index"),
    Rename(_block + r"attention\..*bias_table", _here + "mixer.position.relative", table),
    Rename(_block + r"attention\.(?:o_proj|output\.dense)\.(\w+)", _here + r"mixer.o.\3"),
    Rename(_block + r"attention\.(?:self\.)?(q|k|v)\w+\.(\w+)", _here + r"mixer.\3.\4"),
    Rename(_block + r"(?:mlp\.fc1|intermediate\.dense)\.(\w+)", _here + r"ffn.up.\3"),
    Rename(_block + r"(?:mlp\.fc2|output\.dense)\.(\w+)", _here + r"ffn.down.\3"),
    *(
        Rename(
            rf"swin\.encoder\.layers\.{i}\.downsample\.{theirs}(.*)",
            rf"stages.{i + 1}.down.{ours}\1",
            neighbours,
        )
        for i in range(3)
        for theirs, ours in (("norm", "merged_norm"), ("reduction", "reduction"))
    ),
    Rename(r"swin\.layernorm\.(\w+)", r"head.norm.\1"),
    Rename(r"classifier\.(\w+)", r"head.linear.\1"),
]
