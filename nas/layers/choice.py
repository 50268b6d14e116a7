"""What may be chosen: frozen dataclasses that say what a part is, and build it.

A part of an architecture (a mixer, a norm, a stem …) is one file: the frozen dataclass with its genes,
and the plain module that it builds. Families are base classes; a new member is a subclass of one of them.
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass, field
from typing import ClassVar

from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.fields import Checked, setting

Parts = tuple[Tensor, ...]
"""What flows through a network: the map (B, H, W, C), and beside it, if there are any, tokens (B, T, C)."""


BITS = (2, 4, 8, 16, 32)
"""Widths at which weights may be stored."""
ACTIVATION_BITS = (8, 32)
"""Widths at which a linear layer may take its inputs."""


@dataclass(frozen=True)
class Bits(Checked):
    """Bit-widths of a part: at which its weights are stored, and at which its linear layers take their
    inputs."""

    weight: int = setting(32, kw_only=False, among=BITS)
    activation: int = setting(32, kw_only=False, among=ACTIVATION_BITS)

    def misfit(self) -> str | None:
        """What is wrong with the two together: the law, the facts, the remedy."""
        if self.activation == 32 or self.weight in (4, 8):
            return None
        return (
            f"must have weights of 4 or 8 bits where activations have {self.activation}, for which there are "
            f"kernels of whole numbers: got weight={self.weight}. Use activation=32."
        )


@dataclass(frozen=True)
class Choice(Checked):
    """A part of an architecture; its fields are checked when it is made.

    Attributes:
        takes_tokens: whether its module takes tokens (B, T, C) beside the map, too.
        has_weights: whether there is anything to store, at whatever bits.
    """

    takes_tokens: ClassVar[bool] = False
    has_weights: ClassVar[bool] = True

    def misfit(self, height: int, width: int) -> str | None:
        """What is wrong with this part on a map of `height` × `width`: the law, the facts, the remedy."""
        return None


@dataclass(frozen=True)
class Norm(Choice):
    """What normalises a vector of channels."""

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module from (…, width) to the same."""


@dataclass(frozen=True)
class Mixer(Choice):
    """What lets the positions of a map see one another."""

    bits: Bits = field(default=Bits(), kw_only=True)

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module from a map (B, H, W, width) to the same; tokens beside it are for those that say so."""

    def build_pooling(self, width: int, out_width: int, stride: int) -> nn.Module:
        """A module from (B, H, W, width) to (B, H / stride, W / stride, out_width), for query pooling.

        Raises:
            SpaceError: it has no queries that could be pooled.
        """
        raise SpaceError(
            f"The first block after query pooling must have a mixer that can pool its queries, which "
            f"{self.__class__.__name__} cannot. Use Global, MaskUnit or Pooled there, or another `down`."
        )

    def misfit_pooling(self, height: int, width: int, stride: int) -> str | None:
        """What is wrong with this mixer where it is to pool the queries of a map of `height` × `width`."""
        return self.misfit(height // stride, width // stride)


@dataclass(frozen=True)
class ChannelMixer(Choice):
    """What happens in a block at each position by itself."""

    bits: Bits = field(default=Bits(), kw_only=True)

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module from (B, H, W, width) to the same."""


@dataclass(frozen=True)
class Stem(Choice):
    """What makes a map of an image."""

    bits: Bits = field(default=Bits(), kw_only=True)

    @property
    @abstractmethod
    def stride(self) -> int:
        """Pixels per position, along each side."""

    def after(self, side: int) -> int:
        """Side of the map of an image of that side."""
        return side // self.stride

    @abstractmethod
    def build(self, channels: int, width: int) -> nn.Module:
        """A module from an image (B, channels, H, W) to a map (B, after(H), after(W), width)."""

    def misfit(self, height: int, width: int) -> str | None:
        return not_multiple(self.__class__.__name__, self.stride, height, width)


@dataclass(frozen=True)
class Downsample(Choice):
    """How a map comes from one stage to the next."""

    bits: Bits = field(default=Bits(), kw_only=True)

    @property
    def stride(self) -> int:
        """Factor by which each side shrinks."""
        return 2

    def after(self, side: int) -> int:
        """What is left of a side."""
        return side // self.stride

    @abstractmethod
    def build(self, width: int, out_width: int) -> nn.Module:
        """A module from (B, H, W, width) to (B, H / stride, W / stride, out_width)."""

    def misfit(self, height: int, width: int) -> str | None:
        return not_multiple(self.__class__.__name__, self.stride, height, width)


@dataclass(frozen=True)
class Position(Choice):
    """What tells the positions of a map apart, at the head of a stage."""

    @abstractmethod
    def build(self, width: int) -> nn.Module:
        """A module from (B, H, W, width) to the same."""


def not_multiple(what: str, step: int, height: int, width: int) -> str | None:
    """The message of a map that `what` cannot divide into steps."""
    if height % step == 0 and width % step == 0:
        return None
    return (
        f"must get a map whose sides are multiples of {step}: {what} got {height}×{width}. "
        f"Resize the images, or choose fewer stages or another stride."
    )
