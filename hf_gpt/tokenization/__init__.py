"""BPE tokenizers: the one that ships, those trained here, and OpenAI's files."""

from .building import (
    load_tokenizer,
    tokenizer_from_tiktoken,
    tokenizer_from_vocab_and_merges,
    tokenizer_to_tiktoken,
    train_tokenizer,
)

__all__ = [
    "load_tokenizer",
    "tokenizer_from_tiktoken",
    "tokenizer_from_vocab_and_merges",
    "tokenizer_to_tiktoken",
    "train_tokenizer",
]
