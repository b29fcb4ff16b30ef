"""Bait: whatever in a checkpoint can name or contain code does, and writes a flag when it runs."""

import json
import os
from pathlib import Path

import torch

MARK = "evil"  # in the name of all code, so that what names it is found

# Attempts to leave the sandbox of a chat template, which may run what another attempt has reached.
TEMPLATES = (
    "{{{{ cycler.__init__.__globals__.os.open('{flag}', 66) }}}}",
    "{{{{ ''.__class__.__mro__[1].__subclasses__() }}}}",
    "{{{{ ('{{0.__class__.__init__.__globals__}}' | attr('format'))(messages) }}}}",
    "{{{{ messages.append(1) }}}}",
)


class Pickled:
    """Writes the flag when it is unpickled."""

    def __init__(self, flag: Path) -> None:
        self.flag = flag

    def __reduce__(self):
        return os.open, (str(self.flag), os.O_CREAT | os.O_WRONLY)


def code(flag: Path) -> str:
    """Returns a module that writes the flag when it is imported, and has a class for every purpose."""
    return f"""open({str(flag)!r}, "w").write("ran")
from transformers import PreTrainedTokenizerFast, PreTrainedConfig, PreTrainedModel
class {MARK.title()}(PreTrainedTokenizerFast): pass
def generate(*args, **kwargs): pass
"""


def edit(file: Path, fields: dict) -> None:
    """Sets entries of a JSON file, which may be new."""
    stored = json.loads(file.read_text()) if file.is_file() else {}
    file.write_text(json.dumps(stored | fields))


def set_bait(folder: Path, flag: Path) -> None:
    """Puts bait into every file of a checkpoint, or of a folder of tokens, that can name or contain code."""
    local, remote = f"{MARK}.{MARK.title()}", f"someone/{MARK}-repository--{MARK}.{MARK.title()}"
    models = ("AutoConfig", "AutoModel", "AutoModelForCausalLM", "AutoModelForSequenceClassification")
    tools = ("AutoProcessor", "AutoImageProcessor", "AutoFeatureExtractor", "AutoVideoProcessor")
    auto_map = {
        **dict.fromkeys(models, local),
        **dict.fromkeys(tools, remote),
        "AutoTokenizer": [None, f"{folder.name}--{local}"],
    }
    names_code = {
        "auto_map": auto_map,
        "custom_pipelines": {"text-generation": {"impl": local, "pt": ["AutoModelForCausalLM"]}},
        "custom_generate": remote,
    }
    nested = {"note": {"inner": [names_code]}}
    if (folder / "config.json").is_file():
        edit(folder / "config.json", names_code | nested | {"native_fields": {"model_type": "gpt_neox", **names_code}})
    for name in ("tokenizer_config.json", "special_tokens_map.json", "generation_config.json"):
        edit(folder / name, names_code | nested)
    for name in ("preprocessor_config.json", "processor_config.json", "video_preprocessor_config.json"):
        edit(folder / name, names_code | {"processor_class": MARK.title()})
    (folder / "chat_template.jinja").write_text("".join(TEMPLATES).format(flag=flag))
    (folder / "custom_generate").mkdir()
    for file in (
        "evil.py",
        "custom_generate/generate.py",
        "custom_generate/__init__.py",
        "transformers.py",
        "torch.py",
    ):
        (folder / file).write_text(code(flag))
    for file in folder.glob("*.py"):  # the code of hf_gpt itself
        file.write_text(code(flag))
    for file in ("pytorch_model.bin", "training_args.bin", "optimizer.pt", "scheduler.pt", "rng_state.pth"):
        torch.save(Pickled(flag), folder / file)


def set_adapter_bait(folder: Path, flag: Path) -> None:
    """Adds the configuration of an adapter of PEFT that names modules and a base model."""
    (folder / "adapter_config.json").write_text(
        json.dumps(
            {
                "peft_type": "LORA",
                "base_model_name_or_path": str(folder),
                "auto_mapping": {"parent_library": MARK, "base_model_class": MARK.title()},
                "megatron_config": {"a": 1},
                "megatron_core": MARK,
                "target_modules": ["q_proj"],
            }
        )
    )
    torch.save(Pickled(flag), folder / "adapter_model.bin")


def make_working_folder(folder: Path, flag: Path) -> Path:
    """Returns a folder with modules that are named like those that hf_gpt and Python import."""
    folder.mkdir()
    for name in ("transformers", "torch", "numpy", "json", "hf_gpt", "sitecustomize", "usercustomize", MARK):
        (folder / f"{name}.py").write_text(code(flag))
    return folder
