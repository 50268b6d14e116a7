"""Latency of a device as a sum of costs."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy.optimize import nnls
from scipy.stats import kendalltau

from nas.errors import DeviceError

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LatencyModel:
    r"""Milliseconds as a constant plus a price per unit of each feature, none of them negative.

    $$\hat t(f) = c_0 + \sum_j c_j f_j, \quad c = \arg\min_{c \ge 0} \sum_i (\hat t(f_i)/t_i - 1)^2$$

    The error is relative, since a front wants 5 % of 0.1 ms as exactly as 5 % of 1 ms. That nothing
    can cost less than no time is regularisation enough: ridge on top changed the error of subnets
    held out by less than 0.1 points.

    Attributes:
        names: of the features.
        coefficients: ms per unit of each.
        constant: ms of a model that does nothing.

    Raises:
        DeviceError: a price that is negative or no number.
    """

    names: tuple[str, ...]
    coefficients: tuple[float, ...]
    constant: float

    def __post_init__(self) -> None:
        prices = dict(zip(self.names, self.coefficients, strict=True)) | {"constant": self.constant}
        if bad := {name: ms for name, ms in prices.items() if not 0 <= ms < math.inf}:
            raise DeviceError(f"Prices of a latency model must be 0 ms or more: got {bad}.")

    @classmethod
    def fit(cls, features: Floats, ms: Floats, names: Sequence[str]) -> LatencyModel:
        """Fit to `features` (n, F), named by `names` (F,), and measured `ms` (n,).

        Raises:
            DeviceError: shapes that do not belong together, or a latency that is not positive.
        """
        if features.shape != (len(ms), len(names)) or not len(ms):
            raise DeviceError(
                "A latency model needs one row of features per latency and one column per name: "
                f"got features {features.shape}, {len(ms)} latencies and {len(names)} names."
            )
        if not (np.isfinite(ms).all() and (ms > 0).all()):
            raise DeviceError(f"Measured latencies must be positive, got {np.min(ms):g} ms.")
        rows = np.column_stack([np.ones(len(ms)), features])
        unit = np.maximum(rows.max(axis=0), np.finfo(np.float64).tiny)  # alike for the solver
        coefficients, _ = nnls(rows / unit / ms[:, None], np.ones(len(ms)))
        constant, *others = (coefficients / unit).tolist()
        return cls(tuple(names), tuple(others), constant)

    def predict(self, features: Floats) -> Floats:
        """Milliseconds (n,) of `features` (n, F)."""
        return np.asarray(self.constant + features @ np.asarray(self.coefficients))

    def to_json(self) -> dict[str, Any]:
        """As plain data; `from_json` gives an equal model back."""
        prices = dict(zip(self.names, self.coefficients, strict=True))
        return {"kind": "additive", "constant": self.constant, "coefficients": prices}

    @classmethod
    def from_json(cls, data: Mapping[str, Any]) -> LatencyModel:
        """The model that `to_json` wrote.

        Raises:
            DeviceError: another kind of model, or a price that is no number.
        """
        if data["kind"] != "additive":
            raise DeviceError(f"A latency model must be of kind additive, got {data['kind']!r}.")
        prices = {str(name): float(value) for name, value in data["coefficients"].items()}
        return cls(tuple(prices), tuple(prices.values()), float(data["constant"]))


def quality(predicted: Floats, measured: Floats) -> dict[str, float]:
    """How well (n,) predictions meet (n,) measurements.

    Returns:
        `mape`, the mean absolute error in % of the measured value; `kendall_tau`, the agreement of
        the two orders (tau-b: 1 the same, 0 none; 0 also where all predictions are equal); `n`.
    """
    tau = float(kendalltau(predicted, measured).statistic)
    mape = 100 * float(np.mean(np.abs(predicted / measured - 1)))
    return {"mape": mape, "kendall_tau": 0.0 if np.isnan(tau) else tau, "n": len(measured)}
