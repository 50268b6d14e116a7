"""The latency model, on latencies that are known."""

from __future__ import annotations

import json

import numpy as np
import pytest

from nas.devices.latency import LatencyModel, quality
from nas.errors import DeviceError

NAMES = ("kernels", "mmacs", "useless")
PRICES = np.array([0.002, 0.05, 0.0])


def sampled(n: int, noise: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(0)
    features = np.column_stack(
        [rng.integers(5, 60, n), rng.lognormal(0, 1, n), rng.normal(5, 1, n) ** 2]
    ).astype(np.float64)
    ms = (0.01 + features @ PRICES) * rng.lognormal(0, noise, n)
    return features, ms


def test_fit_finds_the_prices() -> None:
    features, ms = sampled(30)
    model = LatencyModel.fit(features, ms, NAMES)
    np.testing.assert_allclose(model.coefficients, PRICES, atol=1e-9)
    assert model.constant == pytest.approx(0.01)
    np.testing.assert_allclose(model.predict(features), ms)


def test_no_price_is_negative() -> None:
    features, ms = sampled(30)
    model = LatencyModel.fit(np.column_stack([features[:, :2], -ms]), ms, NAMES)
    assert min(model.coefficients) >= 0
    assert model.constant >= 0


def test_the_error_is_relative() -> None:
    """Of two kinds of models under one constant, the faster is met as well as the slower."""
    ms = np.array([0.1, 1.0])
    model = LatencyModel.fit(np.zeros((2, 0)), ms, ())
    weights = 1 / ms**2
    assert model.constant == pytest.approx(np.sum(weights * ms) / np.sum(weights))


def test_noise_of_five_percent_is_met_to_about_as_much() -> None:
    features, ms = sampled(48, noise=0.05)
    model = LatencyModel.fit(features[14:], ms[14:], NAMES)
    found = quality(model.predict(features[:14]), ms[:14])
    assert found["mape"] < 8
    assert found["kendall_tau"] > 0.9


def test_json_round_trip() -> None:
    model = LatencyModel.fit(*sampled(30), NAMES)
    assert LatencyModel.from_json(json.loads(json.dumps(model.to_json()))) == model


def test_another_kind_of_model_is_refused() -> None:
    with pytest.raises(DeviceError, match="kind additive"):
        LatencyModel.from_json({"kind": "forest", "coefficients": {}, "constant": 0})


@pytest.mark.parametrize("price", [-0.1, float("nan"), float("inf")])
def test_impossible_prices_are_refused(price: float) -> None:
    with pytest.raises(DeviceError, match="'mmacs'"):
        LatencyModel(("kernels", "mmacs"), (1.0, price), 0.0)


@pytest.mark.parametrize("ms", [[1.0, 0.0], [1.0, -1.0], [1.0, float("nan")]])
def test_impossible_latencies_are_refused(ms: list[float]) -> None:
    with pytest.raises(DeviceError, match="must be positive"):
        LatencyModel.fit(np.ones((2, 1)), np.array(ms), ("kernels",))


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    with pytest.raises(DeviceError, match="one row of features per latency"):
        LatencyModel.fit(np.ones((3, 2)), np.ones(2), ("a", "b"))


def test_quality() -> None:
    measured = np.array([1.0, 2.0, 4.0])
    assert quality(measured, measured) == {"mape": 0, "kendall_tau": pytest.approx(1), "n": 3}
    assert quality(measured * 1.1, measured)["mape"] == pytest.approx(10)
    assert quality(-measured, measured)["kendall_tau"] == pytest.approx(-1)
    assert quality(np.ones(3), measured)["kendall_tau"] == 0
