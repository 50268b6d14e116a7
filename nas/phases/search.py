"""Phase 3: search the Pareto front for a device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from nas.console import bar, console
from nas.devices import Device
from nas.errors import RunError
from nas.evaluation import Evaluator
from nas.executor import Executor, SerialExecutor
from nas.log import TrialLog
from nas.objectives import as_costs
from nas.pareto import Scale
from nas.phases.run import Run
from nas.searchers import RandomSearch
from nas.study import Study, accuracy_cache
from nas.tasks import with_error
from nas.trial import Trial


def search_name(run: Run, device: Device) -> str:
    """The name of the search for a device: ``nsga2.onnxruntime``."""
    searcher = run.experiment.search.searcher
    return f"{getattr(searcher, '__name__', type(searcher).__name__).lower()}.{device.name}"


def search_front(run: Run, device: Device) -> None:
    """Searches for `device`, then with random search beside it; both go into the run's log.

    100 random architectures come first and fix the scale of the hypervolume.

    Raises:
        RunError: the search has begun and `resume` was not asked for.
    """
    settings = run.experiment.search
    log = TrialLog(run.directory.trials, run.experiment.space)
    name = search_name(run, device)
    evaluator = run.evaluator(device)
    _require_resume(run, log, name)
    seed = run.experiment.seed
    with _executor(run, evaluator) as executor:
        search = _Searches(run, device, log, evaluator, executor)
        bounds = search.run(f"bounds.{device.name}", RandomSearch, seed + 2, settings.bounds, None)
        scale = _scale(evaluator, bounds)
        _store_scale(run, device, scale)
        trials = search.run(name, settings.searcher, seed, settings.trials, scale)
        if settings.baseline and settings.searcher is not RandomSearch:
            search.run(f"random.{device.name}", RandomSearch, seed + 1, settings.trials, scale)
    failed = sum(t.state == "failed" for t in trials)
    if failed:
        console.print(f"  {failed} of {len(trials)} trials failed; their errors are in {log.path}.")
    run.tracker.table(log.read())


class _Searches:
    """Studies of one device over one log and executor."""

    def __init__(
        self, run: Run, device: Device, log: TrialLog, evaluator: Evaluator, executor: Executor
    ) -> None:
        self.run_, self.device, self.log = run, device, log
        self.evaluator, self.executor = evaluator, executor

    def run(
        self, name: str, searcher: Callable[..., Any], seed: int, trials: int, scale: Scale | None
    ) -> list[Trial]:
        run, objectives = self.run_, self.evaluator.objectives
        metric = run.experiment.task.metric
        others = [trial for trial in self.log.read() if trial.search != name]
        best: float | None = None
        with bar(f"Search {name}", trials) as progress:

            def on_trial(trial: Trial, hypervolume: float | None) -> None:
                nonlocal best
                run.tracker.trial(trial, hypervolume)
                if trial.state == "complete":
                    value = trial.objectives[metric.name]
                    pick = max if metric.direction == "maximize" else min
                    best = value if best is None else pick(best, value)
                volume = "" if hypervolume is None else f"hypervolume {hypervolume:.4f}  "
                progress.advance(volume if best is None else f"{volume}best {metric.name} {with_error(best)}")

            return Study(
                name,
                run.experiment.space,
                objectives,
                searcher(run.experiment.space, objectives, seed=seed),
                self.executor,
                self.log,
                trials=trials,
                parallel=run.experiment.search.parallel,
                weights=run.weights,
                cache=accuracy_cache(others, metric.name),
                scale=scale,
                on_trial=on_trial,
            ).run()


@contextmanager
def _executor(run: Run, evaluator: Evaluator) -> Iterator[Executor]:
    settings = run.experiment.search
    executor: Executor
    if settings.workers == 0 and run.address is None:
        executor = SerialExecutor(evaluator)
    else:
        from nas.cluster.executor import RayExecutor  # Ray takes seconds to import

        executor = RayExecutor(
            evaluator, settings.workers, run.address, settings.retries, by_value=run.modules
        )
    try:
        yield executor
    finally:
        executor.close()


def _require_resume(run: Run, log: TrialLog, name: str) -> None:
    if run.resume or not log.path.exists():
        return
    done = sum(trial.search == name for trial in log.read())
    if done:
        raise RunError(
            f"A search must not be begun twice: {log.path} has {done} trials of `{name}`. "
            f"Add --resume to continue it."
        )


def _scale(evaluator: Evaluator, trials: Sequence[Trial]) -> Scale:
    complete = [trial.objectives for trial in trials if trial.state == "complete"]
    if not complete:
        raise RunError(
            f"Some evaluation must succeed, but all {len(trials)} of `{trials[0].search}` failed. The first "
            f"error: {trials[0].error} Mend it, and begin a new run directory."
        )
    return Scale.around(as_costs(evaluator.objectives, complete))


def _store_scale(run: Run, device: Device, scale: Scale) -> None:
    stored = run.directory.read().get("scales", {})
    entry = {"ideal": list(scale.ideal), "nadir": list(scale.nadir)}
    run.directory.update(scales=stored | {device.name: entry})
