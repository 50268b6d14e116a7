"""A plain module as a `torch.export` archive (.pt2)."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.errors import ExportError
from nas.quantize import with_fixed_ranges

_MAX_BATCH = 4096


def export_archive(module: nn.Module, example: Tensor, path: Path) -> None:
    """Write `module` in evaluation mode, for batches of 1 to 4096.

    Inputs of 8 bits are rounded as they are simulated; where ranges are dynamic, over all that comes
    together. The archive carries weights and graph, no class of the network: `torch.export.load` runs it
    without `nas`. Neither the example nor source paths of this machine are written into it.

    Args:
        module: a plain module of one tensor, left as it is.
        example: an input `(B, …)`; only its shape and dtype matter.
        path: the file to write, ending in `.pt2`; its folder must exist.

    Raises:
        ExportError: `torch.export` cannot follow the module, or its batch size is not free.
    """
    # A batch of 1 would be taken for a constant, so the graph is drawn with 2.
    blank = torch.zeros((2, *example.shape[1:]), dtype=example.dtype)
    batch = torch.export.Dim("batch", min=1, max=_MAX_BATCH)
    try:
        fixed = with_fixed_ranges(copy.deepcopy(module).eval())
        program = torch.export.export(fixed, (blank,), dynamic_shapes=({0: batch},))
    except Exception as error:  # torch.export raises many kinds, some of them private
        reason = next((line for line in str(error).splitlines() if line.strip()), repr(error))
        raise ExportError(
            f"A subnet must be traceable with a free batch size: exporting {type(module).__name__} "
            f"to {path} failed with `{reason}`. Take sizes from `x.shape`, branch on no value."
        ) from error
    for node in program.graph.nodes:
        node.meta.pop("stack_trace", None)
    torch.export.save(program, path)
