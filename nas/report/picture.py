"""The verified front as a picture for a README."""

from __future__ import annotations

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from nas.errors import RunError
from nas.reading import Record, Roles, RunView, having, is_random, point, read_run, roles, title
from nas.report.front import front_corners, verified
from nas.report.style import GRID, INK, MEASURED, MUTED, RANDOM, SEARCH


def render_front_png(run_dir: Path | str, device: str) -> Path:
    """Writes ``front.png`` (of another device than the first: ``front.DEVICE.png``); returns its path.

    Shows every trial of the device's searches, random search in grey, and the verified front.

    Raises:
        RunError: the run has no such device, or fewer than two objectives on it.
    """
    view = read_run(run_dir)
    if device not in view.device_names:
        known = ", ".join(view.device_names) or "none yet"
        raise RunError(f"The device must be one of the run's: got {device!r}, it has {known}.")
    shown = roles(view.objectives_of(device), device)
    if shown is None:
        raise RunError(f"A front needs two objectives, but {view.path} has fewer on {device!r}.")
    default = next((o.name.partition(".")[2] for o in view.objectives if "." in o.name), device)
    path = view.path / ("front.png" if device == default else f"front.{device}.png")
    _draw(view, device, shown).savefig(path, dpi=160)
    return path


def _draw(view: RunView, device: str, shown: Roles) -> Figure:
    picture = Figure(figsize=(8, 5), layout="constrained")  # no pyplot: no global state, no display
    axes = picture.subplots()
    _draw_trials(axes, view, device, shown)
    entries = [e for e in verified(view, device, shown) if e["front"]]
    if entries:
        _draw_front(axes, entries, shown)
    axes.set_title(f"{view.name}: the verified front on {device}", loc="left", color=INK, fontsize=13)
    axes.set_xlabel(title(shown.cost), color=INK)
    axes.set_ylabel(title(shown.quality), color=INK)
    axes.grid(color=GRID, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color(GRID)
    axes.tick_params(colors=MUTED, length=0)
    picture.legend(frameon=False, labelcolor=MUTED, loc="outside lower left", ncols=2)
    return picture


def _draw_trials(axes: Axes, view: RunView, device: str, shown: Roles) -> None:
    for search in reversed(view.searches_of(device)):
        trials = having((shown.cost, shown.quality), view.complete(search))
        axes.scatter(
            [t["objectives"][shown.cost.name] for t in trials],
            [t["objectives"][shown.quality.name] for t in trials],
            s=14,
            color=RANDOM if is_random(search) else SEARCH,
            alpha=0.45,
            linewidths=0,
            label=f"{search}, {len(trials)} trials (predicted)",
        )


def _draw_front(axes: Axes, entries: list[Record], shown: Roles) -> None:
    points = [p for e in entries if (p := point(e, shown.cost, shown.quality, "measured"))]
    x, y = zip(*points, strict=True)
    errors = [e["objectives"][shown.quality.name].get("std_error") or 0.0 for e in entries]
    corners = front_corners(entries, shown)
    axes.step(*zip(*corners, strict=True), where="post", color=MEASURED, linewidth=1.6)
    axes.errorbar(
        x,
        y,
        yerr=errors,
        fmt="o",
        color=MEASURED,
        markeredgecolor="white",
        markersize=7.5,
        ecolor=f"{MEASURED}80",  # half transparent
        elinewidth=1,
        label="verified front (measured ± standard error)",
    )
