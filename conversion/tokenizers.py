"""The tokenizer of a checkpoint, copied with the model."""

import json
import shutil
from pathlib import Path

from transformers.tokenization_utils_base import TOKENIZER_CONFIG_FILE

from ..json_files import read_json
from ..tokenization.loading import COMPANIONS, build_from_vocabulary, load_stock_tokenizer, stock_class
from ..tokenization.vocabulary_files import SETTINGS_FILES, TOKENIZER_FILE, check_tokenizer_files
from ..trust import check_links, copy_settings


def copy_tokenizer(source: Path, out: Path) -> None:
    """Writes the tokenizer of a checkpoint, if it has one, as `tokenizer.json` into another folder.

    An existing `tokenizer.json` is copied unchanged, with its companions; entries that name code are left out.

    Raises:
        ValueError: a file of the tokenizer is damaged, or a link to a file outside of the folder.
    """
    check_links(source)
    check_tokenizer_files(source)
    if (source / TOKENIZER_FILE).is_file():
        copies = dict.fromkeys((TOKENIZER_FILE, *COMPANIONS), shutil.copyfile)
        for name, copy in (copies | dict.fromkeys(SETTINGS_FILES, copy_settings)).items():
            if (source / name).is_file():
                copy(source / name, out / name)
        _add_tokenizer_class(source, out)
    elif (tokenizer := build_from_vocabulary(source)) is not None:
        tokenizer.save_pretrained(out)


def _add_tokenizer_class(source: Path, out: Path) -> None:
    """Names the class of the tokenizer where it is missing, or was code that is not copied. AutoTokenizer would derive
    it from the model type, which is another one now."""
    settings = out / TOKENIZER_CONFIG_FILE
    stored = read_json(settings) if settings.is_file() else {}
    is_code = settings.is_file() and "auto_map" in read_json(source / TOKENIZER_CONFIG_FILE)
    if "tokenizer_class" not in stored or (is_code and stock_class(stored["tokenizer_class"]) is None):
        stored["tokenizer_class"] = type(load_stock_tokenizer(source)).__name__
        settings.write_text(json.dumps(stored, indent=2) + "\n")
