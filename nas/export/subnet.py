"""The folder in which a subnet is handed out."""

from __future__ import annotations

import copy
import json
import os
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas.architecture import from_json
from nas.errors import ExportError, first_line
from nas.export.checks import Check, Evidence, apart_of, check, largest_of
from nas.export.formats import DEFAULT, Format, Subnet, format_of
from nas.export.onnx import Run
from nas.export.packed import load_packed, require_fit

Cards = Callable[[Sequence[Check]], Mapping[str, str]]
"""Texts of files, by name, from how the files of weights fared."""

MOST_BYTES = 1 << 18
"""Of architecture.json that is read: one of a hundred blocks has some 50,000."""

SAME = 1e-5
"""Largest difference to the module, relative to the largest output, of one that was written and loaded."""

Timed = Callable[[Sequence[Run]], Sequence[tuple[float, float]]]
"""Latency and its spread in ms of inferences, all timed together."""


def export_subnet(
    subnet: Subnet,
    folder: Path,
    *,
    formats: Sequence[str] = DEFAULT,
    cards: Cards,
    evidence: Evidence | None = None,
    timed: Timed | None = None,
    threads: int = 1,
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
        timed: times the files, on batches of the evidence; default: they are not. (Those that simulate bits
            never are.)
        threads: that one inference may use then.

    Raises:
        ExportError: an unknown format, a module that cannot be exported, or a file whose answers differ from
            the subnet's by more than the laws of `nas.export.checks` allow.
    """
    chosen = [format_of(name) for name in dict.fromkeys(formats)]
    evidence = evidence or Evidence.random(subnet.module, subnet.example)
    _clear(folder)
    draft = folder.with_name(f".{folder.name}.{os.getpid()}")
    try:
        draft.mkdir(parents=True)
    except OSError as error:
        raise ExportError(
            f"{folder.parent} must be a folder that can be written to: got {error}. Make room for it."
        ) from error
    try:
        (draft / "architecture.json").write_text(json.dumps(subnet.architecture, indent=2) + "\n", "utf-8")
        checks = []
        for of in chosen:
            _write(of, subnet, draft / of.file)
            checks.append(check(of, draft / of.file, subnet.module, evidence))
        if subnet.build and any(of.name == "safetensors" for of in chosen):
            _require_the_same(load_subnet(draft, subnet.build, subnet.classes), subnet.module, evidence)
        if timed:
            x = evidence.batches[0].inputs[0].numpy()
            places = [i for i, of in enumerate(chosen) if not of.simulates(subnet.module)]
            files = [(chosen[i], draft / chosen[i].file) for i in places]
            runs = [of.timed(path, subnet.module, x, threads) for of, path in files]
            for i, (ms, spread) in zip(places, timed(runs) if runs else (), strict=True):
                checks[i] = replace(checks[i], latency_ms=ms, spread_ms=spread)
        for name, text in cards(checks).items():
            (draft / name).write_text(text, "utf-8")
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
        path = folder / "architecture.json"
        if not path.is_file():
            raise FileNotFoundError("there is no file architecture.json")
        if (size := path.stat().st_size) > MOST_BYTES:
            raise ValueError(f"architecture.json has {size:,} bytes, more than {MOST_BYTES:,}")
        architecture = from_json(json.loads(path.read_text("utf-8")), classes)
        require_fit(lambda: build(architecture), folder / "model.safetensors")
        module = load_packed(build(architecture), folder / "model.safetensors").eval()
    except Exception as error:  # builders raise what they like
        raise ExportError(
            f"{folder} must be an export with architecture.json and model.safetensors of this builder, but "
            f"cannot be loaded: {first_line(error)}"
        ) from error
    return module


def _require_the_same(loaded: nn.Module, module: nn.Module, evidence: Evidence) -> None:
    """Raises ExportError where what `load_subnet` makes answers otherwise than `module`."""
    module = copy.deepcopy(module).eval()
    with torch.inference_mode():
        for batch in evidence.batches:
            wanted, found = module(batch.inputs[0]), loaded(batch.inputs[0])
            apart = float(apart_of(found, wanted).max()) / max(largest_of(wanted), 1e-30)
            if not apart <= SAME:
                raise ExportError(
                    f"architecture.json and model.safetensors must make the same module again, but what the "
                    f"builder makes of them differs by {apart:.2g} of the largest output. Buffers that are "
                    f"not persistent and follow from no architecture are in no file: make them persistent."
                )


def _write(of: Format, subnet: Subnet, path: Path) -> None:
    try:
        of.write(subnet, path)
    except ExportError:
        raise
    except Exception as error:  # libraries raise what they like
        raise ExportError(
            f"{path.name} must be written, but: {first_line(error)}. Nothing was exported; leave {of.name} "
            f"out with --format."
        ) from error


def _clear(folder: Path) -> None:
    """Takes away what exports of this place left that were killed, and gives back what one had set aside."""
    for left in folder.parent.glob(f".{folder.name}.*"):
        pid = left.name.removeprefix(f".{folder.name}.").removesuffix(ASIDE)
        if not pid.isdecimal() or (int(pid) != os.getpid() and _lives(int(pid))):
            continue
        if left.name.endswith(ASIDE) and not folder.exists():
            left.rename(folder)
        else:
            _remove(left)


def _remove(path: Path) -> None:
    """Whatever it is; a link itself, and not what it leads to."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except PermissionError:
        pass
    return True


ASIDE = ".old"


def _replace(folder: Path, draft: Path) -> None:
    """Move `draft` to `folder`; a folder in the way is set aside first, as POSIX demands."""
    aside = draft.with_name(draft.name + ASIDE)
    if folder.exists() or folder.is_symlink():
        folder.rename(aside)
    draft.rename(folder)
    _remove(aside)
