"""Costs from genes, by pieces, against the same counted on 200 whole modules."""

from __future__ import annotations

import dataclasses
from functools import cache, partial
from typing import Any

import numpy as np
import pytest
import torch
from hierarchical.spaces import SIDE, every_arrangement, every_entry, every_mixer, every_token

from nas.devices.costs import FEATURES, count, macs
from nas.devices.memory import memory
from nas.layers import Bits, Block, ChannelMixer, Downsample, Mixer, Norm, Position, Stem
from nas.layers.catalogue import members
from nas.quantize import AtBits
from nas.space import Space
from nas.supernet import Supernet
from search_spaces import costs, hierarchical
from search_spaces.costs import FIGURES

SPACES = {every_mixer: 70, every_entry: 50, every_arrangement: 50}
WITH_TOKENS = {every_token: 15, partial(every_token, early=False): 15}


@pytest.fixture(autouse=True)
def _no_weights(monkeypatch):
    """Bytes follow from shapes and bits alone."""
    monkeypatch.setattr(Supernet, "_initial", lambda self, cover, seed: {})


@cache
def drawn(make: Any, n: int) -> tuple[Space, np.ndarray]:
    space = make()
    rng = np.random.default_rng(0)
    return space, np.array([space.sample_genes(rng) for _ in range(n)])


def on_whole(architecture: Any) -> tuple[np.ndarray, np.ndarray]:
    """Figures and features of the whole module."""
    with torch.device("meta"):
        module = hierarchical.build(architecture)
        at_bits = AtBits(hierarchical.build)(architecture)
    image = torch.empty(1, architecture.channels, SIDE, SIDE)
    features = count(at_bits, image)
    size = Supernet(hierarchical.build, Space(architecture)).size_bytes(architecture)
    parameters = sum(p.numel() for p in module.parameters())
    return np.array([parameters, macs(features), *memory(module, image), size], dtype=float), features


def inside(value: Any) -> set[Any]:
    """Classes of all that an architecture is made of; of blocks their arrangement, of bits their number."""
    found = {type(value)}
    if isinstance(value, Bits):
        found |= {value.weight, ("inputs", value.activation)}
    if isinstance(value, Block):
        found |= {value.topology, value.placement, "two" if value.mixer2 or value.ffn2 else "one"}
    for item in value if isinstance(value, tuple) else ():
        found |= inside(item)
    if dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            found |= inside(getattr(value, field.name))
    return found


def test_the_200_hold_every_choice():
    found: set[Any] = set()
    for make, n in (SPACES | WITH_TOKENS).items():
        space, genes = drawn(make, n)
        found |= set().union(*(inside(space.decode(row)) for row in genes))
    every = {c for family in (Mixer, ChannelMixer, Stem, Downsample, Position, Norm) for c in members(family)}
    assert every <= found
    assert {4, 8, 32, ("inputs", 8), ("inputs", 32)} <= found
    assert {"series", "parallel", "joint", "chain", "pre", "post", "sub", "two"} <= found
    assert hierarchical.ClassToken in found
    assert sum((SPACES | WITH_TOKENS).values()) == 200


@pytest.mark.parametrize("make", SPACES, ids=lambda make: make.__name__)
def test_pieces_cost_what_the_whole_costs(make):
    space, genes = drawn(make, SPACES[make])
    figures, features = (of(space, SIDE)(genes) for of in (costs.figures, costs.features))
    for row, by_pieces, counted in zip(genes, figures, features, strict=True):
        whole, whole_counted = on_whole(space.decode(row))
        np.testing.assert_allclose(by_pieces, whole, rtol=1e-12)
        np.testing.assert_allclose(counted, whole_counted, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("make", WITH_TOKENS, ids=["early token", "late token"])
def test_beside_a_class_token_pieces_cost_nearly_what_the_whole_costs(make):
    """The whole never norms a token that is still a weight, and copies slices that a piece gets in order:
    some small kernels more or less, and one token at the peak. Weights and products are the same. Some of
    them have no token."""
    space, genes = drawn(make, WITH_TOKENS[make])
    figures, features = (of(space, SIDE)(genes) for of in (costs.figures, costs.features))
    products = [i for i, name in enumerate(FEATURES) if name.endswith("_mmacs")]
    same = [FIGURES.index(name) for name in ("parameters", "mmacs", "size_bytes")]
    for row, by_pieces, counted in zip(genes, figures, features, strict=True):
        architecture = space.decode(row)
        whole, whole_counted = on_whole(architecture)
        np.testing.assert_allclose(by_pieces[same], whole[same], rtol=1e-12)
        np.testing.assert_allclose(counted[products], whole_counted[products], rtol=1e-9, atol=1e-9)
        activations, peak = (by_pieces[[2, 3]] - whole[[2, 3]]).tolist()
        beside = any(stage.token is not None for stage in architecture.stages)
        assert abs(activations) <= (0.1 if beside else 0.25) * whole[2]  # else: views of `PatchStem`
        assert peak in (0, 4 * architecture.stages[0].width, 4 * architecture.stages[1].width)
