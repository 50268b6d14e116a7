"""Inherited against stand-alone accuracy, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_assessment(results: Mapping[str, Any], path: Path) -> Path:
    """A point per subnet, with a line over its trainings, coloured by bin of cost."""
    figure, axes = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
    subnets = results["subnets"]
    for b in sorted({s["bin"] for s in subnets}):
        inside = [s for s in subnets if s["bin"] == b]
        inherited = [s["inherited"] for s in inside]
        means = [sum(s["alone"]) / len(s["alone"]) for s in inside]
        ends = [
            [m - min(s["alone"]) for m, s in zip(means, inside, strict=True)],
            [max(s["alone"]) - m for m, s in zip(means, inside, strict=True)],
        ]
        cost = sum(s["mmacs"] for s in inside) / len(inside)
        axes.errorbar(
            inherited, means, yerr=ends, fmt="o", markersize=4, linewidth=1, label=f"{cost:.2g} MMACs"
        )
    low = min(min(axes.get_xlim()), min(axes.get_ylim()))
    high = max(max(axes.get_xlim()), max(axes.get_ylim()))
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="inherited accuracy, %", ylabel="accuracy trained alone, %")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
