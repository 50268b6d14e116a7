"""Imports run downward, and outside libraries stay where they belong."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

# From the bottom to the top. A module may import from its own line and from lines above it here.
LAYERS = [
    ["nas", "nas.errors", "nas.annotations", "nas.pareto", "nas.architecture", "nas.threads", "nas.files"],
    ["nas.space", "nas.layout"],
    ["nas.layers", "nas.outline", "nas.difference"],
    ["nas.quantize"],
    ["nas.skeleton", "nas.calibration"],
    ["nas.supernet"],
    ["nas.importance"],
    ["nas.objectives", "nas.trial"],
    ["nas.tasks", "nas.training", "nas.export", "nas.devices"],
    ["nas.searchers"],
    ["nas.executor", "nas.log", "nas.evaluation", "nas.rundir", "nas.faults", "nas.settings", "nas.console"],
    ["nas.study", "nas.reading"],
    ["nas.cluster", "nas.tracking", "nas.report"],
    ["nas.experiment"],
    ["nas.phases"],
    ["nas.cli"],
    ["search_spaces"],
    ["experiments", "dashboards"],
]
RANK = {module: i for i, layer in enumerate(LAYERS) for module in layer}

# Which files may import what. Everything else is for everyone.
ONLY_IN = {
    "ray": ["nas/cluster/"],
    "mlflow": ["nas/tracking/", "nas/export/mlflow_model.py", "nas/phases/run.py"],
    "optuna": ["nas/searchers/tpe.py", "nas/cluster/tuning.py", "nas/phases/tune.py"],
    "pymoo": ["nas/searchers/evolution.py", "nas/pareto.py"],
    "onnx": ["nas/export/"],
    "openvino": ["nas/export/formats.py"],
    "onnxruntime": ["nas/export/"],
    "plotly": ["nas/report/", "dashboards/"],
    "matplotlib": ["nas/report/", "experiments/benchmarks/"],
    "dash": ["dashboards/"],
    "kornia": ["nas/tasks/mixing.py"],
    "sklearn": ["nas/tasks/images.py", "experiments/"],
    "pyarrow": ["nas/tasks/files.py"],
    "PIL": ["nas/tasks/files.py"],
    "typer": ["nas/cli.py"],
    "rich": ["nas/console.py", "nas/phases/"],
    "safetensors": ["nas/training/checkpoint.py", "nas/export/"],
    "scipy": ["nas/devices/", "experiments/"],
}
TORCH_FREE = [
    "nas",
    "nas.space",
    "nas.objectives",
    "nas.searchers",
    "nas.study",
    "nas.pareto",
    "nas.reading",
    "nas.tracking",
    "nas.report",
]


def sources() -> list[Path]:
    folders = ("nas", "search_spaces", "experiments", "dashboards")
    return sorted(p for f in folders for p in (ROOT / f).rglob("*.py"))


def module_of(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def layer_of(module: str) -> str:
    while module and module not in RANK:
        module = module.rpartition(".")[0]
    return module


def imports(path: Path) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: import by full name"
            found += [f"{node.module}.{alias.name}" for alias in node.names]
    return found


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_imports_run_downward(path):
    here = layer_of(module_of(path))
    for name in imports(path):
        there = layer_of(name)
        if there and there != "nas" and there != here:
            assert RANK[there] <= RANK[here], f"{here} must not import {name}"


@pytest.mark.parametrize("path", sources(), ids=lambda p: str(p.relative_to(ROOT)))
def test_outside_libraries_stay_in_their_files(path):
    where = path.relative_to(ROOT).as_posix()
    for name in imports(path):
        allowed = ONLY_IN.get(name.partition(".")[0])
        assert allowed is None or any(where.startswith(a) for a in allowed), f"{where} imports {name}"


def test_layers_see_only_torch_and_layout():
    allowed = ("torch", "numpy", "nas.layout", "nas.layers", "nas.errors")
    standard = set(sys.stdlib_module_names)
    for path in (ROOT / "nas/layers").glob("*.py"):
        for name in imports(path):
            assert name.startswith(allowed) or name.partition(".")[0] in standard, f"{path.name}: {name}"


def test_every_module_has_its_place():
    assert not {module_of(p) for p in sources() if not layer_of(module_of(p))}


@pytest.mark.parametrize("module", TORCH_FREE)
def test_the_half_that_searches_never_imports_torch(module):
    code = f"import sys, {module}; sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=ROOT, check=False)
    assert done.returncode == 0


@pytest.mark.parametrize("path", sorted((ROOT / "search_spaces").glob("*.py")), ids=lambda p: p.name)
def test_other_peoples_libraries_are_prepared_before_they_are_imported(path):
    """Else `import search_spaces.bert` fails where torchvision does not fit torch."""
    prepared = False
    for node in ast.parse(path.read_text()).body:
        prepared |= isinstance(node, ast.Expr) and ast.unparse(node) == "prepare()"
        if isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] in ("transformers", "timm"):
            assert prepared, f"line {node.lineno}: {ast.unparse(node)}"
