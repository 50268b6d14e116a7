"""The main job: scikit-learn's digits, 8 × 8 pixels, on this machine in a few minutes.

`nas run digits`, or with one's own arrays `nas run digits --set data=mine.npz`.
"""

from __future__ import annotations

from nas.experiment import Experiment
from nas.tasks import digits, from_npz
from nas.training import Recipe
from search_spaces import costs, hierarchical


def experiment(data: str | None = None) -> Experiment:
    """Digits, or the .npz at `data`, in a hierarchical transformer of two stages."""
    task = from_npz(data) if data else digits()
    space = hierarchical.space(task)
    return Experiment(
        name="digits",
        task=task,
        space=space,
        build=hierarchical.build,
        features=costs.features(space, task.image_shape[-1]),
        training=Recipe(epochs=70),
    )
