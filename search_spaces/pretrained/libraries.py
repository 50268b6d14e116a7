"""Makes `transformers` and `timm` importable where torchvision's compiled part does not fit torch."""

from __future__ import annotations

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch

_kept: list[Any] = []  # a library's definitions last as long as the object


@cache
def prepare() -> None:
    """To be called before the first import of either: both import torchvision where it is installed.

    Its wheel for another build of torch (with CUDA, say) does not load, and then its Python part fails for
    want of two operators, which no classification model uses; they are declared without a body.
    """
    spec = find_spec("torchvision")
    if spec is None or spec.origin is None or hasattr(torch.ops.torchvision, "nms"):
        return
    try:
        for compiled in Path(spec.origin).parent.glob("_C*.so"):
            torch.ops.load_library(str(compiled))
    except OSError:
        pass
    if not hasattr(torch.ops.torchvision, "nms"):
        library = torch.library.Library("torchvision", "DEF")
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        library.define("qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        _kept.append(library)
