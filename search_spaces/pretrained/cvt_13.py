"""CvT-13 as in `transformers` (microsoft/cvt-13)."""

from __future__ import annotations

from torch import Tensor, nn

from search_spaces.pretrained.libraries import prepare
from search_spaces.pretrained.translation import Rename

SOURCE = "transformers: CvtForImageClassification"
SIDES = (64, 224)


def reference() -> nn.Module:
    """The published implementation, with random weights."""
    prepare()
    from transformers import CvtConfig, CvtForImageClassification

    return CvtForImageClassification(CvtConfig(num_labels=1000))


HEAD_DIM = 64


def scaled(tensor: Tensor) -> Tensor:
    """Queries such that scores come out as in the reference, which divides them by √width."""
    return tensor * (HEAD_DIM / len(tensor)) ** 0.5


_stage = r"cvt\.encoder\.stages\.(\d)\."
_block, _here = _stage + r"layers\.(\d+)\.", r"stages.\1.blocks.\2."
_conv = _block + r"attention\.attention\.convolution_projection_(q|k|v)\w+\.convolution_projection\."

RENAMES = [
    Rename(r".*num_batches_tracked"),
    Rename(_stage + r"cls_token", r"stages.\1.token"),
    *(
        Rename(
            rf"cvt\.encoder\.stages\.{i}\.embedding\.convolution_embeddings\.{theirs}\.(\w+)",
            (f"stages.{i}.down.{ours}." if i else f"stem.{ours}.") + r"\1",
        )
        for i in range(3)
        for theirs, ours in (("projection", "conv"), ("normalization", "norm"))
    ),
    Rename(_conv + r"convolution\.(\w+)", _here + r"mixer.before.\3.conv.\4"),
    Rename(_conv + r"normalization\.(\w+)", _here + r"mixer.before.\3.norm.\4"),
    Rename(_block + r"attention\.attention\.projection_query\.(\w+)", _here + r"mixer.q.\3", scaled),
    Rename(_block + r"attention\.attention\.projection_(k|v)\w+\.(\w+)", _here + r"mixer.\3.\4"),
    Rename(_block + r"attention\.output\.dense\.(\w+)", _here + r"mixer.o.\3"),
    Rename(_block + r"intermediate\.dense\.(\w+)", _here + r"ffn.up.\3"),
    Rename(_block + r"output\.dense\.(\w+)", _here + r"ffn.down.\3"),
    Rename(_block + r"layernorm_before\.(\w+)", _here + r"norm1.\3"),
    Rename(_block + r"layernorm_after\.(\w+)", _here + r"norm2.\3"),
    Rename(r"layernorm\.(\w+)", r"head.norm.\1"),
    Rename(r"classifier\.(\w+)", r"head.linear.\1"),
]
