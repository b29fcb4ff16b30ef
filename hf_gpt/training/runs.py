"""One run of the stock `Trainer`: its settings, its checkpoints and its report."""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..compatibility import enable_activation_checkpointing
from ..data import TokenBlocks, Tokens
from ..json_files import read_json
from ..tokenization.loading import forget_code
from .metrics import ExpertMetrics

CHECKPOINTS = "checkpoints"
SETTINGS = "settings.json"
REPORT = "report.json"


@dataclass(frozen=True)
class RunSettings:
    """Settings of a run. A run resumes only with the settings that it began with."""

    context: int
    """Tokens in a row."""
    steps: int
    batch_size: int = 16
    """Rows in a forward pass."""
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    """Peak, after a warmup over a tenth of the steps and before a cosine decay to zero."""
    evaluation_fraction: float = 0.02
    """Fraction of the rows that is held out for evaluation; at least one row."""
    save_steps: int = 100
    """Steps between checkpoints."""
    bf16: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0


@dataclass
class RunReport:
    """Results of a run. Losses and entropy are in nats per token."""

    parameters: int
    training_tokens: int
    """Size of the training set."""
    tokens_seen: int
    """Tokens of all steps together."""
    steps: int
    context: int
    training_loss: float
    """Mean over the run."""
    evaluation_loss: float
    """On the rows that are held out, after the last step."""
    unigram_entropy: float
    """Entropy of the token frequencies: the loss of the best model that ignores the context."""
    seconds: float
    """Time since the run was last started or resumed."""
    max_violations: list[float] = field(default_factory=list)
    """MaxVio of each sparse layer in the last log (`ExpertMetrics`)."""
    training_curve: list[tuple[int, float]] = field(default_factory=list)
    """Steps and training losses."""
    evaluation_curve: list[tuple[int, float]] = field(default_factory=list)
    """Steps and evaluation losses."""

    @property
    def perplexity(self) -> float:
        return math.exp(self.evaluation_loss)


def train_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, folder: Path, settings: RunSettings
) -> RunReport:
    """Trains a model and saves it, its tokenizer and a report.

    Args:
        model: the model to train, in place.
        tokenizer: saved with the model.
        tokens: the data, of which `settings.evaluation_fraction` is held out.
        folder: where model, tokenizer, report and checkpoints are saved. Training resumes from the last checkpoint in
            it, if there is one.
        settings: how to train.

    Returns:
        The report that is saved as `report.json`.
    """
    data = TokenBlocks(tokens, settings.context)
    training_rows, evaluation_rows = data.split(settings.evaluation_fraction)
    if settings.gradient_checkpointing:
        enable_activation_checkpointing(model)
    metrics = ExpertMetrics()
    trainer = Trainer(
        model=model,
        args=_training_arguments(folder / CHECKPOINTS, settings),
        train_dataset=training_rows,
        eval_dataset=evaluation_rows,
        processing_class=forget_code(tokenizer),
        callbacks=[metrics],
    )
    started = time.monotonic()
    _train(trainer, last_complete_checkpoint(folder / CHECKPOINTS))
    if not (evaluated := _logged(trainer, "eval_loss")) or evaluated[-1][0] != trainer.state.global_step:
        trainer.evaluate()
    training_curve, evaluation_curve = _logged(trainer, "loss"), _logged(trainer, "eval_loss")
    report = RunReport(
        parameters=model.num_parameters(),
        training_tokens=len(training_rows) * settings.context,
        tokens_seen=int(trainer.state.num_input_tokens_seen),
        steps=trainer.state.global_step,
        context=settings.context,
        training_loss=sum(loss for _, loss in training_curve) / len(training_curve),
        evaluation_loss=evaluation_curve[-1][1],
        unigram_entropy=data.unigram_entropy(),
        seconds=time.monotonic() - started,
        max_violations=metrics.max_violations,
        training_curve=training_curve,
        evaluation_curve=evaluation_curve,
    )
    trainer.save_model(str(folder))
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle of what settings.json contains
    (folder / f"{REPORT}.tmp").write_text(json.dumps(asdict(report), indent=2) + "\n")
    (folder / f"{REPORT}.tmp").rename(folder / REPORT)  # atomic: its existence marks the end of training
    return report


def _train(trainer: Trainer, checkpoint: str | None) -> None:
    """Trains from a checkpoint, or from the beginning. The Trainer loads no pickle with more than plain values."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except UnpicklingError:
        raise ValueError(
            f"{checkpoint} is not resumed: a pickle in it contains more than tensors and plain values"
        ) from None


def _training_arguments(checkpoints: Path, settings: RunSettings) -> TrainingArguments:
    """Returns the arguments of the Trainer, with the betas and the weight decay of GPT-3 (Brown et al. 2020, B)."""
    has_accelerator = torch.accelerator.is_available()
    return TrainingArguments(
        output_dir=str(checkpoints),
        max_steps=settings.steps,
        per_device_train_batch_size=settings.batch_size,
        per_device_eval_batch_size=settings.batch_size,
        gradient_accumulation_steps=settings.gradient_accumulation_steps,
        learning_rate=settings.learning_rate,
        lr_scheduler_type="cosine",
        warmup_steps=max(1, settings.steps // 10),
        weight_decay=0.1,
        adam_beta2=0.95,
        bf16=settings.bf16,
        use_cpu=not has_accelerator,
        dataloader_pin_memory=has_accelerator,
        eval_strategy="steps",
        eval_steps=max(1, settings.steps // 5),
        save_steps=settings.save_steps,
        save_total_limit=1,
        logging_steps=max(1, settings.steps // 50),
        include_num_input_tokens_seen="all",
        report_to="none",
        seed=settings.seed,
    )


def _logged(trainer: Trainer, name: str) -> list[tuple[int, float]]:
    """Returns the steps and values that the Trainer logged under a name."""
    return [(log["step"], log[name]) for log in trainer.state.log_history if name in log]


def record_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Writes the settings of a new run to its folder, or compares them with those of the run that it resumes.

    Raises:
        ValueError: the run began with other settings.
    """
    path = folder / SETTINGS
    if not path.exists():
        path.write_text(json.dumps(settings, indent=2) + "\n")
        return
    recorded = read_json(path)
    if changed := [name for name in settings if recorded.get(name) != settings[name]]:
        name = changed[0]
        raise ValueError(f"cannot resume: {name}={settings[name]!r}, but the run began with {recorded.get(name)!r}")


def read_report(folder: Path) -> RunReport | None:
    """Returns the report of the run in a folder, or None if its training has not ended."""
    path = folder / REPORT
    if not path.exists():
        return None
    try:
        return RunReport(**read_json(path, allow_nan=True))  # the loss of a run that diverged
    except TypeError:
        raise ValueError(f"{path} is not a report: expected the fields of RunReport") from None


def last_complete_checkpoint(folder: Path) -> str | None:
    """Returns the path of the last complete checkpoint in a folder and removes incomplete ones after it."""
    while (last := get_last_checkpoint(str(folder)) if folder.is_dir() else None) is not None:
        if (Path(last) / "trainer_state.json").exists():  # the file that the Trainer writes last
            return last
        shutil.rmtree(last)
    return None
