"""Training of supernets."""

from nas.training.checkpoint import Checkpoints, load_tensors, save_tensors
from nas.training.distillation import Distillation, soft_loss
from nas.training.gradients import Gradients
from nas.training.group import Alone, Distributed, Group
from nas.training.guard import Diverged
from nas.training.heap import frozen_heap
from nas.training.loop import Epoch, train
from nas.training.optimizer import SlicedAdamW
from nas.training.pace import seconds_of_steps
from nas.training.prefetch import core_seconds
from nas.training.recipe import ASIDE, Recipe
from nas.training.subnets import (
    BoundedJumps,
    CostBalanced,
    Nested,
    OneBatch,
    Only,
    Progressive,
    Sandwich,
    SinglePath,
    Subnets,
    architectures_of,
)

__all__ = [
    "ASIDE",
    "Alone",
    "BoundedJumps",
    "Checkpoints",
    "CostBalanced",
    "Distillation",
    "Distributed",
    "Diverged",
    "Epoch",
    "Gradients",
    "Group",
    "Nested",
    "OneBatch",
    "Only",
    "Progressive",
    "Recipe",
    "Sandwich",
    "SinglePath",
    "SlicedAdamW",
    "Subnets",
    "architectures_of",
    "core_seconds",
    "frozen_heap",
    "load_tensors",
    "save_tensors",
    "seconds_of_steps",
    "soft_loss",
    "train",
]
