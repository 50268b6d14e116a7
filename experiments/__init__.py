"""Experiments, a file each: a function that returns an `Experiment`."""
