"""Trains the small models of moe.py and context_extension.py with the stock Trainer."""

import tempfile
from collections.abc import Sequence
from pathlib import Path

import torch
from torch.utils.data import Dataset
from transformers import PrinterCallback, Trainer, TrainerCallback, TrainingArguments

from hf_gpt import GPTForCausalLM
from hf_gpt.data.text_sources import read_files, standard_library_documentation


def read_texts(files: Sequence[Path] | None) -> list[str]:
    """Returns the text of the files, or the documentation of the Python standard library if there are none."""
    return read_files(files) if files else standard_library_documentation()


def train(
    model: GPTForCausalLM,
    rows: Dataset,
    *,
    steps: int,
    batch_size: int,
    learning_rate: float,
    seed: int = 0,
    callbacks: Sequence[TrainerCallback] = (),
) -> Trainer:
    """Trains with AdamW, a tenth of the steps as warm-up, then a cosine schedule, and returns the Trainer.

    Args:
        callbacks: called every eighth of the steps with the logs.
    """
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=batch_size,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=max(1, steps // 10),
            weight_decay=0.1,
            adam_beta2=0.95,
            logging_steps=max(1, steps // 8),
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=True,
            seed=seed,
        )
        trainer = Trainer(model, arguments, train_dataset=rows, callbacks=list(callbacks))
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    return trainer
