"""Loads the text of a small training run into memory: text files, a data set, or Python's own documentation."""

import ast
import sysconfig
from collections.abc import Iterable
from pathlib import Path

from .documents import describe_decode_error, find_long_word_error


def read_files(paths: Iterable[Path | str]) -> list[str]:
    """Reads UTF-8 text files, one document each.

    Memory is at most 10 bytes per byte of the files.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is empty, not UTF-8, or has no word boundary within `chunking.MAX_WORD_CHARACTERS`.
    """
    texts = []
    for path in map(Path, paths):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: expected text files")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(f"{path} {describe_decode_error(error)}") from None
        if not text.strip():
            raise ValueError(f"{path} is empty: expected text")
        if error := find_long_word_error([text]):
            raise ValueError(f"{path} {error}")
        texts.append(text)
    return texts


def read_dataset(name: str, split: str = "train", column: str = "text") -> list[str]:
    """Reads the documents of one column of a data set with the package datasets.

    Args:
        name: the data set on the Hub, or a local folder.
        split: split of the data set.
        column: column that contains the documents. Empty ones are left out.

    Raises:
        ImportError: the package datasets is not installed.
        ValueError: the data set does not have the column, or there is no text in it.
    """
    try:
        from datasets import load_dataset
    except ImportError as error:
        raise ImportError("reading a data set needs the package datasets: pip install 'hf_gpt[data]'") from error
    data = load_dataset(name, split=split)
    if column not in data.column_names:
        raise ValueError(f"{name} has no column {column!r}: expected one of {', '.join(data.column_names)}")
    texts = [text for text in data[column] if isinstance(text, str) and text.strip()]
    if not texts:
        raise ValueError(f"{name}: column {column!r} of split {split!r} contains no text")
    return texts


def standard_library_documentation() -> list[str]:
    """Returns the documentation that is installed with Python, about two million characters.

    Returns:
        The topics of the language reference that `help()` shows, if installed, and the docstrings of each module of
        the standard library.
    """
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions omit it
        topics = {}
    library = Path(sysconfig.get_path("stdlib"))
    docstrings = [text for path in _list_modules(library) if (text := _read_docstrings(path))]
    return [*topics.values(), *docstrings]


def _list_modules(library: Path) -> list[Path]:
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    paths = (path for path in library.rglob("*.py") if not skipped & set(path.relative_to(library).parts))
    return sorted(paths)


def _read_docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates, and modules for other versions of Python
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    docstrings = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(text for text in docstrings if text)
