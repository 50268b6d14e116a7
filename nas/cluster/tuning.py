"""Settings tried out: Optuna proposes, Ray Tune runs several at once, ASHA ends those that lag behind."""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import ModuleType
from typing import Any

from nas.cluster.executor import pickle_torch_namespaces_by_name
from nas.cluster.local import connect, of_a_training
from nas.errors import RunError

REDUCTION = 3  # of those that reach a rung, one in so many goes on (Li et al., 2020)
EPOCH, TIME, SCORE, SECONDS = "epoch", "time", "score", "core_seconds"

Settings = dict[str, Any]
Report = Callable[..., None]
"""Takes the epoch, from 1 on, the score so far, the core-seconds, and the time by which trials are compared
(the epoch, where none is given); may end the trial."""


@dataclass(frozen=True)
class Tried:
    """A configuration, what it reached, at which of the `rungs` it ended, and its core-seconds (0 where
    another call tried it: Optuna's storage does not have them)."""

    number: int
    settings: Settings
    score: float
    time: int
    core_seconds: float = 0.0


def rungs(longest: int) -> list[int]:
    """Times at which configurations are compared: 1, 3, 9 …, and `longest`, at which they end.

    Example:
        >>> rungs(20)
        [1, 3, 9, 20]
    """
    times = [1]
    while times[-1] * REDUCTION < longest:
        times.append(times[-1] * REDUCTION)
    return [*times, longest] if longest > 1 else times


def tune(
    objective: Callable[[Any, Settings, Report], None],
    shared: Any,
    space: Mapping[str, Any],
    storage: Path,
    *,
    samples: int,
    longest: int,
    first: Settings | None = None,
    seed: int = 0,
    workers: int = 2,
    device: str = "cpu",
    address: str | None = None,
    on_trial: Callable[[Tried], None] = lambda _: None,
    on_failure: Callable[[str], None] = lambda _: None,
    by_value: Sequence[ModuleType] = (),
) -> list[Tried]:
    """Tries `samples` configurations, those in `storage` included, and returns them all, the best first: of
    those that went furthest the one with the highest score, since what ended early did so for its score.

    Args:
        objective: of `shared` and a configuration; reports a score to be maximised at each of the `rungs`.
        space: Optuna's distributions by name.
        storage: an SQLite file of Optuna's, from which a later call goes on.
        longest: time at which a configuration ends.
        first: the configuration that is tried first.
        device: that trainings ask for, as of `Recipe`.
        on_failure: takes what stopped a configuration that gave no score, such as a loss that exploded.

    Raises:
        RunError: no configuration gave a score.
    """
    with _connected(workers, address, by_value):
        import optuna
        import ray
        from ray import tune as ray_tune
        from ray.tune.schedulers import ASHAScheduler
        from ray.tune.search import ConcurrencyLimiter
        from ray.tune.search.optuna import OptunaSearch

        optuna.logging.set_verbosity(optuna.logging.ERROR)
        database = optuna.storages.RDBStorage(f"sqlite:///{storage}")
        done = _finished(database, longest, optuna)
        left, failures = samples - len(done), list[str]()
        ended = _ended(database, optuna)
        untried = first not in ended  # a killed call may have left it so
        if left > 0:
            reference = ray.put(shared)
            search = OptunaSearch(
                dict(space),
                metric=SCORE,
                mode="max",
                points_to_evaluate=[first] if first is not None and untried else None,
                study_name=STUDY,
                storage=database,
                sampler=optuna.samplers.TPESampler(seed=seed + len(ended)),
            )

            def trainable(config: Settings) -> None:
                objective(ray.get(reference), config, _report)

            told = {tried.number for tried in done}

            def on_end(config: Settings, figures: dict[str, Any]) -> None:
                number = _number_of(config, told, database, optuna)
                told.add(number)
                on_trial(Tried(number, config, float(figures[SCORE]), int(figures[TIME]), figures[SECONDS]))

            with TemporaryDirectory(prefix="nas-tune-") as folder:
                tuner = ray_tune.Tuner(
                    ray_tune.with_resources(trainable, of_a_training(device, workers)),
                    tune_config=ray_tune.TuneConfig(
                        search_alg=ConcurrencyLimiter(search, max_concurrent=max(1, workers)),
                        scheduler=ASHAScheduler(
                            time_attr=TIME,
                            metric=SCORE,
                            mode="max",
                            max_t=longest,
                            grace_period=1,
                            reduction_factor=REDUCTION,
                        ),
                        num_samples=left,
                        reuse_actors=True,  # a process that has imported PyTorch is worth seconds
                    ),
                    run_config=ray_tune.RunConfig(
                        name="tune", storage_path=folder, verbose=0, callbacks=[_follower(on_end)]
                    ),
                )
                results = _fit(tuner, workers)
            failures += [_said(result.error) for result in results if result.error is not None]
    for failure in failures:
        on_failure(failure)
    found = sorted(_finished(database, longest, optuna), key=lambda t: (-t.time, -t.score))
    if not found:
        raise RunError(
            f"A configuration must reach a score, but none of {samples} did{': ' if failures else ''}"
            f"{'; '.join(dict.fromkeys(failures))}"
        )
    return found


def several(
    objective: Callable[[Any, Any, Report], None],
    shared: Any,
    items: Sequence[Any],
    *,
    on_end: Callable[[Any, dict[str, Any]], None],
    workers: int = 2,
    device: str = "cpu",
    address: str | None = None,
    by_value: Sequence[ModuleType] = (),
) -> None:
    """`objective(shared, item, report)` of each item, `workers` at once.

    Args:
        on_end: takes an item as soon as it has ended, and its last report.
        device: that they ask for, as of `Recipe`.

    Raises:
        RunError: one failed; says why, after all the others ended.
    """
    with _connected(workers, address, by_value):
        import ray
        from ray import tune as ray_tune

        reference, whole = ray.put(shared), ray.put(list(items))

        def trainable(config: Settings) -> None:
            objective(ray.get(reference), ray.get(whole)[config["item"]], _report)

        def ended(config: Settings, figures: dict[str, Any]) -> None:
            on_end(items[config["item"]], figures)

        with TemporaryDirectory(prefix="nas-tune-") as folder:
            tuner = ray_tune.Tuner(
                ray_tune.with_resources(trainable, of_a_training(device, workers)),
                param_space={"item": ray_tune.grid_search(list(range(len(items))))},
                tune_config=ray_tune.TuneConfig(metric=SCORE, mode="max", reuse_actors=True),
                run_config=ray_tune.RunConfig(
                    name="several", storage_path=folder, verbose=0, callbacks=[_follower(ended)]
                ),
            )
            results = _fit(tuner, workers)
    if errors := [result.error for result in results if result.error is not None]:
        raise RunError(f"Training must not fail, but did: {_said(errors[0])}")


def _fit(tuner: Any, workers: int) -> Any:
    """All trials of `tuner`. Where Ray ends a process for want of memory, Ray Tune ends with it."""
    from ray.exceptions import OutOfMemoryError

    try:
        return tuner.fit()
    except RuntimeError as error:
        if not isinstance(error.__cause__, OutOfMemoryError):
            raise
        raise RunError(
            f"Memory must hold {workers} training(s) at once, but ran out, and Ray ended one. What had ended "
            f"is kept: the same command goes on, with fewer --workers, or once other programs need less."
        ) from error


def _said(error: Exception) -> str:
    """What a training of another process raised: of our own errors the message, of others all there is."""
    lines = str(error).strip().splitlines()
    for i in reversed(range(len(lines))):
        kind, found, message = lines[i].partition(": ")
        if found and re.fullmatch(r"nas(\.\w+)+", kind):
            return "\n".join([message, *lines[i + 1 :]])
    return "\n".join(lines) or repr(error)


def _report(epoch: int, score: float, core_seconds: float = 0.0, time: float | None = None) -> None:
    from ray import tune as ray_tune

    ray_tune.report({EPOCH: epoch, TIME: time or epoch, SCORE: score, SECONDS: core_seconds})


@contextmanager
def _connected(workers: int, address: str | None, by_value: Sequence[ModuleType]) -> Iterator[None]:
    """Ray, whose Tune says little, and whose workers get the modules that they cannot import."""
    disconnect = connect(workers, address)
    try:
        os.environ.setdefault("RAY_AIR_NEW_OUTPUT", "0")
        os.environ.setdefault("TUNE_DISABLE_AUTO_CALLBACK_LOGGERS", "1")
        os.environ.setdefault("TUNE_DISABLE_SIGINT_HANDLER", "1")  # it takes Ctrl-C for the end of the work
        logging.getLogger("ray.train").setLevel(logging.ERROR)
        logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # what fails is said once, and by us
        import ray

        for module in by_value:
            ray.cloudpickle.register_pickle_by_value(module)
        pickle_torch_namespaces_by_name()
        yield
    finally:
        disconnect()


STUDY = "recipe"


def _finished(database: Any, longest: int, optuna: Any) -> list[Tried]:
    """What the storage holds; trials that a dead process left running count for nothing."""
    times = rungs(longest)
    return [
        # the last report is no intermediate value, but `value`
        Tried(t.number, dict(t.params), float(t.value), times[len(t.intermediate_values)])
        for t in _trials(database, optuna, optuna.trial.TrialState.COMPLETE)
    ]


def _ended(database: Any, optuna: Any) -> list[Settings]:
    """All configurations of the storage that ended, well or not: who draws as many again must draw others."""
    state = optuna.trial.TrialState
    return [dict(t.params) for t in _trials(database, optuna, state.COMPLETE, state.FAIL)]


def _trials(database: Any, optuna: Any, *states: Any) -> list[Any]:
    if STUDY not in optuna.get_all_study_names(database):
        return []
    return list(optuna.load_study(study_name=STUDY, storage=database).get_trials(states=states))


def _number_of(settings: Settings, told: set[int], database: Any, optuna: Any) -> int:
    """The storage's number of a configuration, of those not `told`: not the order in which they end."""
    trials = optuna.load_study(study_name=STUDY, storage=database).get_trials(deepcopy=False)
    return next((t.number for t in trials if t.params == settings and t.number not in told), len(trials))


def _follower(on_end: Callable[[Settings, dict[str, Any]], None]) -> Any:
    from ray.tune import Callback

    class Follower(Callback):
        """Tells of each trial that ends: its configuration, and its last report."""

        def __init__(self, on_end: Callable[[Settings, dict[str, Any]], None] | None) -> None:
            self.on_end = on_end

        def __reduce__(self) -> tuple[Any, ...]:  # Tune keeps a copy of everything, to restore it from
            return Follower, (None,)

        def on_trial_complete(self, iteration: int, trials: Any, trial: Any, **info: Any) -> None:
            result = trial.last_result or {}
            if SCORE in result and self.on_end is not None:
                self.on_end(
                    dict(trial.config), {name: result[name] for name in (EPOCH, TIME, SCORE, SECONDS)}
                )

    return Follower(on_end)
