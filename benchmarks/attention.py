"""Sparse attention beside what transformers and PyTorch have for it: time, memory, and how they grow.

python benchmarks/attention.py [--parts alone step decode] [--lengths 512 1024 4096 16384 65536] [--rounds 3] [--plot]

alone   attention by itself, 8 heads of 64: forward, and forward with backward, beside sdpa with a mask, plain causal
        sdpa and eager attention
step    a training step of two local layers, hidden size 512, beside GPT-Neo's and gpt-oss's classes with the same
        weights; each peak of memory in a process of its own
decode  one more token after 1,024 and after 32,768, and the bytes of the cache
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from measure import in_own_process, machine, medians, peak_gigabytes
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.accounting import account
from hf_gpt.conversion import convert
from hf_gpt.model.attention import eager_attention
from hf_gpt.model.attention_patterns import build_pattern
from hf_gpt.model.sparse_attention import Span, attend_by_pieces

HEADS, HEAD_DIM, VOCABULARY = 8, 64, 8192
PATTERNS = {
    "banded 256": {"attention_patterns": ["banded"], "sliding_window": 256},
    "strided 128": {"attention_patterns": ["strided"], "attention_stride": 128},
    "fixed 128, 8": {"attention_patterns": ["fixed"], "attention_stride": 128, "attention_summary_size": 8},
    "fixed 128, 32": {"attention_patterns": ["fixed"], "attention_stride": 128, "attention_summary_size": 32},
}
# The longest sequence of what grows with its square; beyond it, minutes and gigabytes.
LONGEST = {
    "eager": 4096,
    "sdpa with a mask": 16384,
    "causal sdpa": 16384,
    "fixed 128, 32": 16384,
    "gpt_neo": 8192,
    "gpt_oss": 8192,
}
PLOT = Path(__file__).with_name("attention.png")


def exponents(times: dict[str, dict[int, float]], first: int = 4096, last: int = 16384) -> dict[str, float]:
    """The slope of log time over log length from `first` to `last`, by least squares."""
    slopes = {}
    for name, by_length in times.items():
        points = [(math.log(n), math.log(t)) for n, t in by_length.items() if first <= n <= last]
        if len(points) > 1:
            slopes[name] = statistics.linear_regression(*zip(*points, strict=True)).slope
    return slopes


def config_of(fields: dict, layers: int, length: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD_DIM,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=length,
        **fields | {"attention_patterns": fields["attention_patterns"] * layers},
    )


def alone(lengths: list[int], rounds: int) -> dict[str, dict[str, dict[int, float]]]:
    results: dict[str, dict[str, dict[int, float]]] = {"forward": {}, "forward and backward": {}}
    for length in lengths:
        states = [torch.randn(1, length, HEADS, HEAD_DIM).transpose(1, 2).requires_grad_() for _ in range(3)]
        gradient = torch.randn(1, HEADS, length, HEAD_DIM)
        calls = {"causal sdpa": lambda q, k, v: scaled_dot_product_attention(q, k, v, is_causal=True)}
        if length <= LONGEST["sdpa with a mask"]:
            mask = torch.ones(length, length, dtype=torch.bool).tril().triu(-255)[None, None]
            calls["sdpa with a mask"] = lambda q, k, v: scaled_dot_product_attention(q, k, v, attn_mask=mask)  # noqa: B023
            bias = (
                torch.zeros(1, 1, length, length).masked_fill(~mask, -torch.inf) if length <= LONGEST["eager"] else None
            )
            module = torch.nn.Identity()
            calls["eager"] = lambda q, k, v: eager_attention(module, q, k, v, bias, 0.125)[0].transpose(1, 2)  # noqa: B023
        for name, fields in PATTERNS.items():
            pieces = build_pattern(config_of(fields, 1, length), fields["attention_patterns"][0]).pieces(length, length)
            jobs = [(Span(0, 0, 0, length, length), pieces)]
            calls[name] = lambda q, k, v, jobs=jobs: attend_by_pieces(q, k, v, None, jobs, 0.125).transpose(1, 2)
        calls = {name: call for name, call in calls.items() if length <= LONGEST.get(name, length)}

        def forward(call: Callable) -> None:
            with torch.no_grad():
                call(*states)  # noqa: B023

        def both(call: Callable) -> None:
            torch.autograd.grad(call(*states), states, gradient)  # noqa: B023

        for part, run in (("forward", forward), ("forward and backward", both)):
            timed = medians(
                {name: (lambda call=call, run=run: run(call)) for name, call in calls.items()},
                rounds * max(1, 8192 // length),
            )
            for name, seconds in timed.items():
                results[part].setdefault(name, {})[length] = seconds
        print(f"attention alone, {length} tokens done", file=sys.stderr)
    return results


def native_config(family: str, length: int):
    """Two local layers of a window of 256."""
    common = {"vocab_size": VOCABULARY, "hidden_size": HEADS * HEAD_DIM, "bos_token_id": 0, "eos_token_id": 0}
    common["max_position_embeddings"] = length
    if family == "gpt_neo":
        own = {"num_layers": 2, "num_heads": HEADS, "window_size": 256, "attention_types": [[["local"], 2]]}
    else:
        own = {
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": HEAD_DIM,
            "layer_types": ["sliding_attention"] * 2,
            "sliding_window": 256,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": 512,
        }
    return CONFIG_MAPPING[family](**common | own)


def build(name: str, length: int) -> PreTrainedModel:
    """`ours <pattern>`, `<family>`, or `ours <family>`: with the native class's weights."""
    torch.manual_seed(0)
    if (pattern := name.removeprefix("ours ")) in PATTERNS:
        fields = PATTERNS[pattern] | {"position_embedding_type": "learned"}
        return GPTForCausalLM(config_of(fields, 2, length)).train()
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder) / "native"
        AutoModelForCausalLM.from_config(native_config(pattern, length)).save_pretrained(native)
        if name == pattern:
            return AutoModelForCausalLM.from_pretrained(native).train()
        return GPTForCausalLM.from_pretrained(convert(native, Path(folder) / "ours")).train()


def training_step(model: PreTrainedModel, length: int) -> None:
    ids = torch.randint(1, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    model(ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()


STEPS = ["ours gpt_neo", "gpt_neo", "ours gpt_oss", "gpt_oss", "ours strided 128", "ours fixed 128, 8"]


def step(lengths: list[int], rounds: int) -> tuple[dict[str, dict[int, float]], dict[str, dict[int, float]]]:
    """Seconds, and gigabytes at the peak."""
    times: dict[str, dict[int, float]] = {name: {} for name in STEPS}
    peaks: dict[str, dict[int, float]] = {name: {} for name in STEPS}
    for length in lengths:
        names = [name for name in STEPS if length <= LONGEST.get(name, length)]
        models = {name: build(name, length) for name in names}
        calls = {name: (lambda m=m: training_step(m, length)) for name, m in models.items()}  # noqa: B023
        for name, seconds in medians(calls, rounds).items():
            times[name][length] = seconds
        del models, calls
        for name in names:
            peaks[name][length] = float(in_own_process("--peak", name, length))
        print(f"training step, {length} tokens done", file=sys.stderr)
    return times, peaks


def peak(name: str, length: int) -> float:
    """Gigabytes of a process that builds the model and makes a training step."""
    training_step(build(name, length), length)
    return peak_gigabytes()


def decode(rounds: int) -> dict[str, dict[str, float]]:
    """Milliseconds of one more token after a short and a long context, and the bytes of the cache."""
    results = {}
    for name in ("banded 256", "strided 128", "fixed 128, 8"):
        torch.manual_seed(0)
        model = GPTForCausalLM(config_of(PATTERNS[name], 4, 33_000)).eval()
        caches = {}
        with torch.inference_mode():
            for context in (1024, 32_768):
                caches[context] = DynamicCache(config=model.config)
                model(torch.randint(1, VOCABULARY, (1, context)), past_key_values=caches[context], logits_to_keep=1)
            token = torch.ones(1, 1, dtype=torch.long)
            calls = {
                context: (lambda cache=cache: [model(token, past_key_values=cache) for _ in range(8)])  # noqa: B023
                for context, cache in caches.items()
            }
            timed = medians(calls, 3 * rounds)
        row = {f"ms at {context}": 1000 * seconds / 8 for context, seconds in timed.items()}
        row["ratio"] = timed[32_768] / timed[1024]
        tokens = caches[32_768].get_seq_length()
        held = sum(t.numel() * t.element_size() for layer in caches[32_768].layers for t in (layer.keys, layer.values))
        row["cache bytes"], row["by hf-gpt info"] = held, account(model.config, tokens, torch.float32).cache_bytes
        results[name] = row
    return results


def table(title: str, times: dict[str, dict[int, float]], unit: str = "s") -> None:
    lengths = sorted({length for by_length in times.values() for length in by_length})
    slopes = exponents(times)
    print(f"\n{title}\n{'':20}" + "".join(f"{length:>11,}" for length in lengths) + "   exponent, 4k to 16k")
    for name, by_length in times.items():
        cells = (f"{by_length[n]:>10.3f}{unit[0]}" if n in by_length else f"{'':>11}" for n in lengths)
        print(f"{name:20}" + "".join(cells) + (f"{slopes[name]:>10.2f}" if name in slopes else ""))


def plot(charts: dict[str, dict[str, dict[int, float]]]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(charts), figsize=(5 * len(charts), 4.5), squeeze=False)
    for axis, (title, times) in zip(axes[0], charts.items(), strict=True):
        for name, by_length in times.items():
            ours = name in PATTERNS or name.startswith("ours")
            axis.loglog(list(by_length), list(by_length.values()), "o-" if ours else "s--", label=name)
        axis.set(title=title, xlabel="tokens")
        axis.legend(fontsize=7)
        axis.grid(True, which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", nargs="+", default=["alone", "step", "decode"], choices=["alone", "step", "decode"])
    parser.add_argument("--lengths", nargs="+", type=int, default=[512, 1024, 2048, 4096, 8192, 16384, 32768, 65536])
    parser.add_argument("--step-lengths", nargs="+", type=int, default=[1024, 2048, 4096, 8192, 16384])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--plot", action="store_true", help=f"write {PLOT.name} (needs matplotlib)")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak[0], int(arguments.peak[1])))
        return
    rows: dict[str, dict] = {}
    charts = {}
    if "alone" in arguments.parts:
        for part, times in alone(arguments.lengths, arguments.rounds).items():
            rows[f"alone, {part}"] = charts[f"attention alone, {part} (s)"] = times
            table(f"Attention alone, {HEADS} heads of {HEAD_DIM}: {part}", times)
    if "step" in arguments.parts:
        times, peaks = step(arguments.step_lengths, arguments.rounds)
        rows["step, seconds"] = charts["training step, two layers (s)"] = times
        rows["step, gigabytes"] = charts["training step, peak (GB)"] = peaks
        table("Training step", times)
        table("Training step, peak of memory", peaks, "GB")
    if "decode" in arguments.parts:
        rows["decode"] = decode(arguments.rounds)
        print("\nOne more token, four layers")
        for name, row in rows["decode"].items():
            print(f"{name:20}" + "  ".join(f"{key} {value:,.2f}" for key, value in row.items()))
    if arguments.plot and charts:
        plot(charts)
    print(json.dumps({"machine": machine(), "rows": rows}))


if __name__ == "__main__":
    main()
