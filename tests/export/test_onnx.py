"""ONNX files against the modules that they came from."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export.nets import Averaging, Frozen, apart, trained
from torch import Tensor, nn

from nas.errors import ExportError
from nas.export import Subnet, export_subnet
from nas.export.onnx import export_onnx, onnx_session

X = torch.rand(2, 1, 4, 4)


def test_the_file_answers_as_the_module_at_every_batch_size(tmp_path: Path) -> None:
    net = trained()
    export_onnx(net, X, tmp_path / "model.onnx")
    assert apart(tmp_path / "model.onnx", net, X) < 1e-5
    assert net.training


def test_inputs_and_outputs_are_named_and_their_batch_is_free(tmp_path: Path) -> None:
    export_onnx(trained(), X[:1], tmp_path / "model.onnx")
    graph = onnx.load(tmp_path / "model.onnx").graph
    for values, name in ((graph.input, "x"), (graph.output, "y")):
        (value,) = values
        assert value.name == name
        assert value.type.tensor_type.shape.dim[0].dim_param == "batch"


def test_nothing_is_warned_of(tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        export_onnx(trained(), X, tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("module", "problem"),
    [
        (Frozen(2), "of 1 inputs it makes: "),
        (Averaging(), "of 1 inputs it makes: other answers than the module"),
    ],
)
def test_a_frozen_batch_size_is_refused(module: nn.Module, problem: str, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=f"model.onnx must take any batch size, but {problem}"):
        export_subnet(Subnet(module, {}, X), tmp_path / "abc", formats=("onnx",), cards=lambda _: {})


class Grouped(nn.Module):
    """Queries of four heads, keys and values of two."""

    def forward(self, x: Tensor) -> Tensor:
        q = x.reshape(x.shape[0], -1, 4, 8).transpose(1, 2)
        y = nn.functional.scaled_dot_product_attention(q, q[:, ::2], q[:, 1::2], enable_gqa=True)
        return y.transpose(1, 2).flatten(2)


def test_grouped_queries_are_written(tmp_path: Path) -> None:
    x, path = torch.rand(2, 5, 32), tmp_path / "grouped.onnx"
    export_onnx(Grouped(), x, path)
    (y,) = onnx_session(path).run(["y"], {"x": x.numpy()})
    np.testing.assert_allclose(y, Grouped()(x), rtol=1e-5, atol=1e-6)
    assert nn.functional.scaled_dot_product_attention.__module__ != "nas.export.onnx"


class Refused(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        raise AssertionError("one\ntwo")


def test_whatever_the_exporter_raises_is_one_line(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match=r"failed with `one`\. Replace"):
        export_onnx(Refused(), torch.rand(2, 3), tmp_path / "refused.onnx")


class ShortNames(nn.Module):
    """Parameters that are called as we call what flows between nodes."""

    def __init__(self) -> None:
        super().__init__()
        self.v0, self.v2 = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))

    def forward(self, x):
        return ((x + self.v0).relu() * self.v2).flatten(1)


def test_parameters_may_have_short_names(tmp_path: Path) -> None:
    module = ShortNames()
    export_onnx(module, X, tmp_path / "model.onnx")
    assert apart(tmp_path / "model.onnx", module, X) < 1e-5
