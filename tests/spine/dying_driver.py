"""A driver that is killed in the middle of an append: python dying_driver.py LINE nas-arguments…"""

from __future__ import annotations

import os
import signal
import sys

from nas import log
from nas.cli import main

die_at = int(sys.argv[1])
written = 0
whole = log.TrialLog.append


def append(self: log.TrialLog, trial: object) -> None:
    global written
    whole(self, trial)
    written += 1
    if written == die_at:  # as if the last write had stopped half-way
        size = self.path.stat().st_size
        last = len(self.path.read_bytes().splitlines(keepends=True)[-1])
        os.truncate(self.path, size - last // 2)
        os.kill(os.getpid(), signal.SIGKILL)


log.TrialLog.append = append  # type: ignore[method-assign]
main(sys.argv[2:])
