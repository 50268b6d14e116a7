"""Batch norms in front of products, folded into them.

A batch norm in evaluation mode is a factor and a summand per channel. Where only products with weights read
what it gives, these take both: (x · s + t) W = x (s W) + t W. Behind a convolution, runtimes fold it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from nas.layers.norms import ChannelBatchNorm


class Affine(nn.Module):
    """What a batch norm over the last axis does in evaluation mode."""

    def __init__(self, norm: ChannelBatchNorm) -> None:
        super().__init__()
        scale, shift = norm.as_affine()
        self.scale, self.shift = (nn.Parameter(t.detach().clone()) for t in (scale, shift))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale + self.shift


def with_affine_norms(module: nn.Module) -> nn.Module:
    """`module` itself, whose batch norms over the last axis have become affine, in place."""
    for parent in list(module.modules()):
        for name, child in parent._modules.items():
            if isinstance(child, ChannelBatchNorm):
                with torch.no_grad():
                    parent._modules[name] = Affine(child)
    return module


def fold_affines(graph: onnx.GraphProto, channels: Mapping[str, int]) -> int:
    """Folds factors and summands per channel into the float products of `graph` that alone read them, in
    place. Gives how many were folded.

    Args:
        channels: size of the last axis of what flows, by name, as far as it is known.
    """
    constants = {tensor.name: tensor for tensor in graph.initializer}
    outputs = {value.name for value in graph.output}
    folded = 0
    for multiply, add in list(_affines(graph, constants)):
        (x, scale), (_, shift) = _split(multiply, constants), _split(add, constants)
        if add.output[0] in outputs or channels.get(x) != scale.dims[0]:  # one for all
            continue
        reading, readers = _readers(graph, add.output[0])
        products = [_weights_of(node, of, graph, constants) for node, of in readers]
        if not products or any(weights is None for weights in products):
            continue
        if any(not _fits(scale, shift, weights, constants) for weights in products):
            continue
        for (node, _), found in zip(readers, products, strict=True):
            assert found is not None
            factor, summand = numpy_helper.to_array(scale), numpy_helper.to_array(shift)
            _take(node, factor, summand, found, graph, constants)
        for node in reading:
            node.input[:] = [x if name == add.output[0] else name for name in node.input]
        graph.node.remove(multiply)
        graph.node.remove(add)
        folded += 1
    used = {name for node in graph.node for name in node.input} | outputs
    for tensor in [t for t in graph.initializer if t.name not in used]:
        graph.initializer.remove(tensor)
    return folded


Constants = dict[str, onnx.TensorProto]


def _affines(graph: onnx.GraphProto, constants: Constants) -> Iterator[tuple[Any, Any]]:
    """Pairs of a product and a sum with constants per channel, the one read by the other alone."""
    for multiply in graph.node:
        if multiply.op_type != "Mul" or not _is_per_channel(multiply, constants):
            continue
        readers = [node for node in graph.node if multiply.output[0] in node.input]
        if len(readers) == 1 and readers[0].op_type == "Add" and _is_per_channel(readers[0], constants):
            yield multiply, readers[0]


def _readers(graph: onnx.GraphProto, name: str) -> tuple[list[Any], list[tuple[Any, str]]]:
    """The nodes that read `name`; and those, with what they read, that do something with its numbers. (A
    product after a reshape has as many channels: these are still the last axis.)"""
    direct = [node for node in graph.node if name in node.input]
    final: list[tuple[Any, str]] = []
    for node in direct:
        if node.op_type == "Reshape" and node.input[0] == name:
            final += [
                (n, node.output[0]) for n in graph.node if node.output[0] in n.input and n.op_type != "Shape"
            ]
        elif node.op_type != "Shape":
            final.append((node, name))
    return direct, final


def _is_per_channel(node: Any, constants: Constants) -> bool:
    known = [constants[name] for name in node.input if name in constants]
    return len(node.input) == 2 and len(known) == 1 and len(known[0].dims) == 1


def _split(node: Any, constants: Constants) -> tuple[str, onnx.TensorProto]:
    """What flows into a node, and its constant."""
    (constant,) = [name for name in node.input if name in constants]
    (x,) = [name for name in node.input if name not in constants]
    return x, constants[constant]


def _weights_of(node: Any, x: str, graph: onnx.GraphProto, constants: Constants) -> tuple[str, bool] | None:
    """The float weights (in, out) that `node` multiplies x by, or, with True, (out, in) that are transposed
    for it; None where it does something else, or others use the weights, too."""
    if node.op_type not in ("MatMul", "Gemm") or node.input[0] != x:
        return None
    options = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
    if options.get("transA") or options.get("alpha", 1) != 1 or options.get("beta", 1) != 1:
        return None
    name, turned = node.input[1], bool(options.get("transB"))
    if node.op_type == "Gemm":
        if name not in constants or (len(node.input) == 3 and node.input[2] not in constants):
            return None
    elif name not in constants:
        maker = next((n for n in graph.node if name in n.output), None)
        if maker is None or maker.op_type != "Transpose" or maker.input[0] not in constants:
            return None
        name, turned = maker.input[0], True
    read = {name, node.input[1]}  # what is transposed may be read by others, too
    uses = max(sum(list(other.input).count(n) for other in graph.node) for n in read)
    weights = constants[name]
    if uses != 1 or len(weights.dims) != 2 or weights.data_type != onnx.TensorProto.FLOAT:
        return None
    return name, turned


def _fits(
    scale: onnx.TensorProto, shift: onnx.TensorProto, weights: tuple[str, bool] | None, constants: Constants
) -> bool:
    """Whether there is a factor and a summand for each input of the weights."""
    assert weights is not None
    name, turned = weights
    inputs = constants[name].dims[1 if turned else 0]
    return list(scale.dims) == list(shift.dims) == [inputs]


def _take(
    node: Any,
    scale: np.ndarray,
    shift: np.ndarray,
    weights: tuple[str, bool],
    graph: onnx.GraphProto,
    constants: Constants,
) -> None:
    """Makes `node` multiply by the scaled weights, and adds what the shift makes of them."""
    name, turned = weights
    stored = numpy_helper.to_array(constants[name])
    matrix = (stored.T if turned else stored).astype(np.float64)
    scaled = scale[:, None] * matrix
    new = numpy_helper.from_array((scaled.T if turned else scaled).astype(np.float32), name)
    constants[name].CopyFrom(new)
    added = shift @ matrix
    if node.op_type == "Gemm" and len(node.input) == 3:
        added = added + numpy_helper.to_array(constants[node.input[2]])
    tensor = numpy_helper.from_array(added.astype(np.float32), f"{name}.shift")
    graph.initializer.append(tensor)
    constants[tensor.name] = tensor
    if node.op_type == "Gemm":
        node.input[:] = [*node.input[:2], tensor.name]
        return
    product, result = f"{node.output[0]}.product", node.output[0]
    at = list(graph.node).index(node)
    node.output[0] = product
    graph.node.insert(at + 1, onnx.helper.make_node("Add", [product, tensor.name], [result]))
