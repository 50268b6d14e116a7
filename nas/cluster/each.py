"""A function of many items, on Ray's workers or here."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

from nas.cluster.executor import pickle_torch_namespaces_by_name
from nas.cluster.local import connect, of_a_training
from nas.errors import RunError, first_line


def each(
    function: Callable[[Any, Any], Any],
    shared: Any,
    items: Sequence[Any],
    *,
    workers: int = 2,
    device: str = "cpu",
    address: str | None = None,
    retries: int = 2,
    by_value: Sequence[ModuleType] = (),
) -> Iterator[tuple[Any, Any]]:
    """(item, `function(shared, item)`) of each item, as they come to be done.

    Args:
        shared: is shipped once.
        workers: processes of this machine; 0: none but this one. A cluster has its own number.
        device: that items ask for, as of `Recipe`.
        address: of a running Ray cluster.
        retries: how often an item is tried again whose process died.
        by_value: modules that workers cannot import.

    Raises:
        RunError: a process died at every try. Exceptions of `function` are raised as they are.
    """
    if not workers and address is None:
        for item in items:
            yield item, function(shared, item)
        return
    disconnect = connect(workers, address)
    try:
        yield from _on_ray(function, shared, items, of_a_training(device, workers or 1), retries, by_value)
    finally:
        disconnect()


def _on_ray(
    function: Callable[[Any, Any], Any],
    shared: Any,
    items: Sequence[Any],
    resources: Mapping[str, float],
    retries: int,
    by_value: Sequence[ModuleType],
) -> Iterator[tuple[Any, Any]]:
    import ray
    from ray.exceptions import RayError, RayTaskError

    for module in by_value:
        ray.cloudpickle.register_pickle_by_value(module)
    pickle_torch_namespaces_by_name()
    reference = ray.put(shared)
    wanted = {f"num_{kind}s": amount for kind, amount in resources.items()}
    task = ray.remote(max_retries=retries, **wanted)(_call)
    waiting = {task.remote(function, [reference], item): item for item in items}
    while waiting:
        (done, *_), _ = ray.wait(list(waiting), num_returns=1)
        item = waiting.pop(done)
        try:
            result = ray.get(done)
        except RayTaskError as error:
            raise error.cause from error
        except RayError as error:
            raise RunError(
                f"A process must not die {retries + 1} times over one piece of work, but did: "
                f"{first_line(error)} What is done is kept; the same command goes on."
            ) from error
        yield item, result


def _call(function: Callable[[Any, Any], Any], shared: list[Any], item: Any) -> Any:
    """Runs in a worker. `shared` holds one reference."""
    import ray

    return function(ray.get(shared[0]), item)
