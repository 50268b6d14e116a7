"""Subnets of each mixer alone and of each channel mixer alone, drawn from one bank over all of them.

    python -m experiments.benchmarks.every_mixer [folder of runs]

Prints the bank's size by what is shared, the accuracy on *select* of `DRAWN` random subnets per mixer and
channel mixer, and the largest difference between supernet and extracted module over 300 random subnets.
"""

from __future__ import annotations

import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from experiments import every_mixer
from experiments.benchmarks.results import write
from nas.evaluation import statistics, subnet_accuracy
from nas.layers import ChannelMixer, Mixer
from nas.space import Space
from nas.supernet import Supernet
from nas.tasks import Task
from nas.training import train

DRAWN = 20
COMPARED = 300


def main() -> None:
    folder = Path(sys.argv[1] if len(sys.argv) > 1 else "runs") / "every_mixer" / "supernet"
    experiment = every_mixer.experiment()
    supernet = experiment.supernet()
    sizes = sharing(supernet)
    print("weights of the bank, by the mixers and channel mixers that use them:")
    for users, weights in sorted(sizes.items(), key=lambda item: -item[1]):
        print(f"  {weights:9,d}  {users}")
    train(supernet, experiment.task, experiment.training, folder, on_epoch=lambda e: print(e, flush=True))
    results = {
        "weights": sum(sizes.values()),
        "sharing": sizes,
        "space": str(experiment.space.size),
        "select_accuracy": {
            "mixer": alone(supernet, experiment.task, every_mixer.MIXERS, every_mixer.FFNS, Mixer),
            "ffn": alone(supernet, experiment.task, every_mixer.MIXERS, every_mixer.FFNS, ChannelMixer),
        },
        "largest_extraction_difference": largest_difference(supernet, experiment.space, experiment.task),
        "architectures_compared": COMPARED,
    }
    print(f"largest extraction difference: {results['largest_extraction_difference']}")
    print(f"written to {write('every_mixer', results)}")


def sharing(supernet: Supernet) -> dict[str, int]:
    """Weights by who uses them, among mixers and channel mixers: the rest is everybody's."""
    users: dict[str, set[str]] = defaultdict(set)
    for architecture in supernet.space.cover():
        names = supernet.parameter_bits(architecture)
        for s, stage in enumerate(architecture.stages):
            for b, block in enumerate(stage.blocks):
                for part in ("mixer", "ffn"):
                    prefix = f"stages.{s}.blocks.{b}.{part}."
                    used = [name for name in names if name.startswith(prefix)]
                    for name in used:
                        users[name].add(type(getattr(block, part)).__name__)
    sizes: dict[str, int] = defaultdict(int)
    for name, tensor in supernet.state().items():
        sizes[", ".join(sorted(users[name])) or "every architecture"] += tensor.numel()
    return dict(sizes)


def alone(
    supernet: Supernet,
    task: Task,
    mixers: Sequence[type[Mixer]],
    ffns: Sequence[type[ChannelMixer]],
    family: type,
) -> dict[str, Any]:
    """Accuracy on *select* of random subnets in which one member of `family` is the only one."""
    found = {}
    for choice in mixers if family is Mixer else ffns:
        some = ([choice], ffns) if family is Mixer else (mixers, [choice])
        space = every_mixer.space(task, *some)
        rng = np.random.default_rng(0)
        drawn = [space.sample(rng) for _ in range(DRAWN)]
        accuracies = [subnet_accuracy(supernet, a, task, "select").mean for a in drawn]
        low, middle = min(accuracies), float(np.mean(accuracies))
        found[choice.__name__] = {"mean": middle, "least": low, "all": accuracies}
        print(f"  {choice.__name__:24} mean {middle:6.2f} %  least {low:6.2f} %", flush=True)
    return found


def largest_difference(supernet: Supernet, space: Space, task: Task) -> float:
    """Between supernet and extracted module, over random architectures."""
    images = next(iter(task.batches("select"))).inputs[0][:8]
    rng = np.random.default_rng(1)
    worst = 0.0
    with torch.inference_mode():
        for _ in range(COMPARED):
            architecture = space.sample(rng)
            buffers = statistics(supernet, architecture, task)
            module = supernet.extract(architecture, buffers=buffers)
            difference = supernet(architecture, images, buffers=buffers) - module(images)
            worst = max(worst, float(difference.abs().max()))
    return worst


if __name__ == "__main__":
    main()
