"""The Pareto explorer: the front of a run while it is being found, and every architecture on it.

``nas dashboard RUN`` serves it. It reads the run's files as they grow and writes nothing.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import Any

import plotly.graph_objects as go
from dash import Dash, Input, Output, State, html, no_update

from dashboards.detail import detail
from dashboards.layout import PAGE, page_layout
from dashboards.live import LiveRun
from dashboards.plots import live_front, live_hypervolume
from nas.errors import RunError
from nas.reading import named, roles, title
from nas.report.style import figure

SHOWN_ERRORS = 5


def serve(run_dir: Path | str, port: int = 8050, host: str = "127.0.0.1") -> None:
    """Serves the explorer of `run_dir` until interrupted, to this machine alone by default.

    Raises:
        RunError: there is no such directory.
    """
    app = create_app(run_dir)
    logging.getLogger("werkzeug").setLevel(logging.WARNING)  # else a line for every look at the log
    app.run(host=host, port=port, debug=False)


def create_app(run_dir: Path | str) -> Dash:
    """The explorer as a Dash application; ``.server`` is its WSGI application.

    Raises:
        RunError: there is no such directory.
    """
    if not Path(run_dir).is_dir():
        raise RunError(f"A run directory must exist: got {run_dir}. `nas run EXPERIMENT` makes one.")
    explorer = Explorer(LiveRun(run_dir))
    name = explorer.live.view.name
    app = Dash(
        "nas explorer",
        title=f"{name} – nas",
        update_title="",  # no flicker in the tab at each look
        serve_locally=True,
        index_string=PAGE,
    )
    app.layout = lambda: page_layout(explorer.live.view.name)  # known once experiment.json is
    explorer.connect(app)
    return app


class Explorer:
    """The page's callbacks. They hold nothing but the run; what is chosen is the browser's."""

    def __init__(self, live: LiveRun) -> None:
        self.live = live
        live.poll()

    def connect(self, app: Dash) -> None:
        """Says which part of the page follows which."""
        version, device = Input("version", "data"), Input("device", "value")
        shown = (version, device, Input("searches", "value"))
        axes = (Input("x", "value"), Input("y", "value"))
        selected = Input("selected", "data")
        app.callback(Output("version", "data"), Input("tick", "n_intervals"), State("version", "data"))(
            self.look
        )
        app.callback(Output("status", "children"), version)(self.status)
        app.callback(
            Output("device", "options"),
            Output("device", "value"),
            version,
            State("device", "value"),
        )(self.devices)
        app.callback(
            *(Output(name, part) for name in ("searches", "x", "y") for part in ("options", "value")),
            version,
            device,
            State("searches", "options"),
            State("searches", "value"),
            State("x", "value"),
            State("y", "value"),
        )(self.choices)
        app.callback(Output("front", "figure"), *shown, *axes, selected)(self.front)
        app.callback(Output("hypervolume", "figure"), *shown)(self.hypervolume)
        app.callback(Output("selected", "data"), Input("front", "clickData"))(self.select)
        app.callback(Output("pinned", "data"), Input("pin", "n_clicks"), State("selected", "data"))(self.pin)
        pinned = Input("pinned", "data")
        app.callback(Output("detail", "children"), version, device, selected, pinned)(self.detail)

    def look(self, _tick: int | None, version: int) -> Any:
        """Reads what is new. The rest of the page follows only if there is something."""
        current = self.live.poll()
        return no_update if current == version else current

    def status(self, _version: int) -> list[Any]:
        """How far the run is, and what went wrong in it."""
        view = self.live.view
        failed = [t for t in view.trials if t["state"] == "failed"]
        parts = [f"{len(view.trials):,} trials", f"{len(failed)} failed"]
        parts.append(f"{len(view.front)} verified" if view.front else "none verified yet")
        if self.live.unreadable:
            parts.append(f"{self.live.unreadable} unreadable lines in trials.jsonl")
        if not failed:
            return [" · ".join(parts)]
        errors = [f"{t['search']} no. {t['number']}: {t.get('error')}" for t in failed[-SHOWN_ERRORS:]]
        return [
            " · ".join(parts),
            html.Details([html.Summary("last errors"), html.Pre("\n".join(errors))]),
        ]

    def devices(self, _version: int, chosen: str | None) -> tuple[list[str], str | None]:
        """The devices to choose from; the choice stays while it exists."""
        names = list(self.live.view.device_names)
        return names, chosen if chosen in names else next(iter(names), None)

    def choices(
        self,
        _version: int,
        device: str | None,
        offered: list[str] | None,
        searches: list[str] | None,
        x: str | None,
        y: str | None,
    ) -> tuple[Any, ...]:
        """The device's searches and objectives; searches that appear are shown, hidden ones not."""
        view = self.live.view
        if device is None:
            return [], [], [], None, [], None
        names = list(view.searches_of(device))
        hidden = set(offered or ()) - set(searches or ())
        objectives = view.objectives_of(device)
        options = [{"label": title(o), "value": o.name} for o in objectives]
        known, default = [o.name for o in objectives], roles(objectives, device)
        x = x if x in known else default.cost.name if default else None
        y = y if y in known else default.quality.name if default else None
        return names, [n for n in names if n not in hidden], options, x, options, y

    def front(
        self,
        _version: int,
        device: str | None,
        searches: Sequence[str] | None,
        x: str | None,
        y: str | None,
        selected: str | None,
    ) -> go.Figure:
        """The scatter of all trials over the chosen axes."""
        view = self.live.view
        if device is None or x is None or y is None:
            return _waiting(view.path)
        return live_front(view, device, searches or (), named(view, x), named(view, y), selected)

    def hypervolume(self, _version: int, device: str | None, searches: Sequence[str] | None) -> go.Figure:
        """The searches' progress."""
        view = self.live.view
        return live_hypervolume(view, device, searches or ()) if device else _waiting(view.path)

    def select(self, click: dict[str, Any] | None) -> Any:
        """The id of the architecture under the click."""
        points = (click or {}).get("points") or [{}]
        return points[0].get("customdata", no_update)

    def pin(self, _clicks: int | None, selected: str | None) -> str | None:
        """The architecture with which others are compared from now on."""
        return selected

    def detail(
        self, _version: int, device: str | None, selected: str | None, pinned: str | None = None
    ) -> list[Any]:
        """The panel about the selected architecture, and what it changes in the pinned one."""
        return detail(self.live.view, device or "", selected, pinned)


def _waiting(path: Path) -> go.Figure:
    made = figure("Nothing to show yet")
    text = f"Waiting for the first trials in {escape(path.name)}"
    made.add_annotation(text=text, showarrow=False, x=0.5, y=0.5, xref="paper", yref="paper")
    return made.update_xaxes(visible=False).update_yaxes(visible=False)
