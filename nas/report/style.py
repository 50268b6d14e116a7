"""One look for the report, its pictures and the explorer: palette, figure layout, style sheet.

The hues (blue, vermilion, grey) stay apart under the common colour-vision deficiencies.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from colorsys import hls_to_rgb
from typing import Any

import plotly.graph_objects as go

from nas.reading import is_random

INK = "#1c2733"
MUTED = "#5f6f80"
GRID = "#e8ecf1"
SEARCH = "#3b6fd4"
RANDOM = "#a3adb8"
MEASURED = "#d5541a"
SERIES = (SEARCH, "#6a4fb3", "#1d8a7a", "#b08918", "#b0407e")
FONT = "Inter, 'Segoe UI', 'Helvetica Neue', Arial, sans-serif"
MONOSPACE = "'JetBrains Mono', 'SFMono-Regular', Consolas, 'Liberation Mono', monospace"

# The mixers of nas.layers, those that often meet in one picture first; others get a look by their name.
MIXERS = (
    *("Window", "Global", "DepthwiseConv", "StateSpace", "LinearAttention", "Pooling", "CrossShaped"),
    *("ShortDistance", "LongDistance", "SpatialReduction", "Spectral", "Channel", "AftFull", "MaskUnit"),
    *("LinearReduction", "ConvProjection", "AftConv", "Pooled", "AftLocal", "AftSimple", "NoMixer"),
)
# After Okabe & Ito (2008), moved apart: a test holds that each texture's colours differ to all readers.
MIXER_HUES = ("#0b5fa5", "#d55e00", "#11a05a", "#cc79a7", "#56b4e9", "#e69f00", "#1a1a1a")
TEXTURES = ("", "1.5 4", "3 3")  # dashes of white across a bar, SVG's: none, thin, thick
CHANNEL_MIXER = "#aab4bf"

PLOT_CONFIG: Any = {
    "displaylogo": False,
    "responsive": True,
    # no selections, which do nothing here, and no button that would send data anywhere
    "modeBarButtons": [["zoom2d", "pan2d", "resetScale2d", "toImage"]],
}

MARKER_PIXELS = (8.0, 20.0)


def figure(title: str, x: str = "", y: str = "", **layout: Any) -> go.Figure:
    """An empty figure in our look; `x` and `y` are axis titles with their units."""
    axis = {"gridcolor": GRID, "linecolor": GRID, "zeroline": False, "automargin": True}
    title_look = {"standoff": 10, "font": {"size": 13, "color": MUTED}}
    made = go.Figure()
    made.update_layout(
        template="plotly_white",
        title={"text": title, "x": 0, "xref": "paper", "font": {"size": 16, "color": INK}},
        font={"family": FONT, "size": 13, "color": INK},
        margin={"l": 60, "r": 20, "t": 56, "b": 50},
        legend={"orientation": "h", "y": -0.17, "yanchor": "top", "x": 0, "font": {"color": MUTED}},
        hoverlabel={"font": {"family": MONOSPACE, "size": 12}, "bgcolor": "white", "align": "left"},
        xaxis=axis | {"title": title_look | {"text": x}},
        yaxis=axis | {"title": title_look | {"text": y}},
        height=430,
    )
    made.update_layout(**layout)
    return made


def marker_sizes(values: list[float | None]) -> list[float]:
    """Marker diameters in pixels whose areas grow linearly from the least to the greatest value."""
    known = [v for v in values if v is not None]
    low, high = min(known, default=0.0), max(known, default=0.0)
    small, large = (pixels**2 for pixels in MARKER_PIXELS)
    shares = [0.0 if v is None or high == low else (v - low) / (high - low) for v in values]
    return [(small + share * (large - small)) ** 0.5 for share in shares]


def error_bars(errors: Sequence[float | None]) -> dict[str, Any]:
    """Plotly's error bars of ± one standard error; none where it is unknown."""
    return {
        "type": "data",
        "array": [e or 0.0 for e in errors],
        "color": "rgba(213, 84, 26, 0.5)",
        "thickness": 1,
        "width": 0,
    }


def search_colours(searches: Sequence[str]) -> list[str]:
    """A colour for each search; random search is grey."""
    others = [s for s in searches if not is_random(s)]
    colours = dict(zip(others, series_colours(len(others)), strict=True))
    return [colours.get(s, RANDOM) for s in searches]


def series_colours(n: int) -> list[str]:
    """`n` colours for curves, the first ones apart from each other."""
    return [SERIES[i % len(SERIES)] for i in range(n)]


def mixer_look(name: str) -> tuple[str, str]:
    """Colour and texture of a class of mixers, in every picture the same: pure, dark and striped, or pale."""
    if name in MIXERS:
        level, hue = divmod(MIXERS.index(name), len(MIXER_HUES))
        rgb = [int(MIXER_HUES[hue][i : i + 2], 16) for i in (1, 3, 5)]
        toned = (rgb, [c * 0.65 for c in rgb], [c + (255 - c) * 0.3 for c in rgb])[level]
        return _hex(toned), TEXTURES[level]
    seed = hashlib.sha256(name.encode(errors="replace")).digest()
    hue_turns, lightness = int.from_bytes(seed[:4], "big") / 2**32, 0.32 + seed[4] / 255 * 0.3
    rgb_shares = hls_to_rgb(hue_turns, lightness, 0.4 + seed[5] / 255 * 0.5)
    return _hex([255 * c for c in rgb_shares]), TEXTURES[seed[6] % len(TEXTURES)]


def _hex(rgb: Sequence[float]) -> str:
    return "#" + "".join(f"{round(c):02x}" for c in rgb)


STYLE_SHEET = f"""
:root {{ --ink: {INK}; --muted: {MUTED}; --line: {GRID}; --accent: {SEARCH}; --warm: {MEASURED}; }}
* {{ box-sizing: border-box; }}
html {{ scroll-behavior: smooth; }}
body {{ margin: 0; background: #f6f8fa; color: var(--ink); font: 15px/1.55 {FONT}; }}
main {{ max-width: 1180px; margin: 0 auto; padding: 20px 24px 60px; }}
header.top {{ background: white; border-bottom: 1px solid var(--line); }}
header.top > div {{ max-width: 1180px; margin: 0 auto; padding: 26px 24px 16px; }}
h1 {{ margin: 0; font-size: 26px; letter-spacing: -.01em; }}
h2 {{ margin: 34px 0 12px; font-size: 20px; }}
h3 {{ margin: 0 0 8px; font-size: 15px; }}
p {{ margin: 6px 0; max-width: 80ch; }}
.muted, figcaption {{ color: var(--muted); font-size: 13.5px; }}
nav {{ position: sticky; top: 0; z-index: 5; background: #ffffffee; }}
nav {{ border-bottom: 1px solid var(--line); }}
nav > div {{ max-width: 1180px; margin: 0 auto; padding: 9px 24px; }}
nav a {{ margin-right: 20px; color: var(--accent); text-decoration: none; font-size: 14px; }}
section {{ scroll-margin-top: 46px; }}
.card {{ background: white; border: 1px solid var(--line); border-radius: 10px; }}
.card {{ padding: 14px 18px; margin: 0 0 16px; overflow-x: auto; }}
.pair {{ display: grid; grid-template-columns: 1fr 1fr; gap: 16px; }}
.pair > .card {{ min-width: 0; }}
@media (max-width: 900px) {{ .pair {{ grid-template-columns: 1fr; }} }}
figure {{ margin: 0; }}
figcaption {{ margin-top: 4px; }}
table {{ border-collapse: collapse; width: 100%; font-size: 13.5px; }}
table {{ font-variant-numeric: tabular-nums; }}
th {{ color: var(--muted); font-weight: 600; text-align: right; vertical-align: bottom; }}
th, td {{ padding: 6px 10px; border-bottom: 1px solid var(--line); text-align: right; }}
th:first-child, td:first-child {{ text-align: left; padding-left: 0; }}
td.text, th.text {{ text-align: left; }}
tr.behind td {{ color: #94a0ad; }}
code, pre {{ font-family: {MONOSPACE}; font-size: 12.5px; }}
pre {{ background: #f6f8fa; border-radius: 8px; padding: 10px 12px; }}
pre {{ overflow: auto; margin: 6px 0; }}
svg.architecture, img.architecture {{ display: block; max-width: 100%; height: auto; margin: 8px 0; }}
details summary {{ cursor: pointer; color: var(--muted); }}
"""
