"""`nas`: one weight-sharing transformer supernet, searched for each of your devices.

The names below are imported when they are first used, so that the half of the package that searches
never pays for the half that computes.
"""

from __future__ import annotations

import importlib
import os
from typing import Any

# Both are read when a library is loaded. ONNX Runtime would keep a telemetry database and a thread for it
# in every process. Threads that spin long while they wait for one another stall a training 20 times over
# as soon as another process wants the same cores; spinning for a moment costs 5 % on quiet ones.
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
os.environ.setdefault("GOMP_SPINCOUNT", "1000")

_PUBLIC = {
    "Constraint": "nas.space",
    "Device": "nas.devices",
    "Experiment": "nas.experiment",
    "Objective": "nas.objectives",
    "OnnxRuntime": "nas.devices",
    "Profiling": "nas.experiment",
    "Recipe": "nas.training",
    "Search": "nas.experiment",
    "Space": "nas.space",
    "Study": "nas.study",
    "Supernet": "nas.supernet",
    "TorchEager": "nas.devices",
    "between": "nas.space",
    "from_arrays": "nas.tasks",
    "from_npz": "nas.tasks",
    "from_path": "nas.tasks",
    "oneof": "nas.space",
    "repeat": "nas.space",
    "tied": "nas.space",
}

__all__ = sorted([*_PUBLIC, "run"])


def __getattr__(name: str) -> Any:
    if name == "run":
        return importlib.import_module("nas.phases").run_experiment
    if name in _PUBLIC:
        return getattr(importlib.import_module(_PUBLIC[name]), name)
    raise AttributeError(f"module 'nas' has no attribute {name!r}")
