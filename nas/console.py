"""Progress bars and tables for a terminal; a line now and then where there is none."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

console = Console(highlight=False, soft_wrap=True)
if not console.is_terminal:
    console = Console(highlight=False, soft_wrap=True, width=120)  # logs have room


class Bar:
    """One progress bar; `advance` moves it and replaces the note behind it."""

    def __init__(self, progress: Progress, title: str, total: int) -> None:
        self._progress, self._title, self._total = progress, title, total
        self._done = 0
        self._task = progress.add_task(title, total=total, note="")

    def advance(self, note: str | None = None, steps: int = 1) -> None:
        self._done += steps
        self._progress.update(self._task, advance=steps)
        if note is not None:
            self._progress.update(self._task, note=note)
        quarter = max(1, self._total // 4)
        if not console.is_terminal and self._done % quarter < steps and self._done < self._total:
            console.print(f"  {self._title} {self._done}/{self._total} {note or ''}".rstrip())


@contextmanager
def bar(title: str, total: int) -> Iterator[Bar]:
    """A progress bar for the length of the body."""
    columns = (
        TextColumn("{task.description:<28}"),
        BarColumn(bar_width=24),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn() if console.is_terminal else TextColumn(""),
        TextColumn("{task.fields[note]}"),
    )
    with Progress(*columns, console=console, refresh_per_second=4) as progress:
        yield Bar(progress, title, total)
