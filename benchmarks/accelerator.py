"""Measures an accelerator: exactness, then training, attention, decoding and a long input, beside transformers' GPT-2.

python benchmarks/accelerator.py [--parts exact train attention decode long] [--seconds 420] [--dry-run]

exact      float32 on the device against float64 on the CPU: logits, loss, gradients; cached against uncached decoding
train      training step of GPT-2 small and XL in bfloat16 autocast, eager and compiled, beside GPT2LMHeadModel
attention  training step of two layers at 16,384 tokens in bfloat16, for each pattern and attention implementation
decode     generate() of GPT-2 small and XL in bfloat16, 1 and 16 rows, dynamic and static cache, beside GPT2LMHeadModel
long       prefill of 2^20 tokens in chunks, then eight tokens; GPT-2 small with RoPE and half of the layers banded

Each case prints one JSON line as soon as it is measured, so that a run that is cut off loses nothing. Needs torch 2.11
and transformers 5.17.
"""

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import cache, partial
from itertools import product
from typing import NamedTuple

import torch
from measure import GREEDY, default_device, median_seconds, print_json
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from hf_gpt import GPTConfig, GPTForCausalLM, preset_config


class Sizes(NamedTuple):
    """The sizes of all cases."""

    exact_length: int = 700
    train: tuple[tuple[str, int, int], ...] = (("gpt2", 16, 1024), ("gpt2-xl", 4, 1024))  # preset, rows, length
    attention_length: int = 16_384
    decode_presets: tuple[str, ...] = ("gpt2", "gpt2-xl")
    new_tokens: int = 128
    long_length: int = 2**20
    prefill_chunk: int = 8192
    gemm: int = 8192
    copy_bytes: int = 2**32
    rounds: int = 7
    shrink: dict[str, int] = {}  # fields of the presets to replace


DRY_RUN = Sizes(
    exact_length=300,
    train=(("gpt2", 2, 128),),
    attention_length=1024,
    decode_presets=("gpt2",),
    new_tokens=8,
    long_length=4096,
    prefill_chunk=1024,
    gemm=256,
    copy_bytes=2**20,
    rounds=1,
    shrink={"num_hidden_layers": 2},
)
NO_DROPOUT = dict.fromkeys(("embedding_dropout", "residual_dropout", "attention_dropout"), 0.0)
SIDES = ("ours", "peer")
Case = tuple[dict[str, object], Callable[[], dict[str, object]]]
"""The description of a case, and the function that measures it."""

EXACT = {
    "dense": {},
    "banded": {"attention_patterns": ["banded"] * 2, "sliding_window": 100},
    "strided": {"attention_patterns": ["strided"] * 2, "attention_stride": 33},
    "fixed": {"attention_patterns": ["fixed"] * 2, "attention_stride": 33, "attention_summary_size": 4},
    "grouped queries": {"num_key_value_heads": 1},
    "sinks": {"attention_sinks": True, "attention_patterns": ["banded", "dense"], "sliding_window": 100},
    "learned positions": {"position_embedding_type": "learned"},
    "experts": {"num_local_experts": 4},
}
PATTERNS = {
    "dense": {},
    "banded": {"attention_patterns": ["banded"] * 2, "sliding_window": 512},
    "strided": {"attention_patterns": ["strided"] * 2, "attention_stride": 128},
    "fixed": {"attention_patterns": ["fixed"] * 2, "attention_stride": 128, "attention_summary_size": 8},
}


def attention_implementations() -> tuple[str, ...]:
    """Returns the implementations beside eager. FlexAttention has no backward on a CPU."""
    return ("sdpa",) if default_device().type == "cpu" else ("sdpa", "flex_attention")


def exact(sizes: Sizes) -> Iterator[Case]:
    """Compares float32 on the device with float64 on the CPU."""
    for (shape, fields), implementation in product(EXACT.items(), ("eager", *attention_implementations())):
        for experts in ("eager", "grouped_mm") if "num_local_experts" in fields else ("eager",):
            case = {"shape": shape, "attention": implementation, "experts": experts}
            yield case, partial(measure_exactness, fields, implementation, experts, sizes.exact_length)


def measure_exactness(fields: dict, implementation: str, experts: str, length: int) -> dict[str, object]:
    """Returns the largest differences: of logits and gradients relative to the largest, of the loss absolute."""
    torch.manual_seed(0)
    shape = {"vocab_size": 97, "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 4}
    model = GPTForCausalLM(GPTConfig(**shape, max_position_embeddings=2048, initializer_range=0.2, **fields))
    ids = torch.randint(3, 97, (2, length))
    mask = torch.ones_like(ids)
    mask[1, :17] = 0
    labels = ids.masked_fill(mask == 0, -100)
    labels[1, 17] = -100  # the prediction of a padded position is undefined
    model.set_attn_implementation("eager")
    model.set_experts_implementation("eager")  # grouped_mm has no float64
    logits, loss, gradients = run_forward_and_backward(model.double(), ids, mask, labels)
    model.zero_grad()
    model.float().to(default_device()).set_attn_implementation(implementation)
    model.set_experts_implementation(experts)
    device_logits, device_loss, device_gradients = run_forward_and_backward(model, ids, mask, labels)
    largest = max(gradient.abs().max() for gradient in gradients.values())
    difference = max((device_gradients[name] - gradients[name]).abs().max() for name in gradients)
    prompt = ids[:1, :60].to(model.device)
    cached, uncached = (
        model.eval().generate(prompt, max_new_tokens=20, use_cache=use_cache, **GREEDY) for use_cache in (True, False)
    )
    return {
        "logits": ((device_logits - logits)[mask.bool()].abs().max() / logits.abs().max()).item(),
        "loss": abs(device_loss - loss),
        "gradients": (difference / largest).item(),
        "cached_equals_uncached": torch.equal(cached, uncached),
    }


def run_forward_and_backward(
    model: GPTForCausalLM, ids: torch.Tensor, mask: torch.Tensor, labels: torch.Tensor
) -> tuple[torch.Tensor, float, dict[str, torch.Tensor]]:
    """Returns logits, loss and gradients in float64 on the CPU."""
    ids, mask, labels = (each.to(model.device) for each in (ids, mask, labels))
    with torch.no_grad():
        logits = model.eval()(ids, attention_mask=mask).logits
    loss = model.train()(ids, attention_mask=mask, labels=labels).loss
    loss.backward()
    gradients = {name: each.grad.double().cpu() for name, each in model.named_parameters() if each.grad is not None}
    return logits.double().cpu(), loss.item(), gradients


def train(sizes: Sizes) -> Iterator[Case]:
    """Measures a training step, and the rate of a bfloat16 matrix product."""
    yield {}, lambda: {"gemm_tflops": gemm_flops_per_second(sizes.gemm, sizes.rounds) / 1e12}
    for (preset, rows, length), compiled, side in product(sizes.train, (False, True), SIDES):
        case = {"model": preset, "side": side, "compiled": compiled, "rows": rows, "length": length}
        yield case, partial(measure_training, preset, side, compiled, rows, length, sizes)


@cache
def gemm_flops_per_second(size: int, rounds: int) -> float:
    """Returns the rate of a product of two square bfloat16 matrices."""
    left, right = (torch.randn(size, size, device=default_device(), dtype=torch.bfloat16) for _ in range(2))
    return 2 * size**3 / seconds_of(lambda: left @ right, rounds)


def measure_training(preset: str, side: str, compiled: bool, rows: int, length: int, sizes: Sizes) -> dict[str, object]:
    """Returns time, rate, peak memory and MFU: (6 N + attention) FLOPs per token, divided by the GEMM rate."""
    gemm = gemm_flops_per_second(sizes.gemm, sizes.rounds)
    model = build(side, preset, sizes).train()
    config, device = model.config, model.device.type
    call = torch.compile(model) if compiled else model
    ids = torch.randint(0, config.vocab_size, (rows, length), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16):
            loss = call(input_ids=ids, labels=ids, use_cache=False).loss
        loss.backward()
        model.zero_grad(set_to_none=True)

    seconds = seconds_of(step, sizes.rounds)
    flops_per_token = 6 * model.num_parameters() + 6 * config.num_hidden_layers * config.hidden_size * length
    return {
        "seconds": seconds,
        "tokens_per_second": rows * length / seconds,
        "mfu": rows * length * flops_per_token / seconds / gemm,
        "peak_gb": peak_gigabytes(),
    }


def attention(sizes: Sizes) -> Iterator[Case]:
    """Measures each pattern in a model of two layers."""
    for pattern, implementation in product(PATTERNS, attention_implementations()):
        case = {"pattern": pattern, "attention": implementation, "length": sizes.attention_length}
        yield case, partial(measure_attention, PATTERNS[pattern], implementation, sizes)


def measure_attention(fields: dict, implementation: str, sizes: Sizes) -> dict[str, object]:
    """Returns seconds and peak memory of forward with loss, and backward."""
    shape = {"vocab_size": 1024, "hidden_size": 1024, "num_hidden_layers": 2, "num_attention_heads": 16}
    model = GPTForCausalLM(GPTConfig(**shape, max_position_embeddings=sizes.attention_length, **fields))
    model.to(default_device(), torch.bfloat16).train().set_attn_implementation(implementation)
    ids = torch.randint(0, 1024, (1, sizes.attention_length), device=model.device)

    def step() -> None:
        model(ids, labels=ids, use_cache=False).loss.backward()
        model.zero_grad(set_to_none=True)

    return {"seconds": seconds_of(step, sizes.rounds), "peak_gb": peak_gigabytes()}


def decode(sizes: Sizes) -> Iterator[Case]:
    """Measures decoding, and the memory bandwidth."""
    yield {}, lambda: {"copy_gb_per_second": copy_bytes_per_second(sizes.copy_bytes, sizes.rounds) / 1e9}
    for preset, side, rows, kv_cache in product(sizes.decode_presets, SIDES, (1, 16), ("dynamic", "static")):
        case = {"model": preset, "side": side, "rows": rows, "cache": kv_cache}
        yield case, partial(measure_decoding, preset, side, rows, kv_cache, sizes)


@cache
def copy_bytes_per_second(size: int, rounds: int) -> float:
    """Returns the memory bandwidth of a copy, which reads and writes each byte once."""
    source = torch.empty(size, dtype=torch.uint8, device=default_device())
    target = torch.empty_like(source)
    return 2 * size / seconds_of(lambda: target.copy_(source), rounds)


def measure_decoding(preset: str, side: str, rows: int, kv_cache: str, sizes: Sizes) -> dict[str, object]:
    """Returns tokens per second, and the rate of reading all weights once per step as a fraction of the bandwidth."""
    bandwidth = copy_bytes_per_second(sizes.copy_bytes, sizes.rounds)
    model = build(side, preset, sizes).to(torch.bfloat16).eval()
    ids = torch.randint(0, model.config.vocab_size, (rows, 64), device=model.device)
    options = GREEDY | {"max_new_tokens": sizes.new_tokens, "attention_mask": torch.ones_like(ids)}
    if kv_cache == "static":
        options["cache_implementation"] = "static"
    seconds = seconds_of(lambda: model.generate(ids, **options), min(3, sizes.rounds))
    weights = sum(parameter.nbytes for parameter in model.parameters())
    return {
        "tokens_per_second": rows * sizes.new_tokens / seconds,
        "fraction_of_bandwidth": weights * sizes.new_tokens / seconds / bandwidth,
    }


def long(sizes: Sizes) -> Iterator[Case]:
    """Measures one long prompt."""
    yield {"tokens": sizes.long_length}, partial(measure_long, sizes)


def measure_long(sizes: Sizes) -> dict[str, object]:
    """Returns seconds and peak memory of the prefill and eight tokens."""
    fields = {"position_embedding_type": "rope", "max_position_embeddings": sizes.long_length + 64}
    patterns = {"attention_patterns": ["banded", "dense"] * 6, "sliding_window": 512}
    model = GPTForCausalLM(preset_config("gpt2", **NO_DROPOUT, **fields, **patterns))
    model.to(default_device(), torch.bfloat16).eval()
    ids = torch.randint(0, model.config.vocab_size, (1, sizes.long_length), device=model.device)
    options = GREEDY | {"max_new_tokens": 8, "prefill_chunk_size": sizes.prefill_chunk}
    seconds = median_seconds({"long": lambda: model.generate(ids, **options)}, rounds=1, warm_up_rounds=0)["long"]
    return {"seconds": seconds, "peak_gb": peak_gigabytes()}


def build(side: str, preset: str, sizes: Sizes) -> PreTrainedModel:
    """Returns our model or GPT2LMHeadModel of the same shape, without dropout, on the device."""
    torch.manual_seed(0)
    config = preset_config(preset, **NO_DROPOUT, **sizes.shrink)
    if side == "ours":
        return GPTForCausalLM(config).to(default_device())
    peer = GPT2Config(
        n_embd=config.hidden_size, n_layer=config.num_hidden_layers, n_head=config.num_attention_heads, resid_pdrop=0,
        embd_pdrop=0, attn_pdrop=0,
    )  # fmt: skip
    return GPT2LMHeadModel(peer).to(default_device())


def seconds_of(call: Callable[[], object], rounds: int) -> float:
    """Returns the median seconds of a call, after three warm-up calls."""
    return median_seconds({"call": call}, rounds, warm_up_rounds=3)["call"]


def peak_gigabytes() -> float:
    """Returns the peak of allocated device memory since the case began; 0 on a CPU."""
    return torch.accelerator.max_memory_allocated() / 1e9 if torch.accelerator.is_available() else 0.0


def start_case() -> None:
    """Drops compiled graphs, which otherwise reach torch's recompile limit, and frees the memory of the last case."""
    torch.compiler.reset()
    if torch.accelerator.is_available():
        torch.accelerator.empty_cache()
        torch.accelerator.reset_peak_memory_stats()


def measure_parts(parts: list[str], sizes: Sizes, seconds: float) -> list[dict[str, object]]:
    """Measures cases until the time limit. A case that fails reports its error, and the others run."""
    started = time.perf_counter()
    results = []
    for part in parts:
        for case, measure in PARTS[part](sizes):
            start_case()
            elapsed = time.perf_counter() - started
            try:
                row = measure() if elapsed < seconds else {"skipped": "time limit"}
            except Exception as error:
                row = {"error": f"{type(error).__name__}: {str(error)[:200]}"}
            results.append({"part": part, "at": round(elapsed, 1), **case, **row})
            print(json.dumps(results[-1]), flush=True)
    return results


PARTS = {"exact": exact, "train": train, "attention": attention, "decode": decode, "long": long}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS, help="default: all, in this order")
    parser.add_argument("--seconds", type=float, default=420, help="starts no case after this time")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes, for a CPU")
    arguments = parser.parse_args()
    torch.set_float32_matmul_precision("highest")  # no TF32 in `exact`
    sizes = DRY_RUN if arguments.dry_run else Sizes()
    device = torch.cuda.get_device_name() if torch.cuda.is_available() else str(default_device())
    print_json(device=device, results=measure_parts(arguments.parts, sizes, arguments.seconds))


if __name__ == "__main__":
    main()
