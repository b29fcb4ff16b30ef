"""Assembles stock transformers tokenizers: normalization, pre-tokenization, BPE, decoding and special tokens."""

from collections.abc import Sequence

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import PreTrainedTokenizerFast

from .split_patterns import SPLIT_PATTERNS

END_OF_TEXT = "<|endoftext|>"  # ends every document, and is the beginning and unknown token too (GPT-2)
PADDING = "<|padding|>"  # not the end of text, so that a loss which ignores padding still learns where to stop
SPECIAL_TOKENS = (PADDING, END_OF_TEXT)
UNKNOWN, END_OF_WORD = "<unk>", "</w>"  # GPT-1: a character outside its vocabulary; the suffix of every word

# The token of each role in transformers; a role whose token is not in the vocabulary stays empty.
BYTE_LEVEL_ROLES = {"bos_token": END_OF_TEXT, "eos_token": END_OF_TEXT, "unk_token": END_OF_TEXT, "pad_token": PADDING}
WORD_LEVEL_ROLES = {"unk_token": UNKNOWN}

# Adds a space before a text that does not begin with one, as the `add_prefix_space` of GPT-2's pre-tokenizer does.
_PREFIX_SPACE = normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A  "), " ")])


def byte_level_backend(bpe: models.BPE, split_pattern: str) -> Tokenizer:
    """Returns a tokenizer that splits text by a pattern of `SPLIT_PATTERNS` and merges the bytes of each word (GPT-2).

    Args:
        bpe: a model whose tokens are in the byte alphabet.
        split_pattern: a key of `SPLIT_PATTERNS`.
    """
    tokenizer = Tokenizer(bpe)
    split = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[split_pattern]), behavior="isolated")
    to_bytes = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([split, to_bytes])
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=False)
    tokenizer.decoder = decoders.ByteLevel()
    return tokenizer


def word_level_backend(bpe: models.BPE) -> Tokenizer:
    """Returns a tokenizer that lowercases text and merges the characters of each word (GPT-1).

    Args:
        bpe: a model whose tokens end in `</w>` where they end a word.
    """
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.decoder = decoders.BPEDecoder(suffix=END_OF_WORD)
    return tokenizer


def build_tokenizer(
    backend: Tokenizer,
    roles: dict[str, str],
    extra_special_tokens: Sequence[str] = (),
    *,
    add_prefix_space: bool = False,
    add_bos_token: bool = False,
    unk_token: str | None = None,
    bos_token: str | None = None,
    eos_token: str | None = None,
    pad_token: str | None = None,
) -> PreTrainedTokenizerFast:
    """Returns a stock transformers tokenizer, which `AutoTokenizer` loads without remote code.

    Args:
        backend: the tokenizer of the tokenizers library. A prefix space is added to it in place.
        roles: default token of each role, `BYTE_LEVEL_ROLES` or `WORD_LEVEL_ROLES`.
        extra_special_tokens: special tokens without a role.
        add_prefix_space: encode a text that does not begin with a space as if it did. No effect on GPT-1's.
        add_bos_token: begin every encoded text with the beginning-of-text token.
        unk_token, bos_token, eos_token, pad_token: token of the role instead of the default. One that is not in the
            vocabulary is added to it, for which a model needs another row of its embedding.

    Raises:
        ValueError: `add_bos_token` without a beginning-of-text token.
    """
    chosen = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
    roles = {role: token for role, token in roles.items() if backend.token_to_id(token) is not None}
    roles |= {role: token for role, token in chosen.items() if token is not None}
    if add_bos_token and "bos_token" not in roles:
        raise ValueError("add_bos_token: the vocabulary has no beginning-of-text token: expected a bos_token")
    if add_prefix_space and backend.normalizer is None:  # GPT-1's normalizer removes spaces
        backend.normalizer = _PREFIX_SPACE
    return PreTrainedTokenizerFast(
        tokenizer_object=backend,
        clean_up_tokenization_spaces=False,
        add_prefix_space=add_prefix_space,
        extra_special_tokens=[*extra_special_tokens],
        **roles,
        **({"add_bos_token": True} if add_bos_token else {}),
    )
