"""docs/published-models.md shows what was measured, and its code runs."""

from __future__ import annotations

import json
import re
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from published import small
from safetensors.torch import save_file

from experiments.benchmarks.published_points import (
    PAGE,
    parameters,
    shapes_of,
    with_random_weights,
    with_table,
)
from experiments.benchmarks.results import FOLDER
from nas.supernet import Supernet
from search_spaces import published
from search_spaces.hierarchical import build
from search_spaces.pretrained.libraries import prepare
from search_spaces.published import POINTS

ROWS = json.loads((FOLDER / "published_points.json").read_text())["points"]
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL)


def test_the_table_holds_what_was_measured():
    assert list(ROWS) == sorted(POINTS)
    assert with_table(PAGE.read_text(), ROWS) == PAGE.read_text()


@pytest.mark.parametrize("name", POINTS)
def test_what_was_measured_is_of_these_points(name):
    with torch.device("meta"):
        ours = build(POINTS[name]())
    row, model = ROWS[name], import_module(f"search_spaces.pretrained.{name}")
    assert row["parameters"] == row["reference_parameters"] == parameters(ours)
    assert row["blocks"] == sum(len(stage.blocks) for stage in ours.stages)
    assert set(map(int, row["difference"])) == {*model.SIDES, *getattr(model, "BUILT_FOR", ())}
    assert row["source"] == model.SOURCE


def test_its_code_starts_from_a_checkpoint(tmp_path, monkeypatch):
    """With a smaller Swin under the same name."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(published, "swin_tiny", small.swin)
    monkeypatch.setitem(POINTS, "swin_tiny", small.swin)
    prepare()
    theirs = with_random_weights(small.their_swin(), small.SIDE)
    Path("swin-tiny-patch4-window7-224").mkdir()
    state = {n: t.contiguous() for n, t in theirs.state_dict().items()}
    save_file(state, "swin-tiny-patch4-window7-224/model.safetensors")
    images = np.random.default_rng(0).integers(0, 256, (20, 224, 224, 3), dtype=np.uint8)
    np.savez("flowers.npz", images=images, labels=np.arange(20) % small.CLASSES)

    names: dict = {}
    for block in BLOCKS:
        exec(block, names)
    experiment = names["experiment"]()
    supernet = experiment.start(Supernet(experiment.build, experiment.space))
    x = torch.from_numpy(images[:2]).permute(0, 3, 1, 2) / 255
    with torch.inference_mode():
        expected = names["model"](x)
        found = supernet(small.swin(small.CLASSES), x)
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    first = "stages.0.blocks.0.ffn.up.weight"
    assert shapes_of(names["model"])[first] == tuple(supernet.bank[first].shape)
    assert not torch.equal(supernet.bank[first], names["model"].state_dict()[first])  # sorted
