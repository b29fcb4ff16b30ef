"""From text to a folder that anybody can load: tokenizer, model, loss curve and card, in one run."""

import hashlib
import json
import os
import shutil
import subprocess
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from transformers import AutoTokenizer, PreTrainedTokenizerBase, set_seed

from ..data import encode_texts, open_tokens
from ..folders import new_folder, state_of
from ..model.configuration_gpt import GPTConfig
from ..model.modeling_gpt import GPTForCausalLM
from ..presets import preset_config, preset_names
from ..publishing import draw_loss_curve, model_card, three_lines
from ..tokenization import train_tokenizer
from ..training.runs import CHECKPOINTS, RunReport, RunSettings, begin, finished_report, train_model

LOSS_CURVE = "loss.png"


class Origin(NamedTuple):
    """What a run begins with."""

    config: GPTConfig
    checkpoint: Path | None
    """Weights and tokenizer to continue from, or None to begin with random weights."""
    description: str


# A GPT that two cores train in little more than a minute: blocks as in GPT-2, with rotary positions.
DEMO = Origin(
    GPTConfig(
        vocab_size=2048, hidden_size=128, num_hidden_layers=4, num_attention_heads=2, max_position_embeddings=128
    ),
    checkpoint=None,
    description="random weights",
)
DEMO_SETTINGS = RunSettings(context=128, steps=750, batch_size=8, learning_rate=5e-3, save_steps=750)


class Outcome(NamedTuple):
    report: RunReport
    sample: str
    usage: str


def find_origin(name: str, overrides: dict[str, Any] | None = None) -> Origin:
    """A preset's name, a configuration file, or a folder that `save_pretrained` wrote.

    Raises:
        ValueError: it is none of these, or the configuration is refused.
    """
    overrides = overrides or {}
    if name in preset_names():
        # A run sets the special tokens by its tokenizer.
        overrides = {"bos_token_id": None, "eos_token_id": None} | overrides
        return Origin(preset_config(name, **overrides), None, f"random weights of the preset {name}")
    path = Path(name)
    if not path.exists():
        raise ValueError(f"{name!r} is no file, no folder and no preset; the presets are {', '.join(preset_names())}")
    values, _ = GPTConfig.get_config_dict(path)
    config = GPTConfig(**GPTConfig.override(values, overrides))
    if path.is_dir() and any(path.glob("*.safetensors*")):
        return Origin(config, path, f"the weights in {path.name}")
    return Origin(config, None, "random weights")


def train_from_text(
    out: Path,
    texts: list[str] | Path,
    source: str,
    origin: Origin,
    settings: RunSettings,
    *,
    tokenizer_folder: Path | None = None,
    prompt: str | None = None,
    resume: bool = False,
) -> Outcome:
    """Train a tokenizer, unless there is one, and a model; write both to `out` with a loss curve and a card.

    Args:
        texts: documents, or a folder of tokens, which brings its tokenizer.
        source: what `texts` are, in words, for the card.
        tokenizer_folder: a tokenizer to use instead of training one, or that of the checkpoint.
        prompt: what a new interpreter, which does not import hf_gpt, continues with the saved model.
        resume: continue a run of the same settings that was cut off after its first checkpoint.
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
    with new_folder(out, resume=resume, worth_keeping=CHECKPOINTS) as folder:
        description = {
            "text": source,
            "sha256": _digest(texts),
            "model": origin.config.to_diff_dict(),
            "checkpoint": str(origin.checkpoint),
            "tokenizer": str(tokenizer_folder),
            **asdict(settings),
        }
        begin(folder, description)
        set_seed(settings.seed)
        tokenizer = _tokenizer(folder, texts, origin, tokenizer_folder)
        model = _model(origin, tokenizer)
        tokens = open_tokens(texts) if isinstance(texts, Path) else encode_texts(tokenizer, texts)
        report = finished_report(folder) or train_model(model, tokenizer, tokens, folder, settings)

        curve = LOSS_CURVE if draw_loss_curve(report, folder / LOSS_CURVE) else ""
        sample = write_in_new_interpreter(folder, prompt) if prompt is not None else ""
        card = model_card(
            model,
            report,
            settings,
            name=out.name,
            text=source,
            beginning=origin.description,
            usage=three_lines(out.name, prompt or "Once"),
            sample=sample,
            loss_curve=curve,
        )
        card.save(folder / "README.md")
        shutil.rmtree(folder / CHECKPOINTS)
    return Outcome(report, sample, three_lines(out, prompt or "Once"))


def write_in_new_interpreter(folder: Path, prompt: str) -> str:
    """Load a saved folder through the Auto classes in a new interpreter, and let it continue `prompt`.

    Raises:
        RuntimeError: it could not; the message ends with what the interpreter said last.
    """
    script = three_lines(folder, prompt)
    done = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env=os.environ | {"HF_HUB_OFFLINE": "1", "PYTHONIOENCODING": "utf-8"},
        encoding="utf-8",
    )
    if done.returncode:
        raise RuntimeError(f"a new interpreter could not use {folder}: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.strip()


def _digest(texts: list[str] | Path) -> str:
    """The same, if the text is the same; of tokens, if their folder was not written again."""
    read = "\0".join(texts) if isinstance(texts, list) else json.dumps(state_of(sorted(texts.iterdir())))
    return hashlib.sha256(read.encode()).hexdigest()


def _tokenizer(
    folder: Path, texts: list[str], origin: Origin, tokenizer_folder: Path | None
) -> PreTrainedTokenizerBase:
    begun = folder if (folder / "tokenizer.json").exists() else None
    if source := begun or tokenizer_folder or origin.checkpoint:
        return AutoTokenizer.from_pretrained(source)
    tokenizer = train_tokenizer(texts, origin.config.vocab_size, show_progress=True)
    tokenizer.model_max_length = origin.config.max_position_embeddings
    tokenizer.save_pretrained(folder)
    return tokenizer


def _model(origin: Origin, tokenizer: PreTrainedTokenizerBase) -> GPTForCausalLM:
    if origin.checkpoint is not None:
        return GPTForCausalLM.from_pretrained(origin.checkpoint)
    config = GPTConfig(
        **origin.config.to_dict()
        | {
            "vocab_size": max(tokenizer.get_vocab().values()) + 1,  # ids may have gaps
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        }
    )
    model = GPTForCausalLM(config)
    length = min(100, config.max_position_embeddings // 2)
    model.generation_config.update(do_sample=True, temperature=0.8, top_k=50, max_new_tokens=length)
    return model
