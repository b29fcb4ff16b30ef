"""Training data: documents from files, their tokens on disk, and packed rows for a Trainer."""

from .packing import TokenBlocks
from .token_checks import open_tokens, verify_tokens
from .token_files import Tokens
from .tokenizing import encode_texts, tokenize_files

__all__ = ["TokenBlocks", "Tokens", "encode_texts", "open_tokens", "tokenize_files", "verify_tokens"]
