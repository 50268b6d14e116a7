"""What stops a training that goes wrong."""

from __future__ import annotations

import json
import math
from contextlib import suppress
from pathlib import Path
from typing import Any

from nas.architecture import architecture_id, to_json
from nas.errors import RunError
from nas.training.recipe import Recipe

FIRST_STEPS = 10  # whose mean loss an explosion is measured by
DIVERGED = "diverged.json"
RUINED = ".ruined"


class Guard:
    """Refuses numbers that are not finite, and losses that explode.

    A checkpoint is a good one once a step from it on had a sane loss; before, it may hold ruined weights.
    One that a step fails on is put aside, so that a training goes on from the one before.

    Attributes:
        begin: losses of the first steps; goes into checkpoints.
        nothing: the loss of answering 0 whatever comes: what good weights lose on an odd batch is far above
            their usual loss, and far below that.
        good: the last good checkpoint.
    """

    def __init__(self, recipe: Recipe, folder: Path) -> None:
        self.recipe, self.folder = recipe, folder
        self.begin: list[float] = []
        self.nothing: float | None = None
        self.good: Path | None = None
        self._unproven: Path | None = None

    def saved(self, checkpoint: Path) -> None:
        """Says that the weights of now are in `checkpoint`."""
        self._unproven = checkpoint

    def resumed(self, checkpoint: Path, before: Path | None) -> None:
        """Says that the weights of now are from `checkpoint`, and what came before it."""
        self._unproven, self.good = checkpoint, before

    def require_finite(self, what: str, value: float, step: int, architecture: Any) -> None:
        """Raises RunError for NaN and infinity."""
        if not math.isfinite(value):
            raise self._problem(f"The {what} must stay finite", value, step, architecture)

    def require_sane(self, loss: float, step: int, architecture: Any) -> None:
        """Of any subnet's loss to the labels: raises RunError too where it is far above those of the first
        steps, and that of knowing nothing (losses that may be negative are no multiples of one another)."""
        self.require_finite("loss", loss, step, architecture)
        nothing = self.nothing or 0.0
        known = self.begin and (nothing > 0 or len(self.begin) == FIRST_STEPS)
        if not known or min(nothing, *self.begin) < 0:
            return
        usual = max(sum(self.begin) / len(self.begin), nothing)
        times = self.recipe.explosion
        if times < math.inf and loss > times * usual:
            law = f"The loss must not exceed {times:g} times that of the first steps or of zeros, {usual:.3g}"
            raise self._problem(law, loss, step, architecture)

    def passed(self, loss: float) -> None:
        """Says that a step went well, with the loss of its first subnet."""
        if len(self.begin) < FIRST_STEPS:
            self.begin.append(loss)
        if self._unproven is not None:
            self.good, self._unproven = self._unproven, None

    def _problem(self, law: str, value: float, step: int, architecture: Any) -> RunError:
        aside = ""
        if self._unproven is not None:
            with suppress(FileNotFoundError):  # another process may have put it aside, or not written it yet
                ruined = self._unproven.rename(f"{self._unproven}{RUINED}")
                aside = f", and what led here is put aside as {ruined.name}"
        kept = self.good is not None and self.good.exists()  # `keep` may have been 1
        good = f"The last good checkpoint is {self.good}" if kept else "There is no good checkpoint"
        where = self.folder / DIVERGED
        where.write_text(json.dumps(to_json(architecture), indent=1) + "\n")
        return RunError(
            f"{law}, but is {value:.3g} at step {step} of architecture {architecture_id(architecture)} "
            f"({where}). {good}{aside}. Lower training.learning_rate, which is {self.recipe.learning_rate:g}."
        )
