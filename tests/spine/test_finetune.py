"""Finalists trained on: better weights are handed out, the front follows, nothing is done twice."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors.torch import load_file

from nas.reading import read_run

SMALL = ("--epochs", 3, "--patience", 3, "--learning-rate", 1.0, "--workers", 1)


def front(run):
    return json.loads((run / "front.json").read_text())


def latency(entry) -> float:
    return entry["objectives"]["latency_ms.onnxruntime"]["measured"]


def test_points_are_trained_on_and_handed_out(nas, finished_copy):
    run = finished_copy
    entries = sorted((e for e in front(run) if e["front"]), key=latency)
    limit = latency(entries[1])
    before = {e["id"]: e for e in entries if latency(e) <= limit}
    first = nas("finetune", run, *SMALL, "--scratch", "--where", f"latency_ms<={limit!r}")
    assert f"{len(before)} subnets; {2 * len(before)} trainings are left to do" in first.stdout
    records = json.loads((run / "finetuned.json").read_text())
    assert {(r["id"], r["kind"]) for r in records} == {
        (i, k) for i in before for k in ("fine-tuned", "from scratch")
    }
    assert all(r["core_seconds"] > 0 for r in records)
    assert not any(r["deployed"] for r in records if r["kind"] == "from scratch")
    after = {e["id"]: e for e in front(run)}
    deployed = {r["id"]: r for r in records if r["deployed"]}
    assert deployed  # after 2 epochs of a supernet, three more help
    for name, record in deployed.items():
        entry = after[name]
        assert record["search"] > before[name]["objectives"]["accuracy"]["predicted"]
        assert entry["objectives"]["accuracy"]["measured"] == record["select"]["value"]
        assert entry["objectives"]["accuracy"]["predicted"] == record["search"]
        assert entry["test"]["accuracy"] == record["test"]["value"]
        assert entry["inherited"]["select"] == before[name]["objectives"]["accuracy"]
        assert entry["inherited"]["test"] == before[name]["test"]
    for name in before.keys() - deployed.keys():
        assert after[name]["objectives"]["accuracy"] == before[name]["objectives"]["accuracy"]
    report, took = (run / "report.html").read_text(), read_run(run).training_core_seconds
    assert "Trained on" in report
    assert f"supernet's training, {took:,.0f} core-seconds, once for all" in report
    assert f"inherited: the supernet's training took {took:,.0f} core-seconds" in first.stdout

    name = next(iter(deployed))
    nas("export", run, "--id", name, "--format", "safetensors")
    exported = load_file(run / "exports" / name / "model.safetensors")
    trained = load_file(run / "finetuned" / deployed[name]["file"])
    assert "trained on as a plain model, 3 epochs" in (run / "exports" / name / "card.md").read_text()
    norm = next(n for n in exported if n.endswith("head.norm.weight"))  # never rounded
    assert torch.equal(exported[norm], trained[norm])

    again = nas("finetune", run, *SMALL, "--where", f"latency_ms<={limit!r}")
    assert "; 0 trainings are left to do" in again.stdout
    assert {e["id"]: e["objectives"] for e in front(run)} == {i: e["objectives"] for i, e in after.items()}

    # What is verified anew, such as for another device, is told what was trained on.
    (run / "front.json").write_text(json.dumps([before.get(i, e) for i, e in after.items()]))
    nas("verify", "digits", "--run-dir", run.parent)
    verified = {e["id"]: e for e in front(run)}
    for name in deployed:
        assert verified[name]["trained"] == after[name]["trained"]
        assert verified[name]["objectives"]["accuracy"] == after[name]["objectives"]["accuracy"]

    worse = (*SMALL[:4], "--learning-rate", 1e-9, *SMALL[6:])  # moves nothing
    other = nas("finetune", run, *worse, "--where", f"latency_ms<={limit!r}")
    assert f"{len(before)} trainings are left to do ({len(before)} of them again, with" in other.stdout
    again = {
        r["id"]: r for r in json.loads((run / "finetuned.json").read_text()) if r["kind"] == "fine-tuned"
    }
    for entry in (e for e in front(run) if e["id"] in before):
        expected = before[entry["id"]]["objectives"]["accuracy"]["measured"]
        if again[entry["id"]]["deployed"]:
            expected = again[entry["id"]]["select"]["value"]
        assert entry["objectives"]["accuracy"]["measured"] == expected
    kept = {r["file"] for r in json.loads((run / "finetuned.json").read_text())}
    assert {p.name for p in (run / "finetuned").iterdir()} == kept


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (("--epochs", 0), "`--epochs` must be 1 or more: got 0"),
        (("--patience", 0), "`--patience` must be 1 or more"),
        (("--learning-rate", 0), "`--learning-rate` must be a share of the supernet's: got 0"),
        (("--external", 2), "`--external` must be a share from 0 to 1: got 2"),
        (("--where", "latency_ms<=0"), "Some point must meet latency_ms<=0, but"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(nas, finished, options, message):
    done = nas("finetune", finished, *options, check=False)
    assert done.returncode == 2
    assert message in done.stderr
    assert not (finished / "finetuned").exists()
