"""Output folders that are either whole or not there."""

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

JOURNAL = "journal.json"  # in an unfinished folder: what it is to become


def partial_of(out: Path | str) -> Path:
    """Where an unfinished `out` is."""
    out = Path(out).resolve()
    return out.with_name(out.name + ".partial")


@contextmanager
def new_folder(out: Path | str, *, resume: bool = False, worth_keeping: str | None = None) -> Iterator[Path]:
    """Write into `OUT.partial`, which becomes `out` when the block ends well.

    Args:
        resume: continue in a partial folder that an earlier run left.
        worth_keeping: what makes a partial folder worth resuming: the name of an entry. Where it is not there when the
            block fails, the partial folder is removed, unless an earlier run made it.

    Raises:
        FileExistsError: `out` holds something already, or there is a partial folder and `resume` is not set. Nothing
            is touched.
        FileNotFoundError: `resume` is set, but nothing was left to continue.
    """
    out, partial = Path(out).resolve(), partial_of(out)
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise FileExistsError(f"{out} exists and is not an empty folder: choose another output folder")
    if resume and not partial.is_dir():
        raise FileNotFoundError(f"{partial} is not there: no unfinished run to resume")
    if partial.exists() and not resume:
        raise FileExistsError(f"{partial} holds an unfinished run: resume it, or remove it")
    partial.mkdir(parents=True, exist_ok=resume)
    mine = not resume
    try:
        yield partial
    except BaseException:
        if mine and (worth_keeping is None or not (partial / worth_keeping).exists()):
            shutil.rmtree(partial, ignore_errors=True)
        raise
    if out.exists():
        out.rmdir()
    partial.rename(out)


@contextmanager
def resumable_folder(out: Path | str, description: dict[str, Any]) -> Iterator[Path]:
    """A new folder; or that of an earlier run of the very same description, which was interrupted.

    A `ValueError` in the block is the fault of what it reads: another run would fail again, so nothing is kept.

    Raises:
        FileExistsError: `out` holds something already, or there is an unfinished run of another description.
    """
    partial = partial_of(out)
    if partial.is_dir() and not any(partial.iterdir()):
        partial.rmdir()
    journal = json.dumps(description, sort_keys=True)
    kept = partial / JOURNAL
    same = kept.is_file() and kept.read_text() == journal
    with new_folder(out, resume=same, worth_keeping=JOURNAL) as folder:
        (folder / JOURNAL).write_text(journal)
        try:
            yield folder
        except ValueError:
            shutil.rmtree(folder)
            raise
    (Path(out) / JOURNAL).unlink()


def state_of(files: list[Path]) -> list[list[Any]]:
    """Name, size and time of each file, in order: whether they are still what they were."""
    return [[str(file.resolve()), file.stat().st_size, file.stat().st_mtime_ns] for file in files]
