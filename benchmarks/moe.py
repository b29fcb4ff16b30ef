"""Mixture of experts beside transformers' Mixtral, beside a dense model of the same active parameters, and in training.

python benchmarks/moe.py [--parts speed balance upcycling] [--rounds 9] [--steps 400] [--text FILE ...]

speed      hidden size 512, 4 layers, 8 experts of 1,024, two for each token: training step of 2 x 512 tokens, prefill,
           decoding; every experts implementation on both sides, with the same weights; peaks of memory, each of a
           process of its own
balance    four layers, eight experts, trained on text by the stock Trainer: without balance, with the loss, with the
           bias that needs no loss; and the dense model of the same active parameters after the same tokens
upcycling  the dense model goes on as it is, and as mixtures of experts
"""

import argparse
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import added_gigabytes, in_own_process, machine, medians
from transformers import (
    MixtralConfig,
    MixtralForCausalLM,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
    set_seed,
)

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.accounting import account
from hf_gpt.conversion import convert
from hf_gpt.data import TokenBlocks, encode_texts
from hf_gpt.data.text_sources import read_files, standard_library_documentation
from hf_gpt.surgery import upcycle
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.training import ExpertMetrics

VOCABULARY, ROWS, MANY_ROWS, LENGTH, NEW_TOKENS = 8192, 2, 8, 512, 32
MIXTRAL = MixtralConfig(
    vocab_size=VOCABULARY,
    hidden_size=512,
    intermediate_size=1024,
    num_hidden_layers=4,
    num_attention_heads=8,
    num_key_value_heads=8,
    head_dim=64,
    num_local_experts=8,
    num_experts_per_tok=2,
    max_position_embeddings=1024,
    output_router_logits=True,  # without it, nothing balances there
)
DENSE = {"num_local_experts": None, "mlp_layer_types": None, "moe_intermediate_size": None}
# batched_mm copies the weights of an expert for each token that it works on: 8 GB in this training step.
SPEED = {
    "training step": ["eager", "grouped_mm"],
    "training step and AdamW": ["eager", "grouped_mm"],
    "prefill": ["eager", "grouped_mm"],
    "decode": ["eager", "grouped_mm", "batched_mm"],
}


def models() -> dict[str, PreTrainedModel]:
    """Mixtral, ours with its weights, and ours dense."""
    set_seed(0)
    native = MixtralForCausalLM(MIXTRAL)
    with tempfile.TemporaryDirectory() as folder:
        native.save_pretrained(Path(folder) / "native")
        ours = GPTForCausalLM.from_pretrained(convert(Path(folder) / "native", Path(folder) / "ours"))
    active = MIXTRAL.num_experts_per_tok * MIXTRAL.intermediate_size
    dense = GPTForCausalLM(GPTConfig(**{**ours.config.to_dict(), **DENSE, "intermediate_size": active}))
    assert abs(dense.num_parameters() / account(ours.config).active_parameters - 1) < 0.001
    return {"mixtral": native, "ours": ours, "dense": dense}


def tokens(rows: int = ROWS) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


def training_step(model: PreTrainedModel, rows: int = ROWS) -> None:
    ids = tokens(rows)
    model.train()(ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()


def training_step_and_adamw(model: PreTrainedModel) -> None:
    ids = tokens()
    if not hasattr(model, "optimizer"):
        model.optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.train()(ids, labels=ids, use_cache=False).loss.backward()
    model.optimizer.step()
    model.zero_grad()


@torch.inference_mode()
def prefill(model: PreTrainedModel) -> None:
    model.eval()(tokens(), logits_to_keep=1, output_router_logits=False)


@torch.inference_mode()
def decode(model: PreTrainedModel) -> None:
    model.config.output_router_logits = False
    options = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    model.eval().generate(tokens()[:1, :64], **options)
    model.config.output_router_logits = True


WORK = {
    "training step": training_step,
    "prefill": prefill,
    "decode": decode,
    "training step and AdamW": training_step_and_adamw,
}


def with_implementation(work: Callable, model: PreTrainedModel, implementation: str) -> Callable[[], None]:
    def call() -> None:
        model.set_experts_implementation(implementation)
        work(model)

    return call


def speed(rounds: int) -> dict[str, dict[str, float]]:
    """Seconds of each; of a training step also the gigabytes at the peak."""
    built = models()
    results = {}
    for name, work in WORK.items():
        calls = {
            f"{side} {implementation}": with_implementation(work, built[side], implementation)
            for implementation in SPEED[name]
            for side in ("mixtral", "ours")
        }
        results[name] = medians(calls | {"dense": lambda: work(built["dense"])}, rounds)  # noqa: B023 called at once
        print(f"{name} done", file=sys.stderr)
    results["training step of 8 x 512, gigabytes"] = {}
    for name in results["training step"]:
        results["training step of 8 x 512, gigabytes"][name] = float(in_own_process("--peak", *name.split()))
    return results


def peak(side: str, implementation: str = "eager") -> float:
    """What a training step of 8 x 512 tokens adds to the memory of a process that holds the model."""
    model = models()[side]
    if side != "dense":
        model.set_experts_implementation(implementation)
    prefill(model)  # weights are read from their files when they are first used
    return added_gigabytes(lambda: training_step(model, MANY_ROWS))


def print_speed(results: dict[str, dict[str, float]]) -> None:
    for work, row in results.items():
        best = min(value for name, value in row.items() if name.startswith("mixtral"))
        print(f"\n{work:32}{'':>10}  / best Mixtral   / dense")
        for name, value in row.items():
            print(f"  {name:30}{value:>10.3f}{value / best:>14.2f}{value / row['dense']:>12.2f}")


SMALL = {
    "vocab_size": 2048,
    "hidden_size": 128,
    "num_hidden_layers": 4,
    "num_attention_heads": 2,
    "max_position_embeddings": 128,
}
EXPERTS = SMALL | {"num_local_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 256}
BALANCE = {
    "no balance": EXPERTS | {"router_aux_loss_coef": 0.0},
    "loss": EXPERTS | {"router_aux_loss_coef": 0.05},
    "bias, without a loss": EXPERTS | {"router_aux_loss_coef": 0.0, "router_bias_update_rate": 0.01},
    "dense": SMALL | {"intermediate_size": 512},
}


class Data:
    """Rows of 128 tokens: to train on, and to evaluate on."""

    def __init__(self, texts: list[str]) -> None:
        tokenizer = train_tokenizer(texts, SMALL["vocab_size"])
        self.training, self.evaluation = TokenBlocks(encode_texts(tokenizer, texts), 128).split(0.02)


def train(model: GPTForCausalLM, data: Data, steps: int, learning_rate: float, seed: int = 0) -> dict:
    """By the stock Trainer. The loss on text that was held out, and MaxVio of each layer in the last eighth."""
    metrics = ExpertMetrics()
    with tempfile.TemporaryDirectory() as folder:
        arguments = TrainingArguments(
            folder,
            max_steps=steps,
            per_device_train_batch_size=16,
            learning_rate=learning_rate,
            lr_scheduler_type="cosine",
            warmup_steps=steps // 10,
            weight_decay=0.1,
            adam_beta2=0.95,
            logging_steps=steps // 8,
            save_strategy="no",
            report_to="none",
            use_cpu=not torch.accelerator.is_available(),
            disable_tqdm=True,
            seed=seed,
        )
        trainer = Trainer(model, arguments, train_dataset=data.training, eval_dataset=data.evaluation)
        trainer.add_callback(metrics)
        trainer.remove_callback(PrinterCallback)
        trainer.train()
        loss = trainer.evaluate()["eval_loss"]
    costs = account(model.config, 128)
    return {
        "loss": loss,
        "max_violation": metrics.max_violations,
        "active_parameters": costs.active_parameters,
        "parameters": costs.parameters,
    }


def build(fields: dict) -> GPTForCausalLM:
    set_seed(0)
    return GPTForCausalLM(GPTConfig(**fields))


def balance(data: Data, steps: int) -> tuple[dict[str, dict], GPTForCausalLM]:
    """The results, and the dense model as it was trained."""
    results = {}
    for name, fields in BALANCE.items():
        model = build(fields)
        results[name] = train(model, data, steps, learning_rate=2e-3)
        print(f"{name} done", file=sys.stderr)
    return results, model


def upcycling(dense: GPTForCausalLM, data: Data, steps: int) -> dict[str, dict]:
    """From one checkpoint, over the same rows in the same order."""
    continued = {
        "dense goes on": dense,
        "8 copies, 2 at work": upcycle(dense, 8, 2, router_aux_loss_coef=0.05),
        "16 halves, 2 at work": upcycle(dense, 16, 2, granularity=2, router_aux_loss_coef=0.05),
    }
    results = {}
    for name, model in continued.items():
        results[name] = train(model, data, steps, learning_rate=1e-3, seed=1)
        print(f"{name} done", file=sys.stderr)
    return results


def print_training(title: str, results: dict[str, dict]) -> None:
    print(f"\n{title:32}{'loss':>8}{'active':>12}{'parameters':>12}  MaxVio of each layer")
    for name, row in results.items():
        violations = " ".join(f"{violation:.2f}" for violation in row["max_violation"])
        print(f"  {name:30}{row['loss']:>8.3f}{row['active_parameters']:>12,}{row['parameters']:>12,}  {violations}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["speed", "balance", "upcycling"]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--steps", type=int, default=400)
    parser.add_argument("--text", nargs="+", type=Path, help="the documentation of Python by default")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(*arguments.peak))
        return
    rows: dict[str, dict] = {}
    if "speed" in arguments.parts:
        rows["speed"] = speed(arguments.rounds)
        print_speed(rows["speed"])
    if {"balance", "upcycling"} & set(arguments.parts):
        data = Data(read_files(arguments.text) if arguments.text else standard_library_documentation())
        rows["balance"], dense = balance(data, arguments.steps)
        print_training("Trained from the beginning", rows["balance"])
    if "upcycling" in arguments.parts:
        rows["upcycling"] = upcycling(dense, data, arguments.steps // 2)
        print_training("Continued", rows["upcycling"])
    print(json.dumps({"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
