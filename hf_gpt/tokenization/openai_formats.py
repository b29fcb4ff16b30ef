"""Reads and writes tokenizers in the formats that OpenAI publishes: vocabulary and merges, and tiktoken's ranks."""

import json
from itertools import count
from pathlib import Path

from tokenizers import models
from transformers import PreTrainedTokenizerFast

from .byte_alphabet import BYTE_CHARACTERS
from .construction import (
    BYTE_LEVEL_ROLES,
    END_OF_TEXT,
    END_OF_WORD,
    UNKNOWN,
    WORD_LEVEL_ROLES,
    build_tokenizer,
    byte_level_backend,
    word_level_backend,
)
from .ranks import extract_ranks, recover_merges
from .vocabulary_files import read_merges, read_ranks, read_vocab, write_ranks

# Split pattern of each encoding, and the ids of its special tokens (tiktoken_ext/openai_public.py).
ENCODINGS = {
    "r50k_base": ("gpt2", {END_OF_TEXT: 50256}),
    "p50k_base": ("gpt2", {END_OF_TEXT: 50256}),
    "cl100k_base": (
        "cl100k",
        {
            END_OF_TEXT: 100257,
            "<|fim_prefix|>": 100258,
            "<|fim_middle|>": 100259,
            "<|fim_suffix|>": 100260,
            "<|endofprompt|>": 100276,
        },
    ),
    "o200k_base": ("o200k", {END_OF_TEXT: 199999, "<|endofprompt|>": 200018}),
}


def tokenizer_from_vocab_and_merges(
    vocab_file: Path | str, merges_file: Path | str, **options
) -> PreTrainedTokenizerFast:
    """Loads a BPE from a vocabulary and a list of merges.

    The vocabulary decides the kind: one with all 256 bytes is byte-level (GPT-2), one with `<unk>` and tokens that end
    in `</w>` is word-level (GPT-1).

    Args:
        vocab_file: a JSON object from token to id: `encoder.json`, `vocab.json` or `encoder_bpe_40000.json`.
        merges_file: two tokens per line, optionally below a `#version` line: `vocab.bpe`, `merges.txt` or
            `vocab_40000.bpe`.
        options: `add_prefix_space`, `add_bos_token`, `unk_token`, `bos_token`, `eos_token`, `pad_token`; see
            `hf_gpt.tokenization`.

    Returns:
        Byte-level: a tokenizer with `<|endoftext|>`, if it is in the vocabulary, as beginning-of-text, end-of-text and
        unknown token. Word-level: a tokenizer with the unknown token `<unk>`, which normalizes text and splits it into
        words as `OpenAIGPTTokenizer` does.

    Raises:
        ValueError: a file has another format, a merge has a token that is not in the vocabulary, or the vocabulary is
            of neither kind.
    """
    vocab = read_vocab(vocab_file)
    merges = list(read_merges(merges_file, vocab))
    if vocab.keys() >= BYTE_CHARACTERS:  # first, because a byte-level vocabulary can contain `</w>` as text
        return build_tokenizer(byte_level_backend(models.BPE(vocab, merges), "gpt2"), BYTE_LEVEL_ROLES, **options)
    if UNKNOWN in vocab and any(token.endswith(END_OF_WORD) for token in vocab):
        bpe = models.BPE(vocab, merges, unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
        return build_tokenizer(word_level_backend(bpe), WORD_LEVEL_ROLES, **options)
    raise ValueError(f"{vocab_file}: expected all 256 bytes (GPT-2), or {UNKNOWN} and words with {END_OF_WORD} (GPT-1)")


def tokenizer_from_tiktoken(path: Path | str, encoding: str, **options) -> PreTrainedTokenizerFast:
    """Loads one of OpenAI's `.tiktoken` files. The ids are tiktoken's.

    The ids of cl100k_base and o200k_base have gaps: a model needs an embedding row for each id up to the highest, which
    is more than `len(tokenizer)`.

    Args:
        path: a file with a base64 token and its rank per line.
        encoding: `r50k_base`, `p50k_base`, `cl100k_base` or `o200k_base`; decides split pattern and special tokens.
        options: `add_prefix_space`, `add_bos_token`, `unk_token`, `bos_token`, `eos_token`, `pad_token`; see
            `hf_gpt.tokenization`.

    Returns:
        A tokenizer with `<|endoftext|>` as beginning-of-text, end-of-text and unknown token.

    Raises:
        ValueError: an unknown encoding, a file of another format, or ranks that repeat, have a gap, lack a byte, define
            no merge or are ids of special tokens.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding={encoding!r}: expected one of {', '.join(ENCODINGS)}")
    split_pattern, special_tokens = ENCODINGS[encoding]
    ranks = read_ranks(path)
    used, special = {*ranks.values()}, {*special_tokens.values()}
    if both := used & special:
        raise ValueError(f"{path}: expected ranks of {encoding}, whose special tokens have the ids {sorted(both)}")
    if (missing := next(rank for rank in count() if rank not in used and rank not in special)) < max(used):
        raise ValueError(f"{path}: expected every rank up to {max(used)}, but {missing} is missing")
    try:
        bpe = models.BPE({**ranks, **special_tokens}, list(recover_merges(ranks)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    without_role = [token for token in special_tokens if token != END_OF_TEXT]
    return build_tokenizer(byte_level_backend(bpe, split_pattern), BYTE_LEVEL_ROLES, without_role, **options)


def tokenizer_to_tiktoken(tokenizer: PreTrainedTokenizerFast, path: Path | str) -> None:
    """Writes the ranks of a byte-level BPE as a `.tiktoken` file.

    The file contains neither the split pattern nor the special tokens: `tiktoken.Encoding` takes them as arguments.

    Args:
        tokenizer: a byte-level BPE whose merges are in the order of their ids, as OpenAI's and those of
            `train_tokenizer` are.
        path: file to write.

    Raises:
        ValueError: the tokenizer is no such BPE. No file is written.
    """
    write_ranks(path, extract_ranks(json.loads(tokenizer.backend_tokenizer.to_str())))
