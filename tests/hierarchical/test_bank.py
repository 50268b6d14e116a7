"""The bank holds every architecture of a space, and each answers as its extracted module does, to the bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from hierarchical.spaces import every_arrangement, every_entry, every_mixer, every_position, every_token

from nas.layers import (
    Block,
    ChannelMixer,
    Global,
    LayerNorm,
    Mixer,
    Mlp,
    PatchMerging,
    RMSNorm,
)
from nas.layers.catalogue import members
from nas.layers.mixers.attention_free import AftSimple
from nas.layers.norms import NoNorm
from nas.space import oneof
from nas.supernet import Supernet
from search_spaces import hierarchical


class Task:
    classes, image_shape = 3, (1, 8, 8)


def small(**kw):
    return partial(hierarchical.space, Task, bits=(32,), **kw)


WIDE = {"widths": ((16, 32), (16, 32, 64))}
JOINED = {"down": oneof(PatchMerging(), None)}
SPACES = {
    "mixers": every_mixer,
    "entries": every_entry,
    "arrangements": every_arrangement,
    "positions": every_position,
    "tokens": every_token,
    "norm and topology": small(
        depths=(1, 2),
        block=partial(Block, norm=oneof(LayerNorm(), RMSNorm()), topology=oneof("series", "parallel")),
    ),
    "norm and no norm": small(
        depths=(1, 2),
        block=partial(Block, norm=oneof(LayerNorm(), NoNorm()), topology=oneof("series", "parallel")),
    ),
    "placement and second parts": small(
        depths=(1, 2),
        block=partial(
            Block,
            placement=oneof("pre", "post"),
            topology=oneof("series", "parallel"),
            mixer2=oneof(None, Global(1)),
            ffn2=oneof(None, Mlp(1)),
        ),
    ),
    "width and mixer": small(mixers=(Global(oneof(1, 2)), AftSimple(ratio=oneof(1, 2))), **WIDE, **JOINED),
    "three widths": small(widths=((16, 32), (16, 32, 64), (32, 64)), mixers=(Global(oneof(1, 2)),), **JOINED),
}


@pytest.mark.parametrize("stated", SPACES.values(), ids=SPACES)
def test_the_bank_holds_what_only_several_choices_together_ask_for(stated):
    space = stated()
    supernet = Supernet(hierarchical.build, space)
    rng = np.random.default_rng(99)
    assert all(supernet.holds(space.sample(rng)) for _ in range(150))


NARROW = ((8, 16), (24, 32))
CHOICES = [("mixers", c) for c in members(Mixer)] + [("ffns", c) for c in members(ChannelMixer)]


@pytest.mark.parametrize(("kind", "choice"), CHOICES, ids=[c.__name__ for _, c in CHOICES])
def test_narrow_subnets_answer_to_the_bit(kind, choice):
    """Few channels: axes of length 1, where a product may take another way by strides alone."""
    choices = {kind: (hierarchical.with_holes(choice),)}
    space = hierarchical.space(Task, widths=NARROW, depths=(1, 1), bits=(32,), **choices)
    supernet = Supernet(hierarchical.build, space)
    generator = torch.Generator().manual_seed(0)
    noise = {n: t + 0.1 * torch.randn(t.shape, generator=generator) for n, t in supernet.state().items()}
    supernet = supernet.with_state(noise)
    rng, images = np.random.default_rng(0), torch.rand(2, 1, 8, 8, generator=generator)
    for architecture in (space.smallest(), *(space.sample(rng) for _ in range(8))):
        with torch.no_grad():
            assert torch.equal(supernet(architecture, images), supernet.extract(architecture)(images))
