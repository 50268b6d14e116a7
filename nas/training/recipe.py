"""How a supernet is trained."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch

from nas.annotations import require_types
from nas.errors import RunError
from nas.space import Space
from nas.tasks.mixing import Mix
from nas.training.distillation import Distillation
from nas.training.optimizer import Group
from nas.training.subnets import Only, SinglePath, Subnets

ASIDE = ("workers", "device", "threads", "keep", "checkpoint_seconds", "explosion")
"""Settings of a recipe that do not matter to what comes out."""


@dataclass(frozen=True)
class Recipe:
    """How a supernet is trained.

    Attributes:
        epochs: passes over *train*.
        learning_rate: its peak; warmed up linearly over `warmup` of all steps, then a cosine to 0.
        weight_decay: AdamW's, on matrices alone.
        clip: largest norm of the gradient.
        subnets: which architectures a step trains.
        withheld: (field, options of its `oneof`s) that no step trains, such as ``(("ratio", (2,)),)``:
            `nas assess --unseen` says how well the bank does what it was never trained for.
        distillation: what they learn from beside the labels.
        project: whether the largest subnet's gradient loses, parameter by parameter, what opposes the others'
            (NASViT, Gong et al., 2022, §3.2).
        mix: mixup, CutMix and label smoothing, of tasks with images and classes.
        resolutions: sides to one of which the images of each step are scaled (after ResFormer, Tian et al.,
            2023, §3.1, which takes several a step and has them agree); none: they stay as they are.
        accumulate: batches per update.
        ema: decay of the average of weights over steps that is kept and searched (Izmailov et al., 2018;
            Polyak & Juditsky, 1992); 0: the last weights are.
        rates: (regular expression, factor) of learning rates: of the first that a parameter's whole name
            matches (blockwise rates, Wang et al., 2025).
        explosion: the training stops where the loss exceeds so many times its mean over the first steps.
        checkpoint_seconds: least time between two checkpoints.
        keep: how many checkpoints are kept.
        workers: processes that share each batch, through Ray Train.
        device: "auto" takes a GPU where there is one.
        precision: "bfloat16" runs modules in autocast (weights, optimizer and their averages stay float32),
            "float32" does not, "auto" does so on GPUs.
        threads: CPU threads; 0 leaves the choice to PyTorch.
    """

    epochs: int = 200
    learning_rate: float = 3e-3
    weight_decay: float = 0.05
    warmup: float = 0.05
    clip: float = 1.0
    subnets: Subnets = SinglePath()
    withheld: tuple[tuple[str, tuple[Any, ...]], ...] = ()
    distillation: Distillation = Distillation()
    project: bool = False
    mix: Mix = Mix()
    resolutions: tuple[int, ...] = ()
    accumulate: int = 1
    ema: float = 0.0
    rates: tuple[tuple[str, float], ...] = ()
    explosion: float = 20.0
    checkpoint_seconds: float = 10.0
    keep: int = 2
    workers: int = 1
    device: str = "auto"
    precision: Literal["auto", "float32", "bfloat16"] = "auto"
    threads: int = 0

    def __post_init__(self) -> None:
        require_types(self, "training.")
        for name, least in (("epochs", 1), ("accumulate", 1), ("keep", 1), ("workers", 1), ("threads", 0)):
            value = getattr(self, name)
            if value < least:
                raise RunError(f"`training.{name}` must be a whole number, {least} or more: got {value!r}.")
        for name, fits, law in (
            ("learning_rate", lambda v: 0 < v < math.inf, "positive"),
            ("weight_decay", lambda v: 0 <= v < math.inf, "a number of at least 0"),
            ("warmup", lambda v: 0 <= v <= 1, "a share of all steps, 0 to 1"),
            ("clip", lambda v: v > 0, "above 0 (inf: no clipping)"),
            ("ema", lambda v: 0 <= v < 1, "a decay from 0 to below 1"),
            ("explosion", lambda v: v > 1, "above 1 (inf: never)"),
            ("checkpoint_seconds", lambda v: v >= 0, "a number of at least 0"),
        ):
            if not fits(getattr(self, name)):
                raise RunError(f"`training.{name}` must be {law}: got {getattr(self, name)!r}.")
        if self.workers > 1 and ":" in self.device:
            raise RunError(
                f"`training.device` must be auto, cuda or cpu where there are {self.workers} processes, each "
                f"with a device of its own: got {self.device!r}."
            )
        if any(side < 1 for side in self.resolutions):
            raise RunError(f"`training.resolutions` must be sides in pixels: got {self.resolutions!r}.")
        if not all(options for _, options in self.withheld):
            raise RunError(
                f"`training.withheld` must hold pairs of a name and a tuple of options, as in "
                f"(('ratio', (2,)),): got {self.withheld!r}."
            )
        for name, on in (("project", self.project), ("distillation.features", self.distillation.features)):
            if on and not self.subnets.teaches:
                raise RunError(
                    f"`training.{name}` must have a rule whose steps begin with the largest subnet, such as "
                    f"Sandwich: got {type(self.subnets).__name__}."
                )
        for pattern, factor in self.rates:
            try:
                re.compile(pattern)
            except re.error as error:
                raise RunError(f"`training.rates` must hold regular expressions: got {pattern!r}.") from error
            if not 0 <= factor < math.inf:
                raise RunError(
                    f"`training.rates` must have factors of at least 0: got {factor} for {pattern!r}."
                )

    def trained(self, space: Space) -> Space:
        """The part of `space` that steps draw from."""
        for name, options in self.withheld:
            space = space.without(name, options)
        return space

    def alone(self, architecture: Any) -> Recipe:
        """This recipe for one architecture that is trained as a plain model, in this process."""
        distillation = replace(self.distillation, in_place=0.0, features=0.0)
        return replace(
            self, subnets=Only(architecture), withheld=(), distillation=distillation, project=False, workers=1
        )

    def torch_device(self) -> torch.device:
        """Where this process trains."""
        if self.device == "auto":
            return torch.device("cuda" if torch.cuda.is_available() else "cpu")
        return torch.device(self.device)

    def rate(self, progress: float) -> float:
        """Learning rate at `progress` (0 … 1) of the training."""
        if progress < self.warmup:
            return self.learning_rate * progress / self.warmup
        share = (progress - self.warmup) / (1 - self.warmup) if self.warmup < 1 else 0.0
        return self.learning_rate * 0.5 * (1 + math.cos(math.pi * share))

    def groups(self, names: Mapping[str, bool]) -> dict[str, Group]:
        """How each parameter is updated; `names` says which are matrices.

        Raises:
            RunError: a pattern of `rates` that fits none of them (one architecture alone may lack it).
        """
        for pattern, _ in self.rates if not isinstance(self.subnets, Only) else ():
            if not any(re.fullmatch(pattern, name) for name in names):
                raise RunError(
                    f"`training.rates` must fit whole names of parameters, such as {min(names)}: {pattern!r} "
                    f"fits none."
                )
        return {
            n: Group(self._factor(n), self.weight_decay if matrix else 0.0) for n, matrix in names.items()
        }

    def _factor(self, name: str) -> float:
        return next((factor for pattern, factor in self.rates if re.fullmatch(pattern, name)), 1.0)
