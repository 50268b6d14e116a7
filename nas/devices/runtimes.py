"""Runtimes: how a plain module becomes something that can be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import onnxruntime
import torch
from torch import Tensor, nn

from nas.export.onnx import BATCH, export_onnx

Run = Callable[[], None]
"""One inference, from input in memory to output in memory."""


class Runtime(Protocol):
    """Something that executes a module on this host."""

    @property
    def threads(self) -> int:
        """Threads that one inference may use."""

    def prepare(self, module: nn.Module, example: Tensor, folder: Path) -> Run:
        """Make one inference of `example` ready to be called again and again.

        Args:
            module: a plain module, left as it is; run in evaluation mode.
            example: the input `(B, …)` of every run.
            folder: an empty folder for files; it must outlive the call, not the run.

        Returns:
            A function without arguments; its caller holds the clock.
        """


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime on the CPU.

    What is timed is the file that `nas.export` hands out, loaded with its batch size fixed: that
    folds the arithmetic on shapes away (12 to 16 % of a 0.1 ms model) and is one line for whoever
    deploys it.
    """

    threads: int = 1

    def prepare(self, module: nn.Module, example: Tensor, folder: Path) -> Run:
        """See `Runtime.prepare`."""
        path = folder / "model.onnx"
        export_onnx(module, example, path)
        session = onnxruntime.InferenceSession(
            str(path), self._options(len(example)), providers=["CPUExecutionProvider"]
        )
        outputs, inputs = ["y"], {"x": example.numpy()}

        def run() -> None:
            session.run(outputs, inputs)

        return run

    def _options(self, batch: int) -> onnxruntime.SessionOptions:
        options = onnxruntime.SessionOptions()
        options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        options.intra_op_num_threads = self.threads
        options.inter_op_num_threads = 1
        # Dozens of sessions live side by side in a profile: idle pools must not eat the cores.
        for pool in ("intra_op", "inter_op"):
            options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
        options.add_free_dimension_override_by_name(BATCH, batch)
        return options


@dataclass(frozen=True)
class TorchEager:
    """PyTorch as it is, without compilation: what a model costs where nothing is exported."""

    threads: int = 1

    def prepare(self, module: nn.Module, example: Tensor, folder: Path) -> Run:
        """See `Runtime.prepare`; writes no file."""
        module = copy.deepcopy(module).eval()

        def run() -> None:
            # The number of threads is the process's: borrow it, give it back (1 µs).
            before = torch.get_num_threads()
            torch.set_num_threads(self.threads)
            try:
                with torch.inference_mode():
                    module(example)
            finally:
                torch.set_num_threads(before)

        return run
