"""One bank over every mixer and channel mixer: what is in it, how it is trained, what comes out of it."""

from __future__ import annotations

import json
import math

import pytest

from experiments import every_mixer
from experiments.benchmarks.every_mixer import OUTSIDE, largest_difference, shares, sharing
from nas.layers import ChannelMixer, Global, Mixer, Mlp, NoFfn, Window
from nas.layers.catalogue import members
from nas.layers.mixers.pooling import Pooling
from nas.supernet import Supernet
from nas.tasks import digits
from nas.training import Recipe, Sandwich, train
from search_spaces import hierarchical

FAMILIES = {"mixer": Mixer, "ffn": ChannelMixer}


def kinds(architecture, part):
    return {type(getattr(block, part)) for stage in architecture.stages for block in stage.blocks}


@pytest.fixture(scope="module")
def experiment():
    return every_mixer.experiment()


def test_every_choice_of_the_catalogue_stands_in_every_stage(experiment):
    cover = experiment.space.cover()
    for part, family in FAMILIES.items():
        for stage in (0, 1):
            assert {type(getattr(a.stages[stage].blocks[0], part)) for a in cover} == set(members(family))


def test_the_rule_gives_each_choice_alone_and_all_of_them_mixed_in_turn(experiment):
    rule, space = every_mixer.OneAtATime(), experiment.space
    alone = {part: set() for part in FAMILIES}
    mixed = set()
    for step in range(3 * max(len(every_mixer.MIXERS), len(every_mixer.FFNS))):
        (architecture,) = rule.at(space, 0, step, 0)
        space.check(architecture)
        if step % 3:
            part = ("mixer", "ffn")[step % 3 - 1]
            (kind,) = kinds(architecture, part)
            alone[part].add(kind)
        else:
            mixed.add(len(kinds(architecture, "mixer")))
    assert alone == {part: set(members(family)) for part, family in FAMILIES.items()}
    assert max(mixed) > 1


def test_after_some_steps_over_all_choices_what_is_extracted_differs_by_zero(tmp_path):
    task = digits(batch_size=16).fewer(train=48)
    space = every_mixer.space(task, every_mixer.MIXERS, every_mixer.FFNS, depths=(1, 1))  # half the cover
    supernet = Supernet(hierarchical.build, space)
    before = {name: tensor.clone() for name, tensor in supernet.state().items()}
    train(supernet, task, Recipe(epochs=1, subnets=Sandwich(random=8), threads=1), tmp_path)
    (epoch,) = map(json.loads, (tmp_path / "history.jsonl").read_text().splitlines())
    assert epoch["step"] == 3
    assert math.isfinite(epoch["loss"])
    assert any((before[name] != tensor).any() for name, tensor in supernet.state().items())
    assert largest_difference(supernet, space, task, 20) == 0


def test_the_bank_is_told_apart_by_who_uses_it():
    space = every_mixer.space(digits(), [Global, Window, Pooling], [Mlp, NoFfn])
    supernet = Supernet(hierarchical.build, space)
    numbers = {name: tensor.numel() for name, tensor in supernet.state().items()}
    expected = {
        "Global, Window": sum(n for k, n in numbers.items() if ".mixer." in k and ".position." not in k),
        "Window": sum(n for k, n in numbers.items() if ".mixer.position." in k),
        "Mlp": sum(n for k, n in numbers.items() if ".ffn." in k),
        OUTSIDE: sum(n for k, n in numbers.items() if ".ffn." not in k and ".mixer." not in k),
    }
    sizes = sharing(supernet)
    assert sizes == expected
    assert sum(sizes.values()) == sum(numbers.values())
    whole = sum(numbers.values())
    assert shares(sizes) == pytest.approx(
        {
            OUTSIDE: 100 * expected[OUTSIDE] / whole,
            "several choices": 100 * expected["Global, Window"] / whole,
            "one choice": 100 * (expected["Window"] + expected["Mlp"]) / whole,
        }
    )
