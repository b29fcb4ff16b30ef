"""The tokenizer of a checkpoint: loaded from any of its formats, and copied with the model."""

import json
import shutil
from pathlib import Path

from transformers import AutoTokenizer, PreTrainedTokenizerBase
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME

from ..json_files import read_json
from ..tokenization.openai_formats import ENCODINGS, tokenizer_from_tiktoken, tokenizer_from_vocab_and_merges
from ..tokenization.vocabulary_files import check_tokenizer_files

TOKENIZER = "tokenizer.json"
HF_PAIR = ("vocab.json", "merges.txt")
OPENAI_PAIRS = (("encoder.json", "vocab.bpe"), ("encoder_bpe_40000.json", "vocab_40000.bpe"))  # vocabulary, merges
# Files that some checkpoints have beside tokenizer.json or instead of it, and that the native tokenizer class reads.
COMPANIONS = (
    *(TOKENIZER_CONFIG_FILE, "special_tokens_map.json", "added_tokens.json", "chat_template.jinja"),
    *(*HF_PAIR, "tokenizer.model"),
)


def open_tokenizer(name: Path | str, **options) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in a folder, on the Hub, or in a `.tiktoken` file.

    Args:
        name: a folder in any format that `convert` reads, a Hub id, or a `.tiktoken` file named after its encoding.
        options: keyword arguments of `AutoTokenizer.from_pretrained`.

    Raises:
        OSError: there is no tokenizer, or it is damaged.
        ValueError: a `.tiktoken` file is not named after an encoding.
    """
    path = Path(name)
    if path.suffix == ".tiktoken" and path.is_file():
        if path.stem not in ENCODINGS:
            raise ValueError(f"{path}: expected the name of an encoding, {', '.join(ENCODINGS)}")
        return tokenizer_from_tiktoken(path, path.stem)
    if path.is_dir():
        check_tokenizer_files(path)
        if not (path / TOKENIZER).is_file() and (tokenizer := _build(path)) is not None:
            return tokenizer
    try:
        return AutoTokenizer.from_pretrained(name, trust_remote_code=False, **options)
    except Exception as error:  # tokenizers raises nothing more specific
        raise OSError(f"{name} is neither a folder with a tokenizer nor a tokenizer on the Hub: {error}") from error


def copy_tokenizer(source: Path, out: Path) -> None:
    """Writes the tokenizer of a checkpoint, if it has one, as `tokenizer.json` into another folder.

    An existing `tokenizer.json` is copied unchanged, with its companions.

    Raises:
        ValueError: a file of the tokenizer is damaged.
    """
    check_tokenizer_files(source)
    if (source / TOKENIZER).is_file():
        for name in (TOKENIZER, *COMPANIONS):
            if (source / name).is_file():
                shutil.copyfile(source / name, out / name)
        _add_tokenizer_class(source, out)
    elif (tokenizer := _build(source)) is not None:
        tokenizer.save_pretrained(out)


def _build(source: Path) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer of a folder without `tokenizer.json`, None without a tokenizer."""
    for ranks in sorted(source.glob("*.tiktoken")):
        return tokenizer_from_tiktoken(ranks, ranks.stem)
    is_native = (source / CONFIG_NAME).is_file() and any((source / name).is_file() for name in COMPANIONS)
    # The native class reads its own pair, with options that the two files do not contain.
    for vocabulary, merges in OPENAI_PAIRS if is_native else (*OPENAI_PAIRS, HF_PAIR):
        if (source / vocabulary).is_file() and (source / merges).is_file():
            return tokenizer_from_vocab_and_merges(source / vocabulary, source / merges)
    return AutoTokenizer.from_pretrained(source, trust_remote_code=False) if is_native else None


def _add_tokenizer_class(source: Path, out: Path) -> None:
    """Names the tokenizer class, which AutoTokenizer otherwise derives from the model type, now another one."""
    settings = out / TOKENIZER_CONFIG_FILE
    stored = read_json(settings) if settings.is_file() else {}
    if "tokenizer_class" not in stored:
        stored["tokenizer_class"] = type(AutoTokenizer.from_pretrained(source, trust_remote_code=False)).__name__
        settings.write_text(json.dumps(stored, indent=2) + "\n")
