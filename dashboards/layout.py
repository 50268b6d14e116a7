"""The page: where things stand and how they look. What they show is `explorer`'s."""

from __future__ import annotations

from typing import Any

from dash import dcc, html

from nas.report.style import PLOT_CONFIG, STYLE_SHEET

REFRESH_MS = 2000

_STYLE = """
:root { --Dash-Fill-Interactive-Strong: var(--accent); }
main.explorer { max-width: 1500px; display: grid; gap: 16px; align-items: start; }
main.explorer { grid-template-columns: minmax(0, 1fr) 430px; padding-top: 16px; }
@media (max-width: 1000px) { main.explorer { grid-template-columns: minmax(0, 1fr); } }
header.top > div { max-width: 1500px; display: flex; gap: 24px; align-items: baseline; }
header.top > div { padding: 14px 24px; flex-wrap: wrap; }
header.top h1 { font-size: 20px; }
header.top p { margin: 0; max-width: none; }
.controls { display: flex; flex-wrap: wrap; gap: 10px 22px; align-items: flex-start; }
.controls > div { min-width: 170px; }
.controls label.name { display: block; color: var(--muted); font-size: 12.5px; }
.controls label.name { margin-bottom: 4px; }
.controls .dash-options-list-option { padding: 1px 0; }
.detail { position: sticky; top: 12px; max-height: calc(100vh - 24px); overflow-y: auto; }
.detail h3 { margin: 14px 0 4px; }
.detail h3:first-child { margin-top: 2px; }
.detail pre.tree { max-height: 420px; }
.detail .picture { overflow-x: auto; }
.detail .picture img { max-width: none; }
.detail > button { margin: 8px 0; cursor: pointer; }
.command { display: flex; gap: 10px; align-items: center; }
.command pre { flex: 1; white-space: pre-wrap; overflow-wrap: anywhere; }
.command > :last-child { cursor: pointer; color: var(--accent); }
"""

PAGE = f"""<!DOCTYPE html>
<html lang="en">
<head>{{%metas%}}<title>{{%title%}}</title>{{%favicon%}}{{%css%}}
<style>{STYLE_SHEET}{_STYLE}</style></head>
<body>{{%app_entry%}}<footer>{{%config%}}{{%scripts%}}{{%renderer%}}</footer></body>
</html>"""


def page_layout(name: str) -> html.Div:
    """The explorer of the run called `name`, empty until the first callbacks answer."""
    plots = [
        html.Div(_controls(), className="card controls"),
        html.Div(_graph("front"), className="card"),
        html.Div(_graph("hypervolume"), className="card"),
    ]
    panel = [html.Div(id="detail"), html.Button("Compare others with this one", id="pin")]
    return html.Div(
        [
            dcc.Interval(id="tick", interval=REFRESH_MS),
            dcc.Store(id="version", data=-1),
            dcc.Store(id="selected"),
            dcc.Store(id="pinned"),
            html.Header(html.Div([html.H1(name), html.P(id="status", className="muted")]), className="top"),
            html.Main(
                [html.Div(plots), html.Aside(panel, className="card detail")],
                className="explorer",
            ),
        ]
    )


def _controls() -> list[Any]:
    choices = [
        ("device", dcc.Dropdown(id="device", clearable=False)),
        ("across", dcc.Dropdown(id="x", clearable=False)),
        ("up", dcc.Dropdown(id="y", clearable=False)),
        ("searches", dcc.Checklist(id="searches")),
    ]
    return [html.Div([html.Label(name, className="name"), part]) for name, part in choices]


def _graph(name: str) -> dcc.Graph:
    return dcc.Graph(id=name, config=PLOT_CONFIG)
