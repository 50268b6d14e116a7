"""AdamW on slices of a bank."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.optim.adamw import adamw

from nas.training.gradients import Gradients

MOMENTS = ("exp_avg", "exp_avg_sq", "steps")


@dataclass(frozen=True)
class Group:
    """How a parameter is updated.

    Attributes:
        rate: factor on the learning rate.
        decay: weight decay.
    """

    rate: float = 1.0
    decay: float = 0.0


class SlicedAdamW:
    """AdamW (Loshchilov & Hutter, 2019), where what a step has not trained stays as it is.

    With zeros for missing gradients, momentum would drag a slice on after it was trained, by as many steps
    as others were, and decay would shrink it; here weights, moments and decay move only where a subnet of
    the step has the weight. Where all of a tensor is trained at each step it is PyTorch's AdamW. Steps are
    counted per tensor: a weight that is first trained at step t of its tensor moves by 0.1 / √(0.001 /
    (1 − 0.999^t)) of the rate, 0.7 of it at step 50 and at most 3.2 of it ever, where PyTorch's moves by 1.

    Args:
        bank: the tensors, which are updated in place.
        groups: of each of them.
    """

    def __init__(
        self,
        bank: Mapping[str, Tensor],
        groups: Mapping[str, Group],
        *,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
    ) -> None:
        self.bank, self.groups = bank, groups
        self.betas, self.eps = betas, eps
        self.state: dict[str, dict[str, Tensor]] = {}

    @torch.no_grad()
    def step(self, gradients: Gradients, rate: float) -> None:
        """One update at learning rate `rate`."""
        by_group: dict[Group, list[_Slice]] = {}
        for name in gradients:
            by_group.setdefault(self.groups[name], []).append(self._slice(name, gradients))
        for group, slices in by_group.items():
            adamw(
                [s.parameter for s in slices],
                [s.gradient for s in slices],
                [s.exp_avg for s in slices],
                [s.exp_avg_sq for s in slices],
                [],
                [s.steps for s in slices],
                amsgrad=False,
                beta1=self.betas[0],
                beta2=self.betas[1],
                lr=rate * group.rate,
                weight_decay=group.decay,
                eps=self.eps,
                maximize=False,
            )
            for piece in slices:
                piece.put_back()

    def _slice(self, name: str, gradients: Gradients) -> _Slice:
        whole = self.bank[name].detach()
        if name not in self.state:
            zeros = {moment: torch.zeros_like(whole) for moment in MOMENTS[:2]}
            self.state[name] = zeros | {"steps": torch.zeros((), dtype=torch.float32)}
        state, box = self.state[name], gradients.box(name)
        views = tuple(tensor[box] for tensor in (whole, state["exp_avg"], state["exp_avg_sq"]))
        return _Slice(views, gradients.value(name), state["steps"], gradients.trained(name))


class _Slice:
    """Views of a parameter and its moments; copies of what was trained, where that is no box."""

    def __init__(
        self, views: tuple[Tensor, ...], gradient: Tensor, steps: Tensor, trained: Tensor | None
    ) -> None:
        self.views, self.trained, self.steps = views, trained, steps
        self.parameter, self.exp_avg, self.exp_avg_sq = (
            views if trained is None else (view[trained] for view in views)
        )
        self.gradient = gradient if trained is None else gradient[trained]

    def put_back(self) -> None:
        if self.trained is not None:
            for view, values in zip(self.views, (self.parameter, self.exp_avg, self.exp_avg_sq), strict=True):
                view[self.trained] = values
