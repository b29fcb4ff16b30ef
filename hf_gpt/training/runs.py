"""One run of the stock `Trainer`: its settings, its checkpoints and its report."""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from pickle import UnpicklingError

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from ..compatibility import enable_activation_checkpointing
from ..data import TokenBlocks, Tokens
from ..data.checksums import checksums_of
from ..folders import PartialFolder, move
from ..json_files import read_json
from ..tokenization.loading import forget_code
from .metrics import ExpertMetrics

REPORT = "report.json"
MANIFEST = "manifest.json"  # of a checkpoint


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
    model: PreTrainedModel,
    tokenizer: PreTrainedTokenizerBase,
    tokens: Tokens,
    folder: PartialFolder,
    settings: RunSettings,
    checkpoint: str | None = None,
) -> RunReport:
    """Trains a model and saves it, its tokenizer and a report.

    Args:
        model: the model to train, in place.
        tokenizer: saved with the model.
        tokens: the data, of which `settings.evaluation_fraction` is held out.
        folder: an `output_folder`, which contains model, tokenizer and report after the run. Training resumes from
            its last checkpoint, if it has one.
        settings: how to train.
        checkpoint: that checkpoint, if the caller has looked for it, which reads and checks all of its files.

    Returns:
        The report that is saved as `report.json`.
    """
    data = TokenBlocks(tokens, settings.context)
    training_rows, evaluation_rows = data.split(settings.evaluation_fraction)
    if settings.gradient_checkpointing:
        enable_activation_checkpointing(model)
    trainer = Trainer(
        model=model,
        args=_training_arguments(folder.unfinished, settings),
        train_dataset=training_rows,
        eval_dataset=evaluation_rows,
        processing_class=forget_code(tokenizer),
        callbacks=[CheckpointMover(folder), ExpertMetrics()],
    )
    started = time.monotonic()
    _train(trainer, checkpoint or last_complete_checkpoint(folder))
    if not (evaluated := _logged(trainer, "eval_loss")) or evaluated[-1][0] != trainer.state.global_step:
        trainer.evaluate()
    training_curve, evaluation_curve = _logged(trainer, "loss"), _logged(trainer, "eval_loss")
    report = RunReport(
        parameters=model.num_parameters(),
        training_tokens=len(training_rows) * settings.context,
        tokens_seen=int(trainer.state.num_input_tokens_seen),
        steps=trainer.state.global_step,
        context=settings.context,
        training_loss=_mean(training_curve),
        evaluation_loss=evaluation_curve[-1][1],
        unigram_entropy=data.unigram_entropy(),
        seconds=time.monotonic() - started,
        max_violations=violations[-1][1] if (violations := _logged(trainer, "max_violations")) else [],
        training_curve=training_curve,
        evaluation_curve=evaluation_curve,
    )
    with folder.writing() as unfinished:
        trainer.save_model(str(unfinished))
        (unfinished / "training_args.bin").unlink(missing_ok=True)  # a pickle of the settings
    with folder.writing() as unfinished:  # after the model: its existence marks the end of training
        (unfinished / REPORT).write_text(json.dumps(asdict(report), indent=2) + "\n")
    return report


class CheckpointMover(TrainerCallback):
    """Moves each checkpoint to the checkpoints of the folder when it is complete, and then removes earlier ones.

    A run that resumes from a checkpoint has the same result as one that was not interrupted.
    """

    def __init__(self, folder: PartialFolder) -> None:
        self.folder = folder

    def on_train_begin(self, args, state, control, **_) -> None:
        if state.global_step >= state.max_steps:
            raise _NoStepIsLeft  # after the last checkpoint, from which the Trainer would train for another step

    def on_step_end(self, args, state, control, **_) -> None:
        control.should_log |= control.should_save  # the Trainer does not save the losses since the last log

    def on_save(self, args, state, control, **_) -> None:
        name = f"{PREFIX_CHECKPOINT_DIR}-{state.global_step}"
        earlier = _checkpoints_of(self.folder)
        _write_manifest(self.folder.unfinished / name)
        move(self.folder.unfinished / name, self.folder.checkpoints / name)
        for checkpoint in earlier:
            _remove(checkpoint, self.folder)


class _NoStepIsLeft(Exception):
    pass


def _train(trainer: Trainer, checkpoint: str | None) -> None:
    """Trains from a checkpoint, or from the beginning. The Trainer loads no pickle with more than plain values."""
    try:
        trainer.train(resume_from_checkpoint=checkpoint)
    except _NoStepIsLeft:
        trainer.is_in_train = False
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
        logging_steps=max(1, settings.steps // 50),
        include_num_input_tokens_seen="all",
        report_to="none",
        seed=settings.seed,
    )


def _mean(curve: list[tuple[int, float]]) -> float:
    """Returns the mean of values over all steps, each of which is that of the steps since the one before."""
    ends = [0, *(step for step, _ in curve)]
    return sum(value * (end - start) for (_, value), (start, end) in zip(curve, pairwise(ends), strict=True)) / ends[-1]


def _logged(trainer: Trainer, name: str) -> list[tuple[int, float]]:
    """Returns the steps and values that the Trainer logged under a name."""
    return [(log["step"], log[name]) for log in trainer.state.log_history if name in log]


def read_report(folder: PartialFolder) -> RunReport | None:
    """Returns the report of a run, or None if its training has not ended."""
    try:
        return RunReport(**read_json(folder.content / REPORT, allow_nan=True))  # the loss of a run that diverged
    except (FileNotFoundError, ValueError, TypeError):  # TypeError: other fields
        return None


def last_complete_checkpoint(folder: PartialFolder) -> str | None:
    """Returns the path of the last complete checkpoint of a run, and removes damaged ones after it."""
    for checkpoint in reversed(_checkpoints_of(folder)):
        if _is_complete(checkpoint):
            return str(checkpoint)
        _remove(checkpoint, folder)
    return None


def _checkpoints_of(folder: PartialFolder) -> list[Path]:
    found = folder.checkpoints.glob(f"{PREFIX_CHECKPOINT_DIR}-*")
    return sorted(found, key=lambda checkpoint: int(checkpoint.name.rpartition("-")[2]))


def _write_manifest(checkpoint: Path) -> None:
    """Writes the name and the checksums of each file of a checkpoint to another file in it."""
    checksums = {file.name: checksums_of(file) for file in checkpoint.iterdir()}
    (checkpoint / MANIFEST).write_text(json.dumps(checksums))


def _is_complete(checkpoint: Path) -> bool:
    """True if a checkpoint has every file of its manifest, unchanged."""
    try:
        manifest = read_json(checkpoint / MANIFEST)
        return all(checksums_of(checkpoint / name) == checksums for name, checksums in manifest.items())
    except (OSError, ValueError):
        return False


def _remove(checkpoint: Path, folder: PartialFolder) -> None:
    """Removes a checkpoint, which is never among the checkpoints in part."""
    shutil.rmtree(checkpoint.rename(folder.unfinished / checkpoint.name))
