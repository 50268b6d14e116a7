"""The state of a training in one file, replaced atomically."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

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
