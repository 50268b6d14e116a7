"""SegFormer's MiT-B0 as in `transformers` (nvidia/mit-b0)."""

from __future__ import annotations

from torch import nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "transformers: SegformerForImageClassification"
SIDES = (64, 224)


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    from transformers import SegformerConfig, SegformerForImageClassification

    return SegformerForImageClassification(SegformerConfig(num_labels=1000))


# Names of transformers 5; those of its checkpoints from before are the alternatives.
_names = {
    "layernorm_before|layer_norm_1": "norm1",
    "layernorm_after|layer_norm_2": "norm2",
    r"attention\.(?:q_proj|self\.query)": "mixer.q",
    r"attention\.(?:k_proj|self\.key)": "mixer.k",
    r"attention\.(?:v_proj|self\.value)": "mixer.v",
    r"attention\.(?:o_proj|output\.dense)": "mixer.o",
    r"mlp\.(?:fc1|dense1)": "ffn.up",
    r"mlp\.dwconv\.dwconv": "ffn.depthwise",
    r"mlp\.(?:fc2|dense2)": "ffn.down",
}


def _stage(i: int) -> list[Rename]:
    block = rf"segformer\.(?:stages\.{i}\.blocks|encoder\.block\.{i})\.(\d)\."
    here, reduce = rf"stages.{i}.blocks.\1.", f"mixer.reduce{8 // 2**i}."
    embed = rf"segformer\.(?:stages\.{i}\.patch_embeddings|encoder\.patch_embeddings\.{i})\."
    entry = f"stages.{i}.down." if i else "stem."
    norm = rf"segformer\.(?:stages\.{i}\.layer_norm|encoder\.layer_norm\.{i})"
    return [
        Rename(embed + r"proj\.(\w+)", entry + r"conv.\1"),
        Rename(embed + r"layer_norm\.(\w+)", entry + r"norm.\1"),
        *(Rename(block + rf"(?:{theirs})\.(\w+)", here + ours + r".\2") for theirs, ours in _names.items()),
        Rename(
            block + r"attention\.(?:sequence_reduction\.sequence_reduction|self\.sr)\.(\w+)",
            here + reduce + r"conv.\2",
        ),
        Rename(
            block + r"attention\.(?:sequence_reduction|self)\.layer_norm\.(\w+)", here + reduce + r"norm.\2"
        ),
        Rename(norm + r"\.(\w+)", rf"stages.{i}.norm.\1"),
    ]


RENAMES = [
    *(rename for i in range(4) for rename in _stage(i)),
    Rename(r"classifier\.(\w+)", r"head.linear.\1"),
]
