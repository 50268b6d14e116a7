"""Phase 1: train the supernet."""

from __future__ import annotations

import torch

from nas.architecture import architecture_id
from nas.cluster import train_parallel
from nas.console import bar, console
from nas.errors import RunError
from nas.evaluation import subnet_accuracy
from nas.experiment import Experiment
from nas.layers.quantizers import DynamicRange
from nas.phases.run import Run
from nas.quantize import DYNAMIC
from nas.supernet import Supernet
from nas.tasks import with_error
from nas.training import Epoch, train


def require_parts(supernet: Supernet, experiment: Experiment) -> None:
    """Raises RunError where dynamic ranges are not those of `quantization.images` inputs each: they are found
    by the first axis, which is not that of inputs in every module.

    What answers two such parts together otherwise than one after the other is no such module. In double
    precision, or a number between two steps could go either way.
    """
    if (quantization := experiment.quantization).activations != DYNAMIC:
        return
    (given,) = next(iter(experiment.task.batches("search"))).inputs
    for architecture in supernet.cover:
        module = supernet.extract(architecture)
        if not any(isinstance(m, DynamicRange) for m in module.modules()):
            continue
        for count in {2 * quantization.images, max(len(given), 2 * quantization.images)}:
            x = given[torch.arange(count) % len(given)]
            if x.is_floating_point():
                x = torch.cat([x[: count // 2], 3 * x[count // 2 :]]).double()  # of two ranges
            with torch.inference_mode():
                try:
                    together = module.double()(x)
                    apart = torch.cat([module(part) for part in x.split(quantization.images)])
                except RuntimeError:  # those that make floats of their own on the way
                    continue
            if not torch.allclose(together, apart, rtol=0, atol=1e-6 * float(apart.abs().max())):
                raise RunError(
                    f"`quantization.activations=dynamic` must have modules whose linear layers get the batch "
                    f"as first axis, but architecture {architecture_id(architecture)} answers {count} inputs "
                    f"otherwise than each {quantization.images} of them. Make them so (`batch_first=True` in "
                    f"PyTorch's own), or take `calibrated`."
                )


def train_supernet(run: Run) -> None:
    """Trains the supernet of a run, or continues; does nothing where that is done."""
    experiment, directory = run.experiment, run.directory
    if directory.weights.exists():
        console.print("Supernet: trained already.")
        return
    supernet = run.untrained
    require_parts(supernet, experiment)
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
