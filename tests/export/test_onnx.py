"""ONNX files against the modules that they came from."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from export.nets import Averaging, Frozen, trained
from torch import Tensor, nn

from nas.errors import ExportError
from nas.export.onnx import check_onnx, export_onnx, onnx_session

X = torch.rand(2, 1, 4, 4)


def test_the_file_answers_as_the_module_at_every_batch_size(tmp_path: Path) -> None:
    net = trained()
    export_onnx(net, X, tmp_path / "model.onnx")
    assert check_onnx(tmp_path / "model.onnx", net, X) < 1e-5
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


def test_other_weights_show_as_a_difference(tmp_path: Path) -> None:
    net = trained()
    export_onnx(net, X, tmp_path / "model.onnx")
    with torch.no_grad():
        net.head.bias[0] += 0.5
    assert check_onnx(tmp_path / "model.onnx", net, X) > 0.1


def test_the_difference_is_relative(tmp_path: Path) -> None:
    net = trained()
    export_onnx(net, X, tmp_path / "model.onnx")
    with torch.no_grad():
        for parameter in net.head.parameters():
            parameter.mul_(2)
    assert check_onnx(tmp_path / "model.onnx", net, X) == pytest.approx(0.5, rel=1e-3)


def test_a_frozen_batch_size_is_found(tmp_path: Path) -> None:
    export_onnx(Frozen(2), X, tmp_path / "model.onnx")
    with pytest.raises(ExportError, match=r"must (run|return)"):
        check_onnx(tmp_path / "model.onnx", Frozen(None), X)


def test_a_batch_size_frozen_into_numbers_is_found(tmp_path: Path) -> None:
    export_onnx(Averaging(), X, tmp_path / "model.onnx")
    assert check_onnx(tmp_path / "model.onnx", Averaging(), X) > 0.1


def test_a_file_that_is_no_model_is_refused(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"no model")
    with pytest.raises(ExportError, match="must run in ONNX Runtime"):
        check_onnx(tmp_path / "model.onnx", trained(), X)


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
