"""Subnets trained alone, by the command line: resumed, compared, kept as raw predictions."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from spine.conftest import settings

from experiments.benchmarks import results as benchmark_results
from experiments.benchmarks import trust

SMALL = ("--bins", 2, "--subnets", 2, "--seeds", 1, "--workers", 0)


@pytest.fixture
def run(trained, tmp_path):
    shutil.copytree(trained / "digits", tmp_path / "digits")
    return tmp_path / "digits"


def test_subnets_are_trained_once_and_compared(nas, run, tmp_path, monkeypatch):
    first = nas("assess", run, *SMALL)
    assert "4 subnets, 1 trainings each; 4 are left to do" in first.stdout
    results = json.loads((run / "assessment.json").read_text())
    assert len(results["subnets"]) == 4
    assert {s["bin"] for s in results["subnets"]} == {0, 1}
    assert all(len(s["alone"]) == 1 for s in results["subnets"])
    for b in (0, 1):
        low, high = (f(s["mmacs"] for s in results["subnets"] if s["bin"] == b) for f in (min, max))
        assert high / low < 1.11
    raw = sorted((run / "assessment" / results["recipe"]).glob("*.npz"))
    assert len(raw) == 10  # with what the largest and the smallest inherit
    assert results["ends"]["smallest"]["inherited"] < results["ends"]["largest"]["inherited"]
    subnet = results["subnets"][0]
    (alone,) = (p for p in raw if p.name == f"{subnet['id']}-0.npz")
    data = np.load(alone)
    assert 100 * np.unpackbits(data["right"])[: int(data["n"])].mean() == pytest.approx(subnet["alone"][0])
    assert (run / "assessment.png").stat().st_size > 1000
    assert {"tau_within_cost", "median_gap", "top3_regret"} <= set(results["figures"])

    alone.unlink()
    again = nas("assess", run, *SMALL)
    assert "; 1 are left to do" in again.stdout
    assert json.loads((run / "assessment.json").read_text())["subnets"] == results["subnets"]


def test_an_assessment_is_kept_for_good_with_a_supernet_that_lacks_an_option(nas, run, tmp_path, monkeypatch):
    nas("assess", run, *SMALL, "--bins", 3)
    results = json.loads((run / "assessment.json").read_text())
    withheld = ("--set", 'training.withheld=[["heads", [4]]]', "--run-dir", tmp_path / "withheld")
    nas("train", "digits", *settings(), *withheld)
    others = str(tmp_path / "withheld" / "digits"), str(run)
    begin = f"<!-- {trust.COMMAND} -->"
    (tmp_path / "page.md").write_text(f"{begin}\n<!-- end -->\n")
    for module, name, path in (
        (trust, "FOLDER", tmp_path),
        (trust, "RAW", tmp_path / "raw.npz"),
        (trust, "PAGE", tmp_path / "page.md"),
        (benchmark_results, "FOLDER", tmp_path),
    ):
        monkeypatch.setattr(module, name, path)
    trust.main(str(run), *others)
    kept = json.loads((tmp_path / "cifar10_small.json").read_text())
    assert kept["figures"] == results["figures"]
    assert kept["largest_accuracy"] == pytest.approx(results["ends"]["largest"]["inherited"])
    found = trust.read()
    has = ['"heads": 4,' in json.dumps(s["architecture"]) for s in results["subnets"]]
    assert has == (~found.withheld.seen).tolist()
    assert 0 < sum(has) < len(has)
    assert "… and from the others" in (tmp_path / "page.md").read_text()
    assert kept["longer"] == results["figures"]
    recipes = kept["settings"]["training"]
    assert [r["withheld"] for r in recipes.values()] == [[], [["heads", [4]]], []]
    with pytest.raises(SystemExit, match="must have the same recipe"):
        trust.require_alike(recipes | {"longer": recipes["longer"] | {"weight_decay": 0.5}})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--bins", 0), "`--bins` must be 1 or more: got 0"),
        (("--subnets", 1), "`--subnets` must be 2 or more: got 1"),
        (("--width", 1.5), "`--width` must be a share between 0 and 1"),
        (("--unseen", 1), "`--unseen` must be 0, or 2 or more"),
        (("--unseen", 2), "`--unseen` must have subnets that the training leaves out"),
    ],
)
def test_numbers_that_are_none(nas, run, options, message):
    done = nas("assess", run, *options, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (run / "assessment").exists()
