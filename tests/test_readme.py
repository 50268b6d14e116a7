"""The example in the README runs as it stands there."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

README = (Path(__file__).parent.parent / "README.md").read_text()
CODE = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
SMALL = {
    "training.epochs": 1,
    "training.threads": 1,
    "profiling.samples": 12,
    "profiling.held_out": 3,
    "profiling.rounds": 5,
    "search.workers": 0,
    "search.trials": 12,
    "search.bounds": 4,
    "search.finalists": 3,
}


def test_the_example_runs(tmp_path, monkeypatch):
    from sklearn.datasets import load_digits

    from nas.cli import main

    code = CODE[0]
    data = load_digits()
    np.savez(tmp_path / "mine.npz", images=(data.images * 15).astype(np.uint8), labels=data.target)
    (tmp_path / "mine.py").write_text(code)
    monkeypatch.chdir(tmp_path)
    arguments = [part for name, value in SMALL.items() for part in ("--set", f"{name}={value}")]
    with pytest.raises(SystemExit) as end:
        main(["run", "mine.py", *arguments])
    assert not end.value.code
    assert json.loads((tmp_path / "runs" / "mine" / "front.json").read_text())


def test_the_example_as_a_script_can_be_exported(tmp_path, monkeypatch):
    """`python mine.py` ends with a command that works."""
    from nas.cli import main

    code = CODE[0]
    small = (
        "build=ViT, training=nas.Recipe(epochs=1, threads=1), profiling=nas.Profiling(12, 3, 5),"
        "search=nas.Search(trials=6, bounds=3, workers=0, finalists=2))"
    )
    rng = np.random.default_rng(0)
    np.savez(tmp_path / "mine.npz", images=rng.random((200, 8, 8)), labels=np.arange(200) % 10)
    (tmp_path / "mine.py").write_text(code.replace("build=ViT)", small))
    monkeypatch.chdir(tmp_path)
    subprocess.run([sys.executable, "mine.py"], check=True, capture_output=True)
    with pytest.raises(SystemExit) as end:
        main(["export", "runs/mine", "--format", "huggingface"])
    assert not end.value.code
    (folder,) = Path("runs/mine/exports").iterdir()
    (code,) = re.findall(r"(?s)```python\n(.*?)```", (folder / "card.md").read_text())
    code = code.replace('"huggingface"', f'"{folder}/huggingface"')  # the data of mine.py lie here
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True)


def test_the_space_of_the_example_is_one_supernet():
    from nas.supernet import Supernet
    from nas.tasks import digits
    from search_spaces import hierarchical

    names = {"task": digits()}
    exec(CODE[1], names)
    space = names["space"]
    supernet = Supernet(hierarchical.build, space)
    images = torch.rand(2, 1, 8, 8)
    for seed in range(5):
        architecture = space.sample(np.random.default_rng(seed))
        assert torch.equal(supernet(architecture, images), supernet.extract(architecture)(images))


def test_links_lead_somewhere():
    root = Path(__file__).parent.parent
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", README):
        assert (root / target).exists(), target
