"""docs/bits.md shows what was measured, its code runs, and what it says of formats is so."""

from __future__ import annotations

import json
import re

import pytest

from experiments.benchmarks.low_bits import FORMS, FP32, PAGE, with_table
from experiments.benchmarks.results import FOLDER
from nas.export import FORMATS
from nas.quantize import CALIBRATED, Quantization

ROWS = json.loads((FOLDER / "low_bits.json").read_text())["sizes"]


def test_the_table_holds_what_was_measured():
    assert with_table(PAGE.read_text(), ROWS) == PAGE.read_text()
    assert [list(row["forms"]) for row in ROWS] == [[form.name for form in FORMS]] * len(ROWS)


def test_the_default_is_the_fastest_form():
    eight = [form for form in FORMS if form.bits.activation == 8 and form.bits.weight == 8]
    for row in ROWS:
        for batch in ("1", "8"):
            speed = {form: row["forms"][form.name]["speedup"][batch] for form in eight}
            assert max(speed, key=speed.get).quantization == Quantization(CALIBRATED)


def test_integer_kernels_ran():
    """By the runtime's own profile: six blocks of six products."""
    for row in ROWS:
        kernels = {name: found["kernels"] for name, found in row["forms"].items()}
        assert kernels["8 bits, calibrated ranges"]["MatMulIntegerToFloat"] == 36
        dynamic = kernels["8 bits, dynamic ranges"]  # q, k and v share what rounds their input
        assert dynamic["DynamicQuantizeMatMul"] + dynamic["MatMulIntegerToFloat"] == 36
        assert kernels["4-bit weights, 8-bit inputs"]["MatMulNBits"] == 36
        assert not {"MatMulNBits", "MatMulIntegerToFloat"} & kernels[FP32].keys()


def test_one_product_for_three_does_not_pay():
    rows = json.loads((FOLDER / "fused_qkv.json").read_text())["rows"]
    assert 0.95 <= min(row["speedup"] for row in rows) <= max(row["speedup"] for row in rows) <= 1.0


@pytest.mark.parametrize("code", re.findall(r"```python\n(.*?)```", PAGE.read_text(), re.DOTALL))
def test_its_code_runs(code):
    exec(compile(code, "docs/bits.md", "exec"), {})


def test_all_formats_are_there():
    page = PAGE.read_text()
    (command,) = re.findall(r"--format (.*)", page)
    assert set(command.split()) == set(FORMATS)
    rows = re.findall(r"^\| (`.*?) \|", page[page.index("## Exports") :], re.MULTILINE)
    assert {name for row in rows for name in re.findall(r"`(.*?)`", row)} == set(FORMATS)
