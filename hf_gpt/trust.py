"""What is taken from a checkpoint of unknown origin: no code, and no file outside of its folder.

SECURITY.md describes what is trusted.
"""

import json
import shutil
from itertools import chain
from pathlib import Path

from . import model
from .json_files import read_json
from .model.remote_code import without_code

# Files that are read as text or JSON. Weights may be links: tensors are read from them, never text.
TEXT_SUFFIXES = (".json", ".txt", ".jinja", ".tiktoken", ".model", ".bpe", ".vocab", ".py")

OWN_CODE = Path(model.__file__).parent


def check_links(folder: Path) -> None:
    """Raises a ValueError if a text file of a checkpoint is a link to a file outside of the folder.

    The content of such files is copied into new checkpoints. The links of the Hub's cache lead to its blobs, beside
    the snapshots of a repository or shared by all repositories.
    """
    folder = folder.resolve()
    roots = [folder]
    if folder.parent.name == "snapshots":
        roots += [parent / "blobs" for parent in folder.parents[1:3]]
    for file in chain(folder.glob("*"), folder.glob("additional_chat_templates/*")):
        target = file.resolve()
        if file.suffix in TEXT_SUFFIXES and not any(target.is_relative_to(root) for root in roots):
            raise ValueError(f"{file} is a link to {target}: expected a file of its folder")


def copy_settings(source: Path, target: Path) -> None:
    """Copies a JSON file, without the entries that name code. A file without such entries is copied unchanged."""
    stored = read_json(source)
    kept = without_code(stored)
    if kept == stored:
        shutil.copyfile(source, target)
    else:
        target.write_text(json.dumps(kept, indent=2, ensure_ascii=False) + "\n", "utf-8")


def check_own_code(folder: Path) -> None:
    """Raises a ValueError unless the Python files in a saved model are those of this package."""
    for file in sorted(folder.rglob("*.py")):
        original = OWN_CODE / file.name
        if not original.is_file() or original.read_bytes() != file.read_bytes():
            raise ValueError(f"{file} is not a file of this version of hf_gpt: its code is not run")
