"""Output folders that are either whole or not there."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


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
            shutil.rmtree(partial)
        raise
    if out.exists():
        out.rmdir()
    partial.rename(out)
