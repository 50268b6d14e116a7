"""Blocks against the sums that their papers write, over a sequence: tokens first, then the map row by row."""

from __future__ import annotations

import pytest
import torch
from layers.cutting import cut_module, randomise, zero_what_is_cut_away
from layers.literal import answer, by_head, gelu, layer_norm, rectangle, tokens
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.layers import Block, Global, Mlp, NoFfn, NoMixer, RMSNorm, Window
from nas.layers.downsampling.query_pooling import QueryPooling
from nas.layers.mixers.depthwise import DepthwiseConv

WIDTH = 8
SIDES = [(2, 3), (4, 1)]
TOKENS = [0, 2]


def short(value: object) -> str:
    """A name of a case."""
    if not isinstance(value, dict):
        return ""
    said = (f"{n}={v if isinstance(v, str) else type(v).__name__}" for n, v in value.items())
    return " ".join(said) or "plain"


def linear(x: Tensor, layer: nn.Linear) -> Tensor:
    return x @ layer.weight.T + layer.bias


def sub_normed(x: Tensor, norm: nn.Module) -> Tensor:
    return layer_norm(x, norm) if isinstance(norm, nn.LayerNorm) else x


def attention(x: Tensor, layer: nn.Module) -> Tensor:
    """Of all N of a sequence (B, N, C) to all, with a norm before the projection where there is one."""
    q, k, v = (by_head(linear(x, p), layer.heads) for p in (layer.q, layer.k, layer.v))
    y = torch.zeros_like(v)
    for head in range(layer.heads):
        for n in range(x.shape[1]):
            y[:, n, head] = answer(q[:, n, head], k[:, :, head], v[:, :, head])
    return linear(sub_normed(y.flatten(2), layer.sub_norm), layer.o)


def mlp(x: Tensor, layer: nn.Module) -> Tensor:
    return linear(sub_normed(gelu(linear(x, layer.up)), layer.sub_norm), layer.down)


def scale(block: nn.Module, number: str) -> Tensor | float:
    factor = getattr(block, f"scale{number}")
    return 1.0 if factor is None else factor


def pre(x: Tensor, b: nn.Module) -> Tensor:
    x = x + scale(b, "1") * attention(layer_norm(x, b.norm1), b.mixer)
    return x + scale(b, "2") * mlp(layer_norm(x, b.norm2), b.ffn)


def post(x: Tensor, b: nn.Module) -> Tensor:
    x = layer_norm(x + scale(b, "1") * attention(x, b.mixer), b.norm1)
    return layer_norm(x + scale(b, "2") * mlp(x, b.ffn), b.norm2)


def parallel(x: Tensor, b: nn.Module) -> Tensor:
    y = layer_norm(x, b.norm1)
    return x + scale(b, "1") * attention(y, b.mixer) + scale(b, "2") * mlp(y, b.ffn)


def joint(x: Tensor, b: nn.Module) -> Tensor:
    return x + scale(b, "2") * mlp(layer_norm(attention(x, b.mixer), b.norm2), b.ffn)


def chain(x: Tensor, b: nn.Module) -> Tensor:
    mixed = attention(layer_norm(x, b.norm1), b.mixer)
    return x + scale(b, "2") * mlp(layer_norm(mixed, b.norm2), b.ffn)


FORMULAS = {
    ("series", "pre"): pre,
    ("series", "post"): post,
    ("series", "sub"): pre,
    ("parallel", "pre"): parallel,
    ("parallel", "sub"): parallel,
    ("joint", "pre"): joint,
    ("joint", "sub"): joint,
    ("chain", "pre"): chain,
    ("chain", "sub"): chain,
}
ENDS = {"series": ["mixer", "ffn"], "parallel": ["mixer", "ffn"], "joint": ["ffn"], "chain": ["ffn"]}
"""What stands at the end of a residual branch: before its last layer, "sub" puts a norm."""


def parts_of(sides: tuple[int, int], count: int) -> tuple[Tensor, ...]:
    """A map, and `count` tokens if there are any."""
    x = rectangle(WIDTH, *sides)
    return (x, tokens(WIDTH, count)) if count else (x,)


def sequence(parts: tuple[Tensor, ...]) -> Tensor:
    x = parts[0].flatten(1, 2)
    return torch.cat([parts[1], x], 1) if len(parts) > 1 else x


def example(width: int = WIDTH, **choices) -> nn.Module:
    return randomise(Block(**({"mixer": Global(2), "ffn": Mlp(2)} | choices)).build(width))


def assert_sum(block: nn.Module, formula, sides: tuple[int, int], count: int) -> None:
    parts = parts_of(sides, count)
    answers = block(*parts)
    assert [y.shape for y in answers] == [x.shape for x in parts]
    torch.testing.assert_close(sequence(answers), formula(sequence(parts), block))


@pytest.mark.parametrize("count", TOKENS)
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize(("topology", "placement"), FORMULAS)
def test_placements_and_topologies(topology, placement, layer_scale, sides, count):
    block = example(topology=topology, placement=placement, layer_scale=layer_scale)
    ends = [n for n in ("mixer", "ffn") if isinstance(getattr(block, n).sub_norm, nn.LayerNorm)]
    assert ends == (ENDS[topology] if placement == "sub" else [])
    assert_sum(block, FORMULAS[topology, placement], sides, count)


def norms(block: nn.Module) -> list[str]:
    return [name for name, _ in block.named_children() if name.startswith("norm")]


def test_topologies_have_the_norms_of_their_sums():
    named = {topology: norms(example(topology=topology)) for topology in ("series", "parallel", "chain")}
    assert named == {"series": ["norm1", "norm2"], "parallel": ["norm1"], "chain": ["norm1", "norm2"]}
    parameters = dict(example(topology="joint").named_parameters())
    assert {n for n in parameters if n.startswith("norm")} == {"norm2.weight", "norm2.bias"}


# --- layer scale --------------------------------------------------------------------------------


@pytest.mark.parametrize("value", [1e-6, 0.1])
@pytest.mark.parametrize(
    ("choices", "names"),
    [
        ({}, {"scale1", "scale2"}),
        ({"topology": "parallel"}, {"scale1", "scale2"}),
        ({"topology": "joint"}, {"scale2"}),
        ({"topology": "chain"}, {"scale2"}),
        ({"mixer2": Global(1), "ffn2": Mlp(1)}, {"scale1", "scale2", "scale1b", "scale2b"}),
        ({"ffn": NoFfn()}, {"scale1"}),
    ],
    ids=short,
)
def test_every_branch_has_a_layer_scale_of_its_own(choices, names, value):
    block = Block(**({"mixer": Global(2), "ffn": Mlp(2)} | choices), layer_scale=value).build(WIDTH)
    scales = {n: p for n, p in block.named_parameters() if n.startswith("scale")}
    assert set(scales) == names
    for factor in scales.values():
        torch.testing.assert_close(factor.detach(), torch.full((WIDTH,), value))


# --- two in parallel ----------------------------------------------------------------------------


def two_pre(x: Tensor, b: nn.Module) -> Tensor:
    """Touvron et al., 2022, eq. 2, with a norm for each."""
    first = scale(b, "1") * attention(layer_norm(x, b.norm1), b.mixer)
    x = x + first + scale(b, "1b") * attention(layer_norm(x, b.norm1b), b.mixer2)
    first = scale(b, "2") * mlp(layer_norm(x, b.norm2), b.ffn)
    return x + first + scale(b, "2b") * mlp(layer_norm(x, b.norm2b), b.ffn2)


def two_post(x: Tensor, b: nn.Module) -> Tensor:
    """One norm of the sum of all."""
    y = x + scale(b, "1") * attention(x, b.mixer) + scale(b, "1b") * attention(x, b.mixer2)
    x = layer_norm(y, b.norm1)
    y = x + scale(b, "2") * mlp(x, b.ffn) + scale(b, "2b") * mlp(x, b.ffn2)
    return layer_norm(y, b.norm2)


TWO = {"pre": two_pre, "sub": two_pre, "post": two_post}


@pytest.mark.parametrize("count", TOKENS)
@pytest.mark.parametrize("sides", SIDES)
@pytest.mark.parametrize("layer_scale", [None, 0.5])
@pytest.mark.parametrize("placement", TWO)
def test_two_attentions_then_two_ffns(placement, layer_scale, sides, count):
    block = example(mixer2=Global(4), ffn2=Mlp(1), placement=placement, layer_scale=layer_scale)
    subs = [isinstance(getattr(block, n).sub_norm, nn.LayerNorm) for n in ("mixer", "mixer2", "ffn", "ffn2")]
    assert subs == [placement == "sub"] * 4
    assert_sum(block, TWO[placement], sides, count)


def test_two_attentions_before_one_ffn():
    block, parts = example(mixer2=Global(1)), parts_of((2, 3), 0)
    x = sequence(parts)
    both = attention(layer_norm(x, block.norm1), block.mixer)
    x = x + both + attention(layer_norm(x, block.norm1b), block.mixer2)
    y = x + mlp(layer_norm(x, block.norm2), block.ffn)
    torch.testing.assert_close(sequence(block(*parts)), y)


@pytest.mark.parametrize("placement", TWO)
def test_every_weight_of_two_in_parallel_is_used(placement):
    block = example(mixer2=Global(4), ffn2=Mlp(1), placement=placement, layer_scale=0.5)
    torch.autograd.backward(block(*parts_of((2, 3), 2))[0].square().sum())
    unused = [n for n, p in block.named_parameters() if p.grad is None or not p.grad.any()]
    assert not [n for n in unused if not n.endswith("k.bias")], "softmax ignores a key bias, nothing else"


@pytest.mark.parametrize(
    ("none", "number"), [({"mixer": NoMixer()}, "1b"), ({"ffn": NoFfn()}, "2b")], ids=short
)
def test_the_second_alone_after_which_a_norm_comes(none, number):
    block, parts = example(**none, mixer2=Global(4), ffn2=Mlp(1), placement="post"), parts_of((2, 3), 0)
    x = sequence(parts)
    for branches in ((("mixer", "1"), ("mixer2", "1b")), (("ffn", "2"), ("ffn2", "2b"))):
        there = [(getattr(block, n), k) for n, k in branches if getattr(block, n) is not None]
        act = attention if branches[0][0] == "mixer" else mlp
        x = layer_norm(x + sum(act(x, part) for part, _ in there), getattr(block, f"norm{there[0][1]}"))
    assert number in [n.removeprefix("norm") for n in norms(block)]
    torch.testing.assert_close(sequence(block(*parts)), x)


# --- parts that are not there -------------------------------------------------------------------


@pytest.mark.parametrize("placement", ["pre", "post"])
@pytest.mark.parametrize("missing", ["mixer", "ffn"])
def test_a_branch_that_is_not_there_has_no_norm_either(missing, placement):
    none = {"mixer": NoMixer(), "ffn": NoFfn()}[missing]
    block, parts = example(**{missing: none}, placement=placement), parts_of((2, 3), 2)
    number, other = ("1", "2") if missing == "mixer" else ("2", "1")
    assert not [n for n, _ in block.named_parameters() if n.startswith((f"norm{number}", missing))]
    x, norm = sequence(parts), getattr(block, f"norm{other}")

    def branch(x: Tensor) -> Tensor:
        return mlp(x, block.ffn) if missing == "mixer" else attention(x, block.mixer)

    y = x + branch(layer_norm(x, norm)) if placement == "pre" else layer_norm(x + branch(x), norm)
    torch.testing.assert_close(sequence(block(*parts)), y)


def test_nothing_at_all_is_the_identity():
    parts = parts_of((2, 3), 2)
    block = Block(NoMixer(), NoFfn()).build(WIDTH)
    assert all(torch.equal(y, x) for y, x in zip(block(*parts), parts, strict=True))
    assert not list(block.parameters())


def test_the_norm_is_the_one_that_was_chosen():
    block, parts = example(norm=RMSNorm(1e-3), placement="sub"), parts_of((2, 3), 0)
    norms = [m for n, m in block.named_modules() if "norm" in n]
    assert all(isinstance(m, (nn.RMSNorm, nn.Identity)) for m in norms)
    assert any(isinstance(m, nn.RMSNorm) for m in norms)

    def rms_norm(x: Tensor, norm: nn.Module) -> Tensor:
        return x / (x.square().mean(-1, keepdim=True) + 1e-3).sqrt() * norm.weight

    x, m = sequence(parts), block.mixer
    q, k, v = (linear(rms_norm(x, block.norm1), p).unflatten(-1, (2, 8)) for p in (m.q, m.k, m.v))
    y = torch.zeros_like(v)
    for head in range(2):
        for n in range(6):
            y[:, n, head] = answer(q[:, n, head], k[:, :, head], v[:, :, head])
    x = x + linear(rms_norm(y.flatten(2), m.sub_norm), m.o)
    inner = gelu(linear(rms_norm(x, block.norm2), block.ffn.up))
    x = x + linear(rms_norm(inner, block.ffn.sub_norm), block.ffn.down)
    torch.testing.assert_close(sequence(block(*parts)), x)


# --- cutting ------------------------------------------------------------------------------------


@pytest.mark.parametrize("width", [WIDTH, 6])
@pytest.mark.parametrize(
    "choices",
    [{"topology": t, "placement": p} for t, p in FORMULAS]
    + [{"mixer2": Global(4), "ffn2": Mlp(2), "placement": p} for p in TWO],
    ids=short,
)
def test_a_cut_block_is_the_large_one_with_the_rest_zeroed(choices, width):
    choices = choices | {"layer_scale": 0.5}
    large = example(mixer=Global(2, head_dim=16), **choices)
    small = cut_module(large, example(width, mixer=Global(1, head_dim=8), ffn=Mlp(1), **choices))
    x = rectangle(width, 2, 3)
    zeroed = zero_what_is_cut_away(large, small)
    (y,), (wide,) = small(x), zeroed(F.pad(x, (0, WIDTH - width)))
    torch.testing.assert_close(y, wide[..., :width])


# --- blocks that are none -----------------------------------------------------------------------


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"placement": "before"}, "`placement` of Block must be one of pre, post, sub: got 'before'"),
        ({"topology": "tree"}, "must be one of series, parallel, joint, chain: got 'tree'"),
        ({"mixer": Mlp(2)}, "`mixer` of Block must be a Mixer: got Mlp"),
        ({"ffn": Global(2)}, "`ffn` of Block must be a ChannelMixer: got Global"),
        ({"mixer2": Mlp(2)}, "`mixer2` of Block must be a Mixer or None: got Mlp"),
        ({"ffn2": Global(2)}, "`ffn2` of Block must be a ChannelMixer or None: got Global"),
        ({"mixer": DepthwiseConv(3), "placement": "sub"}, "find a `sub_norm` in DepthwiseConv"),
        *(
            ({"topology": t} | other, rf"topology='{t}' must have one mixer, one ffn.*Use topology='series'")
            for t in ("parallel", "joint", "chain")
            for other in ({"mixer2": Global(1)}, {"ffn2": Mlp(1)}, {"ffn": NoFfn()}, {"placement": "post"})
        ),
    ],
    ids=short,
)
def test_blocks_that_cannot_be_are_refused(choices, message):
    with pytest.raises(SpaceError, match=message):
        Block(**({"mixer": Global(2), "ffn": Mlp(2)} | choices)).build(WIDTH)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"topology": "parallel"}, "pools queries must be in series.*topology='parallel'"),
        ({"placement": "post"}, "placement='post'"),
        ({"mixer2": Global(1)}, "mixer2=Global"),
        ({"mixer": Window(2, 2)}, "pool its queries, which Window cannot. Use Global, MaskUnit or Pooled"),
        ({"mixer": NoMixer()}, "which NoMixer cannot"),
    ],
    ids=short,
)
def test_blocks_that_cannot_pool_queries_are_refused(choices, message):
    block = Block(**({"mixer": Global(2), "ffn": Mlp(2)} | choices))
    with pytest.raises(SpaceError, match=message):
        block.build_pooling(WIDTH, 2 * WIDTH, QueryPooling())


@pytest.mark.parametrize(("height", "width"), [(6, 8), (8, 6)])
def test_maps_that_do_not_fit_are_refused(height, width):
    block = example(mixer=Window(2, 4))
    with pytest.raises(SpaceError, match=f"A window must divide.*size=4 on {height}×{width}"):
        block(rectangle(WIDTH, height, width))
