"""Every choice of `nas.layers` can be exported, and the file answers at any batch size as the module does."""

from __future__ import annotations

from dataclasses import replace

import onnxruntime
import pytest
import torch

from nas.export.onnx import export_onnx
from nas.layers import (
    AttentionPosition,
    Bits,
    Block,
    ChannelMixer,
    Downsample,
    Global,
    LayerNorm,
    Mixer,
    Mlp,
    Norm,
    PatchMerging,
    PatchStem,
    Position,
    Stem,
    Window,
)
from nas.layers.catalogue import members
from nas.layers.mixers.spatial_reduction import LinearReduction
from nas.space import Space
from nas.supernet import Supernet
from search_spaces import hierarchical
from search_spaces.hierarchical import HierarchicalTransformer, Stage

FAMILIES = (Mixer, ChannelMixer, Norm, AttentionPosition, Position, Stem, Downsample)
CHOICES = [Space(hierarchical.with_holes(c)).largest() for family in FAMILIES for c in members(family)]
CHOICES.append(LinearReduction(2, pool=3))  # does not divide the map


def network(choice) -> HierarchicalTransformer:
    mixer = choice if isinstance(choice, Mixer) else Global(2)
    if isinstance(choice, AttentionPosition):
        mixer = Window(2, 4, position=choice)
    block = Block(
        mixer,
        choice if isinstance(choice, ChannelMixer) else Mlp(1),
        choice if isinstance(choice, Norm) else LayerNorm(),
    )
    position = {"position": choice} if isinstance(choice, Position) else {}
    down = choice if isinstance(choice, Downsample) else PatchMerging()
    stages = Stage(16, (block,), **position), Stage(32, (Block(Global(2), Mlp(1)),), down)
    return HierarchicalTransformer(choice if isinstance(choice, Stem) else PatchStem(2), stages, classes=3)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: type(c).__name__)
def test_the_export_answers_as_the_module_at_any_batch_size(choice, tmp_path):
    module = hierarchical.build(network(choice)).eval()
    for parameter in module.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    require_same_answers(module, tmp_path)


@pytest.mark.parametrize("bits", [Bits(16), Bits(8, 8), Bits(4), Bits(2)], ids=str)
@pytest.mark.parametrize("choice", [c for c in CHOICES if hasattr(c, "bits")], ids=lambda c: type(c).__name__)
def test_so_it_does_in_few_bits(choice, bits, tmp_path):
    few = network(replace(choice, bits=bits))
    supernet = Supernet(hierarchical.build, Space(few))
    for parameter in supernet.bank.values():
        torch.nn.init.normal_(parameter, std=0.3)
    buffers = supernet.calibrate(few, [torch.rand(4, 1, 16, 16)])
    require_same_answers(supernet.extract(few, buffers=buffers), tmp_path)


def require_same_answers(module, folder):
    """Inputs that lie between two whole numbers may fall to either side, so most answers decide."""
    export_onnx(module, torch.rand(2, 1, 16, 16), folder / "model.onnx")
    session = onnxruntime.InferenceSession(folder / "model.onnx")
    for batch in (1, 5):
        images = torch.rand(batch, 1, 16, 16)
        (answer,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
        with torch.no_grad():
            apart = (torch.from_numpy(answer) - module(images)).abs()
            assert apart.median() <= 1e-4 + 1e-3 * apart.new_tensor(answer).abs().max()
