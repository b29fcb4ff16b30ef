"""`hf-gpt`: the command line."""

from .app import main

__all__ = ["main"]
