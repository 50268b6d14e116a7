"""What a task is: data in four splits, a loss, and metrics that add up over parts."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Literal, NamedTuple, Protocol

from torch import Tensor

Split = Literal["train", "search", "select", "test"]
SPLITS: tuple[Split, ...] = ("train", "search", "select", "test")


class Batch(NamedTuple):
    """Inputs of the module, in its order, and what is wanted of it."""

    inputs: tuple[Tensor, ...]
    targets: Tensor


def classified(batch: Batch) -> bool:
    """Whether there is one class per example."""
    return batch.targets.ndim == 1 and not batch.targets.is_floating_point()


def axis_of_classes(answer: tuple[int, ...], targets: Tensor) -> int | None:
    """Where the logits of an answer of that shape are: on the axis that targets lack, or of which they have
    one, whatever the size of either's batch. None where targets or answers are numbers: one for each of
    several labels, one logit alone, or whatever else fits no classes.

    By the shapes of both; where these leave it open, the last of tokens (B, T, classes), the second of maps
    (B, classes, H, W), which may be smaller than their targets."""
    wanted = tuple(targets.shape[1:])
    if targets.is_floating_point() or len(answer) < 2 or answer[1:] == wanted:
        return None
    if len(wanted) == len(answer) - 1:  # masks (B, 1, H, W) and the like
        one = next((i for i in (0, -1) if wanted[i] == 1), None)
        if one is None:
            return None
        wanted = wanted[1:] if one == 0 else wanted[:-1]
    maps = len(answer) > 3
    last, second = answer[1:-1] == wanted, answer[2:] == wanted
    if not wanted or (maps and len(wanted) == len(answer) - 2 and not last):
        axis = 1 if maps else -1  # one class of all places, or smaller maps
    elif last or second:
        axis = 1 if second and (maps or not last) else -1
    else:
        return None
    return None if answer[axis] == 1 else axis


@dataclass(frozen=True)
class Metric:
    """Name, unit and direction of a figure of merit."""

    name: str
    unit: str
    direction: Literal["maximize", "minimize"]

    def text(self, value: float) -> str:
        """A figure for people, such as "97.6%" or "0.513 K"."""
        return f"{value:.1f}%" if self.unit == "%" else f"{value:.4g} {self.unit}".rstrip()


def with_error(value: float, error: float | None = None) -> str:
    """A metric's value for people, such as "97.60 ± 0.34"; to four digits where it is below 1, "0.001253"."""
    text = f"{value:.2f}" if abs(value) >= 1 else f"{value:.4g}"
    if error is None:
        return text
    return f"{text} ± {error:.2f}" if error >= 1 else f"{text} ± {error:.2g}"


@dataclass(frozen=True)
class Tally:
    """Sums of a metric over examples; tallies of parts add up to that of the whole.

    Example:
        >>> (Tally.of(correct[:50]) + Tally.of(correct[50:])).mean
    """

    total: float = 0.0
    squares: float = 0.0
    n: int = 0

    @classmethod
    def of(cls, values: Tensor) -> Tally:
        """Of one value per example, any shape."""
        values = values.double()
        return cls(float(values.sum()), float(values.square().sum()), values.numel())

    def __add__(self, other: Tally) -> Tally:
        return Tally(self.total + other.total, self.squares + other.squares, self.n + other.n)

    @property
    def mean(self) -> float:
        return self.total / self.n if self.n else math.nan

    @property
    def std_error(self) -> float | None:
        """Standard error of the mean over examples; None of a single value, such as one for a whole split, or
        of values that are not finite."""
        if self.n < 2:
            return None
        variance = (self.squares / self.n - self.mean**2) * self.n / (self.n - 1)
        return math.sqrt(max(0.0, variance) / self.n) if math.isfinite(variance) else None


class Task(Protocol):
    """Data, loss and metrics. The searcher sees *search*, finalists are compared on *select*, and
    *test* is looked at to report, once for each set of weights, and decides nothing.

    One with `classes`, their number, may be trained with mixup, CutMix and label smoothing: `loss` and
    `tallies` are then given targets (B, classes), shares of each class. `nas tune` leaves these out where
    they cannot take them.

    One whose loss is no mean over examples that count alike, such as one over the tokens that are no padding,
    has `weight(batch)`, the number of what it is a mean over: a step's batch may be shared among processes,
    subnets and passes (`workers`, `OneBatch`, `accumulate`), whose losses then count by that."""

    @property
    def metric(self) -> Metric:
        """The metric that a search trades off."""

    @property
    def fingerprint(self) -> str:
        """12 hex digits: equal for equal data and splits."""

    @property
    def preparation(self) -> str:
        """In words, what was done to raw inputs."""

    def batches(
        self, split: Split, *, seed: int = 0, epoch: int = 0, part: tuple[int, int] = (0, 1), first: int = 0
    ) -> Iterator[Batch]:
        """Batches of a split, from the `first` on. *train* is shuffled and augmented, the same for the same
        (seed, epoch), wherever it begins; the others come in order. `part` = (i, n) is the i-th of n
        shares.

        Training asks for them in a thread of its own while a step runs: what is drawn for *train* must come
        from a generator made of (seed, epoch), not from the global ones of PyTorch and NumPy."""

    def batch_count(self, split: Split) -> int:
        """How many batches a split has."""

    def loss(self, outputs: Tensor, batch: Batch) -> Tensor:
        """Mean loss of a batch, over its examples or what `weight` says."""

    def tallies(self, outputs: Tensor, batch: Batch) -> Mapping[str, Tally]:
        """Metrics of a batch by name, `metric` among them."""
