"""A lock on a folder, held by one process at a time.

The lock is the file `lock` in the folder, locked by `flock`, so that it ends with its process, however that ends. The
package filelock is not used, because the folder is removed together with the lock: version 3 of filelock removes the
file by its name when it is released, which could be the file of the next process; version 4 leaves it.
"""

import errno
import os
import platform
import shlex
import sys
import textwrap
import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

try:
    import fcntl
except ImportError:  # Windows
    fcntl = None

LOCK = "lock"
HAS_NO_LOCKS = {errno.ENOLCK, errno.ENOSYS, errno.ENOTSUP, errno.EOPNOTSUPP}  # of `flock` on some network filesystems


def command_line() -> str:
    """Returns the command that runs in this process, on one line of at most 200 characters."""
    return textwrap.shorten(shlex.join([Path(sys.argv[0]).name, *sys.argv[1:]]), 200, placeholder=" ...")


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Creates a folder unless it exists, and locks it for the block; afterwards removes it if it is empty.

    Warns if the filesystem has no locks, and goes on without one.

    Raises:
        OSError: another process, or another call in this one, has locked the folder. The message names it.
    """
    with _acquire(folder) as file:
        try:
            yield
        finally:
            with suppress(OSError):
                (folder / LOCK).unlink()  # while it is locked: later it could be that of another process
            file.close()
            with suppress(OSError):
                folder.rmdir()  # raises if it is not empty


def _acquire(folder: Path) -> BinaryIO:
    """Returns the locked file, which contains a description of this process."""
    while True:
        with suppress(FileExistsError):
            folder.mkdir(parents=True)
        try:
            file = open(folder / LOCK, "ab", buffering=0, opener=_open_no_link)  # noqa: SIM115 it is returned
        except FileNotFoundError:  # another process has removed the folder
            continue
        try:
            _lock(file)
            is_current = _is_at(file, folder / LOCK)
        except BaseException:
            file.close()
            raise
        if is_current:
            with suppress(OSError):  # a full disk
                file.truncate(0)
                file.write(_describe_process().encode())
            return file
        file.close()  # another process has removed it


def _open_no_link(path: str, flags: int) -> int:
    """Opens a file, which is overwritten; raises OSError if it is a link to another one."""
    return os.open(path, flags | getattr(os, "O_NOFOLLOW", 0), 0o666)


def _lock(file: BinaryIO) -> None:
    folder = Path(file.name).parent
    try:
        if fcntl is None:
            raise OSError(errno.ENOSYS, os.strerror(errno.ENOSYS))
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        raise OSError(
            f"{folder} is in use by {_read_holder(file)}: wait until it ends, or choose another output folder"
        ) from None
    except OSError as error:
        if error.errno not in HAS_NO_LOCKS:
            raise
        warnings.warn(f"{folder} cannot be locked: run only one command at a time that writes to it", stacklevel=2)


def _is_at(file: BinaryIO, path: Path) -> bool:
    """True if an open file has not been removed."""
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _read_holder(file: BinaryIO) -> str:
    with suppress(FileNotFoundError):  # the process ends now
        if holder := Path(file.name).read_text(errors="replace"):
            return holder
    return "another process"


def _describe_process() -> str:
    started = time.strftime("%Y-%m-%d %H:%M:%S")
    return f"process {os.getpid()} on {platform.node()} since {started} ({command_line()})"
