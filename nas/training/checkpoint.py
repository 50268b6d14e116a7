"""The state of a training in files that are replaced atomically."""

from __future__ import annotations

import json
import os
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nas.errors import RunError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file so that `path` is, at every moment, the old file or the new one.

    Its header holds `metadata` and a checksum of both, which `load_tensors` looks at. Equal tensors and
    metadata give equal bytes.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}{UNFINISHED}")
    plain = {k: v.detach().cpu().contiguous() for k, v in tensors.items()}
    told = dict(metadata) | {CHECKSUM: _checksum(plain, metadata)}
    try:
        save_file(plain, unfinished, {ENTRY: json.dumps(told, sort_keys=True)})
    except SafetensorError as error:
        unfinished.unlink(missing_ok=True)
        raise RunError(f"{path} must be written, but {error}. Make room for it, and go on.") from error
    unfinished.chmod(0o644)  # the library writes for its owner alone
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


ENTRY = "nas"  # one entry for all: the library writes several in an order drawn at random
CHECKSUM = "crc32"
UNFINISHED = ".unfinished"


def _checksum(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> str:
    """Of all bytes, in the order of names."""
    total = zlib.crc32(json.dumps(dict(metadata), sort_keys=True).encode())
    for name in sorted(tensors):
        total = zlib.crc32(tensors[name].reshape(-1).view(torch.uint8).numpy(), total)
    return f"{total:08x}"


AGAIN = "Remove it to start this training again."


def load_tensors(path: Path, remedy: str = AGAIN) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Args:
        remedy: what to do where it is damaged.

    Raises:
        RunError: the file is damaged: cut off, or changed after it was written.
    """
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            tensors, metadata = {name: file.get_tensor(name) for name in names}, file.metadata() or {}
            if ENTRY in metadata:
                metadata = json.loads(metadata[ENTRY])
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(
            f"{path} must be a whole safetensors file, but cannot be read: {error}. {remedy}"
        ) from error
    written = metadata.pop(CHECKSUM, None)
    if written is not None and written != _checksum(tensors, metadata):
        raise RunError(
            f"{path} must hold what was written to it, but its checksum is not {written}: the file is "
            f"damaged. {remedy}"
        )
    return tensors, metadata


@dataclass(frozen=True)
class Checkpoints:
    """The last `keep` states of a training, a file each: tensors, and JSON data in its header."""

    folder: Path
    keep: int = 2

    def paths(self) -> list[Path]:
        """From the oldest to the newest."""
        return sorted(path for path in self.folder.glob("step-*.safetensors") if path.is_file())

    def path(self, step: int) -> Path:
        """Of the state after `step` steps."""
        return self.folder / f"step-{step:09d}.safetensors"

    def tidy(self) -> None:
        """Removes what a process that was killed had begun to write."""
        for path in self.folder.glob(f"*{UNFINISHED}"):
            path.unlink(missing_ok=True)

    def save(self, step: int, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Path:
        """Writes the state after `step` steps. What is older than the last `keep` goes, and what is newer: a
        training that comes to this step has found it damaged."""
        path = self.path(step)
        save_tensors(path, tensors, {"state": json.dumps(dict(data))})
        older = [p for p in self.paths() if p <= path]
        for other in {*self.paths()} - {*older[-self.keep :]}:
            other.unlink(missing_ok=True)
        return path

    def load(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole state: its file, tensors and data; None where there is no file.

        Raises:
            RunError: there are files, of which none is whole.
        """
        remedy = f"No other in {self.folder} is whole. Remove that folder to start this training again."
        problem: RunError | None = None
        for path in reversed(self.paths()):
            try:
                tensors, metadata = load_tensors(path, remedy)
                return path, tensors, json.loads(metadata["state"])
            except RunError as error:
                problem = problem or error
            except (KeyError, ValueError) as error:
                problem = problem or RunError(f"{path} must be a checkpoint, but has no state. {remedy}")
                problem.__cause__ = error
        if problem is not None:
            raise problem
        return None
