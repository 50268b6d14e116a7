"""The card that goes with an exported subnet: what it is worth, how that was measured, how to run it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from torch import Tensor

_LIMITS = """\
- `model.onnx` holds the quantized values as float32: it answers as the quantized subnet does, but is
  no smaller and no faster for it. In this version latency does not depend on the bits.
- Bytes are the payload of the weights packed at the bits below, not the size of a file here.
- `model.pt2` runs with `torch.export.load("model.pt2").module()`, which unpickles: load it only where
  you trust who made it.
"""

_RUN = """\
```python
import numpy as np
import onnxruntime as ort
session = ort.InferenceSession("model.onnx", providers=["CPUExecutionProvider"])
x = np.zeros({shape}, dtype=np.{dtype})  # inputs: {preparation}
print(session.run(["y"], {{"x": x}})[0])
```
"""

_FIXED_BATCH = """\
This takes any batch size. For a single one, fix it at loading, as was done where the latency of ONNX
Runtime was measured (12 to 16 % less for small models): pass `options` as second argument after
`options = ort.SessionOptions()` and `options.add_free_dimension_override_by_name("batch", 1)`.
"""


def card(
    entry: Mapping[str, Any],
    *,
    run: Mapping[str, Any],
    bits: Mapping[str, int],
    example: Tensor,
    device: str | None = None,
    preparation: str = "prepared as in training",
) -> str:
    """Markdown for one verified subnet.

    Args:
        entry: its entry of front.json.
        run: experiment.json of the run: `name`, `seed`, `versions` and the fingerprint of the `data`.
        bits: bits per weight matrix, `{name: bits}`.
        example: an input `(B, …)`; its shape and dtype go into the example code.
        device: the device in words, see `Profile.describe`; default: its name.
        preparation: in words, what is done to raw inputs, see `Task.preparation`.
    """
    quality = _quality_name(entry)
    unit = next((o["unit"] for o in run.get("objectives", ()) if o["name"] == quality), "")
    shape = (1, *example.shape[1:])
    run_code = _RUN.format(
        shape=shape, dtype=str(example.dtype).removeprefix("torch."), preparation=preparation
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
        _FIXED_BATCH,
        "## Limits\n",
        _LIMITS,
        "## Bits per layer\n",
        _table(("weights", "bits"), [(f"`{path}`", str(b)) for path, b in merged(bits)]),
        "Parameters that are not listed, such as biases and norms, have 32 bits.\n",
        "## Made from\n",
        _table(("", ""), _origin_rows(entry, run)),
    )
    return "\n".join(sections)


def merged(bits: Mapping[str, int]) -> list[tuple[str, int]]:
    """Bits by the shortest paths under which all agree: `stages.0.*` stands for a whole stage."""
    return _merged("", {tuple(name.split(".")): b for name, b in bits.items()})


def _merged(path: str, bits: Mapping[tuple[str, ...], int]) -> list[tuple[str, int]]:
    if () in bits:
        return [(path, bits[()])]
    if len(bits) > 1 and len(set(bits.values())) == 1:
        return [(f"{path}.*" if path else "*", next(iter(bits.values())))]
    rows: list[tuple[str, int]] = []
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
    low, high = test["interval"]
    return [
        (
            f"{name} on *select*",
            f"{select['measured']:.2f} ± {select['std_error']:.2f} {unit}".rstrip(),
            f"n = {select['n']}, ± is the standard error",
        ),
        (
            f"{name} on *test*",
            f"{test[name]:.2f} {unit}".rstrip(),
            f"n = {test['n']}, 95 % interval {low:.2f} to {high:.2f}",
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
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"
