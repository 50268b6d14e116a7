"""`transformers`' ViT as a supernet: depth, heads and FFN units per layer. Nothing in it needs a layout.

A search space on a model that knows nothing of this package; docs/bring-your-own-model.md explains it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas.space import Space, oneof, repeat
from search_spaces.pretrained.libraries import prepare

prepare()
from transformers import ViTConfig, ViTModel
from transformers.models.vit.modeling_vit import ViTLayer


@dataclass(frozen=True)
class Layer:
    heads: int
    hidden: int


@dataclass(frozen=True)
class ViT:
    layers: tuple[Layer, ...]
    width: int = 64
    head_dim: int = 16
    image: int = 32
    patch: int = 8


def space() -> Space:
    return Space(ViT(repeat(Layer(oneof(1, 2, 3, 4), oneof(64, 128, 256)), 2, 4)))


def build(architecture: ViT) -> nn.Module:
    """The stock model, (B, 3, side, side) to its outputs, with layers built from a config each."""
    model = ViTModel(config(architecture, architecture.layers[0]))
    for i, layer in enumerate(architecture.layers):
        model.layers[i] = ViTLayer(config(architecture, layer))
    model.init_weights()  # of what is new
    return model


def config(architecture: ViT, layer: Layer) -> ViTConfig:
    return ViTConfig(
        hidden_size=architecture.width,
        num_hidden_layers=len(architecture.layers),
        num_attention_heads=layer.heads,
        head_dim=architecture.head_dim,
        intermediate_size=layer.hidden,
        image_size=architecture.image,
        patch_size=architecture.patch,
        attn_implementation="sdpa",
    )
