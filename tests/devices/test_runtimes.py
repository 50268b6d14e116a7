"""Runtimes and devices, with modules small enough to follow by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from nas.devices import Device, OnnxRuntime, TorchEager
from nas.devices.runtimes import Runtime
from nas.errors import DeviceError, ExportError
from nas.layers import Bits
from nas.quantize import AtBits


class Recorder(nn.Module):
    """Notes how it is called."""

    def __init__(self, notes: list[tuple[bool, int, bool]]) -> None:
        super().__init__()
        self.notes = notes

    def __deepcopy__(self, memo: object) -> Recorder:
        return Recorder(self.notes)

    def forward(self, x: Tensor) -> Tensor:
        self.notes.append((self.training, torch.get_num_threads(), torch.is_inference_mode_enabled()))
        return x


class Sorted(nn.Module):
    """Holds an operation that the exporter does not know."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.linalg.eigvals(x @ x.mT).abs()


@pytest.mark.parametrize("runtime", [OnnxRuntime(), TorchEager()])
def test_a_run_can_be_repeated_after_its_files_are_gone(runtime: Runtime, tmp_path: Path) -> None:
    module = nn.Linear(4, 2).train()
    run = runtime.prepare(module, torch.rand(3, 4), tmp_path)()
    for file in tmp_path.iterdir():
        file.unlink()
    run()
    run()
    assert module.training


def test_onnxruntime_runs_the_file_that_would_be_shipped(tmp_path: Path) -> None:
    module, x = nn.Linear(4, 2), torch.rand(3, 4)
    run = OnnxRuntime().prepare(module, x, tmp_path)()
    (got,) = run()  # type: ignore[misc]
    np.testing.assert_allclose(got, module(x).detach(), rtol=1e-5)
    session = onnxruntime.InferenceSession(str(tmp_path / "model.onnx"))
    assert session.get_inputs()[0].shape == ["batch", 4]  # the file itself keeps its free batch


def test_onnxruntime_fixes_threads_and_batch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[onnxruntime.SessionOptions] = []

    class Session:
        def __init__(self, path: str, options: onnxruntime.SessionOptions, providers: list[str]) -> None:
            seen.append(options)

    monkeypatch.setattr(onnxruntime, "InferenceSession", Session)
    load = OnnxRuntime(threads=3).prepare(nn.Linear(4, 2), torch.rand(3, 4), tmp_path)
    load()
    load()
    assert len(seen) == 2  # each load is a session of its own
    options = seen[0]
    assert (options.intra_op_num_threads, options.inter_op_num_threads) == (3, 1)
    assert options.execution_mode == onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"


def test_onnxruntime_refuses_another_batch_than_the_prepared(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Loaded for a batch of 3, the session has folded that number in."""
    x = torch.rand(3, 4)
    OnnxRuntime().prepare(nn.Linear(4, 2), x, tmp_path)()
    made: list[onnxruntime.InferenceSession] = []

    def session(*arguments: Any, **named: Any) -> onnxruntime.InferenceSession:
        made.append(kept(*arguments, **named))
        return made[-1]

    kept = onnxruntime.InferenceSession
    monkeypatch.setattr(onnxruntime, "InferenceSession", session)
    OnnxRuntime().load(tmp_path / "model.onnx", x.numpy())
    assert made[0].get_inputs()[0].shape == [3, 4]


def test_torch_runs_in_evaluation_mode_and_gives_the_threads_back(tmp_path: Path) -> None:
    notes: list[tuple[bool, int, bool]] = []
    before = torch.get_num_threads()
    run = TorchEager(threads=before + 1).prepare(Recorder(notes), torch.rand(1, 4), tmp_path)()
    run()
    assert notes == [(False, before + 1, True)]
    assert torch.get_num_threads() == before


def test_what_onnx_cannot_say_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ExportError, match="operations that ONNX knows"):
        OnnxRuntime().prepare(Sorted(), torch.rand(1, 4, 4), tmp_path)


@pytest.mark.parametrize("name", ["", "a/b", "a.b", "a b"])
def test_names_that_no_file_can_bear_are_refused(name: str) -> None:
    with pytest.raises(DeviceError, match="must consist of letters"):
        Device(name, TorchEager())


def test_a_batch_below_one_is_refused() -> None:
    with pytest.raises(DeviceError, match="batch >= 1"):
        Device("pi4", TorchEager(), batch=0)


def test_what_is_timed_runs_whole_numbers_where_there_are_few_bits(tmp_path: Path) -> None:
    """The device knows bits: a float graph would take as long whatever they are."""
    module = AtBits(lambda _: nn.Linear(32, 16), lambda _, name: Bits(8, 8))(None).eval()
    OnnxRuntime().prepare(module, torch.rand(1, 32), tmp_path)
    operators = {node.op_type for node in onnx.load(tmp_path / "model.onnx").graph.node}
    assert "MatMulIntegerToFloat" in operators
