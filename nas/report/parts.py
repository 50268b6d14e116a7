"""What of an architecture's JSON a picture shows: columns of blocks, blocks of bars, and slim parts."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import chain
from typing import Any

from nas.outline import TYPE, one_line

BITS = 32.0  # where they are left out, as all defaults are


@dataclass(frozen=True)
class Bar:
    """One part of a block; `size` in channels or units."""

    kind: str  # mixer, ffn; part, of blocks that have neither; number, in place of a block
    name: str
    genes: str
    size: float | None
    bits: float | None

    @property
    def note(self) -> str:
        """The bits, in words."""
        return "" if self.bits is None else f"{self.bits:g} bit"

    @property
    def line(self) -> str:
        """All but the name, in words."""
        return ", ".join(part for part in (self.note, self.genes) if part)


@dataclass(frozen=True)
class Block:
    """A box of bars."""

    title: str
    rows: list[list[Bar]]  # bars of a row are parallel
    repeats: bool  # the block above it


@dataclass(frozen=True)
class Column:
    """A stage, or another list of parts; `slim` are a stage's parts beside its blocks, by field."""

    name: str
    note: str
    slim: list[tuple[str, Mapping[str, Any]]]
    blocks: list[Block]


def columns_of(architecture: Mapping[str, Any]) -> list[Column]:
    """The stages; where there are none, a column for each list of parts, or else of numbers."""
    lists = {k: v for k, v in architecture.items() if isinstance(v, list) and v}
    of_parts = {k: v for k, v in lists.items() if all(isinstance(item, Mapping) for item in v)}
    of_numbers = {k: v for k, v in lists.items() if all(_size(item) for item in v)}
    stages = {k: v for k, v in of_parts.items() if all(isinstance(s.get("blocks"), list) for s in v)}
    if stages:
        return [_stage(f"{k}.{i}", stage) for k, v in stages.items() for i, stage in enumerate(v)]
    width = _size(architecture.get("width"))
    found = of_parts or of_numbers
    return [Column(k, _count(v), [], _blocks(k, v, width)) for k, v in found.items()]


def _stage(path: str, stage: Mapping[str, Any]) -> Column:
    width, blocks = _size(stage.get("width")), stage["blocks"]
    slim = [(field, part) for field, part in stage.items() if _is_part(part)]
    note = ", ".join([*([f"{width:g} channels"] if width else []), _count(blocks)])
    return Column(path, note, slim, _blocks(f"{path}.blocks", blocks, width))


def _blocks(path: str, blocks: list[Any], width: float | None) -> list[Block]:
    return [
        Block(f"{path}.{i}: {one_line(block)}", _rows(block, width), i > 0 and block == blocks[i - 1])
        for i, block in enumerate(blocks)
    ]


def _rows(block: Any, width: float | None) -> list[list[Bar]]:
    """The mixers above the channel mixers; of a block of another kind each part, else itself."""
    if not isinstance(block, Mapping):
        return [[Bar("number", one_line(block), "", _size(block) or width, None)]]
    width = _size(block.get("width")) or width
    if "mixer" not in block:
        parts = [part for part in block.values() if _is_part(part)]
        return [[_bar("part", part, width)] for part in parts or [block]]
    rows = [
        [_bar(kind, block[name], width) for name in (kind, f"{kind}2") if _is_part(block.get(name))]
        for kind in ("mixer", "ffn")
    ]
    if block.get("topology") == "parallel":
        rows = [list(chain(*rows))]
    return [row for row in rows if row]


def _bar(kind: str, part: Mapping[str, Any], width: float | None) -> Bar:
    ratio = _size(part.get("ratio")) if kind == "ffn" else None
    bits = part.get("bits", None if kind == "part" else BITS)
    bits = _size(bits.get("weight", BITS) if isinstance(bits, Mapping) else bits)
    genes = ", ".join(_gene(k, v) for k, v in part.items() if k not in (TYPE, "bits"))
    return Bar(kind, str(part.get(TYPE, "")), genes, width * ratio if width and ratio else width, bits)


def _gene(name: str, value: Any) -> str:
    return name if value is True else f"{name} {one_line(value)}"


def bars_of(column: Column) -> Iterator[Bar]:
    """All bars, from top to bottom."""
    for block in column.blocks:
        yield from chain.from_iterable(block.rows)


def alone(architecture: Mapping[str, Any]) -> tuple[list[tuple[str, Any]], list[tuple[str, Any]]]:
    """The parts before and after the lists. A head that is the default is there all the same."""
    whole = dict(architecture)
    if "classes" in whole:
        whole.setdefault("head", {TYPE: "Head", "classes": whole["classes"]})
    first = next(i for i, value in enumerate(whole.values()) if isinstance(value, list))
    parts = [(i, field, part) for i, (field, part) in enumerate(whole.items()) if _is_part(part)]
    return [(f, p) for i, f, p in parts if i < first], [(f, p) for i, f, p in parts if i > first]


def _is_part(value: Any) -> bool:
    """Whether this is a class of an architecture that stands for something, as NoFfn and Bits do not."""
    name = value.get(TYPE) if isinstance(value, Mapping) else None
    return bool(name) and name != "Bits" and not re.match("No[A-Z]", str(name))


def _size(value: Any) -> float | None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    return float(value) if is_number and math.isfinite(value) and value > 0 else None


def _count(blocks: list[Any]) -> str:
    return f"{len(blocks)} block{'s' * (len(blocks) != 1)}"


def mixers_of(column: Column) -> str:
    """The classes of mixers in words, after what has them."""
    names = dict.fromkeys(bar.name for bar in bars_of(column) if bar.kind in ("mixer", "part"))
    return f" of {', '.join(names)}" if any(names) else ""
