"""What the subnets of a step learn from beside the labels."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.annotations import require_types
from nas.errors import RunError


@dataclass(frozen=True)
class Distillation:
    """Soft answers of a teacher, as a share of the loss; labels have the rest.

    Attributes:
        external: share that `teacher` teaches all of them.
        in_place: share, of what `external` leaves, that the largest subnet of the step teaches the others
            (in-place distillation, Yu & Huang, 2019, §3.3), where the rule of subnets has a largest one.
        teacher: a module from the task's inputs to its outputs, or the folder of an export of the same
            builder (``runs/digits/exports/ID``); None: none.
        temperature: by which answers are divided before the softmax (Hinton et al., 2015, §2). Where targets
            are numbers and no classes, a student's answers are drawn to the teacher's by their mean squared
            difference instead (Ba & Caruana, 2014, §2.2).
        features: weight of the mean squared difference to what parts of the largest subnet give, where
            shapes agree (FitNets, Romero et al., 2015, without a regressor).
        parts: regular expression of the names of those parts.
    """

    in_place: float = 1.0
    external: float = 0.0
    teacher: nn.Module | str | Path | None = None
    temperature: float = 1.0
    features: float = 0.0
    parts: str = r"stages\.\d+"

    def __post_init__(self) -> None:
        require_types(self, "distillation.")
        for name in ("in_place", "external"):
            if not 0 <= getattr(self, name) <= 1:
                raise RunError(f"`distillation.{name}` must be from 0 to 1: got {getattr(self, name)}.")
        if bool(self.external) != (self.teacher is not None):
            raise RunError(
                f"`distillation.external` must be above 0 where there is a `teacher`, and only there: got "
                f"{self.external} and {type(self.teacher).__name__}."
            )
        if isinstance(self.teacher, (str, Path)):  # other processes work in other folders
            object.__setattr__(self, "teacher", str(Path(self.teacher).absolute()))
        try:
            re.compile(self.parts)
        except re.error as error:
            raise RunError(
                f"`distillation.parts` must be a regular expression: got {self.parts!r} ({error})."
            ) from error
        if not 0 < self.temperature < math.inf or not 0 <= self.features < math.inf:
            raise RunError(
                f"`distillation` must have a temperature above 0 and features of at least 0, both finite: "
                f"got {self.temperature} and {self.features}."
            )

    def loss(
        self,
        answer: Tensor,
        label_loss: Tensor,
        inside: Tensor | None,
        outside: Tensor | None,
        classes: int | None = -1,
    ) -> Tensor:
        """The loss of one subnet: of `answer` to labels, to the largest subnet's, and to the teacher's.

        Args:
            classes: the axis of logits in an answer; None: it holds numbers.
        """
        loss = label_loss
        for share, teacher in ((self.in_place, inside), (self.external, outside)):
            if share and teacher is not None:
                if teacher.shape != answer.shape:
                    raise RunError(
                        f"A teacher must answer in the shape of the subnets, {tuple(answer.shape)}: got "
                        f"{tuple(teacher.shape)}."
                    )
                if classes is None:
                    apart = F.mse_loss(answer.float(), teacher.float())
                else:
                    apart = soft_loss(answer, teacher, self.temperature, classes)
                loss = (1 - share) * loss + share * apart
        return loss


def soft_loss(student: Tensor, teacher: Tensor, temperature: float = 1.0, classes: int = -1) -> Tensor:
    """Cross-entropy with the teacher's probabilities, mean over all axes but that of `classes`, times
    temperature² so that gradients keep their size (Hinton et al., 2015, §2)."""
    student, teacher = (
        x.float().movedim(classes, -1).flatten(0, -2) / temperature for x in (student, teacher)
    )
    return F.cross_entropy(student, teacher.softmax(-1)) * temperature**2


class Features:
    """Outputs of the parts of a module whose names match a pattern, while it runs."""

    def __init__(self, pattern: str) -> None:
        self.pattern = re.compile(pattern)

    @contextmanager
    def of(self, module: nn.Module) -> Iterator[dict[str, Tensor]]:
        """Fills the dictionary as `module` runs inside the body."""
        found: dict[str, Tensor] = {}
        handles = [
            part.register_forward_hook(
                lambda _m, _i, output, name=name: found.update({name: _first(output, name)})
            )
            for name, part in module.named_modules()
            if self.pattern.fullmatch(name)
        ]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()


def _first(output: Any, name: str) -> Tensor:
    first = output[0] if isinstance(output, tuple) else output
    if not isinstance(first, Tensor):
        raise RunError(
            f"`distillation.parts` must fit modules that answer with a tensor, or a tuple that begins with "
            f"one: {name} gives a {type(first).__name__}. Name others."
        )
    return first


def feature_loss(student: Mapping[str, Tensor], teacher: Mapping[str, Tensor]) -> Tensor:
    """Mean squared difference, averaged over the parts whose shapes agree; 0 where none does."""
    pairs = [(s, teacher[n]) for n, s in student.items() if n in teacher and s.shape == teacher[n].shape]
    if not pairs:
        return torch.zeros(())
    return torch.stack([F.mse_loss(s, t.detach()) for s, t in pairs]).mean()
