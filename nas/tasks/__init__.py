"""Tasks: data, loss and metrics."""

from nas.tasks.base import (
    SPLITS,
    Batch,
    Metric,
    Split,
    Tally,
    Task,
    axis_of_classes,
    classified,
    with_error,
)
from nas.tasks.files import from_path
from nas.tasks.images import (
    ImageClassification,
    RandomAffine,
    RandomCropFlip,
    digits,
    from_arrays,
    from_npz,
)
from nas.tasks.mixing import Library, Mix

__all__ = [
    "SPLITS",
    "Batch",
    "ImageClassification",
    "Library",
    "Metric",
    "Mix",
    "RandomAffine",
    "RandomCropFlip",
    "Split",
    "Tally",
    "Task",
    "axis_of_classes",
    "classified",
    "digits",
    "from_arrays",
    "from_npz",
    "from_path",
    "with_error",
]
