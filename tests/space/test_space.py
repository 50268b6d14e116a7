"""The contract of every space, and what only a tiny one can show exactly."""

from __future__ import annotations

import itertools
import json
import pickle
import re
from dataclasses import dataclass

import numpy as np
import pytest

from nas.errors import SpaceError
from nas.layers import PatchMerging
from nas.space import Additive, Constraint, Space, between, oneof, repeat, tied
from nas.space.views import materialise
from search_spaces import hierarchical


@dataclass(frozen=True)
class Conv:
    kernel: int


@dataclass(frozen=True)
class Attend:
    heads: int
    window: int = 0


@dataclass(frozen=True)
class Layer:
    mixer: Conv | Attend
    ratio: float = 1.0


@dataclass(frozen=True)
class Net:
    width: int
    layers: tuple[Layer, ...]
    rate: float = 0.1


class Task:
    classes, image_shape = 10, (1, 8, 8)


def heads_divide(mixer, context):
    width = context.root.width
    return None if width % mixer.heads == 0 else f"must divide {width}: got heads={mixer.heads}. Use 1."


def no_twins(layer, context):
    i = context.index("layers")
    earlier = context.parent.layers[i - 1] if i else None
    if earlier is not None and isinstance(earlier.mixer, Conv) and isinstance(layer.mixer, Conv):
        return "must not follow a convolution with another. Use attention."
    return None


LAYER = Layer(oneof(Conv(oneof(3, 5)), Attend(oneof(1, 2, 3), oneof(0, 2))), oneof(1.0, 2.0))
TINY = Net(oneof(4, 6), repeat(LAYER, 1, 2))
SPACES = {
    "free": Space(TINY),
    "ancestor": Space(TINY, [Constraint(Attend, heads_divide)]),
    "sibling": Space(TINY, [Constraint(Layer, no_twins), Constraint(Attend, heads_divide)]),
    "tied": Space(Net(oneof(4, 6), repeat(Layer(Conv(tied("kernel", oneof(3, 5, 7)))), 1, 3))),
    "tied below options": Space(
        Net(4, repeat(Layer(oneof(Conv(3), Attend(tied("heads", oneof(1, 2))))), 2, 2)),
    ),
    "tied beside another option": Space(
        Net(4, repeat(Layer(oneof(Attend(tied("heads", oneof(1, 2))), Conv(3))), 1, 3)),
        [Constraint(Attend, heads_divide)],
    ),
    "empty tuple": Space(Net(4, repeat(Layer(Conv(oneof(3, 5))), 0, 2))),
    "numbers": Space(Net(oneof(4, 6), (Layer(Conv(3)),), between(1e-3, 1e-1, log=True))),
    "hierarchical": hierarchical.space(Task),
}


def everything(template):
    """All values of a template, by brute force (repeats by product, ties ignored)."""
    import dataclasses

    from nas.space import OneOf, Repeat

    if isinstance(template, OneOf):
        return [v for option in template.options for v in everything(option)]
    if isinstance(template, Repeat):
        block = everything(template.block)
        counts = range(template.low, template.high + 1)
        return [v for n in counts for v in itertools.product(block, repeat=n)]
    if dataclasses.is_dataclass(template):
        names = [f.name for f in dataclasses.fields(template)]
        choices = [everything(getattr(template, n)) for n in names]
        return [type(template)(**dict(zip(names, v, strict=True))) for v in itertools.product(*choices)]
    return [template]


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
class TestEverySpace:
    def test_genes_round_trip(self, space):
        rng = np.random.default_rng(0)
        for _ in range(50):
            genes = space.sample_genes(rng)
            architecture = space.decode(genes)
            space.check(architecture)
            assert space.encode(architecture).tolist() == genes.tolist()
            assert not genes[~space.active(genes)].any()

    def test_json_round_trip_keeps_the_name(self, space):
        architecture = space.sample(np.random.default_rng(1))
        again = space.from_json(json.loads(json.dumps(space.to_json(architecture))))
        assert again == architecture
        assert hash(again) == hash(architecture)
        assert space.id(again) == space.id(architecture)

    def test_variation_stays_legal_and_canonical(self, space):
        rng = np.random.default_rng(2)
        a, b = space.sample_genes(rng), space.sample_genes(rng)
        for _ in range(50):
            for child in (space.mutate(a, rng), space.crossover(a, b, rng)):
                space.check(space.decode(child))
                assert space.encode(space.decode(child)).tolist() == child.tolist()
            a, b = space.mutate(b, rng), a

    def test_mutation_changes_something(self, space):
        if space.size == 1:
            return
        rng = np.random.default_rng(3)
        genes = space.sample_genes(rng)
        assert any((space.mutate(genes, rng) != genes).any() for _ in range(10))

    def test_cover_is_legal_and_holds_every_reachable_option(self, space):
        rng = np.random.default_rng(4)
        cover = [space.encode(a) for a in space.cover()]
        for architecture in space.cover():
            space.check(architecture)
        for genes in (space.sample_genes(rng) for _ in range(100)):
            for i in np.flatnonzero(space.active(genes)):
                if space.genes[i].name != "rate":
                    assert any(g[i] == genes[i] and space.active(g)[i] for g in cover)

    def test_pickles_by_value(self, space):
        again = pickle.loads(pickle.dumps(space))
        assert again.fingerprint == space.fingerprint
        genes = space.sample_genes(np.random.default_rng(5))
        assert again.decode(genes) == space.decode(genes)


@pytest.mark.parametrize("name", ["free", "ancestor", "sibling", "empty tuple"])
def test_size_equals_enumeration(name):
    space = SPACES[name]
    legal = []
    for architecture in everything(space.template):
        try:
            space.check(architecture)
        except SpaceError:
            continue
        legal.append(architecture)
    assert space.size == len(legal) == len(set(legal))


def test_size_counts_ties_once():
    assert SPACES["tied"].size == 2 * 3 * 3
    # two layers: conv-conv 1, conv-attend and attend-conv 2 each, attend-attend 2 (heads are tied)
    assert SPACES["tied below options"].size == 7
    # of one to three layers, all conv once, and with an attend anywhere for each number of heads
    assert SPACES["tied beside another option"].size == sum(1 + 2 * (2**n - 1) for n in (1, 2, 3))


def test_every_legal_architecture_is_sampled():
    space = SPACES["sibling"]
    rng = np.random.default_rng(0)
    seen = {space.sample(rng) for _ in range(20_000)}
    assert len(seen) == space.size


def test_spaces_of_many_genes():
    space = Space(Net(4, repeat(LAYER, 1, 100)))
    assert len(space.genes) > 400
    assert space.size == sum(16**depth for depth in range(1, 101))
    space.check(space.sample(np.random.default_rng(0)))


def test_sampling_is_uniform_per_gene():
    space = SPACES["free"]
    rng = np.random.default_rng(0)
    depths = [len(space.sample(rng).layers) for _ in range(4000)]
    assert abs(np.mean(depths) - 1.5) < 0.05  # by architectures it would be near 2


def test_lists_become_tuples_with_holes_and_without():
    kernels = [3, 5]
    space = Space(Net(oneof(8, 16), [Conv(kernels), Conv([oneof(1, 2), 7])]))
    drawn = space.sample(np.random.default_rng(0))
    assert drawn.layers[0] == Conv((3, 5))
    assert drawn.layers[1].kernel[1] == 7
    space.check(drawn)


@pytest.mark.parametrize("ratio", [oneof(1.0, 2.0), 2.0])
def test_fields_may_be_left_out_of_what_a_rule_reads(ratio):
    """Of a part with holes, and of one without."""
    seen = set()

    def read(layer, _):
        seen.add(materialise(layer, omit=frozenset({"ratio"})))

    space = Space(Net(oneof(8, 16), (Layer(Conv(3), ratio),)), [Constraint(Layer, read)])
    space.sample(np.random.default_rng(0))
    assert seen == {Layer(Conv(3))}


def test_options_at_one_path_share_a_gene():
    names = [gene.name for gene in SPACES["hierarchical"].genes]
    assert names.count("stages.0.blocks.0.mixer.heads") == 1
    assert "stages.1.blocks.2.mixer.bits.weight" in names
    assert len(names) == len(set(names))


def test_ends():
    space = SPACES["hierarchical"]
    largest, smallest = space.largest(), space.smallest()
    assert [s.width for s in largest.stages] == [32, 64]
    assert [len(s.blocks) for s in smallest.stages] == [1, 1]
    assert isinstance(largest.stages[0].blocks[0].mixer, hierarchical.Global)
    assert smallest.stages[0].blocks[0].mixer.bits.weight == 4


def test_unsorted_numbers_still_have_their_ends():
    space = Space(Net(oneof(6, 4), ()))
    assert (space.smallest().width, space.largest().width) == (4, 6)


def test_default_fields_do_not_change_the_id():
    assert SPACES["free"].id(Attend(1)) == SPACES["free"].id(Attend(1, window=0))


class TestErrors:
    def test_illegal_value_names_path_law_and_remedy(self):
        space = SPACES["hierarchical"]
        good = space.largest()
        block = hierarchical.Block(hierarchical.Window(1, 7), hierarchical.Mlp(1))
        stages = (good.stages[0], hierarchical.Stage(32, (block,), PatchMerging()))
        bad = hierarchical.HierarchicalTransformer(good.stem, stages, 10, 1)
        message = (
            r"`stages.1.blocks.0.mixer` must divide the feature map: got size=7 on 4×4. Use one of 1, 2, 4"
        )
        with pytest.raises(SpaceError, match=message):
            space.check(bad)

    def test_value_outside_the_space_names_its_path(self):
        with pytest.raises(SpaceError, match=r"`layers.0.ratio` must be one of 1.0, 2.0: got 9"):
            SPACES["free"].encode(Net(4, (Layer(Conv(3), 9),)))

    def test_tied_values_must_agree(self):
        layers = (Layer(Conv(3)), Layer(Conv(5)))
        with pytest.raises(SpaceError, match="tied under `kernel`"):
            SPACES["tied"].encode(Net(4, layers))

    def test_no_legal_architecture(self):
        with pytest.raises(SpaceError, match="leave none"):
            Space(TINY, [Constraint(Net, lambda net, at: "never")])

    def test_constraint_that_reads_what_comes_later(self):
        def peeks(layer, context):
            return "x" if context.root.rate > 1 else None

        with pytest.raises(SpaceError, match="`rate` is chosen later"):
            Space(Net(4, repeat(LAYER, 1, 2), oneof(0.1, 0.2)), [Constraint(Layer, peeks)])

    def test_overlapping_options(self):
        with pytest.raises(SpaceError, match="must not overlap"):
            Space(Net(4, (Layer(oneof(Conv(oneof(3, 5)), Conv(5))),)))

    @pytest.mark.parametrize(
        "data",
        [
            {"type": "Popen", "args": ["true"]},
            {"type": "Net", "width": 4, "layers": [], "surprise": 1},
            {"type": "Net", "width": 4},
        ],
    )
    def test_json_builds_only_what_the_space_reaches(self, data):
        with pytest.raises(SpaceError):
            SPACES["free"].from_json(data)

    @pytest.mark.parametrize("change", [lambda g: g[:1], lambda g: g[None, :, None], lambda g: g + 0.5])
    def test_genes_of_another_shape_or_kind(self, change):
        space = SPACES["free"]
        genes = change(space.encode(space.smallest()))
        n = len(space.genes)
        for use in (space.decode, space.active, space.valid_genes):
            with pytest.raises(SpaceError, match=f"Genes must be {n} whole numbers, .*: got"):
                use(genes)

    @pytest.mark.parametrize("wrong", [-1, 99])
    def test_genes_that_no_choice_has(self, wrong):
        space = SPACES["free"]
        genes = space.encode(space.smallest())
        genes[-1] = wrong
        name, top = re.escape(space.genes[-1].name), space.genes[-1].cardinality - 1
        for use in (space.decode, space.active):
            with pytest.raises(SpaceError, match=f"Gene `{name}` must be from 0 to {top}: got {wrong}"):
                use(genes)

    @pytest.mark.parametrize(
        "make",
        [
            lambda: oneof(),
            lambda: oneof(1, 1),
            lambda: repeat(LAYER, 3, 2),
            lambda: between(2, 1),
            lambda: between(0, 1, log=True),
            lambda: tied("x", 3),
        ],
    )
    def test_holes_refuse_nonsense(self, make):
        with pytest.raises(SpaceError):
            make()


class TestAdditive:
    def test_equals_a_loop_over_the_parts(self):
        space = SPACES["hierarchical"]
        rng = np.random.default_rng(0)
        genes = np.array([space.sample_genes(rng) for _ in range(200)])

        def cost(block, at):
            return np.array([at.parent.width * block.ffn.ratio + block.mixer.heads, 1.0])

        costs = Additive(space, {hierarchical.Block: cost})(genes)
        for row, vector in zip(genes, costs, strict=True):
            stages = space.decode(row).stages
            parts = [s.width * b.ffn.ratio + b.mixer.heads for s in stages for b in s.blocks]
            assert vector.tolist() == [sum(parts), len(parts)]

    def test_one_row_at_a_time_gives_the_same(self):
        """Parts that a row lacks, and that no row had before, count nothing."""
        space = SPACES["hierarchical"]
        rng = np.random.default_rng(0)
        genes = np.array([space.sample_genes(rng) for _ in range(20)])

        def costs():
            return Additive(
                space,
                {
                    hierarchical.Block: lambda block, at: np.array([at.parent.width, block.ffn.ratio, 1]),
                    hierarchical.Stage: lambda stage, at: np.array([0, 0, stage.width]),
                },
            )

        together, apart = costs(), costs()
        assert np.array_equal(together(genes), np.concatenate([apart(row) for row in genes]))

    def test_of_no_rows(self):
        space = SPACES["hierarchical"]
        none = np.empty((0, len(space.genes)), dtype=np.int64)
        assert Additive(space, {hierarchical.Stage: lambda stage, at: [stage.width, 1]})(none).shape == (0, 2)

    def test_runs_once_per_distinct_reading(self):
        space = SPACES["hierarchical"]
        rng = np.random.default_rng(0)
        genes = np.array([space.sample_genes(rng) for _ in range(500)])
        calls = []
        Additive(space, {hierarchical.Stage: lambda stage, at: calls.append(1) or [stage.width]})(genes)
        assert len(calls) == 6  # 2 stages × 3 widths, whatever else differs


def test_counting_that_takes_long_says_so(monkeypatch):
    monkeypatch.setattr("nas.space.space.PATIENCE", -1.0)
    with pytest.warns(
        UserWarning, match=r"Counting a space of \d+ genes goes on after .*laws that read much"
    ):
        Space(TINY)
