"""The stock Trainer on tiny models and random data."""

from contextlib import contextmanager

import pytest
import torch
from tiny import make_model, random_ids
from transformers import Trainer, TrainingArguments

# The name of the argument since transformers 5.23, or the earlier one.
CHECKPOINTING = next(
    name for name in ("activation_checkpointing", "gradient_checkpointing") if hasattr(TrainingArguments, name)
)


def arguments(folder, **fields) -> TrainingArguments:
    defaults = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "save_strategy": "no"}
    return TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, seed=3, **{**defaults, **fields}
    )


def rows(count=48, length=12):
    """Rows of different lengths, padded on the right; the labels of the padding are ignored."""
    ids = random_ids(count, length)
    data = []
    lengths = torch.randint(3, length + 1, (count,), generator=torch.Generator().manual_seed(0))
    for row, used in zip(ids, lengths, strict=True):
        mask = (torch.arange(length) < used).long()
        data.append({"input_ids": row * mask, "attention_mask": mask, "labels": row.masked_fill(mask == 0, -100)})
    return data


def train(folder, model=None, data=None, **fields):
    trainer = Trainer(
        model=model or make_model().train(), args=arguments(folder, **fields), train_dataset=data or rows()
    )
    trainer.train()
    return trainer.model


def assert_same_weights(actual, expected, tolerance=0.0):
    for (name, a), (_, b) in zip(actual.state_dict().items(), expected.state_dict().items(), strict=True):
        assert torch.allclose(a, b, rtol=0, atol=tolerance), name


@contextmanager
def killed_at(step):
    """Interrupts every Trainer when a step begins."""

    def interrupt(self, args, state, *_, **__):
        if state.global_step == step:
            raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("transformers.trainer_callback.DefaultFlowCallback.on_step_begin", interrupt, raising=False)
        yield
