"""A corpus: documents, tokens on disk, packed rows."""

from .packing import TokenBlocks
from .token_files import tokenize_files

__all__ = ["TokenBlocks", "tokenize_files"]
