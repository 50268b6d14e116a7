"""Runtimes: how a plain module becomes something that can be timed."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from nas.calibration import with_ranges
from nas.export.onnx import Run, export_onnx, onnx_run
from nas.quantize import in_floats
from nas.threads import cpu_threads

Load = Callable[[], Run]
"""Loads what was prepared, each time anew."""


class Runtime(Protocol):
    """Something that executes a module on this host."""

    @property
    def threads(self) -> int:
        """Threads that one inference may use."""

    def prepare(self, module: nn.Module, example: Tensor, folder: Path) -> Load:
        """Make `module` ready to be loaded, once or several times.

        Args:
            module: a plain module, left as it is; run in evaluation mode.
            example: the input `(B, …)` of every run.
            folder: an empty folder for files; it must outlive the loading, not the runs.

        Returns:
            A function that loads the model and returns one inference of `example`, a function
            without arguments that can be called again and again; its caller holds the clock.
        """


@dataclass(frozen=True)
class OnnxRuntime:
    """ONNX Runtime on the CPU.

    What is timed is the file that `nas.export` hands out, loaded with its batch size fixed: that
    folds the arithmetic on shapes away (12 to 16 % of a 0.1 ms model) and is one line for whoever
    deploys it.
    """

    threads: int = 1

    def prepare(self, module: nn.Module, example: Tensor, folder: Path) -> Load:
        """See `Runtime.prepare`."""
        path = folder / "model.onnx"
        export_onnx(with_ranges(module, [example]), example, path)
        return lambda: self.load(path, example.numpy())

    def load(self, path: Path, x: np.ndarray) -> Run:
        """One inference of `x` (B, …) by the file at `path`, loaded for that batch size."""
        return onnx_run(path, x, self.threads)


@dataclass(frozen=True)
class TorchEager:
    """PyTorch as it is, without compilation: what a model costs where nothing is exported.

    It has no kernels of few bits: weights are rounded, but floats, and inputs are as they come.
    """

    threads: int = 1

    def prepare(self, module: nn.Module, example: Tensor, folder: Path) -> Load:
        """See `Runtime.prepare`; writes no file."""

        def load() -> Run:
            own = copy.deepcopy(in_floats(module)).eval()

            def run() -> None:
                with cpu_threads(self.threads), torch.inference_mode():
                    own(example)

            return run

        return load
