"""What the explorer says about the architecture that was clicked."""

from __future__ import annotations

import base64
import json
import shlex
from typing import Any

from dash import dcc, html

from nas.difference import difference
from nas.objectives import Objective
from nas.outline import outline
from nas.reading import Record, RunView, named, title
from nas.report.architecture import architecture_svg
from nas.report.tables import number

Component = Any  # dash's own base class has no types

HINT = "Click a point to see its architecture, its numbers and how to export it."


def detail(view: RunView, device: str, selected: str | None, pinned: str | None = None) -> list[Component]:
    """The panel for the architecture with the id `selected`, as it did on `device`."""
    trial, entry = _trial(view, device, selected), _entry(view, device, selected)
    known = entry or trial
    if known is None or selected is None:
        return [html.P(HINT, className="muted")]
    architecture = known["architecture"]
    return [
        html.H3(html.Code(selected)),
        html.P(_origin(trial, entry), className="muted"),
        _numbers(view, trial, entry),
        *_export(view, device, selected, entry),
        *_comparison(view, device, architecture, selected, pinned),
        html.H3("Architecture"),
        html.Div(
            html.Img(src=_data(architecture_svg(architecture)), alt=f"Picture of {selected}"),
            className="picture",
        ),
        html.Pre(outline(architecture), className="tree"),
        html.Details([html.Summary("as JSON"), html.Pre(json.dumps(architecture, indent=2))]),
    ]


def _trial(view: RunView, device: str, selected: str | None) -> Record | None:
    """The trial to show: of this device's searches if there is one, for it has its latency."""
    same = [t for t in view.trials if t["id"] == selected and t["state"] == "complete"]
    here = [t for t in same if view.device_of(t["search"]) == device]
    found = here or same
    return found[-1] if found else None


def _entry(view: RunView, device: str, selected: str | None) -> Record | None:
    return next((e for e in view.front_of(device) if e["id"] == selected), None)


def _comparison(
    view: RunView, device: str, architecture: Record, selected: str, pinned: str | None
) -> list[Component]:
    """What `selected` changes in the pinned architecture."""
    other = _entry(view, device, pinned) or _trial(view, device, pinned)
    if other is None or pinned == selected:
        return [html.P("Others will be compared with this one.", className="muted")] if other else []
    changes = difference(other["architecture"], architecture)
    return [html.H3(["From ", html.Code(pinned), " to this one"]), html.Pre(changes, className="tree")]


def _data(svg: str) -> str:
    """A picture as an address that needs no network."""
    return f"data:image/svg+xml;base64,{base64.b64encode(svg.encode()).decode()}"


def _origin(trial: Record | None, entry: Record | None) -> str:
    parts = [f"trial {trial['number']} of {trial['search']}"] if trial else []
    if entry is None:
        parts.append("not verified: its numbers are predictions")
    elif entry["front"]:
        parts.append("on the verified front")
    else:
        parts.append("verified, but behind the front")
    return " · ".join(parts)


def _numbers(view: RunView, trial: Record | None, entry: Record | None) -> Component:
    """A row for each figure: predicted by the search, measured when verified."""
    predicted = trial["objectives"] if trial else {}
    figures = entry["objectives"] if entry else {}
    names = dict.fromkeys([*predicted, *figures])
    rows = [_row(named(view, name), predicted.get(name), figures.get(name, {}), trial) for name in names]
    head = html.Tr([html.Th(""), html.Th("predicted"), html.Th("measured")])
    return html.Table([html.Thead(head), html.Tbody(rows)])


def _row(objective: Objective, predicted: float | None, figures: Record, trial: Record | None) -> Component:
    before = number(figures.get("predicted", predicted))
    accuracy = objective.name.partition(".")[0] == "accuracy"
    if accuracy and trial and trial.get("std_error") is not None:
        before += f" ± {number(trial['std_error'], 2)}"
    after = number(figures.get("measured"))
    spread = figures.get("std_error", figures.get("spread"))
    if spread is not None:
        after += f" ± {number(spread, 2)}"
    return html.Tr([html.Td(_label(objective)), html.Td(before), html.Td(after)])


def _label(objective: Objective) -> str:
    """The title with its device: an architecture may be selected while another device is shown."""
    device = objective.name.partition(".")[2]
    return f"{title(objective)} on {device}" if device else title(objective)


def _export(view: RunView, device: str, selected: str, entry: Record | None) -> list[Component]:
    """The command, and what it does for an architecture that nobody has measured."""
    command = f"nas export {shlex.quote(str(view.path))} --device {device} --id {selected}"
    lines: list[Component] = [
        html.H3("Take it home"),
        html.Div(
            [html.Pre(command, id="command"), dcc.Clipboard(content=command, title="copy")],
            className="command",
        ),
    ]
    if entry is None:
        note = (
            "Only verified architectures are exported with measured numbers. "
            "This one is verified first, which takes a moment."
        )
        lines.append(html.P(note, className="muted"))
    return lines
