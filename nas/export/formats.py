"""The files that a subnet is handed out as: how each is written, and how it is run to be checked."""

from __future__ import annotations

import copy
import importlib
import importlib.util
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from zipfile import ZipFile

import numpy as np
import onnx
import torch
from torch import Tensor, nn

from nas.errors import ExportError
from nas.export.archive import export_archive
from nas.export.mlflow_model import answer_of, load_mlflow, save_mlflow
from nas.export.onnx import (
    Run,
    export_onnx,
    in_half_precision,
    kernels_of,
    onnx_run,
    onnx_session,
    require_survival,
)
from nas.export.packed import load_packed, save_packed
from nas.export.payload import padding_bytes, predicted_bytes, predicted_of_whole_numbers, repeated_bytes
from nas.quantize import in_floats, without_bits
from nas.threads import cpu_threads

Answer = Callable[[np.ndarray], np.ndarray]
"""From a batch of inputs to the outputs for them."""


@dataclass(frozen=True)
class Subnet:
    """What is handed out.

    Attributes:
        module: its weights rounded, its ranges calibrated, in evaluation mode.
        architecture: its JSON, from which the builder makes the same module again.
        example: inputs `(B, …)`; only their shape and dtype matter.
        build, classes: as of `load_subnet`, which is then tried on what was written; None: it is not.
    """

    module: nn.Module
    architecture: Mapping[str, Any]
    example: Tensor
    build: Callable[[Any], nn.Module] | None = None
    classes: Mapping[str, type] = field(default_factory=dict)


@dataclass(frozen=True)
class Format:
    """A way to hand out a subnet.

    Attributes:
        name: what `--format` calls it.
        file, beside: names in the folder of an export.
        about: in words, for the card.
        write: of a subnet and the path of the file, or folder.
        load: of the path and the module, gives what answers batches.
        tolerance: largest difference to the module's answers, relative to the largest, that rounding inside
            the runtime may make.
        weight_bytes: of the path and the module, bytes that weights take in the file.
        predicted_bytes: of the module, how many they should be.
        overhead_bytes: of the module, how many more may be there to pad blocks or repeat tied weights.
        run: of the path, the module, a batch and a number of threads, one inference as it is to be timed;
            None: as `load` has it.
        bits: at which all weights are kept, whatever those of the subnet; inputs of layers are not rounded
            then.
        same_code: whether it runs the very operations of the module, so that not even inputs that lie between
            two numbers fall to other sides. Of a module that simulates bits, its latency says nothing.
        kernels: of the path and a batch, how often each kernel runs in the runtime, by its own profile.
        package: which it needs beside what is installed anyway.
    """

    name: str
    file: str
    about: str
    write: Callable[[Subnet, Path], None]
    load: Callable[[Path, nn.Module], Answer]
    weight_bytes: Callable[[Path, nn.Module], int]
    predicted_bytes: Callable[[nn.Module], int] = predicted_bytes
    overhead_bytes: Callable[[nn.Module], int] = lambda _: 0
    tolerance: float = 1e-4
    run: Callable[[Path, nn.Module, np.ndarray, int], Run] | None = None
    bits: int | None = None
    same_code: bool = False
    kernels: Callable[[Path, np.ndarray], dict[str, int]] | None = None
    package: str | None = None
    beside: tuple[str, ...] = ()

    def simulates(self, module: nn.Module) -> bool:
        """Whether it rounds inputs of layers as the module does, in floats."""
        return self.same_code and in_floats(module) is not module

    def timed(self, path: Path, module: nn.Module, x: np.ndarray, threads: int) -> Run:
        """One inference of the file, loaded for batches like `x`."""
        if self.run:
            return self.run(path, module, x, threads)
        answer = self.load(path, module)

        def run() -> object:
            with cpu_threads(threads):
                return answer(x)

        return run

    def require(self) -> None:
        """Raises ExportError where its package is missing."""
        if self.package and importlib.util.find_spec(self.package) is None:
            raise ExportError(
                f"`--format {self.name}` needs the package {self.package}, which is not installed: "
                f'pip install "nas[{self.package}]".'
            )


_AS_FLOATS = partial(predicted_bytes, bits=32)


# --- safetensors ----------------------------------------------------------------------------------


def _write_safetensors(subnet: Subnet, path: Path) -> None:
    save_packed(subnet.module, path)


def _load_safetensors(path: Path, module: nn.Module) -> Answer:
    blank = copy.deepcopy(in_floats(module))
    with torch.no_grad():
        for value in blank.state_dict().values():
            value.zero_()  # what the file does not hold must show
    return _of_torch(load_packed(blank, path).eval())


def _safetensors_bytes(path: Path, module: nn.Module) -> int:
    with path.open("rb") as file:
        header = int.from_bytes(file.read(8), "little")
    return path.stat().st_size - 8 - header - _buffer_bytes(module)


def _buffer_bytes(module: nn.Module) -> int:
    """Of what a file of a state holds beside weights."""
    parameters = dict(module.named_parameters(remove_duplicate=False)).keys()
    buffers = (value for name, value in module.state_dict().items() if name not in parameters)
    return sum(b.numel() * b.element_size() for b in buffers)


# --- torch.export ---------------------------------------------------------------------------------


def _write_archive(subnet: Subnet, path: Path) -> None:
    export_archive(subnet.module, subnet.example, path)


def _load_archive(path: Path, module: nn.Module) -> Answer:
    return _of_torch(torch.export.load(path).module())  # written by this very process


def _archive_bytes(path: Path, module: nn.Module) -> int:
    with ZipFile(path) as file:
        held = (i for i in file.infolist() if "/data/weights/" in i.filename and i.filename[-5:] != ".json")
        return sum(i.file_size for i in held) - _buffer_bytes(module)


def _of_torch(module: nn.Module) -> Answer:
    def answer(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            y: np.ndarray = module(torch.from_numpy(x)).numpy()
        return y

    return answer


# --- ONNX -----------------------------------------------------------------------------------------


def _write_onnx(subnet: Subnet, path: Path) -> None:
    export_onnx(subnet.module, subnet.example, path)


def _write_portable(subnet: Subnet, path: Path) -> None:
    export_onnx(subnet.module, subnet.example, path, portable=True)


def _write_floats(subnet: Subnet, path: Path) -> None:
    export_onnx(without_bits(subnet.module), subnet.example, path)


def _write_half(subnet: Subnet, path: Path) -> None:
    _write_floats(subnet, path)
    in_half_precision(path)


def _load_half(path: Path, module: nn.Module) -> Answer:
    require_survival(path)
    return _load_onnx(path, module)


def _run_onnx(path: Path, module: nn.Module, x: np.ndarray, threads: int) -> Run:
    return onnx_run(path, x, threads)


def _load_onnx(path: Path, module: nn.Module) -> Answer:
    session = onnx_session(path)

    def answer(x: np.ndarray) -> np.ndarray:
        return np.asarray(session.run(["y"], {"x": x})[0])

    return answer


def _onnx_overhead(module: nn.Module) -> int:
    return padding_bytes(module) + repeated_bytes(module)


def _held_bytes(path: Path, module: nn.Module) -> int:
    """Of all tensors of the file but buffers, or parts of them, and indices."""
    buffers, graph = dict(module.named_buffers()), onnx.load(path).graph
    tensors = [t for t in graph.initializer if t.name not in buffers and t.data_type not in _INDICES]
    for node in graph.node:
        if node.op_type == "Constant":
            values = (a.t for a in node.attribute if a.name == "value")
            tensors += [t for t in values if t.dims and t.data_type not in _INDICES]
    tables = [np.squeeze(buffer.detach().numpy()) for buffer in buffers.values()]
    arrays = (onnx.numpy_helper.to_array(t) for t in tensors)
    return sum(a.nbytes for a in arrays if not any(_is_part(np.squeeze(a), table) for table in tables))


def _is_part(array: np.ndarray, table: np.ndarray) -> bool:
    """Whether it is a table, or its beginning along each axis, such as the positions that there are."""
    if array.ndim != table.ndim or any(a > b for a, b in zip(array.shape, table.shape, strict=True)):
        return False
    return array.size > 1 and bool((array == table[tuple(map(slice, array.shape))].astype(array.dtype)).all())


_INDICES = (onnx.TensorProto.INT32, onnx.TensorProto.INT64, onnx.TensorProto.BOOL)


# --- OpenVINO -------------------------------------------------------------------------------------


def _write_openvino(subnet: Subnet, path: Path) -> None:
    import openvino

    portable = path.with_suffix(".onnx")
    _write_portable(subnet, portable)
    openvino.save_model(openvino.convert_model(portable), path, compress_to_fp16=False)
    portable.unlink()


def _load_openvino(path: Path, module: nn.Module) -> Answer:
    return _compiled(path)


def _openvino_bytes(path: Path, module: nn.Module) -> int:
    import openvino

    constants = (o for o in openvino.Core().read_model(path).get_ops() if o.get_type_name() == "Constant")
    whole = (o.data.nbytes for o in constants if o.get_element_type().is_real() or o.data.itemsize == 1)
    return sum(whole)


def _openvino_overhead(module: nn.Module) -> int:
    """Whatever exceeds the weights: masks and tables that it computes in advance stand among them, under no
    names."""
    return sys.maxsize


def _run_openvino(path: Path, module: nn.Module, x: np.ndarray, threads: int) -> Run:
    return partial(_compiled(path, INFERENCE_NUM_THREADS=threads), x)


def _compiled(path: Path, **settings: Any) -> Answer:
    import openvino

    floats = {"INFERENCE_PRECISION_HINT": "f32"}  # its default may be bfloat16
    model = openvino.Core().compile_model(path, "CPU", floats | settings)
    return lambda x: np.asarray(model(x)[0])


# --- folders --------------------------------------------------------------------------------------


def _write_huggingface(subnet: Subnet, path: Path) -> None:
    of = subnet.build, subnet.classes
    _huggingface().save(subnet.module, subnet.architecture, path, subnet.example, *of)


def _load_huggingface(path: Path, module: nn.Module) -> Answer:
    model = _huggingface().load(path)

    def answer(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            y: np.ndarray = model(torch.from_numpy(x)).logits.numpy()
        return y

    return answer


def _huggingface_bytes(path: Path, module: nn.Module) -> int:
    return _safetensors_bytes(path / "model.safetensors", module)


def _huggingface() -> Any:
    return importlib.import_module("search_spaces.huggingface")  # brings transformers with it


def _write_mlflow(subnet: Subnet, path: Path) -> None:
    with TemporaryDirectory() as folder:
        file = Path(folder) / "model.onnx"
        _write_onnx(subnet, file)
        save_mlflow(file, subnet.example, path)


def _load_mlflow(path: Path, module: nn.Module) -> Answer:
    return partial(answer_of, load_mlflow(path))


def _mlflow_bytes(path: Path, module: nn.Module) -> int:
    return _held_bytes(path / "model.onnx", module)


FORMATS = {
    f.name: f
    for f in (
        Format(
            "safetensors",
            "model.safetensors",
            "weights packed at their bits, for PyTorch and this package",
            _write_safetensors,
            _load_safetensors,
            _safetensors_bytes,
            tolerance=1e-5,
            same_code=True,
        ),
        Format(
            "onnx",
            "model.onnx",
            "for ONNX Runtime, at the bits below: integer kernels and block-quantized products",
            _write_onnx,
            _load_onnx,
            _held_bytes,
            overhead_bytes=_onnx_overhead,
            run=_run_onnx,
            kernels=kernels_of,
        ),
        Format(
            "onnx-portable",
            "portable.onnx",
            "the same in operators of ONNX alone, for other runtimes",
            _write_portable,
            _load_onnx,
            _held_bytes,
            overhead_bytes=repeated_bytes,
            run=_run_onnx,
        ),
        Format(
            "onnx-fp32",
            "fp32.onnx",
            "weights and inputs of layers as floats",
            _write_floats,
            _load_onnx,
            _held_bytes,
            _AS_FLOATS,
            partial(repeated_bytes, bits=32),
            run=_run_onnx,
            bits=32,
        ),
        Format(
            "onnx-fp16",
            "fp16.onnx",
            "weights and arithmetic in half precision, where the runtime has it",
            _write_half,
            _load_half,
            _held_bytes,
            partial(predicted_bytes, bits=16),
            partial(repeated_bytes, bits=16),
            tolerance=2e-2,
            run=_run_onnx,
            bits=16,
        ),
        Format(
            "pt2",
            "model.pt2",
            "for `torch.export.load`, in floats",
            _write_archive,
            _load_archive,
            _archive_bytes,
            _AS_FLOATS,
            partial(repeated_bytes, bits=32),
            same_code=True,
        ),
        Format(
            "openvino",
            "openvino.xml",
            "for OpenVINO, beside openvino.bin, in floats but for layers of 8 bits with inputs of 8 bits; "
            "compile it with INFERENCE_PRECISION_HINT f32, as here",
            _write_openvino,
            _load_openvino,
            _openvino_bytes,
            predicted_of_whole_numbers,
            _openvino_overhead,
            run=_run_openvino,
            package="openvino",
            beside=("openvino.bin",),
        ),
        Format(
            "huggingface",
            "huggingface",
            "for `transformers`, in floats; `import search_spaces.huggingface` makes its class known",
            _write_huggingface,
            _load_huggingface,
            _huggingface_bytes,
            _AS_FLOATS,
            partial(repeated_bytes, bits=32),
            tolerance=1e-5,
            same_code=True,
            package="transformers",
        ),
        Format(
            "mlflow",
            "mlflow",
            "a folder for `mlflow models serve`, with model.onnx",
            _write_mlflow,
            _load_mlflow,
            _mlflow_bytes,
            overhead_bytes=_onnx_overhead,
        ),
    )
}
DEFAULT = ("safetensors", "onnx", "pt2")


def format_of(name: str) -> Format:
    """Raises ExportError for an unknown one, or one whose package is missing."""
    if name not in FORMATS:
        raise ExportError(f"An export format must be one of {', '.join(FORMATS)}: got {name}.")
    FORMATS[name].require()
    return FORMATS[name]
