"""Phase 1: train the supernet."""

from __future__ import annotations

from nas.cluster import train_parallel
from nas.console import bar, console
from nas.evaluation import subnet_accuracy
from nas.phases.run import Run
from nas.tasks import with_error
from nas.training import Epoch, train


def train_supernet(run: Run) -> None:
    """Trains the supernet of a run, or continues; does nothing where that is done."""
    experiment, directory = run.experiment, run.directory
    if directory.weights.exists():
        console.print("Supernet: trained already.")
        return
    supernet = run.untrained
    count = sum(p.numel() for p in supernet.parameters())
    console.print(f"Supernet: {count:,} weights for {experiment.space.size:,} architectures.")
    recipe, metric = experiment.training, experiment.task.metric
    with bar("Train the supernet", recipe.epochs) as progress:

        def on_epoch(epoch: Epoch) -> None:
            figures = [f for f in (epoch.first_metric, epoch.second_metric) if f is not None]
            note = f"loss {epoch.loss:.3f}  {metric.name} {', '.join(map(metric.text, figures))}"
            progress.advance(note, epoch.epoch - done[0])
            done[0] = epoch.epoch
            values = {k: v for k, v in vars(epoch).items() if k not in ("epoch", "step") and v is not None}
            run.tracker.metrics(epoch.step, values, prefix="training")

        done = [0]
        if recipe.workers == 1:
            train(
                supernet, experiment.task, recipe, directory.supernet, seed=experiment.seed, on_epoch=on_epoch
            )
        else:
            train_parallel(
                supernet,
                experiment.task,
                recipe,
                directory.supernet,
                seed=experiment.seed,
                on_epoch=on_epoch,
                address=run.address,
                by_value=run.modules,
            )
    trained = recipe.trained(experiment.space)
    for title, architecture in (("largest", trained.largest()), ("smallest", trained.smallest())):
        tally = subnet_accuracy(supernet, architecture, experiment.task, "search")
        found = f"{with_error(tally.mean, tally.std_error)} {metric.unit}".rstrip()
        console.print(
            f"  {title:>8} subnet: {found} {metric.name} on search, "
            f"{supernet.parameters_of(architecture):,} parameters"
        )
