"""Timing subnets on a device: to learn its latency model, and to verify finalists."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt
from torch import Tensor, nn

from nas.devices.costs import FEATURES, macs
from nas.devices.device import Device
from nas.devices.latency import LatencyModel, quality
from nas.devices.machine import describe_machine
from nas.devices.profiles import Profile, Sample
from nas.devices.runtimes import Run
from nas.devices.timing import Timing, round_robin, timing_lock
from nas.errors import DeviceError

Floats = npt.NDArray[np.float64]
Genes = npt.NDArray[np.int64]
Mask = npt.NDArray[np.bool_]
Progress = Callable[[], object]


class EncodedSpace(Protocol):
    """What a profile asks of a space; `nas.space.Space` is one."""

    def encode(self, architecture: Any) -> Genes: ...
    def id(self, architecture: Any) -> str: ...
    def to_json(self, architecture: Any) -> Any: ...


# --- learning a device ----------------------------------------------------------------------------


def profile(
    device: Device,
    architectures: Sequence[Any],
    build: Callable[[Any], nn.Module],
    features: Callable[[Genes], Floats],
    example: Tensor,
    *,
    space: EncodedSpace,
    folder: Path,
    held_out: int = 14,
    rounds: int = 200,
    seed: int = 0,
    progress: Progress | None = None,
) -> Profile:
    """Time subnets on `device` and learn to tell the latency of others from their costs.

    Every subnet is loaded twice and all are timed twice, each load amid those of the others, so that
    the profile says how well a measurement repeats itself, other places in memory included.

    Args:
        device: a device of this host.
        architectures: from `nas.devices.choose`.
        build: makes the module of one; latency does not depend on its weights.
        features: costs (n, F) of genes (n, G), see `nas.devices.costs`.
        example: an input `(device.batch, …)`.
        space: encodes and names the architectures.
        folder: for exported files; may go afterwards.
        held_out: how many subnets judge the latency model instead of teaching it.
        rounds: timed runs of each subnet in each pass.
        seed: of the order of runs, and of the draw of those held out.
        progress: called after each subnet that was made ready; never while the clock runs.

    Raises:
        DeviceError: too few subnets to hold out so many, or an example of another batch size.
        ExportError: a subnet that the runtime cannot run.
    """
    genes = np.stack([space.encode(architecture) for architecture in architectures])
    costs = features(genes)
    held = _hold_out(macs(costs), held_out, np.random.default_rng(seed))
    modules = (build(architecture) for architecture in architectures)
    loads = list(_loads(device, modules, example, folder, 2, progress))
    with timing_lock():
        passes = [
            round_robin(runs, rounds=rounds, seed=seed + i) for i, runs in enumerate(zip(*loads, strict=True))
        ]
    timing = _joined(*passes)
    model = LatencyModel.fit(costs[~held], timing.ms[~held], FEATURES)
    return Profile(
        device=device.name,
        runtime=type(device.runtime).__name__,
        threads=device.runtime.threads,
        batch=device.batch,
        machine=describe_machine(),
        samples=_samples(space, architectures, genes, timing, held, model.predict(costs)),
        model=model,
        quality={
            "held_out": quality(model.predict(costs[held]), timing.ms[held]),
            "macs_only": quality(_by_macs_alone(costs, timing.ms, held), timing.ms[held]),
            "test_retest": quality(passes[0].relative, passes[1].relative),
        },
    )


def _hold_out(mmacs: Floats, n: int, rng: np.random.Generator) -> Mask:
    """(len,) which subnets to hold out: one from each of n ranges of MACs, never an end."""
    if not 1 <= n <= len(mmacs) - 3:
        raise DeviceError(
            f"A profile must hold out at least 1 subnet and keep 3: got held_out={n} of {len(mmacs)}. "
            "Profile more subnets or hold out fewer."
        )
    held = np.zeros(len(mmacs), dtype=bool)
    for stratum in np.array_split(np.argsort(mmacs, kind="stable")[1:-1], n):
        held[rng.choice(stratum)] = True
    return held


def _joined(first: Timing, second: Timing) -> Timing:
    """Two passes as one; the milliseconds of their anchors may differ, the machine drifts."""
    return Timing(
        np.sqrt(first.relative * second.relative),
        (first.relative_spread + second.relative_spread) / 2,
        float(np.sqrt(first.anchor_ms * second.anchor_ms)),
    )


def _by_macs_alone(costs: Floats, ms: Floats, held: Mask) -> Floats:
    """What the best line over MACs says of the subnets held out."""
    mmacs = macs(costs)[:, None]
    return LatencyModel.fit(mmacs[~held], ms[~held], ("mmacs",)).predict(mmacs[held])


def _samples(
    space: EncodedSpace,
    architectures: Sequence[Any],
    genes: Genes,
    timing: Timing,
    held: Mask,
    predicted_ms: Floats,
) -> tuple[Sample, ...]:
    return tuple(
        Sample(
            id=space.id(architecture),
            architecture=space.to_json(architecture),
            genes=tuple(genes[i].tolist()),
            latency_ms=float(timing.ms[i]),
            spread=float(timing.spread_ms[i]),
            held_out=bool(held[i]),
            predicted_ms=float(predicted_ms[i]),
        )
        for i, architecture in enumerate(architectures)
    )


# --- timing finalists -----------------------------------------------------------------------------


@dataclass(frozen=True, eq=False)
class Measured:
    """Latencies on the scale of a profile.

    Attributes:
        ms: (n,) milliseconds as of the time of the profile: what the machine took now, divided by
            `drift`. They compare with the profile's and with predictions.
        spread: (n,) half the interquartile range of single runs, in the same milliseconds.
        drift: how much slower the references ran than when they were profiled (1.03: by 3 %).
    """

    ms: Floats
    spread: Floats
    drift: float


def measure(
    device: Device,
    modules: Sequence[nn.Module],
    example: Tensor,
    *,
    references: Sequence[nn.Module],
    references_ms: Sequence[float],
    folder: Path,
    rounds: int = 200,
    seed: int = 0,
    runs: Sequence[Run] = (),
    progress: Progress | None = None,
) -> Measured:
    """Time `modules` amid `references` that were profiled, so that a slower hour shows as drift.

    Args:
        device: the device that was profiled.
        modules: finalists.
        example: an input `(device.batch, …)`.
        references: some of the profile's subnets, built again, see `Profile.references`.
        references_ms: their latencies in the profile.
        folder: for exported files; may go afterwards.
        rounds: timed runs of each.
        seed: of the order of runs.
        runs: inferences that are loaded already, which come behind `modules` in what is returned.
        progress: called after each module that was made ready; never while the clock runs.

    Raises:
        DeviceError: no references, not one latency for each, or an example of another batch size.
        ExportError: a module that the runtime cannot run.
    """
    if not references or len(references) != len(references_ms):
        raise DeviceError(
            "A measurement needs profiled subnets as references, with a latency for each: got "
            f"{len(references)} subnets and {len(references_ms)} latencies."
        )
    loads = [run for (run,) in _loads(device, (*modules, *references), example, folder, 1, progress)]
    loads[len(modules) : len(modules)] = runs
    with timing_lock():
        timing = round_robin(loads, rounds=rounds, seed=seed)
    return _anchored(timing, np.asarray(references_ms, dtype=np.float64))


def _anchored(timing: Timing, references_ms: Floats) -> Measured:
    """`timing`, whose last models are the references, in milliseconds of the profile."""
    n = len(timing.relative) - len(references_ms)
    drift = float(np.median(timing.ms[n:] / references_ms))
    return Measured(timing.ms[:n] / drift, timing.spread_ms[:n] / drift, drift)


# --- common to both -------------------------------------------------------------------------------


def _loads(
    device: Device,
    modules: Iterable[nn.Module],
    example: Tensor,
    folder: Path,
    times: int,
    progress: Progress | None,
) -> Iterator[list[Run]]:
    """Each module, exported into a folder of its own and loaded `times` times."""
    if len(example) != device.batch:
        raise DeviceError(
            f"An example for {device.name} must hold {device.batch} inputs, its batch: got {len(example)}."
        )
    for i, module in enumerate(modules):
        place = folder / str(i)
        place.mkdir(parents=True)
        load = device.runtime.prepare(module, example, place)
        yield [load() for _ in range(times)]
        if progress:
            progress()
