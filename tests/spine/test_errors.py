"""Bad input: one clear message, exit code 2, no traceback, and nothing touched."""

from __future__ import annotations

import errno
import json
import shutil
from pathlib import Path

import pytest
from spine.conftest import settings

import experiments
from nas.rundir import RunDirectory


def refused(nas, *arguments) -> str:
    done = nas(*arguments, check=False)
    assert done.returncode == 2, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.stderr.count("error: ") == 1
    return done.stderr


def test_a_disk_that_is_full(nas, tmp_path, monkeypatch):
    def full(*_):
        raise OSError(errno.ENOSPC, "No space left on device", "supernet/history.jsonl")

    monkeypatch.setattr("nas.rundir.write_atomically", full)
    message = refused(nas, "train", "digits", "--run-dir", tmp_path, *settings())
    assert "No space left on device: 'supernet/history.jsonl'. Make room, and go on" in message


def snapshot(folder: Path) -> dict[str, int]:
    return {
        str(p.relative_to(folder)): p.stat().st_mtime_ns
        for p in folder.rglob("*")
        if p.is_file() and "mlflow" not in p.name and p.name not in (".lock", "experiment.json")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "missing.py"], "a .py file that exists: got missing.py"),
        (
            ["run", "digits", "--set", "training.epoch=3"],
            "Recipe has no `epoch`. It has accumulate, checkpoint_seconds",
        ),
        (["run", "digits", "--set", "training.epochs=many"], "of type int (now 280): got 'many'"),
        (
            ["run", "digits", "--set", "training.epochs=0"],
            "`training.epochs` must be a whole number, 1 or more: got 0",
        ),
        (["run", "digits", "--set", "epochs"], "NAME=VALUE, but got 'epochs'"),
        (
            ["run", "digits", "--set", "quantization.activations=dynamic", "--set", "quantization.images=8"],
            "got 8, and onnxruntime gets 1. Set quantization.images=1",
        ),
        (
            ["run", "digits", "--set", "quantization.activations=static"],
            "`quantization.activations` must be calibrated or dynamic: got 'static'",
        ),
        (["run", "digits", "--set", "side=32"], "got '32' and no data. Use --set data=PATH --set side=32"),
        (["run", "digits", "--set", "search.searcher=nas.searchers.Best"], "something to import"),
        (["run", "digits", "--device", "toaster"], "It has onnxruntime, torch"),
        (["run", "digits", "--set", "data=none.npz"], "no file or folder none.npz"),
        (["run", "digits", "--set", "task.batch_size=0"], "`task.batch_size` must be 1 or more: got 0"),
        (["run", "digits", "--set", "training.device=foo"], "a device of PyTorch here: 'foo'"),
        (["run", "digits", "--set", "training.learning_rate=NaN"], "must be a number: got nan"),
        (
            ["run", "digits", "--set", "search.searcher=os.path.join"],
            "`search.searcher` must make a searcher",
        ),
        (["run", "digits", "--set", "name=../escaped"], "fit for a directory"),
        (["run", "digits", "--set", "tracking=5"], "5"),
        (["run", "digits", "--address", "127.0.0.1:9"], "'127.0.0.1:9' does not answer"),
        (["run", "digits", "--address", "ray://127.0.0.1:9"], "'ray://127.0.0.1:9' does not answer"),
        (["search", "digits"], "must hold a trained supernet, but has none"),
        (["verify", "digits"], "but has none"),
        (["export", "runs/none"], "must be a run directory"),
        (["dashboard", "runs/none"], "must be a run directory"),
        (["run", "digits", "--set", "tracking=http://127.0.0.1:9"], "127.0.0.1:9"),
        (["run", "digits", "--set", "tracking=sqlite:////proc/none/x.db"], "/proc/none"),
    ],
    ids=lambda v: " ".join(v)[:50] if isinstance(v, list) else "",
)
def test_before_any_work(nas, tmp_path, arguments, message):
    rest = [] if arguments[0] in ("export", "dashboard") else ["--run-dir", tmp_path / "runs"]
    found = refused(nas, *arguments, *rest)
    assert message in found
    assert not list(tmp_path.rglob("model.safetensors"))


def test_an_unknown_experiment_is_answered_with_those_there_are(nas, tmp_path):
    """However many there come to be."""
    found = " ".join(refused(nas, "run", "nothing", "--run-dir", tmp_path / "runs").split())
    listed = found.partition("a .py file or one of ")[2].partition(": got 'nothing'")[0].split(", ")
    folder = Path(experiments.__file__).parent
    assert listed == sorted(p.stem for p in folder.glob("*.py") if p.stem != "__init__")
    assert "digits" in listed


def test_a_window_that_does_not_divide_its_map(nas, tmp_path):
    (tmp_path / "mine.py").write_text(
        "from experiments.digits import experiment as digits\n"
        "from dataclasses import replace\n"
        "from search_spaces import hierarchical\n"
        "from nas.experiment import Experiment\n"
        "def experiment():\n"
        "    e = digits()\n"
        "    space = hierarchical.space(e.task)\n"
        "    block = hierarchical.Block(hierarchical.Window(1, 7), hierarchical.Mlp(1))\n"
        "    merge = hierarchical.PatchMerging()\n"
        "    stages = (hierarchical.Stage(8, (block,)), hierarchical.Stage(16, (block,), merge))\n"
        "    space.check(hierarchical.HierarchicalTransformer(hierarchical.OverlapStem(1), stages, 10, 1))\n"
        "    return e\n"
    )
    found = refused(nas, "run", tmp_path / "mine.py", "--run-dir", tmp_path)
    assert "`stages.0.blocks.0.mixer` must divide the feature map: got size=7 on 8×8" in found
    assert "Use one of 1, 2, 4, 8" in found


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("import nowhere", "in line 1: ModuleNotFoundError: No module named 'nowhere'"),
        ("def experiment(x): pass", "missing 1 required positional argument"),
        ("def experiment(): return 3", "must return an Experiment: got 3"),
        ("def experiment(:", "line 1 is not"),
        ("x = 1", "must define a function `experiment()`"),
    ],
)
def test_an_experiment_file_that_fails_is_named(nas, tmp_path, text, message):
    (tmp_path / "mine.py").write_text(text)
    assert message in refused(nas, "run", tmp_path / "mine.py", "--run-dir", tmp_path)


def test_a_refused_start_leaves_no_settings_behind(nas, tmp_path):
    refused(nas, "train", "digits", "--run-dir", tmp_path, "--set", "tracking=http://127.0.0.1:9")
    nas("train", "digits", "--run-dir", tmp_path, *settings(training__epochs=1))


class TestRunDirectory:
    def test_an_existing_one_is_refused(self, nas, finished_copy):
        before = snapshot(finished_copy)
        assert "Add --resume" in refused(nas, "run", "digits", "--run-dir", finished_copy.parent)
        assert "Add --resume" in refused(nas, "search", "digits", "--run-dir", finished_copy.parent)
        assert "--resume" in refused(nas, "profile", "digits", "--run-dir", finished_copy.parent)
        assert snapshot(finished_copy) == before

    def test_one_begun_with_other_settings_is_refused(self, nas, finished_copy):
        folder = finished_copy.parent
        found = refused(nas, "run", "digits", "--resume", "--run-dir", folder, "--set", "seed=8")
        assert "seed was 7, is 8" in found

    def test_workers_may_change(self, nas, finished_copy):
        folder = finished_copy.parent
        nas("verify", "digits", "--run-dir", folder, "--set", "search.workers=1")

    def test_one_of_another_space_is_refused(self, nas, finished_copy):
        directory = RunDirectory(finished_copy)
        directory.update(space=directory.read()["space"] | {"fingerprint": "0" * 12})
        found = refused(nas, "run", "digits", "--resume", "--run-dir", finished_copy.parent)
        assert "the space is another" in found

    def test_a_changed_experiment_is_refused_or_begun_anew(self, nas, finished_copy):
        directory = RunDirectory(finished_copy)
        directory.update(source=directory.read()["source"] | {"sha256": "0" * 64})
        folder = finished_copy.parent
        found = refused(nas, "run", "digits", "--resume", "--run-dir", folder)
        assert "the experiment's file has changed" in found
        small = settings(training__epochs=1)
        nas("train", "digits", "--resume", "--if-changed", "new", "--run-dir", folder, *small)
        assert (folder / "digits-2" / "supernet" / "model.safetensors").exists()

    def test_the_recipe_of_trained_weights_stays(self, nas, finished_copy):
        """What else would "trained by the same recipe" mean?"""
        folder, go_on = finished_copy.parent, ("--resume", "--if-changed", "continue")
        found = refused(nas, "train", "digits", "--run-dir", folder, *go_on, "--set", "training.epochs=9")
        assert (
            "with the recipe of its supernet, but training.epochs was 2, is 9. Add --if-changed new" in found
        )
        found = refused(nas, "train", "digits", "--run-dir", folder, *go_on, "--set", "task.batch_size=9")
        assert "but task.batches was 16, is 110; task.batch_size was 64, is 9." in found
        nas("train", "digits", "--run-dir", folder, *go_on, "--set", "training.keep=9")
        nas("train", "digits", "--run-dir", folder, "--resume", "--set", "task.eval_batch_size=9")

    def test_a_changed_file_does_not_block_what_comes_after(self, nas, finished_copy):
        directory = RunDirectory(finished_copy)
        directory.update(source=directory.read()["source"] | {"sha256": "0" * 64})
        one = directory.read_front()[0]["id"]
        export = ("export", finished_copy, "--id", one, "--format", "safetensors")
        assert "Undo that, or add --if-changed continue" in refused(nas, *export)
        assert "must be refuse or continue" in refused(nas, *export, "--if-changed", "new")
        nas(*export, "--if-changed", "continue")

    def test_one_in_use_is_refused(self, nas, finished_copy):
        with RunDirectory(finished_copy).lock():
            found = refused(nas, "run", "digits", "--resume", "--run-dir", finished_copy.parent)
        assert "one driver at a time" in found

    @pytest.mark.parametrize("name", [".lock", ".experiment.json.unfinished", "exports"])
    def test_links_in_it_are_refused(self, nas, finished_copy, tmp_path, name):
        """Or what others put there would be written to."""
        (tmp_path / "precious").write_text("mine")
        shutil.rmtree(finished_copy / "exports", ignore_errors=True)
        (finished_copy / name).unlink(missing_ok=True)
        (finished_copy / name).symlink_to(tmp_path / ("precious" if name != "exports" else ""))
        found = refused(nas, "export", finished_copy, "--format", "safetensors")
        assert f"{name} is a link to {tmp_path}" in found
        assert sorted(p.name for p in tmp_path.iterdir() if p.is_file()) == ["precious"]
        assert (tmp_path / "precious").read_text() == "mine"

    def test_a_damaged_file_is_named(self, nas, finished_copy):
        (finished_copy / "experiment.json").write_text('{"name": ')
        found = refused(nas, "run", "digits", "--resume", "--run-dir", finished_copy.parent)
        assert "experiment.json must be JSON" in found

    def test_a_corrupt_log_line_is_named(self, nas, finished_copy):
        path = finished_copy / "trials.jsonl"
        kept = path.read_text().splitlines(keepends=True)
        path.write_text("".join([*kept[:4], "{broken}\n", *kept[5:]]))
        found = refused(nas, "run", "digits", "--resume", "--run-dir", finished_copy.parent)
        assert "trials.jsonl:5" in found

    def test_weights_of_another_training_are_refused(self, nas, finished_copy):
        from nas.training import load_tensors, save_tensors

        path = finished_copy / "supernet" / "model.safetensors"
        tensors, metadata = load_tensors(path)
        save_tensors(path, {n: t + 1 for n, t in tensors.items()}, metadata)
        found = refused(nas, "run", "digits", "--resume", "--run-dir", finished_copy.parent)
        assert "must be of the weights" in found

    def test_a_log_that_another_search_wrote_is_refused(self, nas, finished_copy):
        path = finished_copy / "trials.jsonl"
        trials = [json.loads(line) for line in path.read_text().splitlines()]
        other = next(t for t in trials if t["search"].startswith("random"))
        i = next(i for i, t in enumerate(trials) if t["search"].startswith("nsga2") and t["number"] == 3)
        trials[i] |= {k: other[k] for k in ("id", "architecture", "genes")}
        path.write_text("".join(json.dumps(t) + "\n" for t in trials))
        found = refused(nas, "run", "digits", "--resume", "--run-dir", finished_copy.parent)
        assert "trial 3" in found


def status_in_mlflow(run: Path) -> str | None:
    """Of the MLflow run beside a copied run directory, once there is one."""
    from mlflow import MlflowClient

    stored = RunDirectory(run).read()["tracking"]
    if str(run.parent) not in stored["uri"]:
        return None
    return str(MlflowClient(tracking_uri=stored["uri"]).get_run(stored["run_id"]).info.status)


class TestExport:
    def test_paths_out_of_the_directory_are_refused(self, nas, finished_copy):
        front = finished_copy / "front.json"
        entries = json.loads(front.read_text())
        inside = entries[0]["id"]
        for name in ("../../../outside", "0123456789ag", None):
            entries[0]["id"] = name
            front.write_text(json.dumps(entries))
            assert "and not 12 hex digits" in refused(nas, "export", finished_copy)
        for entry in entries:
            entry["id"] = "0123456789ab"
        front.write_text(json.dumps(entries))
        assert "must name architectures by their own id: got 0123456789ab" in refused(
            nas, "export", finished_copy
        )
        assert inside
        assert not (finished_copy / "exports").exists() or not list((finished_copy / "exports").iterdir())

    @pytest.mark.parametrize("command", ["export", "finetune"])
    def test_points_of_other_weights_are_refused(self, nas, finished_copy, command):
        front = finished_copy / "front.json"
        entries = json.loads(front.read_text())
        front.write_text(json.dumps([entry | {"weights": "0123456789ab"} for entry in entries]))
        assert "but was verified with 0123456789ab" in refused(nas, command, finished_copy)
        assert not list(finished_copy.glob("finetuned/*"))

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["--where", "energy<=3"], "it has accuracy, latency_ms.onnxruntime, parameters, size_bytes"),
            (["--where", "latency_ms=3"], "NAME<=NUMBER"),
            (["--where", "latency_ms<=0"], "latency_ms.onnxruntime goes from"),
            (["--best", "beauty"], "it has accuracy"),
            (["--device", "pi4"], "verified front of `pi4`"),
            (["--format", "onnx", "tflite"], "safetensors, onnx, onnx-portable"),
            (["onnx"], "takes one run directory"),
            (["--id", "000000000000"], "An id must be that of one of"),
            (["--id", "000000000000", "--best", "accuracy"], "names one point"),
        ],
    )
    def test_is_refused_with_what_there_is(self, nas, finished_copy, arguments, message):
        assert message in refused(nas, "export", finished_copy, *arguments)
        assert status_in_mlflow(finished_copy) in ("FINISHED", None)
        assert not list(finished_copy.glob("exports/*/*"))

    def test_from_inside_the_run_directory(self, nas, finished_copy, monkeypatch):
        monkeypatch.chdir(finished_copy)
        nas("export", ".", "--format", "safetensors")
        assert not list(finished_copy.glob("mlflow*"))

    def test_before_there_is_a_front(self, nas, trained, tmp_path):
        run = Path(shutil.copytree(trained / "digits", tmp_path / "digits"))
        assert "`nas verify`" in refused(nas, "export", run)

    def test_a_trial_that_was_not_verified_is_verified_first(self, nas, finished_copy):
        entries = json.loads((finished_copy / "front.json").read_text())
        known = {e["id"] for e in entries}
        trials = [json.loads(line) for line in (finished_copy / "trials.jsonl").read_text().splitlines()]
        chosen = next(t["id"] for t in trials if t["id"] not in known)
        assert chosen in nas("export", finished_copy, "--id", chosen, "--format", "onnx").stdout
        after = json.loads((finished_copy / "front.json").read_text())
        assert {e["id"] for e in after} == known | {chosen}
