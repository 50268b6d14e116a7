"""Ordering by importance: nothing changes as a whole, and prefixes keep what scores highest."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional as F

from nas.errors import LayoutError
from nas.importance import CoupledAxis, coupled_axes, magnitude, ordered, permuted, require_symmetry, taylor
from nas.supernet import Supernet
from search_spaces import hierarchical

IMAGES = torch.randn(8, 1, 8, 8, generator=torch.Generator().manual_seed(0))
LABELS = torch.arange(8)
GENES = ("*.width", "*.heads", "*.ratio")


class Task:
    classes, image_shape = 10, (1, 8, 8)


def loss(supernet, batch):
    images, labels = batch
    return F.cross_entropy(supernet(supernet.space.largest(), images), labels)


@pytest.fixture(scope="module")
def supernet() -> Supernet:
    found = Supernet(hierarchical.build, hierarchical.space(Task, depths=(1, 2), bits=(32,)))
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
    return found


@pytest.fixture(scope="module")
def axes(supernet) -> list[CoupledAxis]:
    return coupled_axes(supernet, GENES, IMAGES)


def scores_of(name, supernet, axes):
    if name == "magnitude":
        return magnitude(supernet, axes)
    return taylor(supernet, axes, loss, [(IMAGES[:4], LABELS[:4]), (IMAGES[4:], LABELS[4:])])


def members(axes, name):
    return set(next(axis.members for axis in axes if axis.name == name))


class TestAxes:
    def test_heads_of_all_mixers_that_share_them(self, axes):
        path = "stages.0.blocks.0.mixer"
        expected = {(f"{path}.{p}.{kind}", 0) for p in "qkv" for kind in ("weight", "bias")}
        expected |= {(f"{path}.o.weight", 1)}
        ((windows_alone, axis),) = members(axes, f"{path}.heads") - expected
        assert expected <= members(axes, f"{path}.heads")
        assert "relative" in windows_alone
        assert axis == 0

    def test_units_belong_to_the_ratio_although_they_grow_with_the_width(self, axes):
        path = "stages.1.blocks.1.ffn"
        expected = {(f"{path}.up.weight", 0), (f"{path}.up.bias", 0), (f"{path}.down.weight", 1)}
        assert members(axes, f"{path}.ratio") == expected

    def test_width_reaches_into_the_next_stage(self, axes):
        width = members(axes, "stages.0.width")
        assert ("stem.conv.weight", 0) in width
        ((reduction, axis),) = (m for m in width if m[0].startswith("stages.1.") and "reduction" in m[0])
        assert axis == 2
        assert (reduction, 0) in members(axes, "stages.1.width")

    def test_windows_are_cut_around_their_centre_and_keep_their_order(self, supernet):
        with pytest.raises(LayoutError, match=r"must change the length of some axis: none matches \*\.size"):
            coupled_axes(supernet, ("*.size",), IMAGES)

    def test_a_forgotten_member_is_found_out(self, supernet, axes):
        for axis in axes:
            for i in range(len(axis.members)):
                if axis.members[i][0].endswith("mixer.k.bias"):
                    continue  # adds the same to all scores of a query: any order of it answers the same
                broken = replace(axis, members=axis.members[:i] + axis.members[i + 1 :])
                with pytest.raises(LayoutError, match="must leave every answer as it was"):
                    require_symmetry(supernet, [broken], IMAGES)

    def test_a_forgotten_scale_is_found_out_though_all_are_1_yet(self, axes):
        fresh = Supernet(hierarchical.build, hierarchical.space(Task, depths=(1, 2), bits=(32,)))
        width = next(axis for axis in axes if axis.name == "stages.0.width")
        scale = ("stages.0.blocks.0.norm1.weight", 0)
        broken = replace(width, members=tuple(m for m in width.members if m != scale))
        require_symmetry(fresh, [width], IMAGES)
        with pytest.raises(LayoutError, match="must leave every answer as it was"):
            require_symmetry(fresh, [broken], IMAGES)

    def test_an_axis_that_means_something_is_refused(self, supernet):
        pixels = CoupledAxis("stem", 3, (("stem.conv.weight", 2),))
        with pytest.raises(LayoutError, match=r"`stem` does not: stem.conv.weight \(axis 2\)"):
            require_symmetry(supernet, [pixels], IMAGES)


@pytest.mark.parametrize("name", ["magnitude", "taylor"])
class TestOrdering:
    def test_the_whole_answers_as_before(self, supernet, axes, name):
        after = ordered(supernet, scores_of(name, supernet, axes))
        rng = np.random.default_rng(0)
        assert not torch.equal(after.bank["stem.conv.bias"], supernet.bank["stem.conv.bias"])
        for _ in range(20):
            sampled = supernet.space.sample(rng)
            whole = whole_but_for_mixers(supernet.space.largest(), sampled)
            with torch.inference_mode():
                torch.testing.assert_close(
                    after(whole, IMAGES), supernet(whole, IMAGES), rtol=1e-5, atol=1e-5
                )

    def test_prefixes_keep_the_highest_scores(self, supernet, axes, name):
        scores = scores_of(name, supernet, axes)
        again = scores_of(name, ordered(supernet, scores), axes)
        for axis in axes:
            assert scores[axis].shape == (axis.length,)
            torch.testing.assert_close(
                again[axis], scores[axis].sort(descending=True)[0], rtol=1e-3, atol=1e-9
            )

    def test_what_was_made_important_comes_first(self, supernet, axes, name):
        axis = next(a for a in axes if a.name == "stages.0.blocks.0.ffn.ratio")
        bank = {n: t.clone() for n, t in supernet.state().items()}
        for parameter, dim in axis.members:
            bank[parameter].select(dim, 77).mul_(20)
        loud = supernet.with_state(bank)
        assert int(scores_of(name, loud, [axis])[axis].argmax()) == 77
        first = ordered(loud, scores_of(name, loud, [axis])).bank["stages.0.blocks.0.ffn.up.weight"][0]
        assert torch.equal(first, loud.bank["stages.0.blocks.0.ffn.up.weight"][77])


def whole_but_for_mixers(largest, sampled):
    """The largest architecture, with the kinds of mixers of a sampled one at full heads."""
    stages = []
    for stage, other in zip(largest.stages, sampled.stages, strict=True):
        mixers = [replace(block.mixer, heads=4) for block in other.blocks]
        blocks = tuple(replace(b, mixer=m) for b, m in zip(stage.blocks, mixers, strict=False))
        stages.append(replace(stage, blocks=blocks))
    return replace(largest, stages=tuple(stages))


def test_magnitude_is_the_norm_of_all_that_goes(supernet, axes):
    axis = next(a for a in axes if a.name == "stages.0.blocks.0.ffn.ratio")
    up, bias, down = (
        supernet.bank[f"stages.0.blocks.0.ffn.{n}"] for n in ("up.weight", "up.bias", "down.weight")
    )
    expected = torch.sqrt(up[5].square().sum() + bias[5].square() + down[:, 5].square().sum())
    torch.testing.assert_close(magnitude(supernet, [axis])[axis][5], expected.detach())


def test_taylor_is_the_squared_sum_of_gradient_times_weight(supernet, axes):
    axis = next(a for a in axes if a.name == "stages.1.blocks.0.mixer.heads")
    found = taylor(supernet, [axis], loss, [(IMAGES, LABELS)])[axis]
    parameters = {n: supernet.bank[n] for n, _ in axis.members if "relative" not in n}
    gradients = torch.autograd.grad(loss(supernet, (IMAGES, LABELS)), list(parameters.values()))
    total = 0.0
    for (name, weight), gradient in zip(parameters.items(), gradients, strict=True):
        product = (weight * gradient).movedim(1 if name.endswith("o.weight") else 0, 0)
        total = total + product[2].sum()
    torch.testing.assert_close(found[2], (total**2).detach())
    assert all(p.grad is None for p in supernet.parameters())


def test_a_permuted_bank_trains_on(supernet, axes):
    after = permuted(supernet, {axes[0]: torch.arange(axes[0].length)})
    assert all(p.requires_grad for p in after.parameters())
    assert all(torch.equal(after.bank[n], t) for n, t in supernet.state().items())
