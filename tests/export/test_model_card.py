"""The card says what was measured, and its code runs."""

from __future__ import annotations

import copy
import json
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from export.nets import trained
from torch import nn

from nas.export import FORMATS, Check, cards
from nas.export.model_card import card, merged
from nas.export.onnx import export_onnx
from nas.layers import Bits
from nas.phases.export import Condition, listed_bits
from nas.quantize import AtBits

ENTRY: dict[str, Any] = {
    "id": "0123456789ab",
    "architecture": {"type": "Net"},
    "device": "pi4",
    "search": "nsga2.pi4",
    "weights": "ba9876543210",
    "front": True,
    "drift": 1.034,
    "objectives": {
        "accuracy": {"predicted": 97.1, "measured": 96.84, "n": 180, "std_error": 1.31},
        "latency_ms.pi4": {"predicted": 0.12, "measured": 0.1213, "spread": 0.0042},
        "size_bytes": {"predicted": 12345, "measured": 12345},
        "parameters": {"measured": 23456},
    },
    "test": {"accuracy": 97.25, "n": 360, "std_error": 0.9, "interval": [95.13, 98.52]},
}
RUN = {
    "name": "digits",
    "seed": 7,
    "data": "digits-55/15/10/20",
    "versions": {"torch": "2.13.0", "onnxruntime": "1.31.1"},
    "objectives": [{"name": "accuracy", "unit": "%", "direction": "maximize"}],
}
BITS = {
    "stem.weight": Bits(8),
    "blocks.0.q.weight": Bits(4),
    "blocks.0.v.weight": Bits(4),
    "blocks.1.q.weight": Bits(8, 8),
}
CHECK = Check(
    "onnx",
    180,
    1,
    3.2e-3,
    1.5e-7,
    99.44,
    ("accuracy", 96.67, 97.22),
    45_678,
    12_222,
    12_345,
    {"MatMulIntegerToFloat": 7, "Gemm": 1},
)


def made(entry: dict[str, Any] = ENTRY, **settings: Any) -> str:
    about: dict[str, Any] = {"run": RUN, "bits": BITS, "example": torch.rand(2, 1, 4, 4)}
    return card(entry, **(about | settings))


def test_every_figure_stands_with_how_it_was_measured() -> None:
    text = made(device="pi4 (OnnxRuntime, 1 thread, batch 1, Cortex-A72)")
    for fact in (
        "96.84 ± 1.31 %",
        "n = 180",
        "97.25 %",
        "n = 360, 95 % interval 95.13 to 98.52",
        "0.1213 ± 0.0042 ms",
        "on pi4 (OnnxRuntime, 1 thread, batch 1, Cortex-A72)",
        "1.034 times",
        "12,345 bytes",
        "23,456",
        "digits-55/15/10/20",
        "| seed | 7 |",
        "torch 2.13.0, onnxruntime 1.31.1",
        "ba9876543210",
    ):
        assert fact in text, fact


def test_a_metric_of_a_whole_split_has_no_error() -> None:
    entry = copy.deepcopy(ENTRY)
    entry["objectives"]["accuracy"] |= {"measured": 0.51234, "n": 1, "std_error": None}
    entry["test"] |= {"accuracy": 0.49, "n": 1, "std_error": None, "interval": None}
    text = made(entry)
    assert "| accuracy on *select* | 0.5123 % | one value of the whole split, which has no" in text
    assert "| accuracy on *test* | 0.49 % | one value of the whole split, which has no" in text


def test_what_users_write_ends_neither_cells_nor_comments() -> None:
    entry = copy.deepcopy(ENTRY)
    entry["objectives"]["MAE | abs"] = entry["objectives"].pop("accuracy")
    entry["test"]["MAE | abs"] = entry["test"].pop("accuracy")
    text = made(entry, preparation="divided\nby 255")
    assert r"| MAE \| abs on *test* | 97.25 |" in text
    assert "# inputs: divided by 255\n" in text


def test_numbers_are_the_same_answer_to_nothing() -> None:
    found = replace(CHECK, agreement=None, metric=("rmse", 0.00125, 0.00126))
    assert f"{FORMATS['onnx'].about} |  | 0.00126 (0.00125) |" in made(checks=[found])


def test_each_file_has_its_own_latency() -> None:
    timed = replace(CHECK, latency_ms=0.12344, spread_ms=0.005)
    assert " | 0.1234 ± 0.005 | 45,678 |" in made(checks=[timed])
    assert " |  | 45,678 |" in made(checks=[CHECK])


def test_what_pads_or_repeats_stands_apart() -> None:
    assert "padded or repeated" not in made(checks=[CHECK])
    assert "padded or repeated 2,210" in made(checks=[replace(CHECK, overhead_bytes=2210)])


def test_limits_are_stated() -> None:
    text = " ".join(made().split())
    assert "Only linear layers have kernels of few bits" in text
    assert "they save bytes and no time" in text


def test_files_of_dynamic_ranges_say_for_which_batches() -> None:
    quantization = {"activations": "dynamic", "images": 4, "nested": False}
    run = RUN | {"settings": {"quantization": quantization}}
    fact = "as it was simulated for batches of 4: others they answer otherwise"
    assert fact in " ".join(made(run=run).split())
    for other in ({"activations": "calibrated"}, {"nested": True}):
        run = RUN | {"settings": {"quantization": quantization | other}}
        assert "others they answer otherwise" not in " ".join(made(run=run).split())
    run = RUN | {"settings": {"quantization": quantization}}
    assert "others they answer otherwise" not in " ".join(made(run=run, bits={"a.weight": Bits(8)}).split())


def test_a_batch_is_fixed_as_it_was_measured() -> None:
    assert 'override_by_name("batch", 1)' in made()
    assert 'override_by_name("batch", 8)' in made(checks=[replace(CHECK, batch=8)])


def test_files_stand_with_how_they_fared() -> None:
    text = made(checks=[CHECK])
    assert "| file | what | same answer | accuracy (subnet) |" in text
    row = "| 99.44 % of 180 | 97.22 (96.67) | 1.5e-07, 3.2e-03 |  | 45,678 | 12,222 (predicted 12,345) |"
    assert f"{FORMATS['onnx'].about} {row}" in text
    assert "by the runtime's own profile: 7 MatMulIntegerToFloat, 1 Gemm." in text


def test_programs_get_the_same_as_json() -> None:
    made = cards(ENTRY, run=RUN, bits=BITS, example=torch.rand(2, 1, 4, 4))([CHECK])
    assert set(made) == {"card.md", "card.json"}
    data = json.loads(made["card.json"])
    assert data["entry"] == ENTRY
    assert data["bits"]["blocks.1.q.weight"] == {"weight": 8, "input": 8}
    assert data["files"] == [json.loads(json.dumps(CHECK.to_json()))]
    assert data["files"][0]["agreement"] == 99.44


def test_figures_that_were_not_asked_for_may_lack() -> None:
    entry = copy.deepcopy(ENTRY)
    del entry["objectives"]["size_bytes"]
    assert "bytes |" not in made(entry)
    assert "on pi4; half" in made(entry)


def test_another_metric_than_accuracy() -> None:
    entry = copy.deepcopy(ENTRY)
    entry["objectives"]["perplexity"] = entry["objectives"].pop("accuracy")
    entry["test"]["perplexity"] = entry["test"].pop("accuracy")
    assert "| perplexity on *test* | 97.25 |" in made(entry)


def test_its_code_runs_the_onnx_file(tmp_path: Path) -> None:
    export_onnx(trained(), torch.rand(2, 1, 4, 4), tmp_path / "model.onnx")
    (code,) = re.findall(r"```python\n(.*?)```", made(), re.DOTALL)
    assert len(code.splitlines()) == 5
    lines = f"import sys\nsys.modules['nas'] = None\n{code}"
    run = subprocess.run(
        [sys.executable, "-c", lines],
        cwd=tmp_path,
        check=True,
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert len(run.stdout.strip("[] \n").split()) == 10


def test_bits_are_merged_along_paths() -> None:
    assert merged(BITS) == [
        ("stem.weight", Bits(8)),
        ("blocks.0.*", Bits(4)),
        ("blocks.1.q.weight", Bits(8, 8)),
    ]
    assert "| `blocks.1.q.weight` | 8 | 8 |" in made()
    assert merged(dict.fromkeys(BITS, 4)) == [("*", 4)]
    assert merged({}) == []


@pytest.mark.parametrize("name", [name for name in FORMATS if not name.startswith("onnx")])
def test_what_runs_it_is_about_a_file_that_is_there(name):
    text = made(checks=[replace(CHECK, format=name)])
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "onnx" not in code
    assert len(code.splitlines()) in (4, 5, 6)
    compile(code, name, "exec")
    assert FORMATS[name].file in code or name == "safetensors"


def test_the_lines_for_weights_make_the_experiment_again():
    source = {"name": "digits", "path": None, "set": {"seed": "7", "tracking": "http://me:secret@host"}}
    text = made(run=RUN | {"source": source}, checks=[replace(CHECK, format="safetensors")])
    (code,) = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    assert "load_experiment('digits', {'seed': '7'})" in code
    names: dict[str, Any] = {}
    exec(code.split("model =")[0], names)
    assert (names["experiment"].name, names["experiment"].seed) == ("digits", 7)


class Positioned(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.position, self.norm = nn.Parameter(torch.rand(4, 32)), nn.LayerNorm(32)
        self.head = nn.Linear(32, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y: torch.Tensor = self.head(self.norm(x + self.position))
        return y


def test_all_that_has_few_bits_is_listed() -> None:
    """A card says that what it does not list has 32."""
    few = {"position": Bits(8), "head.weight": Bits(8, 8)}
    module = AtBits(lambda _: Positioned(), lambda _, name: few.get(name, Bits()))(None)
    assert listed_bits(module, {"head.weight", "norm.weight"}) == few | {"norm.weight": Bits()}


def test_a_condition_may_be_on_a_metric_of_two_words():
    assert Condition.parse(" mean error <= 0.8") == Condition("mean error", "<=", 0.8)
    for name in ("mAP@50", "F1 (macro)", "acc/top1", "MAE | abs"):
        assert Condition.parse(f"{name}>=1e-2") == Condition(name, ">=", 0.01)
    assert Condition.parse("latency_ms.pi4<5") == Condition("latency_ms.pi4", "<", 5.0)
