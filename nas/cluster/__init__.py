"""Ray: all that runs on more than one process or machine. No other part of `nas` knows of Ray."""

from nas.cluster.each import each
from nas.cluster.executor import RayExecutor
from nas.cluster.local import require_cluster
from nas.cluster.parallel import train_parallel

__all__ = ["RayExecutor", "each", "require_cluster", "train_parallel"]
