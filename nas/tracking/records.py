"""Trials and front entries in MLflow's terms: legal names, bounded texts, flat numbers."""

from __future__ import annotations

import hashlib
import json
import posixpath
import re
from collections.abc import Iterator, Mapping
from typing import Any

from nas.architecture import to_json
from nas.trial import Trial

KEY_LENGTH = 250  # MLflow's limit
PARAM_LENGTH = 6000  # likewise


def param_texts(params: Mapping[str, Any]) -> dict[str, str]:
    """Settings, nested or flat, by dotted name: ``{"training.epochs": "3"}``. Lists stay whole."""
    return {legal_key(name): shortened(text, PARAM_LENGTH) for name, text in _leaves(params)}


def entry_metrics(entry: Mapping[str, Any]) -> dict[str, float]:
    """``accuracy/measured``, ``latency_ms.pi4/predicted``, …: all numbers of its objectives."""
    numbers = {
        legal_key(f"{objective}/{kind}"): number
        for objective, kinds in entry["objectives"].items()
        for kind, number in kinds.items()
    }
    return {key: float(n) for key, n in numbers.items() if isinstance(n, (int, float))}


def table_row(trial: Trial) -> dict[str, Any]:
    """A trial as a line of the table."""
    return {
        "search": trial.search,
        "number": trial.number,
        "id": trial.id,
        "state": trial.state,
        "rung": trial.rung,
        **trial.objectives,
        "n": trial.n,
        "std_error": trial.std_error,
        "evaluated": trial.evaluated,
        "error": trial.error,
        "architecture": json.dumps(to_json(trial.architecture)),
    }


def _leaves(settings: Mapping[str, Any], path: str = "") -> Iterator[tuple[str, str]]:
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{path}{name}.")
        else:
            yield f"{path}{name}", str(value)


def legal_key(name: str) -> str:
    """`name` as MLflow allows it: letters, digits, ``_-. /``, a normal path, 250 characters."""
    legal = re.sub(r"[^\w.\- /]", "_", name, flags=re.ASCII)
    normal = posixpath.normpath(legal.replace("..", "__")).strip("/")
    return shortened(normal if normal not in ("", ".") else "_", KEY_LENGTH)


def shortened(text: str, length: int) -> str:
    """`text`, or its beginning and a hash of the whole, so that different texts stay different."""
    if len(text) <= length:
        return text
    return f"{text[: length - 13]}.{hashlib.sha256(text.encode()).hexdigest()[:12]}"
