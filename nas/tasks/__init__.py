"""Tasks: data, loss and metrics."""

from nas.tasks.base import SPLITS, Batch, Metric, Split, Tally, Task
from nas.tasks.images import ImageClassification, RandomAffine, digits, from_arrays, from_npz

__all__ = [
    "SPLITS",
    "Batch",
    "ImageClassification",
    "Metric",
    "RandomAffine",
    "Split",
    "Tally",
    "Task",
    "digits",
    "from_arrays",
    "from_npz",
]
