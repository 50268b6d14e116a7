"""The layer that CONTRIBUTING.md adds passes the contract; the list of choices is that of the code."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent.parent


def test_the_layer_of_the_guide_keeps_the_contract(tmp_path):
    """In a process of its own: a class once made is a choice for as long as its process lives."""
    guide = (ROOT / "CONTRIBUTING.md").read_text().partition("## Adding a layer")[2].partition("\n## ")[0]
    (code,) = re.findall(r"```python\n(.*?)```", guide, re.DOTALL)
    (name,) = re.findall(r"`nas/layers/mixers/(\w+\.py)`", guide)
    (tmp_path / name).write_text(code)
    environment = os.environ | {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert not done.returncode, done.stderr


def test_the_list_of_choices_is_up_to_date():
    from nas.layers.catalogue import page

    committed = (ROOT / "docs" / "choices.md").read_text()
    assert committed == page(), "run: python -m nas.layers.catalogue > docs/choices.md"


def keep_the_contract(folder: str) -> None:
    """All tests of the contract, for the one mixer in `folder`, which counts as a part of `nas.layers`."""
    import nas.layers.mixers
    from nas.layers import Mixer, catalogue, genes_of

    before = set(catalogue.members(Mixer))
    nas.layers.mixers.__path__.append(folder)
    (choice,) = set(catalogue.members(Mixer)) - before
    from layers import test_contract as contract  # finds the choices when it is imported

    assert choice in contract.CHOICES
    assert f"| `{choice.__name__}` | {choice.__doc__}" in catalogue.page()
    for gene in genes_of(choice):
        assert (choice, gene) in contract.AXES
        contract.test_cut_along_a_gene(choice, gene)
    contract.test_cut_along_the_width(choice)
    for side in (4, 8, 10, 12, 16):
        contract.test_any_side_or_a_clear_error(choice, side)
    contract.test_maps_that_are_not_square(choice)
    contract.test_every_weight_is_used(choice)
    contract.test_shared_names_have_the_same_axes(Mixer)
    contract.test_blocks_of_everything(choice, "pre", "series")
    assert contract.merged(choice)
    with pytest.MonkeyPatch.context() as patch:
        contract.test_a_wrong_layout_is_caught(choice, patch)


if __name__ == "__main__":
    keep_the_contract(sys.argv[1])
