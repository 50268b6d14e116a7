"""Ray: all that runs on more than one process or machine. No other part of `nas` knows of Ray."""

from nas.cluster.executor import RayExecutor

__all__ = ["RayExecutor"]
