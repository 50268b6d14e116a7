"""What stops a training that goes wrong."""

from __future__ import annotations

import math
from typing import Any

from nas.architecture import architecture_id
from nas.errors import RunError
from nas.training.recipe import Recipe

FIRST_STEPS = 10  # whose mean loss an explosion is measured by


class Diverged(RunError):
    """Numbers that good weights do not give.

    Attributes:
        architecture: that gave them.
        fact: what they are, without what to do about it.
    """

    architecture: Any = None
    fact: str = ""


class Guard:
    """Refuses numbers that are not finite, and losses that explode.

    Attributes:
        begin: losses of the first steps; goes into checkpoints.
        nothing: the loss of answering 0 whatever comes: what good weights lose on an odd batch is far above
            their usual loss, and far below that.
    """

    def __init__(self, recipe: Recipe) -> None:
        self.recipe = recipe
        self.begin: list[float] = []
        self.nothing: float | None = None

    def require_finite(self, what: str, value: float, step: int, architecture: Any) -> None:
        """Raises Diverged for NaN and infinity."""
        if not math.isfinite(value):
            raise _diverged(f"The {what} must stay finite", value, step, architecture)

    def require_sane(self, loss: float, step: int, architecture: Any) -> None:
        """Of any subnet's loss to the labels: raises Diverged too where it is far above those of the first
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
            raise _diverged(law, loss, step, architecture)

    def passed(self, loss: float) -> None:
        """Says that a step went well, with the loss of its first subnet."""
        if len(self.begin) < FIRST_STEPS:
            self.begin.append(loss)


def _diverged(law: str, value: float, step: int, architecture: Any) -> Diverged:
    which = architecture_id(architecture)
    fact = f"{law}, but is {value:.3g} at step {step} of architecture {which}."
    error = Diverged(fact)
    error.architecture, error.fact = architecture, fact
    return error
