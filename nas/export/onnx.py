"""A plain module as an ONNX file."""

from __future__ import annotations

import copy
import json
import subprocess
import sys
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from itertools import count
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from nas.errors import ExportError, first_line
from nas.export.deployable import deployable
from nas.export.folding import fold_affines, with_affine_norms

Run = Callable[[], object]
"""One inference, from input in memory to output in memory."""

BATCH = "batch"
"""Name of the free dimension of input `x` and output `y`."""

# The highest set that the TorchScript exporter writes: GELU and layer norm are one node each.
_OPSET = 20


def export_onnx(module: nn.Module, example: Tensor, path: Path, *, portable: bool = False) -> None:
    """Write `module` in evaluation mode, at the bits that it knows of (see `nas.export.deployable`): input
    `x`, output `y`, any batch size.

    The TorchScript exporter takes 0.1 to 0.4 s for a small model, its successor (`dynamo=True`) 2.4
    to 6 s, and the two files run equally fast: a profile exports dozens.

    Args:
        module: a plain module of one tensor, left as it is.
        example: an input `(B, …)`; only its shape and dtype matter.
        path: the file to write; its folder must exist.
        portable: in operators of ONNX alone, see `nas.export.deployable`.

    Raises:
        ExportError: the module holds something that ONNX cannot say.
    """
    written = deployable(module, portable=portable)
    folding = written is module
    if written is module:
        written = copy.deepcopy(module).eval()
    written = with_affine_norms(written)
    try:
        with _known_warnings_silenced(), _grouped_heads_repeated():
            torch.onnx.export(
                written,
                (example,),
                str(path),
                dynamo=False,
                opset_version=_OPSET,
                input_names=["x"],
                output_names=["y"],
                dynamic_axes={"x": {0: BATCH}, "y": {0: BATCH}},
                do_constant_folding=folding,  # else it would make floats of whole numbers
            )
    except Exception as error:  # the exporter raises what it likes, assertions among it
        reason = first_line(error)
        raise ExportError(
            f"A subnet must consist of operations that ONNX knows (opset {_OPSET}): exporting "
            f"{type(module).__name__} to {path} failed with `{reason}`. Replace that operation."
        ) from error
    _slim(path)


def _slim(path: Path) -> None:
    """Folds norms into products, and takes away what no runtime reads: names of nodes, long names of what
    flows between them, notes. In a small model that is most of the file."""
    model = onnx.load(path)
    graph = model.graph
    fold_affines(graph, _channels(model))
    if any(a.HasField("g") for node in graph.node for a in node.attribute):
        return  # graphs inside use names of this one
    kept = {value.name for value in (*graph.initializer, *graph.input, *graph.output)} | {""}
    short: dict[str, str] = {}
    names_left = (name for i in count() if (name := f"v{i}") not in kept)
    for node in graph.node:
        node.ClearField("name")
        node.ClearField("doc_string")
        del node.metadata_props[:]
        for names in (node.input, node.output):
            for n in names:
                if n not in kept and n not in short:
                    short[n] = next(names_left)
            names[:] = [short.get(n, n) for n in names]
    del graph.value_info[:]
    onnx.save(model, path)


def _channels(model: onnx.ModelProto) -> dict[str, int]:
    """Sizes of last axes by name, as far as they are known."""
    graph = onnx.shape_inference.infer_shapes(model).graph
    shapes = {v.name: v.type.tensor_type.shape.dim for v in (*graph.input, *graph.value_info)}
    return {
        name: dims[-1].dim_value for name, dims in shapes.items() if dims and dims[-1].HasField("dim_value")
    }


def onnx_session(path: Path) -> onnxruntime.InferenceSession:
    """The file, loaded on the CPU."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # a failure is raised; its text need not also be printed
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def onnx_run(path: Path, x: np.ndarray, threads: int = 1) -> Run:
    """One inference of `x` (B, …) by the file, loaded for that batch size."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    # Dozens of sessions live side by side in a profile: idle pools must not eat the cores.
    for pool in ("intra_op", "inter_op"):
        options.add_session_config_entry(f"session.{pool}.allow_spinning", "0")
    options.add_free_dimension_override_by_name(BATCH, len(x))
    session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    outputs, inputs = ["y"], {"x": x}
    return lambda: session.run(outputs, inputs)


def require_survival(path: Path) -> None:
    """Raises ExportError for a file that makes the runtime end the process, found out in another one."""
    code = "import sys, onnxruntime; onnxruntime.InferenceSession(sys.argv[1])"
    done = subprocess.run([sys.executable, "-c", code, str(path)], capture_output=True, check=False)
    if done.returncode < 0:
        raise ExportError(
            f"{path.name} must be a file that ONNX Runtime can load, but it ends the process by signal "
            f"{-done.returncode}. Leave the format out with --format."
        )


def kernels_of(path: Path, x: np.ndarray) -> dict[str, int]:
    """How often each kernel runs in one inference of `x` (B, …), by ONNX Runtime's own profile."""
    with tempfile.TemporaryDirectory() as folder:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.enable_profiling = True
        options.profile_file_prefix = str(Path(folder) / "profile")
        session = onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        session.run(["y"], {"x": x})
        events = json.loads(Path(session.end_profiling()).read_text())
    return dict(Counter(e["args"]["op_name"] for e in events if e["name"].endswith("_kernel_time")))


def in_half_precision(path: Path) -> None:
    """Makes the file one of half precision inside; input and output stay float32."""
    from onnxruntime.transformers.float16 import convert_float_to_float16  # slow to import

    onnx.save(convert_float_to_float16(onnx.load(path), keep_io_types=True), path)


@contextmanager
def _grouped_heads_repeated() -> Iterator[None]:
    """Attention whose queries share keys and values (`enable_gqa`) is written with these repeated: the
    exporter knows no other way."""
    attend = F.scaled_dot_product_attention

    def repeated(
        query: Tensor, key: Tensor, value: Tensor, *arguments: Any, enable_gqa: bool = False, **named: Any
    ) -> Tensor:
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        return attend(query, key, value, *arguments, **named)

    F.scaled_dot_product_attention = repeated
    try:
        yield
    finally:
        F.scaled_dot_product_attention = attend


@contextmanager
def _known_warnings_silenced() -> Iterator[None]:
    """Silence the exporter's own deprecation, and its remarks on shapes read while tracing.

    Sizes of feature maps are meant to be constants of the file. A batch size that became one is found when
    the file is checked.
    """
    with warnings.catch_warnings():
        for message in ("You are using the legacy TorchScript", "The feature will be removed"):
            warnings.filterwarnings("ignore", message, DeprecationWarning)
        warnings.filterwarnings("ignore", category=torch.jit.TracerWarning)
        warnings.filterwarnings(
            "ignore", "Constant folding - Only steps=1", UserWarning
        )  # it goes on without
        yield
