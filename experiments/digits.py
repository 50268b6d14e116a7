"""The main job: scikit-learn's digits, 8 × 8 pixels, on this machine in a few minutes.

`nas run digits`, or with one's own images `nas run digits --set data=PATH`, see `nas.from_path`.
"""

from __future__ import annotations

from nas.errors import DataError
from nas.experiment import Experiment
from nas.tasks import digits, from_path
from nas.training import Recipe
from search_spaces import costs, hierarchical


def experiment(data: str | None = None, side: str | None = None) -> Experiment:
    """Digits, or the images at `data`, cut to `side` pixels, in a hierarchical transformer of two stages."""
    if side is not None and (data is None or not side.isdigit()):
        raise DataError(
            f"`side` must be the pixels to which images at `data` are cut: got {side!r} and "
            f"{'no data' if data is None else data}. Use --set data=PATH --set side=32."
        )
    task = from_path(data, side=int(side) if side else None) if data else digits()
    space = hierarchical.space(task)
    return Experiment(
        name="digits",
        task=task,
        space=space,
        build=hierarchical.build,
        features=costs.features(space, task.image_shape[-1]),
        training=Recipe(epochs=280),
    )
