"""Analytic costs of a module: what a runtime has to do, counted without computing it."""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from nas.devices.shapes import answer
from nas.quantize import INTEGER, kernel_of, weight_bits

Floats = npt.NDArray[np.float64]

FEATURES: tuple[str, ...] = (
    "products",  # matrix products with weights
    "products_mmacs",
    "integer_products",  # of inputs of 8 bits with weights of 8
    "integer_products_mmacs",
    "integer_inputs_kelements",  # their inputs, which have to be rounded
    "block_products",  # of float inputs with weights of 4 bits in blocks
    "block_products_mmacs",
    "integer_block_products",  # of inputs of 8 bits with such weights
    "integer_block_products_mmacs",
    "batched_products",  # of activations with activations, as in attention
    "batched_products_mmacs",
    "batched_products_matrices",  # the single products inside: windows × heads
    "convolutions",
    "convolutions_mmacs",
    "transforms",  # Fourier transforms
    "transforms_mmacs",  # by formula
    "scans",  # recurrences along the positions
    "scans_mmacs",  # by formula
    "weight_kelements",  # weights of products and convolutions, which have to be read; 8 bits are a quarter
    "norms",
    "softmaxes",
    "elementwise",  # everything else that computes: sums, scalings, activations, means
    "copies",  # permuted, gathered, made contiguous
    "joins",  # put together from pieces: rolled, padded, concatenated
    "moved_kelements",  # outputs of the last five kinds
)
"""What `count` counts: kernels by kind, 10^6 multiply-accumulates, 10^3 elements. All additive: the
features of a network are the sums of those of its parts."""

_aten = torch.ops.aten
_BY_KIND: dict[str, tuple[Any, ...]] = {
    "products": (_aten.mm, _aten.addmm),
    "batched_products": (_aten.bmm, _aten.baddbmm),
    "convolutions": (_aten.convolution,),
    "norms": (
        _aten.native_layer_norm,
        _aten.native_batch_norm,
        _aten._native_batch_norm_legit_no_training,
        _aten.native_group_norm,
    ),
    "softmaxes": (_aten._softmax, _aten._safe_softmax, _aten._log_softmax),
    # A runtime that follows the graph, as ONNX Runtime does, permutes on the spot; PyTorch takes note
    # and copies later. Both ways the cost comes with the permutations.
    "copies": (
        _aten.permute,
        _aten.transpose,
        _aten.clone,
        _aten.copy_,
        _aten.index,
        _aten.index_select,
        _aten.gather,
        _aten.embedding,
        _aten.im2col,
        _aten.repeat,
    ),
    "transforms": (_aten._fft_r2c, _aten._fft_c2r, _aten._fft_c2c),
    "joins": (_aten.roll, _aten.cat, _aten.stack, _aten.constant_pad_nd),
}
_KIND = {kernel: kind for kind, kernels in _BY_KIND.items() for kernel in kernels}
# Another look at the same memory, and allocation: too cheap to count.
FREE = {
    _aten.view,
    _aten._unsafe_view,
    _aten.t,
    _aten.expand,
    _aten.unsqueeze,
    _aten.squeeze,
    _aten.slice,
    _aten.select,
    _aten.split,
    _aten.split_with_sizes,
    _aten.unbind,
    _aten.detach,
    _aten.alias,
    _aten.lift_fresh,
    _aten.empty,
}
_PRODUCTS = ("products", "batched_products", "convolutions")


def count(module: nn.Module, *example: Tensor) -> Floats:
    """Costs of one forward pass in evaluation mode, of the shape (features,), see `FEATURES`.

    The module is traced once on the meta device: shapes flow, numbers do not. What depends on
    weights alone (gathering a bias table) is not counted, since an exporter folds it.

    Linear layers that know their bits count by the kernel that an export runs for them; rounding their inputs
    is part of that kernel.

    Transforms count by the formula of the fast Fourier transform: ½ N log2 N butterflies of four
    multiply-accumulates for N complex numbers, half of that for real ones. A module that runs along the
    positions has a method `scan_macs(input)`, the formula of its recurrence.

    Args:
        module: on any device, left as it is.
        example: its inputs, on any device; their batch size is that of the costs.

    Raises:
        RuntimeError: torch's, where a module asks for a number that only real data would give.
    """
    module = copy.deepcopy(module).to("meta").eval()
    inputs = [x.to("meta") for x in example]
    with torch.no_grad(), _Counting(inputs) as counting:
        for inner in module.modules():
            if hasattr(inner, "scan_macs"):
                inner.register_forward_pre_hook(counting.scan)
            if kernel_of(inner):
                inner.register_forward_pre_hook(counting.enter)
                inner.register_forward_hook(counting.leave)
        module(*inputs)
    return np.array([counting.total[name] for name in FEATURES], dtype=np.float64)


def macs(features: Floats) -> Floats:
    """Millions of multiply-accumulates, (…,), of features (…, features)."""
    columns = [i for i, name in enumerate(FEATURES) if name.endswith("_mmacs")]
    total = np.zeros(features.shape[:-1])
    for column in columns:  # one after the other: a sum in parts would round by how many kinds there are
        total = total + features[..., column]
    return np.asarray(total)


class _Counting(TorchDispatchMode):
    """Adds up the kernels that run inside it and depend on `inputs`."""

    def __init__(self, inputs: list[Tensor]) -> None:
        super().__init__()
        self.total: defaultdict[str, float] = defaultdict(float)
        # Tensors are kept, so that no other comes to bear the id of one that is gone.
        self._live = {id(x): x for x in inputs}
        self._kernel: str | None = None  # that runs for the whole layer which is being traced

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        out = answer(func, args, kwargs)
        kernel, outputs = func.overloadpacket, _tensors(out)
        if any(id(x) in self._live for x in _tensors((args, kwargs))):
            self._live.update((id(x), x) for x in outputs)
            if kernel not in FREE and outputs:
                self._add(kernel, args, kwargs, outputs[0])
        return out

    def scan(self, module: Any, inputs: tuple[Any, ...]) -> None:
        """Adds the formula of a module that runs along the positions."""
        self.total["scans"] += 1
        self.total["scans_mmacs"] += module.scan_macs(*inputs) / 1e6

    def enter(self, layer: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        """Counts the kernel of a layer that knows its bits; what simulates it is not counted."""
        (x,) = inputs
        if id(x) not in self._live:
            return
        self._kernel = kernel_of(layer)
        assert isinstance(layer, nn.Linear)
        self.total[f"{self._kernel}_products"] += 1
        rows = x.numel() / layer.in_features
        self.total[f"{self._kernel}_products_mmacs"] += rows * layer.weight.numel() / 1e6
        self.total["weight_kelements"] += layer.weight.numel() * weight_bits(layer)["weight"] / 32e3
        if self._kernel == INTEGER:
            self.total["integer_inputs_kelements"] += x.numel() / 1e3

    def leave(self, *_: Any) -> None:
        self._kernel = None

    def _add(self, kernel: Any, args: tuple[Any, ...], kwargs: dict[str, Any], out: Tensor) -> None:
        if self._kernel:
            return
        kind = _KIND.get(kernel, "elementwise")
        self.total[kind] += 1
        if kind not in _PRODUCTS:
            self.total["moved_kelements"] += out.numel() / 1e3
        if kind == "transforms":
            self.total["transforms_mmacs"] += _transform_macs(args[0], args[1], out) / 1e6
        if kind not in _PRODUCTS:
            return
        flops = flop_registry[kernel](*args, **kwargs, out_val=out)
        self.total[f"{kind}_mmacs"] += flops / 2e6
        if kind == "batched_products":
            self.total["batched_products_matrices"] += out.shape[0]
        weights = (x for x in _tensors(args) if id(x) not in self._live)
        self.total["weight_kelements"] += sum(x.numel() for x in weights) / 1e3


def _transform_macs(x: Tensor, axes: list[int], out: Tensor) -> float:
    """Of a Fourier transform along `axes` of x; real on one side, it is half the work."""
    whole = max(x, out, key=lambda t: (not t.is_complex(), t.numel()))
    points = math.prod(whole.shape[axis] for axis in axes)
    work = whole.numel() * math.log2(max(2, points)) * 2
    return work if whole.is_complex() else work / 2


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]
