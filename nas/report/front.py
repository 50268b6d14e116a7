"""The verified front over everything that was tried."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go

from nas.objectives import Objective
from nas.outline import outline
from nas.reading import (
    Point,
    Record,
    Roles,
    RunView,
    having,
    is_random,
    point,
    roles,
    staircase,
    title,
    value,
)
from nas.report.style import (
    MEASURED,
    MUTED,
    RANDOM,
    SEARCH,
    error_bars,
    figure,
    marker_sizes,
)

HOVER_LINES = 18


def front_figure(view: RunView, device: str) -> go.Figure | None:
    """All trials of a device's searches and its verified front, as predicted and as measured."""
    shown = roles(view.objectives_of(device), device)
    if shown is None:
        return None
    made = figure(
        f"The verified front on {escape(device)}, over everything that was tried",
        x=title(shown.cost),
        y=title(shown.quality),
        height=540,
        hovermode="closest",
    )
    for search in reversed(view.searches_of(device)):  # random search below the others
        made.add_trace(_trial_dots(view, search, shown))
    entries = verified(view, device, shown)
    if entries:
        made.add_trace(_drift_lines(entries, shown))
        made.add_trace(_predicted_dots(entries, shown))
        made.add_trace(_front_line(entries, shown))
        made.add_traces(_measured_dots(entries, shown))
    return made


def verified(view: RunView, device: str, shown: Roles) -> list[Record]:
    """The device's finalists with both measured numbers, by cost."""
    entries = view.front_of(device)
    both = [e for e in entries if point(e, shown.cost, shown.quality, "measured")]
    return sorted(both, key=lambda e: value(e, shown.cost, "measured") or 0.0)


def front_corners(entries: Sequence[Record], shown: Roles) -> list[Point]:
    """Where the line along the measured front turns."""
    on_front = [e for e in entries if e["front"]]
    points = [p for e in on_front if (p := point(e, shown.cost, shown.quality, "measured"))]
    return staircase(points, shown.cost, shown.quality)


def hover(entry: Record, objectives: Sequence[Objective]) -> str:
    """A finalist's numbers and architecture for a hover label."""
    numbers = []
    for objective in objectives:
        predicted, measured = (value(entry, objective, k) for k in ("predicted", "measured"))
        shown = f"{_text(measured)} measured, {_text(predicted)} predicted"
        numbers.append(f"{escape(title(objective))}: {shown}")
    lines = outline(entry["architecture"]).split("\n")
    if len(lines) > HOVER_LINES:
        lines = [*lines[:HOVER_LINES], f"… {len(lines) - HOVER_LINES} more lines"]
    tree = [escape(line).replace(" ", "\u00a0") for line in lines]
    return "<br>".join([f"<b>{escape(entry['id'])}</b>", *numbers, "", *tree])


def _trial_dots(view: RunView, search: str, shown: Roles) -> go.Scatter:
    trials = having((shown.cost, shown.quality), view.complete(search))
    return go.Scatter(
        x=[t["objectives"][shown.cost.name] for t in trials],
        y=[t["objectives"][shown.quality.name] for t in trials],
        mode="markers",
        name=f"{escape(search)}: {len(trials)} trials (predicted)",
        marker={"color": RANDOM if is_random(search) else SEARCH, "size": 5, "opacity": 0.4},
        text=[escape(t["id"]) for t in trials],
        hovertemplate="%{text}<br>%{x:.4g}, %{y:.4g}<extra></extra>",
    )


def _drift_lines(entries: Sequence[Record], shown: Roles) -> go.Scatter:
    """A thin line from what was predicted of each finalist to what was measured."""
    x: list[float | None] = []
    y: list[float | None] = []
    for entry in entries:
        ends = [point(entry, shown.cost, shown.quality, kind) for kind in ("predicted", "measured")]
        if all(ends):
            x += [*(end[0] for end in ends if end), None]
            y += [*(end[1] for end in ends if end), None]
    line = {"color": MUTED, "width": 1, "dash": "dot"}
    return go.Scatter(x=x, y=y, mode="lines", line=line, hoverinfo="skip", showlegend=False)


def _predicted_dots(entries: Sequence[Record], shown: Roles) -> go.Scatter:
    points = [p for e in entries if (p := point(e, shown.cost, shown.quality, "predicted"))]
    return go.Scatter(
        x=[p[0] for p in points],
        y=[p[1] for p in points],
        mode="markers",
        name="finalists, predicted",
        marker={"color": "white", "size": 8, "line": {"color": SEARCH, "width": 1.6}},
        hoverinfo="skip",
    )


def _front_line(entries: Sequence[Record], shown: Roles) -> go.Scatter:
    corners = front_corners(entries, shown)
    return go.Scatter(
        x=[x for x, _ in corners],
        y=[y for _, y in corners],
        mode="lines",
        line={"color": MEASURED, "width": 1.5, "shape": "hv"},
        hoverinfo="skip",
        showlegend=False,
    )


def _measured_dots(entries: Sequence[Record], shown: Roles) -> list[go.Scatter]:
    """The finalists as measured: filled on the front, hollow behind it, with standard errors."""
    sizes = [value(e, shown.size, "measured") if shown.size else None for e in entries]
    sized = list(zip(entries, marker_sizes(sizes), strict=True))
    area = f"; area: {title(shown.size)}" if shown.size else ""
    behind = [(e, size) for e, size in sized if not e["front"]]
    front = [(e, size) for e, size in sized if e["front"]]
    hollow = {"color": "white", "line": {"color": MEASURED, "width": 1.4}}
    filled = {"color": MEASURED, "line": {"color": "white", "width": 1.2}}
    return [
        _measured_trace("finalists behind the front", behind, shown, hollow),
        _measured_trace(f"the front, measured{area}", front, shown, filled),
    ]


def _measured_trace(
    name: str, sized: Sequence[tuple[Record, float]], shown: Roles, marker: dict[str, Any]
) -> go.Scatter:
    everything = [o for o in (shown.quality, shown.cost, shown.size) if o]
    errors = [e["objectives"][shown.quality.name].get("std_error") for e, _ in sized]
    return go.Scatter(
        x=[value(e, shown.cost, "measured") for e, _ in sized],
        y=[value(e, shown.quality, "measured") for e, _ in sized],
        mode="markers",
        name=name,
        marker=marker | {"size": [size for _, size in sized], "opacity": 1},
        error_y=error_bars(errors),
        text=[hover(e, everything) for e, _ in sized],
        hoverinfo="text",
    )


def _text(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"
