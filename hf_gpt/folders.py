"""Output folders that appear only when they are complete."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOURNAL = "journal.json"  # in an unfinished folder: the description of its run


def partial_of(out: Path | str) -> Path:
    """Returns the folder in which `out` is written until it is complete."""
    out = Path(out).resolve()
    return out.with_name(out.name + ".partial")


@contextmanager
def new_folder(out: Path | str, *, resume: bool = False, resumable_entry: str | None = None) -> Iterator[Path]:
    """Creates `OUT.partial`, which the block writes to, and renames it to `out` after the block.

    If the block raises, the partial folder is removed, unless it contains `resumable_entry` or an earlier run made it.

    Args:
        out: the folder, new or empty.
        resume: continue in the partial folder of an earlier run.
        resumable_entry: the file or folder that makes a partial folder resumable; by default none is.

    Raises:
        FileExistsError: `out` is not empty, or there is a partial folder and `resume` is False. Nothing changes.
        FileNotFoundError: `resume` is True and there is no partial folder.
    """
    out, partial = Path(out).resolve(), partial_of(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder: choose another output folder")
    if resume and not partial.is_dir():
        raise FileNotFoundError(f"{partial} does not exist: there is no unfinished run to resume")
    if partial.exists() and not resume:
        raise FileExistsError(f"{partial} holds an unfinished run: resume it, or remove it")
    partial.mkdir(parents=True, exist_ok=resume)
    try:
        yield partial
    except BaseException:
        is_resumable = resumable_entry is not None and (partial / resumable_entry).exists()
        if not (resume or is_resumable):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        out.rmdir()
    partial.rename(out)


@contextmanager
def resumable_folder(out: Path | str, description: dict[str, Any]) -> Iterator[Path]:
    """Creates a new folder, or resumes an interrupted run of the same description.

    A `ValueError` in the block removes the partial folder, because the same input would raise it again.

    Args:
        out: the folder, new or empty. It appears when it is complete.
        description: all that the content of the folder depends on, as JSON values.

    Raises:
        FileExistsError: `out` is not empty, or there is an unfinished run of another description.
    """
    partial = partial_of(out)
    if partial.is_dir() and not any(partial.iterdir()):
        partial.rmdir()
    journal = json.dumps(description, sort_keys=True)
    recorded = partial / JOURNAL
    is_same = recorded.is_file() and recorded.read_text() == journal
    with new_folder(out, resume=is_same, resumable_entry=JOURNAL) as folder:
        (folder / JOURNAL).write_text(journal)
        try:
            yield folder
        except ValueError:
            shutil.rmtree(folder)
            raise
    (Path(out) / JOURNAL).unlink()


def state_of(files: list[Path]) -> list[list[Any]]:
    """Returns the path, size and modification time of each file, to detect whether it has changed."""
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
