"""The device noun."""

from __future__ import annotations

from dataclasses import dataclass

from nas.devices.runtimes import Runtime
from nas.errors import DeviceError


@dataclass(frozen=True)
class Device:
    """Something on which models are timed: a runtime of this host, at a batch size.

    Attributes:
        name: names the objectives (`latency_ms.NAME`) and the profile (`devices/NAME.json`).
        runtime: executes a module, see `nas.devices.runtimes`.
        batch: inputs per inference.

    Raises:
        DeviceError: a name that cannot be part of a file name and of an objective's name, or a
            batch below 1.
    """

    name: str
    runtime: Runtime
    batch: int = 1

    def __post_init__(self) -> None:
        if not self.name or not self.name.replace("_", "").replace("-", "").isalnum():
            raise DeviceError(
                "A device's name must consist of letters, digits, `-` and `_`, since it names a "
                f"file and an objective: got {self.name!r}."
            )
        if self.batch < 1:
            raise DeviceError(f"`batch >= 1` must hold for device {self.name}, got {self.batch}.")
