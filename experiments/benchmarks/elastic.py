"""Elastic layers, as AutoFormer (Chen et al., 2021, §3.2) and its successors have them: the baseline for the
cost of a training step.

Every layer is as large as it can be and is told at each step how much of itself to use; gradients and moments
are as large as the largest model. Written for vision transformers of one scale: patches, positions, attention
to all, MLPs, layer norms.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.layers import AbsolutePosition, Block, Global, Mlp, PatchStem
from nas.space import Space, oneof, repeat
from nas.supernet import Supernet
from search_spaces.hierarchical import HierarchicalTransformer, Stage, laws

SIDE, PATCH, HEAD_DIM = 32, 4, 32


def space(widths: tuple[int, ...] = (128, 192, 256), depths: tuple[int, int] = (4, 6)) -> Space:
    """A ViT in which width, depth, heads and ratio are chosen, the latter two per block, as in AutoFormer."""
    block = Block(Global(oneof(4, 6, 8), head_dim=HEAD_DIM), Mlp(oneof(2, 3, 4)))
    stage = Stage(oneof(*widths), repeat(block, *depths), position=AbsolutePosition(SIDE // PATCH))
    return Space(HierarchicalTransformer(PatchStem(PATCH), (stage,), 10, 3), laws(SIDE))


class ElasticLinear(nn.Linear):
    def forward(self, x: Tensor, units: int) -> Tensor:
        """(…, n) to (…, units)."""
        return F.linear(x, self.weight[:units, : x.shape[-1]], self.bias[:units])


class ElasticLayerNorm(nn.LayerNorm):
    def forward(self, x: Tensor) -> Tensor:
        n = x.shape[-1]
        return F.layer_norm(x, (n,), self.weight[:n], self.bias[:n], self.eps)


class ElasticAttention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        inner = heads * HEAD_DIM
        self.q, self.k, self.v = (ElasticLinear(width, inner) for _ in range(3))
        self.o = ElasticLinear(inner, width)

    def forward(self, x_BNC: Tensor, heads: int) -> Tensor:
        q, k, v = (
            p(x_BNC, heads * HEAD_DIM).unflatten(-1, (heads, HEAD_DIM)).transpose(1, 2)
            for p in (self.q, self.k, self.v)
        )
        y_BNe = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return self.o(y_BNe, x_BNC.shape[-1])


class ElasticMlp(nn.Module):
    def __init__(self, width: int, units: int) -> None:
        super().__init__()
        self.up, self.down = ElasticLinear(width, units), ElasticLinear(units, width)

    def forward(self, x: Tensor, units: int) -> Tensor:
        return self.down(F.gelu(self.up(x, units)), x.shape[-1])


class ElasticBlock(nn.Module):
    def __init__(self, width: int, block: Block) -> None:
        super().__init__()
        self.norm1, self.norm2 = ElasticLayerNorm(width), ElasticLayerNorm(width)
        self.mixer = ElasticAttention(width, block.mixer.heads)  # type: ignore[attr-defined]
        self.ffn = ElasticMlp(width, int(width * block.ffn.ratio))  # type: ignore[attr-defined]

    def forward(self, x_BNC: Tensor, block: Any) -> Tensor:
        x = x_BNC + self.mixer(self.norm1(x_BNC), block.mixer.heads)
        return x + self.ffn(self.norm2(x), int(x.shape[-1] * block.ffn.ratio))


class ElasticViT(nn.Module):
    """All of `space`, in layers of which each forward uses a part; parameters are called as in the bank."""

    def __init__(self, largest: HierarchicalTransformer) -> None:
        super().__init__()
        (stage,) = largest.stages
        width = stage.width
        self.stem = nn.ModuleDict({"patches": nn.Conv2d(3, width, PATCH, PATCH)})
        position = nn.Module()
        position.table = nn.Parameter(torch.zeros(SIDE // PATCH, SIDE // PATCH, width))
        blocks = nn.ModuleList(ElasticBlock(width, block) for block in stage.blocks)
        inner = nn.ModuleDict({"position": position, "blocks": blocks})
        self.stages = nn.ModuleList([inner])
        self.head = nn.ModuleDict({"norm": ElasticLayerNorm(width), "linear": ElasticLinear(width, 10)})

    def forward(self, x_BCHW: Tensor, architecture: Any) -> Tensor:
        (stage,) = architecture.stages
        w, inner = stage.width, self.stages[0]
        patches: Any = self.stem["patches"]
        x = F.conv2d(x_BCHW, patches.weight[:w], patches.bias[:w], PATCH).permute(0, 2, 3, 1)
        x_BNC = (x + inner["position"].table[..., :w]).flatten(1, 2)
        for module, block in zip(inner["blocks"], stage.blocks, strict=False):
            x_BNC = module(x_BNC, block)
        answer: Tensor = self.head["linear"](self.head["norm"](x_BNC).mean(1), 10)
        return answer


def with_weights(supernet: Supernet) -> ElasticViT:
    """Elastic layers with the weights of a bank."""
    elastic = ElasticViT(supernet.space.largest())
    own = elastic.state_dict()
    elastic.load_state_dict({n: t.reshape(own[n].shape) for n, t in supernet.state().items()})
    return elastic
