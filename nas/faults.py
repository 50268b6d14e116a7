"""What the files of a run directory lack: people edit them, and disks fill up in the middle of one."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any, get_args

from nas.objectives import Direction

ID = re.compile(r"[0-9a-f]{12}")
"""The name of an architecture."""

_KINDS: dict[str, type | tuple[type, ...]] = {
    "name": str,
    "seed": int,
    "source": dict,
    "source.name": str,
    "source.path": (str, type(None)),
    "source.sha256": (str, type(None)),
    "source.set": dict,
    "settings": dict,
    "settings.training": dict,
    "settings.training.distillation": dict,
    "settings.quantization": dict,
    "space": dict,
    "data": str,
    "versions": dict,
    "machine": dict,
    "objectives": list,
    "scales": dict,
    "tracking": dict,
    "tracking.uri": str,
    "tracking.run_id": str,
}
"""Of what stands in experiment.json, as far as it does."""


def fault_in_description(stored: Any) -> str | None:
    """What experiment.json lacks."""
    if not isinstance(stored, dict):
        return f"it is {stored!r}"
    for path, kind in _KINDS.items():
        *inside, name = path.split(".")
        part: Any = stored
        for step in inside:
            part = part.get(step, {})
        if name in part and not isinstance(part[name], kind):
            return f"`{path}` is {part[name]!r}"
    for name, text in stored.get("source", {}).get("set", {}).items():
        if not isinstance(text, str):
            return f"`source.set` gives {name} the value {text!r}, which is no text"
    for objective in stored.get("objectives", []):
        wanted = {"name", "unit", "direction"}
        if (
            not isinstance(objective, dict)
            or objective.keys() != wanted
            or not all(map(_is_text, objective.values()))
        ):
            return f"`objectives` has {objective!r} and no name, unit and direction"
        if objective["direction"] not in get_args(Direction):
            return f"`direction` of {objective['name']} is {objective['direction']!r}"
    for device, scale in stored.get("scales", {}).items():
        ends = [scale.get(end) for end in ("ideal", "nadir")] if isinstance(scale, dict) else []
        if not ends or not all(
            isinstance(e, list) and None not in e and all(map(_is_number, e)) for e in ends
        ):
            return f"`scales` of {device} are {scale!r}"
    return None


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def fault_in_entry(entry: Any) -> str | None:
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
        if name != "interval" and not _is_number(value):
            return f"`{name}` of {entry['id']} is {value!r}"
    return _fault_in_figures(entry)


def _fault_in_figures(entry: Mapping[str, Any]) -> str | None:
    """What an entry lacks of the figures that pages and cards tell."""
    test, interval = entry["test"], entry["test"].get("interval")
    metrics = [name for name in test if name in entry["objectives"]]
    if len(metrics) != 1:
        return f"`test` of {entry['id']} has {', '.join(metrics) or 'none'} of its objectives and not one"
    of_metric = entry["objectives"][metrics[0]]
    known = of_metric.get("std_error") is not None or of_metric.get("n") != 1  # of one value there is none
    if interval is not None or known:
        ends = interval if isinstance(interval, list) else []
        if len(ends) != 2 or None in ends or not all(map(_is_number, ends)):
            return f"`interval` of {entry['id']} is {interval!r}"
    of_latency = entry["objectives"].get(f"latency_ms.{entry['device']}", {})
    named = {
        "drift": entry.get("drift"),
        "n": test.get("n"),
        metrics[0]: test[metrics[0]],
        f"n of {metrics[0]}": of_metric.get("n"),
        **({f"std_error of {metrics[0]}": of_metric.get("std_error")} if known else {}),
        **{f"{name} of latency": of_latency.get(name) for name in ("measured", "spread")},
    }
    for name, value in named.items():
        if value is None:
            return f"`{name}` of {entry['id']} is missing"
        if value <= 0 and name in ("drift", "n", f"n of {metrics[0]}", "measured of latency"):
            return f"`{name}` of {entry['id']} is {value!r} and not above 0"
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
    """A finite one, or none yet."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return value is None or (number and math.isfinite(value))
