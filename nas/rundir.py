"""A run directory: one experiment's files, and who may write them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.errors import RunError
from nas.faults import fault_in_description, fault_in_entry
from nas.files import write_atomically

DIVERGED = "diverged.json"
"""What a training leaves of an architecture that stopped it: no work."""


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
        files = self.supernet.rglob("*") if self.supernet.is_dir() else ()
        trained = any(p.is_file() and p.name != DIVERGED for p in files)
        return trained or self.trials.exists() or self.front.exists()

    def read(self) -> dict[str, Any]:
        """experiment.json, of which all that the package looks at is of its kind, or absent.

        Raises:
            RunError: it is not, or there is none.
        """
        stored = self._json("experiment.json")
        if fault := fault_in_description(stored):
            raise RunError(
                f"{self.path / 'experiment.json'} must hold what `nas run` writes, but {fault}. Restore it, "
                f"or start a new run."
            )
        return dict(stored)

    def update(self, **values: Any) -> None:
        """Sets top-level entries of experiment.json."""
        current = self.read() if self.exists else {}
        write_atomically(self.path / "experiment.json", json.dumps(current | values, indent=2) + "\n")

    def copy_source(self, file: Path | None) -> None:
        """Keeps a copy of the experiment's file beside its results, for reading."""
        if file is not None:
            write_atomically(self.path / "experiment.py", file.read_text(encoding="utf-8"))

    def read_front(self) -> list[dict[str, Any]]:
        """front.json, of whose entries all that the package looks at is there.

        Raises:
            RunError: it is not.
        """
        entries = self._json("front.json") if self.front.exists() else []
        faults = map(fault_in_entry, entries) if isinstance(entries, list) else ["it is no list"]
        if fault := next(filter(None, faults), None):
            raise RunError(
                f"{self.front} must hold what `nas verify` writes, but {fault}. Remove the file and verify "
                f"again."
            )
        return list(entries)

    def write_front(self, entries: Sequence[Mapping[str, Any]]) -> None:
        write_atomically(self.front, json.dumps(list(entries), indent=1) + "\n")

    @contextlib.contextmanager
    def lock(self) -> Iterator[None]:
        """Keeps other drivers out for the length of the body; the kernel frees it when a driver dies.

        Raises:
            RunError: another driver is at work in this directory, or something in it is a link.
        """
        self.path.mkdir(parents=True, exist_ok=True)
        self._require_no_links()
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

    def _require_no_links(self) -> None:
        """Raises RunError for links in this directory: they would have us write elsewhere."""
        for folder, folders, files in os.walk(self.path):
            for name in (*folders, *files):
                if (found := Path(folder, name)).is_symlink():
                    raise RunError(
                        f"A run directory must hold its files itself, but {found} is a link to "
                        f"{os.readlink(found)}, and what is written to it would go there. Move that in its "
                        f"place; the run directory as a whole may be a link."
                    )

    def _json(self, name: str) -> Any:
        path = self.path / name
        try:
            return json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            raise RunError(
                f"{self.path} must be a run directory, but has no {name}. `nas run EXPERIMENT` makes one."
            ) from None
        except (ValueError, RecursionError) as error:
            raise RunError(f"{path} must be JSON, but {error}. Restore it, or start a new run.") from None
