"""torch.export archives against the modules that they came from."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import torch
from export.nets import Branching, Frozen, trained

from nas.errors import ExportError
from nas.export.archive import export_archive


@pytest.mark.parametrize("batch", [1, 2])
def test_the_archive_answers_as_the_module_at_every_batch_size(batch: int, tmp_path: Path) -> None:
    net = trained()
    export_archive(net, torch.rand(batch, 1, 4, 4), tmp_path / "model.pt2")
    assert net.training
    net.eval()
    loaded = torch.export.load(tmp_path / "model.pt2").module()
    for size in (1, 2, 7):
        x = torch.rand(size, 1, 4, 4)
        torch.testing.assert_close(loaded(x), net(x))


def test_neither_data_nor_paths_of_this_machine_are_written(tmp_path: Path) -> None:
    export_archive(trained(), torch.full((2, 1, 4, 4), 0.1234567), tmp_path / "model.pt2")
    with zipfile.ZipFile(tmp_path / "model.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert __file__.rsplit("/", 2)[0].encode() not in content
    assert torch.tensor(0.1234567).numpy().tobytes() not in content


@pytest.mark.parametrize("module", [Frozen(2), Branching()])
def test_what_cannot_be_traced_is_refused(module: torch.nn.Module, tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="traceable with a free batch size"):
        export_archive(module, torch.rand(2, 1, 4, 4), tmp_path / "model.pt2")
