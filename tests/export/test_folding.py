"""Batch norms in front of products are part of them in an exported file."""

from __future__ import annotations

import onnx
import pytest
import torch
from export.nets import apart
from torch import nn

from nas.export.folding import fold_affines
from nas.export.onnx import export_onnx
from nas.layers import BatchNorm, Bits, Block, Global, Mlp, PatchStem, RepBN
from nas.layers.mixers.depthwise import DepthwiseConv
from nas.quantize import Quantization, at_bits
from nas.space import Space
from nas.supernet import Supernet
from search_spaces.hierarchical import Head, HierarchicalTransformer, Stage, build


def operators(path) -> list[str]:
    return [node.op_type for node in onnx.load(path).graph.node]


def lively(module: nn.Module) -> nn.Module:
    """With statistics and factors that are not 0 and 1."""
    torch.manual_seed(0)
    with torch.no_grad():
        for inner in module.modules():
            if isinstance(inner, nn.BatchNorm1d):
                for tensor in (inner.weight, inner.running_var):
                    tensor.uniform_(0.5, 2)
                for tensor in (inner.bias, inner.running_mean):
                    tensor.uniform_(-1, 1)
    return module.eval()


def network(norm, mixer=None) -> nn.Module:
    block = Block(mixer or Global(2), Mlp(2), norm)
    stage = Stage(16, (block, block))
    return lively(
        build(HierarchicalTransformer(PatchStem(2), (stage,), 5, head=Head(norm=norm, norm_first=False)))
    )


class Factors(nn.Module):
    """Makes of one number as many as there are factors, before anything else."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.rand(32)), nn.Parameter(torch.rand(32))
        self.layer = nn.Linear(32, 5)

    def forward(self, x):
        return self.layer(x * self.scale + self.shift)


@pytest.mark.parametrize(("width", "left"), [(1, True), (32, False)])
def test_what_comes_in_is_as_wide_as_what_it_is_multiplied_by(width, left, tmp_path):
    module, x = Factors().eval(), torch.rand(2, width)
    export_onnx(module, x, tmp_path / "model.onnx")
    assert ("Mul" in operators(tmp_path / "model.onnx")) == left
    assert apart(tmp_path / "model.onnx", module, x) < 1e-5


def test_what_is_of_unknown_width_stays(tmp_path):
    torch.onnx.export(Factors().eval(), (torch.rand(2, 32),), tmp_path / "model.onnx", dynamo=False)
    graph = onnx.load(tmp_path / "model.onnx").graph
    assert fold_affines(graph, {}) == 0
    assert fold_affines(graph, {graph.input[0].name: 32}) == 1


@pytest.mark.parametrize("norm", [BatchNorm(), RepBN()])
def test_a_network_has_no_norm_left(norm, tmp_path):
    module, x = network(norm), torch.rand(2, 1, 8, 8)
    export_onnx(module, x, tmp_path / "model.onnx")
    assert "BatchNormalization" not in operators(tmp_path / "model.onnx")
    assert apart(tmp_path / "model.onnx", module, x) < 1e-5
    sums = [n for n in onnx.load(tmp_path / "model.onnx").graph.node if n.op_type == "Mul"]
    plain = network(norm)
    for parent in list(plain.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, nn.BatchNorm1d):
                parent._modules[name] = nn.Identity()
    export_onnx(plain, x, tmp_path / "plain.onnx")
    assert len(sums) == operators(tmp_path / "plain.onnx").count("Mul")


def test_a_norm_that_others_read_too_stays(tmp_path):
    module, x = network(RepBN(), DepthwiseConv(3)), torch.rand(2, 1, 8, 8)
    export_onnx(module, x, tmp_path / "model.onnx")
    assert apart(tmp_path / "model.onnx", module, x) < 1e-5


def test_whole_numbers_are_left_as_they_are(tmp_path):
    """A factor by input would need a scale by input."""
    block = Block(Global(2, bits=Bits(8, 8)), Mlp(2, bits=Bits(8)), RepBN())
    chosen = HierarchicalTransformer(PatchStem(2), (Stage(16, (block,)),), 5)
    supernet, x = Supernet(build, Space(chosen)), torch.rand(4, 1, 8, 8)
    module = supernet.extract(chosen, buffers=supernet.calibrate(chosen, [x]))
    export_onnx(module, x, tmp_path / "model.onnx")
    assert apart(tmp_path / "model.onnx", module, x) < 5e-3


class StarReLU(nn.Module):
    """One factor and one summand for all channels (Yu et al., 2022)."""

    def __init__(self) -> None:
        super().__init__()
        self.scale, self.shift = nn.Parameter(torch.tensor([0.9])), nn.Parameter(torch.tensor([-0.4]))

    def forward(self, x):
        return x.relu() ** 2 * self.scale + self.shift


class Regrouped(nn.Module):
    """A factor per channel, of which the product then sees half."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.h = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear((x * self.g + self.h).reshape(-1, 2, 4)).sum(1)


class Spread(nn.Module):
    """One number for all channels, of which the factors make several."""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.h = nn.Parameter(torch.rand(4)), nn.Parameter(torch.rand(4))
        self.linear = nn.Linear(4, 4)

    def forward(self, x):
        return self.linear(x[..., None] * self.g + self.h).sum(1)


class Shared(nn.Module):
    """Two products with one transposed weight, the first of which alone has a factor. (At few bits, constants
    are not folded, and one node transposes for both.)"""

    def __init__(self) -> None:
        super().__init__()
        self.g, self.h = nn.Parameter(torch.rand(8)), nn.Parameter(torch.rand(8))
        self.first, self.layer = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.first = at_bits(self.first, lambda _: Bits(8), Quantization())[0]

    def forward(self, x):
        x, weight = self.first(x), self.layer.weight.t()
        return (x * self.g + self.h) @ weight + x.relu() @ weight


@pytest.mark.parametrize(
    "module",
    [nn.Sequential(nn.Linear(8, 16), StarReLU(), nn.Linear(16, 4)), Regrouped(), Spread(), Shared()],
    ids=["one", "half", "spread", "shared"],
)
def test_factors_of_another_size_stay(module, tmp_path):
    x = torch.rand(3, 8)
    export_onnx(module, x, tmp_path / "model.onnx")
    assert apart(tmp_path / "model.onnx", module, x) < (1e-2 if isinstance(module, Shared) else 1e-5)
