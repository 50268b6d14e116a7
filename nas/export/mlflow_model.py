"""An ONNX file as an MLflow model, which `mlflow models serve` answers from."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import numpy as np
import onnx
from torch import Tensor

from nas.export.onnx import onnx_session

REQUIREMENTS = ("mlflow", "onnx", "onnxruntime", "numpy", "pandas")


def save_mlflow(onnx_file: Path, example: Tensor, folder: Path) -> None:
    """Writes `folder` with the file, the signature, and one input as an example."""
    x = example[:1].numpy()
    (y,) = onnx_session(onnx_file).run(["y"], {"x": x})
    with _quiet():
        import mlflow.onnx
        from mlflow.models import infer_signature

        mlflow.onnx.save_model(
            onnx.load(onnx_file),
            folder,
            signature=infer_signature({"x": x}, {"y": y}),
            input_example={"x": x},
            save_as_external_data=False,
            pip_requirements=[f"{name}=={version(name)}" for name in REQUIREMENTS],
        )


def load_mlflow(place: Path | str) -> object:
    """What MLflow loads of a folder, or of the URI of a registered model."""
    with _quiet():
        import mlflow.pyfunc

        return mlflow.pyfunc.load_model(str(place))


@contextmanager
def _quiet() -> Iterator[None]:
    """Without MLflow's remarks on its own classes, and hints at what is given already."""
    logging.getLogger("mlflow").setLevel(logging.ERROR)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", ".*type hint", UserWarning)
        yield


def answer_of(model: object, x: np.ndarray) -> np.ndarray:
    """Outputs of a batch."""
    return np.asarray(model.predict({"x": x})["y"])  # type: ignore[attr-defined]
