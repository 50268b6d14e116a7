"""Inherited against stand-alone accuracy, as a picture."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
import matplotlib.pyplot as plt


def draw_assessment(results: Mapping[str, Any], path: Path) -> Path:
    """A point per subnet, with a line over its trainings, coloured by bin of cost; hollow: never trained."""
    figure, axes = plt.subplots(figsize=(5.2, 4.6), layout="constrained")
    subnets = results["subnets"]
    for b, seen in sorted({(s["bin"], s["seen"]) for s in subnets}, key=lambda kind: (kind[0], not kind[1])):
        inside = [s for s in subnets if (s["bin"], s["seen"]) == (b, seen)]
        inherited = [s["inherited"] for s in inside]
        means = [sum(s["alone"]) / len(s["alone"]) for s in inside]
        ends = [
            [m - min(s["alone"]) for m, s in zip(means, inside, strict=True)],
            [max(s["alone"]) - m for m, s in zip(means, inside, strict=True)],
        ]
        cost = sum(s["mmacs"] for s in inside) / len(inside)
        label = f"{cost:.2g} MMACs{'' if seen else ', never trained'}"
        look: dict[str, Any] = {"color": f"C{b}", "markerfacecolor": f"C{b}" if seen else "white"}
        axes.errorbar(inherited, means, ends, fmt="o", markersize=4, linewidth=1, label=label, **look)
    low = min(min(axes.get_xlim()), min(axes.get_ylim()))
    high = max(max(axes.get_xlim()), max(axes.get_ylim()))
    axes.plot([low, high], [low, high], color="grey", linewidth=0.8, linestyle="--")
    axes.set(xlabel="inherited accuracy, %", ylabel="accuracy trained alone, %")
    axes.legend(frameon=False)
    figure.savefig(path, dpi=120)
    plt.close(figure)
    return path
