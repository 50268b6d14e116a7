"""The figures of the report beside the front; None where there is nothing to show."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go
from plotly.subplots import make_subplots

from nas.objectives import Objective
from nas.reading import (
    Record,
    RunView,
    hypervolumes,
    is_bounds,
    roles,
    title,
    value,
)
from nas.report.front import hover, verified
from nas.report.style import (
    MEASURED,
    MUTED,
    SEARCH,
    error_bars,
    figure,
    search_colours,
    series_colours,
)


def hypervolume_figure(view: RunView, device: str) -> go.Figure | None:
    """How fast each search of a device approached the front, random search beside it."""
    searches = [s for s in view.searches_of(device) if not is_bounds(s)]
    curves = {search: hypervolumes(view, search) for search in searches}
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
    pairs = [(s["latency_ms"], s["predicted_ms"]) for s in held_out if s.get("predicted_ms") is not None]
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
        error_y=error_bars([e["objectives"][shown.quality.name].get("std_error") for e in entries]),
        text=[hover(e, (shown.quality,)) for e in entries],
        hoverinfo="text",
    )
    return made


METRIC = "_metric"


def training_figure(history: Sequence[Record], quality: Objective) -> go.Figure:
    """Loss and the metric of the first two subnets of each step while the supernet trained."""
    metrics = sorted(
        {k for record in history for k, v in record.items() if k.endswith(METRIC) and v is not None}
    )
    made = make_subplots(rows=1, cols=2, horizontal_spacing=0.1)
    look = figure(f"How the supernet learned: its loss, and its subnets' {quality.name}").layout
    plain = look.to_plotly_json()  # without the unset properties, which would undo the two domains
    made.update_layout(plain)
    made.update_xaxes(plain["xaxis"]).update_yaxes(plain["yaxis"])
    panels = (
        (["loss"], "loss", [MUTED]),
        (metrics, title(quality), series_colours(len(metrics))),
    )
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
        name=name.replace(METRIC, " subnet of a step"),
        line={"color": colour, "width": 2},
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
    traces.append(go.Scatter(x=ends, y=ends, mode="lines", line=line, name="equal", hoverinfo="skip"))
    return traces
