"""A text diff of two architectures: what differs, where, and nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from nas.difference import difference


@dataclass(frozen=True)
class Net:
    width: int = 32


def window(heads: int, **more: Any) -> dict[str, Any]:
    return {"type": "Block", "mixer": {"type": "Window", "heads": heads, "size": 4}, **more}


def net(*blocks: Any, width: int = 32, **more: Any) -> dict[str, Any]:
    return {"type": "Net", "stages": [{"type": "Stage", "width": width, "blocks": [*blocks]}], **more}


GLOBAL = {"type": "Block", "mixer": {"type": "Global", "heads": 4}, "ffn": {"type": "Mlp", "ratio": 2}}


def test_equals_do_not_differ() -> None:
    assert difference(net(window(2), GLOBAL), net(window(2), GLOBAL)) == "no difference"


def test_a_value_is_named_by_its_path() -> None:
    assert difference(net(window(2)), net(window(4), width=64)) == (
        "stages.0.width: 32 → 64\nstages.0.blocks.0.mixer.heads: 2 → 4"
    )


def test_a_class_is_replaced_as_a_whole() -> None:
    changed = window(2) | {"mixer": GLOBAL["mixer"]}
    expected = "stages.0.blocks.0.mixer: Window(heads=2, size=4) → Global(heads=4)"
    assert difference(net(window(2)), net(changed)) == expected
    assert difference({"type": "A", "x": 1}, {"type": "B", "x": 1}) == "A(x=1) → B(x=1)"


def test_an_inserted_block_moves_its_neighbours_without_changing_them() -> None:
    before, after = net(window(1), window(2)), net(window(1), GLOBAL, window(2))
    text = "stages.0.blocks.1: Block(mixer=Global(heads=4), ffn=Mlp(ratio=2))"
    assert difference(before, after) == f"+ {text}"
    assert difference(after, before) == f"- {text}"


def test_an_insertion_is_found_where_all_around_it_changed() -> None:
    """No block of one is in the other, so that a matching of equal blocks would find nothing."""
    eight = {"bits": {"type": "Bits", "weight": 8}}
    before = net(window(1), window(2))
    after = net(window(1, **eight), GLOBAL, window(2, **eight))
    assert difference(before, after).split("\n") == [
        "stages.0.blocks.0.bits.weight: 32 → 8",
        "+ stages.0.blocks.1: Block(mixer=Global(heads=4), ffn=Mlp(ratio=2))",
        "stages.0.blocks.2.bits.weight: 32 → 8",
    ]


def test_neighbours_that_change_alike_share_a_line() -> None:
    before, after = net(*[window(2)] * 3, GLOBAL), net(*[window(4)] * 3, GLOBAL, GLOBAL, GLOBAL)
    assert difference(before, after).split("\n") == [
        "stages.0.blocks.0–2.mixer.heads: 2 → 4",
        "+ stages.0.blocks.4–5: Block(mixer=Global(heads=4), ffn=Mlp(ratio=2))",
    ]
    assert difference(net(*[window(2)] * 3), net()) == (
        "- stages.0.blocks.0–2: Block(mixer=Window(heads=2, size=4))"
    )


def test_defaults_are_left_out_of_the_json_but_not_of_the_text() -> None:
    bits = {"bits": {"type": "Bits", "weight": 8}}
    assert difference(net(window(2, **bits)), net(window(2))) == "stages.0.blocks.0.bits.weight: 8 → 32"
    assert difference(net(), net(head={"type": "Head", "pool": "token"})) == (
        "head: default → Head(pool=token)"
    )
    assert difference({"bits": 8}, {}) == "bits: 8 → default"  # of a class that is not ours


def test_lists_of_numbers() -> None:
    mine = {"type": "Architecture", "hidden": [16, 32]}
    assert difference(mine, mine | {"hidden": [16, 32, 64]}) == "+ hidden.2: 64"
    assert difference(mine, mine | {"hidden": [16, 64]}) == "hidden.1: 32 → 64"


def test_architectures_go_as_their_json_does() -> None:
    assert difference(Net(32), Net(64)) == difference({"type": "Net"}, Net(64)) == "width: default → 64"
