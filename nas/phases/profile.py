"""Phase 2: profile a device, once for all searches on it."""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch

from nas.console import bar, console
from nas.devices import Device, Profile, choose, profile
from nas.errors import RunError
from nas.phases.run import Run


def profile_device(run: Run, device: Device, *, needed: bool = False) -> None:
    """Times subnets on `device` and fits its latency model. Latency needs no trained weights.

    Args:
        needed: for another phase: a profile that is there is used without a word.
    """
    path = run.directory.device(device.name)
    if path.exists():
        if not (run.resume or needed):
            raise RunError(
                f"{path} must not be overwritten. Add --resume to keep it, or remove it to measure anew."
            )
        _print_quality(Profile.load(path))
        return
    experiment, settings = run.experiment, run.experiment.profiling
    features = experiment.costs()
    architectures = choose(experiment.space, features, settings.samples, experiment.seed)
    torch.manual_seed(experiment.seed)  # of the weights of the modules that are timed
    with (
        tempfile.TemporaryDirectory() as folder,
        bar(f"Profile {device.name}", len(architectures)) as progress,
    ):
        found = profile(
            device,
            architectures,
            experiment.at_bits(),
            features,
            experiment.example(device.batch),
            space=experiment.space,
            held_out=settings.held_out,
            rounds=settings.rounds,
            seed=experiment.seed,
            folder=Path(folder),
            progress=progress.advance,
        )
    found.save(path)
    _print_quality(found)


def _print_quality(found: Profile) -> None:
    for title, key in (
        ("latency model, held out", "held_out"),
        ("MACs alone, held out", "macs_only"),
        ("timing it again", "test_retest"),
    ):
        quality = found.quality[key]
        console.print(f"  {title:>24}: error {quality['mape']:.1f} %, Kendall τ {quality['kendall_tau']:.3f}")
