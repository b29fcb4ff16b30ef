"""The stock Trainer on our models, and the run that `hf-gpt train` makes of it."""

import json

import pytest
import torch
from tiny import make_model, random_ids
from transformers import (
    DataCollatorWithFlattening,
    PreTrainedTokenizerBase,
    Trainer,
    TrainerCallback,
    TrainingArguments,
    set_seed,
)

from hf_gpt import GPTForCausalLM, GPTForMultipleChoice, GPTForSequenceClassification, GPTForTokenClassification
from hf_gpt.data import encode_texts
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.training.runs import ExpertMetrics, RunSettings, begin, train_model


def arguments(folder, **fields) -> TrainingArguments:
    defaults = {"max_steps": 6, "per_device_train_batch_size": 8, "learning_rate": 1e-2, "save_strategy": "no"}
    return TrainingArguments(
        output_dir=str(folder), report_to="none", use_cpu=True, disable_tqdm=True, seed=3, **{**defaults, **fields}
    )


def rows(count=48, length=12):
    """Rows of different lengths, padded on the right, whose padding is no label."""
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


@pytest.mark.parametrize("options", [{"bf16": True}, {"gradient_checkpointing": True}], ids=str)
def test_bf16_and_gradient_checkpointing(tmp_path, variant, options):
    expected = train(tmp_path, make_model(variant).train(), optim="sgd")
    actual = train(tmp_path, make_model(variant).train(), optim="sgd", **options)
    assert_same_weights(actual, expected, 5e-3 if "bf16" in options else 1e-6)


class StopAt(TrainerCallback):
    def __init__(self, step):
        self.step = step

    def on_step_end(self, args, state, control, **_):
        control.should_training_stop = control.should_save = state.global_step == self.step


@pytest.mark.parametrize(("kind", "layerdrop"), [("default", 0.1), ("deepseek", 0.0)])
def test_a_resumed_run_ends_like_one_that_was_never_stopped(tmp_path, kind, layerdrop):
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
    """Micro-batches hold different numbers of labels: their means must not simply be averaged."""
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
        if model_class is GPTForTokenClassification:  # some tokens have no label
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
def test_heads_accumulate_gradients(tmp_path, model_class, problem):
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
    """transformers' flattening collator: one long row, positions restarting, no mask, no document sees another."""
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


# --- hf_gpt.training.runs ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerBase:
    return train_tokenizer(TEXTS, 300)


TEXTS = [f"Document number {index} says that the cat sat on the mat, {index} times. " * 8 for index in range(20)]


SETTINGS = RunSettings(context=16, steps=8, batch_size=4, save_steps=4)


def new_model(tokenizer):
    return make_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id).train()


def test_a_run_reports_what_it_did(tmp_path, tokenizer):
    report = train_model(new_model(tokenizer), tokenizer, encode_texts(tokenizer, TEXTS), tmp_path, SETTINGS)
    assert report.steps == 8
    assert report.tokens_seen == 8 * 4 * 16
    assert report.evaluation_curve[-1][1] == report.evaluation_loss < report.training_curve[0][1]
    assert json.loads((tmp_path / "report.json").read_text())["evaluation_loss"] == report.evaluation_loss
    assert not list(tmp_path.glob("*.bin"))
    GPTForCausalLM.from_pretrained(tmp_path)


def test_a_killed_run_resumes(tmp_path, tokenizer, monkeypatch):
    train_model(new_model(tokenizer), tokenizer, encode_texts(tokenizer, TEXTS), tmp_path / "whole", SETTINGS)

    class Killed(Exception):
        pass

    def kill(self, args, state, *_, **__):
        if state.global_step == 6:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr("transformers.trainer_callback.DefaultFlowCallback.on_step_begin", kill, raising=False)
        with pytest.raises(Killed):
            train_model(new_model(tokenizer), tokenizer, encode_texts(tokenizer, TEXTS), tmp_path / "cut", SETTINGS)
    set_seed(99)
    report = train_model(new_model(tokenizer), tokenizer, encode_texts(tokenizer, TEXTS), tmp_path / "cut", SETTINGS)
    assert [step for step, _ in report.training_curve] == list(range(1, 9))
    whole, resumed = (GPTForCausalLM.from_pretrained(tmp_path / name) for name in ("whole", "cut"))
    assert_same_weights(resumed, whole)


def test_a_run_resumes_with_its_own_settings_alone(tmp_path):
    begin(tmp_path, {"steps": 8, "context": 16})
    begin(tmp_path, {"steps": 8, "context": 16})
    with pytest.raises(ValueError, match="cannot resume: context=32, but the run began with 16"):
        begin(tmp_path, {"steps": 8, "context": 32})


class TestExpertMetrics:
    def run(self, folder, variant="deepseek", model_fields=None, **fields):
        metrics = ExpertMetrics()
        model = make_model(variant, **model_fields or {}).train()
        trainer = Trainer(model, arguments(folder, **fields), train_dataset=rows(), callbacks=[metrics])
        trainer.train()
        return trainer, metrics

    @pytest.mark.parametrize("accumulated", [1, 4])
    def test_what_the_loss_is_made_of(self, tmp_path, accumulated):
        sizes = {"per_device_train_batch_size": 16 // accumulated, "gradient_accumulation_steps": accumulated}
        coefficients = {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.25}
        trainer, _ = self.run(tmp_path, model_fields=coefficients, logging_steps=2, **sizes)
        logs = [log for log in trainer.state.log_history if "loss" in log]
        assert len(logs) == 3
        for log in logs:
            whole = log["lm_loss"] + 0.5 * log["aux_loss"] + 0.25 * log["z_loss"]
            # micro-batches have their share in the loss by their labels, and one each in what is logged
            assert log["loss"] == pytest.approx(whole, rel=1e-5 if accumulated == 1 else 0.02)
            assert log["lm_loss"] == pytest.approx(log["loss"], rel=0.5)
            assert log["max_violation"] > 0

    def test_the_load_since_the_last_log(self, tmp_path):
        model, metrics, seen = make_model("gpt_oss").train(), ExpertMetrics(), []
        model.register_forward_hook(lambda _, __, output: seen.append(output.tokens_per_expert))
        options = arguments(tmp_path, max_steps=6, logging_steps=3)
        trainer = Trainer(model, options, train_dataset=rows(), callbacks=[metrics])
        trainer.train()
        logged = [log["max_violation"] for log in trainer.state.log_history if "loss" in log]
        for value, forwards in zip(logged, (seen[:3], seen[3:]), strict=True):
            load = sum(forwards)  # (layers, experts)
            violations = [layer.max() / layer.mean() - 1 for layer in load]
            assert value == pytest.approx(max(violations).item())
        assert metrics.max_violations == pytest.approx([violation.item() for violation in violations])

    def test_reporters_that_come_after_it_see_them(self, tmp_path):
        class Reporter(TrainerCallback):
            seen = ()

            def on_log(self, args, state, control, logs, **_):
                self.seen = (*self.seen, *logs)

        reporter = Reporter()
        model = make_model("mixtral").train()
        callbacks = [ExpertMetrics(), reporter]
        options = arguments(tmp_path, logging_steps=2, eval_strategy="steps", eval_steps=3)
        Trainer(model, options, train_dataset=rows(), eval_dataset=rows(8), callbacks=callbacks).train()
        assert {"lm_loss", "aux_loss", "z_loss", "max_violation"} <= set(reporter.seen)

    def test_a_dense_model_logs_what_it_did(self, tmp_path):
        trainer, metrics = self.run(tmp_path, "llama", logging_steps=2)
        assert metrics.max_violations == []
        assert not any("max_violation" in log or "lm_loss" in log for log in trainer.state.log_history)


def test_a_run_with_experts_reports_their_load(tmp_path):
    text = "the quick brown fox jumps over the lazy dog " * 200
    tokenizer = train_tokenizer([text], 300)
    model = make_model("mixtral", vocab_size=300).train()
    report = train_model(
        model, tokenizer, encode_texts(tokenizer, [text]), tmp_path, RunSettings(context=16, steps=4, batch_size=4)
    )
    assert len(report.max_violations) == 1
