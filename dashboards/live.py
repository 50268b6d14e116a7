"""A run directory that is being written, read bit by bit."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from threading import Lock
from typing import Any

from nas.reading import Record, RunView

REQUIRED = ("search", "number", "id", "state", "objectives")


class LiveRun:
    """What a run directory says so far; `poll` looks again, at the cost of what was added.

    Nothing that a writer may do stops it: files may be missing, a line or a file half written.
    Several browser windows may share one; each remembers the `version` that it shows.
    """

    def __init__(self, run_dir: Path | str) -> None:
        self.path = Path(run_dir)
        self.unreadable = 0  # finished lines of the log that are no trials
        self.version = 0
        self.view = RunView(self.path)
        self._offset = 0  # bytes of the log that were read
        self._stamps: dict[Path, tuple[int, int]] = {}
        self._lock = Lock()

    def poll(self) -> int:
        """Reads what is new; the version, greater than before if anything was."""
        with self._lock:
            changes: dict[str, Any] = {}
            if trials := self._new_trials():
                changes["trials"] = self.view.trials + trials
            for field, name in (("experiment", "experiment.json"), ("front", "front.json")):
                if (found := self._changed(self.path / name)) is not None:
                    changes[field] = found
            if profiles := self._changed_profiles():
                changes["devices"] = self.view.devices | profiles
            if changes:
                self.view = dataclasses.replace(self.view, **changes)
                self.version += 1
            return self.version

    def _new_trials(self) -> list[Record]:
        """Trials of the log's finished lines since the last look."""
        try:
            with (self.path / "trials.jsonl").open("rb") as file:
                file.seek(self._offset)
                finished, newline, _ = file.read().rpartition(b"\n")
        except FileNotFoundError:
            return []
        self._offset += len(finished + newline)
        parsed = [_parse(line) for line in finished.split(b"\n")] if newline else []
        self.unreadable += parsed.count(None)
        return [record for record in parsed if record is not None]

    def _changed_profiles(self) -> dict[str, Record]:
        paths = sorted((self.path / "devices").glob("*.json"))
        found = {path.stem: self._changed(path) for path in paths}
        return {name: profile for name, profile in found.items() if profile is not None}

    def _changed(self, path: Path) -> Any | None:
        """The JSON in `path` if it is new and whole; a half-written file is looked at again."""
        try:
            status = path.stat()
            stamp = (status.st_mtime_ns, status.st_size)
            if self._stamps.get(path) == stamp:
                return None
            content = json.loads(path.read_bytes())
        except (OSError, ValueError):
            return None
        self._stamps[path] = stamp
        return content


def _parse(line: bytes) -> Record | None:
    try:
        record = json.loads(line)
    except ValueError:
        return None
    whole = isinstance(record, dict) and all(key in record for key in REQUIRED)
    return record if whole else None
