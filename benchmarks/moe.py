"""Compares a mixture of experts with transformers' Mixtral and with a dense model of the same active parameters.

python benchmarks/moe.py [--parts speed balance upcycling] [--rounds 9] [--steps 400] [--text FILE ...]

speed      training step of 2 x 512 tokens, prefill and decode; hidden size 512, 4 layers, 8 experts of 1,024, top 2;
           every experts implementation on both sides, with the same weights; peak memory, each case in its own process
balance    4 layers, 8 experts, trained on text with the stock Trainer: without balancing, with the balancing loss, with
           the router bias instead of a loss; and the dense model of the same active parameters
upcycling  the dense model of `balance`, trained further as it is and upcycled to mixtures of experts
"""

import argparse
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import GREEDY, median_seconds, peak_increase_gigabytes, print_json, run_in_subprocess
from training import read_texts, train
from transformers import MixtralConfig, MixtralForCausalLM, PreTrainedModel, set_seed

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.accounting import account
from hf_gpt.conversion import convert
from hf_gpt.data import TokenBlocks, encode_texts
from hf_gpt.surgery import upcycle
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.training import ExpertMetrics

VOCABULARY, ROWS, MEMORY_ROWS, LENGTH, PROMPT, NEW_TOKENS = 8192, 2, 8, 512, 64, 32
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
    output_router_logits=True,  # Mixtral has no balancing loss without it
)
DENSE = {"num_local_experts": None, "mlp_layer_types": None, "moe_intermediate_size": None}
# batched_mm copies the weights of an expert for each of its tokens: 8 GB in this training step.
IMPLEMENTATIONS = {
    "training step": ["eager", "grouped_mm"],
    "training step and AdamW": ["eager", "grouped_mm"],
    "prefill": ["eager", "grouped_mm"],
    "decode": ["eager", "grouped_mm", "batched_mm"],
}


def build_models() -> dict[str, PreTrainedModel]:
    """Returns Mixtral, our model with the same weights, and our dense model of the same active parameters."""
    set_seed(0)
    native = MixtralForCausalLM(MIXTRAL)
    with tempfile.TemporaryDirectory() as folder:
        native.save_pretrained(Path(folder) / "native")
        ours = GPTForCausalLM.from_pretrained(convert(Path(folder) / "native", Path(folder) / "ours"))
    active = MIXTRAL.num_experts_per_tok * MIXTRAL.intermediate_size
    dense = GPTForCausalLM(GPTConfig(**{**ours.config.to_dict(), **DENSE, "intermediate_size": active}))
    assert abs(dense.num_parameters() / account(ours.config).active_parameters - 1) < 0.001
    return {"mixtral": native, "ours": ours, "dense": dense}


def random_ids(rows: int = ROWS) -> torch.Tensor:
    return torch.randint(0, VOCABULARY, (rows, LENGTH), generator=torch.Generator().manual_seed(0))


def training_step(model: PreTrainedModel, rows: int = ROWS) -> None:
    ids = random_ids(rows)
    model.train()(ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()


def training_step_and_adamw(model: PreTrainedModel) -> None:
    ids = random_ids()
    if not hasattr(model, "optimizer"):
        model.optimizer = torch.optim.AdamW(model.parameters(), fused=True)
    model.train()(ids, labels=ids, use_cache=False).loss.backward()
    model.optimizer.step()
    model.zero_grad()


@torch.inference_mode()
def prefill(model: PreTrainedModel) -> None:
    model.eval()(random_ids(), logits_to_keep=1, output_router_logits=False)


@torch.inference_mode()
def decode(model: PreTrainedModel) -> None:
    model.config.output_router_logits = False
    model.eval().generate(random_ids()[:1, :PROMPT], max_new_tokens=NEW_TOKENS, **GREEDY)
    model.config.output_router_logits = True


WORKLOADS = {
    "training step": training_step,
    "prefill": prefill,
    "decode": decode,
    "training step and AdamW": training_step_and_adamw,
}


def run_with(implementation: str, model: PreTrainedModel, workload: Callable) -> None:
    model.set_experts_implementation(implementation)
    workload(model)


def measure_speed(rounds: int) -> dict[str, dict[str, float]]:
    """Returns seconds of each workload, and the gigabytes that a training step of 8 x 512 tokens adds at its peak."""
    models = build_models()
    results = {}
    for name, workload in WORKLOADS.items():
        calls = {
            f"{side} {implementation}": partial(run_with, implementation, models[side], workload)
            for implementation in IMPLEMENTATIONS[name]
            for side in ("mixtral", "ours")
        }
        results[name] = median_seconds(calls | {"dense": partial(workload, models["dense"])}, rounds)
        print(f"{name} done", file=sys.stderr)
    results["training step of 8 x 512, gigabytes"] = {
        name: float(run_in_subprocess("--peak", *name.split())) for name in results["training step"]
    }
    return results


def peak(side: str, implementation: str = "eager") -> float:
    """Returns the gigabytes that a training step of 8 x 512 tokens adds at its peak, in this process."""
    model = build_models()[side]
    if side != "dense":
        model.set_experts_implementation(implementation)
    prefill(model)  # reads the weights from their mapped files
    return peak_increase_gigabytes(lambda: training_step(model, MEMORY_ROWS))


def print_speed(results: dict[str, dict[str, float]]) -> None:
    for workload, row in results.items():
        best = min(value for name, value in row.items() if name.startswith("mixtral"))
        print(f"\n{workload:32}{'':>10}  / best Mixtral   / dense")
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
    "no balancing": EXPERTS | {"router_aux_loss_coef": 0.0},
    "balancing loss": EXPERTS | {"router_aux_loss_coef": 0.05},
    "router bias, no loss": EXPERTS | {"router_aux_loss_coef": 0.0, "router_bias_update_rate": 0.01},
    "dense": SMALL | {"intermediate_size": 512},
}


class Data:
    """Rows of 128 tokens for training and for evaluation."""

    def __init__(self, texts: list[str]) -> None:
        tokenizer = train_tokenizer(texts, SMALL["vocab_size"])
        self.training, self.evaluation = TokenBlocks(encode_texts(tokenizer, texts), 128).split(0.02)


def train_and_evaluate(model: GPTForCausalLM, data: Data, steps: int, learning_rate: float, seed: int = 0) -> dict:
    """Returns the loss on held-out rows, the MaxVio of each layer in the last eighth of the steps, and the sizes."""
    metrics = ExpertMetrics()
    options = {"steps": steps, "batch_size": 16, "learning_rate": learning_rate, "seed": seed}
    trainer = train(model, data.training, callbacks=[metrics], **options)
    costs = account(model.config, 128)
    return {
        "loss": trainer.evaluate(data.evaluation)["eval_loss"],
        "max_violation": metrics.max_violations,
        "active_parameters": costs.active_parameters,
        "parameters": costs.parameters,
    }


def measure_balance(data: Data, steps: int) -> tuple[dict[str, dict], GPTForCausalLM]:
    """Returns the results, and the trained dense model."""
    results = {}
    for name, fields in BALANCE.items():
        set_seed(0)
        model = GPTForCausalLM(GPTConfig(**fields))
        results[name] = train_and_evaluate(model, data, steps, learning_rate=2e-3)
        print(f"{name} done", file=sys.stderr)
    return results, model


def measure_upcycling(dense: GPTForCausalLM, data: Data, steps: int) -> dict[str, dict]:
    """Trains the dense model and its upcycled versions on the same rows in the same order."""
    models = {
        "dense, trained further": dense,
        "8 copies, top 2": upcycle(dense, 8, 2, router_aux_loss_coef=0.05),
        "16 halves, top 2": upcycle(dense, 16, 2, granularity=2, router_aux_loss_coef=0.05),
    }
    results = {}
    for name, model in models.items():
        results[name] = train_and_evaluate(model, data, steps, learning_rate=1e-3, seed=1)
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
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts, help="default: all")
    parser.add_argument("--rounds", type=int, default=9, help="alternating rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=400, help="training steps; upcycling takes half as many")
    parser.add_argument("--text", nargs="+", type=Path, help="text files (default: the documentation of Python)")
    parser.add_argument("--peak", nargs="+", help=argparse.SUPPRESS)  # one case, in its own process
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(*arguments.peak))
        return
    rows: dict[str, dict] = {}
    if "speed" in arguments.parts:
        rows["speed"] = measure_speed(arguments.rounds)
        print_speed(rows["speed"])
    if {"balance", "upcycling"} & set(arguments.parts):
        data = Data(read_texts(arguments.text))
        rows["balance"], dense = measure_balance(data, arguments.steps)
        print_training("Trained from scratch", rows["balance"])
    if "upcycling" in arguments.parts:
        rows["upcycling"] = measure_upcycling(dense, data, arguments.steps // 2)
        print_training("Trained further", rows["upcycling"])
    print_json(rows=rows)


if __name__ == "__main__":
    main()
