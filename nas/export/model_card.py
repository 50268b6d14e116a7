"""The card that goes with an exported subnet: what it is worth, how that was measured, how to run it."""

from __future__ import annotations

import json
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, TypeVar

from torch import Tensor

from nas.export.checks import Check
from nas.export.formats import FORMATS
from nas.layers.choice import Bits
from nas.quantize import DYNAMIC
from nas.tasks import with_error

_LIMITS = """\
- Bytes of weights are those at the bits below, scales included; a file has its graph besides.
- Only linear layers have kernels of few bits: weights of others are kept at their bits, and turned into
  floats when a file is loaded. So are 8-bit weights behind inputs of 32 bits: they save bytes and no time.
- On x86-64 processors without VNNI, ONNX Runtime's products of 8 bits can overflow: set
  `session.x64quantprecision` to "1" there, which is exact and slower.
- `torch.export.load`, which a `model.pt2` needs, unpickles, and a folder for MLflow may name code that
  MLflow runs: load these only where you trust who made them.
"""

_ONNX = """\
import numpy as np
import onnxruntime as ort
session = ort.InferenceSession("{file}", providers=["CPUExecutionProvider"])
x = np.zeros({shape}, dtype=np.{dtype})  # inputs: {preparation}
print(session.run(["y"], {{"x": x}})[0])
"""
_TORCH = """\
import torch
{load}
x = torch.zeros({shape}, dtype=torch.{dtype})  # inputs: {preparation}
print(model(x){logits})
"""
_RUN = {
    "safetensors": _TORCH.replace(
        "{load}",
        "from nas.export.subnet import load_subnet\n"
        "{experiment}\n"
        'model = load_subnet(".", experiment.build, experiment.space.classes)',
    ),
    "pt2": _TORCH.replace("{load}", 'model = torch.export.load("model.pt2").module()'),
    "huggingface": _TORCH.replace(
        "{load}",
        'from search_spaces.huggingface import load\n{own}model = load("huggingface"{of})',
    ).replace("{logits}", ".logits"),
    "openvino": """\
import numpy as np
import openvino
model = openvino.Core().compile_model("openvino.xml", "CPU", {{"INFERENCE_PRECISION_HINT": "f32"}})
x = np.zeros({shape}, dtype=np.{dtype})  # inputs: {preparation}
print(model(x)[0])
""",
    "mlflow": """\
import mlflow
import numpy as np
model = mlflow.pyfunc.load_model("mlflow")
x = np.zeros({shape}, dtype=np.{dtype})  # inputs: {preparation}
print(model.predict({{"x": x}})["y"])
""",
}


def _experiment_code(run: Mapping[str, Any]) -> str:
    """A line that makes the experiment of a run again. Where MLflow writes stays out of what is handed on."""
    source = run.get("source", {})
    name, given = source.get("path") or source.get("name"), source.get("set", {})
    if not name:
        return "experiment = ...  # that of the run, which no file makes"
    given = {k: v for k, v in given.items() if "." not in k and k != "tracking"}  # builder and space
    call = f"load_experiment({name!r}, {given!r})"
    return f"from nas.experiment import load_experiment; experiment, _ = {call}"


def _builder_code(architecture: Mapping[str, Any], run: Mapping[str, Any]) -> dict[str, str]:
    """How a Hugging Face folder is told its builder; ours is known."""
    if architecture.get("type") == "HierarchicalTransformer":
        return {"own": "", "of": ""}
    return {"own": f"{_experiment_code(run)}\n", "of": ", experiment.build, experiment.space.classes"}


def _run_code(checks: Sequence[Check], **names: Any) -> str:
    """Some lines that run the first of the files, by preference one of ONNX."""
    formats = [found.format for found in checks] or ["onnx"]
    onnx = [name for name in formats if name.startswith("onnx")]
    text = _ONNX if onnx else _RUN[formats[0]]
    file = FORMATS[(onnx or formats)[0]].file
    code = text.replace("{logits}", "").format(file=file, **names)
    batch = checks[0].batch if checks else 1
    return f"```python\n{code}```\n" + (_FIXED_BATCH.replace("{batch}", str(batch)) if onnx else "")


_FIXED_BATCH = """\
This takes any batch size. For {batch} alone, fix it at loading, as was done where the latency of ONNX
Runtime was measured (12 to 16 % less for small models): pass `options` as second argument after
`options = ort.SessionOptions()` and `options.add_free_dimension_override_by_name("batch", {batch})`.
"""

_DYNAMIC = """\
- Inputs of 8 bits have the range of what comes together. Files other than safetensors take a batch as a
  whole, as it was simulated for batches of {images}: others they answer otherwise than the supernet.
"""


def card(
    entry: Mapping[str, Any],
    *,
    run: Mapping[str, Any],
    bits: Mapping[str, Bits],
    example: Tensor,
    device: str | None = None,
    preparation: str = "prepared as in training",
    checks: Sequence[Check] = (),
) -> str:
    """Markdown for one verified subnet.

    Args:
        entry: its entry of front.json.
        run: experiment.json of the run: `name`, `seed`, `versions` and the fingerprint of the `data`.
        bits: of each weight matrix and of the inputs of its layer, by name.
        example: an input `(B, …)`; its shape and dtype go into the example code.
        device: the device in words, see `Profile.describe`; default: its name.
        preparation: in words, what is done to raw inputs, see `Task.preparation`.
        checks: how the files fared.
    """
    quality = _quality_name(entry)
    unit = next((o["unit"] for o in run.get("objectives", ()) if o["name"] == quality), "")
    shape = (1, *example.shape[1:])
    dtype = str(example.dtype).removeprefix("torch.")
    run_code = _run_code(
        checks,
        shape=shape,
        dtype=dtype,
        preparation=" ".join(preparation.split()),
        experiment=_experiment_code(run),
        **_builder_code(entry["architecture"], run),
    )
    sections = (
        f"# Subnet {entry['id']}\n",
        f"Found by `{entry['search']}` in the run `{run.get('name', 'unnamed')}`.\n",
        "## Measured\n",
        _table(
            ("", "value", "how"),
            [
                *_quality_rows(entry, quality, unit),
                _latency_row(entry, device or entry["device"]),
                *_size_rows(entry["objectives"]),
            ],
        ),
        "The choice among subnets was made on *select*; *test* was used once, for this line.\n",
        "## Run it\n",
        run_code,
        *(("## Files\n", _checks_table(checks), _HOW_CHECKED) if checks else ()),
        "## Limits\n",
        _LIMITS + _limits_of_ranges(run, bits),
        "## Bits per layer\n",
        _table(
            ("weights", "bits", "bits of inputs"),
            [(f"`{path}`", str(of.weight), str(of.activation)) for path, of in merged(bits)],
        ),
        "Parameters that are not listed, such as biases and norms, have 32 bits.\n",
        "## Made from\n",
        _table(("", ""), _origin_rows(entry, run)),
    )
    return "\n".join(sections)


def _limits_of_ranges(run: Mapping[str, Any], bits: Mapping[str, Bits]) -> str:
    quantization = run.get("settings", {}).get("quantization", {})
    whole = any(of.weight == of.activation == 8 for of in bits.values())
    if not whole or quantization.get("activations") != DYNAMIC or quantization.get("nested"):
        return ""
    return _DYNAMIC.replace("{images}", str(quantization.get("images", 1)))


def cards(
    entry: Mapping[str, Any], *, run: Mapping[str, Any], bits: Mapping[str, Bits], **settings: Any
) -> Callable[[Sequence[Check]], dict[str, str]]:
    """Of the checks of files, card.md and, for programs, card.json; arguments as of `card`."""

    def made(checks: Sequence[Check]) -> dict[str, str]:
        data = {
            "entry": entry,
            "run": {name: run.get(name) for name in ("name", "seed", "data", "versions", "machine")},
            "bits": {name: {"weight": of.weight, "input": of.activation} for name, of in bits.items()},
            "preparation": settings.get("preparation"),
            "device": settings.get("device"),
            "files": [found.to_json() for found in checks],
        }
        text = card(entry, run=run, bits=bits, checks=checks, **settings)
        return {"card.md": text, "card.json": json.dumps(data, indent=2) + "\n"}

    return made


_HOW_CHECKED = """\
Before they were handed out, all files were run on inputs of *select* in batches as the device gets them, and
held against what the subnet answers in the supernet (files of floats: what it answers with its inputs
unrounded). Differences are relative to the largest output. Latencies are those of the files themselves, one
such batch, each in its own runtime with the threads of the device, all timed in turn here when they were
exported. A file that only simulates rounded inputs of layers has none: it would be that of the simulation.
"""


def _checks_table(checks: Sequence[Check]) -> str:
    def row(found: Check) -> tuple[str, ...]:
        of = FORMATS[found.format]
        weights = f"{found.weight_bytes:,} (predicted {found.predicted_bytes:,})"
        padded = f", padded or repeated {found.overhead_bytes:,}" if found.overhead_bytes else ""
        timed = "" if found.latency_ms is None else f"{found.latency_ms:.4g} ± {found.spread_ms:.2g}"
        same = "" if found.agreement is None else f"{found.agreement:.2f} % of {found.inputs}"
        _, ours, theirs = found.metric or ("", 0.0, 0.0)
        metric = f"{with_error(theirs)} ({with_error(ours)})" if found.metric else ""
        return (
            f"`{of.file}`",
            of.about,
            same,
            metric,
            f"{found.median:.1e}, {found.largest:.1e}",
            timed,
            f"{found.file_bytes:,}",
            weights + padded,
        )

    kernels = next((found.kernels for found in checks if found.kernels), {})
    ran = ", ".join(f"{n} {name}" for name, n in kernels.items())
    metric = next((found.metric[0] for found in checks if found.metric), "metric")
    differences = "difference: median, largest"
    head = ("file", "what", "same answer", f"{metric} (subnet)", differences, "ms", "bytes", "of weights")
    shown = _table(head, [row(found) for found in checks])
    return shown + (f"\nProducts of `model.onnx`, by the runtime's own profile: {ran}.\n" if ran else "")


V = TypeVar("V", bound=Hashable)


def merged(bits: Mapping[str, V]) -> list[tuple[str, V]]:
    """Bits by the shortest paths under which all agree: `stages.0.*` stands for a whole stage."""
    return _merged("", {tuple(name.split(".")): b for name, b in bits.items()})


def _merged(path: str, bits: Mapping[tuple[str, ...], V]) -> list[tuple[str, V]]:
    if () in bits:
        return [(path, bits[()])]
    if len(bits) > 1 and len(set(bits.values())) == 1:
        return [(f"{path}.*" if path else "*", next(iter(bits.values())))]
    rows: list[tuple[str, V]] = []
    for head in dict.fromkeys(name[0] for name in bits):
        below = {name[1:]: b for name, b in bits.items() if name[0] == head}
        rows += _merged(f"{path}.{head}" if path else head, below)
    return rows


def _quality_name(entry: Mapping[str, Any]) -> str:
    """The task's metric: the one objective that the test split was used for."""
    about = ("n", "std_error", "interval")
    return next(str(key) for key in entry["test"] if key not in about)


def _quality_rows(entry: Mapping[str, Any], name: str, unit: str) -> list[tuple[str, str, str]]:
    select, test = entry["objectives"][name], entry["test"]
    error, ends = select["std_error"], test["interval"]
    whole = "one value of the whole split, which has no standard error"
    return [
        (
            f"{name} on *select*",
            f"{with_error(select['measured'], error)} {unit}".rstrip(),
            whole if error is None else f"n = {select['n']}, ± is the standard error",
        ),
        (
            f"{name} on *test*",
            f"{with_error(test[name])} {unit}".rstrip(),
            whole
            if ends is None
            else f"n = {test['n']}, 95 % interval {with_error(ends[0])} to {with_error(ends[1])}",
        ),
    ]


def _latency_row(entry: Mapping[str, Any], device: str) -> tuple[str, str, str]:
    latency = entry["objectives"][f"latency_ms.{entry['device']}"]
    return (
        "latency",
        f"{latency['measured']:.4g} ± {latency['spread']:.2g} ms",
        f"on {device}; half of all runs lie within ±; the machine ran at {entry['drift']:.3f} times "
        "its profiled latency, which is divided out",
    )


def _size_rows(objectives: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    rows = []
    if "size_bytes" in objectives:
        value = objectives["size_bytes"]["measured"]
        rows.append(("size", f"{value:,} bytes", "weights packed at their bits"))
    if "parameters" in objectives:
        rows.append(("parameters", f"{objectives['parameters']['measured']:,}", "counted"))
    return rows


def _origin_rows(entry: Mapping[str, Any], run: Mapping[str, Any]) -> list[tuple[str, str]]:
    versions = ", ".join(f"{name} {v}" for name, v in run.get("versions", {}).items())
    return [
        ("data", str(run.get("data", "not recorded"))),
        ("seed", str(run.get("seed", "not recorded"))),
        ("supernet weights", str(entry["weights"])),
        *_training_rows(entry),
        ("versions", versions or "not recorded"),
    ]


def _training_rows(entry: Mapping[str, Any]) -> list[tuple[str, str]]:
    """How the subnet's own weights differ from the supernet's."""
    record = entry.get("trained", {}).get("fine-tuned", {})
    if not record.get("deployed"):
        return []
    settings = ", ".join(f"{name} {value:g}" for name, value in record.get("settings", {}).items())
    ended = f"trained on as a plain model, {record['epochs']} epochs"
    return [("weights", f"{ended} ({settings})" if settings else ended)]


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join("| " + " | ".join(map(_cell, line)) + " |" for line in lines) + "\n"


def _cell(text: str) -> str:
    """Names of users may hold what ends a cell, or a row."""
    return " ".join(text.split()).replace("|", "\\|")
