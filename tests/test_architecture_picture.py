"""An architecture as a picture: to scale, one colour a mixer, and never at the mercy of what a file says."""

from __future__ import annotations

import itertools
import math
import xml.etree.ElementTree as ET
from typing import Any

import pytest

from nas.architecture import to_json
from nas.errors import SpaceError
from nas.layers import Global
from nas.report.architecture import THICKNESS, architecture_svg
from nas.report.style import MIXERS, mixer_look
from search_spaces import hierarchical

SVG = "{http://www.w3.org/2000/svg}"


def part(kind: str, bits: int | None = None, **genes: Any) -> dict[str, Any]:
    return {"type": kind, **genes} | ({"bits": {"type": "Bits", "weight": bits}} if bits else {})


def block(mixer: Any, ratio: float = 2, bits: int | None = None, **more: Any) -> dict[str, Any]:
    return {"type": "Block", "mixer": mixer, "ffn": part("Mlp", bits, ratio=ratio), **more}


def net(*stages: tuple[Any, list[Any]], **more: Any) -> dict[str, Any]:
    made = [{"type": "Stage", "width": width, "blocks": blocks} for width, blocks in stages]
    return {"type": "Net", "stem": part("Stem", patch=2), "stages": made, "classes": 10, **more}


def drawn(architecture: Any) -> ET.Element:
    return ET.fromstring(architecture_svg(architecture))


def marks(root: ET.Element, kind: str, tag: str = "rect") -> list[ET.Element]:
    """Those of a class in the blocks: the legend has such, too."""
    found = [root] if kind in ("block", "stage", "slim") else blocks_of(root)
    return [e for b in found for e in b.iter(SVG + tag) if e.get("class") == kind]


def blocks_of(root: ET.Element) -> list[ET.Element]:
    return [g for g in root.iter(SVG + "g") if g.get("class") == "block"]


def sizes(elements: list[ET.Element], side: str) -> list[float]:
    return [float(e.get(side, "nan")) for e in elements]


def texts(root: ET.Element) -> list[str]:
    return [e.text or "" for e in root.iter(SVG + "text")]


WINDOW, GLOBAL = part("Window", 8, heads=2, size=4), part("Global", heads=4)


class TestScale:
    def test_lengths_are_widths_and_units_on_one_scale(self) -> None:
        root = drawn(net((32, [block(GLOBAL, ratio=3)]), (64, [block(GLOBAL, ratio=1.5)])))
        lengths = sizes(marks(root, "mixer") + marks(root, "ffn"), "width")
        for length, channels in zip(lengths, (32, 64, 96, 96), strict=True):
            assert length / lengths[0] == pytest.approx(channels / 32, abs=0.01)

    def test_filled_heights_are_bits(self) -> None:
        bits = (4, 8, 16, None)
        root = drawn(net((32, [block(part("Global", b, heads=4), bits=b) for b in bits])))
        heights = sizes(marks(root, "bits"), "height")
        assert heights[::2] == heights[1::2] == [THICKNESS * b / 32 for b in (4, 8, 16, 32)]
        for bar, filled in zip(marks(root, "mixer"), marks(root, "bits")[::2], strict=True):
            bottoms = [float(e.get("y", 0)) + float(e.get("height", 0)) for e in (bar, filled)]
            assert bottoms[0] == bottoms[1]

    def test_the_bits_are_written_also_where_the_json_leaves_them_out(self) -> None:
        shown = texts(drawn(net((32, [block(WINDOW), block(GLOBAL)]))))
        assert "8 bit, heads 2, size 4" in shown
        assert "32 bit, heads 4" in shown

    def test_parallel_parts_stand_side_by_side(self) -> None:
        rows = {
            "two mixers": (block(GLOBAL, mixer2=WINDOW), ("mixer", "mixer")),
            "two channel mixers": (block(GLOBAL, ffn2=part("Mlp", ratio=1)), ("ffn", "ffn")),
            "topology": (block(GLOBAL, topology="parallel"), ("mixer", "ffn")),
        }
        for name, (found, kinds) in rows.items():
            root = drawn(net((32, [found])))
            first, second = marks(root, kinds[0])[0], marks(root, kinds[1])[-1]
            assert first.get("y") == second.get("y"), name
            end = float(first.get("x", 0)) + float(first.get("width", 0))
            assert end < float(second.get("x", 0)), name
        (mixer,), (ffn,) = (marks(drawn(net((32, [block(GLOBAL)]))), kind) for kind in ("mixer", "ffn"))
        assert (mixer.get("x"), mixer.get("y") == ffn.get("y")) == (ffn.get("x"), False)


class TestColours:
    def test_a_mixer_has_its_colour_in_every_picture(self) -> None:
        first = marks(drawn(net((32, [block(WINDOW), block(GLOBAL), block(WINDOW)]))), "mixer")
        second = marks(drawn(net((64, [block(GLOBAL)]))), "mixer")
        colours = [e.get("fill") for e in (*first, *second)]
        assert colours[0] == colours[2] != colours[1] == colours[3]

    def test_every_mixer_there_is_has_a_look_of_its_own(self) -> None:
        from nas.layers.catalogue import members
        from nas.layers.choice import Mixer

        names = [choice.__name__ for choice in members(Mixer)]
        assert set(names) == set(MIXERS)  # nas.report must not import the classes, for they need torch
        assert len({mixer_look(name)[0] for name in names}) == len(names) > 10

    def test_foreign_mixers_differ_too(self) -> None:
        names = [f"Mixer{i}" for i in range(40)]
        assert len({mixer_look(name)[0] for name in names}) == 40

    def test_no_two_mixers_look_alike_to_colour_blind_readers(self) -> None:
        """Either the texture tells them apart or the colours do, as all three deficiencies see them."""
        for (_, (a, texture)), (_, (b, other)) in itertools.combinations(
            [(name, mixer_look(name)) for name in MIXERS], 2
        ):
            for matrix in DEFICIENCIES.values():
                assert texture != other or math.dist(seen(a, matrix), seen(b, matrix)) > 10

    def test_the_legend_names_what_is_there(self) -> None:
        root = drawn(net((32, [block(WINDOW), block(GLOBAL)])))
        (legend,) = (g for g in root.iter(SVG + "g") if g.get("class") == "legend")
        assert texts(legend) == [
            "Window",
            "Global",
            "channel mixer",
            "16 channels or units",
            "4, 8, 16, 32 bit",
        ]


class TestParts:
    def test_a_published_architecture_has_its_blocks(self) -> None:
        from nas.architecture import to_json
        from search_spaces.published import swin_tiny

        root = drawn(to_json(swin_tiny()))
        assert len(marks(root, "stage", "g")) == 4
        assert len(blocks_of(root)) == len(marks(root, "mixer")) == len(marks(root, "ffn")) == 12
        slim = [g.findtext(SVG + "title") for g in marks(root, "slim", "g")]
        expected = ["stem: PatchStem(patch=4, norm=LayerNorm)", *["down: PatchMerging(bias=False)"] * 3]
        assert slim == [*expected, "head: Head(classes=1000)"]

    def test_a_block_tells_all_that_is_in_it(self) -> None:
        root = drawn(net((32, [block(WINDOW, layer_scale=0.1)])))
        assert blocks_of(root)[0].findtext(SVG + "title") == (
            "stages.0.blocks.0: Block(mixer=Window(heads=2, size=4, bits=Bits(weight=8)), "
            "ffn=Mlp(ratio=2), layer_scale=0.1)"
        )

    def test_equal_neighbours_repeat_the_bars_without_the_words(self) -> None:
        root = drawn(net((32, [block(WINDOW), block(WINDOW), block(GLOBAL), block(WINDOW)])))
        assert [bool(texts(b)) for b in blocks_of(root)] == [True, False, True, True]
        assert len(marks(root, "mixer")) == 4

    def test_what_stands_for_nothing_is_not_drawn(self) -> None:
        root = drawn(net((32, [block(part("NoMixer")), block(GLOBAL) | {"ffn": part("NoFfn")}])))
        assert [len(marks(root, kind)) for kind in ("mixer", "ffn")] == [1, 1]

    def test_is_an_image_with_a_name_and_a_description(self) -> None:
        root = drawn(net((32, [block(WINDOW), block(GLOBAL)])))
        assert root.get("role") == "img"
        assert [child.tag for child in root][:2] == [SVG + "title", SVG + "desc"]
        assert root.findtext(SVG + "desc") == "stages.0: 32 channels, 2 blocks of Window, Global"


class TestOtherForms:
    def test_a_list_of_numbers_is_a_stack_to_scale(self) -> None:
        root = drawn({"type": "Architecture", "hidden": [16, 32]})
        assert sizes(marks(root, "number"), "width") == [110, 220]
        assert "16" in texts(root)

    def test_a_list_of_layers_is_a_stack(self) -> None:
        layers = [part("Layer", heads=heads, hidden=1536) for heads in (12, 4)]
        root = drawn({"type": "Bert", "layers": layers, "width": 384})
        assert len(blocks_of(root)) == 2
        assert "heads 12, hidden 1536" in texts(root)

    def test_blocks_of_another_kind_show_their_parts(self) -> None:
        foreign = {"type": "Layer", "attention": part("Mine", heads=2), "mlp": part("Dense", units=8)}
        root = drawn({"type": "Net", "stages": [{"blocks": [foreign]}]})
        assert len(marks(root, "part")) == 2
        assert len({e.get("fill") for e in marks(root, "part")}) == 2

    def test_without_lists_it_is_the_outline(self) -> None:
        shown = texts(drawn({"type": "Net", "width": 32, "stem": part("Stem", patch=2)}))
        assert shown == ["Net(width=32)", "└─ stem: Stem(patch=2)"]

    @pytest.mark.parametrize(
        "odd",
        [
            {},
            {"stages": []},
            net(),
            net((32, [])),
            net((None, [None, "x", [1], {}, {"mixer": None}, block(part("Global", heads=[1, 2]))])),
            net((float("nan"), [block(GLOBAL, ratio=math.inf)]), (-1, [block(GLOBAL)]), ("32", [{}])),
            net((32, [block({"type": "Global", "bits": 64}), block({"type": "Global", "bits": "8"})])),
            {"type": None, "hidden": [True, 2], "grid": [[1], [2]]},
        ],
        ids=str,
    )
    def test_draws_whatever_comes(self, odd: Any) -> None:
        root = drawn(odd)
        assert float(root.get("width", 0)) > 0
        for bar in marks(root, "bits"):
            assert 0 <= float(bar.get("height", "nan")) <= THICKNESS

    @pytest.mark.parametrize("odd", ["a", None, [1, 2], Global])
    def test_what_is_no_architecture_is_named(self, odd: Any) -> None:
        with pytest.raises(SpaceError, match="must be a dataclass, or the JSON of one: got"):
            architecture_svg(odd)

    def test_escapes_and_stays_xml(self) -> None:
        evil = "</title><script>alert('\"1')</script>\x00\ud800"
        odd = net((32, [block(part(evil, **{evil: evil}))]), **{evil: part(evil)}) | {"type": evil}
        text = architecture_svg(odd)
        assert "<script" not in text
        assert len(blocks_of(ET.fromstring(text))) == 1
        assert "<script" not in architecture_svg({"type": evil, evil: evil})
        text.encode()


# Linear RGB as readers without one kind of cone see it (Machado et al., 2009, severity 1).
DEFICIENCIES = {
    "protanopia": (
        (0.152286, 1.052583, -0.204868),
        (0.114503, 0.786281, 0.099216),
        (-0.003882, -0.048116, 1.051998),
    ),
    "deuteranopia": (
        (0.367322, 0.860646, -0.227968),
        (0.280085, 0.672501, 0.047413),
        (-0.011820, 0.042940, 0.968881),
    ),
    "tritanopia": (
        (1.255528, -0.076749, -0.178779),
        (-0.078411, 0.930809, 0.147602),
        (0.004733, 0.691367, 0.303900),
    ),
}


def seen(colour: str, matrix: tuple[tuple[float, ...], ...]) -> tuple[float, ...]:
    """CIE L*a*b* of a colour through one of the deficiencies."""
    srgb = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
    linear = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in srgb]
    r, g, b = (min(1.0, max(0.0, sum(m * c for m, c in zip(row, linear, strict=True)))) for row in matrix)
    x = (0.4124 * r + 0.3576 * g + 0.1805 * b) / 0.9505
    y = 0.2126 * r + 0.7152 * g + 0.0722 * b
    z = (0.0193 * r + 0.1192 * g + 0.9505 * b) / 1.089
    fx, fy, fz = (t ** (1 / 3) if t > 0.008856 else 7.787 * t + 16 / 116 for t in (x, y, z))
    return 116 * fy - 16, 500 * (fx - fy), 200 * (fy - fz)


def test_an_architecture_is_drawn_as_its_json_is() -> None:
    architecture = hierarchical.space(Images(), widths=((8,), (16,)), depths=(1, 1)).largest()
    assert architecture_svg(architecture) == architecture_svg(to_json(architecture))


class Images:
    classes, image_shape = 10, (1, 8, 8)
