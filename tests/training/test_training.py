"""The loop: what a step computes, and that it can be interrupted anywhere."""

from __future__ import annotations

import json
import math
import shutil
import sys
import time
from dataclasses import dataclass, field, replace
from itertools import product
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import SafetensorError
from torch import nn
from torch.utils.checkpoint import checkpoint
from training.small import (
    RECIPE,
    Stop,
    Tokens,
    assert_gradients,
    bank_gradients,
    copy_of,
    made_up_supernet,
    made_up_task,
    one_batch,
    step_gradients,
    stop_at_step,
)

from nas import files
from nas.architecture import architecture_id
from nas.errors import RunError, SpaceError
from nas.experiment import Experiment
from nas.skeleton import skeleton_of
from nas.space import Space, oneof
from nas.supernet import Supernet
from nas.tasks import Batch, Mix
from nas.training import (
    Alone,
    Checkpoints,
    Distillation,
    OneBatch,
    Only,
    Recipe,
    Sandwich,
    SinglePath,
    Subnets,
    load_tensors,
    save_tensors,
    soft_loss,
    train,
)
from nas.training.drawing import Drawing
from nas.training.feed import Feed
from nas.training.gradients import Gradients
from nas.training.loop import _Training
from nas.training.optimizer import SlicedAdamW
from nas.training.streams import MIXING, MODULES, SIDES, stream
from search_spaces import hierarchical


@pytest.fixture(scope="module")
def task():
    return made_up_task()


@pytest.fixture
def supernet(task):
    return made_up_supernet(task)


def equal(a: dict[str, torch.Tensor], b: dict[str, torch.Tensor]) -> bool:
    return set(a) == set(b) and all(torch.equal(a[n], b[n]) for n in a)


def test_it_learns_and_writes_what_it_did(task, supernet, tmp_path):
    epochs = []
    train(supernet, task, replace(RECIPE, epochs=6), tmp_path, on_epoch=epochs.append)
    assert epochs[-1].loss < epochs[0].loss
    assert len((tmp_path / "history.jsonl").read_text().splitlines()) == 6
    saved, _ = load_tensors(tmp_path / "model.safetensors")
    assert equal(saved, supernet.state())


def test_a_step_may_train_one_subnet(task, supernet, tmp_path):
    epochs = []
    only = replace(RECIPE, subnets=Only(supernet.space.largest()))
    train(supernet, task, only, tmp_path, on_epoch=epochs.append)
    assert epochs[-1].loss < epochs[0].loss
    assert epochs[-1].second_metric is None


def test_seed_decides(task, supernet, tmp_path):
    a = train(copy_of(supernet), task, RECIPE, tmp_path / "a", seed=1).state()
    b = train(copy_of(supernet), task, RECIPE, tmp_path / "b", seed=1).state()
    c = train(copy_of(supernet), task, RECIPE, tmp_path / "c", seed=2).state()
    assert equal(a, b)
    assert not equal(a, c)


# --- gradients ------------------------------------------------------------------------------------


def test_the_gradient_of_a_step_is_the_mean_over_its_subnets(task, supernet, tmp_path, monkeypatch):
    """Recomputed without the loop: label loss of the largest, distillation of the others."""
    single = one_batch(task)
    found = step_gradients(supernet, single, RECIPE, tmp_path, monkeypatch)
    (batch,) = single.batches("train", seed=0, epoch=0)
    largest, *others = RECIPE.subnets.at(supernet.space, 0, 0, 0)
    teacher = supernet(largest, *batch.inputs, train=True)
    losses = [single.loss(teacher, batch)]
    losses += [soft_loss(supernet(a, *batch.inputs, train=True), teacher.detach()) for a in others]
    assert_gradients(found, bank_gradients(supernet, torch.stack(losses).mean()))


def test_accumulated_batches_are_one_large_batch(task, supernet, tmp_path, monkeypatch):
    single = one_batch(task, 24)
    large = replace(single, batch_size=24)
    small = replace(single, batch_size=10)  # 10, 10 and 4 images
    whole = step_gradients(supernet, large, RECIPE, tmp_path / "a", monkeypatch)
    parts = step_gradients(supernet, small, replace(RECIPE, accumulate=3), tmp_path / "b", monkeypatch)
    assert_gradients(parts, whole)


def test_parts_count_by_what_a_loss_is_a_mean_over(task, supernet, tmp_path, monkeypatch):
    """Also where one holds nothing of it, whose mean is none."""
    single = one_batch(task, 24)
    order = np.argsort(
        single.labels[single.splits["train"]] != 1, kind="stable"
    )  # what is ignored comes first
    single = replace(single, splits=dict(single.splits) | {"train": single.splits["train"][order]})
    in_order = InOrder(single)
    assert (single.labels[single.splits["train"]][:5] == 1).all()
    large, small = (Tokens(replace(in_order, base=replace(single, batch_size=n))) for n in (24, 5))
    whole = step_gradients(supernet, large, RECIPE, tmp_path / "a", monkeypatch)
    parts = step_gradients(supernet, small, replace(RECIPE, accumulate=5), tmp_path / "b", monkeypatch)
    assert_gradients(parts, whole)


@dataclass(frozen=True)
class InOrder:
    """The task, whose images of *train* come as they stand."""

    base: Any

    def __getattr__(self, name: str) -> Any:
        return getattr(self.base, name)

    def batches(self, split, *, seed=0, epoch=0, part=(0, 1), first=0):
        size, rows = self.base.batch_size, self.base.splits[split]
        for i in range(first, math.ceil(len(rows) / size)):
            chosen = rows[i * size : (i + 1) * size]
            yield Batch((self.base.prepared(chosen),), torch.from_numpy(self.base.labels[chosen]).long())


@pytest.mark.parametrize("weight", [-1.0, math.nan, math.inf])
def test_weights_that_are_none_are_named(weight, task, supernet, tmp_path, monkeypatch):
    monkeypatch.setattr(Tokens, "weight", lambda self, batch: weight)
    with pytest.raises(RunError, match=rf"`weight` of Tokens must be .*: got {weight} at step 0"):
        train(supernet, Tokens(task), RECIPE, tmp_path)


def test_projection_takes_from_the_largest_what_opposes_the_others(task, supernet, tmp_path, monkeypatch):
    single = one_batch(task)
    found = step_gradients(supernet, single, replace(RECIPE, project=True), tmp_path, monkeypatch)
    (batch,) = single.batches("train", seed=0, epoch=0)
    largest, *others = RECIPE.subnets.at(supernet.space, 0, 0, 0)
    teacher = supernet(largest, *batch.inputs, train=True)
    n = 1 + len(others)
    of_largest = bank_gradients(supernet, single.loss(teacher, batch) / n)
    losses = [soft_loss(supernet(a, *batch.inputs, train=True), teacher.detach()) for a in others]
    of_others = bank_gradients(supernet, torch.stack(losses).sum() / n)
    conflicts = 0
    for name in of_largest.keys() & of_others.keys():
        inner = (of_largest[name] * of_others[name]).sum()
        if inner < 0:
            conflicts += 1
            of_largest[name] -= inner / of_others[name].square().sum() * of_others[name]
    assert conflicts
    names = of_largest.keys() | of_others.keys()
    assert_gradients(found, {n: of_largest.get(n, 0) + of_others.get(n, 0) for n in names})


def test_a_large_gradient_is_clipped(task, supernet, tmp_path):
    """With plain steps of Adam a clipped gradient shows in the second moment."""
    single = one_batch(task)
    for clip, at_most in ((1e-3, 1e-6), (float("inf"), float("inf"))):
        net = copy_of(supernet)
        train(net, single, replace(RECIPE, epochs=1, clip=clip), tmp_path / str(clip))
        (path,) = (tmp_path / str(clip) / "checkpoints").iterdir()
        tensors, _ = load_tensors(path)
        seen = sum(float(t.sum()) for n, t in tensors.items() if n.startswith("exp_avg_sq:")) / 1e-3
        assert 0 < seen <= at_most * 1.01
        assert seen > 1e-5 or clip == 1e-3


def test_rates_are_of_the_first_pattern_that_fits(task, supernet, tmp_path):
    recipe = replace(RECIPE, rates=((r"stem\..*", 0.0), (r".*", 0.5)), weight_decay=0.0)
    before = {n: t.clone() for n, t in supernet.state().items()}
    train(supernet, task, recipe, tmp_path)
    moved = {n for n, t in supernet.state().items() if not torch.equal(before[n], t)}
    assert not any(n.startswith("stem.") for n in moved)
    assert "head.linear.weight" in moved
    assert {recipe.groups(dict.fromkeys(before, True))[n].rate for n in before} == {0.0, 0.5}


@dataclass(frozen=True)
class Noting(Sandwich):
    """Keeps what it drew."""

    drawn: list = field(default_factory=list, compare=False)

    def at(self, space, seed, step, progress):
        self.drawn.append(super().at(space, seed, step, progress))
        return self.drawn[-1]


def test_what_is_withheld_is_not_trained(task, supernet, tmp_path):
    rule = Noting(random=3)
    recipe = replace(RECIPE, epochs=2, subnets=rule, withheld=(("ratio", (3,)), ("width", (8,))))
    before = {n: t.clone() for n, t in supernet.state().items()}
    train(supernet, task, recipe, tmp_path)
    seen = [a for step in rule.drawn for a in step]
    assert {b.ffn.ratio for a in seen for s in a.stages for b in s.blocks} == {1, 2}
    assert {s.width for a in seen for s in a.stages} == {16, 24}
    up = "stages.0.blocks.0.ffn.up.weight"
    after = supernet.state()[up]
    assert torch.equal(after[32:], before[up][32:])  # of 48, ratio 3
    assert not torch.equal(after[:32], before[up][:32])


@dataclass(frozen=True)
class Units:
    units: int


class Frozen(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.hidden, self.head = nn.Linear(64, width), nn.Linear(width, 3)
        self.table = nn.Parameter(torch.ones(width), requires_grad=False)

    def forward(self, images):
        return self.head(self.hidden(images.flatten(1)) + self.table)


def test_what_a_builder_has_frozen_stays_as_it_is(task, tmp_path):
    """Such as a table of sines and cosines, or a part that is trained already."""
    supernet = Supernet(lambda a: Frozen(a.units), Space(Units(oneof(8, 16))))
    assert {n for n, p in supernet.bank.items() if not p.requires_grad} == {"table"}
    before = {n: t.clone() for n, t in supernet.state().items()}
    train(supernet, task, replace(RECIPE, weight_decay=0.3, ema=0.5), tmp_path / "whole")
    alone = Supernet(lambda a: Frozen(a.units), Space(Units(8)))
    alone = alone.with_weights(supernet.weights(Units(8)), Units(8))
    train(alone, task, replace(RECIPE, subnets=Only(Units(8))), tmp_path / "alone")
    assert torch.equal(supernet.state()["table"], before["table"])
    assert torch.equal(alone.state()["table"], before["table"][:8])
    assert not torch.equal(supernet.state()["hidden.weight"], before["hidden.weight"])
    assert not supernet.extract(Units(16)).table.requires_grad


class Rare(Supernet):
    """Lacks weights of some architectures."""

    def holds(self, architecture):
        return architecture.units in (8, 16)


def test_a_step_that_draws_what_the_bank_lacks_is_drawn_again():
    supernet = Rare(lambda a: Frozen(a.units), Space(Units(oneof(8, 16, 32))))
    drawing = Drawing(supernet, SinglePath(), supernet.space, 0, 60, torch.device("cpu"))
    drawn = [drawing.at(step)[0] for step in range(60)]
    assert {a.units for a in drawn} == {8, 16}
    first = [SinglePath().at(supernet.space, 0, step, 0.0)[0] for step in range(60)]
    assert all(a == b for a, b in zip(drawn, first, strict=True) if b.units != 32)
    again = Drawing(supernet, SinglePath(), supernet.space, 0, 60, torch.device("cpu"))
    assert [again.at(step)[0] for step in reversed(range(60))] == drawn[::-1]


@pytest.mark.parametrize("rule", [Only(Units(32)), Sandwich()], ids=["only", "teacher"])
def test_what_cannot_be_drawn_otherwise_is_missed_by_name(rule):
    """A subnet that is not the largest must not teach in its place."""
    supernet = Rare(lambda a: Frozen(a.units), Space(Units(oneof(8, 16, 32))))
    drawing = Drawing(supernet, rule, supernet.space, 0, 60, torch.device("cpu"))
    assert drawing.at(3)[0] == Units(32)


def test_what_cannot_be_withheld_stops_before_any_work(task, supernet, tmp_path):
    recipe = replace(RECIPE, withheld=(("ratio", (5,)),))
    for attempt in (
        lambda: train(supernet, task, recipe, tmp_path / "new"),
        lambda: Experiment("a", task, supernet.space, hierarchical.build, training=recipe),
    ):
        with pytest.raises(SpaceError, match="option of a `oneof` called `ratio`: got 5"):
            attempt()
    assert not (tmp_path / "new").exists()


def test_rates_that_fit_no_parameter(task, supernet, tmp_path):
    with pytest.raises(RunError, match=r"fit whole names of parameters, such as .*: 'stme\\..*' fits none"):
        train(supernet, task, replace(RECIPE, rates=((r"stme\..*", 0.1),)), tmp_path / "new")
    assert not (tmp_path / "new").exists()
    Recipe(rates=(("nowhere.*", 0.5),)).alone(None).groups({"here": True})  # which may lack that block


def test_only_matrices_decay(supernet):
    names = supernet.matrices()
    assert "stages.1.down.merged_norm.weight" not in names  # stored with two axes, yet a norm
    assert "stages.0.blocks.0.mixer.position.relative" not in names
    recurrent = Supernet(lambda a: nn.LSTM(4, a.units), Space(Units(oneof(8, 16)))).matrices()
    assert recurrent == {"weight_ih_l0", "weight_hh_l0"}
    assert {"stem.conv.weight", "stages.0.blocks.0.ffn.up.weight"} <= names
    groups = RECIPE.groups({n: n in names for n in supernet.bank})
    assert {groups[n].decay for n in names} == {RECIPE.weight_decay}
    assert {groups[n].decay for n in supernet.bank.keys() - names} == {0.0}


def test_learning_rate_warms_up_and_falls():
    recipe = Recipe(learning_rate=1.0, warmup=0.1)
    assert recipe.rate(0) == 0
    assert recipe.rate(0.05) == pytest.approx(0.5)
    assert recipe.rate(0.1) == pytest.approx(1)
    assert recipe.rate(1) == pytest.approx(0)
    assert Recipe(learning_rate=1.0, warmup=1.0).rate(1) == 1


def test_images_are_scaled_to_the_resolution_of_the_step(task, supernet, tmp_path):
    sides = []

    def watched(architecture):
        module = supernet.build(architecture)
        module.register_forward_pre_hook(lambda _, inputs: sides.append(inputs[0].shape[-2:]))
        return module

    flexible = hierarchical.space(task, widths=((8,), (16,)), depths=(1, 1), windows=(2,))
    train(
        Supernet(watched, flexible),
        task,
        replace(RECIPE, resolutions=(8, 16), subnets=SinglePath()),
        tmp_path,
    )
    assert set(sides) == {(8, 8), (16, 16)}


def test_sides_do_not_follow_from_the_architectures_beside_them(task):
    """Nor does anything else that is drawn: numbers of one stream would come in pairs."""
    space = hierarchical.space(task, widths=((8, 16, 24),), depths=(1, 1))
    feed = Feed(task, replace(RECIPE, resolutions=(4, 8, 16)), 0, Alone(), torch.device("cpu"))
    batch = next(task.batches("train"))
    pairs = {
        (
            SinglePath().at(space, 0, step, 0.0)[0].stages[0].width,
            feed.prepared(batch, step, 0).inputs[0].shape[-1],
        )
        for step in range(80)
    }
    assert pairs == set(product((8, 16, 24), (4, 8, 16)))
    streams = [stream(purpose, 3, 5, place) for purpose in (MIXING, SIDES, MODULES) for place in (0, 1)]
    streams += [np.random.default_rng(key) for key in ((3, 5), (3, 5, 1))]
    assert len({generator.random() for generator in streams}) == len(streams)


def test_targets_may_lie_between_classes(task, supernet, tmp_path):
    epochs = []
    mix = Mix(mixup=0.2, cutmix=1.0, label_smoothing=0.1)
    train(supernet, task, replace(RECIPE, mix=mix), tmp_path, on_epoch=epochs.append)
    assert epochs[-1].loss < epochs[0].loss
    a = train(made_up_supernet(task), task, replace(RECIPE, mix=mix, epochs=1), tmp_path / "a").state()
    b = train(made_up_supernet(task), task, replace(RECIPE, mix=mix, epochs=1), tmp_path / "b").state()
    assert equal(a, b)


def test_the_average_of_weights_is_what_is_kept(task, supernet, tmp_path):
    plain = train(copy_of(supernet), task, RECIPE, tmp_path / "plain").state()
    slow = train(copy_of(supernet), task, replace(RECIPE, ema=0.999), tmp_path / "slow").state()
    saved, _ = load_tensors(tmp_path / "slow" / "model.safetensors")
    assert equal(saved, slow)
    assert not equal(plain, slow)


def test_the_average_is_that_of_its_definition(task, supernet, tmp_path):
    recipe = replace(RECIPE, ema=0.5, epochs=2)
    expected, step = {n: t.clone() for n, t in supernet.state().items()}, [0]

    def follow(done):
        decay = min(0.5, (1 + step[0]) / (10 + step[0]))
        for name, tensor in supernet.state().items():
            expected[name].mul_(decay).add_(tensor, alpha=1 - decay)
        step[0] += 1

    train(supernet, task, recipe, tmp_path, on_step=follow)
    for name, tensor in supernet.state().items():
        torch.testing.assert_close(tensor, expected[name])


# --- interruptions --------------------------------------------------------------------------------

RESUMED = {
    "plain": RECIPE,
    "averaged": replace(RECIPE, ema=0.9),
    "accumulated": replace(RECIPE, accumulate=2),
    "mixed": replace(RECIPE, mix=Mix(mixup=0.2, label_smoothing=0.1)),
    "single path": replace(RECIPE, subnets=SinglePath()),
}


@pytest.mark.parametrize("recipe", RESUMED.values(), ids=RESUMED)
def test_resumed_weights_equal_uninterrupted_ones(recipe, task, supernet, tmp_path):
    """Wherever it stops: at every step that there is, epochs of 3 batches."""
    whole = train(supernet, task, recipe, tmp_path / "whole").state()
    steps = recipe.epochs * -(-3 // recipe.accumulate)
    for stop in sorted({1, 2, 4, steps - 1}) if recipe is RECIPE else (4,):
        folder = tmp_path / str(stop)
        with pytest.raises(Stop):
            train(copy_of(supernet), task, recipe, folder, on_step=stop_at_step(stop))
        assert equal(whole, train(copy_of(supernet), task, recipe, folder).state()), stop
        a, b = (
            [json.loads(line) for line in (d / "history.jsonl").read_text().splitlines()]
            for d in (tmp_path / "whole", folder)
        )
        for line in (*a, *b):
            assert line.pop("seconds") > 0
            assert 0 < line.pop("core_seconds") < 60
            assert 0 <= line.pop("waiting") < 1
        assert a == b


def test_work_after_the_last_checkpoint_is_done_again(task, supernet, tmp_path):
    rare = replace(RECIPE, checkpoint_seconds=1e9)
    whole = train(supernet, task, rare, tmp_path / "whole").state()
    with pytest.raises(Stop):
        train(copy_of(supernet), task, rare, tmp_path / "cut", on_step=stop_at_step(7))
    resumed = train(copy_of(supernet), task, rare, tmp_path / "cut").state()
    assert equal(whole, resumed)
    assert (tmp_path / "cut" / "history.jsonl").read_text().count("\n") == 4


class Again(nn.Module):
    """Whose middle may run again in the backward pass."""

    again = False

    def __init__(self, units: int) -> None:
        super().__init__()
        self.up, self.norm, self.down = nn.Linear(64, units), nn.LayerNorm(units), nn.Linear(units, 3)

    def middle(self, x):
        return self.norm(self.up(x).relu())

    def forward(self, x):
        x = x.flatten(1)
        hidden = checkpoint(self.middle, x, use_reentrant=False) if self.again else self.middle(x)
        return self.down(hidden)


@pytest.mark.parametrize("subnets", [Sandwich(), OneBatch(3)], ids=["one by one", "in one batch"])
def test_parts_may_run_again_in_the_backward_pass(subnets, task, tmp_path, monkeypatch):
    """Activation checkpointing: the gradients are those without it."""
    supernet = Supernet(lambda a: Again(a.units), Space(Units(oneof(8, 16))))
    recipe, found = replace(RECIPE, subnets=subnets), []
    for again in (False, True):
        monkeypatch.setattr(Again, "again", again)
        found.append(step_gradients(supernet, one_batch(task), recipe, tmp_path / str(again), monkeypatch))
    assert_gradients(found[1], found[0])


class Dropped(nn.Module):
    def __init__(self, units: int) -> None:
        super().__init__()
        self.up, self.drop, self.down = nn.Linear(64, units), nn.Dropout(0.5), nn.Linear(units, 3)

    def forward(self, x):
        return self.down(self.drop(self.up(x.flatten(1)).relu()))


def dropped(architecture):
    return Dropped(architecture.units)


def test_random_numbers_of_modules_are_those_of_the_step(task, tmp_path):
    space = Space(Units(oneof(8, 16)))
    whole = train(Supernet(dropped, space), task, RECIPE, tmp_path / "whole").state()
    with pytest.raises(Stop):
        train(Supernet(dropped, space), task, RECIPE, tmp_path / "cut", on_step=stop_at_step(5))
    torch.rand(7)  # whatever happens in between
    assert equal(whole, train(Supernet(dropped, space), task, RECIPE, tmp_path / "cut").state())


def test_a_builder_may_draw_random_numbers(task, tmp_path):
    """What dropout draws does not depend on which modules are built when, and which are in the cache."""

    def drawing(architecture):
        assert torch.rand(1, device="cpu") < 1
        return dropped(architecture)

    def trained(folder, **kw):
        supernet = Supernet(drawing, Space(Units(oneof(8, 16))))
        skeleton_of.cache_clear()
        return train(supernet, task, RECIPE, folder, **kw).state()

    whole = trained(tmp_path / "whole")
    with pytest.raises(Stop):
        trained(tmp_path / "cut", on_step=stop_at_step(5))
    assert equal(whole, trained(tmp_path / "cut"))


class Projected(nn.Module):
    """By a matrix that is drawn, and not trained."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.register_buffer("projection", torch.randn(64, 16) / 8)
        self.up, self.down = nn.Linear(16, units), nn.Linear(units, 3)

    def forward(self, x):
        return self.down(self.up(x.flatten(1) @ self.projection).relu())


def test_buffers_that_a_builder_draws_are_drawn_once(task, tmp_path):
    """Whichever random numbers were drawn before, by a training that goes on and by who extracts."""
    space, states = Space(Units(oneof(8, 16))), []
    for seed in (1, 2):
        skeleton_of.cache_clear()
        torch.manual_seed(seed)
        supernet = Supernet(lambda a: Projected(a.units), space)
        states.append(train(supernet, task, RECIPE, tmp_path / str(seed)).state())
    assert equal(*states)
    architecture, images = space.largest(), torch.rand(3, 1, 8, 8)
    torch.manual_seed(3)
    with torch.no_grad():
        torch.testing.assert_close(
            supernet.extract(architecture)(images), supernet(architecture, images), rtol=0, atol=1e-6
        )


def test_a_loss_and_a_rule_may_draw_random_numbers(task, tmp_path, monkeypatch):
    own, space = type(task).loss, Space(Units(oneof(8, 16)))

    @dataclass(frozen=True)
    class Drawn(Subnets):
        def at(self, space, seed, step, progress):
            return [(space.smallest(), space.largest())[int(torch.randint(2, ()))] for _ in range(2)]

    def loss(self, answer, batch):
        return own(self, answer + 0.1 * torch.randn(answer.shape), batch)

    monkeypatch.setattr(type(task), "loss", loss)
    recipe = replace(RECIPE, subnets=Drawn())
    whole = train(Supernet(dropped, space), task, recipe, tmp_path / "whole").state()
    with pytest.raises(Stop):
        train(Supernet(dropped, space), task, recipe, tmp_path / "cut", on_step=stop_at_step(5))
    assert equal(whole, train(Supernet(dropped, space), task, recipe, tmp_path / "cut").state())
    never = replace(recipe, explosion=math.inf)  # asks for no loss of zeros, which draws too
    assert equal(whole, train(Supernet(dropped, space), task, never, tmp_path / "never").state())


def test_the_loss_of_zeros_is_asked_for_once(task, tmp_path, monkeypatch):
    """That of the first batch, also by a training that goes on."""
    own, zeros = type(task).loss, []

    def loss(self, answer, batch):
        zeros.extend([] if answer.any() else [1])
        return own(self, answer, batch)

    monkeypatch.setattr(type(task), "loss", loss)
    with pytest.raises(Stop):
        train(made_up_supernet(task), task, RECIPE, tmp_path, on_step=stop_at_step(5))
    train(made_up_supernet(task), task, RECIPE, tmp_path)
    assert zeros == [1]


def test_the_rest_of_an_epoch_is_shared_by_fewer(task, tmp_path):
    """A batch norm has no variance over one image."""

    def normed(architecture):
        units = architecture.units
        return nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.BatchNorm1d(units), nn.Linear(units, 3))

    supernet = Supernet(normed, Space(Units(oneof(8, 16))))
    train(supernet, one_batch(task, 32 + 5), replace(RECIPE, subnets=OneBatch(4)), tmp_path)


@pytest.mark.parametrize("subnets", [SinglePath(), Sandwich()])
def test_no_image_is_a_batch_by_itself(task, subnets, tmp_path):
    """Nor has a batch norm a variance over one; each epoch leaves out another."""

    def normed(architecture):
        units = architecture.units
        return nn.Sequential(nn.Flatten(), nn.Linear(64, units), nn.BatchNorm1d(units), nn.Linear(units, 3))

    one = one_batch(task, 2 * 16 + 1)
    one = replace(one, batch_size=16)
    sizes = [[len(b.targets) for b in one.batches("train", epoch=epoch)] for epoch in range(4)]
    assert sizes == [[16, 16]] * 4
    assert one.batch_count("train") == 2
    left = {float(sum(b.inputs[0].sum() for b in one.batches("train", epoch=epoch))) for epoch in range(4)}
    assert len(left) > 1
    assert [len(b.targets) for b in replace(one, batch_size=1).batches("train")] == [1] * 33
    train(Supernet(normed, Space(Units(oneof(8, 16)))), one, replace(RECIPE, subnets=subnets), tmp_path)


def test_sides_that_some_architecture_does_not_take(task, supernet, tmp_path):
    """Steps may draw both together hours from now."""
    recipe = replace(RECIPE, resolutions=(8, 12), subnets=Only(supernet.space.smallest()))
    with pytest.raises(
        RunError,
        match=r"`training\.resolutions` must hold sides .*: got 12, which \w+ does not: A window must",
    ):
        train(supernet, task, recipe, tmp_path)
    assert not list(tmp_path.glob("checkpoints/*"))


class Positions(nn.Module):
    """As of a plain transformer, which takes images of one size."""

    def __init__(self, units: int) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(1, units, 4, 4), nn.Linear(units, 3)
        self.positions = nn.Parameter(torch.zeros(4, units))

    def forward(self, x):
        return self.head((self.patches(x).flatten(2).transpose(1, 2) + self.positions).mean(1))


def test_sides_that_somebodys_module_does_not_take(task, tmp_path):
    supernet = Supernet(lambda a: Positions(a.units), Space(Units(oneof(8, 16))))
    with pytest.raises(RunError, match=r"sides that all architectures take: got 12, which \w+ does not"):
        train(supernet, task, replace(RECIPE, resolutions=(8, 12)), tmp_path)
    train(supernet, task, replace(RECIPE, resolutions=(8,), epochs=1), tmp_path)


@dataclass(frozen=True)
class Pooled:
    first: int
    second: int


def test_sides_that_only_two_choices_together_do_not_take(task, tmp_path):
    """Of which the cover, where one choice at a time leaves its top, holds none."""

    def build(a):
        pooling = nn.MaxPool2d((3 - a.first) * (3 - a.second))
        return nn.Sequential(
            nn.Conv2d(1, 8, 1), pooling, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 3)
        )

    space = Space(Pooled(oneof(1, 2), oneof(1, 2)))
    refused = Pooled(1, 1)
    supernet = Supernet(build, space)
    assert refused not in supernet.cover
    with pytest.raises(RunError, match=f"got 3, which {architecture_id(refused)} does not"):
        train(supernet, task, replace(RECIPE, resolutions=(3, 8)), tmp_path)
    assert not list(tmp_path.glob("checkpoints/*"))


def test_a_loss_that_is_not_finite_stops_the_run(task, supernet, tmp_path):
    broken = replace(task, images=np.full_like(task.images, np.inf))
    with pytest.raises(
        RunError, match=r"must stay finite, but is nan at step 0 of architecture .*no good checkpoint"
    ):
        train(supernet, broken, RECIPE, tmp_path)


class Backwards(torch.autograd.Function):
    """Gives what comes, and no numbers on the way back."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return gradient * math.nan


class Unsound(Frozen):
    """Of 8 units, whose gradients are none once there were some steps."""

    steps = 0

    def forward(self, images):
        answer = super().forward(images)
        if self.head.in_features == 8 and self.training:
            Unsound.steps += 1
            return answer if Unsound.steps <= 3 else Backwards.apply(answer)
        return answer


@pytest.mark.parametrize("rule", [Sandwich(), OneBatch(6)], ids=["one by one", "in one batch"])
def test_a_gradient_that_is_not_finite_is_that_of_its_subnet(rule, task, tmp_path, monkeypatch):
    """And not of the first of its step; by it a checkpoint is found good."""
    monkeypatch.setattr(Unsound, "steps", 0)
    supernet = Supernet(lambda a: Unsound(a.units), Space(Units(oneof(8, 16, 32))))
    drawn = rule.at(supernet.space, 0, 0, 0.0)
    assert drawn[0] != Units(8)
    message = f"norm of the gradient must stay finite, but is nan at step .* of architecture {ID_OF_8}"
    with pytest.raises(RunError, match=message):
        train(supernet, task, replace(RECIPE, subnets=rule), tmp_path)
    assert json.loads((tmp_path / "diverged.json").read_text())["units"] == 8


ID_OF_8 = architecture_id(Units(8))


def test_a_loss_that_explodes_stops_the_run(task, supernet, tmp_path):
    wild = replace(
        RECIPE,
        learning_rate=50.0,
        warmup=0.9,
        explosion=2.0,
        epochs=20,
        subnets=Only(supernet.space.largest()),
    )
    message = (
        r"loss must not exceed 2 times that of the first steps or of zeros, .* at step \d+ of architecture .*"
        r"good checkpoint is .*step-\d+\.safe"
    )
    with pytest.raises(RunError, match=message) as raised:
        train(supernet, task, wild, tmp_path)
    good, ruined = sorted((tmp_path / "checkpoints").iterdir())
    assert str(good) in str(raised.value)
    assert f"put aside as {ruined.name}" in str(raised.value)
    told = json.loads((tmp_path / "diverged.json").read_text())
    assert supernet.space.from_json(told) == supernet.space.largest()
    train(supernet, task, replace(RECIPE, epochs=20, subnets=wild.subnets), tmp_path)  # goes on from it
    left = {path.name for path in tmp_path.rglob("*")}
    assert not {"diverged.json", ruined.name} & left


def test_any_subnet_may_explode(task, supernet, tmp_path, monkeypatch):
    """Not only the first of a step, whose loss goes into the history."""
    count, own = [0], type(task).loss

    def loss(self, answer, batch):
        count[0] += 1
        return own(self, answer, batch) * (1e4 if count[0] == 43 else 1.0)  # the second of the 11th step

    monkeypatch.setattr(type(task), "loss", loss)
    smallest = architecture_id(supernet.space.smallest())
    with pytest.raises(RunError, match=f"must not exceed 20 times .* at step 10 of architecture {smallest}"):
        train(supernet, task, RECIPE, tmp_path)


def test_good_weights_may_meet_an_odd_batch(task, supernet, tmp_path, monkeypatch):
    """A loss of 0.001 that becomes 0.1 on one batch is no explosion."""
    count, own = [0], type(task).loss

    def loss(self, answer, batch):
        count[0] += 1
        known = own(self, answer, batch) if count[0] == 2 else None  # that of zeros
        return known if known is not None else answer.sum() * 0 + (0.1 if count[0] == 45 else 1e-3)

    monkeypatch.setattr(type(task), "loss", loss)
    train(supernet, task, RECIPE, tmp_path)
    assert count[0] > 45


def test_the_first_steps_may_explode(task, supernet, tmp_path, monkeypatch):
    count, own = [0], type(task).loss

    def loss(self, answer, batch):
        count[0] += 1
        return own(self, answer, batch) * (1e4 if count[0] == 6 else 1.0)  # the first of the second step

    monkeypatch.setattr(type(task), "loss", loss)
    with pytest.raises(RunError, match=r"must not exceed 20 times .* at step 1 "):
        train(supernet, task, RECIPE, tmp_path)


@pytest.mark.parametrize("first", [[0.01], [-1.0] * 11], ids=["by chance not", "at first"])
def test_a_loss_may_be_negative(task, supernet, tmp_path, monkeypatch, first):
    """Such as a cosine, whose first values say nothing of its size."""
    values = iter([first[0], 0.0, *first[1:]])  # the second is that of zeros

    def loss(self, answer, batch):
        return answer.sum() * 0 + next(values, 0.5)

    monkeypatch.setattr(type(task), "loss", loss)
    train(supernet, task, replace(RECIPE, subnets=SinglePath()), tmp_path)


@dataclass(frozen=True)
class Gives(Subnets):
    """A rule that gives something else."""

    what: Any

    def at(self, space, seed, step, progress):
        return self.what(space)


@pytest.mark.parametrize(
    ("what", "message"),
    [
        (lambda space: [], r"must give a list of architectures, one or more: got \[\] at step 0"),
        (lambda space: space.largest(), "must give a list of architectures, one or more: got Hierarchical"),
        (lambda space: [3], r"must give a list of architectures, one or more: got \[3\]"),
        (lambda space: [type(space.largest())], r"must give a list of architectures, one or more: got \[<cl"),
        (
            lambda space: [space.largest(), replace(space.largest(), channels=3)],
            "must give architectures of the space that is trained, but at step 0 one is not: .*channels",
        ),
        (
            lambda space: 1 / 0,
            r"at step 0, .*test_training\.py line \d+: ZeroDivisionError: division by zero",
        ),
    ],
    ids=["nothing", "one", "others", "a class", "of another space", "fails"],
)
def test_a_rule_that_gives_none_is_named(task, supernet, tmp_path, what, message):
    with pytest.raises(RunError, match=f"`at` of Gives {message}" if "must" in message else message):
        train(supernet, task, replace(RECIPE, subnets=Gives(what)), tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


@pytest.mark.parametrize(
    ("method", "instead", "message"),
    [
        (
            "batch_count",
            lambda *_: 0,
            "`batch_count` of ImageClassification must be 1 or more of train: got 0",
        ),
        (
            "batches",
            lambda *_, **__: iter([(1, 2)]),
            r"must give `nas.tasks.Batch\(inputs, targets\)`: got a tuple",
        ),
        (
            "batches",
            lambda *_, **__: iter([Batch((np.ones((4, 1, 8, 8)),), torch.ones(4).long())]),
            r"must give `Batch\(\(tensor, …\), tensor\)`: got a ndarray",
        ),
        (
            "batches",
            lambda *_, **__: iter([Batch(torch.ones(4, 1, 8, 8), torch.ones(4).long())]),
            r"must give `Batch\(\(tensor, …\), tensor\)`: got inputs in a Tensor",
        ),
        (
            "batches",
            lambda *_, **__: iter([Batch((torch.ones(4, 1, 8, 8),), [1, 2])]),
            r"must give `Batch\(\(tensor, …\), tensor\)`: got a list",
        ),
        (
            "batches",
            lambda *_, **__: iter([Batch((torch.ones(0, 1, 8, 8),), torch.ones(0).long())]),
            r"must give one example or more at a time: got targets of \(0,\)",
        ),
        ("batch_count", lambda *_: None, "must be 1 or more of train: got None"),
        (
            "loss",
            lambda *_: torch.ones(()),
            r"`loss` of ImageClassification must have gradients, but at step 0, .*: RuntimeError: ",
        ),
        ("batches", lambda *_, **__: 1 / 0, r"must give those of train, but, .* line \d+: ZeroDivisionError"),
        ("loss", lambda *_: 0.5, "must give a tensor of one number, the mean over the batch: got 0.5"),
        ("loss", lambda *_: torch.ones(4), r"must give a tensor of one number, .*: got a tensor of \(4,\)"),
        ("tallies", lambda *_: {}, "must give a Tally of its metric, accuracy: got {}"),
        ("tallies", lambda *_: 1 / 0, r"must give the metrics of a batch, but, .*: ZeroDivisionError"),
    ],
)
def test_what_a_task_must_give_is_named(task, supernet, tmp_path, monkeypatch, method, instead, message):
    monkeypatch.setattr(type(task), method, instead)
    with pytest.raises(RunError, match=message):
        train(supernet, task, RECIPE, tmp_path)
    assert not (tmp_path / "model.safetensors").exists()


def test_a_teaching_rule_begins_with_the_largest(task, supernet, tmp_path):
    class Teaching(Gives):
        teaches = True

    with pytest.raises(RunError, match="`teaches = True`, must begin with the largest architecture: got Hie"):
        train(supernet, task, replace(RECIPE, subnets=Teaching(lambda s: [s.smallest()])), tmp_path)


def test_answers_of_several_parts_are_named(task, tmp_path):
    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(64, 3)

        def forward(self, x):
            return {"logits": self.linear(x.flatten(1))}

    supernet = Supernet(lambda _: Parts(), Space(Units(oneof(8, 16))))
    with pytest.raises(RunError, match="must answer with one tensor to be trained: got a dict of archit"):
        train(supernet, task, RECIPE, tmp_path)


@pytest.mark.parametrize("law", ["a norm", "gradients of answers"])
def test_losses_that_zeros_have_none_of(task, supernet, tmp_path, monkeypatch, law):
    """What shows an explosion is no reason to stop."""
    own = type(task).loss

    def loss(self, answer, batch):
        if law == "a norm":
            assert answer.norm() > 0
        else:
            torch.autograd.grad(answer.sum(), answer, create_graph=True)
        return own(self, answer, batch)

    monkeypatch.setattr(type(task), "loss", loss)
    train(supernet, task, RECIPE, tmp_path)


def test_time_spent_waiting_is_time(task, supernet, tmp_path, monkeypatch):
    """A share of it; here nearly all."""
    own, epochs = type(task).batches, []

    def slow(self, *arguments, **named):
        for batch in own(self, *arguments, **named):
            time.sleep(0.3)
            yield batch

    monkeypatch.setattr(type(task), "batches", slow)
    train(supernet, task, replace(RECIPE, epochs=1, subnets=SinglePath()), tmp_path, on_epoch=epochs.append)
    assert 0.3 < epochs[0].waiting < 1
    assert epochs[0].seconds > 0.3


def test_rules_are_told_how_far_the_training_is(task, supernet, tmp_path):
    told = []
    train(supernet, task, replace(RECIPE, subnets=Gives(lambda space: [space.largest()])), tmp_path)

    @dataclass(frozen=True)
    class Told(SinglePath):
        def at(self, space, seed, step, progress):
            told.append((step, progress))
            return super().at(space, seed, step, progress)

    train(supernet, task, replace(RECIPE, subnets=Told()), tmp_path / "told")
    assert told == [(step, step / len(told)) for step in range(len(told))]


@pytest.mark.parametrize(("precision", "inside"), [("bfloat16", torch.bfloat16), ("auto", torch.float32)])
def test_precision_is_that_of_modules_and_not_of_weights(task, tmp_path, precision, inside):
    seen = set()

    def watched(architecture):
        module = hierarchical.build(architecture)
        module.head.register_forward_hook(lambda _m, _i, output: seen.add(output.dtype))
        return module

    supernet = Supernet(watched, hierarchical.space(task, widths=((8,),), depths=(1, 1)))
    recipe = replace(RECIPE, subnets=SinglePath(), precision=precision, device="cpu", learning_rate=1e-2)
    epochs = []
    train(supernet, task, recipe, tmp_path, on_epoch=epochs.append)
    assert seen == {inside}
    assert {tensor.dtype for tensor in supernet.state().values()} == {torch.float32}
    assert epochs[-1].loss < epochs[0].loss


@pytest.mark.parametrize("off", [-1, 1])
def test_batches_that_are_not_counted_right_are_named(task, supernet, tmp_path, monkeypatch, off):
    said = task.batch_count("train") + off
    monkeypatch.setattr(type(task), "batch_count", lambda self, split: said)
    with pytest.raises(RunError, match=f"must be the number of batches of an epoch: it says {said} of train"):
        train(supernet, task, RECIPE, tmp_path)


def test_errors_of_the_module_say_where(task, supernet, tmp_path, monkeypatch):
    def loss(self, answer, batch):
        raise ValueError("too few values")

    monkeypatch.setattr(type(task), "loss", loss)
    message = r"architecture \w+ and the loss must work for inputs \(32, 1, 8, 8\), but at step 0, "
    with pytest.raises(RunError, match=message + r".*test_training\.py line \d+: ValueError: too few values"):
        train(supernet, task, RECIPE, tmp_path)


@pytest.mark.parametrize(
    ("settings", "batch", "message"),
    [
        (
            {"mix": Mix(label_smoothing=0.1)},
            Batch((torch.ones(4, 7),), torch.ones(4)),
            "one class per example",
        ),
        ({"mix": Mix(label_smoothing=0.1)}, Batch((torch.ones(4, 7),), torch.ones(4, 7).long()), "one class"),
        ({"resolutions": (8,)}, Batch((torch.ones(4, 7),), torch.ones(4)), r"of images .*: got .* \(4, 7\)"),
    ],
    ids=["numbers", "classes per word", "words"],
)
def test_what_is_asked_of_other_data_is_named(task, settings, batch, message):
    feed = Feed(task, replace(RECIPE, **settings), 0, Alone(), torch.device("cpu"))
    with pytest.raises(RunError, match=message):
        feed.prepared(batch, 0, 0)


def cut_off(data: bytes) -> bytes:
    return data[:-100]


def flipped(data: bytes) -> bytes:
    return data[:-100] + bytes([data[-100] ^ 1]) + data[-99:]


def told(data: bytes) -> bytes:
    """It says that more steps are done."""
    step, other = rb"step\\\": 8,", rb"step\\\": 9,"
    assert data.count(step) == 1
    return data.replace(step, other)


def ruin(path, *names: str) -> None:
    """Weights that are no numbers, in a file that is whole; all of them, where none is named."""
    tensors, metadata = load_tensors(path)
    ruined = {n: torch.full_like(t, math.nan) for n, t in tensors.items() if n in names or not names}
    save_tensors(path, tensors | {n: t for n, t in ruined.items() if ":" not in n}, metadata)


@dataclass(frozen=True)
class SmallestUntil(Subnets):
    step: int

    def at(self, space, seed, step, progress):
        return [space.smallest() if step < self.step else space.largest()]


class TestCheckpoints:
    @pytest.mark.parametrize("damaged", [cut_off, flipped, told], ids=["cut off", "a bit flipped", "header"])
    def test_a_damaged_one_gives_way_to_the_one_before(self, task, supernet, tmp_path, damaged):
        whole = train(copy_of(supernet), task, RECIPE, tmp_path / "whole").state()
        with pytest.raises(Stop):
            train(copy_of(supernet), task, RECIPE, tmp_path / "cut", on_step=stop_at_step(8))
        old, new = sorted((tmp_path / "cut" / "checkpoints").glob("*.safetensors"))
        assert (old.name, new.name) == ("step-000000007.safetensors", "step-000000008.safetensors")
        newest = []
        whole_folder = tmp_path / "copy"
        shutil.copytree(tmp_path / "cut", whole_folder)
        train(copy_of(supernet), task, RECIPE, whole_folder, on_step=newest.append)
        assert newest[0] == 9
        new.write_bytes(damaged(new.read_bytes()))
        first = []
        resumed = train(copy_of(supernet), task, RECIPE, tmp_path / "cut", on_step=first.append)
        assert first[0] == 8
        assert equal(whole, resumed.state())

    def test_one_whose_first_step_fails_after_a_stop_is_put_aside(self, task, supernet, tmp_path):
        """It was saved when its weights were ruined already, which nothing had shown then."""
        whole = train(copy_of(supernet), task, RECIPE, tmp_path / "whole").state()
        with pytest.raises(Stop):
            train(copy_of(supernet), task, RECIPE, tmp_path / "cut", on_step=stop_at_step(8))
        ruin(tmp_path / "cut" / "checkpoints" / "step-000000008.safetensors")
        with pytest.raises(RunError, match=r"is nan at step 8 .*step-000000007\.safetensors, and what"):
            train(copy_of(supernet), task, RECIPE, tmp_path / "cut")
        found = sorted(path.name for path in (tmp_path / "cut" / "checkpoints").iterdir())
        assert found == ["step-000000007.safetensors", "step-000000008.safetensors.ruined"]
        assert equal(whole, train(copy_of(supernet), task, RECIPE, tmp_path / "cut").state())

    def test_one_that_is_ruined_elsewhere_than_the_next_steps_trained_is_put_aside(
        self, task, supernet, tmp_path
    ):
        """Those went well, and showed nothing: `keep` checkpoints on, all might be ruined."""
        recipe, folder = replace(RECIPE, keep=9, subnets=SmallestUntil(8)), tmp_path / "checkpoints"
        largest, smallest = (supernet.boxes(a) for a in (supernet.space.largest(), supernet.space.smallest()))
        name = next(n for n in largest if n not in smallest and n.endswith("weight"))
        with pytest.raises(Stop):
            train(copy_of(supernet), task, recipe, tmp_path, on_step=stop_at_step(6))
        ruin(folder / "step-000000006.safetensors", name)
        with pytest.raises(RunError, match=r"at step 8 .*step-000000005\.safetensors, and what") as raised:
            train(copy_of(supernet), task, recipe, tmp_path)
        for step in (6, 7, 8):
            assert f"step-00000000{step}.safetensors.ruined" in str(raised.value)
        assert sorted(folder.glob("*.safetensors"))[-1].name == "step-000000005.safetensors"
        train(copy_of(supernet), task, recipe, tmp_path)

    def test_one_that_steps_passed_since_stays(self, task, supernet, tmp_path, monkeypatch):
        with pytest.raises(Stop):
            train(copy_of(supernet), task, RECIPE, tmp_path, on_step=stop_at_step(6))
        own, seen = SlicedAdamW.step, []

        def step(optimizer, gradients, rate):
            own(optimizer, gradients, rate)
            seen.append(rate)
            if len(seen) == 2:
                for parameter in optimizer.bank.values():
                    parameter.data.fill_(math.nan)

        monkeypatch.setattr(SlicedAdamW, "step", step)
        rare = replace(RECIPE, checkpoint_seconds=1e9)
        with pytest.raises(RunError, match=r"at step 8 .*is .*step-000000006\.safetensors\. Lower"):
            train(copy_of(supernet), task, rare, tmp_path)

    def test_one_whose_first_step_fails_whatever_a_subnet_alone_says(
        self, task, supernet, tmp_path, monkeypatch
    ):
        """A gradient is that of all subnets of a step, of which the message names the first."""
        with pytest.raises(Stop):
            train(copy_of(supernet), task, RECIPE, tmp_path, on_step=stop_at_step(8))
        monkeypatch.setattr(Gradients, "norm", lambda _: torch.tensor(math.nan))
        with pytest.raises(RunError, match=r"norm of .*step-000000007\.safetensors, .* step-000000008"):
            train(copy_of(supernet), task, RECIPE, tmp_path)

    def test_a_batch_that_no_weights_answer_costs_no_checkpoint(self, task, supernet, tmp_path, monkeypatch):
        with pytest.raises(Stop):
            train(copy_of(supernet), task, RECIPE, tmp_path, on_step=stop_at_step(8))
        before = sorted((tmp_path / "checkpoints").iterdir())
        monkeypatch.setattr(type(task), "loss", lambda self, answer, batch: answer.sum() * math.nan)
        message = r"no good checkpoint\. Lower .*, and remove .*checkpoints, to start again; or look at what"
        with pytest.raises(RunError, match=message):
            train(copy_of(supernet), task, RECIPE, tmp_path)
        assert sorted((tmp_path / "checkpoints").iterdir()) == before

    def test_what_a_killed_process_began_to_write_goes(self, task, supernet, tmp_path):
        with pytest.raises(Stop):
            train(copy_of(supernet), task, RECIPE, tmp_path, on_step=stop_at_step(3))
        begun = tmp_path / "checkpoints" / "step-000000099.safetensors.unfinished"
        begun.write_bytes(b"half")
        train(supernet, task, RECIPE, tmp_path)
        assert not begun.exists()

    def test_weights_are_shown_epoch_by_epoch(self, task, supernet, tmp_path):
        """The average of weights where that is kept; again where a training goes on from an epoch's end."""
        seen, recipe = {}, replace(RECIPE, epochs=3, ema=0.9)
        per_epoch = task.batch_count("train")

        def note(epoch, weights):
            assert epoch not in seen
            seen[epoch] = {n: t.clone() for n, t in weights.items()}

        kept = train(copy_of(supernet), task, recipe, tmp_path / "a", on_weights=note).state()
        assert set(seen) == {1, 2, 3}
        assert equal(seen[3], kept)
        assert not equal(seen[2], kept)
        with pytest.raises(Stop):
            train(copy_of(supernet), task, recipe, tmp_path / "b", on_step=stop_at_step(2 * per_epoch))
        again = []
        train(
            copy_of(supernet),
            task,
            recipe,
            tmp_path / "b",
            on_weights=lambda epoch, weights: again.append((epoch, equal(weights, seen[epoch]))),
        )
        assert again == [(2, True), (3, True)]

    def test_an_explosion_is_measured_by_the_first_steps_of_all(self, task, supernet, tmp_path):
        with pytest.raises(Stop):
            train(supernet, task, RECIPE, tmp_path, on_step=stop_at_step(7))
        resumed = _Training(copy_of(supernet), task, RECIPE, tmp_path, 0, Alone())
        first = json.loads((tmp_path / "history.jsonl").read_text().split("\n")[0])
        assert len(resumed.guard.begin) == 7
        assert sum(resumed.guard.begin[:3]) / 3 == pytest.approx(first["loss"])

    def test_a_disk_that_is_full_is_a_message(self, task, supernet, tmp_path, monkeypatch):
        def full(_tensors, path, _metadata):
            path.write_bytes(b"half")
            raise SafetensorError("No space left on device (os error 28)")

        monkeypatch.setattr(sys.modules["nas.training.checkpoint"], "save_file", full)
        with pytest.raises(
            RunError, match=r"must be written, but No space left on device .*Make room for it"
        ):
            train(supernet, task, RECIPE, tmp_path)
        assert not list((tmp_path / "checkpoints").iterdir())

    def test_equal_states_are_equal_files(self, tmp_path):
        for i in range(20):
            save_tensors(tmp_path / str(i), {"a": torch.arange(3.0)}, {"epoch": "1", "score": "2"})
        assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1
        assert load_tensors(tmp_path / "0")[1] == {"epoch": "1", "score": "2"}

    def test_a_damaged_one_does_not_count_among_those_that_are_kept(self, supernet, tmp_path):
        kept = Checkpoints(tmp_path, keep=2)
        for step in (30, 50, 100):
            kept.save(step, {"a": torch.ones(3)}, {"step": step})
        kept.path(100).write_bytes(cut_off(kept.path(100).read_bytes()))
        assert kept.load()[0] == kept.path(50)
        kept.save(70, {"a": torch.ones(3)}, {"step": 70})
        assert kept.paths() == [kept.path(50), kept.path(70)]

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"accumulate": 2}, "must be gone on with by the same steps_per_epoch, 3: got 2"),
            ({"epochs": 1}, "must be of a training that goes on, but has 5 steps, of which there are now 3"),
        ],
    )
    def test_steps_that_are_counted_otherwise_are_refused(self, task, supernet, tmp_path, change, message):
        with pytest.raises(Stop):
            train(supernet, task, RECIPE, tmp_path, on_step=stop_at_step(5))
        with pytest.raises(RunError, match=message):
            train(copy_of(supernet), task, replace(RECIPE, **change), tmp_path)
        with pytest.raises(RunError, match="by the same seed, 0: got 1"):
            train(copy_of(supernet), task, RECIPE, tmp_path, seed=1)
        assert not (tmp_path / "model.safetensors").exists()

    def test_the_history_is_whole_at_every_moment(self, task, supernet, tmp_path, monkeypatch):
        with pytest.raises(Stop):
            train(supernet, task, RECIPE, tmp_path, on_step=stop_at_step(8))
        before = (tmp_path / "history.jsonl").read_text()

        def killed(*_):
            raise Stop

        with monkeypatch.context() as patched:
            patched.setattr(files.os, "replace", killed)
            with pytest.raises(Stop):
                train(copy_of(supernet), task, RECIPE, tmp_path)
        assert (tmp_path / "history.jsonl").read_text() == before

    def test_where_none_is_whole_nothing_is_done(self, task, supernet, tmp_path):
        with pytest.raises(Stop):
            train(copy_of(supernet), task, RECIPE, tmp_path, on_step=stop_at_step(8))
        for path in (tmp_path / "checkpoints").iterdir():
            path.write_bytes(path.read_bytes()[:500])
        law = r"step-000000008.safetensors must be a whole safetensors file.* Remove that folder to start"
        with pytest.raises(RunError, match=law):
            train(supernet, task, RECIPE, tmp_path)

    def test_one_of_another_space_is_refused(self, task, supernet, tmp_path):
        with pytest.raises(Stop):
            train(supernet, task, RECIPE, tmp_path, on_step=stop_at_step(2))
        other = Supernet(hierarchical.build, hierarchical.space(task))
        with pytest.raises(RunError, match="another space wrote it"):
            train(other, task, RECIPE, tmp_path)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"epochs": 0}, "`training.epochs` must be a whole number, 1 or more: got 0"),
        ({"accumulate": 1.5}, "`training.accumulate` must be a whole number"),
        ({"learning_rate": float("nan")}, "`training.learning_rate` must be a number: got nan"),
        ({"learning_rate": -1.0}, "`training.learning_rate` must be positive: got -1"),
        ({"subnets": SinglePath}, "`training.subnets` must be an object of Subnets: got <class"),
        ({"warmup": 1.1}, "`training.warmup` must be a share"),
        ({"clip": 0}, "`training.clip` must be above 0"),
        ({"ema": 1.0}, "`training.ema` must be a decay"),
        ({"explosion": 1.0}, "`training.explosion` must be above 1"),
        ({"resolutions": (8, 0)}, "`training.resolutions` must be sides in pixels"),
        ({"workers": 2, "device": "cuda:1"}, "`training.device` must be auto, cuda or cpu where .*'cuda:1'"),
        ({"withheld": (("ratio", 2),)}, r"`training.withheld` must be a tuple, each item a tuple \(a text"),
        ({"withheld": (("ratio", ()),)}, "`training.withheld` must hold pairs of a name and a tuple"),
        ({"project": True, "subnets": SinglePath()}, "`training.project` must have a rule whose steps begin"),
        (
            {"distillation": Distillation(features=1.0), "subnets": SinglePath()},
            "`training.distillation.features` must have a rule whose steps begin .*: got SinglePath",
        ),
        ({"rates": (("(", 1.0),)}, "must hold regular expressions: got '\\('"),
        ({"rates": ((".*", -1.0),)}, "must have factors of at least 0: got -1"),
    ],
    ids=str,
)
def test_settings_that_are_none_are_refused(settings, message):
    with pytest.raises(RunError, match=message):
        replace(RECIPE, **settings)
