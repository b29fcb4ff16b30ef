"""Text to train on: the user's files, a data set, or the documentation that every Python brings along."""

import ast
import sysconfig
from collections.abc import Iterable
from pathlib import Path


def read_files(paths: Iterable[Path | str]) -> list[str]:
    """The files as documents, UTF-8.

    Raises:
        OSError: a file is missing or cannot be read.
        ValueError: a file is empty or not UTF-8.
    """
    texts = []
    for path in map(Path, paths):
        if path.is_dir():
            raise IsADirectoryError(f"{path} is a folder: expected text files")
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError as error:
            raise ValueError(
                f"{path} is not UTF-8 text: byte {error.start} is {error.object[error.start]:#04x}"
            ) from None
        if not text.strip():
            raise ValueError(f"{path} is empty: expected text")
        texts.append(text)
    return texts


def read_dataset(name: str, split: str = "train", column: str = "text") -> list[str]:
    """One column of a data set on the Hub, or in a local folder, as documents.

    Raises:
        ImportError: `datasets` is not installed.
        ValueError: the data set has no such column, or no text in it.
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
        raise ValueError(f"{name}: column {column!r} of split {split!r} holds no text")
    return texts


def standard_library_documentation() -> list[str]:
    """The documentation that is part of Python: the language reference behind `help()`, where it is installed, and the
    docstrings of the standard library. About two million characters."""
    try:
        from pydoc_data.topics import topics
    except ImportError:  # some distributions leave it out
        topics = {}
    library = Path(sysconfig.get_path("stdlib"))
    docstrings = [text for path in _modules(library) if (text := _docstrings(path))]
    return [*topics.values(), *docstrings]


def _modules(library: Path) -> list[Path]:
    skipped = {"site-packages", "dist-packages", "test", "tests", "idlelib", "lib2to3", "__pycache__"}
    paths = (path for path in library.rglob("*.py") if not skipped & set(path.relative_to(library).parts))
    return sorted(paths)


def _docstrings(path: Path) -> str:
    try:
        tree = ast.parse(path.read_bytes())
    except SyntaxError:  # templates, and files for other versions
        return ""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    found = (ast.get_docstring(node) for node in ast.walk(tree) if isinstance(node, documented))
    return "\n\n".join(text for text in found if text)
