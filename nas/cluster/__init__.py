"""Ray: all that runs on more than one process or machine. No other part of `nas` knows of Ray."""

from nas.cluster.executor import RayExecutor
from nas.cluster.local import require_cluster

__all__ = ["RayExecutor", "require_cluster"]
