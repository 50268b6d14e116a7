"""The explorer's two figures."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

import plotly.graph_objects as go

from nas.objectives import Objective
from nas.reading import (
    Record,
    RunView,
    having,
    hypervolumes,
    is_bounds,
    nondominated_trials,
    point,
    staircase,
    title,
)
from nas.report.style import INK, MEASURED, figure, search_colours

HEIGHTS = {"front": 520, "hypervolume": 300}


def live_front(
    view: RunView,
    device: str,
    searches: Sequence[str],
    x: Objective,
    y: Objective,
    selected: str | None,
) -> go.Figure:
    """Every complete trial of `searches`, each search's front so far, and what was verified.

    A point's ``customdata`` is the id of its architecture. What the user zoomed into stays while
    trials arrive, until other axes or another device are chosen.
    """
    made = figure(
        f"{title(y)} against {title(x)} on {device}",
        x=title(x),
        y=title(y),
        height=HEIGHTS["front"],
        uirevision=f"{device} {x.name} {y.name}",
        hovermode="closest",
    )
    ordered = [s for s in reversed(view.searches_of(device)) if s in searches]
    colours = dict(zip(view.searches_of(device), search_colours(view.searches_of(device)), strict=True))
    for search in ordered:
        made.add_traces(_search_traces(view, search, colours[search], x, y))
    made.add_traces(_verified_traces(view.front_of(device), x, y))
    if selected:
        made.add_traces(_ring(made, selected))
    if not made.data:
        _say(made, "No trial has been finished yet. This page follows the log.")
    return made


def live_hypervolume(view: RunView, device: str, searches: Sequence[str]) -> go.Figure:
    """Normalised hypervolume of each search over the candidates it tried."""
    made = figure(
        "Hypervolume as the search goes on",
        x="candidates tried",
        y="normalised hypervolume",
        height=HEIGHTS["hypervolume"],
        uirevision=device,
        showlegend=True,
    )
    names = view.searches_of(device)
    for search, colour in zip(names, search_colours(names), strict=True):
        if search not in searches or is_bounds(search):
            continue
        if curve := hypervolumes(view, search):
            line = {"color": colour, "width": 2.5, "shape": "hv"}
            tried, volume = zip(*curve, strict=True)
            made.add_scatter(x=tried, y=volume, mode="lines", name=escape(search), line=line)
    if not made.data:
        _say(made, "The scale is fixed from sampled architectures before the first trial.")
    return made


def _search_traces(view: RunView, search: str, colour: str, x: Objective, y: Objective) -> list[go.Scatter]:
    """All trials faintly, those that none dominates in all objectives strongly, their edge."""
    trials = having((x, y), view.complete(search))
    objectives = view.objectives_of(view.device_of(search))
    front = nondominated_trials(trials, objectives)
    chosen = {id(trial) for trial in front}
    rest = [trial for trial in trials if id(trial) not in chosen]
    name = escape(search)
    corners = staircase([_place(t, x, y) for t in front], x, y)
    line = {"color": colour, "width": 1.3, "shape": "hv"}
    edge = go.Scatter(
        x=[c[0] for c in corners],
        y=[c[1] for c in corners],
        mode="lines",
        line=line,
        legendgroup=search,
        showlegend=False,
        hoverinfo="skip",
    )
    faint = {"color": colour, "size": 6, "opacity": 0.3}
    strong = {"color": colour, "size": 9, "line": {"color": "white", "width": 1}}
    return [
        edge,
        _dots(rest, x, y, name, faint, f"{name}: dominated ({len(rest)})"),
        _dots(front, x, y, name, strong, f"{name}: front so far ({len(front)})"),
    ]


def _dots(
    trials: Sequence[Record],
    x: Objective,
    y: Objective,
    group: str,
    marker: dict[str, object],
    name: str,
) -> go.Scatter:
    places = [_place(trial, x, y) for trial in trials]
    return go.Scatter(
        x=[place[0] for place in places],
        y=[place[1] for place in places],
        mode="markers",
        marker=marker,
        name=name,
        legendgroup=group,
        customdata=[trial["id"] for trial in trials],
        text=[f"{group} no. {trial['number']}" for trial in trials],
        hovertemplate=_hover(x, y, "predicted"),
    )


def _verified_traces(entries: Sequence[Record], x: Objective, y: Objective) -> list[go.Scatter]:
    """The finalists' measured numbers: filled on the front, hollow behind it."""
    traces = []
    for on_front, name in ((False, "measured, behind the front"), (True, "measured front")):
        pairs = [(e, point(e, x, y, "measured")) for e in entries if bool(e["front"]) == on_front]
        known = [(e, place) for e, place in pairs if place is not None]
        colours = {"color": MEASURED if on_front else "white", "opacity": 1}
        line = {"color": "white" if on_front else MEASURED, "width": 1.4}
        if known:
            traces.append(
                go.Scatter(
                    x=[place[0] for _, place in known],
                    y=[place[1] for _, place in known],
                    mode="markers",
                    marker=colours | {"symbol": "diamond", "size": 12, "line": line},
                    name=f"{name} ({len(known)})",
                    customdata=[e["id"] for e, _ in known],
                    text=[escape(e["search"]) for e, _ in known],
                    hovertemplate=_hover(x, y, "measured"),
                )
            )
    return traces


def _ring(made: go.Figure, selected: str) -> list[go.Scatter]:
    """A circle around each mark of the selected architecture."""
    places = [
        (trace.x[index], trace.y[index])
        for trace in made.data
        for index, name in enumerate(trace.customdata if trace.customdata is not None else ())
        if name == selected
    ]
    if not places:
        return []
    marker = {"symbol": "circle-open", "size": 20, "color": INK, "line": {"width": 2}}
    across, up = zip(*places, strict=True)
    return [go.Scatter(x=across, y=up, mode="markers", marker=marker, hoverinfo="skip", showlegend=False)]


def _place(trial: Record, x: Objective, y: Objective) -> tuple[float, float]:
    return trial["objectives"][x.name], trial["objectives"][y.name]


def _hover(x: Objective, y: Objective, kind: str) -> str:
    lines = [f"{title(o)}: %{{{axis}:.4g}}" for o, axis in ((y, "y"), (x, "x"))]
    return "<br>".join(["%{customdata}", *lines, f"{kind}, %{{text}}"]) + "<extra></extra>"


def _say(made: go.Figure, text: str) -> None:
    made.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    made.update_xaxes(visible=False).update_yaxes(visible=False)
