"""The study's log in MLflow. `Tracker` is all there is to it; only `tracker.py` imports mlflow."""

from nas.tracking.tracker import Status, Tracker

__all__ = ["Status", "Tracker"]
