"""The log: what is written is read, and a process may die at any byte."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nas.errors import RunError
from nas.log import TrialLog, read_raw
from nas.space import Space, oneof
from nas.trial import Trial


@dataclass(frozen=True)
class Net:
    width: int
    depth: int = 1


SPACE = Space(Net(oneof(8, 16), oneof(1, 2)))


def trial(number: int = 0, **changes: Any) -> Trial:
    net = Net(16, 2)
    complete = Trial(
        search="nsga2.pi4",
        number=number,
        id=SPACE.id(net),
        architecture=net,
        genes=(1, 1),
        rung=0,
        objectives={"accuracy": 97.1, "latency_ms.pi4": 0.1 + 0.2},
        state="complete",
        n=270,
        std_error=1.02,
        error=None,
        evaluated=True,
        weights="0123456789ab",
        space=SPACE.fingerprint,
    )
    return dataclasses.replace(complete, **changes)


@pytest.fixture
def log(tmp_path: Path) -> TrialLog:
    return TrialLog(tmp_path / "trials.jsonl", SPACE)


def test_trials_come_back_as_they_were(log: TrialLog) -> None:
    trials = [
        trial(0),
        trial(1, objectives={}, state="failed", error="ValueError: größer\nals gedacht"),
        trial(2, objectives={}, state="pruned", n=None, std_error=None, rung=1),
        trial(3, evaluated=False),
    ]
    for t in trials:
        log.append(t)
    assert log.read() == trials
    assert read_raw(log.path)[0]["schema"] == 1
    assert read_raw(log.path)[0]["architecture"] == {"type": "Net", "width": 16, "depth": 2}


def test_a_missing_log_is_empty(log: TrialLog) -> None:
    assert log.read() == []
    assert read_raw(log.path) == []


@pytest.mark.parametrize("kept", [0, 1])
def test_every_cut_of_the_last_line_is_survived(
    log: TrialLog, kept: int, caplog: pytest.LogCaptureFixture
) -> None:
    trials = [trial(number) for number in range(kept + 1)]
    for t in trials:
        log.append(t)
    whole = log.path.read_bytes()
    start = whole[:-1].rfind(b"\n") + 1
    for cut in range(start + 1, len(whole), 17):
        log.path.write_bytes(whole[:cut])
        caplog.clear()
        assert log.read() == trials[:kept]
        assert "unfinished line" in caplog.text
        assert len(read_raw(log.path)) == kept
        log.append(trials[-1])
        assert log.path.read_bytes() == whole


def test_a_whole_log_gives_no_notice(log: TrialLog, caplog: pytest.LogCaptureFixture) -> None:
    log.append(trial())
    with caplog.at_level(logging.DEBUG):
        log.read()
    assert not caplog.records


def _without(key: str) -> Callable[[dict[str, Any]], dict[str, Any]]:
    return lambda record: {k: v for k, v in record.items() if k != key}


BAD_LINES: dict[str, tuple[Callable[[dict[str, Any]], Any], str]] = {
    "an older schema": (lambda r: r | {"schema": 0}, "schema 0"),
    "another space": (lambda r: r | {"space": "ffffffffffff"}, "space ffffffffffff"),
    "a missing field": (_without("genes"), "lacks 'genes'"),
    "another architecture": (lambda r: r | {"id": "ffffffffffff"}, "id"),
    "an unknown class": (lambda r: r | {"architecture": {"type": "os.system"}}, "os.system"),
    "complete without objectives": (lambda r: r | {"objectives": {}}, "Complete trials alone"),
    "an unknown state": (lambda r: r | {"state": "running"}, "`state` must be one of"),
    "no object": (lambda r: [1], r"holds \[1\]"),
}


@pytest.mark.parametrize(("spoil", "why"), BAD_LINES.values(), ids=BAD_LINES.keys())
def test_a_bad_line_is_an_error_with_file_and_line(
    log: TrialLog, spoil: Callable[[dict[str, Any]], Any], why: str
) -> None:
    log.append(trial(0))
    bad = json.dumps(spoil(read_raw(log.path)[0]))
    with log.path.open("a") as file:
        file.write(bad + "\n")
    with pytest.raises(RunError, match=rf"trials\.jsonl:2 .*{why}"):
        log.read()


def test_a_broken_line_in_the_middle_is_an_error(log: TrialLog) -> None:
    log.append(trial(0))
    with log.path.open("a") as file:
        file.write('{"search": \n')
    log.append(trial(1))
    for read in (log.read, lambda: read_raw(log.path)):
        with pytest.raises(RunError, match=r"trials\.jsonl:2 "):
            read()


def test_two_writers_do_not_mix_lines(log: TrialLog) -> None:
    other = TrialLog(log.path, SPACE)
    for number in range(10):
        (log, other)[number % 2].append(trial(number))
    assert [t.number for t in log.read()] == list(range(10))


def test_no_number_is_written_that_json_lacks(log: TrialLog) -> None:
    with pytest.raises(ValueError, match="JSON"):
        log.append(trial(objectives={"accuracy": float("nan")}))
    assert log.read() == []
