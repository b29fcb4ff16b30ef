"""Trains a byte-level BPE tokenizer on an evenly spread sample of the text."""

import json
import math
from collections import Counter
from collections.abc import Iterable, Sequence

from tokenizers import models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from .byte_alphabet import BYTE_CHARACTERS
from .chunking import split_into_chunks
from .construction import BYTE_LEVEL_ROLES, SPECIAL_TOKENS, build_tokenizer, byte_level_backend
from .split_patterns import SPLIT_PATTERNS

SAMPLE_BYTES = 100_000_000
MAX_WORD = 1024  # bytes of a word to learn from; the trainer reads a whole word for each of its merges
_GOLDEN_RATIO = (math.sqrt(5) - 1) / 2


def train_tokenizer(
    texts: Iterable[str],
    vocab_size: int = 50257,
    split_pattern: str = "gpt2",
    *,
    special_tokens: Sequence[str] = SPECIAL_TOKENS,
    sample_bytes: int = SAMPLE_BYTES,
    show_progress: bool = False,
    **options,
) -> PreTrainedTokenizerFast:
    """Trains a byte-level BPE, which can encode any text. The same texts give the same tokenizer.

    Args:
        texts: documents, read once, in order.
        vocab_size: number of tokens: 256 bytes, merges, then the special tokens. There are fewer if the texts have no
            more pairs to merge.
        split_pattern: how text is split into words: `gpt2`, `cl100k` or `o200k`.
        special_tokens: `<|endoftext|>` becomes the beginning-of-text, end-of-text and unknown token, `<|padding|>` the
            padding token; any other has no role.
        sample_bytes: maximum text to train on, in bytes of UTF-8. Longer texts are sampled evenly. Peak memory is
            proportional to it: 6 bytes per byte of English, 66 per byte of a script without spaces, such as Chinese.
            Longer words than `MAX_WORD` bytes are learned from in parts.
        show_progress: print a progress bar.
        options: `add_prefix_space`, `add_bos_token`, `unk_token`, `bos_token`, `eos_token`, `pad_token`; see
            `hf_gpt.tokenization`.

    Returns:
        A tokenizer that transformers saves and loads without hf_gpt.

    Raises:
        ValueError: an unknown split pattern, special tokens that repeat or occur as a token of the text, a vocabulary
            smaller than bytes and special tokens, or no text.
    """
    if split_pattern not in SPLIT_PATTERNS:
        raise ValueError(f"split_pattern={split_pattern!r}: expected one of {', '.join(SPLIT_PATTERNS)}")
    if invalid := [token for token, count in Counter(special_tokens).items() if count > 1 or not token]:
        raise ValueError(f"special_tokens: expected each once and none empty, got {invalid} repeated or empty")
    merged_size = vocab_size - len(special_tokens)
    if merged_size < len(BYTE_CHARACTERS):
        least = len(BYTE_CHARACTERS) + len(special_tokens)
        raise ValueError(f"vocab_size={vocab_size}: expected at least {least}, 256 bytes and {[*special_tokens]}")
    sample = sample_evenly((chunk for text in texts for chunk in split_into_chunks(text)), sample_bytes)
    if not sample:
        raise ValueError("no text to train a tokenizer on")

    learner = byte_level_backend(models.BPE(), split_pattern)
    learner.pre_tokenizer = pre_tokenizers.Sequence([learner.pre_tokenizer, pre_tokenizers.FixedLength(MAX_WORD)])
    trainer = trainers.BpeTrainer(
        vocab_size=merged_size, initial_alphabet=sorted(BYTE_CHARACTERS), show_progress=show_progress
    )
    learner.train_from_iterator(sample, trainer, length=len(sample))
    learned = json.loads(learner.to_str())["model"]
    vocab = learned["vocab"]
    if words := [token for token in special_tokens if token in vocab]:
        raise ValueError(f"special_tokens: {words} are tokens of the text: expected tokens that no text becomes")
    vocab |= {token: index for index, token in enumerate(special_tokens, start=len(vocab))}
    bpe = models.BPE(vocab, [tuple(merge) for merge in learned["merges"]])
    without_role = [token for token in special_tokens if token not in SPECIAL_TOKENS]
    return build_tokenizer(byte_level_backend(bpe, split_pattern), BYTE_LEVEL_ROLES, without_role, **options)


def sample_evenly(chunks: Iterable[str], max_bytes: int) -> list[str]:
    """Samples chunks of a text evenly, in one pass.

    Chunk n is in the sample if n times the golden ratio, modulo 1, is below a threshold, which is halved whenever the
    sample grows too large. This sequence is spread evenly and has no period, so texts that alternate are all sampled.

    Args:
        max_bytes: maximum size of the sample in bytes of UTF-8. One chunk is returned even if it is longer.

    Returns:
        The sampled chunks, in order.
    """
    sample: list[tuple[float, str]] = []
    size, threshold = 0, 1.0
    for number, chunk in enumerate(chunks):
        key = number * _GOLDEN_RATIO % 1
        if key >= threshold:
            continue
        sample.append((key, chunk))
        size += len(chunk.encode())
        while size > max_bytes and len(sample) > 1:
            threshold /= 2
            sample = [(key, chunk) for key, chunk in sample if key < threshold]
            size = sum(len(chunk.encode()) for _, chunk in sample)
    return [chunk for _, chunk in sample]
