"""Ray on this machine: whoever imported it, for this machine alone, and with nothing left where it fails."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import pytest

from nas.cluster import local
from nas.errors import RunError

IMPORTED_BEFORE = """
import ray
from ray._private.process_watcher import psutil

from nas.cluster.local import connect

stop = connect(1, None)
assert ray.get(ray.remote(lambda: 1).remote()) == 1
me = psutil.Process()
listening = {
    connection.laddr.ip.removeprefix("::ffff:")
    for process in [me, *me.children(recursive=True)]
    for connection in process.net_connections("inet")
    if connection.status == psutil.CONN_LISTEN
}
assert listening and listening <= {"127.0.0.1", "::1"}, listening
stop()
"""


def test_ray_may_have_been_imported_before(tmp_path, monkeypatch):
    """As by an experiment's own file: Ray reads its environment on import."""
    for name in local.LOCAL_ENVIRONMENT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # where Ray would keep a token, for all that comes after
    done = subprocess.run([sys.executable, "-c", IMPORTED_BEFORE], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-2000:]
    assert not (tmp_path / ".ray").exists()


def test_ray_that_does_not_start_is_a_message(tmp_path, monkeypatch):
    import ray

    def init(**_):
        raise Exception("The current node timed out during startup.\nThis could happen because …")

    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    with pytest.raises(RunError, match=r"timed out during startup\. A busy one may") as raised:
        local.connect(1, None)
    assert "\n" not in str(raised.value)
    assert not list(Path(tmp_path).iterdir())
