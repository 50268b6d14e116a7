"""The folder in which a subnet is handed out."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from nas.architecture import from_json
from nas.errors import ExportError, NasError
from nas.export.checks import Check, Evidence, check
from nas.export.formats import DEFAULT, Subnet, format_of
from nas.export.packed import load_packed

Cards = Callable[[Sequence[Check]], Mapping[str, str]]
"""Texts of files, by name, from how the files of weights fared."""


def export_subnet(
    subnet: Subnet,
    folder: Path,
    *,
    formats: Sequence[str] = DEFAULT,
    cards: Cards,
    evidence: Evidence | None = None,
) -> list[Check]:
    """Write architecture.json, cards and a file per format into `folder`, all or nothing; each file is run
    and held against the subnet's answers first.

    The files are written beside `folder` and renamed into place, so that a reader meets a whole
    export or none; an earlier export at the same place is replaced.

    Args:
        subnet: its module is left as it is.
        folder: where the export will stand; parents are made.
        formats: which of `FORMATS`.
        cards: makes the cards, see `nas.export.model_card`.
        evidence: inputs as they will come, with the subnet's answers in the supernet; default: random ones,
            with the module's own.

    Raises:
        ExportError: an unknown format, a module that cannot be exported, or a file whose answers differ from
            the subnet's by more than the laws of `nas.export.checks` allow.
    """
    chosen = [format_of(name) for name in dict.fromkeys(formats)]
    evidence = evidence or Evidence.random(subnet.module, subnet.example)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    draft.mkdir(parents=True)
    try:
        (draft / "architecture.json").write_text(json.dumps(subnet.architecture, indent=2) + "\n")
        checks = []
        for of in chosen:
            of.write(subnet, draft / of.file)
            checks.append(check(of, draft / of.file, subnet.module, evidence))
        for name, text in cards(checks).items():
            (draft / name).write_text(text)
        _replace(folder, draft)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return checks


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
    except (OSError, ValueError, TypeError, OverflowError, RuntimeError, SafetensorError, NasError) as error:
        raise ExportError(
            f"{folder} must be an export with architecture.json and model.safetensors of this builder, but "
            f"cannot be loaded: {str(error).splitlines()[0]}"
        ) from error
    return module


def _replace(folder: Path, draft: Path) -> None:
    """Move `draft` to `folder`; a folder in the way is set aside first, as POSIX demands."""
    aside = draft.with_name(draft.name + ".old")
    if folder.exists():
        folder.rename(aside)
    draft.rename(folder)
    shutil.rmtree(aside, ignore_errors=True)
