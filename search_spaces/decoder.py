"""`transformers`' Qwen2 as a supernet: a decoder language model whose queries share keys and values.

Genes are depth, key/value heads, queries per key (grouped-query attention, Ainslie et al., 2023) and FFN
units per layer. A search space on a model that knows nothing of this package;
docs/bring-your-own-model.md explains it.
"""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from nas.layout import Layout
from nas.space import Space, oneof, repeat
from search_spaces.pretrained.libraries import prepare

prepare()
from transformers import Qwen2Config, Qwen2ForCausalLM
from transformers.models.qwen2.modeling_qwen2 import Qwen2DecoderLayer


@dataclass(frozen=True)
class Layer:
    kv_heads: int
    groups: int  # queries per key and value
    hidden: int


@dataclass(frozen=True)
class Decoder:
    layers: tuple[Layer, ...]
    width: int = 64
    head_dim: int = 16
    vocabulary: int = 256


def space() -> Space:
    return Space(Decoder(repeat(Layer(oneof(1, 2, 4), oneof(1, 2, 3), oneof(64, 128, 192)), 2, 4)))


def build(architecture: Decoder) -> nn.Module:
    """The stock model, (B, N) token ids to its outputs, with layers built from a config each."""
    model = Qwen2ForCausalLM(config(architecture, architecture.layers[0]))
    for i, layer in enumerate(architecture.layers):
        model.model.layers[i] = Qwen2DecoderLayer(config(architecture, layer), i)
    model.init_weights()  # of what is new
    return model


def config(architecture: Decoder, layer: Layer) -> Qwen2Config:
    return Qwen2Config(
        vocab_size=architecture.vocabulary,
        hidden_size=architecture.width,
        num_hidden_layers=len(architecture.layers),
        num_attention_heads=layer.kv_heads * layer.groups,
        num_key_value_heads=layer.kv_heads,
        head_dim=architecture.head_dim,
        intermediate_size=layer.hidden,
        tie_word_embeddings=True,
        attn_implementation="sdpa",
    )


def layouts(architecture: Decoder) -> dict[str, Layout]:
    """Query heads are stored key by key, so a prefix of them would take queries of the wrong keys."""
    found = {}
    for i, layer in enumerate(architecture.layers):
        path, width, head_dim = f"model.layers.{i}.self_attn", architecture.width, architecture.head_dim
        queries, keys = (layer.kv_heads, layer.groups, head_dim), (layer.kv_heads, head_dim)
        for p, heads in (("q", queries), ("k", keys), ("v", keys)):
            found[f"{path}.{p}_proj.weight"] = Layout((*heads, width))
            found[f"{path}.{p}_proj.bias"] = Layout(heads)
        found[f"{path}.o_proj.weight"] = Layout((width, *queries))
    return found
