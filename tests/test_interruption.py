"""Every command that writes a folder is interrupted at some of its file operations.

`python tests/interruption.py --all` interrupts it at every one.
"""

import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("interruption.py")


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="the paths of open files are read from /proc")
@pytest.mark.parametrize(
    "arguments", [(), ("--python", "train-tokenizer")], ids=["every command", "without a compiler"]
)
def test_an_interruption_changes_nothing(tmp_path, arguments):
    done = subprocess.run([sys.executable, SCRIPT, "--work", tmp_path, *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "\n0 failures" in done.stdout
