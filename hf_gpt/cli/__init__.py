"""`hf-gpt`: the command line. One file for each group of commands."""

from .app import main

__all__ = ["main"]
