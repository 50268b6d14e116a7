"""One supernet over all mixers and channel mixers at once, on scikit-learn's digits.

`nas train every_mixer`; what its subnets are worth: `python -m experiments.benchmarks.every_mixer`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nas.experiment import Experiment
from nas.layers import ChannelMixer, Mixer
from nas.layers.catalogue import members
from nas.space import Space
from nas.tasks import digits
from nas.training import Recipe, Sandwich
from search_spaces import hierarchical

MIXERS = members(Mixer)
FFNS = members(ChannelMixer)
SIDE = 8


def space(task: Any, mixers: Sequence[type[Mixer]], ffns: Sequence[type[ChannelMixer]]) -> Space:
    """Two stages of 8 × 8 and 4 × 4 positions, with these mixers and channel mixers alone."""
    return hierarchical.space(
        task,
        widths=((32, 48), (48, 64)),
        depths=(1, 2),
        mixers=[hierarchical.with_holes(mixer) for mixer in mixers],
        ffns=[hierarchical.with_holes(ffn) for ffn in ffns],
        bits=(32,),
    )


def experiment() -> Experiment:
    task = digits()
    everything = space(task, MIXERS, FFNS)
    return Experiment(
        name="every_mixer",
        task=task,
        space=everything,
        build=hierarchical.build,
        features=hierarchical.costs(everything, SIDE),
        training=Recipe(epochs=60, subnets=Sandwich(random=6)),
    )
