"""A lock on a folder. tests/test_interruption.py tests commands that run at the same time."""

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from hf_gpt import locks
from hf_gpt.locks import LOCK, command_line, locked


def test_the_command_is_one_short_line(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["/bin/hf-gpt", "tokenize", "a book.txt", *["b\n.txt"] * 500])
    assert command_line().startswith("hf-gpt tokenize 'a book.txt' ")
    assert len(command_line()) <= 200
    assert "\n" not in command_line()


def test_a_locked_folder_names_its_process(tmp_path):
    folder = tmp_path / "out.partial"
    with locked(folder):
        message = rf"out\.partial is in use by process {os.getpid()} on .* since \d{{4}}-.*\(.*\): wait until it ends"
        with pytest.raises(OSError, match=message) as raised, locked(folder):
            pass
        assert "\n" not in str(raised.value)
        assert folder.exists()
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_not_empty_stays(tmp_path):
    with locked(tmp_path / "folder"):
        (tmp_path / "folder" / "file").touch()
    with locked(tmp_path / "folder"):
        pass
    assert [path.name for path in (tmp_path / "folder").iterdir()] == ["file"]


IMPORT = """
import os, sys
from pathlib import Path
folder, counter, source = map(Path, sys.argv[1:])
sys.path.insert(0, str(source))  # without the imports of hf_gpt
from locks import locked
"""
KILLED = """
with locked(folder):
    os._exit(9)
"""
COUNTING = """
counted = 0
while counted < 100:
    try:
        with locked(folder):
            value = int(counter.read_text())
            counter.write_text(str(value + 1))
        counted += 1
    except OSError as error:
        assert "is in use by" in str(error), error
"""


def start(code, folder):
    arguments = [folder, folder.with_name("counter"), Path(locks.__file__).parent]
    return subprocess.Popen([sys.executable, "-c", IMPORT + code, *arguments])


def test_the_lock_of_a_killed_process_is_free(tmp_path):
    folder = tmp_path / "folder"
    assert start(KILLED, folder).wait() == 9
    assert (folder / LOCK).exists()
    with locked(folder):
        pass
    assert not folder.exists()


@pytest.mark.parametrize("removed", ["file", "folder"])
def test_a_folder_that_is_removed_meanwhile_is_locked_again(tmp_path, monkeypatch, removed):
    """The previous process removes the lock, or the folder, after this one has opened the lock."""
    folder, attempts = tmp_path / "folder", []
    lock = locks._lock

    def lock_after_removal(file):
        if not attempts:
            (folder / LOCK).unlink()
            if removed == "folder":
                folder.rmdir()
        attempts.append(file)
        lock(file)

    monkeypatch.setattr(locks, "_lock", lock_after_removal)
    with locked(folder), pytest.raises(OSError, match="is in use"), locked(folder):
        pass
    assert len(attempts) == 3
    assert not folder.exists()


def test_a_lock_that_is_a_link_is_not_written(tmp_path):
    (tmp_path / "private").write_text("mine")
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / LOCK).symlink_to(tmp_path / "private")
    with pytest.raises(OSError, match="lock"), locked(tmp_path / "folder"):
        pass
    assert (tmp_path / "private").read_text() == "mine"


@pytest.mark.parametrize("code", [None, errno.ENOLCK, errno.ENOSYS])
def test_a_filesystem_without_locks(tmp_path, monkeypatch, code):
    class Unsupported:
        LOCK_EX = LOCK_NB = 0

        def flock(self, *_):
            raise OSError(code, os.strerror(code))

    monkeypatch.setattr(locks, "fcntl", Unsupported() if code else None)
    with pytest.warns(UserWarning, match="cannot be locked: run only one command"), locked(tmp_path / "folder"):
        pass
    assert not (tmp_path / "folder").exists()


def test_other_errors_of_the_lock_are_raised(tmp_path, monkeypatch):
    def fail(*_):
        raise OSError(errno.EIO, "broken")

    monkeypatch.setattr(locks.fcntl, "flock", fail)
    with pytest.raises(OSError, match="broken"), locked(tmp_path / "folder"):
        pass


def test_one_process_holds_the_lock_at_a_time(tmp_path):
    """Four processes lock the folder and remove it, a hundred times each; no count is lost."""
    (tmp_path / "counter").write_text("0")
    processes = [start(COUNTING, tmp_path / "folder") for _ in range(4)]
    assert [process.wait() for process in processes] == [0] * 4
    assert (tmp_path / "counter").read_text() == "400"
    assert not (tmp_path / "folder").exists()
