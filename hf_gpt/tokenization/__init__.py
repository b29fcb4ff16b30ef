"""BPE tokenizers: the shipped one, trained ones, and OpenAI's; all are stock transformers tokenizers.

`AutoTokenizer` loads what they save, without remote code and without hf_gpt. All functions that return a tokenizer take
the same options:

    add_prefix_space (bool): encode a text that does not begin with a space as if it did. No effect on GPT-1's.
    add_bos_token (bool): begin every encoded text with the beginning-of-text token.
    unk_token, bos_token, eos_token, pad_token (str): token of the role instead of the default. One that is not in the
        vocabulary is added to it, for which a model needs another row of its embedding.
"""

from .loading import load_tokenizer, open_tokenizer
from .openai_formats import tokenizer_from_tiktoken, tokenizer_from_vocab_and_merges, tokenizer_to_tiktoken
from .training import train_tokenizer

__all__ = [
    "load_tokenizer",
    "open_tokenizer",
    "tokenizer_from_tiktoken",
    "tokenizer_from_vocab_and_merges",
    "tokenizer_to_tiktoken",
    "train_tokenizer",
]
