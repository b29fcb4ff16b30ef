"""Trains a tokenizer and a model on text in one run, and saves them with a loss curve and a model card."""

import hashlib
import json
import os
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from transformers import PreTrainedTokenizerBase, set_seed
from transformers.utils import CONFIG_NAME

from .conversion.checkpoints import weight_files
from .conversion.loading import load_model
from .data import encode_texts, open_tokens
from .folders import output_folder, state_of
from .json_files import read_json
from .model.configuration_gpt import GPTConfig
from .model.modeling_gpt import GPTForCausalLM
from .model.remote_code import without_code
from .presets import preset_config, preset_names
from .publishing import build_model_card, draw_loss_curve, usage_code
from .tokenization import open_tokenizer, train_tokenizer
from .training.runs import RunReport, RunSettings, last_complete_checkpoint, read_report, train_model
from .trust import check_links, check_own_code

LOSS_CURVE, SETTINGS = "loss.png", "settings.json"
DEFAULT_PROMPT = "Once"  # of the usage code, if there is no prompt


class Origin(NamedTuple):
    """The configuration and the weights that a run begins with."""

    config: GPTConfig
    checkpoint: Path | None
    """Folder of the weights and the tokenizer to continue from, or None for random weights."""
    description: str


# A GPT that two cores train in about a minute: blocks as in GPT-2, with rotary positions.
DEMO = Origin(
    GPTConfig(
        vocab_size=2048, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, max_position_embeddings=128
    ),
    checkpoint=None,
    description="random weights",
)
DEMO_SETTINGS = RunSettings(context=128, steps=750, batch_size=8, learning_rate=5e-3, save_steps=750)


class Outcome(NamedTuple):
    """Results of `train_from_text`."""

    report: RunReport
    sample: str
    """The continuation of the prompt; empty without a prompt."""
    usage: str
    """Python code that loads the model."""


def find_origin(name: str, overrides: dict[str, Any] | None = None) -> Origin:
    """Returns the configuration and the weights that a name stands for.

    Args:
        name: a preset, a config.json, or a folder with weights.
        overrides: fields of the configuration to change.

    Raises:
        ValueError: the name is none of these, or the configuration is not valid.
        FileNotFoundError: a folder contains no weights.
    """
    overrides = overrides or {}
    if name in preset_names():
        # the tokenizer of the run sets the special tokens
        overrides = {"bos_token_id": None, "eos_token_id": None} | overrides
        return Origin(preset_config(name, **overrides), None, f"random weights of the preset {name}")
    path = Path(name)
    if not path.exists():
        raise ValueError(f"{name!r} is not a file, a folder or a preset. The presets are {', '.join(preset_names())}")
    if path.is_dir():
        check_links(path)
    read_json(path / CONFIG_NAME if path.is_dir() else path)  # a clearer error than that of transformers
    values, _ = GPTConfig.get_config_dict(path)
    config = GPTConfig(**GPTConfig.override(values, overrides))
    if path.is_file():
        return Origin(config, None, "random weights")
    weight_files(path)  # raises if it has none
    return Origin(config, path, f"the weights in {path.name}")


def train_from_text(
    out: Path,
    texts: list[str] | Path,
    data: str,
    origin: Origin,
    settings: RunSettings,
    *,
    tokenizer_folder: Path | None = None,
    prompt: str | None = None,
    resume: bool = False,
) -> Outcome:
    """Trains a tokenizer, unless there is one, and a model, and saves both with a loss curve and a model card.

    Args:
        out: folder to write, new or empty. It appears when it is complete.
        texts: documents, or a folder of tokens with their tokenizer.
        data: description of the texts for the model card.
        origin: the configuration and the weights to begin with.
        settings: how to train.
        tokenizer_folder: a tokenizer to use instead of a new one or that of the checkpoint.
        prompt: text that the saved model continues in a new interpreter without hf_gpt.
        resume: resume the interrupted run of the same settings in this folder.

    Raises:
        ValueError: the context exceeds the positions of the model, the prompt is empty, or the interrupted run began
            with other settings.
        FileExistsError: `out` is not empty, or there is an interrupted run and `resume` is False.
        FileNotFoundError: there is no interrupted run to resume.
    """
    if settings.context > origin.config.max_position_embeddings:
        raise ValueError(
            f"context={settings.context}: expected at most max_position_embeddings="
            f"{origin.config.max_position_embeddings}"
        )
    if prompt == "":
        raise ValueError("the prompt is empty: expected text to continue")
    if isinstance(texts, Path):
        tokenizer_folder = texts
    recorded = {
        "text": data,
        "sha256": _digest(texts),
        "model": without_code(origin.config.to_diff_dict()),
        "checkpoint": str(origin.checkpoint),
        "tokenizer": str(tokenizer_folder),
        **asdict(settings),
    }
    with output_folder(out, recorded, resume=resume) as folder:
        set_seed(settings.seed)
        checkpoint = last_complete_checkpoint(folder)
        tokenizer = _build_tokenizer(texts, origin, checkpoint or tokenizer_folder or origin.checkpoint)
        tokens = open_tokens(texts) if isinstance(texts, Path) else encode_texts(tokenizer, texts)
        model = _build_model(origin, tokenizer)
        report = read_report(folder) or train_model(model, tokenizer, tokens, folder, settings, checkpoint)
        sample = generate_in_new_interpreter(folder.content, prompt) if prompt is not None else ""
        with folder.writing() as unfinished:
            has_curve = draw_loss_curve(report, unfinished / LOSS_CURVE)
            card = build_model_card(
                model,
                report,
                settings,
                name=out.name,
                data=data,
                origin=origin.description,
                usage=usage_code(out.name, prompt or DEFAULT_PROMPT),
                sample=sample,
                loss_curve=LOSS_CURVE if has_curve else "",
            )
            card.save(unfinished / "README.md")
            (unfinished / SETTINGS).write_text(json.dumps(recorded, indent=2) + "\n")
    return Outcome(report, sample, usage_code(out, prompt or DEFAULT_PROMPT))


def generate_in_new_interpreter(folder: Path, prompt: str) -> str:
    """Returns the continuation of a prompt by a saved model, loaded by the Auto classes in a new interpreter.

    The interpreter runs the code in the folder, which must be that of this package. It imports nothing from the working
    folder, and reads no code that transformers has cached.

    Raises:
        ValueError: the folder contains other code.
        RuntimeError: the model could not be loaded. The message ends with the last line of the traceback.
    """
    folder = folder.resolve()
    check_own_code(folder)
    with TemporaryDirectory() as empty:
        settings = {"HF_HUB_OFFLINE": "1", "HF_MODULES_CACHE": f"{empty}/modules", "PYTHONIOENCODING": "utf-8"}
        process = subprocess.run(
            [sys.executable, "-c", usage_code(folder, prompt)],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            cwd=empty,  # python -c imports from the working folder
            env=os.environ | settings,
            encoding="utf-8",
        )
    if process.returncode:
        raise RuntimeError(f"a new interpreter could not use {folder}: {process.stderr.strip().splitlines()[-1]}")
    return process.stdout.strip()


def _digest(texts: list[str] | Path) -> str:
    """Returns a hash of the text, or of the names, sizes and times of the files in a folder of tokens."""
    content = "\0".join(texts) if isinstance(texts, list) else json.dumps(state_of(sorted(texts.iterdir())))
    return hashlib.sha256(content.encode()).hexdigest()


def _build_tokenizer(texts: list[str], origin: Origin, source: str | Path | None) -> PreTrainedTokenizerBase:
    """Loads the tokenizer in a folder, or trains one without a folder."""
    if source:
        return open_tokenizer(source)
    tokenizer = train_tokenizer(texts, origin.config.vocab_size, show_progress=True)
    tokenizer.model_max_length = origin.config.max_position_embeddings
    return tokenizer


def _build_model(origin: Origin, tokenizer: PreTrainedTokenizerBase) -> GPTForCausalLM:
    """Loads the checkpoint, or builds a model with random weights for the vocabulary of the tokenizer."""
    if origin.checkpoint is not None:
        return load_model(origin.checkpoint)
    config = origin.config.replace(
        vocab_size=max(tokenizer.get_vocab().values()) + 1,  # ids can have gaps
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    model = GPTForCausalLM(config)
    length = min(100, config.max_position_embeddings // 2)
    model.generation_config.update(do_sample=True, temperature=0.8, top_k=50, max_new_tokens=length)
    return model
