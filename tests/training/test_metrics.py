"""`ExpertMetrics` with the stock Trainer."""

import gc

import pytest
from stock_trainer import arguments, rows
from tiny import make_model
from transformers import Trainer, TrainerCallback

from hf_gpt.training import ExpertMetrics


def train_with_metrics(folder, variant="deepseek", model_fields=None, **fields):
    metrics = ExpertMetrics()
    model = make_model(variant, **model_fields or {}).train()
    trainer = Trainer(model, arguments(folder, **fields), train_dataset=rows(), callbacks=[metrics])
    trainer.train()
    return trainer, metrics


@pytest.mark.parametrize("accumulated", [1, 4])
def test_the_terms_add_up_to_the_loss(tmp_path, accumulated):
    sizes = {"per_device_train_batch_size": 16 // accumulated, "gradient_accumulation_steps": accumulated}
    coefficients = {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.25}
    trainer, _ = train_with_metrics(tmp_path, model_fields=coefficients, logging_steps=2, **sizes)
    logs = [log for log in trainer.state.log_history if "loss" in log]
    assert len(logs) == 3
    for log in logs:
        total = log["lm_loss"] + 0.5 * log["aux_loss"] + 0.25 * log["z_loss"]
        # the loss weights micro-batches by their labels; the logged terms weight them equally
        assert log["loss"] == pytest.approx(total, rel=1e-5 if accumulated == 1 else 0.02)
        assert log["lm_loss"] == pytest.approx(log["loss"], rel=0.5)
        assert log["max_violation"] > 0


def test_max_violation_is_of_the_steps_since_the_last_log(tmp_path):
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


def test_callbacks_after_it_see_the_metrics(tmp_path):
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


def test_a_dense_model_logs_nothing_more(tmp_path):
    trainer, metrics = train_with_metrics(tmp_path, "llama", logging_steps=2)
    assert metrics.max_violations == []
    assert not any("max_violation" in log or "lm_loss" in log for log in trainer.state.log_history)


@pytest.mark.parametrize("event", ["on_step_begin", "on_pre_optimizer_step", "on_step_end"])
def test_an_interrupted_run_leaves_no_hook(tmp_path, event):
    """The next run with the same callback has one hook, and a run that is dropped leaves none."""

    def interrupt(args, state, control, **_):
        if state.global_step == 1:
            raise KeyboardInterrupt

    model, stop = make_model("deepseek").train(), TrainerCallback()
    setattr(stop, event, interrupt)
    trainer = Trainer(model, arguments(tmp_path), train_dataset=rows(), callbacks=[ExpertMetrics(), stop])
    hooks = len(model._forward_hooks)
    for _ in range(2):
        with pytest.raises(KeyboardInterrupt):
            trainer.train()
        assert len(model._forward_hooks) == hooks + 1
    trainer.remove_callback(stop)
    trainer.train()
    assert len(model._forward_hooks) == hooks
    trainer.add_callback(stop)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    del trainer
    gc.collect()
    assert len(model._forward_hooks) == hooks
