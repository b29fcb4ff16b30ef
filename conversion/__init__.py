"""Converts native checkpoints to hf_gpt and back; see README.md in this folder."""

from .engine import convert, export
from .families import FAMILIES
from .verification import verify

__all__ = ["FAMILIES", "convert", "export", "verify"]
