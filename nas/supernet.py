"""`Supernet`: one bank of weights that serves every architecture of a space.

There are no elastic layers. A plain builder makes a plain module without weights; a subnet's forward
runs that skeleton with slices of the bank in place (as `torch.func.functional_call` does), and extraction
is the plain module with the slices copied in. Parameters of the same name share weights: that is all of
the policy.
"""

from __future__ import annotations

import gc
import math
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from difflib import get_close_matches
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn.utils.stateless import _reparametrize_module

from nas.calibration import gathering, gathers
from nas.errors import LayoutError
from nas.layers.choice import Bits
from nas.layout import Layout, cut, slices, union
from nas.quantize import (
    AtBits,
    BitsOf,
    Quantization,
    bits_by_path,
    fake_quantize,
    note_scales,
    payload_bytes,
    scales_of,
    step_name,
    weight_of_step,
)
from nas.skeleton import Build, LayoutsOf, Skeleton, by_parameter, skeleton_of
from nas.space import Space

DRAWS = 128  # architectures in a row that ask for nothing new, after which the bank is taken for whole;
MORE_DRAWS = 512  # so many where one ever did: then there are tensors for which several choices must meet

WEIGHT = re.compile(r".*weight|(.*\.)?weight_[ih][hr]\w*")  # the second are recurrent layers'

Box = tuple[slice, ...]


class Supernet:
    """The weights of all architectures of `space`, as `build` makes them.

    Args:
        build: any function from an architecture to a module; it needs no knowledge of this package.
        space: what may be asked for; the bank is as large as the largest of its cover.
        layouts: logical shapes of parameters whose storage merges axes, for builders whose modules do
            not declare them (`layouts()` of a module): `layouts(architecture)[parameter name]`.
        bits: those of a parameter, `bits(architecture, parameter name)`, a number or `Bits`; default: the
            gene `….bits` on its path.
        quantization: how activations of 8 bits are rounded.
        seed: of the initial weights.

    Example:
        >>> supernet = Supernet(build, space)
        >>> logits = supernet(space.sample(rng), images)
        >>> model = supernet.extract(architecture)  # an ordinary module
    """

    def __init__(
        self,
        build: Build,
        space: Space,
        *,
        layouts: LayoutsOf | None = None,
        bits: BitsOf = bits_by_path,
        quantization: Quantization = Quantization(),
        seed: int = 0,
    ) -> None:
        self.build, self.space = AtBits(build, bits, quantization), space
        self._layouts = layouts
        with _collection_off():
            cover, self.stored = self._covered(seed=0)
            self.cover = tuple(cover)
            self._require_known_layouts()
            self._matrices = _matrices(cover.values())
            self.frozen = frozenset(name for skeleton in cover.values() for name in skeleton.frozen)
            self.bank = self._initial(cover, seed)

    # --- running subnets -----------------------------------------------------------------------

    def __call__(
        self,
        architecture: Any,
        *inputs: Any,
        train: bool = False,
        quantized: bool = True,
        buffers: Mapping[str, Tensor] | None = None,
        slices: Mapping[str, Tensor] | None = None,
        **named_inputs: Any,
    ) -> Any:
        """What the subnet answers. `train` sets the mode of its modules for this call alone.

        `buffers` (from `calibrate`) replace those that the builder starts with. Gradients reach the bank, or
        `slices` of it.
        """
        with self.in_place(
            architecture, train=train, quantized=quantized, buffers=buffers, slices=slices
        ) as module:
            return module(*inputs, **named_inputs)

    @contextmanager
    def in_place(
        self,
        architecture: Any,
        *,
        train: bool = False,
        quantized: bool = True,
        buffers: Mapping[str, Tensor] | None = None,
        slices: Mapping[str, Tensor] | None = None,
    ) -> Iterator[nn.Module]:
        """The module of a subnet, which has its weights while this lasts; as of a call.

        A backward pass belongs inside where it may run parts of the module again (activation checkpointing,
        Chen et al., 2016).
        """
        skeleton = self._skeleton(architecture)
        if skeleton.module.training != train:
            skeleton.module.train(train)
        kept = self._buffers(skeleton, buffers)
        if train:  # norms write their running statistics: into copies
            kept = {name: buffer.clone() for name, buffer in kept.items()}
        values = self.weights(architecture, quantized=quantized, slices=slices) | kept
        with _reparametrize_module(skeleton.module, values, tie_weights=True):  # as functional_call does
            yield skeleton.module

    def weights(
        self, architecture: Any, *, quantized: bool = True, slices: Mapping[str, Tensor] | None = None
    ) -> dict[str, Tensor]:
        """Slices of the bank for a subnet, cut, then rounded to its bits; gradients reach the bank, or
        `slices`. Those that are not rounded have steps of learned scales beside them.

        Where none are taken they require them all the same, as the parameters of a module do: on that depends
        how PyTorch multiplies inputs that do not lie in one piece, and so the last bit.
        """
        if torch.is_grad_enabled():
            return self._weights(architecture, quantized, slices)
        with (
            torch.inference_mode(False),
            torch.no_grad(),
        ):  # what is made in inference mode cannot require any
            weights = self._weights(architecture, quantized, slices)
            return {n: w if w.is_inference() else w.detach().requires_grad_() for n, w in weights.items()}

    def _weights(
        self, architecture: Any, quantized: bool, slices: Mapping[str, Tensor] | None
    ) -> dict[str, Tensor]:
        latent = {}
        skeleton = self._skeleton(architecture)
        for name, (shape, layout) in skeleton.parameters.items():
            if slices is not None:
                weight = slices[name].reshape(shape)
            else:
                weight = cut(name, self._banked(name), self.stored[name], layout, shape)
            if weight.ndim and weight.stride(-1) != 1:  # products would take another way, and round otherwise
                weight = weight.contiguous()
            latent[name] = weight
        if not quantized:
            return latent
        nested = self.build.quantization.nested
        return {
            name: fake_quantize(latent[name], of.weight, nested=nested, step=_step(latent, name, of))
            for name, of in skeleton.bits.items()
        }

    def slices(self, boxes: Mapping[str, Box]) -> dict[str, Tensor]:
        """Views of the bank at `boxes(architecture)`, in logical shapes, which gather gradients of their own.

        Their gradients are as large as the subnet, those of the bank always as large as the bank. What a
        builder has frozen (``requires_grad=False``) gathers none.
        """
        return {
            name: self.bank[name].detach()[box].requires_grad_(name not in self.frozen)
            for name, box in boxes.items()
        }

    def skeleton(self, architecture: Any) -> nn.Module:
        """The module without weights that the forward of a subnet runs, for hooks. It is shared: leave it as
        it is."""
        return self._skeleton(architecture).module

    def boxes(self, architecture: Any) -> dict[str, Box]:
        """Where the slices of a subnet lie in the bank, along the logical axes of each parameter."""
        found = {}
        for name, (_, layout) in self._skeleton(architecture).parameters.items():
            self._banked(name)
            found[name] = slices(name, self.stored[name], layout)
        return found

    def holds(self, architecture: Any) -> bool:
        """Whether the bank has all weights of a subnet. An architecture of the space that asks for what
        hardly any other does may be missing: the bank was made from a sample of them (`cover`)."""
        return self._skeleton(architecture).fits(self.stored)

    def _banked(self, name: str) -> nn.Parameter:
        if name not in self.bank:
            raise LayoutError(
                f"`{name}` must be in the bank: got an architecture that is not of this space, or one so "
                f"rare that the bank was made without it. Build the supernet from a space that contains it."
            )
        return self.bank[name]

    def extract(
        self, architecture: Any, *, quantized: bool = True, buffers: Mapping[str, Tensor] | None = None
    ) -> nn.Module:
        """A plain module in evaluation mode, on the CPU, that answers as the subnet does.

        `quantized=False` gives the latent weights, from which to train on.
        """
        module = self.build(architecture).eval()
        with torch.no_grad():
            weights = self.weights(architecture, quantized=quantized)
            if quantized:
                note_scales(module, self._scales(architecture))
            for name, parameter in module.named_parameters():
                parameter.copy_(weights[name])
            kept = self._skeleton(architecture).buffers | dict(buffers or {})
            for name, buffer in module.named_buffers():
                if name in kept:
                    buffer.copy_(kept[name])
        return module

    def _scales(self, architecture: Any) -> dict[str, Tensor]:
        """What the whole numbers of a subnet's weights are multiplied by, by name."""
        latent, nested = self.weights(architecture, quantized=False), self.build.quantization.nested
        return {
            name: scales_of(latent[name], of.weight, nested=nested, step=_step(latent, name, of))
            for name, of in self._skeleton(architecture).bits.items()
            if of.weight in (2, 4, 8)
        }

    def calibrate(self, architecture: Any, batches: Iterable[Any]) -> dict[str, Tensor]:
        """Batch-norm statistics and ranges of activations of a subnet over `batches` of inputs (a tensor, or
        a tuple of them), for `buffers=`.

        Statistics gathered for other slices are wrong for this one (Yu & Huang, 2019, §3.1). Every batch
        counts the same. Returns nothing for a subnet that has neither.
        """
        skeleton = self._skeleton(architecture)
        if not gathers(skeleton.module):
            return {}
        buffers = {k: v.clone() for k, v in self._buffers(skeleton, None).items()}
        values = self.weights(architecture) | buffers
        with gathering(skeleton.module), torch.no_grad():
            for batch in batches:
                inputs = batch if isinstance(batch, tuple) else (batch,)
                torch.func.functional_call(skeleton.module, values, inputs)
        return buffers

    # --- figures that need no data -----------------------------------------------------------------

    def parameters_of(self, architecture: Any) -> int:
        """Number of parameters of a subnet."""
        parameters = self._skeleton(architecture).parameters.items()
        return sum(math.prod(shape) for name, (shape, _) in parameters if not weight_of_step(name))

    def size_bytes(self, architecture: Any) -> int:
        """Payload of a subnet's weights packed at its bits, scales included, in bytes."""
        skeleton = self._skeleton(architecture)
        nested = self.build.quantization.nested
        return sum(
            payload_bytes(shape, skeleton.bits[name].weight, nested=nested)
            for name, (shape, _) in skeleton.parameters.items()
            if not weight_of_step(name)
        )

    def layouts(self, architecture: Any) -> dict[str, Layout]:
        """Logical shape of each parameter of a subnet."""
        return {name: layout for name, (_, layout) in self._skeleton(architecture).parameters.items()}

    def parameter_bits(self, architecture: Any) -> dict[str, Bits]:
        """Bits of each parameter of a subnet, and of the inputs of its layer."""
        return dict(self._skeleton(architecture).bits)

    # --- the bank as a value ---------------------------------------------------------------------

    def parameters(self) -> list[nn.Parameter]:
        return list(self.bank.values())

    def matrices(self) -> frozenset[str]:
        """Names of the parameters with two axes or more that are weights by their names, such as `q.weight`,
        `in_proj_weight` and `weight_ih_l0`: they decay."""
        return self._matrices

    def state(self) -> dict[str, Tensor]:
        """The bank, detached, by parameter name, in logical shapes."""
        return {name: parameter.detach() for name, parameter in self.bank.items()}

    def with_state(self, state: Mapping[str, Tensor]) -> Supernet:
        """This supernet over another bank (which is not copied)."""
        wrong = {n for n in self.stored if n not in state or state[n].shape != self.bank[n].shape}
        if wrong or len(state) != len(self.bank):
            raise LayoutError(
                f"A bank must hold {len(self.stored)} tensors of this space's shapes: {sorted(wrong)[:3]} "
                f"differ or are missing among {len(state)}. It belongs to another space or builder."
            )
        other = object.__new__(Supernet)
        other.__dict__.update(self.__dict__)
        other.bank = {n: nn.Parameter(state[n], requires_grad=False) for n in self.stored}
        return other

    def with_weights(self, weights: nn.Module | Mapping[str, Tensor], architecture: Any) -> Supernet:
        """This supernet with a plain module of `architecture` written into its bank: `extract` reversed.

        What `architecture` does not use keeps its values. The bank is a new one, ready to be trained.

        Args:
            weights: the module, or its state dict. A tied weight may stand there under any of its names.
                Buffers have no place in a bank: pass statistics as `buffers=` when you run a subnet.

        Raises:
            LayoutError: names that are missing or unknown, shapes that differ, or tied weights that do.
        """
        skeleton = self._skeleton(architecture)
        self.weights(architecture, quantized=False)  # raises where it does not fit the bank
        state = weights.state_dict() if isinstance(weights, nn.Module) else weights
        bank = {name: tensor.clone() for name, tensor in self.state().items()}
        for name, value in by_parameter(skeleton, state).items():
            layout = skeleton.parameters[name][1]
            bank[name][slices(name, self.stored[name], layout)] = (
                value.detach().reshape(layout.shape).to(bank[name])
            )
        other = self.with_state(bank)
        for name, parameter in other.bank.items():
            parameter.requires_grad_(name not in self.frozen)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """With the bank as NumPy arrays: Ray maps those into its workers without a copy."""
        return self.__dict__ | {"bank": {n: p.cpu().numpy() for n, p in self.state().items()}}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.__dict__.update(state)
        with warnings.catch_warnings():  # mapped arrays are read-only, and so is what runs on them
            warnings.filterwarnings("ignore", message="The given NumPy array is not writable")
            tensors = {n: torch.from_numpy(a) for n, a in state["bank"].items()}
        self.bank = {n: nn.Parameter(t, requires_grad=False) for n, t in tensors.items()}

    @property
    def device(self) -> torch.device:
        """Where the bank is, and inputs must be."""
        return next(iter(self.bank.values())).device

    def to(self, device: torch.device | str) -> Supernet:
        """Moves the bank in place."""
        for parameter in self.bank.values():
            parameter.data = parameter.data.to(device)
        return self

    # --- inside ----------------------------------------------------------------------------------

    def _covered(self, seed: int) -> tuple[dict[Any, Skeleton], dict[str, Layout]]:
        """Architectures that together ask for all that any asks for, and the shapes that hold it.

        Those in which one choice at a time leaves its top; and, since a tensor may need two choices to be
        elsewhere, others drawn at random until `DRAWS` (or `MORE_DRAWS`) in a row ask for nothing new.
        """
        cover = {a: self._skeleton(a) for a in self.space.cover()}  # may be more than the cache holds
        stored = _stored(cover.values())
        rng, quiet, draws = np.random.default_rng(seed), 0, DRAWS
        while quiet < min(draws, self.space.size - 1):
            architecture = self.space.sample(rng)
            skeleton = self._skeleton(architecture)
            quiet += 1
            if not skeleton.fits(stored):
                cover[architecture], quiet, draws = skeleton, 0, MORE_DRAWS
                stored = _stored([skeleton], stored)
        return cover, stored

    def _require_known_layouts(self) -> None:
        """A layout under a misspelled name would leave its weight to be cut without one."""
        if self._layouts is None:
            return
        unknown = {name for a in self.cover for name in self._skeleton(a).unknown_layouts}
        unknown = {name for name in unknown if name not in self.stored}
        if unknown:
            name = min(unknown)
            near = get_close_matches(name, self.stored, 1)
            raise LayoutError(
                f"`layouts` must name parameters of the modules: `{name}` is in none of them."
                + (f" Is it `{near[0]}`?" if near else "")
            )

    def _skeleton(self, architecture: Any) -> Skeleton:
        return skeleton_of(self.build, self._layouts, architecture)

    def _buffers(self, skeleton: Skeleton, given: Mapping[str, Tensor] | None) -> dict[str, Tensor]:
        if not skeleton.buffers:
            return {}
        return {n: (given or {}).get(n, b).to(self.device) for n, b in skeleton.buffers.items()}

    def _initial(self, cover: Mapping[Any, Skeleton], seed: int) -> dict[str, nn.Parameter]:
        """The builder's own initialisation, from the architecture that holds most of each parameter."""
        source: dict[str, tuple[int, Any]] = {}
        for architecture, skeleton in cover.items():
            for name, (shape, _) in skeleton.parameters.items():
                if math.prod(shape) > source.get(name, (-1, None))[0]:
                    source[name] = math.prod(shape), architecture
        bank: dict[str, nn.Parameter] = {}
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            torch.default_generator.manual_seed(seed)
            for chosen in dict.fromkeys(architecture for _, architecture in source.values()):
                layouts = cover[chosen].parameters
                for name, parameter in self.build(chosen).named_parameters():
                    if source[name][1] == chosen:
                        bank[name] = _grown(name, parameter, layouts[name][1], self.stored[name])
        for name in filter(
            weight_of_step, self.stored
        ):  # scales begin as they are where they are not learned
            bank[name] = nn.Parameter(torch.zeros(self.stored[name].shape))
        return {name: bank[name] for name in self.stored}


def _step(latent: Mapping[str, Tensor], name: str, of: Bits) -> Tensor | None:
    """What was learned of the scales of a weight (out,); None where nothing is."""
    step = latent.get(step_name(name, of.weight))
    return None if step is None else step.reshape(-1)


def _stored(skeletons: Iterable[Skeleton], before: Mapping[str, Layout] | None = None) -> dict[str, Layout]:
    stored = dict(before or {})
    for skeleton in skeletons:
        for name, (_, layout) in skeleton.parameters.items():
            stored[name] = union(name, stored.get(name, layout), layout)
    return stored


def _matrices(skeletons: Iterable[Skeleton]) -> frozenset[str]:
    return frozenset(
        name
        for skeleton in skeletons
        for name, (shape, _) in skeleton.parameters.items()
        if len(shape) > 1 and WEIGHT.fullmatch(name)
    )


def _grown(name: str, values: Tensor, layout: Layout, stored: Layout) -> nn.Parameter:
    """`values` in a tensor of the stored shape; what they do not fill is drawn with their mean and spread."""
    full = values.new_empty(stored.shape)
    spread = float(values.std()) if values.numel() > 1 else 0.0
    full.normal_().mul_(spread).add_(float(values.mean()))
    full[slices(name, stored, layout)] = values.reshape(layout.shape)
    return nn.Parameter(full, values.requires_grad)


@contextmanager
def _collection_off() -> Iterator[None]:
    """Skeletons are thousands of small objects, whose collection takes as long as they do."""
    on = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if on:
            gc.enable()
