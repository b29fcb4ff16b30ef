"""BPE tokenizers: the one that ships, those trained here, and OpenAI's; all are stock transformers tokenizers.

No class of our own: `AutoTokenizer` loads what is saved here anywhere, without remote code. Every function here takes
the same options:

    add_prefix_space: read a text that does not begin with a space as if it did. GPT-1's words are the same either way.
    add_bos_token: begin every text with the beginning-of-text token.
    unk_token, bos_token, eos_token, pad_token: another token for that role. One that is not in the vocabulary becomes
        a new entry, for which a model needs a new row.
"""

import json
from collections import Counter
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from tokenizers import Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from .bpe_files import BYTES, are_merges_of, read_merges, read_ranks, read_vocab, recover_merges, write_ranks
from .pieces import cut, sample_evenly

END_OF_TEXT = "<|endoftext|>"  # ends every document, and begins what has no other beginning (GPT-2)
PADDING = "<|padding|>"  # apart from the end of text, so that a loss which ignores padding still learns to stop
SPECIAL_TOKENS = (PADDING, END_OF_TEXT)
# What the tokenizer that ships has beside these: for GPT-1's fine-tuning (section 3.3), chat, and whatever comes later.
FINE_TUNING = ("[Start]", "[Delim]", "[Extract]")
CHAT_ROLES = ("<|system|>", "<|user|>", "<|assistant|>", "<|tool|>")
RESERVED = tuple(f"<|reserved_{number}|>" for number in range(8))
UNKNOWN, END_OF_WORD = "<unk>", "</w>"  # GPT-1: a character outside its vocabulary; the end of every word
SHIPPED = Path(__file__).with_name("shipped")
SAMPLE_BYTES = 100_000_000

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

# What puts a space before a text that has none, as GPT-2's own pre-tokenizer can.
_PREFIX_SPACE = normalizers.Sequence([normalizers.Prepend(" "), normalizers.Replace(Regex(r"\A  "), " ")])


def load_tokenizer(**options) -> PreTrainedTokenizerFast:
    """The tokenizer that ships: a byte-level BPE of 50,257 entries for English, Chinese and code.

    Its README, in `hf_gpt/tokenizer`, says what it was trained on and how well it does. Beside GPT-2's `<|endoftext|>`
    it has GPT-1's `[Start]`, `[Delim]` and `[Extract]`, a chat template with the roles `<|system|>`, `<|user|>`,
    `<|assistant|>` and `<|tool|>`, and eight tokens `<|reserved_0|>` ... to give a meaning later.
    """
    stored = json.loads((SHIPPED / "tokenizer_config.json").read_text("utf-8"))
    backend = Tokenizer.from_file(str(SHIPPED / "tokenizer.json"))
    tokenizer = _stock(backend, BYTE_LEVEL_ROLES, stored["extra_special_tokens"], **options)
    tokenizer.chat_template = (SHIPPED / "chat_template.jinja").read_text("utf-8")
    return tokenizer


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
    """Train a byte-level BPE, which can encode any text, on `texts`. The same texts give the same tokenizer.

    Args:
        texts: documents, read once, in order.
        vocab_size: 256 bytes, as many merges as fit, and the special tokens, in this order; fewer where the texts hold
            no more pairs.
        split_pattern: `gpt2`, `cl100k` or `o200k`.
        special_tokens: those that transformers has a role for are `<|endoftext|>` (beginning, end, unknown) and
            `<|padding|>`.
        sample_bytes: most text to learn from. Where there is more, passages of it are left out evenly. Memory follows
            it: six bytes for each byte of English, 66 where words have no blanks between them, as in Chinese.

    Raises:
        ValueError: an unknown split pattern, special tokens that repeat or are a word of the text, a vocabulary too
            small for bytes and special tokens, or no text.
    """
    if split_pattern not in SPLIT_PATTERNS:
        raise ValueError(f"split_pattern={split_pattern!r}: expected one of {', '.join(SPLIT_PATTERNS)}")
    if repeated := [token for token, count in Counter(special_tokens).items() if count > 1 or not token]:
        raise ValueError(f"special_tokens: expected each once, and none empty, but got {repeated} again")
    merged_size = vocab_size - len(special_tokens)
    if merged_size < len(BYTES):
        least = len(BYTES) + len(special_tokens)
        raise ValueError(f"vocab_size={vocab_size}: expected at least {least}, 256 bytes and {[*special_tokens]}")
    sample = sample_evenly((piece for text in texts for piece in cut(text)), sample_bytes)
    if not sample:
        raise ValueError("no text to train a tokenizer on")

    learner = _byte_level(models.BPE(), split_pattern)
    trainer = trainers.BpeTrainer(vocab_size=merged_size, initial_alphabet=sorted(BYTES), show_progress=show_progress)
    learner.train_from_iterator(sample, trainer, length=len(sample))
    learned = json.loads(learner.to_str())["model"]
    vocab = learned["vocab"]
    if words := [token for token in special_tokens if token in vocab]:
        raise ValueError(f"special_tokens: {words} are words of the text: expected tokens that no text merges to")
    vocab |= {token: index for index, token in enumerate(special_tokens, start=len(vocab))}
    bpe = models.BPE(vocab, [tuple(merge) for merge in learned["merges"]])
    others = [token for token in special_tokens if token not in SPECIAL_TOKENS]
    return _stock(_byte_level(bpe, split_pattern), BYTE_LEVEL_ROLES, others, **options)


def tokenizer_from_vocab_and_merges(
    vocab_file: Path | str, merges_file: Path | str, **options
) -> PreTrainedTokenizerFast:
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
    vocab = read_vocab(vocab_file)
    merges = list(read_merges(merges_file, vocab))
    if vocab.keys() >= BYTES:  # first, for a GPT-2 may hold the `</w>` of some web page
        return _stock(_byte_level(models.BPE(vocab, merges), "gpt2"), BYTE_LEVEL_ROLES, **options)
    if UNKNOWN in vocab and any(token.endswith(END_OF_WORD) for token in vocab):
        bpe = models.BPE(vocab, merges, unk_token=UNKNOWN, end_of_word_suffix=END_OF_WORD)
        return _stock(_word_level(bpe), WORD_LEVEL_ROLES, **options)
    raise ValueError(f"{vocab_file}: expected all 256 bytes (GPT-2), or {UNKNOWN} and words with {END_OF_WORD} (GPT-1)")


def tokenizer_from_tiktoken(path: Path | str, encoding: str, **options) -> PreTrainedTokenizerFast:
    """Load one of OpenAI's `.tiktoken` files; the ids are tiktoken's.

    So are the gaps between them: a model needs a row for each id up to the highest, more than `len(tokenizer)`.

    Args:
        path: a token in base64 and its rank per line.
        encoding: `r50k_base`, `p50k_base`, `cl100k_base` or `o200k_base`.

    Raises:
        ValueError: an unknown encoding, a file not of this format, or ranks that repeat, leave one out, lack a byte,
            are no merges or are special tokens.
    """
    if encoding not in ENCODINGS:
        raise ValueError(f"encoding={encoding!r}: expected one of {', '.join(ENCODINGS)}")
    split_pattern, special_tokens = ENCODINGS[encoding]
    ranks = read_ranks(path)
    taken, special = {*ranks.values()}, {*special_tokens.values()}
    if both := taken & special:
        raise ValueError(f"{path}: expected ranks of {encoding}, whose special tokens have {sorted(both)}")
    if holes := {*range(max(taken))} - taken - special:
        raise ValueError(f"{path}: expected every rank up to {max(taken)}, but {len(holes)} are missing: {min(holes)}")
    try:
        bpe = models.BPE({**ranks, **special_tokens}, list(recover_merges(ranks)))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    others = [token for token in special_tokens if token != END_OF_TEXT]
    return _stock(_byte_level(bpe, split_pattern), BYTE_LEVEL_ROLES, others, **options)


def tokenizer_to_tiktoken(tokenizer: PreTrainedTokenizerFast, path: Path | str) -> None:
    """Write the ranks of a byte-level BPE as a `.tiktoken` file; tiktoken itself wants split pattern and special tokens
    beside it.

    Raises:
        ValueError: its vocabulary is not one of ranks: see `merge_ranks`.
    """
    write_ranks(path, merge_ranks(json.loads(tokenizer.backend_tokenizer.to_str())))


def merge_ranks(stored: dict[str, Any]) -> dict[str, int]:
    """The ids of a byte-level BPE, as a tokenizer.json holds it, as the ranks of its merges: what to merge first.

    tiktoken merges any two tokens that are a third, tokenizers only those in its list of merges. The two agree on every
    text if each token has the one merge that the ranks before its own leave of its bytes, and the list is in their
    order: two tokens that are a third stand side by side only where nothing was merged across their ends, so its bytes
    were merged as if they were alone.

    Raises:
        ValueError: it is no byte-level BPE, or its merges are not those that its ids, in order, define.
    """
    model = stored["model"]
    added = {token["content"] for token in stored["added_tokens"]}
    ranks = {token: index for token, index in model.get("vocab", {}).items() if token not in added}
    changed = any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or changed or not ranks.keys() >= BYTES:
        raise ValueError("expected a byte-level BPE")
    if not are_merges_of(ranks, [tuple(merge) for merge in model["merges"]]):
        raise ValueError("expected merges in the order of the ids of what they make, and one for each")
    return ranks


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


def _stock(
    tokenizer: Tokenizer,
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
    chosen = {"unk_token": unk_token, "bos_token": bos_token, "eos_token": eos_token, "pad_token": pad_token}
    roles = {role: token for role, token in roles.items() if tokenizer.token_to_id(token) is not None}
    roles |= {role: token for role, token in chosen.items() if token is not None}
    if add_bos_token and "bos_token" not in roles:
        raise ValueError("add_bos_token: the vocabulary has no beginning-of-text token: expected a bos_token")
    if add_prefix_space and tokenizer.normalizer is None:  # GPT-1's, which has one, drops blanks
        tokenizer.normalizer = _PREFIX_SPACE
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        clean_up_tokenization_spaces=False,
        add_prefix_space=add_prefix_space,
        extra_special_tokens=[*extra_special_tokens],
        **roles,
        **({"add_bos_token": True} if add_bos_token else {}),
    )
