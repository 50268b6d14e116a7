"""The folder in which a subnet is handed out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import Tensor, nn

from nas.architecture import from_json
from nas.errors import ExportError, NasError
from nas.export.archive import export_archive
from nas.export.onnx import check_onnx, export_onnx
from nas.export.packed import load_packed, save_packed

FORMATS = ("safetensors", "onnx", "pt2")
TOLERANCE = 1e-4
"""Largest difference of an ONNX file from its module, relative to the largest output."""


def export_subnet(
    module: nn.Module,
    architecture: Mapping[str, Any],
    example: Tensor,
    folder: Path,
    *,
    formats: Sequence[str] = FORMATS,
    card: str,
) -> None:
    """Write architecture.json, card.md and a file per format into `folder`, all or nothing.

    The files are written beside `folder` and renamed into place, so that a reader meets a whole
    export or none; an earlier export at the same place is replaced.

    Args:
        module: the extracted subnet, quantized weights as float.
        architecture: its JSON, from which `build` makes the same module again.
        example: an input `(B, …)`; only its shape and dtype matter.
        folder: where the export will stand; parents are made.
        formats: which of `FORMATS`.
        card: the text of card.md, see `nas.export.card`.

    Raises:
        ExportError: an unknown format, a module that cannot be exported, or an ONNX file whose
            output differs from the module's by more than `TOLERANCE`.
    """
    unknown = sorted(set(formats) - set(FORMATS))
    if unknown:
        raise ExportError(f"An export format must be one of {', '.join(FORMATS)}: got {', '.join(unknown)}.")
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        (draft / "architecture.json").write_text(json.dumps(architecture, indent=2) + "\n")
        (draft / "card.md").write_text(card)
        _write_formats(module, example, draft, formats)
        _replace(folder, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def load_subnet(
    folder: Path | str, build: Callable[[Any], nn.Module], classes: Mapping[str, type]
) -> nn.Module:
    """The module of an export that holds safetensors, in evaluation mode. Nothing is unpickled.

    Args:
        folder: as `nas export` writes it.
        build: that of the experiment; bits are read from the file.
        classes: which an architecture may be made of, by name; `space.classes`.

    Raises:
        ExportError: files that are missing, damaged, or of another builder.
    """
    folder = Path(folder)
    try:
        architecture = from_json(json.loads((folder / "architecture.json").read_text()), classes)
        module = load_packed(build(architecture), folder / "model.safetensors").eval()
    except (OSError, ValueError, RuntimeError, SafetensorError, NasError) as error:
        raise ExportError(
            f"{folder} must be an export with architecture.json and model.safetensors of this builder, but "
            f"cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    return module


def _write_formats(module: nn.Module, example: Tensor, folder: Path, formats: Sequence[str]) -> None:
    if "safetensors" in formats:
        save_packed(module, folder / "model.safetensors")
    if "pt2" in formats:
        export_archive(module, example, folder / "model.pt2")
    if "onnx" in formats:
        path = folder / "model.onnx"
        export_onnx(module, example, path)
        difference = check_onnx(path, module, example)
        if not difference <= TOLERANCE:  # so written that nan is refused as well
            raise ExportError(
                f"An ONNX file must repeat its module to {TOLERANCE:g} of the largest output: "
                f"{type(module).__name__} differs by {difference:.2g}. Nothing was exported; "
                "export `safetensors` or `pt2`, and look for an operation that ONNX rounds anew."
            )


def _replace(folder: Path, draft: Path) -> None:
    """Move `draft` to `folder`; a folder in the way is set aside first, as POSIX demands."""
    aside = draft.with_name(draft.name + ".old")
    if folder.exists():
        folder.rename(aside)
    draft.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
