"""What the results on exported bits say follows from the raw classes, and is what the page shows."""

from __future__ import annotations

import json

from experiments.benchmarks import exported_bits
from experiments.benchmarks.exported_bits import FP32, PAGE, evaluated, with_table
from experiments.benchmarks.results import FOLDER

FILE = FOLDER / "exported_bits.json"


def test_every_figure_can_be_had_again():
    written = json.loads(FILE.read_text())
    assert json.loads(json.dumps(evaluated())) == {k: v for k, v in written.items() if k != "machine"}
    assert with_table(PAGE.read_text(), written) == PAGE.read_text()


def test_so_can_those_of_trainings_without_2_and_16():
    *most, last = (f"{a:.1f}" for a in evaluated()["without_2_and_16"].values())
    assert f"had reached {', '.join(most)} and {last} % at 32 bits" in PAGE.read_text()


def test_files_keep_what_was_simulated():
    """The promise: at every bit-width, on 5,000 images and trained models."""
    written = json.loads(FILE.read_text())
    assert written["images"] == 5000
    assert {48, 96} <= {size["width"] for size in written["sizes"]} <= set(exported_bits.EPOCHS)
    for size in written["sizes"]:
        for form in size["forms"].values():
            assert form["agreement"] >= 99
            assert abs(form["simulated"] - form["exported"]) <= 0.3
        assert size["forms"]["8, inputs 8"]["lost_points"] <= 0.5
        assert size["forms"][FP32]["agreement"] == 100
