"""Encodes text to ids at full speed: without offsets and masks, and without control tokens from text."""

import json
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from ..tokenization.byte_alphabet import characters_to_bytes
from ..tokenization.ranks import extract_ranks
from ..tokenization.split_patterns import SPLIT_PATTERNS

# A special token of tiktoken's encoding alone. No suffix of it is a prefix too, so it is found only where it was added.
_SEPARATOR = "<|between two texts|>"

Encode = Callable[[list[str]], list[np.ndarray]]


class Encoder(NamedTuple):
    """A thread-safe function from texts to ids, by one of two engines that give the same ids."""

    engine: str
    """`tiktoken`, which is several times faster, or `tokenizers`."""
    encode: Encode
    """Returns the ids of each text, uint32 (tokens,). Text that spells a special token is encoded as text."""
    vocab_size: int
    """All ids are less."""
    is_chunkable: bool
    """True if the chunks of `chunking.split_into_chunks` have the tokens of the whole text."""

    @property
    def dtype(self) -> np.dtype:
        """The smallest unsigned integer type that holds every id."""
        return np.min_scalar_type(self.vocab_size - 1)


def build_encoder(tokenizer: PreTrainedTokenizerFast, engine: str | None = None) -> Encoder:
    """Returns the fastest installed engine that gives exactly the ids of this tokenizer.

    Args:
        tokenizer: a tokenizer with a tokenizer.json.
        engine: `tiktoken` or `tokenizers`, to choose the engine.

    Raises:
        ValueError: an unknown engine, or one that would give other ids; a tokenizer without a tokenizer.json, or one
            that encodes some text to a control token.
        ImportError: `engine` is tiktoken, which is not installed.
    """
    if engine not in (None, "tiktoken", "tokenizers"):
        raise ValueError(f"engine={engine!r}: expected tiktoken or tokenizers")
    if not tokenizer.is_fast:
        raise ValueError(f"{type(tokenizer).__name__} has no tokenizer.json: expected a fast tokenizer")
    serialized = tokenizer.backend_tokenizer.to_str()
    stored = json.loads(serialized)
    split_pattern = _find_split_pattern(stored)
    only_special_added = all(token["special"] for token in stored["added_tokens"])
    stages = [(stored[stage] or {}).get("type") for stage in ("normalizer", "pre_tokenizer")]
    is_gpt1 = stages == ["BertNormalizer", "BertPreTokenizer"]
    encoder = Encoder(
        "tokenizers",
        _encode_with_tokenizers(serialized),
        vocab_size=max(tokenizer.get_vocab().values()) + 1,
        is_chunkable=only_special_added and (split_pattern is not None or is_gpt1),
    )
    _check_control_tokens(tokenizer, encoder)
    if engine == "tokenizers" or (engine is None and find_spec("tiktoken") is None):
        return encoder
    try:
        if split_pattern is None or not only_special_added:
            raise ValueError("expected one of OpenAI's split patterns, no normalizer, and no added tokens but special")
        return encoder._replace(
            engine="tiktoken", encode=_encode_with_tiktoken(stored, split_pattern, fallback=encoder.encode)
        )
    except ValueError as error:
        if engine is None:
            return encoder
        raise ValueError(f"engine='tiktoken' would not give the ids of this tokenizer: {error}") from error


def _check_control_tokens(tokenizer: PreTrainedTokenizerFast, encoder: Encoder) -> None:
    """Raises ValueError if text can become a control token.

    That is the case if a special token is also an ordinary token of the vocabulary, which a vocabulary without bytes
    can have, or if a control token is the unknown token as well.
    """
    control = {*tokenizer.all_special_ids}
    if tokenizer.unk_token_id not in (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id):
        control -= {tokenizer.unk_token_id}
    texts = [*tokenizer.all_special_tokens, "\U0010fffd"]  # a private-use character, unknown to any vocabulary of words
    for text, ids in zip(texts, encoder.encode(texts), strict=True):
        if found := control & {*ids.tolist()}:
            names = tokenizer.convert_ids_to_tokens(sorted(found))
            raise ValueError(f"the text {text!r} would become {names}: expected special tokens that no text becomes")


def _encode_with_tiktoken(stored: dict[str, Any], pattern: str, fallback: Encode) -> Encode:
    try:
        import tiktoken
    except ImportError as error:
        raise ImportError("engine='tiktoken' is not installed: pip install 'hf_gpt[fast]'") from error
    ranks = {characters_to_bytes(token): rank for token, rank in extract_ranks(stored).items()}
    separator = max(ranks.values()) + 1
    encoding = tiktoken.Encoding(
        "hf_gpt", pat_str=pattern, mergeable_ranks=ranks, special_tokens={_SEPARATOR: separator}
    )

    def encode(texts: list[str]) -> list[np.ndarray]:
        if not texts:
            return []
        joined = _SEPARATOR.join(texts)  # a single call, which releases the global interpreter lock
        if joined.count(_SEPARATOR) >= len(texts) > 1:  # a text contains it
            return [ids for text in texts for ids in encode([text])]
        allowed = {_SEPARATOR} if len(texts) > 1 else set()
        try:
            ids = encoding.encode_to_numpy(joined, allowed_special=allowed, disallowed_special=())
        except ValueError:  # about a million consecutive blanks overflow the stack of its regular expressions
            return fallback(texts)
        ends = np.flatnonzero(ids == separator)
        starts = [0, *(ends + 1).tolist()]
        return [ids[start:end] for start, end in zip(starts, [*ends.tolist(), len(ids)], strict=True)]

    return encode


def _encode_with_tokenizers(serialized: str) -> Encode:
    backend = Tokenizer.from_str(serialized)
    backend.no_padding()
    backend.no_truncation()
    backend.encode_special_tokens = True  # text that spells a special token is encoded as text

    def encode(texts: list[str]) -> list[np.ndarray]:
        try:
            encoded = backend.encode_batch_fast(texts, add_special_tokens=False)
        except BaseException as error:  # what a panic of Rust raises is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(f"the tokenizers library cannot encode with this tokenizer.json: {error}") from None
        return [np.array(each.ids, np.uint32) for each in encoded]

    return encode


def _find_split_pattern(stored: dict[str, Any]) -> str | None:
    """Returns the regular expression of a byte-level tokenizer that splits text by one of `SPLIT_PATTERNS` alone."""
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
