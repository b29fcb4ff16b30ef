"""Byte-level BPE tokenizers, trained by `tokenizers` and returned as stock transformers tokenizers.

No class of our own: `AutoTokenizer` loads what is saved here anywhere, without remote code.
"""

from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

END_OF_TEXT = "<|endoftext|>"  # ends every document, and begins what has no other beginning (GPT-2)
PADDING = "<|padding|>"  # apart from the end of text, so that a loss which ignores padding still learns to stop
SPECIAL_TOKENS = [END_OF_TEXT, PADDING]

_CONTRACTIONS = r"'(?i:[sdmt]|ll|ve|re)"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"

# How text is cut into words before byte pairs are merged inside each; the definitions are those of OpenAI's encodings.
SPLIT_PATTERNS = {
    "gpt2": r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+",
    "cl100k": (
        rf"{_CONTRACTIONS}|[^\r\n\p{{L}}\p{{N}}]?\p{{L}}+|\p{{N}}{{1,3}}"
        r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]|\s+(?!\S)|\s+"
    ),
    "o200k": (
        rf"[^\r\n\p{{L}}\p{{N}}]?{_UPPER}*{_LOWER}+(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        rf"|[^\r\n\p{{L}}\p{{N}}]?{_UPPER}+{_LOWER}*(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
        r"|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
    ),
}


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

    tokenizer = Tokenizer(models.BPE())
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[split_pattern]), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=SPECIAL_TOKENS,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=show_progress,
    )
    tokenizer.train_from_iterator(_not_all_empty(texts), trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=END_OF_TEXT,
        eos_token=END_OF_TEXT,
        unk_token=END_OF_TEXT,
        pad_token=PADDING,
        clean_up_tokenization_spaces=False,
    )


def _not_all_empty(texts: Iterable[str]) -> Iterator[str]:
    seen = False
    for text in texts:
        seen = seen or bool(text)
        yield text
    if not seen:
        raise ValueError("no text to train a tokenizer on")
