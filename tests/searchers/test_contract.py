"""The contract of every searcher. A new one goes into `SEARCHERS`, and into `LEARNERS` if it learns."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pytest

from nas.objectives import Objective, as_costs
from nas.pareto import Scale, hypervolume
from nas.searchers import NSGA2, TPE, RandomSearch, Searcher
from nas.space import Constraint, Context, Space, between, oneof, repeat
from nas.trial import Trial


@dataclass(frozen=True)
class Window:
    size: int


@dataclass(frozen=True)
class Conv:
    kernel: int


@dataclass(frozen=True)
class Block:
    mixer: Any
    ratio: int


@dataclass(frozen=True)
class Net:
    width: int
    blocks: Any


def _mixer_fits(block: Block, context: Context) -> str | None:
    if isinstance(block.mixer, Window) and block.ratio == 1:
        return f"must have a ratio of 2 or more beside a window: got ratio={block.ratio}. Use 2."
    return None


BLOCK = Block(oneof(Window(oneof(2, 4)), Conv(oneof(3, 5, 7))), oneof(1, 2, 3, 4))
SPACE = Space(Net(oneof(8, 16, 32), repeat(BLOCK, 2, 6)), [Constraint(Block, _mixer_fits)])
TINY = Space(Net(oneof(8, 16), repeat(Block(Conv(3), oneof(1, 2)), 1, 2)))
OBJECTIVES = (
    Objective("accuracy", "%", "maximize"),
    Objective("latency_ms", "ms", "minimize"),
)

Make = Callable[..., Searcher]
SEARCHERS: Mapping[str, Make] = {
    "random": RandomSearch,
    "nsga2": partial(NSGA2, population=10),
    "tpe": partial(TPE, startup=10),
}
LEARNERS = ("nsga2", "tpe")


QUALITY = {Window(2): 0.1, Window(4): 0.2, Conv(3): 0.5, Conv(5): 1.0, Conv(7): 0.7}


def figures(net: Net) -> dict[str, float]:
    """Latency 1 per ratio, and for that accuracy 10 with the best mixer, which is neither end."""
    quality = sum(QUALITY[block.mixer] * block.ratio for block in net.blocks)
    return {"accuracy": 10 * quality, "latency_ms": float(sum(b.ratio for b in net.blocks))}


# No architecture beats accuracy = 10 · latency, for latencies from 2 to 24.
FRONT = Scale(ideal=(-240, 2), nadir=(-20, 24))


def trial(space: Space, number: int, architecture: Any, failed: bool = False) -> Trial:
    return Trial(
        search="contract",
        number=number,
        id=space.id(architecture),
        architecture=architecture,
        genes=tuple(space.encode(architecture).tolist()),
        rung=0,
        objectives={} if failed else figures(architecture),
        state="failed" if failed else "complete",
        n=None,
        std_error=None,
        error="RuntimeError: broken" if failed else None,
        evaluated=True,
        weights="",
        space="",
    )


def drive(searcher: Searcher, n: int, first: int = 0, parallel: int = 4) -> list[Trial]:
    """`n` trials with `parallel` in flight, told as soon as the next is to be asked for."""
    trials: list[Trial] = []
    for number in range(n):
        if number >= parallel:
            searcher.tell([trials[number - parallel]])
        (candidate,) = searcher.ask(1)
        trials.append(trial(SPACE, first + number, candidate.architecture))
    return trials


def ids(trials: Sequence[Trial]) -> list[str]:
    return [t.id for t in trials]


@pytest.mark.parametrize("make", SEARCHERS.values(), ids=SEARCHERS.keys())
class TestEverySearcher:
    def test_asks_are_legal_and_distinct(self, make: Make) -> None:
        trials = drive(make(SPACE, OBJECTIVES, seed=1), 60)
        for t in trials:
            SPACE.check(t.architecture)
        assert len(set(ids(trials))) == 60

    def test_asks_before_any_tell(self, make: Make) -> None:
        candidates = make(SPACE, OBJECTIVES, seed=1).ask(40)
        assert len({SPACE.id(c.architecture) for c in candidates}) == 40

    def test_the_same_seed_gives_the_same_trials(self, make: Make) -> None:
        once, again, other = (drive(make(SPACE, OBJECTIVES, seed=s), 40) for s in (3, 3, 4))
        assert once == again
        assert ids(once) != ids(other)

    def test_tell_takes_any_order_and_any_number(self, make: Make) -> None:
        searcher = make(SPACE, OBJECTIVES, seed=1)
        asked: list[Trial] = []
        for _ in range(4):
            batch = [trial(SPACE, 0, c.architecture) for c in searcher.ask(12)]
            searcher.tell(batch[::-1][:7])
            searcher.tell([])
            searcher.tell(batch[:5])
            asked += batch
        assert len(set(ids(asked))) == 48

    def test_a_replayed_log_leads_to_the_same_next_asks(self, make: Make) -> None:
        searcher, resumed = (make(SPACE, OBJECTIVES, seed=5) for _ in range(2))
        assert ids(drive(searcher, 40)) == ids(drive(resumed, 40))
        assert searcher.ask(5) == resumed.ask(5)

    def test_a_tiny_space_is_exhausted_once(self, make: Make) -> None:
        searcher = make(TINY, OBJECTIVES, seed=0)
        asked: list[str] = []
        while candidates := searcher.ask(3):
            batch = [trial(TINY, 0, c.architecture) for c in candidates]
            asked += ids(batch)
            searcher.tell(batch)
        assert len(asked) == len(set(asked)) == TINY.size == 12
        assert searcher.ask(1) == []

    def test_failed_trials_teach_nothing(self, make: Make) -> None:
        searcher, untold = (make(SPACE, OBJECTIVES, seed=2) for _ in range(2))
        for _ in range(6):
            candidates = searcher.ask(5)
            assert candidates == untold.ask(5)
            searcher.tell([trial(SPACE, 0, c.architecture, failed=True) for c in candidates])

    def test_numbers_are_searched_too(self, make: Make) -> None:
        space = Space(Net(between(0, 1), (Block(Conv(3), 1),)))
        assert space.size == 1  # numbers aside
        assert len(make(space, OBJECTIVES, seed=0).ask(20)) == 20


@pytest.mark.parametrize("name", LEARNERS)
def test_beats_random_search_on_a_known_front(name: str) -> None:
    def volume(make: Make, seed: int) -> float:
        trials = drive(make(SPACE, OBJECTIVES, seed=seed), 100)
        return hypervolume(as_costs(OBJECTIVES, [t.objectives for t in trials]), FRONT)

    learned = np.mean([volume(SEARCHERS[name], seed) for seed in range(5)])
    sampled = np.mean([volume(RandomSearch, seed) for seed in range(5)])
    assert learned > sampled + 0.03  # the front itself has 0.497


def test_evolution_starts_from_both_ends() -> None:
    first, second = NSGA2(SPACE, OBJECTIVES, seed=9).ask(2)
    assert (first.architecture, second.architecture) == (SPACE.smallest(), SPACE.largest())


def test_evolution_needs_two_parents() -> None:
    with pytest.raises(ValueError, match="population >= 2"):
        NSGA2(SPACE, OBJECTIVES, population=1)
