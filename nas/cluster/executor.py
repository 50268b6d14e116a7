"""`RayExecutor`: evaluations as Ray tasks, on this machine or on a cluster."""

from __future__ import annotations

import copyreg
import importlib
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import ModuleType
from typing import Any

from nas.cluster.local import connect
from nas.errors import RunError, first_line
from nas.executor import Evaluate, EvaluationError, Pending, attempt
from nas.trial import Candidate, Evaluation


class RayExecutor:
    """Evaluates on `workers` processes of this machine or, given an `address`, on that Ray cluster.

    The evaluation is shipped once, and unpacked once per worker process. NumPy arrays in it are not
    copied: workers of one machine share the memory of Ray's object store, read-only.

    Args:
        evaluate: what to run; picklable.
        workers: local processes; a cluster has its own number.
        address: of a running cluster, ``"auto"`` or ``"ray://host:10001"``. `nas` must be installed
            there. Authentication is left to the environment.
        retries: how often an evaluation is tried again whose process died. An exception is final.
        by_value: modules that workers cannot import, such as an experiment loaded from a file.

    Example:
        >>> with RayExecutor(evaluate, workers=4) as executor:
        ...     Study("random", space, objectives, searcher, executor, log, **settings).run()
    """

    def __init__(
        self,
        evaluate: Evaluate,
        workers: int = 2,
        address: str | None = None,
        retries: int = 2,
        by_value: Sequence[ModuleType] = (),
    ) -> None:
        self._disconnect = connect(workers, address)
        import ray  # after `connect`, which prepares the environment for it

        for module in by_value:
            ray.cloudpickle.register_pickle_by_value(module)
        pickle_torch_namespaces_by_name()
        self._payload = ray.put(evaluate)
        self._evaluate = ray.remote(max_retries=retries, num_cpus=1)(_evaluate)

    def submit(self, candidate: Candidate, known: Mapping[str, float]) -> Pending:
        # Ray would resolve a bare reference for every task; one in a list is left to the worker.
        return _Task(self._evaluate.remote([self._payload], candidate, dict(known)))

    def close(self) -> None:
        """Ends the local processes, or leaves the cluster."""
        self._payload = None  # so that a cluster may forget the weights
        self._disconnect()

    def __enter__(self) -> RayExecutor:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


@dataclass(frozen=True)
class _Task:
    reference: Any

    def result(self) -> Evaluation:
        import ray
        from ray.exceptions import (
            NodeDiedError,
            OutOfMemoryError,
            RayError,
            RayTaskError,
            WorkerCrashedError,
        )

        try:
            evaluation: Evaluation = ray.get(self.reference)
        except RayTaskError as error:
            raise EvaluationError(_message(error.cause)) from error
        except (WorkerCrashedError, NodeDiedError, OutOfMemoryError) as error:
            raise EvaluationError(f"The worker process died at every try: {error}") from error
        except RayError as error:  # Ray itself is gone, and no trial is to blame
            raise RunError(
                f"Ray must stay up during a search, but: {first_line(error)} What is finished is in "
                f"the log; --resume goes on from there."
            ) from error
        return evaluation


def pickle_torch_namespaces_by_name() -> None:
    """A function that uses torch and, say, ``architecture.classes`` looks to cloudpickle as if it used
    `torch.classes`; it then tries to ship that namespace, which refuses to be pickled."""
    for name in ("classes", "ops"):
        if namespace := sys.modules.get(f"torch.{name}"):
            copyreg.pickle(type(namespace), _torch_namespace_reference)


def _torch_namespace_reference(namespace: ModuleType) -> tuple[Any, ...]:
    package, _, name = namespace.__name__.rpartition(".")
    return _attribute, (package or "torch", name)


def _attribute(package: str, name: str) -> Any:
    return getattr(importlib.import_module(package), name)


def _message(error: BaseException) -> str:
    return str(error) if isinstance(error, EvaluationError) else f"{type(error).__name__}: {error}"


_unpacked: dict[str, Evaluate] = {}
"""In a worker: the evaluation at hand, by the reference it came from."""


def _evaluate(payload: list[Any], candidate: Candidate, known: Mapping[str, float]) -> Evaluation:
    """Runs in a worker. `payload` holds one reference."""
    (reference,) = payload
    if reference.hex() not in _unpacked:
        import ray

        _unpacked.clear()  # a supernet may be large: keep one
        _unpacked[reference.hex()] = ray.get(reference)
        _use_one_thread()
    return attempt(_unpacked[reference.hex()], candidate, known)


def _use_one_thread() -> None:
    """An evaluation must not depend on how many cores its machine has. Workers may lack torch."""
    if torch := sys.modules.get("torch"):
        torch.set_num_threads(1)
