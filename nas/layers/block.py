"""A transformer block: residual branches around a mixer and a channel mixer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from nas.errors import SpaceError
from nas.layers.choice import ChannelMixer, Choice, Mixer, Norm, Parts
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.layers.ffns.none import NoFfn
from nas.layers.fields import setting
from nas.layers.mixers.none import NoMixer
from nas.layers.norms import LayerNorm

PLACEMENTS = ("pre", "post", "sub")
TOPOLOGIES = ("series", "parallel", "joint", "chain")


@dataclass(frozen=True)
class Block(Choice):
    """A mixer, then a channel mixer, each in a residual branch of its own.

    Attributes:
        norm: of the branches.
        placement: "pre": x + f(norm(x)) (Xiong et al., 2020); "post": norm(x + f(x)) (Vaswani et al.,
            2017); "sub": as "pre", with a norm before each branch's last layer (Magneto, Wang et al., 2022).
        topology: "series": one after the other; "parallel": x + mixer(norm(x)) + ffn(norm(x)) with one norm
            (Zhong et al., 2022); "joint": one branch through both, x + ffn(norm(mixer(x))) (ConvNeXt);
            "chain": the same with a norm before the mixer too (GFNet, Rao et al., 2021).
        layer_scale: initial value of a learned factor per channel of each branch (CaiT, Touvron et al.,
            2021); None: no such factor.
        mixer2, ffn2: in parallel to the first ones, each with a norm of its own (Touvron et al., 2022, §3);
            where the placement is "post", one norm of the sum of both.
    """

    mixer: Mixer
    ffn: ChannelMixer
    norm: Norm = LayerNorm()
    placement: str = setting("pre", kw_only=False, among=PLACEMENTS)
    topology: str = setting("series", kw_only=False, among=TOPOLOGIES)
    layer_scale: float | None = setting(None, kw_only=False, least=0)
    mixer2: Mixer | None = None
    ffn2: ChannelMixer | None = None

    def build(self, width: int) -> nn.Module:
        if problem := self.mismatch():
            raise SpaceError(f"A block {problem}")
        return _MODULES[self.topology](width, self)

    def build_pooling(self, width: int, out_width: int, pooling: QueryPooling) -> nn.Module:
        """The first block after query pooling: (B, H, W, width) to (B, H / 2, W / 2, out_width)."""
        if problem := self.misfit_pooling() or self.mismatch():
            raise SpaceError(f"A block {problem}")
        return PoolingBlock(width, out_width, self, pooling)

    def mismatch(self) -> str | None:
        """What is wrong with parts and their arrangement: the law, the facts, the remedy."""
        if self.topology != "series" and (
            self.mixer2 is not None
            or self.ffn2 is not None
            or self.placement == "post"
            or isinstance(self.ffn, NoFfn)
        ):
            return (
                f"of topology={self.topology!r} must have one mixer, one ffn and a norm before: got "
                f"ffn={_name(self.ffn)}, mixer2={_name(self.mixer2)}, ffn2={_name(self.ffn2)}, "
                f"placement={self.placement!r}. Use topology='series'."
            )
        if self.placement != "sub":
            return None
        one_branch = self.topology in ("joint", "chain")
        for part in (self.ffn,) if one_branch else (self.mixer, self.ffn, self.mixer2, self.ffn2):
            if not (part is None or isinstance(part, (NoMixer, NoFfn)) or hasattr(part, "sub_norm")):
                return (
                    f"of placement='sub' must find a `sub_norm` in {part.__class__.__name__}, which has "
                    f"none. Use placement='pre'."
                )
        return None

    def misfit_pooling(self) -> str | None:
        """What is wrong with a block that is to pool queries."""
        if self.topology == "series" and self.placement != "post" and self.mixer2 is None:
            return None
        return (
            f"that pools queries must be in series, with a norm before one mixer: got "
            f"topology={self.topology!r}, placement={self.placement!r}, mixer2={_name(self.mixer2)}."
        )


def _name(part: Any) -> str:
    """Of its class alone: a law that shows all of a part reads all its genes, and counting takes for ever."""
    return "None" if part is None else str(part.__class__.__name__)


class ResidualBlock(nn.Module):
    """Takes and gives a map (B, H, W, C) and, if there are any, tokens (B, T, C)."""

    def __init__(self, width: int, block: Block) -> None:
        super().__init__()
        self.placement = block.placement
        self._branch(width, block, "mixer", "1")
        self._branch(width, block, "ffn", "2")
        post = block.placement == "post"
        self._branch(width, block, "mixer2", "1b", norm=not post or self.mixer is None)
        self._branch(width, block, "ffn2", "2b", norm=not post or self.ffn is None)

    def _branch(self, width: int, block: Block, name: str, number: str, norm: bool = True) -> None:
        choice = getattr(block, name)
        if choice is None or isinstance(choice, (NoMixer, NoFfn)):
            self.add_module(name, None)
            return
        if norm:
            self.add_module(f"norm{number}", block.norm.build(width))
        self.add_module(name, _with_sub_norm(choice, block).build(width))
        scale = None
        if block.layer_scale is not None:
            scale = nn.Parameter(torch.full((width,), float(block.layer_scale)))
        self.register_parameter(f"scale{number}", scale)

    def forward(self, *parts: Tensor) -> Parts:
        parts = self._residual(parts, ("mixer", "1"), ("mixer2", "1b"))
        return self._residual(parts, ("ffn", "2"), ("ffn2", "2b"))

    def _residual(self, parts: Parts, *branches: tuple[str, str]) -> Parts:
        """The sum of `parts` and of the branches that are there."""
        answers = parts
        post = None
        for name, number in branches:
            if (module := getattr(self, name)) is None:
                continue
            norm: Any = getattr(self, f"norm{number}", None)  # of the second in parallel, "post" has none
            if self.placement == "post":
                post, inputs = post or norm, parts
            else:
                inputs = each(norm, parts)
            answers = add(answers, self.scaled(number, call(module, inputs)))
        return each(post, answers) if post is not None else answers

    def scaled(self, number: str, parts: Parts) -> Parts:
        scale = getattr(self, f"scale{number}")
        return parts if scale is None else tuple(x * scale for x in parts)


class PoolingBlock(ResidualBlock):
    """The mixer pools its queries; what goes past it is projected and pooled likewise."""

    def __init__(self, width: int, out_width: int, block: Block, pooling: QueryPooling) -> None:
        super().__init__(out_width, block)
        self.pooling = pooling
        self.norm1 = block.norm.build(width)
        self.skip = nn.Linear(width, out_width)
        mixer = _with_sub_norm(block.mixer, block)
        self.mixer = mixer.build_pooling(width, out_width, pooling.stride)

    def forward(self, *parts: Tensor) -> Parts:
        if len(parts) > 1:
            raise SpaceError(
                "A block that pools queries must not get a token beside the map. Use another `down`."
            )
        (normed,) = each(self.norm1, parts)
        skipped = self.pooling.pooled(self.skip(normed))
        parts = add((skipped,), self.scaled("1", call(self.mixer, (normed,))))
        return self._residual(parts, ("ffn", "2"), ("ffn2", "2b"))


class ParallelBlock(ResidualBlock):
    """Both branches read the same normed map."""

    def __init__(self, width: int, block: Block) -> None:
        nn.Module.__init__(self)
        self.norm1 = block.norm.build(width)
        for name, number in (("mixer", "1"), ("ffn", "2")):
            self._branch(width, block, name, number, norm=False)

    def forward(self, *parts: Tensor) -> Parts:
        normed = each(self.norm1, parts)
        for name, number in (("mixer", "1"), ("ffn", "2")):
            if (module := getattr(self, name)) is not None:
                parts = add(parts, self.scaled(number, call(module, normed)))
        return parts


class JointBlock(ResidualBlock):
    """One branch: mixer, norm, channel mixer; before them a norm in a chain."""

    def __init__(self, width: int, block: Block) -> None:
        nn.Module.__init__(self)
        self.norm1 = block.norm.build(width) if block.topology == "chain" else nn.Identity()
        self.mixer = block.mixer.build(width)
        self._branch(width, block, "ffn", "2")

    def forward(self, *parts: Tensor) -> Parts:
        inner = each(self.norm2, call(self.mixer, each(self.norm1, parts)))
        return add(parts, self.scaled("2", call(self.ffn, inner)))


def _with_sub_norm(choice: Any, block: Block) -> Any:
    """`choice` with the norm that placement "sub" puts before its last layer."""
    return replace(choice, sub_norm=block.norm) if block.placement == "sub" else choice


_MODULES: dict[str, type[ResidualBlock]] = {
    "series": ResidualBlock,
    "parallel": ParallelBlock,
    "joint": JointBlock,
    "chain": JointBlock,
}


def each(function: Callable[[Tensor], Tensor], parts: Parts) -> Parts:
    """`function` of every part."""
    return tuple(function(x) for x in parts)


def add(left: Parts, right: Parts) -> Parts:
    return tuple(a + b for a, b in zip(left, right, strict=True))


def call(module: nn.Module, parts: Parts) -> Parts:
    """What a mixer or channel mixer answers. One that acts at each position alone is asked part by part."""
    if len(parts) > 1 and not getattr(module, "takes_tokens", False):
        raise SpaceError(
            f"Parts beside a class token must take it: got {type(module).__name__}. Use Global or "
            f"ConvProjection, Mlp or Gated, DepthwisePooling(tokens=True), or no `token`."
        )
    if len(parts) == 1 or not getattr(module, "pointwise", False):
        answer = module(*parts)
        return answer if isinstance(answer, tuple) else (answer,)
    return each(module, parts)
