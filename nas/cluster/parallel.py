"""Training on several processes, through Ray Train."""

from __future__ import annotations

import json
import logging
import os
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from nas.cluster.executor import pickle_torch_namespaces_by_name
from nas.cluster.local import connect
from nas.errors import NasError, RunError, last_line
from nas.supernet import Supernet
from nas.tasks import Task
from nas.training import Distributed, Epoch, Recipe, load_tensors, train

POLL_SECONDS = 0.5
RESTARTS = 3
ERROR = "error.json"
SEEN = "seen-by-all"


def train_parallel(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    folder: Path,
    *,
    seed: int = 0,
    on_epoch: Callable[[Epoch], None] = lambda _: None,
    address: str | None = None,
    restarts: int = RESTARTS,
    by_value: Sequence[ModuleType] = (),
) -> Supernet:
    """`nas.training.train` on `recipe.workers` processes: each takes its share of every batch, and their
    gradients are added up (gloo on CPUs, NCCL on GPUs). The result is that of one process up to rounding.

    A process that dies takes the others down with it; all start again from the last checkpoint.

    Args:
        folder: on a cluster of several machines, one that all of them see.
        address: of a running Ray cluster; None: processes on this machine.
        restarts: how often, at most.
        by_value: modules that workers cannot import.

    Raises:
        RunError: as of `train`, too many deaths, or a folder that workers do not see.
    """
    disconnect = connect(recipe.workers + 1, address)
    try:
        _fit(supernet, task, recipe, folder.resolve(), seed, on_epoch, restarts, by_value, address is None)
    finally:
        disconnect()
    tensors, _ = load_tensors(folder / "model.safetensors")
    for name, parameter in supernet.bank.items():
        parameter.data.copy_(tensors[name])
    return supernet


def _fit(
    supernet: Supernet,
    task: Task,
    recipe: Recipe,
    folder: Path,
    seed: int,
    on_epoch: Callable[[Epoch], None],
    restarts: int,
    by_value: Sequence[ModuleType],
    local: bool,
) -> None:
    import ray
    from ray.train import ControllerError, FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    class Trainer(TorchTrainer):
        def _register_sigint_handler(self, controller: Any) -> None:
            """None: Ctrl-C ends this process as it does elsewhere. Ray's would stay after the training."""

    logging.getLogger("ray.train").setLevel(logging.ERROR)
    for module in by_value:
        ray.cloudpickle.register_pickle_by_value(module)
    pickle_torch_namespaces_by_name()
    if local and not recipe.threads:
        recipe = replace(recipe, threads=max(1, (os.cpu_count() or 1) // recipe.workers))
    folder.mkdir(parents=True, exist_ok=True)
    (folder / ERROR).unlink(missing_ok=True)
    (folder / SEEN).touch()
    there = ray.cluster_resources()
    gpus = bool(there.get("GPU")) and recipe.device != "cpu"
    _require_room(recipe.workers, there, "GPU" if gpus else "CPU")
    payload = ray.put((supernet, task, recipe))
    with TemporaryDirectory(prefix="nas-train-") as storage, _followed(folder / "history.jsonl", on_epoch):
        failure: Exception | None = None
        try:
            for _ in range(1 + restarts):
                trainer = Trainer(
                    _worker,
                    train_loop_config={"payload": [payload], "folder": str(folder), "seed": seed},
                    scaling_config=ScalingConfig(num_workers=recipe.workers, use_gpu=gpus),
                    run_config=RunConfig(
                        name="supernet",
                        storage_path=storage if local else str(folder / "ray"),
                        failure_config=FailureConfig(max_failures=restarts),
                    ),
                )
                failure = _failure(trainer)
                if not isinstance(failure, ControllerError):
                    break  # else a process died as it started, which Ray takes for final
        finally:
            (folder / SEEN).unlink(missing_ok=True)
    if problem := _problem(folder, failure, restarts):
        raise problem from failure


def _failure(trainer: Any) -> Exception | None:
    """What ended a training, if it did not end well."""
    try:
        trainer.fit()
    except Exception as error:  # Ray's own classes of errors change
        return error
    return None


def _require_room(workers: int, there: Mapping[str, float], kind: str) -> None:
    """Raises RunError where processes would wait forever for a place."""
    if (count := int(there.get(kind, 0))) < workers:
        cpu = " or add --set training.device=cpu," if kind == "GPU" else ""
        raise RunError(
            f"`training.workers` must be no more than Ray has {kind}s, one each: got {workers}, and there "
            f"are {count}. Lower it,{cpu} or join a larger cluster with --address."
        )


def _worker(config: dict[str, Any]) -> None:
    """What each process does."""
    import ray

    folder = Path(config["folder"])
    if (folder / ERROR).exists():
        return  # would only happen again
    if not (folder / SEEN).exists():
        raise RunError(f"The run directory must be one that all machines see, but one lacks {folder}.")
    supernet, task, recipe = ray.get(config["payload"][0])
    group = Distributed()
    bank = {name: tensor.clone() for name, tensor in supernet.state().items()}  # Ray's memory is read-only
    try:
        train(supernet.with_state(bank), task, recipe, folder, seed=config["seed"], group=group)
    except NasError as error:  # the others wait for this one: all are ended, and end when they start again
        (folder / ERROR).write_text(json.dumps({"message": str(error)}))
        raise


def _problem(folder: Path, failure: Exception | None, restarts: int) -> RunError | None:
    """What stopped the training: our own error where a worker left one."""
    path = folder / ERROR
    if path.exists():
        message = json.loads(path.read_text())["message"]
        path.unlink()
        return RunError(message)
    if failure is None:
        return None
    return RunError(
        f"Training on several processes must not lose them more than {restarts} times, but did: "
        f"{last_line(failure)} What was trained is kept in {folder}; --resume goes on."
    )


@contextmanager
def _followed(history: Path, on_epoch: Callable[[Epoch], None]) -> Iterator[None]:
    """Reports epochs as workers write them."""
    stop = threading.Event()
    seen = [len(_lines(history))]

    def report() -> None:
        for line in _lines(history)[seen[0] :]:
            seen[0] += 1
            on_epoch(Epoch(**json.loads(line)))

    def follow() -> None:
        while not stop.wait(POLL_SECONDS):
            report()

    thread = threading.Thread(target=follow, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()
        report()


def _lines(path: Path) -> list[str]:
    """Whole lines of a file that may not be there."""
    try:
        text = path.read_text()
    except FileNotFoundError:
        return []
    return text[: text.rfind("\n") + 1].splitlines()
