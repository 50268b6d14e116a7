"""Profiles and later measurements, on a host whose latencies are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from devices.fakes import OCTAVES, Digits, FakeRuntime, Host, Net, features, latency_ms

from nas.devices import Device, Profile, choose, measure, profile
from nas.errors import DeviceError

EXAMPLE = torch.zeros(1, 4)


def device(host: Host) -> Device:
    return Device("pi4", FakeRuntime(host))


def build(architecture: tuple[int, ...]) -> Net:
    return Net(latency_ms(architecture))


def profiled(host: Host, folder: Path, **settings: Any) -> Profile:
    space = Digits()
    architectures = choose(space, features, settings.pop("n", 48))
    return profile(
        device(host),
        architectures,
        build,
        features,
        EXAMPLE,
        space=space,
        folder=folder,
        **settings,
    )


def test_a_quiet_device_is_learnt_exactly(host: Host, tmp_path: Path) -> None:
    found = profiled(host, tmp_path)
    assert found.quality["held_out"]["mape"] < 1e-6
    assert found.quality["held_out"]["kendall_tau"] == pytest.approx(1)
    assert found.quality["test_retest"] == {"mape": 0, "kendall_tau": pytest.approx(1), "n": 48}
    assert found.quality["macs_only"]["mape"] > 10
    assert found.quality["macs_only"]["n"] == found.quality["held_out"]["n"] == 14


def test_samples_hold_what_was_timed_and_predicted(host: Host, tmp_path: Path) -> None:
    found = profiled(host, tmp_path)
    assert (found.device, found.runtime, found.threads, found.batch) == ("pi4", "FakeRuntime", 2, 1)
    for sample in found.samples:
        expected = latency_ms(sample.genes)
        assert sample.id == Digits().id(sample.genes)
        assert sample.architecture == list(sample.genes)
        assert sample.latency_ms == pytest.approx(expected)
        assert sample.predicted_ms == pytest.approx(expected)
        assert sample.spread == pytest.approx(0.03 * expected)


def test_the_model_never_sees_those_held_out(
    host: Host, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A host that lies about them changes nothing but their errors."""
    honest = profiled(host, tmp_path / "honest")
    lied_about = {sample.id for sample in honest.samples if sample.held_out}

    def lying(architecture: tuple[int, ...]) -> Net:
        known = Digits().id(architecture) in lied_about
        return Net(latency_ms(architecture) * (2 if known else 1))

    monkeypatch.setitem(globals(), "build", lying)
    fooled = profiled(host, tmp_path / "fooled")
    np.testing.assert_allclose(fooled.model.coefficients, honest.model.coefficients)
    assert fooled.quality["held_out"]["mape"] == pytest.approx(50)


def test_held_out_span_the_range_without_its_ends(host: Host, tmp_path: Path) -> None:
    found = profiled(host, tmp_path, held_out=10)
    by_size = sorted(found.samples, key=lambda s: OCTAVES @ s.genes)
    held = np.flatnonzero([s.held_out for s in by_size])
    assert len(held) == 10
    assert held[0] > 0
    assert held[-1] < 47
    assert np.diff(held).max() <= 10


def test_noise_shows_in_test_retest(host: Host, tmp_path: Path) -> None:
    host.noise = 0.05
    found = profiled(host, tmp_path)
    assert 3 < found.quality["test_retest"]["mape"] < 9  # two passes of 5 %: about 5.6 %
    assert 1 < found.quality["held_out"]["mape"] < 9


def test_each_subnet_is_exported_once_and_loaded_for_each_pass(host: Host, tmp_path: Path) -> None:
    ready: list[int] = []
    profiled(host, tmp_path, n=20, progress=lambda: ready.append(len(host.loads)))
    assert len(set(host.folders)) == 20
    assert all(folder.is_dir() for folder in host.folders)
    assert ready == list(range(2, 42, 2))


def test_too_few_subnets_are_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="held_out=14 of 16"):
        profiled(host, tmp_path, n=16)


def test_an_example_of_another_batch_is_refused(host: Host, tmp_path: Path) -> None:
    with pytest.raises(DeviceError, match="must hold 1 inputs"):
        measure(
            device(host),
            [Net(1.0)],
            torch.zeros(2, 4),
            references=[Net(1.0)],
            references_ms=[1.0],
            folder=tmp_path,
        )


def test_finalists_are_measured_on_the_scale_of_the_profile(host: Host, tmp_path: Path) -> None:
    host.slowdown = 1.25
    found = measure(
        device(host),
        [Net(0.3), Net(0.7)],
        EXAMPLE,
        references=[Net(0.1), Net(0.5), Net(1.0)],
        references_ms=[0.1, 0.5, 1.0],
        folder=tmp_path,
    )
    np.testing.assert_allclose(found.ms, [0.3, 0.7])
    np.testing.assert_allclose(found.spread, [0.009, 0.021])
    assert found.drift == pytest.approx(1.25)


def test_one_odd_reference_does_not_move_the_scale(host: Host, tmp_path: Path) -> None:
    found = measure(
        device(host),
        [Net(0.3)],
        EXAMPLE,
        references=[Net(0.1), Net(0.5), Net(1.0)],
        references_ms=[0.1, 0.5, 9.0],
        folder=tmp_path,
    )
    np.testing.assert_allclose(found.ms, [0.3])


@pytest.mark.parametrize("ms", [[], [1.0]])
def test_references_are_required(host: Host, tmp_path: Path, ms: list[float]) -> None:
    with pytest.raises(DeviceError, match="needs profiled subnets as references"):
        measure(
            device(host),
            [Net(1.0)],
            EXAMPLE,
            references=[Net(1.0)] * (2 * len(ms)),
            references_ms=ms,
            folder=tmp_path,
        )
