"""Integer layers: what PyTorch computes is what the kernels of ONNX Runtime compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import nn

from nas.errors import ExportError
from nas.export.integer import with_integer_layers
from nas.export.onnx import check_onnx, export_onnx
from nas.quantize import fake_quantize

NBITS = "MatMulNBits"
FORMS = [  # weights, activations, one range for all of these, kernel, how many times smaller the file is
    (8, 8, True, "DynamicQuantizeMatMul", 2.5),
    (8, 8, False, NBITS, 2.5),
    (8, 32, True, NBITS, 2.5),
    (4, 8, True, NBITS, 3.5),
    (4, 32, True, NBITS, 3.5),
]


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(48, 96, bias=bias), nn.GELU(), nn.Linear(96, 40, bias=bias))


def images(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 16, 48, generator=torch.Generator().manual_seed(1))


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{path}.optimised"
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("weights", "activations", "whole", "kernel", "smaller"), FORMS)
def test_the_kernel_computes_what_is_simulated(weights, activations, whole, kernel, smaller, bias, tmp_path):
    bits = (weights, activations)
    module = with_integer_layers(network(bias), {"0": bits, "2": bits}, whole_tensor=whole)
    path = tmp_path / "model.onnx"
    export_onnx(module, images(), path)
    for n in (1, 3):
        (found,) = session(path).run(None, {"x": images(n).numpy()})
        with torch.no_grad():
            expected = module(images(n)).numpy()
        differences = np.abs(found - expected) / np.abs(expected).max()
        assert np.quantile(differences, 0.95) < 1e-6
        assert differences.max() < 5e-3  # where an activation lies between two numbers, a last bit decides
    operators = [node.op_type for node in onnx.load(f"{path}.optimised").graph.node]
    assert operators.count(kernel) == 2
    assert not {"MatMul", "Gemm", "FusedMatMul"} & set(operators)
    plain = tmp_path / "plain.onnx"
    export_onnx(network(bias), images(), plain)
    assert plain.stat().st_size > smaller * path.stat().st_size


@pytest.mark.parametrize("bits", [(4, 8), (4, 32), (8, 8), (8, 32)])
def test_inputs_that_no_block_divides(bits, tmp_path):
    module = nn.Sequential(nn.Linear(41, 8))
    integer = with_integer_layers(module, {"0": bits}, whole_tensor=False)
    export_onnx(integer, torch.randn(2, 41), tmp_path / "model.onnx")
    assert check_onnx(tmp_path / "model.onnx", integer, torch.randn(2, 41)) < 1e-5


def test_float_activations_see_the_weights_that_were_trained():
    module = network()
    integer = with_integer_layers(module, {"2": (4, 32)})
    rounded = fake_quantize(module[2].weight, 4)
    hidden = module[1](module[0](images()))
    torch.testing.assert_close(integer(images()), hidden @ rounded.t() + module[2].bias)


def test_activations_are_rounded_over_all_that_comes_together():
    """So that an image's answer depends on its company, as the kernel's does."""
    integer = with_integer_layers(network(), {"0": (8, 8)})
    small = torch.full((1, 1, 48), 0.01)
    with torch.no_grad():
        alone = integer(small)
        beside = integer(torch.cat([small, 100 * torch.ones(1, 1, 48)]))[:1]
    assert not torch.allclose(alone, beside)


def test_in_blocks_an_image_answers_whatever_its_company():
    integer = with_integer_layers(network(), {"0": (8, 8)}, whole_tensor=False)
    small = torch.full((1, 1, 48), 0.01)
    with torch.no_grad():
        alone = integer(small)
        beside = integer(torch.cat([small, 100 * torch.ones(1, 1, 48)]))[:1]
    torch.testing.assert_close(alone, beside)


@pytest.mark.parametrize("whole", [True, False])
def test_zeros_stay_zeros(whole):
    plain = nn.Sequential(nn.Linear(8, 4, bias=False))
    integer = with_integer_layers(plain, {"0": (8, 8)}, whole_tensor=whole)
    assert not integer(torch.zeros(2, 8)).any()


def test_the_module_itself_stays_as_it_is():
    module = network()
    before = {n: t.clone() for n, t in module.state_dict().items()}
    with_integer_layers(module, {"0": (8, 8)})
    assert isinstance(module[0], nn.Linear)
    assert all(torch.equal(before[n], t) for n, t in module.state_dict().items())


@pytest.mark.parametrize(
    ("bits", "message"),
    [
        ({"1": (8, 8)}, "must be for linear layers: `1` is GELU"),
        ({"7": (8, 8)}, "must be for linear layers: `7` is NoneType"),
        ({"0": (2, 8)}, "weights of 4 or 8 bits and activations of 8 or 32: got 2 and 8"),
    ],
)
def test_what_has_no_kernel(bits, message):
    with pytest.raises(ExportError, match=message):
        with_integer_layers(network(), bits)
