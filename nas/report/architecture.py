"""An architecture as a picture: a column for each stage, in it a box for each block, from top to bottom.

The length of a bar is the width of the stage, or the units of a channel mixer, on one scale for the whole
picture; its filled height is the bits of the weights; colour and texture say which mixer it is. Works on
the JSON alone, also on that of architectures that have no stages.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from nas.outline import TYPE, one_line, outline, plain
from nas.report.parts import BITS, Bar, Block, Column, alone, bars_of, columns_of, mixers_of
from nas.report.style import CHANNEL_MIXER, INK, MONOSPACE, MUTED, mixer_look
from nas.report.svg import box, document, group, number, room, words

LONGEST = 220.0  # pixels of the longest bar
THICKNESS = 16.0  # pixels of a bar, filled to the top by the most bits
MOST_TEXT = 200.0  # pixels to which words may widen a column
GAP, LINE, SLIM = 14.0, 12.0, 18.0
SMALL, NORMAL, LARGE = 9.0, 10.0, 11.0  # sizes of text


@dataclass(frozen=True)
class _Scale:
    """Pixels per channel and per bit."""

    channel: float
    bit: float

    def length(self, bar: Bar) -> float:
        return LONGEST / 2 if bar.size is None else bar.size * self.channel

    def filled(self, bar: Bar) -> float:
        return THICKNESS if bar.bits is None else bar.bits * self.bit


def architecture_svg(architecture: Any) -> str:
    """An SVG picture, complete in itself, of an architecture or its JSON; without anything to draw, its
    outline.

    Stages are a list of parts that have blocks; where there is none, each list of parts, or else of
    numbers, is a column. Parts beside the lists, such as a stem, are slim. A block that equals the one
    above it repeats the bars without the words.
    """
    architecture = plain(architecture)
    columns = columns_of(architecture)
    bars = [bar for column in columns for bar in bars_of(column)]
    name = str(architecture.get(TYPE, "")) or "architecture"
    if not bars:
        return _outline_svg(name, outline(architecture).split("\n"))
    scale = _Scale(
        LONGEST / max((bar.size for bar in bars if bar.size), default=1.0),
        THICKNESS / max([BITS, *(bar.bits for bar in bars if bar.bits)]),
    )
    drawn = [_draw_column(column, scale) for column in columns]
    tall = max(height for _, _, height in drawn)
    before, after = alone(architecture)
    slim = [(_draw_standing(*part, tall), SLIM) for part in (*before, *after)]
    row = [*slim[: len(before)], *(part[:2] for part in drawn), *slim[len(before) :]]
    x, body = GAP, []
    for marks, width in row:
        body.append(group("place", marks, x=x, y=GAP))
        x += width + GAP
    legend, wide, high = _draw_legend(bars, scale, x - 2 * GAP)
    body.append(group("legend", legend, x=GAP, y=tall + 2 * GAP))
    description = "; ".join(f"{c.name}: {c.note}{mixers_of(c)}" for c in columns)
    return document(name, description, max(x, wide + 2 * GAP), tall + high + 3 * GAP, "".join(body))


# --- marks with their width or height, from the origin ---------------------------------------------


def _draw_column(column: Column, scale: _Scale) -> tuple[str, float, float]:
    lanes = _lanes(column, scale)
    lines = [column.note, *(one_line(part) for _, part in column.slim)]
    width = max([sum(lanes) + 8, room(column.name, LARGE), *(room(line, SMALL) + 8 for line in lines)])
    width = min(width, max(MOST_TEXT, sum(lanes) + 8))
    body = [words(column.name, 0, 9, LARGE, width, more='font-weight="bold"')]
    body.append(words(column.note, 0, 22, SMALL, width, MUTED))
    y = 30.0
    for field, part in column.slim:
        marks = box(0, y, width, SLIM - 4, "#dfe5ec")
        marks += words(one_line(part), 4, y + 10, SMALL, width - 6)
        body.append(group("slim", marks, f"{field}: {one_line(part)}"))
        y += SLIM
    for block in column.blocks:
        marks, height = _draw_block(block, lanes, scale)
        body.append(group("block", box(0, 0, width, height, "#f1f4f7") + marks, block.title, y=y))
        y += height + 5
    return group("stage", "".join(body)), width, y


def _lanes(column: Column, scale: _Scale) -> list[float]:
    """Widths of the places side by side: for the longest bars and words in each."""
    lanes: list[float] = []
    for row in chain.from_iterable(block.rows for block in column.blocks):
        for k, bar in enumerate(row):
            lanes += [0.0] * (k + 1 - len(lanes))
            lanes[k] = max(lanes[k], 8 + max(scale.length(bar), min(MOST_TEXT, _room(bar))))
    return lanes


def _room(bar: Bar) -> float:
    """Pixels for all that is said of a bar on one line."""
    return _name_room(bar) + (room(bar.line, SMALL) if bar.line else 0)


def _name_room(bar: Bar) -> float:
    return room(bar.name, 1.16 * NORMAL) + 4  # bold is wider


def _look(bar: Bar) -> tuple[str, str]:
    """Colour and texture."""
    return (CHANNEL_MIXER, "") if bar.kind in ("ffn", "number") else mixer_look(bar.name)


def _draw_block(block: Block, lanes: list[float], scale: _Scale) -> tuple[str, float]:
    body, y = [], 3.0
    for row in block.rows:
        rooms = [wide - 6 for wide in lanes]
        fits = all(_room(bar) <= wide for bar, wide in zip(row, rooms, strict=False))
        lines = 0 if block.repeats else 1 if fits else 2
        for k, bar in enumerate(row):
            x = 8 + sum(lanes[:k])
            if lines:
                beside = bar.line if fits else bar.note
                body.append(words(bar.name, x, y + 9, NORMAL, rooms[k], more='font-weight="bold"'))
                body.append(
                    words(beside, x + _name_room(bar), y + 9, SMALL, rooms[k] - _name_room(bar), MUTED)
                )
            if lines == 2:
                body.append(words(bar.genes, x, y + 9 + LINE, SMALL, rooms[k], MUTED))
            body.append(_draw_bar(bar, x, y + lines * LINE + 2, scale))
        y += lines * LINE + THICKNESS + 6
    colours = [_look(bar)[0] for row in block.rows for bar in row if bar.kind in ("mixer", "part")]
    edge = box(0, 0, 3, y, colours[0], 'class="edge"') if colours else ""
    return edge + "".join(body), y


def _draw_bar(bar: Bar, x: float, y: float, scale: _Scale) -> str:
    """Pale, as long as there are channels, and filled from below as high as there are bits."""
    (colour, dashes), length, filled = _look(bar), scale.length(bar), scale.filled(bar)
    marks = box(x, y, length, THICKNESS, colour, f'class="{bar.kind}" fill-opacity="0.3"')
    marks += box(x, y + THICKNESS - filled, length, filled, colour, 'class="bits"')
    if dashes:
        ends = f'x1="{number(x + 2)}" x2="{number(x + length)}"'
        middle = f'y1="{number(y + THICKNESS / 2)}" y2="{number(y + THICKNESS / 2)}"'
        look = f'stroke="white" stroke-width="{number(THICKNESS)}" stroke-dasharray="{dashes}"'
        marks += f"<line {ends} {middle} {look}/>"
    return marks + box(x, y, length, THICKNESS, "none", f'stroke="{colour}" stroke-width="0.8"')


def _draw_standing(field: str, part: Mapping[str, Any], height: float) -> str:
    """A slim part beside the columns, its words from bottom to top."""
    x, y = number(SLIM - 6), number(height / 2)
    turned = f'text-anchor="middle" transform="rotate(-90 {x} {y})"'
    line = words(one_line(part), SLIM - 6, height / 2, SMALL, height - 8, more=turned)
    return group("slim", box(0, 0, SLIM, height, "#dfe5ec") + line, f"{field}: {one_line(part)}")


def _draw_legend(bars: list[Bar], scale: _Scale, width: float) -> tuple[str, float, float]:
    """What the colours, lengths and fillings mean."""
    found = {bar.name: bar for bar in bars if bar.kind in ("mixer", "part")}
    for bar in bars:
        if bar.kind == "ffn":
            found["channel mixer"] = bar
    items = [(_swatch(bar, scale), 24.0, name) for name, bar in found.items() if name]
    if any(bar.size for bar in bars):
        size = 2.0 ** math.floor(math.log2(60 / scale.channel))
        items.append(
            (box(0, 10, size * scale.channel, 2, INK), size * scale.channel, f"{size:g} channels or units")
        )
    if any(bar.bits for bar in bars):
        depths = [Bar("ffn", "", "", None, bits) for bits in (4, 8, 16, 32)]
        swatches = [group("bits", _swatch(bar, scale, 12), x=16 * i) for i, bar in enumerate(depths)]
        items.append(("".join(swatches), 60.0, "4, 8, 16, 32 bit"))
    x, y, widest, body = 0.0, 0.0, 0.0, []
    for marks, wide, name in items:
        needed = wide + 6 + room(name, SMALL)
        if x and x + needed > width:
            x, y = 0.0, y + THICKNESS + 8
        body.append(group("key", marks + words(name, wide + 5, 12, SMALL, 400, MUTED), x=x, y=y))
        x += needed + 8
        widest = max(widest, x)
    return "".join(body), widest, y + THICKNESS


def _swatch(bar: Bar, scale: _Scale, length: float = 24) -> str:
    bits = bar.bits if not bar.name else None
    return _draw_bar(Bar(bar.kind, bar.name, "", length / scale.channel, bits), 0, 0, scale)


def _outline_svg(name: str, lines: list[str]) -> str:
    font = f"font-family='{MONOSPACE.replace(chr(39), chr(34))}'"
    wide = max(room(line, NORMAL) for line in lines)
    body = "".join(
        words(line, GAP, GAP + 14 * (i + 1), NORMAL, wide + NORMAL, more=font) for i, line in enumerate(lines)
    )
    return document(name, "\n".join(lines), wide + 3 * GAP, 14 * len(lines) + 3 * GAP, body)
