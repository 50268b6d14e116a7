"""A Ray cluster of two nodes on this machine gives the trials of the serial run."""

from __future__ import annotations

import json
import os
import secrets
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from spine.conftest import ENVIRONMENT, command, copied

SETTINGS = ["--set", "search.trials=40", "--set", "search.baseline=false", "--if-changed", "continue"]

# Starts two nodes, says where, and ends them when its input does. The head, beside which the driver runs,
# has no CPUs: all evaluations go to the other node.
CLUSTER = """
import sys
from ray.cluster_utils import Cluster
cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False})
cluster.add_node(num_cpus=2)
cluster.wait_for_nodes(timeout=60)
print("ADDRESS", cluster.address, flush=True)
sys.stdin.read()
cluster.shutdown()
"""


@pytest.fixture
def cluster(tmp_path_factory) -> Iterator[tuple[str, dict[str, str]]]:
    """Address of a cluster, and the environment that its clients need."""
    environment = ENVIRONMENT | {
        "RAY_AUTH_MODE": "token",
        "RAY_AUTH_TOKEN": secrets.token_hex(32),
        "RAY_USAGE_STATS_ENABLED": "0",
        "PYTHONPATH": os.pathsep.join(sys.path),
    }
    process = subprocess.Popen(
        [sys.executable, "-W", "ignore", "-c", CLUSTER],
        env=environment,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    assert process.stdin is not None
    assert process.stdout is not None
    addresses = (line.split()[1] for line in process.stdout if line.startswith("ADDRESS"))
    yield next(addresses), environment
    process.stdin.close()
    process.wait(timeout=60)
    process.stdout.close()


def told(run: Path) -> list[tuple]:
    trials = [json.loads(line) for line in (run / "trials.jsonl").read_text().splitlines()]
    return [(t["search"], t["number"], t["id"], t["objectives"], t["state"]) for t in trials]


def cpus(address: str, environment: dict[str, str]) -> list[float]:
    """CPUs of the nodes of a cluster."""
    code = f"""
import ray
ray.init(address={address!r}, log_to_driver=False, logging_level="error")
print(*sorted(n["Resources"].get("CPU", 0) for n in ray.nodes() if n["Alive"]))
"""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    return [float(word) for word in done.stdout.split()]


def test_two_nodes_give_the_trials_of_the_serial_run(nas, trained, cluster, tmp_path):
    address, environment = cluster
    assert cpus(address, environment) == [0, 2]
    serial, clustered = (copied(trained, tmp_path / name) for name in ("serial", "clustered"))
    nas("run", "digits", "--resume", "--run-dir", serial, *SETTINGS)
    done = subprocess.run(
        command("run", "digits", "--resume", "--run-dir", clustered, "--address", address, *SETTINGS),
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert told(clustered / "digits") == told(serial / "digits")
