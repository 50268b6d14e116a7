"""What an exported file is held against before it is handed out: what the subnet answered in the supernet."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from nas.errors import ExportError, first_line
from nas.export.formats import Answer, Format
from nas.layers.quantizers import DynamicRange, QuantizedLinear
from nas.quantize import INTEGER, in_floats, kernel_of
from nas.tasks import Batch, Metric, Task, axis_of_classes

AGREEMENT = 99.0
"""Percent of inputs to which a file must give the same answer."""
POINTS = 0.3
"""By which the metric of a file may differ: points where it is in percent, hundredths of them where it is one
of those that are 1 at best; else percent of its value."""
MEDIAN = 5e-3
"""Median difference, relative to the largest output, of a file whose layers round their inputs: one that lies
between two numbers may fall to either side, so the largest difference says nothing."""
ROUNDING = 1e-9  # of the arithmetic of percentages
BYTES = 0.02
"""Share by which weights in a file may exceed what was predicted. They take less where an exporter folds a
norm into a convolution, or writes equal ones once."""


@dataclass(frozen=True)
class Evidence:
    """Batches of inputs as they will come, and the subnet's answers.

    Attributes:
        batches: of equal size, that of deployment.
        answers: for each.
        task: whose metric is compared, and whose targets tell where classes are; None: no metric is, and
            answers (B, n) are taken for classes.
    """

    batches: Sequence[Batch]
    answers: Sequence[Tensor]
    task: Task | None = None

    @property
    def classes(self) -> int | None:
        """The axis of an answer of which the highest is compared; None where answers are numbers."""
        shape = tuple(self.answers[0].shape)
        targets = self.batches[0].targets
        axis = axis_of_classes(shape, targets if self.task else torch.zeros(len(targets), dtype=torch.long))
        known = getattr(self.task, "classes", None)
        return axis if axis is None or known in (None, shape[axis]) else None

    def metric(self, answers: Sequence[Tensor]) -> float:
        """The task's, of all answers as one batch: it may be no mean over examples."""
        assert self.task
        inputs, targets = (
            torch.cat(parts) for parts in zip(*((b.inputs[0], b.targets) for b in self.batches), strict=True)
        )
        return self.task.tallies(torch.cat(list(answers)), Batch((inputs,), targets))[
            self.task.metric.name
        ].mean

    @classmethod
    def random(cls, module: nn.Module, example: Tensor, count: int = 16) -> Evidence:
        """Random inputs like `example` (B, …), with the answers of `module` itself: for want of better."""
        generator = torch.Generator().manual_seed(0)
        module = copy.deepcopy(module).eval()
        inputs = [_like(example, generator) for _ in range(count)]
        with torch.inference_mode():
            answers = [module(x) for x in inputs]
        return cls([Batch((x,), torch.zeros(len(x))) for x in inputs], answers)


def _like(example: Tensor, generator: torch.Generator) -> Tensor:
    """Random numbers of its shape; whole ones from 0 to its largest."""
    if example.is_floating_point():
        return torch.rand(example.shape, generator=generator).to(example.dtype)
    return torch.randint(int(example.max()) + 1, example.shape, generator=generator, dtype=example.dtype)


@dataclass(frozen=True)
class Check:
    """How a file fared.

    Attributes:
        format: its name.
        inputs, batch: how many it was asked, in batches of that size.
        largest, median: differences of outputs, relative to the largest output.
        agreement: percent of inputs, or of their places, with the same class; None: answers are numbers.
        metric: name, the subnet's value, the file's; none where there is no task.
        file_bytes: of all files of the format.
        weight_bytes, predicted_bytes: of weights.
        overhead_bytes: what the file needs beside them to pad blocks, and to repeat tied weights.
        kernels: how often each kernel of products ran in the runtime, by its own profile.
        latency_ms, spread_ms: of one batch, and half the interquartile range of single runs; None: not timed.
    """

    format: str
    inputs: int
    batch: int
    largest: float
    median: float
    agreement: float | None
    metric: tuple[str, float, float] | None
    file_bytes: int
    weight_bytes: int
    predicted_bytes: int
    kernels: dict[str, int] | None = None
    overhead_bytes: int = 0
    latency_ms: float | None = None
    spread_ms: float | None = None

    def to_json(self) -> dict[str, Any]:
        return dict(vars(self))


def check(of: Format, path: Path, module: nn.Module, evidence: Evidence) -> Check:
    """Runs the file at `path` on the evidence.

    What a format without bits is held against is the subnet without them.

    Raises:
        ExportError: it does not run, or differs by more than the laws above allow; with the numbers.
    """
    rounds = any(isinstance(m, QuantizedLinear) for m in module.modules())
    plain = module
    if rounds and of.bits is not None:
        plain = in_floats(module)
        with torch.inference_mode():
            evidence = replace(evidence, answers=[plain(b.inputs[0]) for b in evidence.batches])
        rounds = False
    found, others = _compared(of, path, module, evidence)
    median = rounds and not of.same_code
    metric = evidence.task.metric if evidence.task else None
    problems = _problems(of, found, median, metric)
    whole = any(kernel_of(m) == INTEGER for m in module.modules())
    if whole and found.kernels is not None and not any(map(_is_of_whole_numbers, found.kernels)):
        problems.append(f"its layers of 8 bits ran none of whole numbers, but {found.kernels}")
    if problems:
        raise ExportError(
            f"{path.name} must answer as the subnet does, but {'; '.join(problems)} ({found.inputs} inputs "
            f"in batches of {found.batch}). Nothing was exported; leave {of.name} out with --format, or look "
            f"for an operation that its runtime computes otherwise."
        )
    _require_same_answers(path, plain, others, MEDIAN if median else of.tolerance, median)
    return found


def _problems(of: Format, found: Check, median: bool, metric: Metric | None) -> list[str]:
    problems = []
    kind, value, law = (
        ("median", found.median, MEDIAN) if median else ("largest", found.largest, of.tolerance)
    )
    if not value <= law:  # so written that nan is refused as well
        problems.append(f"the {kind} difference is {value:.2g} of the largest output, above {law:g}")
    one = 100 / found.inputs
    if found.agreement is not None and not found.agreement >= min(AGREEMENT, 100 - one) - ROUNDING:
        problems.append(f"it gives the same answer to {found.agreement:.2f} %, below {AGREEMENT:g} %")
    if found.metric and metric:
        name, ours, theirs = found.metric
        allowed = POINTS / 100 * abs(ours)
        if metric.unit == "%":
            allowed = max(POINTS, one)
        elif not metric.unit and metric.direction == "maximize" and abs(ours) <= 1:  # a share, R², a mean IoU
            allowed = max(POINTS, one) / 100
        if not (ours == theirs or abs(ours - theirs) <= allowed + ROUNDING):
            problems.append(f"its {name} is {theirs:.4g} and not {ours:.4g}")
    held, predicted = found.weight_bytes, found.predicted_bytes
    if predicted and held / predicted - 1 > BYTES:
        problems.append(f"its weights take {held:,} bytes, predicted were {predicted:,}")
    return problems


def _compared(
    of: Format, path: Path, module: nn.Module, evidence: Evidence
) -> tuple[Check, list[tuple[Tensor, np.ndarray]]]:
    """How the file fared, and what it answers to batches of other sizes."""
    batch = len(evidence.batches[0].inputs[0])
    differences, same, answers = list[Tensor](), list[Tensor](), list[Tensor]()
    try:
        answer = of.load(path, module)
        others = _require_free_batch(path, answer, _some(module, evidence.batches))
        for given, wanted in zip(evidence.batches, evidence.answers, strict=True):
            got = torch.from_numpy(answer(given.inputs[0].numpy()))
            if got.shape != wanted.shape:
                raise ExportError(
                    f"{path.name} must return what the module returns, {tuple(wanted.shape)}: got "
                    f"{tuple(got.shape)}."
                )
            answers.append(got)
            differences.append(apart_of(got.double(), wanted.double()).flatten())
            if (axis := evidence.classes) is not None:
                same.append((got.argmax(axis) == wanted.argmax(axis)).flatten())
        metric = None
        if evidence.task:
            ours, theirs = evidence.metric(evidence.answers), evidence.metric(answers)
            metric = (evidence.task.metric.name, ours, theirs)
    except ExportError:
        raise
    except Exception as error:  # runtimes raise what they like
        raise ExportError(f"{path.name} must run for batches of {batch}, but: {first_line(error)}") from error
    largest = max(largest_of(wanted) for wanted in evidence.answers)
    held, predicted = of.weight_bytes(path, module), of.predicted_bytes(module)
    overhead = min(max(held - predicted, 0), of.overhead_bytes(module))
    apart = torch.cat(differences) / max(largest, float(np.finfo(np.float32).tiny))
    found = Check(
        of.name,
        sum(len(b.inputs[0]) for b in evidence.batches),
        batch,
        float(apart.max()),  # nan carries on
        float(apart.median()),
        100 * float(torch.cat(same).double().mean()) if same else None,
        metric,
        sum(_size(path.parent / name) for name in (path.name, *of.beside)),
        held - overhead,
        predicted,
        _products(of.kernels(path, evidence.batches[0].inputs[0].numpy())) if of.kernels else None,
        overhead,
    )
    return found, others


def apart_of(a: Tensor, b: Tensor) -> Tensor:
    """How far each number is from the other; equal ones not at all, such as logits of -inf."""
    return torch.where(a == b, 0, (a - b).abs())


def largest_of(answers: Tensor) -> float:
    """Of the numbers that are finite."""
    return float(answers[answers.isfinite()].abs().max()) if bool(answers.isfinite().any()) else 0.0


def _is_of_whole_numbers(kernel: str) -> bool:
    return "Integer" in kernel or "Quantize" in kernel


def _products(kernels: dict[str, int]) -> dict[str, int]:
    return {name: n for name, n in kernels.items() if "MatMul" in name or "Gemm" in name}


def _size(path: Path) -> int:
    files = path.rglob("*") if path.is_dir() else [path]
    return sum(file.stat().st_size for file in files if file.is_file())


def _some(module: nn.Module, batches: Sequence[Batch]) -> Tensor:
    """Three inputs that differ, (3, …); where ranges are of what comes together, three times the same one."""
    together = any(isinstance(m, DynamicRange) for m in module.modules())
    inputs = torch.cat([batch.inputs[0] for batch in batches[:3]])
    places = [0, 0, 0] if together else [i * (len(inputs) - 1) // 2 for i in range(3)]
    return inputs[places].contiguous()


def _require_free_batch(path: Path, answer: Answer, x: Tensor) -> list[tuple[Tensor, np.ndarray]]:
    """What the file answers where fewer inputs come, and more, of `x` (3, …)."""
    found = []
    for count in (1, 3):
        some = x[:count].contiguous()
        try:
            found.append((some, answer(some.numpy())))
            problem = None if (n := len(found[-1][1])) == count else f"{n} outputs"
        except Exception as error:  # runtimes raise what they like
            problem = first_line(error)
        if problem:
            raise ExportError(_frozen(path, count, problem))
    return found


def _require_same_answers(
    path: Path, module: nn.Module, found: Sequence[tuple[Tensor, np.ndarray]], tolerance: float, median: bool
) -> None:
    """Raises ExportError unless the file answers each input as the module does, or half of the numbers of an
    answer as nearly where inputs of layers are rounded."""
    module = copy.deepcopy(module).eval()
    for some, answers in found:
        with torch.inference_mode():
            wanted = module(some)
        apart = apart_of(torch.from_numpy(answers), wanted).reshape(len(wanted), -1).numpy()
        worst = np.median(apart, axis=1).max() if median else apart.max()
        if not worst <= tolerance * largest_of(wanted):
            raise ExportError(_frozen(path, len(some), "other answers than the module"))


def _frozen(path: Path, count: int, problem: str) -> str:
    return (
        f"{path.name} must take any batch size, but of {count} inputs it makes: {problem}. A size taken from "
        f"a Python number is frozen into a file; use `x.shape[0]` or -1."
    )
