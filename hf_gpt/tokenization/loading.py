"""Loads the tokenizer that ships with hf_gpt, and any other, without running code of its origin."""

import json
from pathlib import Path
from typing import Any

import transformers
from tokenizers import Tokenizer
from transformers import AutoTokenizer, PreTrainedTokenizerBase, PreTrainedTokenizerFast
from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE
from transformers.utils import CONFIG_NAME, cached_file

from ..json_files import read_json
from ..model.remote_code import CODE_ENTRIES
from ..trust import check_links
from .construction import BYTE_LEVEL_ROLES, build_tokenizer
from .openai_formats import ENCODINGS, tokenizer_from_tiktoken, tokenizer_from_vocab_and_merges
from .vocabulary_files import SETTINGS_FILES, TOKENIZER_FILE, check_tokenizer_files

SHIPPED_TOKENIZER = Path(__file__).with_name("shipped")

HF_PAIR = ("vocab.json", "merges.txt")
OPENAI_PAIRS = (("encoder.json", "vocab.bpe"), ("encoder_bpe_40000.json", "vocab_40000.bpe"))  # vocabulary, merges
# Files that some checkpoints have with tokenizer.json or instead of it, and that the native tokenizer class reads.
COMPANIONS = ("added_tokens.json", "chat_template.jinja", *HF_PAIR, "tokenizer.model")
# Entries of settings that describe how a tokenizer was loaded.
LOADING_ENTRIES = ("is_local", "local_files_only")
# Entries of settings in which a string is the path of a file anywhere, for some classes of transformers.
PATH_ENTRIES = ("vocab", "merges", "gguf_file")


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


def open_tokenizer(name: Path | str, *, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """Returns the tokenizer in a folder, on the Hub, or in a `.tiktoken` file. No code that it brings is run.

    Args:
        name: a folder in any format that `convert` reads, a Hub id, or a `.tiktoken` file named after its encoding.
        local_files_only: do not download.

    Raises:
        OSError: there is no tokenizer, it is damaged, or it consists of code.
        ValueError: a file of the tokenizer is damaged or a link to a file outside of the folder, or a `.tiktoken` file
            is not named after an encoding.
    """
    path = Path(name)
    if path.suffix == ".tiktoken" and path.is_file():
        if path.stem not in ENCODINGS:
            raise ValueError(f"{path}: expected the name of an encoding, {', '.join(ENCODINGS)}")
        return tokenizer_from_tiktoken(path, path.stem)
    if path.is_dir():
        check_links(path)
        check_tokenizer_files(path)
        if not (path / TOKENIZER_FILE).is_file() and (tokenizer := build_from_vocabulary(path)) is not None:
            return tokenizer
    return load_stock_tokenizer(name, local_files_only=local_files_only)


def build_from_vocabulary(folder: Path) -> PreTrainedTokenizerBase | None:
    """Returns the tokenizer of a folder without `tokenizer.json`, None without a tokenizer."""
    for ranks in sorted(folder.glob("*.tiktoken")):
        return tokenizer_from_tiktoken(ranks, ranks.stem)
    files = (*SETTINGS_FILES, *COMPANIONS)
    is_native = (folder / CONFIG_NAME).is_file() and any((folder / name).is_file() for name in files)
    # The native class reads its own pair, with options that the two files do not contain.
    for vocabulary, merges in OPENAI_PAIRS if is_native else (*OPENAI_PAIRS, HF_PAIR):
        if (folder / vocabulary).is_file() and (folder / merges).is_file():
            return tokenizer_from_vocab_and_merges(folder / vocabulary, folder / merges)
    return load_stock_tokenizer(folder) if is_native else None


def load_stock_tokenizer(name: Path | str, *, local_files_only: bool = False) -> PreTrainedTokenizerBase:
    """Returns a tokenizer in the format of transformers, by a class of transformers.

    Where the tokenizer is a class of its own origin (`auto_map`), `tokenizer.json` alone is read.

    Args:
        name: a folder or a Hub id.
        local_files_only: do not download.

    Raises:
        OSError: there is no tokenizer, it is damaged, or it consists of code.
    """
    try:
        settings = _read_settings(name, local_files_only)
        try:
            tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=local_files_only, trust_remote_code=False)
        except Exception:
            if "auto_map" not in settings:
                raise
            tokenizer = _load_tokenizer_json(name, local_files_only, settings["auto_map"])
    except Exception as error:  # tokenizers raises nothing more specific
        raise OSError(f"{name} is neither a folder with a tokenizer nor a tokenizer on the Hub: {error}") from error
    return forget_code(tokenizer)


def forget_code(tokenizer: PreTrainedTokenizerBase) -> PreTrainedTokenizerBase:
    """Removes the entries that name code, and how it was loaded, from what a tokenizer saves, and returns it.

    The entry of a class that was registered with `register_for_auto_class` is added again when it is saved, with its
    code.
    """
    for name in (*CODE_ENTRIES, *LOADING_ENTRIES):
        tokenizer.init_kwargs.pop(name, None)
    return tokenizer


def stock_class(name: Any) -> type[PreTrainedTokenizerBase] | None:
    """Returns the tokenizer class of transformers that has a name, None if there is no such class.

    Raises:
        ValueError: transformers has something else of this name. AutoTokenizer would load that, and a model may ask
            whether to run code.
    """
    found = getattr(transformers, str(name), None)
    if found is None or (isinstance(found, type) and issubclass(found, PreTrainedTokenizerBase)):
        return found
    raise ValueError(f"tokenizer_class={name!r} is not a tokenizer: expected a tokenizer class of transformers")


def _read_settings(name: Path | str, local_files_only: bool) -> dict[str, Any]:
    """Returns the content of tokenizer_config.json, after checking the files by which AutoTokenizer chooses a class and
    its arguments."""
    settings: dict[str, Any] = {}
    for file in (CONFIG_NAME, "special_tokens_map.json", TOKENIZER_CONFIG_FILE):
        path = cached_file(
            name,
            file,
            local_files_only=local_files_only,
            _raise_exceptions_for_missing_entries=False,
            _raise_exceptions_for_connection_errors=False,
            _raise_exceptions_for_gated_repo=False,
        )
        settings = {} if path is None else read_json(path)
        stock_class(settings.get("tokenizer_class"))
        for entry in PATH_ENTRIES:
            if isinstance(settings.get(entry), str):
                raise ValueError(f"{entry}={settings[entry]!r} in {file} is a path: expected no such entry")
    return settings


def _load_tokenizer_json(name: Path | str, local_files_only: bool, auto_map: Any) -> PreTrainedTokenizerFast:
    try:
        return PreTrainedTokenizerFast.from_pretrained(name, local_files_only=local_files_only)
    except Exception as error:
        raise ValueError(
            f"{TOKENIZER_CONFIG_FILE} names code, auto_map={auto_map!r}, which is not run, and there is no "
            f"{TOKENIZER_FILE} to load instead"
        ) from error
