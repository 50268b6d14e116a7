"""devices/NAME.json: written whole, read with care."""

from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from nas.devices import Device, LatencyModel, OnnxRuntime, Profile, Sample
from nas.devices.costs import FEATURES
from nas.errors import DeviceError
from nas.space import Space, oneof


def made(n: int = 9) -> Profile:
    return Profile(
        device="pi4",
        runtime="OnnxRuntime",
        threads=1,
        batch=1,
        machine={"processor": "Cortex-A72", "cores": 4},
        samples=tuple(
            Sample(f"{i:012x}", {"type": "Net", "width": i}, (i, 0), 1.0 + i, 0.1, i == 3, 1.1 + i)
            for i in reversed(range(n))
        ),
        model=LatencyModel(FEATURES, (0.25,) * len(FEATURES), 0.5),
        quality={
            "held_out": {"mape": 4.0, "kendall_tau": 0.9, "n": 1},
            "macs_only": {"mape": 20.0, "kendall_tau": 0.8, "n": 1},
            "test_retest": {"mape": 2.0, "kendall_tau": 0.95, "n": 9},
        },
    )


def test_round_trip(tmp_path: Path) -> None:
    path = tmp_path / "devices" / "pi4.json"
    made().save(path)
    assert Profile.load(path) == made()
    assert [p.name for p in path.parent.iterdir()] == ["pi4.json"]


def test_an_interrupted_save_leaves_the_file_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "pi4.json"
    made().save(path)

    def interrupted(self: Path, text: str, **_: Any) -> int:
        self.write_bytes(text.encode()[:100])
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "write_text", interrupted)
    with pytest.raises(KeyboardInterrupt):
        made(5).save(path)
    assert Profile.load(path) == made()


def without(*keys: str) -> Any:
    def change(data: dict[str, Any]) -> None:
        for key in keys[:-1]:
            data = data[key]
        del data[keys[-1]]

    return change


def having(value: Any, *keys: Any) -> Any:
    def change(data: Any) -> None:
        for key in keys[:-1]:
            data = data[key]
        data[keys[-1]] = value

    return change


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (without("model"), "has no 'model'"),
        (without("quality", "macs_only"), "has no 'macs_only'"),
        (having("forest", "model", "kind"), "kind additive"),
        (having({"stem": 1.0}, "model", "coefficients"), "'stem'"),
        (having(float("nan"), "model", "constant"), "constant"),
        (having(-1.0, "model", "coefficients", "norms"), "norms"),
        (having("fast", "samples", 2, "latency_ms"), "fast"),
        (having(0, "samples", 2, "latency_ms"), "must be positive"),
        (having(None, "samples"), "NoneType"),
        (having([], "samples"), "it has no `samples`"),
        (having("high", "quality", "held_out", "mape"), "number"),
    ],
)
def test_a_damaged_file_is_refused(tmp_path: Path, change: Any, says: str) -> None:
    path = tmp_path / "pi4.json"
    made().save(path)
    data = json.loads(path.read_text())
    change(data)
    path.write_text(json.dumps(data))
    with pytest.raises(DeviceError, match="profile the device again") as caught:
        Profile.load(path)
    assert says in str(caught.value)
    assert str(path) in str(caught.value)


@dataclass(frozen=True)
class Net:
    width: int


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"batch": 7}, "must be of its batch, 1, but is of 7"),
        ({"threads": 2}, "must be of its threads, 1, but is of 2"),
        ({"runtime": "TorchEager"}, "must be of its runtime, OnnxRuntime, but is of TorchEager"),
        ({"architecture": 5}, "must hold architectures of the space, but .* is none"),
        ({"architecture": {"type": "Net", "width": "ab"}}, "must hold architectures of the space"),
        ({"architecture": {"type": "Net", "width": 16}}, "must hold architectures of the space"),
        ({"genes": (1,)}, "must hold architectures of the space"),
        ({"id": "0123456789ab"}, "must hold architectures of the space, but 0123456789ab is none"),
    ],
)
def test_a_profile_is_of_a_device_and_a_space(changes: dict[str, Any], message: str | None) -> None:
    space = Space(Net(oneof(8, 16)))
    own = Sample(space.id(Net(8)), {"type": "Net", "width": 8}, (0,), 1.0, 0.1, False, 1.1)
    of_sample = {k: v for k, v in changes.items() if k in ("architecture", "genes", "id")}
    of_profile = {k: v for k, v in changes.items() if k not in of_sample}
    profile = replace(made(), **(of_profile | {"samples": (own, replace(own, **of_sample))}))
    device = Device("pi4", OnnxRuntime())
    if message is None:
        profile.require_fit(device, space)
    else:
        with pytest.raises(DeviceError, match=f"The profile of pi4 {message}"):
            profile.require_fit(device, space)


@pytest.mark.parametrize("text", ["", "{", "[]", "3", '{"device": "pi4"', "\udcff"])
def test_what_is_no_profile_is_refused(tmp_path: Path, text: str) -> None:
    path = tmp_path / "pi4.json"
    path.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DeviceError, match="profile the device again"):
        Profile.load(path)


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="is not there"):
        Profile.load(tmp_path / "pi4.json")


def test_references_spread_from_fastest_to_slowest() -> None:
    assert [s.latency_ms for s in made().references(5)] == [1, 3, 5, 7, 9]
    assert len(made().references(1)) == 1
    assert len(made(3).references(6)) == 3


def test_the_device_in_words() -> None:
    assert made().describe() == "pi4 (OnnxRuntime, 1 thread, batch 1, Cortex-A72)"
