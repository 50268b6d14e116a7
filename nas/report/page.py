"""``report.html``: one file with everything inside, which renders offline and can be mailed."""

from __future__ import annotations

from decimal import Decimal
from html import escape
from pathlib import Path

import plotly.graph_objects as go
from plotly.offline import get_plotlyjs

from nas.difference import difference
from nas.files import write_atomically
from nas.reading import Record, Roles, RunView, read_run, roles
from nas.report.architecture import architecture_svg
from nas.report.figures import (
    accuracy_figure,
    hypervolume_figure,
    latency_figure,
    training_figure,
)
from nas.report.front import front_figure, verified
from nas.report.style import PLOT_CONFIG, STYLE_SHEET
from nas.report.tables import (
    figures_line,
    finalists_table,
    quality_table,
    separation,
    settings_table,
    trained_table,
)


def render_report(run_dir: Path | str) -> Path:
    """Writes ``report.html`` into the run directory from what it holds so far; returns its path.

    Raises:
        RunError: there is no such directory, or one of its files is damaged.
    """
    view = read_run(run_dir)
    path = view.path / "report.html"
    write_atomically(path, _page(view))
    return path


def _page(view: RunView) -> str:
    sections = [_device_section(view, device) for device in view.device_names]
    links = [(f"device-{i}", name) for i, name in enumerate(view.device_names)]
    sections = [
        f'<section id="{anchor}">{html}</section>' for (anchor, _), html in zip(links, sections, strict=True)
    ]
    links += [("training", "Training"), ("settings", "Settings")]
    navigation = "".join(f'<a href="#{anchor}">{escape(name)}</a>' for anchor, name in links)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{escape(view.name)} – report</title>
<style>{STYLE_SHEET}</style>
<script>{get_plotlyjs()}</script>
</head>
<body>
<header class="top"><div><h1>{escape(view.name)}</h1>{_summary(view)}</div></header>
<nav><div>{navigation}</div></nav>
<main>
{"".join(sections) or _nothing("No search has written a trial yet.")}
<section id="training"><h2>Training</h2>{_training(view)}</section>
<section id="settings"><h2>Settings</h2>{_settings(view)}</section>
</main>
</body>
</html>
"""


def _summary(view: RunView) -> str:
    """One line under the title: how much was tried, and how much of it was verified."""
    states = [t["state"] for t in view.trials]
    failed, pruned = states.count("failed"), states.count("pruned")
    evaluated = sum(bool(t.get("evaluated")) for t in view.trials)
    on_front = sum(bool(e["front"]) for e in view.front)
    size = view.experiment.get("space", {}).get("size")
    parts = [
        f"{len(view.trials):,} trials ({failed} failed, {pruned} pruned)",
        f"{evaluated:,} evaluations",
        f"{len(view.front)} finalists verified, {on_front} of them on a front",
        f"seed {view.experiment.get('seed', 'unknown')}",
    ]
    if size is not None:
        parts.insert(0, f"{Decimal(size):.1e} architectures in the space")
    return f'<p class="muted">{escape(" · ".join(parts))}</p>'


def _device_section(view: RunView, device: str) -> str:
    profile = view.devices.get(device, {})
    pair = "".join(
        [
            _card(latency_figure(profile), below=quality_table(profile)),
            _card(accuracy_figure(view, device), below=_caution(view, device)),
        ]
    )
    parts = [
        f"<h2>{escape(device)}</h2>{_conditions(profile)}",
        _card(front_figure(view, device), _front_caption(view, device)),
        _finalists(view, device),
        _trained(view, device),
        _architectures(view, device),
        _card(hypervolume_figure(view, device), _counts(view, device)),
        f'<div class="pair">{pair}</div>' if pair else "",
    ]
    return "".join(parts)


def _front_caption(view: RunView, device: str) -> str:
    shown = roles(view.objectives_of(device), device)
    if shown is None:
        return ""
    quality, cost = (o.name.partition(".")[0].split("_")[0] for o in (shown.quality, shown.cost))
    return (
        "Dots are trials with predicted numbers. Hollow circles are the finalists as predicted; "
        f"dotted lines lead to what was measured: {quality} on the split select with its standard error, "
        f"{cost} on the device. The line is the best measured {quality} that each {cost} allows; "
        "what is on the front below it is so by another objective. Hover for the architectures."
    )


def _finalists(view: RunView, device: str) -> str:
    shown = roles(view.objectives_of(device), device)
    entries = verified(view, device, shown) if shown else []
    if not shown or not entries:
        return _nothing("No finalist has been verified yet: `nas verify` measures them.")
    note = (
        "Grey rows fell behind the front when measured. The front was chosen on the split select; "
        "the split test was looked at to report, once for each set of weights, and decided nothing."
    )
    return (
        f'<div class="card"><h3>Finalists</h3>{finalists_table(view, entries, shown.quality)}'
        f'<p class="muted">{separation(entries, shown)}</p><p class="muted">{note}</p></div>'
    )


def _trained(view: RunView, device: str) -> str:
    """Inherited, fine-tuned and from scratch, where some were trained on."""
    shown = roles(view.objectives_of(device), device)
    entries = verified(view, device, shown) if shown else []
    if not shown or not (found := trained_table(entries, shown.quality)):
        return ""
    note = (
        "On the split select. Of inherited and fine-tuned weights those are handed out that are better on "
        "the split search; the table of finalists shows them."
    )
    if (seconds := view.training_core_seconds) is not None:
        note += (
            f" What is inherited took the supernet's training, {seconds:,.0f} core-seconds, once for all "
            f"subnets; a subnet that is trained on takes its own on top."
        )
    return f'<div class="card"><h3>Trained on</h3>{found}<p class="muted">{note}</p></div>'


def _architectures(view: RunView, device: str) -> str:
    """A picture of each architecture on the front, and what it changes in the one before it."""
    shown = roles(view.objectives_of(device), device)
    entries = [e for e in verified(view, device, shown) if e["front"]] if shown else []
    if not shown or not entries:
        return ""
    drawn = [_picture(entry, before, shown) for before, entry in zip([None, *entries], entries, strict=False)]
    return f'<div class="card"><h3>Architectures on the front</h3>{"".join(drawn)}</div>'


def _picture(entry: Record, before: Record | None, shown: Roles) -> str:
    summary = f"<code>{escape(entry['id'])}</code> {escape(figures_line(entry, shown))}"
    change = ""
    if before is not None:
        text = difference(before["architecture"], entry["architecture"])
        change = f"<p>From <code>{escape(before['id'])}</code> to it:</p><pre>{escape(text)}</pre>"
    opened = "" if before else " open"
    picture = architecture_svg(entry["architecture"])
    return f"<details{opened}><summary>{summary}</summary>{picture}{change}</details>"


def _caution(view: RunView, device: str) -> str:
    """Finalists are a selection by predicted numbers, which are therefore too good on average."""
    shown = roles(view.objectives_of(device), device)
    if shown is None:
        return ""
    figures = [e["objectives"].get(shown.quality.name, {}) for e in view.front_of(device)]
    pairs = [(f.get("predicted"), f.get("measured")) for f in figures]
    drops = [m - p for p, m in pairs if p is not None and m is not None]
    if not drops:
        return ""
    mean, unit = sum(drops) / len(drops), escape(shown.quality.unit)
    return (
        f'<p class="muted">From search to select the {len(drops)} finalists changed by {mean:+.2f} '
        f"{unit} on average. A drop is to be expected: what is chosen for a high number was partly "
        "lucky.</p>"
    )


def _conditions(profile: dict[str, object]) -> str:
    """How the device was timed: runtime, threads, batch."""
    known = [f"{k} {profile[k]}" for k in ("runtime", "threads", "batch") if k in profile]
    return f'<p class="muted">{escape(" · ".join(known))}</p>' if known else ""


def _counts(view: RunView, device: str) -> str:
    """Candidates are what a search asked for; evaluations those whose accuracy was not cached."""
    counts = []
    for search in view.searches_of(device):
        trials = [t for t in view.trials if t["search"] == search]
        evaluated = sum(bool(t.get("evaluated")) for t in trials)
        counts.append(f"{search}: {len(trials)} candidates, {evaluated} evaluations")
    note = "Accuracies of architectures that another search had evaluated come from the cache."
    return f"{'; '.join(counts)}. {note}"


def _training(view: RunView) -> str:
    made = training_figure(view.history, view.objectives[0]) if view.history and view.objectives else None
    return _card(made) or _nothing("No training history in this run.")


def _settings(view: RunView) -> str:
    names = ("seed", "settings", "space", "scales", "versions", "machine", "source", "tracking")
    found = {name: view.experiment[name] for name in names if name in view.experiment}
    if not found:
        return _nothing("experiment.json has not been written.")
    return f'<div class="card">{settings_table(found)}</div>'


def _card(figure: go.Figure | None, caption: str = "", below: str = "") -> str:
    """A figure with its caption in a card; nothing where there is no figure."""
    if figure is None:
        return ""
    html = figure.to_html(
        full_html=False,
        include_plotlyjs=False,  # once, in the head
        config=PLOT_CONFIG,
    )
    words = f"<figcaption>{escape(caption)}</figcaption>" if caption else ""
    return f'<div class="card"><figure>{html}{words}</figure>{below}</div>'


def _nothing(text: str) -> str:
    return f'<p class="muted card">{escape(text)}</p>'
