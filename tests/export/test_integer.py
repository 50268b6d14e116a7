"""Exports at few bits: what PyTorch simulates is what the kernels of ONNX Runtime compute."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from export.nets import apart
from torch import nn

from nas.calibration import gathering
from nas.errors import ExportError
from nas.export.deployable import deployable
from nas.export.onnx import export_onnx
from nas.layers import Bits
from nas.layers.quantizers import QuantizedLinear
from nas.quantize import DYNAMIC, Quantization, at_bits, fake_quantize, in_floats, payload_bytes

ONE_BY_ONE = Quantization(DYNAMIC)
TOGETHER = Quantization(DYNAMIC, images=99)
KERNELS = [
    (Bits(8, 8), Quantization(), "MatMulIntegerToFloat", 2.5),
    (Bits(8, 8), TOGETHER, "DynamicQuantizeMatMul", 2.5),
    (Bits(4, 8), Quantization(), "MatMulNBits", 3.5),
    (Bits(4), Quantization(), "MatMulNBits", 3.5),
    (Bits(8), Quantization(), "MatMul", 2.5),  # floats again, once it is loaded
    (Bits(16), Quantization(), "MatMul", 1.7),
    (Bits(2), Quantization(), "MatMul", 2.0),
]


def network(bias: bool = True) -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(64, 96, bias=bias), nn.GELU(), nn.Linear(96, 40, bias=bias))


def images(n: int = 3) -> torch.Tensor:
    return torch.randn(n, 16, 64, generator=torch.Generator().manual_seed(1))


def quantized(module: nn.Module, bits: Bits, how: Quantization, example: torch.Tensor) -> nn.Module:
    """`module` at those bits, its weights rounded, its ranges calibrated on `example`."""
    module, by_name = at_bits(module, lambda _: bits, how)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            parameter.copy_(fake_quantize(parameter, by_name[name].weight))
        with gathering(module):
            module(example)
    return module


def session(path: Path) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = f"{path}.optimised"
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def products(path: Path) -> list[str]:
    operators = [node.op_type for node in onnx.load(f"{path}.optimised").graph.node]
    names = ("MatMul", "Gemm", "Conv")
    return [op.removeprefix("Fused") for op in operators if any(name in op for name in names)]


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(("bits", "how", "kernel", "smaller"), KERNELS)
def test_the_kernel_computes_what_is_simulated(bits, how, kernel, smaller, bias, tmp_path):
    module = quantized(network(bias), bits, how, images())
    path = tmp_path / "model.onnx"
    export_onnx(module, images(), path)
    for n in (1, 3):
        (found,) = session(path).run(None, {"x": images(n).numpy()})
        with torch.no_grad():
            expected = module(images(n)).numpy()
        differences = np.abs(found - expected) / np.abs(expected).max()
        assert np.quantile(differences, 0.95) < 1e-6
        assert differences.max() < 5e-3  # where an activation lies between two numbers, a last bit decides
    assert products(path) == [kernel, kernel]
    plain = tmp_path / "plain.onnx"
    export_onnx(network(bias), images(), plain)
    assert plain.stat().st_size > smaller * path.stat().st_size


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize(
    ("bits", "how"),
    [
        (Bits(8, 8), Quantization()),
        (Bits(8, 8), TOGETHER),
        (Bits(4), Quantization()),
        (Bits(4, 8), Quantization()),
        (Bits(2, 8), Quantization()),
    ],
)
def test_a_portable_file_has_operators_of_onnx_alone(bits, how, bias, tmp_path):
    module = quantized(network(bias), bits, how, images())
    path = tmp_path / "model.onnx"
    export_onnx(module, images(), path, portable=True)
    assert {node.domain for node in onnx.load(path).graph.node} == {""}
    (found,) = session(path).run(None, {"x": images().numpy()})
    with torch.no_grad():
        expected = module(images()).numpy()
    differences = np.abs(found - expected) / np.abs(expected).max()
    assert np.quantile(differences, 0.95) < 2e-6
    assert differences.max() < 5e-3
    export_onnx(network(bias), images(), tmp_path / "plain.onnx")
    assert (tmp_path / "plain.onnx").stat().st_size > 2.2 * path.stat().st_size


@pytest.mark.parametrize("bits", [Bits(4, 8), Bits(4), Bits(8, 8), Bits(2)])
def test_inputs_that_no_block_divides(bits, tmp_path):
    x = torch.randn(2, 41)
    module = quantized(nn.Sequential(nn.Linear(41, 8)), bits, Quantization(), x)
    export_onnx(module, x, tmp_path / "model.onnx")
    assert apart(tmp_path / "model.onnx", module, x) < 1e-5


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_weights_of_other_layers_are_kept_at_their_bits(bits, tmp_path):
    """And turned into floats once, before anything runs: the runtime is left with plain convolutions."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.Conv2d(16, 24, 3), nn.Conv2d(24, 24, 3, groups=24))
    x = torch.randn(2, 16, 9, 9)
    module = quantized(net, Bits(bits), Quantization(), x)
    path = tmp_path / "model.onnx"
    export_onnx(module, x, path)
    assert apart(path, module, x) < 1e-6
    session(path)
    operators = {node.op_type for node in onnx.load(f"{path}.optimised").graph.node}
    assert operators <= {"Conv", "ReorderInput", "ReorderOutput"}
    sizes = [
        int(np.prod(array.shape)) * array.itemsize
        for array in map(onnx.numpy_helper.to_array, onnx.load(path).graph.initializer)
    ]
    weights = sum(payload_bytes(tuple(net[i].weight.shape), bits) for i in (0, 1))
    biases = 4 * 48
    assert sum(sizes) == weights + biases


def test_an_image_answers_whatever_its_company_where_ranges_are_calibrated():
    small, large = torch.full((1, 1, 64), 0.01), 100 * torch.ones(1, 1, 64)
    for bits, how, same in (
        (Bits(8, 8), Quantization(), True),
        (Bits(4, 8), Quantization(), True),
        (Bits(8, 8), ONE_BY_ONE, True),
        (Bits(8, 8), TOGETHER, False),
    ):
        module = quantized(network(), bits, how, images())
        with torch.no_grad():
            alone, beside = module(small), module(torch.cat([small, large]))[:1]
        assert torch.allclose(alone, beside) == same


@pytest.mark.parametrize("how", [Quantization(), ONE_BY_ONE])
@pytest.mark.parametrize("bits", [4, 8])
def test_zeros_stay_zeros(bits, how):
    zeros = torch.zeros(2, 64)
    plain = nn.Sequential(nn.Linear(64, 4, bias=False))
    module = quantized(plain, Bits(bits, 8), how, zeros)
    assert not module(zeros).any()
    assert not deployable(module)(zeros).any()


def test_a_module_used_twice_stays_one(tmp_path):
    layer = nn.Linear(64, 64)
    module = quantized(nn.Sequential(layer, nn.GELU(), layer), Bits(8, 8), Quantization(), images())
    assert module[0] is module[2]
    exported = deployable(module)
    assert exported[0] is exported[2]
    torch.testing.assert_close(exported(images()), module(images()), atol=5e-3, rtol=0)


def test_what_has_32_bits_is_exported_as_it_is():
    module = network()
    assert deployable(module) is module


def test_ranges_must_be_calibrated(tmp_path):
    module, _ = at_bits(network(), lambda _: Bits(8, 8), Quantization())
    with pytest.raises(ExportError, match="range of `0` must be calibrated before it is exported"):
        export_onnx(module, images(), tmp_path / "model.onnx")


def test_bits_without_a_kernel(tmp_path):
    module = quantized(network(), Bits(2, 8), Quantization(), images())
    with pytest.raises(ExportError, match="kernel for `0`, but ONNX Runtime has none for weights of 2 bits"):
        export_onnx(module, images(), tmp_path / "model.onnx")


@pytest.mark.parametrize("bits", [Bits(8, 8), Bits(4, 8)])
def test_layers_with_a_fast_path_of_their_own_round_their_inputs(bits, tmp_path):
    """PyTorch's encoder layer reads weights and calls no layer, where no gradients are taken."""
    torch.manual_seed(0)
    net = nn.Sequential(nn.TransformerEncoderLayer(64, 4, 64, dropout=0.0, batch_first=True)).eval()
    x = images()
    module = quantized(net, bits, Quantization(), x)
    with torch.no_grad():
        alone = module(x)
    torch.testing.assert_close(alone, module(x))
    export_onnx(module, x, tmp_path / "model.onnx")
    assert apart(tmp_path / "model.onnx", module, x) < 5e-3
    rounds = [m for m in module.modules() if isinstance(m, QuantizedLinear)]
    assert len(rounds) == 2
    plain = in_floats(module)
    with torch.no_grad():
        assert not torch.allclose(plain(x), alone, atol=1e-4)
