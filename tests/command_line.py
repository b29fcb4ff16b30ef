"""Command lines for tests, and what a user sees of their errors."""

from typing import NamedTuple

TEXT = "The quick brown fox jumps over the lazy dog, and the dog sleeps on.\n" * 120
_FIELDS = (
    "hidden_size=32",
    "num_hidden_layers=2",
    "num_attention_heads=2",
    "vocab_size=300",
    "max_position_embeddings=32",
)
TINY = tuple(argument for field in _FIELDS for argument in ("-s", field))


class Result(NamedTuple):
    """Exit status and output of a command."""

    status: int
    output: str
    errors: str


def assert_error(result, message):
    """The command printed one line with the message, after progress bars if any, and its exit status is 1."""
    assert result.status == 1
    last_line = result.errors.strip().splitlines()[-1]
    assert last_line.startswith("error: ")
    assert message in last_line
