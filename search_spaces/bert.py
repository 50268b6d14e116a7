"""`transformers`' BERT as a supernet: depth, heads and FFN units per layer, from MiniLM's weights if wanted.

A search space on a model that knows nothing of this package; docs/bring-your-own-model.md explains it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas.layout import Layout
from nas.space import Space, oneof, repeat
from search_spaces.pretrained.libraries import prepare

prepare()
from transformers import BertConfig, BertModel

HEAD_DIM = 32


@dataclass(frozen=True)
class Layer:
    heads: int
    hidden: int


@dataclass(frozen=True)
class Bert:
    layers: tuple[Layer, ...]
    width: int = 384
    vocabulary: int = 30522


MINILM = Bert((Layer(12, 1536),) * 6)  # MiniLM-L6-H384 (Wang et al., 2020)


def space() -> Space:
    """Subnets of MiniLM."""
    return Space(Bert(repeat(Layer(oneof(4, 6, 8, 10, 12), oneof(384, 768, 1152, 1536)), 2, 6)))


def build(architecture: Bert) -> nn.Module:
    """The stock model, (B, N) token ids to its outputs, with layers of the sizes asked for."""
    model = BertModel(config(architecture), add_pooling_layer=True)
    fit(model, architecture)
    model.init_weights()  # of what is new
    return model


def config(architecture: Bert) -> BertConfig:
    return BertConfig(
        vocab_size=architecture.vocabulary,
        hidden_size=architecture.width,
        num_hidden_layers=len(architecture.layers),
        num_attention_heads=architecture.width // HEAD_DIM,
        intermediate_size=max(layer.hidden for layer in architecture.layers),
    )


def fit(model: BertModel, architecture: Bert) -> None:
    """Gives the layers of a stock model their own heads and units: its config has one number for all."""
    for module, layer in zip(model.encoder.layer, architecture.layers, strict=True):
        attention, width, inner = module.attention.self, architecture.width, layer.heads * HEAD_DIM
        attention.num_attention_heads, attention.all_head_size = layer.heads, inner
        attention.query, attention.key, attention.value = (nn.Linear(width, inner) for _ in "qkv")
        module.attention.output.dense = nn.Linear(inner, width)
        module.intermediate.dense = nn.Linear(width, layer.hidden)
        module.output.dense = nn.Linear(layer.hidden, width)


def layouts(architecture: Bert) -> dict[str, Layout]:
    """Heads as an axis of their own: cuts are right without, to order heads by importance takes this."""
    found = {}
    for i, layer in enumerate(architecture.layers):
        path, heads = f"encoder.layer.{i}.attention", (layer.heads, HEAD_DIM)
        for p in ("query", "key", "value"):
            found[f"{path}.self.{p}.weight"] = Layout((*heads, architecture.width))
            found[f"{path}.self.{p}.bias"] = Layout(heads)
        found[f"{path}.output.dense.weight"] = Layout((architecture.width, *heads))
    return found
