"""BPE tokenizers, trained here or read from the files OpenAI published, returned as stock transformers tokenizers.

No class of our own: `AutoTokenizer` loads what is saved here anywhere, without remote code.
"""

import base64
import json
from collections.abc import Iterable, Iterator
from itertools import pairwise
from math import inf
from pathlib import Path

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"  # ends every document, and begins what has no other beginning (GPT-2)
PADDING = "<|padding|>"  # apart from the end of text, so that a loss which ignores padding still learns to stop
SPECIAL_TOKENS = [END_OF_TEXT, PADDING]
UNKNOWN, END_OF_WORD = "<unk>", "</w>"  # GPT-1: a character outside its vocabulary; the end of every word

_CONTRACTIONS = r"'(?i:[sdmt]|ll|ve|re)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# The token of each role in transformers, where the vocabulary has it.
BYTE_LEVEL_ROLES = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": PADDING}
WORD_LEVEL_ROLES = {"unk_token": UNKNOWN}

# How text is cut into words before byte pairs are merged inside each; the definitions are those of OpenAI's encodings.
SPLIT_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s+\z|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}

# How each encoding splits text, and the ids of its special tokens (tiktoken_ext/openai_public.py).
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

# GPT-2 writes a byte as the Latin-1 character of its number, or from U+0100 on where that is blank or invisible.
_BYTES = set(pre_tokenizers.ByteLevel.alphabet())
_INVISIBLE = {byte: 256 + n for n, byte in enumerate(byte for byte in range(256) if chr(byte) not in _BYTES)}


def train_tokenizer(
    texts: Iterable[str], vocab_size: int = 50257, split_pattern: str = "gpt2", *, show_progress: bool = False
) -> PreTrainedTokenizerFast:
    """Train a byte-level BPE, which can encode any text, on `texts`.

    Args:
        texts: documents, read once, in order.
        vocab_size: 256 bytes, the special tokens and as many merges as fit; fewer where the texts hold no more pairs.
        split_pattern: `gpt2`, `cl100k` or `o200k`.

    Returns:
        A tokenizer whose beginning, end and unknown token is `<|endoftext|>`, and whose padding is `<|padding|>`.

    Raises:
        ValueError: an unknown split pattern, a vocabulary too small for bytes and special tokens, or no text.
    """
    if split_pattern not in SPLIT_PATTERNS:
        raise ValueError(f"split_pattern={split_pattern!r}: expected one of {', '.join(SPLIT_PATTERNS)}")
    least = 256 + len(SPECIAL_TOKENS)
    if vocab_size < least:
        raise ValueError(f"vocab_size={vocab_size}: expected at least {least}, 256 bytes and {SPECIAL_TOKENS}")

    tokenizer = _byte_level(models.BPE(), split_pattern)
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(_not_all_empty(texts), trainer)
    return _stock(tokenizer, BYTE_LEVEL_ROLES)


def tokenizer_from_vocab_and_merges(vocab_file: Path | str, merges_file: Path | str) -> PreTrainedTokenizerFast:
    """Load a BPE in the form of GPT-2's, of bytes, or of GPT-1's, of lower-cased words; the vocabulary shows which.

    Args:
        vocab_file: a JSON object from token to id: `encoder.json`, `vocab.json` or `encoder_bpe_40000.json`.
        merges_file: two tokens per line, perhaps below a `#version`: `vocab.bpe`, `merges.txt` or `vocab_40000.bpe`.

    Returns:
        GPT-2: a tokenizer whose beginning, end and unknown token is `<|endoftext|>`, where the vocabulary has it.
        GPT-1: one whose unknown token is `<unk>`, and which cuts and lower-cases as `OpenAIGPTTokenizer` does.

    Raises:
        ValueError: a file is not of its format, a merge is of or makes what is not in the vocabulary, or the vocabulary
            has neither all 256 bytes, as GPT-2's, nor `<unk>` and tokens that end in `</w>`, as GPT-1's.
    """
    vocab = _read_vocab(vocab_file)
    merges = list(_read_merges(merges_file, vocab))
    if vocab.keys() >= _BYTES:  # first, for a GPT-2 may hold the `</w>` of some web page
        return _stock(_byte_level(models.BPE(vocab, merges), "gpt2"), BYTE_LEVEL_ROLES)
    if UNKNOWN in vocab and any(token.endswith(END_OF_WORD) for token in vocab):
        bpe = models.BPE(vocab, merges, unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
        return _stock(_word_level(bpe), WORD_LEVEL_ROLES)
    raise ValueError(f"{vocab_file}: expected all 256 bytes (GPT-2), or {UNKNOWN} and words with {END_OF_WORD} (GPT-1)")


def tokenizer_from_tiktoken(path: Path | str, encoding: str) -> PreTrainedTokenizerFast:
    """Load one of OpenAI's `.tiktoken` files; the ids are tiktoken's.

    So are the gaps between them: a model needs a row for each id up to the highest, more than `len(tokenizer)`.

    Args:
        path: a token in base64 and its rank per line.
        encoding: `r50k_base`, `p50k_base`, `cl100k_base` or `o200k_base`.

    Raises:
        ValueError: an unknown encoding, a file not of this format, or ranks that repeat, lack a byte, are no merges or
            are special tokens.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding={encoding!r}: expected one of {', '.join(ENCODINGS)}")
    split_pattern, special_tokens = ENCODINGS[encoding]
    ranks = _read_ranks(path)
    if taken := {*ranks.values()} & {*special_tokens.values()}:
        raise ValueError(f"{path}: expected ranks of {encoding}, whose special tokens have {sorted(taken)}")
    bpe = models.BPE({**ranks, **special_tokens}, list(_recover_merges(path, ranks)))
    others = [token for token in special_tokens if token != END_OF_TEXT]
    return _stock(_byte_level(bpe, split_pattern), BYTE_LEVEL_ROLES, extra_special_tokens=others)


def _byte_level(bpe: models.BPE, split_pattern: str) -> Tokenizer:
    tokenizer = Tokenizer(bpe)
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[split_pattern]), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def _word_level(bpe: models.BPE) -> Tokenizer:
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return tokenizer


def _stock(tokenizer: Tokenizer, roles: dict[str, str], **options) -> PreTrainedTokenizerFast:
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        **{role: token for role, token in roles.items() if tokenizer.token_to_id(token) is not None},
        **options,
    )


def _not_all_empty(texts: Iterable[str]) -> Iterator[str]:
    seen = False
    for text in texts:
        seen = seen or bool(text)
        yield text
    if not seen:
        raise ValueError("no text to train a tokenizer on")


def _read_vocab(file: Path | str) -> dict[str, int]:
    try:
        vocab = json.loads(Path(file).read_text("utf-8"))
    except ValueError:
        vocab = None
    if not isinstance(vocab, dict) or not all(type(index) is int for index in vocab.values()):
        raise ValueError(f"{file}: expected a JSON object from token to id")
    return vocab


def _read_merges(file: Path | str, vocab: dict[str, int]) -> Iterator[tuple[str, str]]:
    for number, line in enumerate(Path(file).read_text("utf-8", "replace").rstrip("\n").split("\n"), start=1):
        if number == 1 and line.startswith("#version"):
            continue
        merge = tuple(line.split(" "))
        if len(merge) != 2 or "" in merge:
            raise ValueError(f"{file}, line {number}: expected two tokens with a blank between, got {line[:80]!r}")
        if unknown := [token for token in (*merge, "".join(merge)) if token not in vocab]:
            raise ValueError(f"{file}, line {number}: expected tokens of the vocabulary, got {unknown}")
        yield merge


def _read_ranks(file: Path | str) -> dict[str, int]:
    pairs = []
    for number, line in enumerate(Path(file).read_bytes().splitlines(), start=1):
        try:
            token, rank = line.split()
            token = base64.b64decode(token, validate=True).decode("latin-1").translate(_INVISIBLE)
            pairs.append((token, int(rank)))
        except ValueError as error:
            raise ValueError(f"{file}, line {number}: expected base64 and a rank, got {line[:80]!r}") from error
    ranks = dict(pairs)
    if not len(pairs) == len(ranks) == len({*ranks.values()}):
        raise ValueError(f"{file}: expected every token and every rank once, but some repeat")
    if missing := _BYTES - ranks.keys():
        raise ValueError(f"{file}: expected each of the 256 bytes, but {len(missing)} are missing")
    return ranks


def _recover_merges(file: Path | str, ranks: dict[str, int]) -> Iterator[tuple[str, str]]:
    """The two parts of each token that BPE has merged its bytes into, with the ranks before its own, in their order."""
    for token in sorted(ranks, key=ranks.get):
        parts = list(token)
        while len(parts) > 2:
            lowest, at = min((ranks.get(a + b, inf), at) for at, (a, b) in enumerate(pairwise(parts)))
            if lowest >= ranks[token]:
                raise ValueError(f"{file}: expected rank {ranks[token]} to join two tokens before it, got {parts}")
            parts[at : at + 2] = [parts[at] + parts[at + 1]]
        if len(parts) == 2:
            yield tuple(parts)
