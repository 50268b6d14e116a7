"""A recipe is found from the command line, and used."""

from __future__ import annotations

import importlib
import json

from mlflow import MlflowClient
from spine.conftest import least

from nas.cluster.tuning import Tried
from nas.phases.tune import recipe_settings


def test_a_recipe_is_tuned_and_used(nas, tmp_path):
    folder = ("--run-dir", tmp_path)
    given = ("--set", "task.batch_size=96", "--set", "seed=3")
    tuning = ("tune", "digits", *folder, "--epochs", 1, "--workers", 1, *given)
    done = nas(*tuning, "--samples", 1)
    found = json.loads((tmp_path / "digits-tune" / "recipe.json").read_text())
    assert f"nas run digits --recipe --run-dir {tmp_path}" in done.stdout  # what was given is in the recipe
    assert found["trials"][0]["settings"] == found["default"] == found["settings"]
    assert found["trials"][0]["core_seconds"] > 0
    nas(*tuning, "--samples", 2)
    assert len(json.loads((tmp_path / "digits-tune" / "recipe.json").read_text())["trials"]) == 2
    client = MlflowClient(f"sqlite:///{tmp_path / 'mlflow.db'}")
    tried = client.search_runs([e.experiment_id for e in client.search_experiments()])
    rules = {run.info.run_name: run.data.params.get("training.subnets") for run in tried}
    assert rules["configuration 0"] == "nas.training.SinglePath"
    assert rules["configuration 1"].startswith("nas.training.")

    path = tmp_path / "digits-tune" / "recipe.json"
    path.write_text(json.dumps(found | {"settings": {"training.weight_decay": 0.0123}}))
    nas("train", "digits", "--recipe", *folder, *least())
    stored = json.loads((tmp_path / "digits" / "experiment.json").read_text())
    assert stored["settings"]["training"]["weight_decay"] == 0.0123
    assert stored["settings"]["task"]["batch_size"] == 96  # it was tuned for that
    assert stored["settings"]["seed"] == 7  # of `least`: what is given counts more
    nas("train", "digits", "--resume", *folder)  # it is remembered


def test_the_command_that_is_told_finds_the_recipe(nas, tmp_path, monkeypatch):
    phase = importlib.import_module("nas.phases.tune")
    tried = Tried(0, {"training.learning_rate": 0.01, "training.weight_decay": 0.01}, 50.0, 1)
    monkeypatch.setattr(phase, "tune", lambda *_, **__: [tried])
    monkeypatch.setattr(phase, "_costs", lambda *_: {})
    done = nas("tune", "digits", "--run-dir", tmp_path, "--samples", 1, "--set", "name=mine")
    command = f"nas run digits --recipe --run-dir {tmp_path} --set name=mine"
    assert command in " ".join(done.stdout.split())
    assert recipe_settings(tmp_path, "mine")["training.learning_rate"] == "0.01"
