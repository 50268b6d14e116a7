"""The space around a published point: it holds the point, starts from its checkpoint, and can be sorted."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from published import small
from safetensors.torch import save_file
from torch.nn import functional as F

from experiments.benchmarks.published_points import (
    answer,
    images,
    randomised,
    relative,
    shapes_of,
    with_random_weights,
)
from nas.errors import LayoutError, SpaceError
from nas.importance import coupled_axes, magnitude, ordered, taylor
from nas.space import oneof
from nas.supernet import Supernet
from search_spaces.around import around
from search_spaces.hierarchical import build
from search_spaces.pretrained.libraries import prepare
from search_spaces.published import POINTS, from_pretrained, swin_tiny

SIDE = small.SIDE
GENES = ("*.heads", "*.ratio", "*.width")


# --- the space ----------------------------------------------------------------------------------


@pytest.mark.parametrize("name", POINTS)
def test_it_holds_the_point_as_its_largest(name):
    point = POINTS[name]()
    space = around(point, widths=(0.5, 0.75))
    space.check(point)
    assert space.decode(space.encode(point)) == point
    assert space.id(space.decode(space.encode(point))) == space.id(point)
    assert space.largest() == point
    assert space.size > 10**6


@pytest.mark.parametrize("name", ["cvt_13", "hiera_tiny", "nest_tiny", "pit_small", "visformer_small"])
def test_its_smallest_runs(name):
    architecture = around(POINTS[name](), widths=(0.5,)).smallest()
    with torch.device("meta"):
        assert build(architecture)(torch.empty(1, 3, 224, 224)).shape == (1, 1000)


def test_what_is_left_of_a_point():
    space = around(POINTS["swin_tiny"](), widths=(0.5,))
    smallest = space.smallest()
    assert [stage.width for stage in smallest.stages] == [48, 96, 192, 384]
    assert [len(stage.blocks) for stage in smallest.stages] == [1, 1, 3, 1]
    assert [stage.blocks[0].mixer.heads for stage in smallest.stages] == [2, 3, 6, 12]
    assert {block.ffn.ratio for stage in smallest.stages for block in stage.blocks} == {2}
    shifts = [block.mixer.shift for block in smallest.stages[2].blocks]
    assert shifts == [False, True, False]


def test_what_is_not_asked_for_stays():
    point = POINTS["vit_small"]()
    only_units = around(point, depths=(), heads=(), units=(0.5,))
    assert {gene.name.rpartition(".")[2] for gene in only_units.genes if gene.cardinality > 1} == {"ratio"}
    assert around(point, depths=(), heads=(), units=()).size == 1


@pytest.mark.parametrize("name", ["depths", "heads", "units", "widths"])
@pytest.mark.parametrize("share", [0, -0.5, 1.5])
def test_shares_that_are_none(name, share):
    with pytest.raises(
        SpaceError, match=rf"`{name}` must be given as shares above 0 and up to 1: got {share}"
    ):
        around(small.vit(), **{name: (share, 0.5)})


# --- its supernet, from a checkpoint ----------------------------------------------------------------


@pytest.mark.parametrize("name", ["swin_tiny", "mit_b0"])
def test_the_whole_answers_as_the_published_model(name, tmp_path, monkeypatch):
    prepare()
    ours, theirs = {"swin_tiny": (small.swin, small.their_swin), "mit_b0": (small.mit, small.their_mit)}[name]
    monkeypatch.setitem(POINTS, name, ours)
    published = with_random_weights(theirs(), SIDE)
    save_file({n: t.contiguous() for n, t in published.state_dict().items()}, tmp_path / "model.safetensors")
    model, point = from_pretrained(name, tmp_path / "model.safetensors"), ours(small.CLASSES)
    supernet = Supernet(build, around(point, image_side=64 if name == "mit_b0" else SIDE))
    supernet = supernet.with_weights(model.state_dict(), point)
    x = images(64 if name == "mit_b0" else SIDE)
    with torch.inference_mode():
        assert torch.equal(supernet(point, x), model(x))
        assert relative(supernet(point, x), answer(published, x)) < 1e-5


def test_statistics_of_batch_norms_go_along_as_buffers():
    point, x = small.efficientformer(), images(SIDE)
    model = with_random_weights(build(point), SIDE)
    supernet = Supernet(build, around(point, image_side=SIDE)).with_weights(model, point)
    with torch.inference_mode():
        assert torch.equal(supernet(point, x, buffers=dict(model.named_buffers())), model(x))
        assert relative(supernet(point, x), model(x)) > 0.01


# --- sorted by importance -----------------------------------------------------------------------

KINDS = {
    "window attention with relative bias": small.swin(small.CLASSES),
    "spatial reduction": small.mit(small.CLASSES),
    "layer scale": small.convnext(),
    "class token": small.vit(),
    "batch norm": small.efficientformer(),
}


@pytest.fixture(scope="module", params=KINDS)
def started(request):
    """A point, its supernet with weights under which every part matters, and images."""
    point = KINDS[request.param]
    side = 64 if request.param == "spatial reduction" else SIDE
    weights = randomised(shapes_of(build(point)))
    space = around(point, image_side=side, widths=(0.5,))
    return point, Supernet(build, space).with_weights(weights, point), images(side)


def scores(name, point, supernet, axes, x):
    if name == "magnitude":
        return magnitude(supernet, axes)
    labels = torch.arange(len(x))
    return taylor(supernet, axes, lambda net, batch: F.cross_entropy(net(point, batch), labels), [x])


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
def test_sorting_changes_no_answer_of_the_whole(started, name):
    point, supernet, x = started
    axes = coupled_axes(supernet, GENES, x)
    after = ordered(supernet, scores(name, point, supernet, axes, x))
    moved = [n for n, t in supernet.state().items() if not torch.equal(t, after.bank[n])]
    assert len(moved) > 9
    with torch.inference_mode():
        assert relative(after(point, x), supernet(point, x)) < 1e-5


def test_subnets_of_a_sorted_bank_extract_as_they_are(started):
    _, supernet, x = started
    after = ordered(supernet, magnitude(supernet, coupled_axes(supernet, GENES, x)))
    rng = np.random.default_rng(0)
    for architecture in (after.space.smallest(), *(after.space.sample(rng) for _ in range(6))):
        after.space.check(architecture)
        with torch.inference_mode():
            assert torch.equal(after.extract(architecture)(x), after(architecture, x))


def test_heads_that_differ_in_kind_are_not_sorted():
    """Every other head of a cross looks along columns."""
    supernet = Supernet(build, around(small.cswin(), image_side=SIDE))
    with pytest.raises(LayoutError, match=r"`stages\.0\.blocks\.\d\.mixer\.heads` does not"):
        coupled_axes(supernet, ("*.heads",), images(SIDE))
    assert coupled_axes(supernet, ("*.ratio",), images(SIDE))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"point": swin_tiny}, "`point` must be an architecture, such as swin_tiny"),
        (
            {"point": replace(small.swin(), classes=oneof(2, 3))},
            "must have no holes: got one at `classes`",
        ),
        ({"image_side": 0}, "`image_side` must be a whole number of pixels, 1 or more: got 0"),
        ({"image_side": 224.0}, "`image_side` must be a whole number"),
        ({"widths": 0.5}, "`widths` must be a tuple of shares"),
        ({"widths": ("0.5",)}, "`widths` must be given as shares above 0 and up to 1: got '0.5'"),
        ({"widths": (True,)}, "`widths` must be given as shares"),
        ({"heads": (1e-12,)}, "`heads` must be given as shares"),
    ],
)
def test_what_is_no_point_or_no_share_is_refused(arguments, message):
    with pytest.raises(SpaceError, match=message):
        around(**({"point": small.swin(), "image_side": small.SIDE} | arguments))
