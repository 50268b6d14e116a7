"""Where benchmarks leave what they found."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

FOLDER = Path(__file__).parent.parent / "results"


def between_marks(page: str, command: str, text: str) -> str:
    """`page` with `text` between ``<!-- command -->`` and ``<!-- end -->``."""
    begin, end = f"<!-- {command} -->\n", "<!-- end -->"
    before, found, rest = page.partition(begin)
    if not found or end not in rest:
        raise ValueError(f"The page must have the marks {begin.strip()} and {end}.")
    return before + begin + text + end + rest.partition(end)[2]


def table(columns: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """A table in Markdown."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "".join(f"| {' | '.join(map(str, line))} |\n" for line in lines)


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
