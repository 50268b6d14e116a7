"""The tables of the report, as HTML. Every text that comes from a file is escaped."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable, Mapping, Sequence
from html import escape
from typing import Any

from nas.objectives import Objective
from nas.reading import Record, Roles, RunView, named, title, value

NONE = "–"


def finalists_table(view: RunView, entries: Sequence[Record], quality: Objective) -> str:
    """The finalists: quality on the splits search, select and test, then what they cost.

    The only place besides the model card where numbers of the split *test* are shown.
    """
    names = dict.fromkeys(name for entry in entries for name in entry["objectives"])
    others = [named(view, name) for name in names if name != quality.name]
    of = escape(title(quality))
    headings = [
        "architecture",
        f"{of}<br>search",
        f"{of}<br>select ± s.e.",
        f"{of}<br>test [interval]",
    ]
    headings += [f"{escape(title(o))}<br>{_kinds(entries, o)}" for o in others]
    rows = []
    for entry in entries:
        cells = [f"<code>{escape(entry['id'])}</code>", number(value(entry, quality, "predicted"))]
        cells += [_measured(entry, quality, "std_error"), _test(entry, quality)]
        cells += [_costs(entry, objective) for objective in others]
        rows.append(("" if entry["front"] else "behind", cells))
    return table(headings, rows)


def trained_table(entries: Sequence[Record], quality: Objective) -> str:
    """What finalists inherit, and reach when trained on or from nothing, with the core-seconds of each."""
    kinds = [k for k in ("fine-tuned", "from scratch") if any(k in e.get("trained", {}) for e in entries)]
    headings = ["architecture", f"{escape(title(quality))}<br>inherited"]
    for kind in kinds:
        headings += [f"{kind}", "core-seconds"]
    rows = []
    for entry in entries:
        if "trained" not in entry:
            continue
        cells = [f"<code>{escape(entry['id'])}</code>"]
        inherited = entry["inherited"]["select"]
        cells.append(_with_spread(inherited["measured"], inherited.get("std_error")))
        for kind in kinds:
            record = entry["trained"].get(kind)
            if record is None:
                cells += [NONE, NONE]
                continue
            found = record["select"]
            cells.append(_with_spread(found["value"], found["std_error"]))
            cells.append(number(record["core_seconds"], digits=3))
        rows.append(("", cells))
    return table(headings, rows) if rows else ""


def quality_table(profile: Record) -> str:
    """How good a device's latency model is, between its baseline and the noise floor."""
    labels = {
        "held_out": "latency model, held-out architectures",
        "macs_only": "baseline: multiply–accumulates alone",
        "test_retest": "noise floor: the same models timed twice",
    }
    quality = profile.get("quality", {})
    rows = []
    for key, label in labels.items():
        if found := quality.get(key):
            cells = [label, number(found.get("mape")), number(found.get("kendall_tau"))]
            rows.append(("", [*cells, number(found.get("n"))]))
    return table(["", "mean error (%)", "Kendall τ", "n"], rows) if rows else ""


def settings_table(values: Mapping[str, Any]) -> str:
    """Names and values, nested ones under dotted names."""
    rows = [("", [escape(name), f"<code>{escape(text)}</code>"]) for name, text in _flat(values)]
    return table(["name", "value"], rows, text_columns={1})


def separation(entries: Iterable[Record], shown: Roles) -> str:
    """A sentence on how many neighbours on the front differ by more than chance.

    Neighbours are next to each other in measured quality; a pair differs when its gap exceeds the
    standard error of a difference, √(a² + b²). The finalists share their examples, which makes this
    cautious: their errors go together, so that their differences vary less.
    """
    figures = [e["objectives"][shown.quality.name] for e in entries if e["front"]]
    known = [f for f in figures if f.get("measured") is not None and f.get("std_error") is not None]
    ordered = sorted(known, key=lambda f: float(f["measured"]))
    pairs = list(itertools.pairwise(ordered))
    if not pairs:
        return ""
    apart = sum(b["measured"] - a["measured"] > math.hypot(a["std_error"], b["std_error"]) for a, b in pairs)
    ends = ordered[-1]["measured"] - ordered[0]["measured"]
    error = math.hypot(ordered[0]["std_error"], ordered[-1]["std_error"])
    return (
        f"{apart} of the {len(pairs)} pairs of neighbours on the front differ in "
        f"{escape(shown.quality.name)} by more than the standard error of their difference; its "
        f"two ends differ by {number(ends, 3)} ± {number(error, 2)} {escape(shown.quality.unit)}."
    )


def table(
    headings: Sequence[str],
    rows: Iterable[tuple[str, Sequence[str]]],
    text_columns: frozenset[int] | set[int] = frozenset(),
) -> str:
    """An HTML table of cells that are HTML already; each row with its CSS class."""

    def cell(tag: str, column: int, content: str) -> str:
        kind = ' class="text"' if column in text_columns else ""
        return f"<{tag}{kind}>{content}</{tag}>"

    head = "".join(cell("th", i, h) for i, h in enumerate(headings))
    lines = (
        f'<tr class="{kind}">{"".join(cell("td", i, c) for i, c in enumerate(cells))}</tr>'
        for kind, cells in rows
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(lines)}</tbody></table>"


def number(value: float | None, digits: int = 4) -> str:
    """`value` to four significant digits, counts and large ones in full, a dash for None."""
    if value is None:
        return NONE
    if isinstance(value, int) or abs(value) >= 10 ** (digits - 1):
        return f"{value:,.0f}"
    return f"{value:#.{digits}g}"


def figures_line(entry: Record, shown: Roles) -> str:
    """What was measured of a finalist, in words: ``accuracy (%) 93.89, latency (ms) 0.05140``."""
    objectives = [o for o in (shown.quality, shown.cost, shown.size) if o]
    return ", ".join(f"{title(o)} {number(value(entry, o, 'measured'))}" for o in objectives)


def _kinds(entries: Sequence[Record], objective: Objective) -> str:
    predicted = any(value(e, objective, "predicted") is not None for e in entries)
    return "predicted → measured" if predicted else "measured"


def _costs(entry: Record, objective: Objective) -> str:
    """``0.12 → 0.121 ± 0.004``; the number alone where the two agree, as sizes do."""
    predicted, measured = (value(entry, objective, kind) for kind in ("predicted", "measured"))
    after = _measured(entry, objective, "spread")
    return after if predicted in (None, measured) else f"{number(predicted)} → {after}"


def _measured(entry: Record, objective: Objective, spread: str) -> str:
    figures = entry["objectives"].get(objective.name, {})
    return _with_spread(figures.get("measured"), figures.get(spread))


def _with_spread(value: float | None, spread: float | None) -> str:
    return number(value) if spread is None else f"{number(value)} ± {number(spread, digits=2)}"


def _test(entry: Record, quality: Objective) -> str:
    test = entry.get("test") or {}
    text = number(test.get(quality.name))
    if not test.get("interval"):
        return text
    low, high = test["interval"]
    return f"{text} [{number(low)}, {number(high)}]"


def _flat(values: Mapping[str, Any], path: str = "") -> Iterable[tuple[str, str]]:
    for name, found in values.items():
        if isinstance(found, Mapping):
            yield from _flat(found, f"{path}{name}.")
        else:
            yield f"{path}{name}", str(found)
