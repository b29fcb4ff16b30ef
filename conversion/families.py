"""All families by name, and which of them a folder belongs to."""

from pathlib import Path

from transformers.utils import CONFIG_NAME

from ..model.configuration_gpt import GPTConfig
from .family import Family
from .gpt2 import GPT2
from .gpt_neo import GPT_NEO
from .gpt_neox import GPT_NEOX
from .gpt_oss import GPT_OSS
from .gptj import GPTJ
from .llama import LLAMA
from .mixtral import MIXTRAL
from .nanogpt import MINGPT, NANOGPT
from .openai_gpt import OPENAI_GPT
from .opt import OPT
from .storage import read_json

FAMILIES: dict[str, Family] = {
    family.name: family
    for family in (OPENAI_GPT, GPT2, GPT_NEO, GPT_NEOX, GPTJ, OPT, GPT_OSS, LLAMA, MIXTRAL, NANOGPT, MINGPT)
}


def find_family(name: str) -> Family:
    """A family by its name.

    Raises:
        ValueError: there is no such family.
    """
    if not isinstance(name, str) or name not in FAMILIES:
        raise ValueError(f"no family {name!r}: expected one of {', '.join(FAMILIES)}")
    return FAMILIES[name]


def recognise(folder: Path) -> Family:
    """The family of a native checkpoint: by the `model_type` of its config.json, or by a pickle without one.

    Raises:
        ValueError: it is of no family that we know, or hf_gpt's own already.
        FileNotFoundError: the folder holds no model.
    """
    if not (folder / CONFIG_NAME).is_file():
        if list(folder.glob("*.pt")):
            return NANOGPT
        raise FileNotFoundError(f"{folder} holds no model: expected {CONFIG_NAME}, or nanoGPT's ckpt.pt")
    stored = read_json(folder / CONFIG_NAME)
    if "model_type" not in stored and isinstance(stored.get("model"), dict):
        return MINGPT
    if stored.get("model_type") == GPTConfig.model_type:
        raise ValueError(f"{folder} is a model of hf_gpt already: export takes it to a native format")
    return find_family(stored.get("model_type"))
