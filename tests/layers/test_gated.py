"""Gated channel mixers against their formula, timm and `transformers`."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import cut_module, maps, randomise
from torch import nn

from nas.layers import Mlp, RMSNorm
from nas.layers.ffns.gated import Gated
from search_spaces.pretrained.libraries import prepare

FORMULAS = {
    "sigmoid": torch.sigmoid,
    "silu": lambda x: x / (1 + torch.exp(-x)),
    "gelu": lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5)),
    "relu": lambda x: x.clamp_min(0),
}


@pytest.mark.parametrize("name", FORMULAS)
def test_cut_units_are_gated_by_their_own(name):
    large, x = randomise(Gated(4, activation=name).build(8)), maps(6)
    small = cut_module(large, Gated(2, activation=name).build(6))
    up, gate = (x @ p.weight[:12, :6].T + p.bias[:12] for p in (large.up, large.gate))
    y = (FORMULAS[name](gate) * up) @ large.down.weight[:6, :12].T + large.down.bias[:6]
    torch.testing.assert_close(small(x), y)


def test_up_and_down_are_those_of_a_plain_mlp():
    gated, mlp = (dict(f.build(8).named_parameters()) for f in (Gated(2), Mlp(2)))
    assert {n: p.shape for n, p in gated.items() if not n.startswith("gate.")} == {
        n: p.shape for n, p in mlp.items()
    }


def test_sub_norm_comes_before_the_last_layer():
    layer, x = randomise(Gated(2, sub_norm=RMSNorm()).build(8)), maps(8)
    units = layer.act(layer.gate(x)) * layer.up(x)
    mean_square = units.square().mean(-1, keepdim=True)
    normed = units / (mean_square + 1e-6).sqrt() * layer.sub_norm.weight
    torch.testing.assert_close(layer(x), layer.down(normed))


def test_swiglu_of_timm_answers_the_same():
    prepare()
    from timm.layers import SwiGLU

    theirs, ours = randomise(SwiGLU(8, 24)), randomise(Gated(3).build(8))
    for mine, yours in ((ours.gate, theirs.fc1_g), (ours.up, theirs.fc1_x), (ours.down, theirs.fc2)):
        mine.load_state_dict(yours.state_dict())
    torch.testing.assert_close(ours(maps(8)), theirs(maps(8)))


def test_glu_of_timm_answers_the_same():
    prepare()
    from timm.layers import GluMlp

    theirs, ours = randomise(GluMlp(8, 48, act_layer=nn.Sigmoid)), Gated(3, activation="sigmoid").build(8)
    fused = dict(theirs.named_parameters())
    state = {f"down.{n}": fused[f"fc2.{n}"] for n in ("weight", "bias")}
    for n in ("weight", "bias"):
        state[f"up.{n}"], state[f"gate.{n}"] = fused[f"fc1.{n}"].chunk(2)
    ours.double().load_state_dict(state)
    torch.testing.assert_close(ours(maps(8)), theirs(maps(8)))


def test_llama_of_transformers_answers_the_same():
    prepare()
    from transformers import LlamaConfig
    from transformers.models.llama.modeling_llama import LlamaMLP

    theirs = randomise(LlamaMLP(LlamaConfig(hidden_size=8, intermediate_size=20, num_attention_heads=1)))
    ours = Gated(2.5, bias=False).build(8).double()
    ours.load_state_dict({n.replace("_proj", ""): p for n, p in theirs.named_parameters()})
    torch.testing.assert_close(ours(maps(8)), theirs(maps(8)))
