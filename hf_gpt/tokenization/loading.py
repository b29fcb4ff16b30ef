"""Loads the tokenizer that ships with hf_gpt."""

import json
from pathlib import Path

from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerFast

from .construction import BYTE_LEVEL_ROLES, build_tokenizer

SHIPPED_TOKENIZER = Path(__file__).with_name("shipped")


def load_tokenizer(**options) -> PreTrainedTokenizerFast:
    """Loads the shipped tokenizer: a byte-level BPE of 50,257 tokens for English, Chinese and code.

    `hf_gpt/tokenization/shipped/README.md` describes its training data and its compression. Besides GPT-2's
    `<|endoftext|>` it has GPT-1's `[Start]`, `[Delim]` and `[Extract]`, a chat template with the roles `<|system|>`,
    `<|user|>`, `<|assistant|>` and `<|tool|>`, and eight unused tokens `<|reserved_0|>` to `<|reserved_7|>`.

    Args:
        options: `add_prefix_space`, `add_bos_token`, `unk_token`, `bos_token`, `eos_token`, `pad_token`; see
            `hf_gpt.tokenization`.

    Returns:
        A tokenizer that transformers saves and loads without hf_gpt.
    """
    stored = json.loads((SHIPPED_TOKENIZER / "tokenizer_config.json").read_text("utf-8"))
    backend = Tokenizer.from_file(str(SHIPPED_TOKENIZER / "tokenizer.json"))
    tokenizer = build_tokenizer(backend, BYTE_LEVEL_ROLES, stored["extra_special_tokens"], **options)
    tokenizer.chat_template = (SHIPPED_TOKENIZER / "chat_template.jinja").read_text("utf-8")
    return tokenizer
