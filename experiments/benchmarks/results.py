"""Where benchmarks leave what they found."""

from __future__ import annotations

import json
import platform
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent.parent / "results"


def summary(ratios: np.ndarray) -> dict[str, Any]:
    """Median and quartiles of ratios of interleaved runs."""
    low, middle, high = np.percentile(ratios, (25, 50, 75))
    return {"median": float(middle), "quartiles": [float(low), float(high)], "n": len(ratios)}


def write(name: str, results: dict[str, Any]) -> Path:
    """Writes results/NAME.json, with the machine and versions."""
    FOLDER.mkdir(exist_ok=True)
    path = FOLDER / f"{name}.json"
    machine = {
        "processor": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__.partition("+")[0],
        "threads": torch.get_num_threads(),
    }
    path.write_text(json.dumps(results | {"machine": machine}, indent=1) + "\n")
    return path
