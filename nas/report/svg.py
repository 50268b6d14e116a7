"""The few marks of which an SVG picture is made. Every text is escaped, and fit for XML."""

from __future__ import annotations

import re
from html import escape

from nas.report.style import FONT, INK

LETTER = 0.6  # width of a letter over its size, as in the widest of the usual fonts
_NOT_XML = re.compile("[^\t\n\r\x20-\ud7ff\ue000-\ufffd\U00010000-\U0010ffff]")


def document(title: str, description: str, width: float, height: float, body: str) -> str:
    """A whole picture; screen readers get title and description."""
    size = f"{number(width)} {number(height)}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" class="architecture" role="img" viewBox="0 0 {size}" '
        f'width="{number(width)}" height="{number(height)}" font-family="{text(FONT)}">'
        f"<title>{text(title)}</title><desc>{text(description)}</desc>"
        f"{box(0, 0, width, height, fill='white')}{body}</svg>"
    )


def group(kind: str, body: str, title: str = "", x: float = 0, y: float = 0) -> str:
    """Marks that belong together, moved by (x, y); `title` shows when the pointer rests on them."""
    moved = f' transform="translate({number(x)} {number(y)})"' if x or y else ""
    named = f"<title>{text(title)}</title>" if title else ""
    return f'<g class="{kind}"{moved}>{named}{body}</g>'


def box(x: float, y: float, width: float, height: float, fill: str, more: str = "") -> str:
    """A rectangle; `more` holds further attributes."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    return f'<rect {place} fill="{fill}"{" " * bool(more)}{more}/>'


def words(content: str, x: float, y: float, size: float, room: float, fill: str = INK, more: str = "") -> str:
    """A line of text that begins at (x, y), cut to `room` pixels; nothing where there is none."""
    if not content:
        return ""
    most = max(1, int(room / size / LETTER))
    shown = content if len(content) <= most else f"{content[: most - 1]}…"
    place = f'x="{number(x)}" y="{number(y)}" font-size="{number(size)}"'
    return f'<text {place} fill="{fill}"{" " * bool(more)}{more} xml:space="preserve">{text(shown)}</text>'


def room(content: str, size: float) -> float:
    """Pixels that `words` of a size need."""
    return (len(content) + 0.5) * size * LETTER


def text(content: str) -> str:
    return escape(_NOT_XML.sub("\ufffd", content))


def number(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".")
