"""Conversations as ids, in which no text of a user can be a control token."""

import secrets
from typing import Any

from transformers import PreTrainedTokenizerFast


def encode_chat(tokenizer: PreTrainedTokenizerFast, messages: list[dict[str, Any]], **options) -> list[int]:
    """What `apply_chat_template` gives, but with control tokens from the template alone.

    `apply_chat_template` writes template and messages into one text and then encodes it, so a user who writes
    `<|assistant|>` begins a turn of the assistant. Here every text in the messages, except the names of roles, is
    encoded by itself, as the text that it is. Where the template sets texts between control tokens, as that of
    `load_tokenizer` does, harmless messages have the same ids both ways.

    Args:
        messages: `{"role": ..., "content": ...}` and what else the template reads.
        options: of `apply_chat_template`: `add_generation_prompt`, `tools`, `chat_template` ...

    Raises:
        ValueError: the template does not write the texts as they are, so that they cannot be told from its own.
    """
    texts: dict[str, str] = {}

    def stand_in(value: Any) -> Any:
        if isinstance(value, str):
            texts[name := secrets.token_hex(16)] = value
            return name
        if isinstance(value, dict):
            return {key: value[key] if key == "role" else stand_in(value[key]) for key in value}
        return [stand_in(item) for item in value] if isinstance(value, list) else value

    hidden = tokenizer.apply_chat_template(stand_in(messages), tokenize=False, **options)
    ids, shown = [], ""
    for part, is_text in _parts(hidden, texts):
        encoded = tokenizer(part, add_special_tokens=False, split_special_tokens=is_text)
        ids += encoded["input_ids"]
        shown += part
    if shown != tokenizer.apply_chat_template(messages, tokenize=False, **options):
        raise ValueError("the chat template changes the texts of messages, or asks what they say: cannot keep them apart")
    return ids
