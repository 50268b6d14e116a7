"""Starts command lines that may be killed, at once: what they import is imported here, and each is a fork.

Takes lines of JSON. {"nas": arguments, "dies_in": n} is answered with a process id; that process is killed
in the middle of its n-th append to the log, if n is given. {"poll": id} is answered with its exit status, or
null.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import traceback
from typing import Any

import nas.phases  # noqa: F401  PyTorch, MLflow and what else takes seconds
from nas import log
from nas.cli import main


def answer(request: dict[str, Any]) -> int | None:
    if "poll" in request:
        process, status = os.waitpid(request["poll"], os.WNOHANG)
        return os.waitstatus_to_exitcode(status) if process else None
    process = os.fork()
    if process == 0:
        drive(request["nas"], request["dies_in"])
    return process


def drive(arguments: list[str], dies_in: int | None) -> None:
    nothing = os.open(os.devnull, os.O_RDWR)
    os.dup2(nothing, 0)
    os.dup2(nothing, 1)
    if dies_in is not None:
        log.TrialLog.append = half_written(dies_in)  # type: ignore[method-assign]
    try:
        main(arguments)
    except SystemExit as end:
        os._exit(int(end.code or 0))
    except BaseException:
        traceback.print_exc()
    os._exit(1)


def half_written(n: int) -> Any:
    """`TrialLog.append` that ends in its n-th call, as if the write had stopped half-way."""
    whole, written = log.TrialLog.append, 0

    def append(self: log.TrialLog, trial: Any) -> None:
        nonlocal written
        whole(self, trial)
        written += 1
        if written == n:
            size = self.path.stat().st_size
            last = len(self.path.read_bytes().splitlines(keepends=True)[-1])
            os.truncate(self.path, size - last // 2)
            os.kill(os.getpid(), signal.SIGKILL)

    return append


for line in sys.stdin:
    print(json.dumps(answer(json.loads(line))), flush=True)
