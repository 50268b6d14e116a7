"""The selective scan against its recurrence, the block against its equations and `transformers`' Mamba."""

from __future__ import annotations

import pytest
import torch
from export.nets import apart
from layers.cutting import code, cut_module, cut_tensors, grid, maps, randomise
from torch import Tensor
from torch.nn import functional as F

from nas.errors import SpaceError
from nas.export.onnx import export_onnx
from nas.layers.mixers.state_space import SCANS, SelectiveStateSpace, StateSpace, scan
from search_spaces.pretrained.libraries import prepare


def recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    state, states = torch.zeros_like(drive[:, 0]), []
    for t in range(drive.shape[1]):
        state = decay[:, t] * state + drive[:, t]
        states.append(state)
    return torch.stack(states, 1)


@pytest.mark.parametrize("length", [1, 2, 3, 7, 8, 64, 197])
def test_scan_is_the_recurrence(length):
    generator = torch.Generator().manual_seed(length)
    shape = (2, length, 3, 4)
    decay = torch.rand(shape, generator=generator, dtype=torch.double)
    drive, weight = (torch.randn(shape, generator=generator, dtype=torch.double) for _ in range(2))
    decay.requires_grad_(), drive.requires_grad_()
    ours, theirs = scan(decay, drive), recurrence(decay, drive)
    torch.testing.assert_close(ours, theirs)
    gradients = [
        torch.autograd.grad((y * weight).sum(), (decay, drive), materialize_grads=True)
        for y in (ours, theirs)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, msg=f"gradient, length {length}")


@pytest.mark.parametrize("decay", [0.0, 1e-30, 0.999, 1.0])
def test_scan_of_a_long_sequence_neither_overflows_nor_forgets(decay):
    drive = torch.ones(1, 3000)
    states = scan(torch.full((1, 3000), decay), drive)
    exact = recurrence(torch.full((1, 3000), decay).double(), drive.double())
    torch.testing.assert_close(states.double(), exact, rtol=1e-4, atol=0)


def literal(x: Tensor, p: dict[str, Tensor], order: list[tuple[int, int]]) -> Tensor:
    """Mamba's block, position after position in `order`, from its equations (§3.2, §3.4)."""
    units = p["D"].numel()
    state = torch.zeros(len(x), units, p["A_log"].shape[1], dtype=x.dtype)
    past: list[Tensor] = []
    y = torch.zeros_like(x)
    for r, c in order:
        both = x[:, r, c] @ p["in_.weight"].T
        past.insert(0, both[:, :units])
        taps = zip(past, p["conv_weight"].T, strict=False)
        u = F.silu(sum((seen * tap for seen, tap in taps), start=p["conv_bias"]))
        step = F.softplus(u @ p["step_rank.weight"].T @ p["step.weight"].T + p["step.bias"])
        write, read = u @ p["write.weight"].T, u @ p["read.weight"].T
        state = (step[..., None] * -p["A_log"].exp()).exp() * state
        state = state + (step * u)[..., None] * write[:, None]
        answer = (state * read[:, None]).sum(-1) + p["D"] * u
        y[:, r, c] = (answer * F.silu(both[:, units:])) @ p["out.weight"].T
    return y


def order_of(scan_order: str, height: int, width: int) -> list[tuple[int, int]]:
    if scan_order.startswith("rows"):
        order = [(r, c) for r in range(height) for c in range(width)]
    else:
        order = [(r, c) for c in range(width) for r in range(height)]
    return order[::-1] if scan_order.endswith("back") else order


@pytest.mark.parametrize("scan_order", SCANS)
@pytest.mark.parametrize(("height", "width"), [(1, 1), (3, 5), (4, 4)])
def test_the_block_is_its_equations_in_any_order(scan_order, height, width):
    layer = randomise(StateSpace(3, scan_order).build(6))
    x = torch.randn(2, height, width, 6, generator=torch.Generator().manual_seed(0)).double()
    parameters = dict(layer.ssm.named_parameters())
    torch.testing.assert_close(layer(x), literal(x, parameters, order_of(scan_order, height, width)))


@pytest.mark.parametrize(
    ("width", "mixer"),
    [
        (32, StateSpace(2)),
        (32, StateSpace(8, ratio=1)),
        (32, StateSpace(8, kernel=2)),
        (8, StateSpace(8)),
        (16, StateSpace(2, ratio=1, kernel=3)),
    ],
)
def test_a_cut_block_is_made_of_the_first_units_states_and_nearest_positions(width, mixer):
    large = randomise(StateSpace(8).build(32))
    small = cut_module(large, mixer.build(width))
    p, x = dict(large.ssm.named_parameters()), maps(width, 4)
    units, states, rank = int(width * mixer.ratio), mixer.state, -(-width // 16)
    kept = {
        "in_.weight": torch.cat([half[:units, :width] for half in p["in_.weight"].chunk(2)]),
        "conv_weight": p["conv_weight"][:units, : mixer.kernel],  # the nearest come first
        **{n: p[n][:units] for n in ("conv_bias", "D", "step.bias")},
        "step_rank.weight": p["step_rank.weight"][:rank, :units],
        "step.weight": p["step.weight"][:units, :rank],
        **{f"{n}.weight": p[f"{n}.weight"][:states, :units] for n in ("write", "read")},
        "A_log": p["A_log"][:units, :states],
        "out.weight": p["out.weight"][:width, :units],
    }
    torch.testing.assert_close(small(x), literal(x, kept, order_of("rows", 4, 4)))


def test_roles_are_kept():
    def codes(layer: SelectiveStateSpace) -> Tensor:
        row, channel = grid(2 * layer.units, layer.width)
        return code(row // layer.units, row % layer.units, channel)

    large, small = (StateSpace(2).build(width).ssm for width in (16, 8))
    tensors = {n: torch.zeros(p.shape) for n, p in large.named_parameters()}
    kept = cut_tensors(tensors | {"in_.weight": codes(large)}, large, small)
    assert torch.equal(kept["in_.weight"], codes(small))


def test_mamba_of_transformers_answers_the_same():
    prepare()
    from transformers import MambaConfig
    from transformers.models.mamba.modeling_mamba import MambaMixer

    config = MambaConfig(hidden_size=20, state_size=5, expand=2, conv_kernel=4, num_hidden_layers=1)
    theirs = randomise(MambaMixer(config, 0)).float()
    ours = StateSpace(5).build(20)
    p = dict(theirs.named_parameters())
    rank = config.time_step_rank
    ours.ssm.load_state_dict(
        {
            "in_.weight": p["in_proj.weight"],
            "conv_weight": p["conv1d.weight"][:, 0].flip(1),
            "conv_bias": p["conv1d.bias"],
            "step_rank.weight": p["x_proj.weight"][:rank],
            "write.weight": p["x_proj.weight"][rank : rank + 5],
            "read.weight": p["x_proj.weight"][rank + 5 :],
            "step.weight": p["dt_proj.weight"],
            "step.bias": p["dt_proj.bias"],
            "A_log": p["A_log"],
            "D": p["D"],
            "out.weight": p["out_proj.weight"],
        }
    )
    x = maps(20, 6).float()
    torch.testing.assert_close(ours(x).flatten(1, 2), theirs(x.flatten(1, 2)))
    assert sum(map(torch.numel, ours.parameters())) == sum(map(torch.numel, theirs.parameters()))


def test_step_sizes_start_between_a_thousandth_and_a_tenth():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        steps = F.softplus(StateSpace(4).build(256).ssm.step.bias)
    assert 0.0009 < steps.min() < 0.0015
    assert 0.08 < steps.max() < 0.11
    assert 0.008 < steps.median() < 0.013


def test_an_order_that_no_one_knows_is_refused():
    with pytest.raises(SpaceError, match=r"`scan` of StateSpace must be one of rows, .*: got 'diagonal'"):
        StateSpace(4, "diagonal").build(8)


def test_no_bit_depends_on_who_requires_gradients():
    """An extracted module has parameters, the supernet gives it plain tensors: they must answer the same."""
    layer = randomise(StateSpace(4, ratio=1).build(32)).float()
    weights = {n: p.detach().clone() for n, p in layer.named_parameters()}
    x = torch.randn(4, 6, 6, 32, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(torch.func.functional_call(layer, weights, (x,)), layer(x))


@pytest.mark.parametrize("scan_order", ["rows", "columns_back"])
def test_it_exports(scan_order, tmp_path):
    layer, x = StateSpace(4, scan_order).build(8), maps(8, 5).float()
    export_onnx(layer, x, tmp_path / "layer.onnx")
    assert apart(tmp_path / "layer.onnx", layer, x) < 1e-5
