"""The study log: append-only JSON Lines, one trial a line, the only state that a search keeps."""

from __future__ import annotations

import dataclasses
import fcntl
import json
import logging
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from nas.errors import NasError, RunError
from nas.space import Space
from nas.trial import Trial

SCHEMA = 1

_FIELDS = tuple(field.name for field in dataclasses.fields(Trial))

_logger = logging.getLogger(__name__)


class TrialLog:
    """The trials of a run in the file at `path`; architectures are built by `space`.

    A process may be killed at any byte. A last line without its newline was never finished: readers
    leave it out, and the next `append` cuts it off. Several processes may append to one log.
    """

    def __init__(self, path: Path | str, space: Space) -> None:
        self.path = Path(path)
        self.space = space
        self._fingerprint = space.fingerprint

    def read(self) -> list[Trial]:
        """All finished trials, of all searches, in the order they were written; [] without a file.

        Raises:
            RunError: a finished line is not a trial of this space; names file and line.
        """
        if unfinished := _unfinished(self.path):
            _logger.warning("%s: dropped an unfinished line of %d bytes.", self.path, unfinished)
        return [self._parse(where, record) for where, record in _records(self.path)]

    def append(self, trial: Trial) -> None:
        """Writes one line. Once this returns, the trial outlives this process."""
        line = json.dumps(self._to_json(trial), allow_nan=False, separators=(",", ":")) + "\n"
        with self.path.open("a+b") as file:
            fcntl.flock(file, fcntl.LOCK_EX)  # released on closing
            _cut_unfinished_line(file)
            file.write(line.encode())

    def _to_json(self, trial: Trial) -> dict[str, Any]:
        record = {name: getattr(trial, name) for name in _FIELDS} | {"schema": SCHEMA}
        record["architecture"] = self.space.to_json(trial.architecture)
        record["objectives"] = dict(trial.objectives)
        return record

    def _parse(self, where: str, record: dict[str, Any]) -> Trial:
        try:
            return self._trial(record)
        except KeyError as error:
            raise _bad_line(where, f"it lacks {error}") from error
        except (NasError, TypeError, ValueError) as error:
            raise _bad_line(where, str(error)) from error

    def _trial(self, record: dict[str, Any]) -> Trial:
        if record["schema"] != SCHEMA:
            raise ValueError(f"it has schema {record['schema']!r}, this version reads {SCHEMA}.")
        if record["space"] != self._fingerprint:
            raise ValueError(f"it is of space {record['space']}, not {self._fingerprint}.")
        values = {name: record[name] for name in _FIELDS}
        values["genes"] = tuple(record["genes"])
        values["architecture"] = self.space.from_json(record["architecture"])
        trial = Trial(**values)
        if (named := self.space.id(trial.architecture)) != trial.id:
            raise ValueError(f"its architecture has id {named}, but the line says {trial.id}.")
        return trial


NEEDED = {"id": str, "search": str, "number": int, "state": str, "architecture": dict, "objectives": dict}


def read_raw(path: Path | str) -> list[dict[str, Any]]:
    """The finished lines of a log as plain dictionaries: for onlookers, who have no space.

    Raises:
        RunError: a finished line is not a JSON object; names file and line.
    """
    return [record for _, record in _records(Path(path))]


def _records(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """(file:line, JSON object) of every finished line."""
    text = path.read_bytes() if path.exists() else b""
    for number, line in enumerate(text.split(b"\n")[:-1], start=1):
        where = f"{path}:{number}"
        try:
            record = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise _bad_line(where, str(error)) from error
        if not isinstance(record, dict):
            raise _bad_line(where, f"it holds {record!r}")
        for name, kind in NEEDED.items():
            if not isinstance(record.get(name), kind):
                raise _bad_line(
                    where, f"its `{name}` is {record[name]!r}" if name in record else f"it has no `{name}`"
                )
        if bad := [n for n, v in record["objectives"].items() if not isinstance(v, (int, float))]:
            raise _bad_line(where, f"its `{bad[0]}` is {record['objectives'][bad[0]]!r}")
        yield where, record


def _bad_line(where: str, why: str) -> RunError:
    remedy = "Mend or remove that line, or start a new run directory."
    return RunError(f"{where} must be a trial of this run, but {why.rstrip('.')}. {remedy}")


def _unfinished(path: Path) -> int:
    """Bytes after the last newline."""
    return len(path.read_bytes().rpartition(b"\n")[2]) if path.exists() else 0


def _cut_unfinished_line(file: IO[bytes]) -> None:
    end = file.seek(0, os.SEEK_END)
    file.seek(max(0, end - 1))
    if file.read() not in (b"", b"\n"):
        file.seek(0)
        file.truncate(file.read().rfind(b"\n") + 1)
