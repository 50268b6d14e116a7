"""`nas show`: an architecture of a run as text and picture, and what differs between two."""

from __future__ import annotations

import json
import xml.etree.ElementTree as ET

import pytest

from nas.difference import difference
from nas.outline import outline


@pytest.fixture
def trials(run_dir):
    return [json.loads(line) for line in (run_dir / "trials.jsonl").read_text().splitlines()]


def test_prints_the_outline(nas, run_dir, trials):
    first = trials[0]
    for name in (first["id"], first["id"][:8]):
        assert nas("show", run_dir, name).stdout == f"{first['id']}\n{outline(first['architecture'])}\n"


def test_finds_finalists_whose_trials_are_gone(nas, run_dir):
    entry = json.loads((run_dir / "front.json").read_text())[0]
    (run_dir / "trials.jsonl").unlink()
    assert outline(entry["architecture"]) in nas("show", run_dir, entry["id"]).stdout


def test_writes_the_picture(nas, run_dir, trials, tmp_path):
    picture = tmp_path / "a.svg"
    assert f"Picture: {picture}" in nas("show", run_dir, trials[0]["id"], "--svg", picture).stdout
    assert ET.parse(picture).getroot().tag == "{http://www.w3.org/2000/svg}svg"


def test_of_two_prints_what_differs(nas, run_dir, trials):
    a, b = trials[:2]
    changes = difference(a["architecture"], b["architecture"])
    assert nas("show", run_dir, a["id"], b["id"]).stdout == f"{a['id']} → {b['id']}\n{changes}\n"
    assert "no difference" in nas("show", run_dir, a["id"], a["id"]).stdout


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["none"], "got 'none'. trials.jsonl and front.json there hold them"),
        ([""], "must mean one architecture: 300 in"),
        (["ID", "none"], "got 'none'"),
        (["ID", "ID", "--svg", "a.svg"], "Leave out one of the two"),
        (["ID", "--svg", "/proc/none/a.svg"], "`--svg` must be a file that can be written"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_refuses_what_it_cannot_show(nas, run_dir, trials, arguments, message):
    done = nas("show", run_dir, *[trials[0]["id"] if a == "ID" else a for a in arguments], check=False)
    assert (done.returncode, done.stderr.count("error: ")) == (2, 1)
    assert message in done.stderr


def test_names_the_ids_that_begin_alike(nas, run_dir, trials):
    beginnings = [t["id"][:2] for t in trials]
    double = next(b for b in beginnings if beginnings.count(b) == 2)
    found = nas("show", run_dir, double, check=False).stderr
    assert all(t["id"] in found for t in trials if t["id"].startswith(double))
    assert "Write more of it" in found


def test_a_missing_run_is_named(nas, tmp_path):
    assert "A run directory must exist" in nas("show", tmp_path / "none", "ab", check=False).stderr
