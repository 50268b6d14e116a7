"""The page on spaces says what is so."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np

from nas.space import Space
from nas.supernet import Supernet
from search_spaces import hierarchical

DOCS = Path(__file__).parent.parent / "docs"
PAGE = (DOCS / "spaces.md").read_text()


def test_every_block_runs(capsys):
    names: dict[str, Any] = {"__name__": "page"}
    blocks = re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL)
    for block in blocks:
        exec(compile(block, "docs/spaces.md", "exec"), names)
    (said,) = re.findall(r"print\(space.size\)  # (\d+), exact", PAGE)
    assert capsys.readouterr().out == f"{said}\n"
    names["lawful"].check(names["lawful"].sample(names["rng"]))
    genes = names["space"].encode(names["architecture"])
    (cost,) = names["figures"](genes)[:, names["mmacs"]]
    assert 1 <= cost <= 2
    assert len(blocks) == 6
    spaces = {id(value): value for value in names.values() if isinstance(value, Space)}
    assert len(spaces) >= 2
    rng = np.random.default_rng(0)
    for space in spaces.values():
        supernet = Supernet(hierarchical.build, space)
        assert all(supernet.holds(space.sample(rng)) for _ in range(60))


def test_links_lead_somewhere():
    for target in re.findall(r"\]\((?!http)([^)#]+)\)", PAGE):
        assert (DOCS / target).exists(), target
    for path in re.findall(r"`((?:tests|nas|search_spaces)/[^`]+)`", PAGE):
        assert (DOCS.parent / path).exists(), path
