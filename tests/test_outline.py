"""An architecture as text: nothing of it lost, paths as the genes have them."""

from __future__ import annotations

from nas.outline import flatten, outline

BLOCK = {"type": "Block", "mixer": {"type": "Window", "window": 4}, "ffn": {"type": "MLP"}}
NET = {
    "type": "Net",
    "stem": {"type": "Stem", "patches": [2, 2]},
    "stages": [{"type": "Stage", "width": 32, "blocks": [BLOCK, BLOCK, BLOCK | {"bits": 8}]}],
    "classes": 10,
}


def test_outline_draws_the_tree_and_joins_equal_neighbours() -> None:
    assert outline(NET) == "\n".join(
        [
            "Net(classes=10)",
            "├─ stem: Stem(patches=[2, 2])",
            "└─ stages.0: Stage(width=32)",
            "   ├─ blocks.0–1: Block(ffn=MLP)",
            "   │  └─ mixer: Window(window=4)",
            "   └─ blocks.2: Block(ffn=MLP, bits=8)",
            "      └─ mixer: Window(window=4)",
        ]
    )


def test_outline_takes_any_shape() -> None:
    assert outline({"type": "Net"}) == "Net"
    assert outline({"type": "Net", "blocks": [], "name": None}) == "Net(blocks=[], name=None)"
    nested = {"type": "Net", "grid": [[1, 2], [{"type": "A", "x": 1}]]}
    assert outline(nested).split("\n") == [
        "Net",
        "├─ grid.0: [1, 2]",
        "└─ grid.1: [{'type': 'A', 'x': 1}]",
    ]


def test_flatten_names_every_leaf() -> None:
    leaves = dict(flatten(NET))
    assert leaves["stages.0.blocks.2.bits"] == "8"
    assert leaves["stages.0.blocks.0.mixer.type"] == "Window"
    assert leaves["stem.patches.1"] == "2"
