"""The stock Trainer on models of hf_gpt: it learns, resumes, accumulates gradients and packs."""

import pytest
import torch
from stock_trainer import CHECKPOINTING, arguments, assert_same_weights, rows, train
from tiny import make_model, random_ids
from transformers import DataCollatorWithFlattening, Trainer, TrainerCallback, set_seed

from hf_gpt import GPTForCausalLM, GPTForMultipleChoice, GPTForSequenceClassification, GPTForTokenClassification


def test_learns_and_evaluates(tmp_path, variant):
    data = [{"input_ids": row, "labels": row} for row in random_ids(1, 16).repeat(8, 1)]
    trainer = Trainer(
        model=make_model(variant).train(),
        args=arguments(tmp_path, max_steps=40, eval_strategy="steps", eval_steps=20),
        train_dataset=data,
        eval_dataset=data,
    )
    before = trainer.evaluate()["eval_loss"]
    trainer.train()
    assert trainer.evaluate()["eval_loss"] < 0.2 * before


@pytest.mark.parametrize("options", [{"bf16": True}, {CHECKPOINTING: True}], ids=str)
def test_bf16_and_activation_checkpointing(tmp_path, variant, options):
    expected = train(tmp_path, make_model(variant).train(), optim="sgd")
    actual = train(tmp_path, make_model(variant).train(), optim="sgd", **options)
    assert_same_weights(actual, expected, 5e-3 if "bf16" in options else 1e-6)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = control.should_save = state.global_step == self.step


@pytest.mark.parametrize(("kind", "layerdrop"), [("default", 0.1), ("deepseek", 0.0)])
def test_a_resumed_run_has_the_weights_of_an_uninterrupted_one(tmp_path, kind, layerdrop):
    dropouts = {"residual_dropout": 0.1, "attention_dropout": 0.1, "embedding_dropout": 0.1, "layerdrop": layerdrop}
    settings = {"save_strategy": "steps", "save_steps": 5, "max_steps": 10}
    expected = train(tmp_path / "whole", make_model(kind, **dropouts).train(), **settings)

    model = make_model(kind, **dropouts).train()
    first = Trainer(model=model, args=arguments(tmp_path / "cut", **settings), train_dataset=rows())
    first.add_callback(StopAt(5))
    first.train()
    assert first.state.global_step == 5
    set_seed(99)
    fresh = GPTForCausalLM(model.config)
    second = Trainer(model=fresh, args=arguments(tmp_path / "cut", **settings), train_dataset=rows())
    second.train(resume_from_checkpoint=True)
    assert_same_weights(second.model, expected)


def test_accumulated_gradients_equal_one_batch(tmp_path, variant):
    """Micro-batches with different numbers of labels: the loss is the mean over all labels."""
    one = train(tmp_path, make_model(variant).train(), per_device_train_batch_size=16, optim="sgd", max_steps=2)
    many = train(
        tmp_path,
        make_model(variant).train(),
        per_device_train_batch_size=2,
        gradient_accumulation_steps=8,
        optim="sgd",
        max_steps=2,
    )
    assert_same_weights(many, one, 1e-5)


def head_rows(model_class, problem):
    targets = torch.arange(32) % 3
    labels = {
        "single_label_classification": targets,
        "regression": targets.float(),
        "multi_label_classification": torch.nn.functional.one_hot(targets, 3).float(),
    }[problem]
    data = [{"input_ids": row, "attention_mask": torch.ones_like(row)} for row in random_ids(32, 8)]
    for row, label in zip(data, labels, strict=True):
        if model_class is GPTForTokenClassification:  # some tokens are ignored
            label = torch.where(torch.arange(8) <= 2 * label, label, -100)
        if model_class is GPTForMultipleChoice:
            row["attention_mask"] = row["attention_mask"].repeat(3, 1)
            row["input_ids"] = torch.stack([row["input_ids"].roll(shift) for shift in range(3)])
        row["labels"] = label
    return data


@pytest.mark.parametrize(
    ("model_class", "problem"),
    [
        (GPTForSequenceClassification, "single_label_classification"),
        (GPTForSequenceClassification, "multi_label_classification"),
        (GPTForSequenceClassification, "regression"),
        (GPTForTokenClassification, "single_label_classification"),
        (GPTForMultipleChoice, "single_label_classification"),
    ],
)
def test_task_heads_accumulate_gradients(tmp_path, model_class, problem):
    fields = {"num_labels": 1 if problem == "regression" else 3, "problem_type": problem}
    data = head_rows(model_class, problem)
    trained = [
        train(
            tmp_path, make_model(model_class=model_class, **fields).train(), data, optim="sgd", max_steps=2, **batches
        )
        for batches in (
            {"per_device_train_batch_size": 16},
            {"per_device_train_batch_size": 2, "gradient_accumulation_steps": 8},
        )
    ]
    assert_same_weights(*trained, 1e-5)


def test_packed_training_equals_padded_training(tmp_path):
    """With the flattening collator of transformers: one row, positions that restart, no mask."""
    data = [{"input_ids": row["input_ids"][row["attention_mask"].bool()].tolist()} for row in rows(16)]
    packed = Trainer(
        model=make_model().train(),
        args=arguments(tmp_path, max_steps=1, optim="sgd", per_device_train_batch_size=16),
        train_dataset=data,
        data_collator=DataCollatorWithFlattening(),
    )
    packed.train()
    padded = train(tmp_path, data=rows(16), max_steps=1, optim="sgd", per_device_train_batch_size=16)
    assert_same_weights(packed.model, padded, 1e-5)
