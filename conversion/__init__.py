"""Native checkpoints in and out: see README.md in this folder."""

from .engine import convert, export
from .families import FAMILIES

__all__ = ["FAMILIES", "convert", "export"]
