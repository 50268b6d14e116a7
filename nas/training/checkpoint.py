"""The state of a training in files that are replaced atomically."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from nas.errors import RunError


def save_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> None:
    """Writes a safetensors file so that `path` is, at every moment, the old file or the new one."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f"{path.name}.unfinished")
    save_file({k: v.detach().cpu().contiguous() for k, v in tensors.items()}, unfinished, dict(metadata))
    unfinished.chmod(0o644)  # the library writes for its owner alone
    with open(unfinished, "rb") as file:
        os.fsync(file.fileno())
    os.replace(unfinished, path)


AGAIN = "Remove it to start this training again."


def load_tensors(path: Path, remedy: str = AGAIN) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file.

    Args:
        remedy: what to do where it is damaged.

    Raises:
        RunError: the file is damaged.
    """
    try:
        with safe_open(path, "pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except (SafetensorError, OSError, ValueError) as error:
        raise RunError(
            f"{path} must be a whole safetensors file, but cannot be read: {error}. {remedy}"
        ) from error


@dataclass(frozen=True)
class Checkpoints:
    """The last `keep` states of a training, a file each: tensors, and JSON data in its header."""

    folder: Path
    keep: int = 2

    def paths(self) -> list[Path]:
        """From the oldest to the newest."""
        return sorted(self.folder.glob("step-*.safetensors"))

    def save(self, step: int, tensors: Mapping[str, Tensor], data: Mapping[str, Any]) -> Path:
        """Writes the state after `step` steps; what is older than the last `keep` goes."""
        path = self.folder / f"step-{step:09d}.safetensors"
        save_tensors(path, tensors, {"state": json.dumps(dict(data))})
        for old in self.paths()[: -self.keep]:
            old.unlink(missing_ok=True)
        return path

    def load(self) -> tuple[Path, dict[str, Tensor], dict[str, Any]] | None:
        """The newest whole state: its file, tensors and data; None where there is no file.

        Raises:
            RunError: there are files, of which none is whole.
        """
        problem: RunError | None = None
        for path in reversed(self.paths()):
            try:
                tensors, metadata = load_tensors(path)
                return path, tensors, json.loads(metadata["state"])
            except RunError as error:
                problem = problem or error
            except (KeyError, ValueError) as error:
                problem = problem or RunError(f"{path} must be a checkpoint, but has no state. {AGAIN}")
                problem.__cause__ = error
        if problem is not None:
            raise problem
        return None
