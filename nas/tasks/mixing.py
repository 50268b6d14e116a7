"""Targets between classes: mixup, CutMix, label smoothing."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from nas.annotations import require_types
from nas.errors import DataError
from nas.tasks.base import Batch


@dataclass(frozen=True)
class Mix:
    """Batches of images whose targets are probabilities of classes.

    Mixing is kornia's. Where both kinds are on, each batch gets one of them.

    Attributes:
        mixup: parameter of the beta distribution of shares (Zhang et al., 2018); 0: off.
        cutmix: likewise, of areas (Yun et al., 2019).
        label_smoothing: share of the target spread over all classes (Szegedy et al., 2016, §7).
    """

    mixup: float = 0.0
    cutmix: float = 0.0
    label_smoothing: float = 0.0

    def __post_init__(self) -> None:
        require_types(self, "mix.", DataError)
        fits = all(0 <= alpha < math.inf for alpha in (self.mixup, self.cutmix))
        if not fits or not 0 <= self.label_smoothing < 1:
            raise DataError(
                f"`mix` must have mixup and cutmix of at least 0, both finite, and label_smoothing from 0 to "
                f"below 1: got {self.mixup}, {self.cutmix}, {self.label_smoothing}."
            )

    def __bool__(self) -> bool:
        return bool(self.mixup or self.cutmix or self.label_smoothing)

    def __call__(self, batch: Batch, classes: int, generator: torch.Generator) -> Batch:
        """Labels (B,) to targets (B, classes); images (B, C, H, W), where they are mixed, keep their shape.

        Raises:
            DataError: inputs that are no images, or several, are to be mixed.
        """
        targets, inputs = F.one_hot(batch.targets, classes).float(), batch.inputs
        if self.mixup or self.cutmix:
            if len(inputs) != 1 or inputs[0].ndim != 4:
                raise DataError(
                    f"`mix.mixup` and `mix.cutmix` must have one input of images (B, C, H, W): got "
                    f"{', '.join(str(tuple(x.shape)) for x in inputs)}. Leave them out."
                )
            images, targets = self._mixed(inputs[0], targets, generator)
            inputs = (images,)
        smoothing = self.label_smoothing
        return Batch(inputs, (1 - smoothing) * targets + smoothing / classes)

    def _mixed(self, images: Tensor, targets: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        try:
            from kornia.augmentation import RandomCutMixV2, RandomMixUpV2
        except ImportError:
            raise DataError(
                "`mix.mixup` and `mix.cutmix` must have kornia: pip install 'nas[augment]'."
            ) from None
        kinds = [kind for kind in ("mixup", "cutmix") if getattr(self, kind)]
        which, seed = torch.randint(1 << 30, (2,), generator=generator).tolist()
        kind = kinds[which % len(kinds)]
        numbers = torch.arange(len(images), dtype=images.dtype)
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)  # and not those of GPUs, which steps draw from
            alpha = getattr(self, kind)
            keys: Any = ["input", "class"]
            mixer: torch.nn.Module
            if kind == "mixup":
                share = torch.distributions.Beta(alpha, alpha).sample().item()
                mixer = RandomMixUpV2(lambda_val=torch.tensor([share, share]), p=1.0, data_keys=keys)
            else:
                beta = torch.tensor(alpha)
                mixer = RandomCutMixV2(beta=beta, p=1.0, data_keys=keys, use_correct_lambda=True)
            mixed, labels = mixer(images, numbers)
        first, second, share_of = labels.reshape(-1, 3).to(targets.dtype).unbind(1)
        own = (1 - share_of if kind == "mixup" else share_of)[:, None]
        return mixed, own * targets[first.long()] + (1 - own) * targets[second.long()]


@dataclass(frozen=True)
class Library:
    """A transform of a library as `augment` of a task: a module of images (B, C, H, W) from 0 to 1, such as
    those of `kornia.augmentation`, which draws from PyTorch's own random numbers.

    Example:
        >>> task = replace(task, augment=Library(kornia.augmentation.auto.RandAugment(n=2, m=9)))
    """

    transform: torch.nn.Module

    def __call__(self, images: Tensor, generator: torch.Generator) -> Tensor:
        """(B, C, H, W) to the same shape."""
        seed = int(torch.randint(1 << 30, (1,), generator=generator))
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            transformed: Tensor = self.transform(images)
        return transformed
