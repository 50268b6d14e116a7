"""What a step takes by one recipe and by another."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace

import torch

from nas.supernet import Supernet
from nas.tasks import Task
from nas.threads import cpu_threads
from nas.training.feed import Feed
from nas.training.group import Alone
from nas.training.guard import Guard
from nas.training.heap import frozen_heap
from nas.training.recipe import Recipe
from nas.training.update import Update

STEPS = 24
NO_RATE = sys.float_info.min  # 0 as a float of 32 bits


def seconds_of_steps(supernet: Supernet, task: Task, recipes: Sequence[Recipe], seed: int = 0) -> list[float]:
    """Seconds of a step by each recipe, on one thread: the mean over `STEPS` steps from all of a training,
    the recipes in turn. Core-seconds on a CPU, on which others may be at work; else those of the clock.

    Weights stay as they are.
    """
    with cpu_threads(1), frozen_heap():
        runs = [_Run(supernet, task, recipe, seed) for recipe in recipes]
        for run in runs:
            run.step(0)  # makes moments, and whatever is made once
        seconds = [[run.step(step) for run in runs] for step in range(STEPS)]
        supernet.to("cpu")
    return [sum(found) / STEPS for found in zip(*seconds, strict=True)]


class _Run:
    """Steps of a training that learns nothing."""

    def __init__(self, supernet: Supernet, task: Task, recipe: Recipe, seed: int) -> None:
        recipe = replace(recipe, learning_rate=NO_RATE, explosion=math.inf)
        feed = Feed(task, recipe, seed, Alone(), recipe.torch_device())
        with closing(feed), closing(feed.groups(0, 0)) as groups:
            self.batches = next(groups)
        self.update = Update(supernet, task, recipe, feed, Guard(recipe), STEPS)
        self.clock = time.process_time if feed.device.type == "cpu" else time.perf_counter

    def step(self, number: int) -> float:
        start = self.clock()
        self.update(self.batches, number)
        if self.update.device.type == "cuda":
            torch.cuda.synchronize(self.update.device)
        return self.clock() - start
