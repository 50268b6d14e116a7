"""A run that skips more than it may fails, and says so."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

CASES = {
    "nothing skipped": ("def test(): pass", True),
    "an allowed skip": (
        "import pytest\n@pytest.mark.skipif(True, reason='needs Chromium')\ndef test(): 1 / 0",
        True,
    ),
    "more than allowed": (
        "import pytest\n@pytest.mark.parametrize('i', (1, 2))\n"
        "def test(i): pytest.skip('needs Chromium')\ndef test_other(): pass",
        False,
    ),
    "another reason": ("import pytest\ndef test(): pytest.skip('too slow')\ndef test_other(): pass", False),
    "a whole file": ("import pytest\npytest.importorskip('no_such_package')\ndef test(): pass", False),
    "a mark": ("import pytest\npytestmark = pytest.mark.skip\ndef test(): pass", False),
}


@pytest.mark.parametrize(("source", "passes"), CASES.values(), ids=CASES)
def test_skips_are_capped(source, passes, tmp_path):
    """In a tree of its own, with the conftest of this one."""
    shutil.copy(Path(__file__).parent / "conftest.py", tmp_path)
    (tmp_path / "test_it.py").write_text(source)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "--rootdir", ".", "."]
    environment = os.environ | {"PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}  # half of the time
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False)
    assert (done.returncode == 0) == passes, done.stdout + done.stderr
    assert ("Skipped tests must be among those" in done.stdout) == (not passes)
