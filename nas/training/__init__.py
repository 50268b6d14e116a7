"""Training of supernets."""

from nas.training.checkpoint import load_tensors, save_tensors
from nas.training.heap import frozen_heap
from nas.training.loop import Epoch, Recipe, distillation, train
from nas.training.subnets import Sandwich, Subnets

__all__ = [
    "Epoch",
    "Recipe",
    "Sandwich",
    "Subnets",
    "distillation",
    "frozen_heap",
    "load_tensors",
    "save_tensors",
    "train",
]
