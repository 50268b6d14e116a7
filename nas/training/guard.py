"""What stops a training that goes wrong."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from nas.errors import RunError
from nas.training.recipe import Recipe

FIRST_STEPS = 10  # whose mean loss an explosion is measured by


class Guard:
    """Refuses numbers that are not finite, and losses that explode.

    Attributes:
        begin: losses of the first steps; goes into checkpoints.
        saved: the last good checkpoint.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.begin: list[float] = []
        self.saved: Path | None = None

    def require_finite(self, what: str, value: float, step: int, architecture: Any) -> None:
        """Raises RunError for NaN and infinity."""
        if not math.isfinite(value):
            raise self._problem(f"The {what} must stay finite", value, step, architecture)

    def require_sane(self, loss: float, step: int, architecture: Any) -> None:
        """Of the loss of each step in turn: raises RunError too where it is far above those of the first."""
        self.require_finite("loss", loss, step, architecture)
        if len(self.begin) < FIRST_STEPS:
            self.begin.append(loss)
        usual, times = sum(self.begin) / len(self.begin), self.recipe.explosion
        if times < math.inf and loss > times * usual:
            law = f"The loss must not exceed {times:g} times that of the first steps, {usual:.3g}"
            raise self._problem(law, loss, step, architecture)

    def _problem(self, law: str, value: float, step: int, architecture: Any) -> RunError:
        good = f"the last good checkpoint is {self.saved}" if self.saved else "there is no checkpoint yet"
        return RunError(
            f"{law}, but is {value:.3g} at step {step} for {architecture}. Lower training.learning_rate (now "
            f"{self.recipe.learning_rate}); {good}."
        )
