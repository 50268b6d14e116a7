"""A device whose latencies are known, so that no test depends on this machine."""

from __future__ import annotations

import pytest
from devices.fakes import Host

from nas.devices import profiling


@pytest.fixture
def host(monkeypatch: pytest.MonkeyPatch) -> Host:
    """A fake host in place of this machine."""
    host = Host()

    class Lock:
        def __enter__(self) -> None:
            host.locked = True

        def __exit__(self, *_: object) -> None:
            host.locked = False

    monkeypatch.setattr(profiling, "round_robin", host.round_robin)
    monkeypatch.setattr(profiling, "timing_lock", Lock)
    return host
