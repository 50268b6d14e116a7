"""The record of a device: what was timed on it, and what was learnt from that."""

from __future__ import annotations

import json
import math
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas.devices.costs import FEATURES
from nas.devices.device import Device
from nas.devices.latency import LatencyModel
from nas.errors import DeviceError, NasError, first_line
from nas.space import Space

QUALITIES = ("held_out", "macs_only", "test_retest")


@dataclass(frozen=True)
class Sample:
    """A subnet that was timed.

    Attributes:
        id, architecture, genes: which one; `architecture` as JSON.
        latency_ms: of one inference, over both passes.
        spread: half the interquartile range of single runs, in ms.
        held_out: whether the latency model was kept from seeing it.
        predicted_ms: what the latency model says.
    """

    id: str
    architecture: Any
    genes: tuple[int, ...]
    latency_ms: float
    spread: float
    held_out: bool
    predicted_ms: float

    def __post_init__(self) -> None:
        if not 0 < self.latency_ms < math.inf:
            raise DeviceError(f"`latency_ms` of {self.id} must be positive, got {self.latency_ms}.")


@dataclass(frozen=True)
class Profile:
    """A device as it was measured, `devices/NAME.json` of a run directory.

    Attributes:
        device, runtime, threads, batch: what was timed.
        machine: where, see `nas.devices.machine`.
        samples: the subnets that were timed.
        model: fitted on those not held out.
        quality: `mape` (%), `kendall_tau` and `n` of three predictions. `held_out`: the model, on
            subnets it has not seen. `macs_only`: a line over MACs, on the same ones; what the model
            has to beat. `test_retest`: the first pass as a prediction of the second, on all; what
            no model can be expected to beat by much.
    """

    device: str
    runtime: str
    threads: int
    batch: int
    machine: Mapping[str, str | int]
    samples: tuple[Sample, ...]
    model: LatencyModel
    quality: Mapping[str, Mapping[str, float]]

    def references(self, n: int = 6) -> list[Sample]:
        """At most n samples, evenly spread from the fastest to the slowest, to anchor later timings."""
        ordered = sorted(self.samples, key=lambda sample: sample.latency_ms)
        last = len(ordered) - 1
        return [ordered[i] for i in sorted({round(k * last / max(n - 1, 1)) for k in range(n)})]

    def require_fit(self, device: Device, space: Space) -> None:
        """Raises DeviceError where it is of another device than that, or of architectures that the space has
        not: it may have been edited."""
        runtime = device.runtime
        found = {"runtime": self.runtime, "threads": self.threads, "batch": self.batch}
        wanted = {"runtime": type(runtime).__name__, "threads": runtime.threads, "batch": device.batch}
        for name, value in wanted.items():
            if found[name] != value:
                raise DeviceError(
                    f"The profile of {device.name} must be of its {name}, {value}, but is of {found[name]}. "
                    f"Remove it from `devices/` and profile the device again."
                )
        for sample in self.samples:
            try:
                architecture = space.from_json(sample.architecture)
                fits = (space.id(architecture), tuple(space.encode(architecture).tolist()))
            except (NasError, TypeError, ValueError, AttributeError) as error:
                fits = (first_line(error), ())
            if fits != (sample.id, sample.genes):
                raise DeviceError(
                    f"The profile of {device.name} must hold architectures of the space, but {sample.id} is "
                    f"none, or has other genes. Remove it from `devices/` and profile the device again."
                )

    def describe(self) -> str:
        """The device in words, for people who read a latency."""
        threads = "1 thread" if self.threads == 1 else f"{self.threads} threads"
        where = self.machine.get("processor", "unknown processor")
        return f"{self.device} ({self.runtime}, {threads}, batch {self.batch}, {where})"

    def save(self, path: Path) -> None:
        """Write `path` whole or not at all; missing folders are made."""
        path.parent.mkdir(parents=True, exist_ok=True)
        draft = path.with_name(f".{path.name}.{os.getpid()}")
        data = asdict(self) | {"model": self.model.to_json()}
        draft.write_text(json.dumps(data, indent=1) + "\n", encoding="utf-8")
        draft.replace(path)

    @classmethod
    def load(cls, path: Path) -> Profile:
        """The profile that `save` wrote.

        Raises:
            DeviceError: no such file, a damaged one, or one of another version of `nas`.
        """
        try:
            return cls._from_json(json.loads(path.read_text(encoding="utf-8")))
        except FileNotFoundError:
            raise DeviceError(f"{path} must hold the profile of a device, but is not there.") from None
        except (DeviceError, KeyError, TypeError, ValueError, AttributeError) as error:
            reason = f"has no {error}" if isinstance(error, KeyError) else str(error)
            raise DeviceError(
                f"{path} must be the profile of a device as `nas profile` writes it: {reason}. "
                "Remove the file and profile the device again."
            ) from error

    @classmethod
    def _from_json(cls, data: Mapping[str, Any]) -> Profile:
        model = LatencyModel.from_json(data["model"])
        if model.names != FEATURES:
            raise DeviceError(f"its latency model must know {FEATURES}, but knows {model.names}")
        if data["samples"] == []:
            raise DeviceError("it has no `samples`")
        return cls(
            device=str(data["device"]),
            runtime=str(data["runtime"]),
            threads=int(data["threads"]),
            batch=int(data["batch"]),
            machine=dict(data["machine"]),
            samples=tuple(_sample(each) for each in data["samples"]),
            model=model,
            quality={name: _numbers(data["quality"][name]) for name in QUALITIES},
        )


def _sample(data: Mapping[str, Any]) -> Sample:
    return Sample(
        id=str(data["id"]),
        architecture=data["architecture"],
        genes=tuple(int(gene) for gene in data["genes"]),
        latency_ms=float(data["latency_ms"]),
        spread=float(data["spread"]),
        held_out=bool(data["held_out"]),
        predicted_ms=float(data["predicted_ms"]),
    )


def _numbers(data: Mapping[str, Any]) -> dict[str, float]:
    return {key: data[key] for key in ("mape", "kendall_tau", "n") if math.isfinite(data[key])}
