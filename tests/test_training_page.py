"""The page on training says what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from nas import training

PAGE = (Path(__file__).parent.parent / "docs" / "training.md").read_text()


def test_the_recipe_can_be_made():
    names: dict[str, Any] = {}
    (block,) = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    exec(compile(block, "docs/training.md", "exec"), names)
    assert names["recipe"].ema == 0.999


def test_all_rules_are_named():
    rules = {
        name
        for name, value in vars(training).items()
        if isinstance(value, type) and issubclass(value, training.Subnets) and value is not training.Subnets
    }
    named = set(re.findall(r"^\| `(\w+)\(", PAGE, re.MULTILINE))
    assert named == rules
