"""Bits as the leading ones of one number, and scales that learn; through the supernet to the export."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from nas.errors import ExportError, SpaceError
from nas.export.checks import Evidence, check
from nas.export.formats import FORMATS, Subnet
from nas.layers import Bits, PatchStem
from nas.quantize import (
    DYNAMIC,
    GROUP,
    Integers,
    Quantization,
    fake_quantize,
    payload_bytes,
    scales_of,
    step_name,
)
from nas.space import Space, oneof, repeat
from nas.supernet import Supernet
from nas.tasks import digits
from nas.training import Recipe, train
from search_spaces import hierarchical

WEIGHT = torch.randn(5, 70, generator=torch.Generator().manual_seed(0))


def master(weight: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of 8 bits (out, groups, GROUP) and their scales, in float64."""
    rows = np.zeros((len(weight), math.ceil(weight.shape[1] / GROUP) * GROUP))
    rows[:, : weight.shape[1]] = weight.double().numpy()
    groups = rows.reshape(len(weight), -1, GROUP)
    scales = np.abs(groups).max(-1, keepdims=True) / 127
    return np.round(groups / scales), scales


class TestNested:
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_equals_the_formula(self, bits):
        numbers, scales = master(WEIGHT)
        dropped = 2 ** (8 - bits)
        leading = np.clip(np.round(numbers / dropped), -(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        wanted = (leading * dropped * scales).reshape(5, -1)[:, :70]
        np.testing.assert_allclose(fake_quantize(WEIGHT, bits, nested=True), wanted, rtol=1e-5)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_whole_numbers_are_what_is_simulated(self, bits):
        rounded = fake_quantize(WEIGHT, bits, nested=True)
        scales = scales_of(WEIGHT, bits, nested=True)
        assert torch.equal(Integers.of(rounded, bits, scales).weight(), rounded)
        assert scales.shape == Integers.scales_shape((5, 70), bits, nested=True) == (5, 3)
        assert payload_bytes((5, 70), bits, nested=True) == math.ceil(350 * bits / 8) + 4 * 15

    def test_fewer_bits_are_the_leading_ones(self):
        of = {b: fake_quantize(WEIGHT, b, nested=True) for b in (4, 8)}
        values = {b: Integers.of(w, b, scales_of(WEIGHT, b, nested=True)).values.int() for b, w in of.items()}
        assert torch.equal(values[4], (values[8] / 16).round().clamp(-8, 7).int())
        assert values[4].min() == -8

    def test_gradients_pass_straight_through(self):
        weight = WEIGHT.clone().requires_grad_()
        fake_quantize(weight, 4, nested=True).mul(torch.arange(70)).sum().backward()
        torch.testing.assert_close(weight.grad, torch.arange(70.0).expand(5, 70))


class TestLearned:
    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_begins_where_scales_are_not_learned(self, bits):
        step = torch.zeros(5)
        torch.testing.assert_close(fake_quantize(WEIGHT, bits, step=step), fake_quantize(WEIGHT, bits))

    def test_gradients_are_those_of_the_paper(self):
        """Esser et al., 2020, eqs. 3 and 5 and §2.2, here for the logarithm of the scale."""
        bits, largest = 8, 127
        weight, step = WEIGHT.clone().requires_grad_(), torch.full((5,), -0.7).requires_grad_()
        upstream = torch.randn(5, 70, generator=torch.Generator().manual_seed(1))
        fake_quantize(weight, bits, step=step).mul(upstream).sum().backward()
        scale = WEIGHT.abs().amax(1, keepdim=True) / largest * math.exp(-0.7)
        v = WEIGHT / scale
        inside = v.abs() <= largest
        assert 0 < (~inside).sum() < 200
        of_scale = torch.where(inside, v.round() - v, v.sign() * largest)
        wanted = (upstream * of_scale).sum(1) * scale[:, 0] / math.sqrt(70 * largest)
        torch.testing.assert_close(step.grad, wanted, rtol=1e-4, atol=1e-7)
        torch.testing.assert_close(weight.grad, upstream * inside)

    @pytest.mark.parametrize("bits", [2, 4, 8])
    def test_whole_numbers_are_what_is_simulated(self, bits):
        step = torch.linspace(-1, 1, 5)
        rounded = fake_quantize(WEIGHT, bits, step=step)
        assert torch.equal(Integers.of(rounded, bits, scales_of(WEIGHT, bits, step=step)).weight(), rounded)


# --- through the supernet -------------------------------------------------------------------------


class Task:
    classes, image_shape = 10, (1, 8, 8)


HOW = [
    Quantization(),
    Quantization(nested=True),
    Quantization(learned=True),
    Quantization(DYNAMIC, learned=True),
]
IMAGES = torch.rand(4, 1, 8, 8, generator=torch.Generator().manual_seed(0))


def supernet(how: Quantization, bits: tuple[int, ...] = (2, 4, 8)) -> Supernet:
    space = hierarchical.space(
        Task, widths=((16, 32),), depths=(1, 2), bits=bits, activations=(8, 32), ratios=(1, 2)
    )
    made = Supernet(hierarchical.build, space, quantization=how)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in made.bank.items():
        if "_step_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator) * 0.2
    return made


@pytest.mark.parametrize("how", HOW, ids=str)
def test_extraction_difference_is_zero(how):
    made = supernet(how)
    rng = np.random.default_rng(0)
    for _ in range(15):
        architecture = made.space.sample(rng)
        buffers = made.calibrate(architecture, [IMAGES])
        module = made.extract(architecture, buffers=buffers)
        assert not [name for name, _ in module.named_parameters() if "_step_" in name]
        with torch.inference_mode():
            assert torch.equal(module(IMAGES), made(architecture, IMAGES, buffers=buffers))


@pytest.mark.parametrize("how", HOW, ids=str)
def test_exports_answer_as_it(how, tmp_path):
    made = supernet(how, bits=(4, 8))
    rng = np.random.default_rng(1)
    for i in range(3):
        architecture = made.space.sample(rng)
        buffers = made.calibrate(architecture, [IMAGES[:1]])
        module = made.extract(architecture, buffers=buffers)
        evidence = Evidence.random(module, IMAGES[:1])
        for name in ("safetensors", "onnx", "onnx-portable", "pt2"):
            of = FORMATS[name]
            of.write(Subnet(module, {}, IMAGES[:2]), tmp_path / f"{i}-{of.file}")
            found = check(of, tmp_path / f"{i}-{of.file}", module, evidence)
            if found.format in ("safetensors", "onnx", "onnx-portable"):
                assert found.weight_bytes <= found.predicted_bytes == made.size_bytes(architecture)


def test_steps_are_cut_as_the_rows_of_their_weight():
    made = supernet(Quantization(learned=True))
    heads = "stages.0.blocks.0.mixer.q.weight"
    wide = made.stored[heads].shape
    assert made.stored[step_name(heads, 8)].shape == wide[:2]  # heads, dimensions of a head
    small = made.space.smallest()
    assert made.parameters_of(small) == sum(p.numel() for p in made.extract(small).parameters())


def test_steps_are_learned(tmp_path):
    task = digits().fewer(train=200)
    space = Space(
        hierarchical.HierarchicalTransformer(
            PatchStem(2),
            (
                hierarchical.Stage(
                    16,
                    repeat(
                        hierarchical.Block(
                            hierarchical.Global(2, bits=Bits(oneof(2, 8))), hierarchical.Mlp(1, bits=Bits(4))
                        ),
                        1,
                        2,
                    ),
                ),
            ),
            classes=10,
        ),
        hierarchical.laws(8),
    )
    made = Supernet(hierarchical.build, space, quantization=Quantization(learned=True))
    trained = train(made, task, Recipe(epochs=2), tmp_path)
    moved = [n for n, t in trained.state().items() if "_step_" in n and t.abs().max() > 1e-4]
    assert len(moved) == sum("_step_" in name for name in made.bank) > 8


def test_weights_that_were_changed_are_not_exported(tmp_path):
    made = supernet(Quantization(), bits=(8,))
    architecture = made.space.smallest()
    module = made.extract(architecture, buffers=made.calibrate(architecture, [IMAGES]))
    with torch.no_grad():
        module.stages[0].blocks[0].ffn.up.weight.mul_(1.001)
    with pytest.raises(ExportError, match=r"ffn\.up\.weight` must be what it was rounded to at 8 bits"):
        FORMATS["onnx"].write(Subnet(module, {}, IMAGES), tmp_path / "model.onnx")


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"activations": "static"}, "must be calibrated or dynamic: got 'static'"),
        ({"images": 0}, "batch size of deployment, 1 or more: got 0"),
        ({"images": 4}, "must be 1 where ranges are calibrated"),
        ({"nested": True, "learned": True}, "must not stand together"),
    ],
)
def test_settings_that_do_not_go_together(settings, message):
    with pytest.raises(SpaceError, match=message):
        Quantization(**settings)


def test_bits_of_other_builders_are_numbers_or_pairs():
    def build(width: int) -> nn.Module:
        return nn.Sequential(nn.Linear(4, width), nn.Linear(width, 2))

    made = Supernet(build, Space(oneof(32, 64)), bits=lambda a, name: Bits(8, 8) if name[0] == "1" else 4)
    found = made.parameter_bits(32)
    assert found == {"0.weight": Bits(4), "0.bias": Bits(), "1.weight": Bits(8, 8), "1.bias": Bits()}
    with pytest.raises(SpaceError, match=r"Bits of `0\.weight` must be 2, 4, 8, 16 or 32 of weights .*got 5"):
        Supernet(build, Space(oneof(32, 64)), bits=lambda a, name: 5)
    with pytest.raises(SpaceError, match=r"Bits of `0\.weight` must have weights of 4 or 8 bits"):
        Supernet(build, Space(oneof(32, 64)), bits=lambda a, name: Bits(16, 8))


def test_integer_kernels_must_run(tmp_path):
    """By the runtime's profile; a file of floats is no export at 8 bits, whatever it answers."""
    made = supernet(Quantization(), bits=(8,))
    architecture = next(
        a
        for a in (made.space.sample(np.random.default_rng(i)) for i in range(99))
        if a.stages[0].blocks[0].ffn.bits.activation == 8
    )
    module = made.extract(architecture, buffers=made.calibrate(architecture, [IMAGES]))
    given, evidence = Subnet(module, {}, IMAGES[:2]), Evidence.random(module, IMAGES[:1])
    of = FORMATS["onnx"]
    of.write(given, tmp_path / of.file)
    found = check(of, tmp_path / of.file, module, evidence)
    assert found.kernels["MatMulIntegerToFloat"] >= 2
    FORMATS["onnx-portable"].write(given, tmp_path / of.file)
    slow = replace(of, kernels=lambda path, x: {"MatMul": 9})
    with pytest.raises(ExportError, match=r"8 bits ran none of whole numbers, but \{'MatMul': 9\}"):
        check(slow, tmp_path / of.file, module, evidence)
