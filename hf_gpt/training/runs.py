"""Causal language models trained by the stock `Trainer`: the data, one run, and what it measured."""

import json
import math
import shutil
import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import reduce
from torch import nn
from transformers import PreTrainedModel, PreTrainedTokenizerBase, Trainer, TrainerCallback, TrainingArguments
from transformers.trainer_utils import get_last_checkpoint

from ..data import TokenBlocks, Tokens

CHECKPOINTS = "checkpoints"
SETTINGS = "settings.json"
REPORT = "report.json"


@dataclass(frozen=True)
class RunSettings:
    """How to train. A run resumes only with the settings that it began with."""

    context: int
    """Tokens in a row."""
    steps: int
    batch_size: int = 16
    """Rows in a forward pass."""
    gradient_accumulation_steps: int = 1
    learning_rate: float = 1e-3
    """Peak; reached after a tenth of the steps, then a cosine to zero."""
    evaluation_fraction: float = 0.02
    """Part of the rows that is held out, at least one."""
    save_steps: int = 100
    bf16: bool = False
    gradient_checkpointing: bool = False
    seed: int = 0


@dataclass
class RunReport:
    """What a run measured. Losses and entropy in nats per token."""

    parameters: int
    training_tokens: int
    tokens_seen: int
    steps: int
    context: int
    training_loss: float
    evaluation_loss: float
    unigram_entropy: float
    """Of the text: the loss of a model that knows how often each occurs, and nothing else."""
    seconds: float
    """Since the run was last started or resumed."""
    max_violations: list[float] = field(default_factory=list)
    """Of each layer of experts, at the end: what the busiest had to do, beyond the mean."""
    training_curve: list[tuple[int, float]] = field(default_factory=list)
    evaluation_curve: list[tuple[int, float]] = field(default_factory=list)

    @property
    def perplexity(self) -> float:
        return math.exp(self.evaluation_loss)


class ExpertMetrics(TrainerCallback):
    """Has any Trainer of a language model log what the loss of its experts is made of, and how evenly they are used.

        Trainer(model, args, train_dataset=data, callbacks=[ExpertMetrics()])

    Beside `loss` there are then `lm_loss`; `aux_loss` and `z_loss`, without their coefficients, as means over
    micro-batches; and `max_violation`: how much more than the mean the busiest expert of all layers had to do (MaxVio,
    Wang et al. 2024, section 4.1). All are of the steps since the last log. A callback that reports elsewhere comes
    after this one, to see them too.
    """

    def __init__(self) -> None:
        self.max_violations: list[float] = []
        """Of each sparse layer, as last logged."""
        self._sums: dict[str, torch.Tensor] = {}
        self._hook = None

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs) -> None:
        self.on_train_end(args, state, control)  # of a run that was interrupted
        self._hook = model.register_forward_hook(self._gather)

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._sums = {}
        if self._hook is not None:
            self._hook.remove()

    def _gather(self, model: nn.Module, inputs: tuple, outputs: Any) -> None:
        if not model.training or getattr(outputs, "tokens_per_expert", None) is None:
            return
        found = {name: getattr(outputs, name) for name in ("loss", "lm_loss", "aux_loss", "z_loss")}
        found |= {"tokens_per_expert": outputs.tokens_per_expert, "forwards": torch.ones_like(outputs.aux_loss)}
        for name, value in found.items():
            if value is not None:
                self._sums[name] = self._sums.get(name, 0) + value.detach()

    def on_log(self, args, state, control, logs: dict[str, float], **kwargs) -> None:
        if not self._sums or "loss" not in logs:
            return
        sums = {name: reduce(value) for name, value in self._sums.items()}
        load, forwards = sums["tokens_per_expert"], sums["forwards"]
        self.max_violations = (load.amax(dim=1) / load.mean(dim=1) - 1).tolist()
        metrics = {name: (sums[name] / forwards).item() for name in ("aux_loss", "z_loss")}
        if "lm_loss" in sums:  # the Trainer scales the one as the other
            metrics["lm_loss"] = logs["loss"] * (sums["lm_loss"] / sums["loss"]).item()
        metrics["max_violation"] = max(self.max_violations)
        logs |= metrics
        state.log_history[-1] |= metrics
        self._sums = {}


def begin(folder: Path, description: dict[str, Any]) -> None:
    """Note in a new run's folder what it is to do; refuse to resume another.

    Raises:
        ValueError: the folder was begun with another description.
    """
    path = folder / SETTINGS
    if not path.exists():
        path.write_text(json.dumps(description, indent=2) + "\n")
        return
    begun = json.loads(path.read_text())
    if changed := [name for name in description if begun.get(name) != description[name]]:
        name = changed[0]
        raise ValueError(f"cannot resume: {name}={description[name]!r}, but the run began with {begun.get(name)!r}")


def train_model(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, tokens: Tokens, folder: Path, settings: RunSettings
) -> RunReport:
    """Train, from the last checkpoint in `folder` if there is one; save model, tokenizer and report there."""
    data = TokenBlocks(tokens, settings.context)
    training_rows, evaluation_rows = data.split(settings.evaluation_fraction)
    checkpoints = folder / CHECKPOINTS
    accelerated = torch.accelerator.is_available()
    arguments = TrainingArguments(
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
        use_cpu=not accelerated,
        dataloader_pin_memory=accelerated,
        eval_strategy="steps",
        eval_steps=max(1, settings.steps // 5),
        save_steps=settings.save_steps,
        save_total_limit=1,
        logging_steps=max(1, settings.steps // 50),
        include_num_input_tokens_seen="all",
        report_to="none",
        seed=settings.seed,
    )
    if settings.gradient_checkpointing:
        model.gradient_checkpointing_enable()
    metrics = ExpertMetrics()
    trainer = Trainer(
        model=model,
        args=arguments,
        train_dataset=training_rows,
        eval_dataset=evaluation_rows,
        processing_class=tokenizer,
        callbacks=[metrics],
    )
    started = time.monotonic()
    trainer.train(resume_from_checkpoint=last_checkpoint(checkpoints))
    training_curve, evaluation_curve = curve(trainer, "loss"), curve(trainer, "eval_loss")
    if not evaluation_curve or evaluation_curve[-1][0] != trainer.state.global_step:
        trainer.evaluate()
        evaluation_curve = curve(trainer, "eval_loss")
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
    (folder / "training_args.bin").unlink(missing_ok=True)  # a pickle; settings.json says the same
    (folder / f"{REPORT}.tmp").write_text(json.dumps(asdict(report), indent=2) + "\n")
    (folder / f"{REPORT}.tmp").rename(folder / REPORT)  # whole, or not there: it says that training has ended
    return report


def curve(trainer: Trainer, name: str) -> list[tuple[int, float]]:
    """What the Trainer logged under a name, with its steps."""
    return [(log["step"], log[name]) for log in trainer.state.log_history if name in log]


def finished_report(folder: Path) -> RunReport | None:
    """The report of a run in `folder` whose training has ended."""
    path = folder / REPORT
    return RunReport(**json.loads(path.read_text())) if path.exists() else None


def last_checkpoint(folder: Path) -> str | None:
    """The newest checkpoint that was written to its end; what a kill left of newer ones is removed."""
    while (last := get_last_checkpoint(str(folder)) if folder.is_dir() else None) is not None:
        if (Path(last) / "trainer_state.json").exists():  # the Trainer writes it last
            return last
        shutil.rmtree(last)
    return None
