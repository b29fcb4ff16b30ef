"""Text to ids at full speed, for corpora: no offsets, no masks, and no text that becomes a control token."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ..tokenization.bpe_files import to_bytes
from ..tokenization.building import SPLIT_PATTERNS, merge_ranks

# A special token to tiktoken's engine alone. It does not overlap with itself, so it is found only where it was put.
_BETWEEN_TEXTS = "<|between two texts|>"


Encode = Callable[[list[str]], list[np.ndarray]]


class Encoder(NamedTuple):
    """One of two engines with identical ids; several threads may use it at a time."""

    engine: str
    """`tiktoken`, several times as fast, or `tokenizers`."""
    encode: Encode
    """Ids of each text, 32-bit. What looks like a special token is encoded as the text that it is."""
    dtype: np.dtype
    """The smallest that holds every id."""
    divisible: bool
    """Whether pieces that `pieces.cut` made of a text have the tokens of the whole."""


def build_encoder(tokenizer: PreTrainedTokenizerFast, engine: str | None = None) -> Encoder:
    """The fastest engine that is installed and exact for this tokenizer, or the one that is asked for.

    Raises:
        ValueError: an unknown engine, or one that would give other ids; a tokenizer of plain Python, or one to which
            some text is a control token.
        ImportError: tiktoken is asked for and not installed.
    """
    if engine not in (None, "tiktoken", "tokenizers"):
        raise ValueError(f"engine={engine!r}: expected tiktoken or tokenizers")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no tokenizer.json: expected a fast tokenizer")
    serialized = tokenizer.backend_tokenizer.to_str()
    stored = json.loads(serialized)
    split_pattern = _split_pattern(stored)
    special_alone = all(token["special"] for token in stored["added_tokens"])
    stages = [(stored[stage] or {}).get("type") for stage in ("normalizer", "pre_tokenizer")]
    gpt1 = stages == ["BertNormalizer", "BertPreTokenizer"]
    encoder = Encoder(
        "tokenizers",
        _by_tokenizers(serialized),
        dtype=np.min_scalar_type(max(tokenizer.get_vocab().values())),
        divisible=special_alone and (split_pattern is not None or gpt1),
    )
    _refuse_control_tokens_from_text(tokenizer, encoder)
    if engine == "tokenizers" or (engine is None and find_spec("tiktoken") is None):
        return encoder
    try:
        if split_pattern is None or not special_alone:
            raise ValueError("expected one of OpenAI's split patterns, no normalizer, and special tokens alone")
        return encoder._replace(engine="tiktoken", encode=_by_tiktoken(stored, split_pattern, encoder.encode))
    except ValueError as error:
        if engine is None:
            return encoder
        raise ValueError(f"tiktoken's engine cannot stand in for this tokenizer: {error}") from error


def _refuse_control_tokens_from_text(tokenizer: PreTrainedTokenizerFast, encoder: Encoder) -> None:
    """Where a special token is a word of the vocabulary, as in some that are not of bytes, or has another's role."""
    control = {*tokenizer.all_special_ids}
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        control -= {tokenizer.unk_token_id}
    texts = [*tokenizer.all_special_tokens, "\U0010fffd"]  # the last is unknown, if anything is
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        if found := control & {*ids.tolist()}:
            names = tokenizer.convert_ids_to_tokens(sorted(found))
            raise ValueError(f"the text {text!r} would become {names}: expected special tokens that no text becomes")


def _by_tiktoken(stored: dict[str, Any], pattern: str, otherwise: Encode) -> Encode:
    try:
        import tiktoken
    except ImportError as error:
        raise ImportError("tiktoken's engine is not installed: pip install 'hf_gpt[fast]'") from error
    ranks = {to_bytes(token): rank for token, rank in merge_ranks(stored).items()}
    between = max(ranks.values()) + 1
    encoding = tiktoken.Encoding(
        "hf_gpt", pat_str=pattern, mergeable_ranks=ranks, special_tokens={_BETWEEN_TEXTS: between}
    )

    def encode(texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        together = _BETWEEN_TEXTS.join(texts)  # one call, in which other threads run
        if together.count(_BETWEEN_TEXTS) >= len(texts) > 1:  # a text has it too
            return [ids for text in texts for ids in encode([text])]
        allowed = {_BETWEEN_TEXTS} if len(texts) > 1 else set()
        try:
            ids = encoding.encode_to_numpy(together, allowed_special=allowed, disallowed_special=())
        except ValueError:  # a million blanks on end are too many for its regular expressions
            return otherwise(texts)
        ends = np.flatnonzero(ids == between)
        starts = [0, *(ends + 1).tolist()]
        return [ids[start:end] for start, end in zip(starts, [*ends.tolist(), len(ids)], strict=True)]

    return encode


def _by_tokenizers(serialized: str) -> Encode:
    backend = Tokenizer.from_str(serialized)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # as text

    def encode(texts: list[str]) -> list[np.ndarray]:
        return [np.array(each.ids, np.uint32) for each in backend.encode_batch_fast(texts, add_special_tokens=False)]

    return encode


def _split_pattern(stored: dict[str, Any]) -> str | None:
    """The pattern of OpenAI's that alone decides where a byte-level tokenizer splits text."""
    if stored["normalizer"] is not None or stored["pre_tokenizer"] is None:
        return None
    match stored["pre_tokenizer"]:
        case {"type": "ByteLevel", "add_prefix_space": False, "use_regex": True}:
            return SPLIT_PATTERNS["gpt2"]
        case {
            "type": "Sequence",
            "pretokenizers": [
                {"type": "Split", "pattern": {"Regex": pattern}, "behavior": "Isolated", "invert": False},
                {"type": "ByteLevel", "add_prefix_space": False, "use_regex": False},
            ],
        } if pattern in SPLIT_PATTERNS.values():
            return pattern
    return None
