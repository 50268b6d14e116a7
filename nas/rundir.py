"""A run directory: one experiment's files, and who may write them."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.errors import RunError
from nas.files import write_atomically


def _fault(entry: Any) -> str | None:
    """What an entry of front.json lacks."""
    if not isinstance(entry, Mapping):
        return f"an entry is {entry!r}"
    if not ID.fullmatch(str(entry.get("id"))):
        return f"an id, of which paths are made, is {entry.get('id')!r} and not 12 hex digits"
    kinds = {"device": str, "search": str, "weights": str, "front": bool, "architecture": Mapping}
    for name, kind in (kinds | {"objectives": Mapping, "test": Mapping}).items():
        if not isinstance(entry.get(name), kind) or entry[name] == {}:
            return f"`{name}` of {entry['id']} is {entry.get(name)!r}"
    for name, values in entry["objectives"].items():
        if not isinstance(values, Mapping) or not all(map(_is_number, values.values())):
            return f"`{name}` of {entry['id']} is {values!r}"
        if values.get("measured") is None:
            return f"`{name}` of {entry['id']} was not measured"
    for name, value in {**entry["test"], "drift": entry.get("drift")}.items():
        if not all(map(_is_number, value if isinstance(value, list) else [value])):
            return f"`{name}` of {entry['id']} is {value!r}"
    return _fault_in_figures(entry)


def _fault_in_figures(entry: Mapping[str, Any]) -> str | None:
    """What an entry lacks of the figures that pages and cards tell."""
    test, interval = entry["test"], entry["test"].get("interval")
    metrics = [name for name in test if name in entry["objectives"]]
    if len(metrics) != 1:
        return f"`test` of {entry['id']} has {', '.join(metrics) or 'none'} of its objectives and not one"
    if (
        not isinstance(interval, list)
        or len(interval) != 2
        or None in interval
        or not all(map(_is_number, interval))
    ):
        return f"`interval` of {entry['id']} is {interval!r}"
    of_metric = entry["objectives"][metrics[0]]
    of_latency = entry["objectives"].get(f"latency_ms.{entry['device']}", {})
    named = {
        "drift": entry.get("drift"),
        "n": test.get("n"),
        metrics[0]: test[metrics[0]],
        **{f"{name} of {metrics[0]}": of_metric.get(name) for name in ("n", "std_error")},
        **{f"{name} of latency": of_latency.get(name) for name in ("measured", "spread")},
    }
    for name, value in named.items():
        if value is None:
            return f"`{name}` of {entry['id']} is missing"
    trained = entry.get("trained", {})
    if not isinstance(trained, Mapping) or not all(map(_is_training, trained.values())):
        return f"`trained` of {entry['id']} is {trained!r}"
    return None


def _is_training(record: Any) -> bool:
    """Whether it is what `nas finetune` notes, as far as cards tell it."""
    if not isinstance(record, Mapping) or not isinstance(record.get("settings", {}), Mapping):
        return False
    numbers = [record.get("epochs"), *record.get("settings", {}).values()]
    return None not in numbers and all(map(_is_number, numbers))


def _is_number(value: Any) -> bool:
    return value is None or (isinstance(value, (int, float)) and not isinstance(value, bool))


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
        """front.json, of whose entries all that the package looks at is there.

        Raises:
            RunError: it is not.
        """
        entries = self._json("front.json") if self.front.exists() else []
        faults = map(_fault, entries) if isinstance(entries, list) else ["it is no list"]
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
