"""Output folders that appear only when they are complete: one protocol for every command that writes a folder.

    OUT.partial/
        lock          held by the process that writes (`locks.py`)
        journal.json  the command, and all that the content of OUT depends on; written first
        content/      complete files; becomes OUT by one rename
        unfinished/   files that are being written; emptied at every start
        checkpoints/  the state of a training run, which is not part of OUT

A file is written in unfinished/, synchronized with the disk, and renamed; so is the folder of a checkpoint. A kill or a
loss of power at any time leaves one of these states:

    state of OUT.partial                 how it comes about               what the next command does
    -------------------------------------------------------------------------------------------------------------------
    absent, or without a journal         before the journal is written,   begins
                                         or at the end of a removal
    a journal, but no content/           at the beginning, after the      removes OUT.partial; begins, unless OUT is
                                         rename, or in a removal          complete
    no file in content/ or checkpoints/  before the first is complete     removes OUT.partial and begins
    files in content/ or checkpoints/    later                            the same call resumes, where training requires
                                                                          --resume; another call raises, and names the
                                                                          first one
    the same, if it cannot be resumed    later                            removes OUT.partial and begins

An exception leaves these states too, except that OUT.partial is removed if there is nothing to resume, and after a
ValueError, which the same input would raise again, unless there are checkpoints. A folder of this name that is not of
the protocol is not changed.
"""

import errno
import json
import os
import re
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, NamedTuple

from .json_files import read_json
from .locks import LOCK, command_line, locked

JOURNAL, NEW_JOURNAL = "journal.json", "journal.json.new"

# What safetensors and tokenizers (Rust), and PyTorch, write about a failed write, in errors of their own types.
FAILED_WRITE = re.compile(r"\(os error \d+\)|PytorchStreamWriter failed")
HAS_NO_FSYNC = {errno.EINVAL, errno.ENOTSUP, errno.EOPNOTSUPP}  # of a folder, on some network filesystems


def partial_of(out: Path | str) -> Path:
    """Returns the folder in which `out` is written until it is complete."""
    out = Path(out).resolve()
    return out.with_name(out.name + ".partial")


class PartialFolder(NamedTuple):
    """An output folder that is being written."""

    root: Path
    """OUT.partial"""

    @property
    def journal(self) -> Path:
        return self.root / JOURNAL

    @property
    def content(self) -> Path:
        """Complete files."""
        return self.root / "content"

    @property
    def unfinished(self) -> Path:
        """Files that are being written."""
        return self.root / "unfinished"

    @property
    def checkpoints(self) -> Path:
        """Complete checkpoints of a training run."""
        return self.root / "checkpoints"

    @contextmanager
    def writing(self) -> Iterator[Path]:
        """Creates a folder for the block, whose files become part of the content after the block."""
        folder = Path(tempfile.mkdtemp(dir=self.unfinished))
        yield folder
        for file in sorted(path for path in folder.rglob("*") if path.is_file()):
            move(file, self.content / file.relative_to(folder))
        shutil.rmtree(folder)

    @property
    def is_valuable(self) -> bool:
        """True if there are complete files to resume from. Without `content`, it has become OUT."""
        return self.content.is_dir() and (has_entries(self.content) or has_entries(self.checkpoints))


@contextmanager
def output_folder(
    out: Path | str, depends_on: dict[str, Any] | None = None, *, resume: bool | None = None
) -> Iterator[PartialFolder]:
    """Begins an output folder, or resumes an interrupted run; its content becomes `out` after the block.

    Args:
        out: the folder, new or empty.
        depends_on: all that its content depends on, as JSON values; None if the block cannot resume.
        resume: None: resume an interrupted run that depends on the same. False: begin. True: resume.

    Raises:
        FileExistsError: `out` is not empty or a mount point, or there is an interrupted run that this call does not
            resume.
        FileNotFoundError: `resume` is True and there is no interrupted run.
        ValueError: `resume` is True and the interrupted run depends on something else.
        OSError: another process writes the folder, or the disk is full.
    """
    out, partial = Path(out).resolve(), PartialFolder(partial_of(out))
    if resume and not partial.root.is_dir():
        raise FileNotFoundError(f"{partial.root} does not exist: there is no unfinished run to resume")
    depends_on = json.loads(json.dumps(depends_on))
    with locked(partial.root):
        began = _read_journal(partial)
        is_resumed = partial.is_valuable and began["depends_on"] is not None
        if not is_resumed:
            _remove(partial)
        if out.exists() and not (out.is_dir() and not has_entries(out)):
            raise FileExistsError(f"{out} exists and is not an empty folder: choose another output folder")
        if out.is_mount():
            raise FileExistsError(f"{out} is a mount point, which cannot be replaced: choose a folder in it")
        if is_resumed:
            _check_resumption(partial, began, depends_on, resume)
        try:
            _begin(partial, depends_on)
            yield partial
        except BaseException as error:
            if not _is_resumable(partial, depends_on, error):
                with suppress(OSError):
                    _remove(partial)
            if is_failed_write(error):
                raise OSError(f"{out} could not be written: {error}") from error
            raise
        _finish(partial, out)


def state_of(files: list[Path]) -> list[list[Any]]:
    """Returns the path, size and modification time of each file, to detect whether it has changed."""
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]


def move(source: Path, target: Path) -> None:
    """Renames a file, or a folder with all that is in it, after its data is on the disk."""
    for path in (source, *source.rglob("*")):
        _synchronize(path)
    target.parent.mkdir(parents=True, exist_ok=True)
    source.replace(target)
    _synchronize(target.parent)


def has_entries(folder: Path) -> bool:
    """True if there is a folder, and it is not empty."""
    return folder.is_dir() and any(folder.iterdir())


def is_failed_write(error: BaseException) -> bool:
    """True for an error of a full disk without the name of a file, or of a library that has its own errors for it."""
    if isinstance(error, OSError):
        return error.errno in (errno.ENOSPC, errno.EDQUOT) and error.filename is None
    return isinstance(error, Exception) and bool(FAILED_WRITE.search(str(error)))


def _synchronize(path: Path) -> None:
    """Waits until a file, or the names in a folder, are on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        if error.errno not in HAS_NO_FSYNC:
            raise
    finally:
        os.close(descriptor)


def _read_journal(partial: PartialFolder) -> dict[str, Any] | None:
    """Returns the journal of an interrupted run, or None without one.

    Raises:
        FileExistsError: the folder is none of the protocol, or its journal is damaged.
    """
    if {entry.name for entry in partial.root.iterdir()} <= {LOCK, NEW_JOURNAL}:
        return None
    try:
        journal = read_json(partial.journal)
        if isinstance(journal["command"], str) and isinstance(journal["depends_on"], dict | None):
            return journal
    except (FileNotFoundError, ValueError, KeyError):
        pass
    raise FileExistsError(f"{partial.journal} is missing or damaged: move or remove the folder")


def _check_resumption(
    partial: PartialFolder, began: dict[str, Any], depends_on: dict[str, Any] | None, resume: bool | None
) -> None:
    """Raises an error if a call does not resume an interrupted run."""
    run = f"{partial.root} holds an unfinished run of `{began['command']}`"
    old, new = began["depends_on"], depends_on or {}
    changed = [name for name in {**old, **new} if old.get(name) != new.get(name)]
    if resume and changed:
        name = changed[0]
        raise ValueError(f"cannot resume: {name}={new.get(name)!r}, but the run began with {old.get(name)!r}")
    if resume is False:
        raise FileExistsError(f"{run}: resume it (--resume), or remove the folder")
    if changed:
        raise FileExistsError(f"{run} with another {changed[0]}: finish it by the same command, or remove the folder")


def _begin(partial: PartialFolder, depends_on: dict[str, Any] | None) -> None:
    """Writes the journal of a new run; removes the unfinished files of one that resumes."""
    if not partial.journal.exists():
        new = partial.root / NEW_JOURNAL
        new.write_text(json.dumps({"command": command_line(), "depends_on": depends_on}, indent=2) + "\n")
        move(new, partial.journal)
        _synchronize(partial.root.parent)
        partial.content.mkdir()
    _empty(partial.unfinished)


def _is_resumable(partial: PartialFolder, depends_on: dict[str, Any] | None, error: BaseException) -> bool:
    """True if the same call may complete the folder after an error."""
    is_of_input = isinstance(error, ValueError) and not has_entries(partial.checkpoints)
    return depends_on is not None and partial.is_valuable and not is_of_input


def _finish(partial: PartialFolder, out: Path) -> None:
    if out.exists():
        out.rmdir()
    move(partial.content, out)
    _remove(partial)


def _remove(partial: PartialFolder) -> None:
    """Removes everything but the lock, and first the content, without which the rest has no value."""
    if partial.journal.exists():
        if partial.content.exists():
            _empty(partial.unfinished)
            partial.content.rename(partial.unfinished / "content")
        for folder in filter(Path.exists, (partial.checkpoints, partial.unfinished)):
            shutil.rmtree(folder)
        partial.journal.unlink()
    (partial.root / NEW_JOURNAL).unlink(missing_ok=True)


def _empty(folder: Path) -> None:
    """Creates an empty folder, or removes what is in it."""
    if folder.exists():
        shutil.rmtree(folder)
    folder.mkdir()
