"""The figures of the report. Each takes what it shows and returns a Plotly figure, or None for no data."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape
from typing import Any

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nas.objectives import Objective
from nas.outline import outline
from nas.reading import (
    Point,
    Record,
    Roles,
    RunView,
    having,
    hypervolumes,
    is_random,
    point,
    roles,
    staircase,
    title,
    value,
)
from nas.report.style import (
    GRID,
    MEASURED,
    MUTED,
    RANDOM,
    SEARCH,
    SERIES,
    figure,
    marker_sizes,
)

HOVER_LINES = 18


def front_figure(view: RunView, device: str) -> go.Figure | None:
    """All trials of a device's searches, and its verified front with predicted and measured numbers."""
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


def hypervolume_figure(view: RunView, device: str) -> go.Figure | None:
    """How fast each search of a device approached the front, random search beside it."""
    curves = {s: hypervolumes(view, s) for s in view.searches_of(device)}
    known = {search: curve for search, curve in curves.items() if curve}
    if not known:
        return None
    made = figure(
        "Hypervolume as the search goes on",
        x="candidates tried",
        y="normalised hypervolume (predicted)",
    )
    for (search, curve), colour in zip(known.items(), search_colours(list(known)), strict=True):
        tried, volume = zip(*curve, strict=True)
        line = {"color": colour, "width": 2.5, "shape": "hv"}
        made.add_scatter(x=tried, y=volume, mode="lines", name=escape(search), line=line)
    return made


def latency_figure(profile: Record) -> go.Figure | None:
    """Predicted against measured latency of a device's held-out samples."""
    held_out = [s for s in profile.get("samples", []) if s.get("held_out")]
    pairs = [
        (s["latency_ms"], s["predicted_ms"]) for s in held_out if s.get("predicted_ms") is not None
    ]
    if not pairs:
        return None
    made = figure(
        "The latency model on architectures that it was not fitted to",
        x="measured latency (ms)",
        y="predicted latency (ms)",
    )
    measured, predicted = zip(*pairs, strict=True)
    made.add_traces(_diagonal([*measured, *predicted], band=0.1))
    dots = {"color": SEARCH, "size": 7, "opacity": 0.8}
    made.add_scatter(x=measured, y=predicted, mode="markers", name="held-out samples", marker=dots)
    return made


def accuracy_figure(view: RunView, device: str) -> go.Figure | None:
    """What the search believed of its finalists against what the split *select* says."""
    shown = roles(view.objectives_of(device), device)
    entries = verified(view, device, shown) if shown else []
    if not shown or not entries:
        return None
    name = title(shown.quality)
    made = figure(
        "The finalists on data that the search did not see",
        x=f"{name} on split search",
        y=f"{name} on split select",
    )
    x = [value(e, shown.quality, "predicted") for e in entries]
    y = [value(e, shown.quality, "measured") for e in entries]
    made.add_traces(_diagonal([v for v in x + y if v is not None]))
    made.add_scatter(
        x=x,
        y=y,
        mode="markers",
        name="finalists ± standard error",
        marker={"color": MEASURED, "size": 9},
        error_y=_error_bars(
            [e["objectives"][shown.quality.name].get("std_error") for e in entries]
        ),
        text=[hover(e, (shown.quality,)) for e in entries],
        hoverinfo="text",
    )
    return made


def training_figure(history: Sequence[Record]) -> go.Figure | None:
    """Loss and the accuracy of the sampled extremes while the supernet trained."""
    if not history:
        return None
    accuracies = sorted({k for record in history for k in record if k.endswith("_accuracy")})
    made = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    look = figure("How the supernet learned: its loss, and its subnets' accuracy").layout
    made.update_layout(look)
    made.update_layout(xaxis2=look.xaxis, yaxis2=look.yaxis)  # the domains stay make_subplots'
    panels = ((["loss"], "loss", [MUTED]), (accuracies, "accuracy (%)", _cycle(len(accuracies))))
    for column, (names, axis, colours) in enumerate(panels, start=1):
        made.update_xaxes(title_text="training step", row=1, col=column)
        made.update_yaxes(title_text=axis, row=1, col=column)
        for name, colour in zip(names, colours, strict=True):
            made.add_trace(_curve(history, name, colour), row=1, col=column)
    return made


def _curve(history: Sequence[Record], name: str, colour: str) -> go.Scatter:
    """One column of the history; records that lack it are left out."""
    points = [(r["step"], r[name]) for r in history if r.get(name) is not None]
    return go.Scatter(
        x=[step for step, _ in points],
        y=[number for _, number in points],
        mode="lines",
        name=name.removesuffix("_accuracy"),
        line={"color": colour, "width": 2},
    )


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


def search_colours(searches: Sequence[str]) -> list[str]:
    """A colour for each search; random search is grey."""
    others = [s for s in searches if not is_random(s)]
    colours = dict(zip(others, _cycle(len(others)), strict=True))
    return [colours.get(s, RANDOM) for s in searches]


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
    """The finalists as measured: filled on the front, hollow behind it, error bars at the accuracy."""
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
        error_y=_error_bars(errors),
        text=[hover(e, everything) for e, _ in sized],
        hoverinfo="text",
    )


def _diagonal(values: Sequence[float], band: float = 0.0) -> list[go.Scatter]:
    """The line of perfect agreement, and a band of ± `band` (a share) around it."""
    low, high = min(values), max(values)
    ends = [low, high]
    traces = []
    if band:
        edge = [v * (1 + band) for v in ends] + [v * (1 - band) for v in reversed(ends)]
        traces.append(
            go.Scatter(
                x=[low, high, high, low],
                y=edge,
                fill="toself",
                fillcolor="rgba(95, 111, 128, 0.12)",
                line={"width": 0},
                mode="lines",
                name=f"± {band:.0%}",
                hoverinfo="skip",
            )
        )
    line = {"color": MUTED, "width": 1.2, "dash": "dash"}
    traces.append(
        go.Scatter(x=ends, y=ends, mode="lines", line=line, name="equal", hoverinfo="skip")
    )
    return traces


def _error_bars(errors: Sequence[float | None]) -> dict[str, Any]:
    return {
        "type": "data",
        "array": [e or 0.0 for e in errors],
        "color": "rgba(213, 84, 26, 0.5)",
        "thickness": 1,
        "width": 0,
    }


def _cycle(n: int) -> list[str]:
    return [SERIES[i % len(SERIES)] for i in range(n)]


def _text(number: float | None) -> str:
    return "–" if number is None else f"{number:.4g}"
