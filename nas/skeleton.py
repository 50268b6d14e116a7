"""Skeletons: the module of an architecture without its weights, and what it asks of a bank of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import _SpectralNorm
from torch.nn.utils.spectral_norm import SpectralNorm

from nas.errors import LayoutError
from nas.layers.choice import Bits
from nas.layout import Layout
from nas.quantize import AtBits, step_name, weight_of_step

Build = Callable[[Any], nn.Module]
LayoutsOf = Callable[[Any], Mapping[str, Layout]]


@dataclass(frozen=True)
class Skeleton:
    """A module on the meta device, and what it asks of the bank."""

    module: nn.Module
    parameters: dict[str, tuple[tuple[int, ...], Layout]]  # and steps of learned scales, which no module has
    bits: dict[str, Bits]  # of parameters
    buffers: dict[str, Tensor]
    unknown_layouts: frozenset[str]  # names of `layouts=` that this module does not have
    frozen: frozenset[str]  # names of parameters that its builder wants no gradients for

    def fits(self, stored: Mapping[str, Layout]) -> bool:
        """Whether all that it asks for is there, as large as it asks for."""
        return all(
            name in stored
            and all(want <= have for want, have in zip(layout.shape, stored[name].shape, strict=False))
            for name, (_, layout) in self.parameters.items()
        )


CACHED = 64  # skeletons, of all supernets: each may hold buffers of its own


@lru_cache(maxsize=CACHED)
def skeleton_of(build: AtBits, layouts_of: LayoutsOf | None, architecture: Any) -> Skeleton:
    # Whether it is built or in the cache, others draw the same; and who runs it next may want gradients.
    with torch.random.fork_rng(devices=[]), torch.inference_mode(False):
        return _skeleton(build, layouts_of, architecture)


def _skeleton(build: AtBits, layouts_of: LayoutsOf | None, architecture: Any) -> Skeleton:
    with torch.device("meta"), _silent_initialisation():
        module = build.build(architecture)
    if not isinstance(module, nn.Module):
        raise LayoutError(f"`build` must return a module: got {type(module).__name__} for {architecture!r}.")
    module, bits = build.quantized(module, architecture)
    given = _given(layouts_of, architecture)
    declared: dict[str, Layout] = {}
    shapes: dict[str, tuple[int, ...]] = {}
    first: dict[int, str] = {}
    frozen = set[str]()
    for prefix, inner in module.named_modules():  # once: walks are a good part of the time of a step
        before = f"{prefix}." if prefix else ""
        _require_no_spectral_norm(prefix, inner)
        if hasattr(inner, "layouts"):
            declared |= {f"{before}{name}": layout for name, layout in inner.layouts().items()}
        for name, parameter in inner._parameters.items():
            if parameter is None:
                continue
            alias = f"{before}{name}"
            _require_floats(alias, parameter)
            name = first.setdefault(id(parameter), alias)  # tied ones go by their first name
            shapes[name] = _shape(name, parameter)
            if not parameter.requires_grad:
                frozen.add(name)
            if alias in given:
                declared[name] = given.pop(alias)
    for name in declared.keys() & shapes:
        if math.prod(shapes[name]) != math.prod(declared[name].shape):
            raise LayoutError(
                f"The layout of `{name}` must hold as many numbers as it: it has shape {shapes[name]}, the "
                f"layout says {declared[name].shape}."
            )
    parameters = {name: (shape, declared.get(name, Layout(shape))) for name, shape in shapes.items()}
    if build.quantization.learned:
        for name, (shape, layout) in list(parameters.items()):
            if (few := bits[name].weight) in (2, 4, 8):
                parameters[step_name(name, few)] = shape[:1], _rows(layout, shape[0])
    buffers = _buffers(module, build, architecture)
    return Skeleton(module, parameters, bits, buffers, frozenset(given), frozenset(frozen))


def _rows(layout: Layout, out: int) -> Layout:
    """The axes of a weight's layout that its output channels are made of."""
    count = next((n for n in range(len(layout.shape) + 1) if math.prod(layout.shape[:n]) == out), None)
    if count is None:
        return Layout((out,))
    return Layout(layout.shape[:count], tuple(axis for axis in layout.centred if axis < count))


def _given(layouts_of: LayoutsOf | None, architecture: Any) -> dict[str, Layout]:
    given = layouts_of(architecture) if layouts_of else {}
    if not isinstance(given, Mapping) or not all(isinstance(v, Layout) for v in given.values()):
        raise LayoutError(f"`layouts` must return a Layout by parameter name: got {given!r}.")
    return dict(given)


def _shape(name: str, parameter: nn.Parameter) -> tuple[int, ...]:
    if isinstance(parameter, nn.parameter.UninitializedParameter):
        raise LayoutError(
            f"A builder must give its parameters shapes, but `{name}` is of a lazy module, which has none "
            f"before its first input. Use the module that is not lazy."
        )
    return tuple(parameter.shape)


def _require_floats(name: str, parameter: nn.Parameter) -> None:
    if not parameter.is_floating_point():
        raise LayoutError(
            f"A builder's parameters must be of floats, to be trained and shared: `{name}` is of "
            f"{parameter.dtype}. Make it a buffer."
        )


def _require_no_spectral_norm(name: str, module: nn.Module) -> None:
    """Raises LayoutError where buffers are about weights: those of a build are not those of the bank."""
    hooks = module._forward_pre_hooks.values()
    if isinstance(module, _SpectralNorm) or any(isinstance(hook, SpectralNorm) for hook in hooks):
        raise LayoutError(
            f"A module must follow from its parameters, but `{name.partition('.parametrizations')[0]}` has a "
            f"spectral norm, whose vectors belong to one set of weights and would be wrong for slices of "
            f"others. Build it without; `weight_norm` is fine."
        )


def _buffers(module: nn.Module, build: Build, architecture: Any) -> dict[str, Tensor]:
    """Values such as position ids come from a real build, without weights where these do not make them. What
    is drawn at random, such as projections, is the same at each build of an architecture."""
    buffers = dict(module.named_buffers())
    if any(b.is_meta for b in buffers.values()):
        torch.default_generator.manual_seed(0)  # the caller has forked it
        with _weightless():
            buffers = dict(build(architecture).named_buffers())
    if any(b.is_meta for b in buffers.values()):
        torch.default_generator.manual_seed(0)
        buffers = dict(build(architecture).named_buffers())
    return buffers


def by_parameter(skeleton: Skeleton, state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of a state dict under the names of the bank: one per tied weight, no buffers."""
    first = {id(p): name for name, p in skeleton.module.named_parameters()}
    names = {n: first[id(p)] for n, p in skeleton.module.named_parameters(remove_duplicate=False)}
    steps = {name for name in skeleton.parameters if weight_of_step(name)}
    names |= {name: name for name in steps}
    buffers = {n for n, _ in skeleton.module.named_buffers(remove_duplicate=False)}
    found: dict[str, Tensor] = {}
    for alias in (n for n in names if n in state):
        if not torch.equal(found.setdefault(names[alias], state[alias]), state[alias]):
            raise LayoutError(
                f"`{alias}` is tied to `{names[alias]}` and must be equal to it, but the weights given "
                f"differ. Leave one of them out, or build an architecture that does not tie them."
            )
    problems = {
        "missing": sorted(skeleton.parameters.keys() - found.keys() - steps),
        "unknown": sorted(state.keys() - names.keys() - buffers),
        "of another shape": [
            f"{n} {tuple(value.shape)} for {skeleton.parameters[n][0]}"
            for n, value in found.items()
            if tuple(value.shape) != skeleton.parameters[n][0]
        ],
    }
    if any(problems.values()):
        facts = "; ".join(f"{len(n)} {what}: {', '.join(n[:3])}" for what, n in problems.items() if n)
        raise LayoutError(
            f"Weights must have the names and shapes of the architecture's own module: {facts}. Rename them, "
            f"or name the architecture that they belong to."
        )
    return found


@contextmanager
def _silent_initialisation() -> Iterator[None]:
    """Skips the functions of `torch.nn.init`: most of the time of a build goes into them."""
    names = [n for n in vars(nn.init) if n.endswith("_") and not n.startswith("_")]
    kept = {n: getattr(nn.init, n) for n in names}
    try:
        for n in names:
            setattr(nn.init, n, lambda tensor, *_, **__: tensor)
        yield
    finally:
        for n, function in kept.items():
            setattr(nn.init, n, function)


@contextmanager
def _weightless() -> Iterator[None]:
    """Builds modules whose parameters hold no data while their buffers do.

    An embedding of 30,000 words would else be drawn for the sake of a few position ids.
    """
    register = nn.Module.register_parameter

    def without_data(self: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None and not parameter.is_meta:
            parameter = nn.Parameter(parameter.detach().to("meta"), parameter.requires_grad)
        register(self, name, parameter)

    nn.Module.register_parameter = without_data
    try:
        with _silent_initialisation():
            yield
    finally:
        nn.Module.register_parameter = register
