"""A run's front, kept with the predictions from which its accuracies follow."""

from __future__ import annotations

import json

import pytest

from experiments.benchmarks import results, verified


def test_accuracies_follow_from_raw_predictions(finished, tmp_path, monkeypatch):
    monkeypatch.setattr(results, "FOLDER", tmp_path)
    verified.main(str(finished))
    found = json.loads((tmp_path / "digits.json").read_text())
    front = [e for e in json.loads((finished / "front.json").read_text()) if e["front"]]
    assert found["accuracy on test, %"] == {
        f"{e['id']} {e['device']}": pytest.approx(e["test"]["accuracy"], abs=1e-3) for e in front
    }
    assert found["smallest_accuracy"] < found["largest_accuracy"]
    assert [e["id"] for e in found["front"]] == [e["id"] for e in front]
    again = verified.evaluated("digits")
    assert again == {name: found[name] for name in again}
    assert (tmp_path / "digits.png").stat().st_size > 1000
