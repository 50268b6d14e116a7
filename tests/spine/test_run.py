"""From a clean directory to a verified front and an exported model, as a user would go."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from spine.conftest import copied, least

from nas.pareto import nondominated

FRONT_KEYS = {"id", "architecture", "device", "search", "weights", "front", "drift", "objectives", "test"}


def lines(path: Path) -> list[dict]:
    return [json.loads(line) for line in (path / "trials.jsonl").read_text().splitlines()]


def test_run_directory_holds_what_it_promises(finished):
    for name in (
        "experiment.json",
        "supernet/model.safetensors",
        "supernet/history.jsonl",
        "devices/onnxruntime.json",
        "trials.jsonl",
        "front.json",
        "report.html",
        "front.png",
    ):
        assert (finished / name).stat().st_size > 0, name
    stored = json.loads((finished / "experiment.json").read_text())
    assert stored["seed"] == 7
    assert stored["settings"]["training"]["epochs"] == 2
    assert stored["source"]["sha256"]


def test_log_lines(finished):
    trials = lines(finished)
    searches = [t["search"] for t in trials]
    assert searches.count("bounds.onnxruntime") == 10
    assert searches.count("nsga2.onnxruntime") == searches.count("random.onnxruntime") == 60
    for trial in trials:
        assert set(trial["objectives"]) == {"accuracy", "latency_ms.onnxruntime", "size_bytes"}
        assert (trial["n"], trial["state"]) == (270, "complete")
        assert trial["std_error"] > 0


def test_front_holds_measured_beside_predicted(finished):
    entries = json.loads((finished / "front.json").read_text())
    assert 1 <= len(entries) <= 5
    logged = {t["id"]: t for t in lines(finished)}
    for entry in entries:
        assert set(entry) == FRONT_KEYS
        for name, predicted in logged[entry["id"]]["objectives"].items():
            assert entry["objectives"][name]["predicted"] == predicted
            assert entry["objectives"][name]["measured"] > 0
        assert entry["objectives"]["accuracy"]["n"] == 180
        assert entry["test"]["n"] == 359
        low, high = entry["test"]["interval"]
        assert low < entry["test"]["accuracy"] < high
    names = ("accuracy", "latency_ms.onnxruntime", "size_bytes")
    costs = np.array([[e["objectives"][n]["measured"] for n in names] for e in entries]) * [-1, 1, 1]
    assert [e["front"] for e in entries] == nondominated(costs).tolist()


def test_select_accuracy_is_that_of_the_extracted_module(finished):
    from nas.evaluation import accuracy
    from nas.experiment import load_experiment
    from nas.training import load_tensors

    experiment, _ = load_experiment("digits", {"seed": "7"})
    tensors, _ = load_tensors(finished / "supernet" / "model.safetensors")
    supernet = experiment.supernet().with_state(tensors)
    for entry in json.loads((finished / "front.json").read_text())[:3]:
        module = supernet.extract(experiment.space.from_json(entry["architecture"]))
        assert accuracy(module, experiment.task, "select").mean == entry["objectives"]["accuracy"]["measured"]
        assert accuracy(module, experiment.task, "test").mean == entry["test"]["accuracy"]


def test_output_ends_with_a_command_that_exports_the_point_it_names(finished_copy, finished, nas):
    import shlex

    output = (finished.parent / "output.txt").read_text()
    assert "hypervolume" in output
    assert "Verified front, onnxruntime" in output
    recommended = output.split("Recommended: ")[1].split(",")[0]
    command = next(line for line in output.splitlines() if line.strip().startswith("nas export"))
    words = shlex.split(command.replace(str(finished), str(finished_copy)))
    assert recommended in nas(*words[1:]).stdout


@pytest.fixture(scope="module")
def exported(finished, nas, tmp_path_factory) -> Path:
    run = copied(finished.parent, tmp_path_factory.mktemp("exported") / "runs") / "digits"
    nas("export", run, "--best", "accuracy")
    (folder,) = (run / "exports").iterdir()
    return folder


def test_exported_files_run_without_nas(exported, finished):
    """In a process in which our packages cannot be imported, both files answer as the subnet does."""
    from nas.experiment import load_experiment
    from nas.training import load_tensors

    experiment, _ = load_experiment("digits", {"seed": "7"})
    tensors, _ = load_tensors(finished / "supernet" / "model.safetensors")
    architecture = experiment.space.from_json(json.loads((exported / "architecture.json").read_text()))
    (batch,) = experiment.task.batches("select")
    answer = experiment.supernet().with_state(tensors)(architecture, *batch.inputs).detach().numpy()
    np.save(exported / "x.npy", batch.inputs[0].numpy())
    code = """
import sys
class Refuse:
    def find_spec(self, name, *rest):
        if name.partition(".")[0] in ("nas", "search_spaces", "experiments"):
            raise ImportError(name)
sys.meta_path.insert(0, Refuse())
import numpy as np, onnxruntime, torch
x = np.load("x.npy")
onnx = onnxruntime.InferenceSession("model.onnx").run(["y"], {"x": x})[0]
archive = torch.export.load("model.pt2").module()(torch.from_numpy(x)).detach().numpy()
np.savez("y.npz", onnx=onnx, archive=archive)
"""
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], cwd=exported, check=True)
    with np.load(exported / "y.npz") as found:
        np.testing.assert_allclose(found["onnx"], answer, rtol=1e-4, atol=1e-4)
        np.testing.assert_allclose(found["archive"], answer, rtol=1e-4, atol=1e-4)


def test_exported_weights_rebuild_the_plain_module(exported):
    import onnxruntime

    from nas.experiment import load_experiment
    from nas.export.subnet import load_subnet

    experiment, _ = load_experiment("digits", {})
    module = load_subnet(exported, experiment.build, experiment.space.classes)
    x = experiment.example(3)
    (expected,) = onnxruntime.InferenceSession(exported / "model.onnx").run(["y"], {"x": x.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(module(x).numpy(), expected, atol=1e-4 * np.abs(expected).max())


def test_cards_say_how_the_files_fared(exported):
    card, data = (exported / "card.md").read_text(), json.loads((exported / "card.json").read_text())
    assert "Before they were handed out, all files were run on inputs of *select*" in card
    assert [found["format"] for found in data["files"]] == ["safetensors", "onnx", "pt2"]
    assert all(found["agreement"] >= 99 and found["inputs"] == 180 for found in data["files"])
    assert data["files"][0]["weight_bytes"] == data["entry"]["objectives"]["size_bytes"]["measured"]
    assert all(found["latency_ms"] > 0 and found["spread_ms"] > 0 for found in data["files"])


def test_mlflow_holds_the_run(finished):
    from mlflow import MlflowClient

    stored = json.loads((finished / "experiment.json").read_text())["tracking"]
    client = MlflowClient(tracking_uri=stored["uri"])
    run = client.get_run(stored["run_id"])
    assert run.info.status == "FINISHED"
    history = client.get_metric_history(run.info.run_id, "nsga2.onnxruntime/hypervolume")
    assert sorted(m.step for m in history) == list(range(60))
    children = client.search_runs(
        [run.info.experiment_id], f"tags.`mlflow.parentRunId` = '{run.info.run_id}'"
    )
    front = [e for e in json.loads((finished / "front.json").read_text()) if e["front"]]
    assert len(children) == len(front)
    assert {"report.html", "front.png", "front.json"} <= {
        a.path.rpartition("/")[2] for a in client.list_artifacts(run.info.run_id)
    }


def test_mlflow_holds_the_training(trained):
    from mlflow import MlflowClient

    stored = json.loads((trained / "digits" / "experiment.json").read_text())["tracking"]
    metrics = MlflowClient(tracking_uri=stored["uri"]).get_run(stored["run_id"]).data.metrics
    assert {"training/loss", "training/first_metric"} <= set(metrics)


def test_a_second_device_joins_the_run(finished_copy, nas):
    before = lines(finished_copy)
    weights = (finished_copy / "supernet" / "model.safetensors").stat().st_mtime_ns
    nas("search", "digits", "--device", "torch", "--run-dir", finished_copy.parent)
    after = lines(finished_copy)
    assert after[: len(before)] == before
    assert {t["search"].partition(".")[2] for t in after[len(before) :]} == {"torch"}
    cached = [t for t in after[len(before) :] if not t["evaluated"]]
    known = {t["id"]: t["objectives"]["accuracy"] for t in before}
    assert cached
    for trial in cached:
        if trial["id"] in known:
            assert trial["objectives"]["accuracy"] == known[trial["id"]]
    entries = json.loads((finished_copy / "front.json").read_text())
    assert {e["device"] for e in entries} == {"onnxruntime", "torch"}
    assert (finished_copy / "supernet" / "model.safetensors").stat().st_mtime_ns == weights
    done = nas("export", finished_copy, "--where", "latency_ms<=100", check=False)
    assert done.returncode == 2
    assert "must name one device" in done.stderr


def test_resuming_a_finished_run_changes_nothing(finished_copy, nas):
    before = {p.name: p.read_text() for p in (finished_copy / "trials.jsonl", finished_copy / "front.json")}
    nas("run", "digits", "--resume", "--run-dir", finished_copy.parent)
    for name, text in before.items():
        assert (finished_copy / name).read_text() == text


@pytest.mark.parametrize("searcher", ["nas.searchers.TPE", "nas.searchers.RandomSearch"])
def test_other_searchers_are_one_setting_away(trained, nas, tmp_path, searcher):
    folder = copied(trained, tmp_path / "runs")
    changes = ["--set", f"search.searcher={searcher}", "--set", "search.trials=20"]
    changes += ["--set", "search.baseline=false"]
    nas("search", "digits", "--run-dir", folder, "--if-changed", "continue", *changes)
    searches = {t["search"] for t in lines(folder / "digits")}
    assert f"{searcher.rpartition('.')[2].lower()}.onnxruntime" in searches


def test_own_arrays_by_path(nas, tmp_path):
    from sklearn.datasets import load_digits

    data = load_digits()
    images = np.kron(data.images[:400], np.ones((2, 2)))  # 16 × 16
    np.savez(tmp_path / "mine.npz", images=(images * 15).astype(np.uint8), labels=data.target[:400])
    small = least()
    folder = tmp_path / "runs"
    nas("run", "digits", "--run-dir", folder, *small, "--set", f"data={tmp_path / 'mine.npz'}")
    front = json.loads((folder / "digits" / "front.json").read_text())
    assert front[0]["architecture"]["stem"]["patch"] == 2


def test_an_experiment_file_with_a_module_beside_it_runs_on_ray(nas, tmp_path):
    """The file's name must not hide another module, and workers must be able to unpack what it defines."""
    (tmp_path / "my_parts.py").write_text(
        "WIDTHS = ((8, 16), (16, 24))\ndef scaled(x):\n    return x * 1.0\n"
    )
    (tmp_path / "random.py").write_text(
        "import my_parts\n"
        "import torch\n"
        "from torch import nn\n"
        "import nas\n"
        "from nas.tasks import digits\n"
        "from search_spaces import hierarchical\n"
        "def build(architecture):\n"
        "    module = hierarchical.build(architecture)\n"
        "    module.scale = nn.Parameter(my_parts.scaled(torch.ones(architecture.classes)))\n"
        "    return module\n"
        "def experiment():\n"
        "    task = digits()\n"
        "    space = hierarchical.space(task, widths=my_parts.WIDTHS, depths=(1, 2))\n"
        "    return nas.Experiment('mine', task, space, build)\n"
    )
    small = least(search__workers=1)
    nas("run", tmp_path / "random.py", "--run-dir", tmp_path / "my runs", *small)
    front = json.loads((tmp_path / "my runs" / "mine" / "front.json").read_text())
    assert front[0]["objectives"]["accuracy"]["measured"] > 0
    nas("export", tmp_path / "my runs" / "mine", "--format", "safetensors")
