"""All families by name, and the recognition of the family of a folder."""

from pathlib import Path

from transformers.utils import CONFIG_NAME

from ..json_files import read_json
from ..model.configuration_gpt import GPTConfig
from ..model.field_rules import shown
from .family import Family
from .gpt2 import GPT2
from .gpt_neo import GPT_NEO
from .gpt_neox import GPT_NEOX
from .gpt_oss import GPT_OSS
from .gptj import GPTJ
from .llama import LLAMA
from .mingpt import MINGPT
from .mixtral import MIXTRAL
from .nanogpt import NANOGPT
from .openai_gpt import OPENAI_GPT
from .opt import OPT

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (OPENAI_GPT, GPT2, GPT_NEO, GPTJ, GPT_NEOX, OPT, LLAMA, MIXTRAL, GPT_OSS, NANOGPT, MINGPT)
}


def find_family(name: str) -> Family:
    """Returns a family by its name.

    Raises:
        ValueError: no family has this name.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"no family {name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def recognize(folder: Path) -> Family:
    """Returns the family of a native checkpoint.

    Raises:
        ValueError: the checkpoint is of another family, or already a model of hf_gpt.
        FileNotFoundError: the folder contains no model.
    """
    stored = read_json(folder / CONFIG_NAME) if (folder / CONFIG_NAME).is_file() else None
    for family in FAMILIES.values():
        if family.storage.recognizes(folder, stored):
            return family
    if stored is None:
        files = dict.fromkeys(family.storage.file for family in FAMILIES.values())
        raise FileNotFoundError(f"{folder} contains no model: expected one of {', '.join(files)}")
    if stored.get("model_type") == GPTConfig.model_type:
        raise ValueError(f"{folder} is a model of hf_gpt already: export converts it to a native format")
    raise ValueError(
        f"{folder / CONFIG_NAME} has model_type={shown(stored.get('model_type'))}: expected one of "
        f"{', '.join(FAMILIES)}"
    )
