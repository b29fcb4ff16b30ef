"""The tokenizer beside a checkpoint goes with it."""

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME

from ..tokenization.openai_formats import ENCODINGS, tokenizer_from_tiktoken, tokenizer_from_vocab_and_merges
from .storage import read_json

TOKENIZER = "tokenizer.json"
# What stands beside it, in one checkpoint or another.
BESIDE = (
    *(TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *("vocab.json", "merges.txt", "tokenizer.model"),
)
# OpenAI's own files: a vocabulary, and the merges.
PAIRS = (
    ("encoder.json", "vocab.bpe"),
    ("encoder_bpe_40000.json", "vocab_40000.bpe"),
    ("vocab.json", "merges.txt"),
)


def open_tokenizer(name: Path | str, **options) -> PreTrainedTokenizerBase:
    """A tokenizer in any form: a folder or Hub id, OpenAI's files in a folder, or a file of tiktoken's ranks.

    Args:
        options: of `AutoTokenizer.from_pretrained`.

    Raises:
        OSError: there is none, or it is damaged.
        ValueError: a file of ranks does not have the name of its encoding.
    """
    path = Path(name)
    if path.suffix == ".tiktoken" and path.is_file():
        if path.stem not in ENCODINGS:
            raise ValueError(f"{path}: expected the name of an encoding, {', '.join(ENCODINGS)}")
        return tokenizer_from_tiktoken(path, path.stem)
    if path.is_dir() and not (path / TOKENIZER).is_file() and (tokenizer := _build(path)) is not None:
        return tokenizer
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # tokenizers raises nothing more precise
        raise OSError(f"{name} is no folder with a tokenizer, and no tokenizer on the Hub: {error}") from error


def carry_tokenizer(source: Path, out: Path) -> None:
    """Put the tokenizer of `source`, if there is one, into `out` as a stock tokenizer.json.

    An existing tokenizer.json is copied as it is, with what stands beside it.
    """
    if (source / TOKENIZER).is_file():
        for name in (TOKENIZER, *BESIDE):
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
        _name_its_class(source, out)
    elif (tokenizer := _build(source)) is not None:
        tokenizer.save_pretrained(out)


def _build(source: Path) -> PreTrainedTokenizerBase | None:
    for ranks in sorted(source.glob("*.tiktoken")):
        return tokenizer_from_tiktoken(ranks, ranks.stem)
    native = (source / CONFIG_NAME).is_file() and any((source / name).is_file() for name in BESIDE)
    for vocabulary, merges in PAIRS:
        openai = vocabulary != "vocab.json"
        if (source / vocabulary).is_file() and (source / merges).is_file() and (openai or not native):
            return tokenizer_from_vocab_and_merges(source / vocabulary, source / merges)
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False) if native else None


def _name_its_class(source: Path, out: Path) -> None:
    # Where it is not named, AutoTokenizer asks the model type, which is another one now.
    settings = out / TOKENIZER_CONFIG_FILE
    stored = read_json(settings) if settings.is_file() else {}
    if "tokenizer_class" not in stored:
        stored["tokenizer_class"] = type(AutoTokenizer.from_pretrained(source, trust_remote_code=False)).__name__
        settings.write_text(json.dumps(stored, indent=2) + "\n")
