"""A run directory: one experiment's files, and who may write them."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.errors import RunError


def write_atomically(path: Path, text: str) -> None:
    """Replaces `path` so that a reader meets the old text or the new one, never half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    unfinished = path.with_name(f".{path.name}.unfinished")
    with open(unfinished, "w", encoding="utf-8") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(unfinished, path)


def file_hash(path: Path) -> str:
    """12 hex digits of the SHA-256 of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()[:12]


ID = re.compile(r"[0-9a-f]{12}")
"""The name of an architecture."""


class RunDirectory:
    """Paths of a run directory and its JSON files."""

    def __init__(self, path: Path | str) -> None:
        self.path = Path(path)
        self.supernet = self.path / "supernet"
        self.weights = self.supernet / "model.safetensors"
        self.trials = self.path / "trials.jsonl"
        self.front = self.path / "front.json"
        self.exports = self.path / "exports"

    def device(self, name: str) -> Path:
        return self.path / "devices" / f"{name}.json"

    @property
    def exists(self) -> bool:
        return (self.path / "experiment.json").exists()

    @property
    def started(self) -> bool:
        """Whether there is work in it that could be lost."""
        return any(p.exists() for p in (self.supernet, self.trials, self.front))

    def read(self) -> dict[str, Any]:
        """experiment.json."""
        return dict(self._json("experiment.json"))

    def update(self, **values: Any) -> None:
        """Sets top-level entries of experiment.json."""
        current = self.read() if self.exists else {}
        write_atomically(self.path / "experiment.json", json.dumps(current | values, indent=2) + "\n")

    def copy_source(self, file: Path | None) -> None:
        """Keeps a copy of the experiment's file beside its results, for reading."""
        if file is not None:
            write_atomically(self.path / "experiment.py", file.read_text(encoding="utf-8"))

    def read_front(self) -> list[dict[str, Any]]:
        entries = list(self._json("front.json")) if self.front.exists() else []
        for entry in entries:
            if not (isinstance(entry, Mapping) and ID.fullmatch(str(entry.get("id")))):
                found = entry.get("id") if isinstance(entry, Mapping) else entry
                raise RunError(
                    f"{self.front} must hold entries whose id is 12 hex digits, of which paths are made: got "
                    f"{found!r}. Remove the file and verify again."
                )
        return entries

    def write_front(self, entries: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.front, json.dumps(list(entries), indent=1) + "\n")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other drivers out for the length of the body; the kernel frees it when a driver dies.

        Raises:
            RunError: another driver is at work in this directory.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        with open(self.path / ".lock", "a+") as file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                file.seek(0)
                raise RunError(
                    f"A run directory must have one driver at a time: process {file.read() or '?'} is at "
                    f"work in {self.path}. Wait for it, end it, or use another --run-dir."
                ) from None
            file.truncate(0)
            file.write(str(os.getpid()))
            file.flush()
            yield

    def _json(self, name: str) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise RunError(
                f"{self.path} must be a run directory, but has no {name}. `nas run EXPERIMENT` makes one."
            ) from None
        except ValueError as error:
            raise RunError(f"{path} must be JSON, but {error}. Restore it, or start a new run.") from None
