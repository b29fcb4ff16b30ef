"""Reads JSON files that another program wrote: configurations, indices, vocabularies, settings of a run."""

import json
import math
import os
from collections import Counter
from pathlib import Path
from typing import Any, NoReturn

MAX_BYTES = 1 << 27  # of a file; the largest published tokenizer.json has 35 MB
MAX_DIGITS = 64  # of an integer; transformers writes 10^30 as the `model_max_length` of a tokenizer without a limit


def read_json(file: Path | str, *, allow_nan: bool = False) -> dict[str, Any]:
    """Returns the JSON object in a file. Peak memory is at most 50 bytes per byte of the file.

    Args:
        file: a file in UTF-8.
        allow_nan: accept NaN and Infinity, as `json.dumps` writes them.

    Raises:
        ValueError: the file is not a JSON object, has more than `MAX_BYTES`, or is nested too deeply; a key occurs
            twice; an integer has more than `MAX_DIGITS`, or a number is not finite. The message names the file.
        OSError: the file cannot be read.
    """
    with Path(file).open("rb") as opened:
        size = os.fstat(opened.fileno()).st_size
        if size > MAX_BYTES:
            raise ValueError(f"{file} has {size:,} bytes: expected a JSON file of at most {MAX_BYTES:,}")
        content = opened.read(size)
    numbers = {} if allow_nan else {"parse_float": _finite_float, "parse_constant": _refuse_number}
    try:
        value = json.loads(content.decode(), object_pairs_hook=_unique_keys, parse_int=parse_integer, **numbers)
    except RecursionError:
        raise ValueError(f"{file} is not valid JSON: it is nested too deeply") from None
    except ValueError as error:
        raise ValueError(f"{file} is not valid JSON: {error}") from None
    if not isinstance(value, dict):
        raise ValueError(f"{file}: expected a JSON object, got {type(value).__name__}")
    return value


def parse_integer(digits: str) -> int:
    """Returns an integer.

    Raises:
        ValueError: it has more than `MAX_DIGITS`.
    """
    if len(digits) > MAX_DIGITS:
        raise ValueError(f"an integer has {len(digits)} digits, expected at most {MAX_DIGITS}")
    return int(digits)


def _finite_float(digits: str) -> float:
    number = float(digits)
    return number if math.isfinite(number) else _refuse_number(digits[:MAX_DIGITS])


def _refuse_number(text: str) -> NoReturn:
    raise ValueError(f"{text} is not a finite number")


def _unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    content = dict(pairs)
    if len(content) < len(pairs):
        (repeated, _), *_ = Counter(name for name, _ in pairs).most_common(1)
        raise ValueError(f"the key {repeated[:80]!r} occurs twice")
    return content
