"""Compares sparse attention with transformers and PyTorch: time, peak memory, and how both grow with the length.

python benchmarks/attention.py [--parts alone step decode] [--lengths 512 1024 4096 16384 65536] [--rounds 3] [--plot]

alone   attention only, 8 heads of 64, forward, and forward with backward; compared with sdpa and the full (T x T) mask,
        causal sdpa, and eager attention
step    training step of two local layers, hidden size 512, compared with GPT-Neo's and gpt-oss's classes with the same
        weights; peak memory, each case in its own process
decode  one token after 1,024 and after 32,768 cached tokens, and the bytes of the KV cache
"""

import argparse
import math
import statistics
import sys
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from measure import median_seconds, peak_gigabytes, print_json, run_in_subprocess
from torch.nn.functional import scaled_dot_product_attention
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedConfig, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.accounting import account
from hf_gpt.conversion import convert
from hf_gpt.model.attention_patterns import build_pattern
from hf_gpt.model.sparse_attention import Span, attend_by_pieces

HEADS, HEAD_DIM, WINDOW, VOCABULARY = 8, 64, 256, 8192
PATTERNS = {
    "banded 256": {"attention_patterns": ["banded"], "sliding_window": WINDOW},
    "strided 128": {"attention_patterns": ["strided"], "attention_stride": 128},
    "fixed 128, 8": {"attention_patterns": ["fixed"], "attention_stride": 128, "attention_summary_size": 8},
    "fixed 128, 32": {"attention_patterns": ["fixed"], "attention_stride": 128, "attention_summary_size": 32},
}
# The longest sequence of the cases with quadratic growth; beyond it, they take minutes and gigabytes.
LONGEST = {
    "eager": 4096,
    "sdpa with mask": 16384,
    "causal sdpa": 16384,
    "fixed 128, 32": 16384,
    "gpt_neo": 8192,
    "gpt_oss": 8192,
}
PLOT = Path(__file__).with_name("attention.png")


Times = dict[str, dict[int, float]]
"""Case -> sequence length -> seconds, or gigabytes."""


def growth_exponents(times: Times, first: int = 4096, last: int = 16384) -> dict[str, float]:
    """Returns the least-squares slope of log time over log length from `first` to `last`, for each case."""
    slopes = {}
    for name, by_length in times.items():
        points = [(math.log(n), math.log(t)) for n, t in by_length.items() if first <= n <= last]
        if len(points) > 1:
            slopes[name] = statistics.linear_regression(*zip(*points, strict=True)).slope
    return slopes


def build_config(fields: dict, layers: int, length: int) -> GPTConfig:
    return GPTConfig(
        vocab_size=VOCABULARY,
        hidden_size=HEADS * HEAD_DIM,
        num_hidden_layers=layers,
        num_attention_heads=HEADS,
        max_position_embeddings=length,
        **fields | {"attention_patterns": fields["attention_patterns"] * layers},
    )


def eager_attention(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    """Computes attention from its definition, with a mask that is added to the scores."""
    return (query @ key.transpose(-2, -1) * HEAD_DIM**-0.5 + bias).softmax(dim=-1) @ value


def sparse_attention(fields: dict, length: int) -> Callable[..., torch.Tensor]:
    """Returns the attention of a pattern over one sequence of this length."""
    pieces = build_pattern(build_config(fields, 1, length), fields["attention_patterns"][0]).pieces(length, length)
    jobs = [(Span(0, 0, 0, length, length), pieces)]

    def attend(query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> torch.Tensor:
        return attend_by_pieces(query, key, value, None, jobs, HEAD_DIM**-0.5).transpose(1, 2)

    return attend


def attention_calls(length: int) -> dict[str, Callable[..., torch.Tensor]]:
    """Returns each attention that is measured at this length: (1, heads, length, head_dim) of q, k, v to the same."""
    calls = {"causal sdpa": partial(scaled_dot_product_attention, is_causal=True)}
    if length <= LONGEST["sdpa with mask"]:
        mask = torch.ones(length, length, dtype=torch.bool).tril().triu(1 - WINDOW)[None, None]
        calls["sdpa with mask"] = partial(scaled_dot_product_attention, attn_mask=mask)
    if length <= LONGEST["eager"]:
        calls["eager"] = partial(eager_attention, bias=torch.zeros(mask.shape).masked_fill(~mask, -torch.inf))
    calls |= {name: sparse_attention(fields, length) for name, fields in PATTERNS.items()}
    return {name: call for name, call in calls.items() if length <= LONGEST.get(name, length)}


def measure_alone(lengths: list[int], rounds: int) -> dict[str, Times]:
    """Returns the seconds of forward, and of forward with backward."""
    results: dict[str, Times] = {"forward": {}, "forward and backward": {}}
    for length in lengths:
        states = [torch.randn(1, length, HEADS, HEAD_DIM).transpose(1, 2).requires_grad_() for _ in range(3)]
        gradient = torch.randn(1, HEADS, length, HEAD_DIM)

        def forward(attend: Callable) -> None:
            with torch.no_grad():
                attend(*states)  # noqa: B023 called at once

        def forward_and_backward(attend: Callable) -> None:
            torch.autograd.grad(attend(*states), states, gradient)  # noqa: B023 called at once

        calls = attention_calls(length)
        for part, run in (("forward", forward), ("forward and backward", forward_and_backward)):
            timed = {name: partial(run, attend) for name, attend in calls.items()}
            for name, seconds in median_seconds(timed, rounds * max(1, 8192 // length)).items():
                results[part].setdefault(name, {})[length] = seconds
        print(f"attention alone, {length} tokens done", file=sys.stderr)
    return results


def native_config(family: str, length: int) -> PreTrainedConfig:
    """Returns a configuration of two local layers."""
    common = {"vocab_size": VOCABULARY, "hidden_size": HEADS * HEAD_DIM, "bos_token_id": 0, "eos_token_id": 0}
    common["max_position_embeddings"] = length
    if family == "gpt_neo":
        own = {"num_layers": 2, "num_heads": HEADS, "window_size": WINDOW, "attention_types": [[["local"], 2]]}
    else:
        own = {
            "num_hidden_layers": 2,
            "num_attention_heads": HEADS,
            "num_key_value_heads": HEADS,
            "head_dim": HEAD_DIM,
            "layer_types": ["sliding_attention"] * 2,
            "sliding_window": WINDOW,
            "num_local_experts": 8,
            "num_experts_per_tok": 2,
            "intermediate_size": 512,
        }
    return CONFIG_MAPPING[family](**common | own)


def build(name: str, length: int) -> PreTrainedModel:
    """Builds `<family>`: the native class; `ours <family>`: ours with its weights; `ours <pattern>`: ours alone."""
    torch.manual_seed(0)
    if (pattern := name.removeprefix("ours ")) in PATTERNS:
        fields = PATTERNS[pattern] | {"position_embedding_type": "learned"}
        return GPTForCausalLM(build_config(fields, 2, length)).train()
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder) / "native"
        AutoModelForCausalLM.from_config(native_config(pattern, length), trust_remote_code=False).save_pretrained(
            native
        )
        if name == pattern:
            return AutoModelForCausalLM.from_pretrained(native, trust_remote_code=False).train()
        return GPTForCausalLM.from_pretrained(convert(native, Path(folder) / "ours")).train()


def training_step(model: PreTrainedModel, length: int) -> None:
    ids = torch.randint(1, VOCABULARY, (1, length), generator=torch.Generator().manual_seed(0))
    model(ids, labels=ids, use_cache=False).loss.backward()
    model.zero_grad()


STEPS = ["ours gpt_neo", "gpt_neo", "ours gpt_oss", "gpt_oss", "ours strided 128", "ours fixed 128, 8"]


def measure_steps(lengths: list[int], rounds: int) -> tuple[Times, Times]:
    """Returns the seconds of a training step, and its peak memory in gigabytes."""
    times: Times = {name: {} for name in STEPS}
    peaks: Times = {name: {} for name in STEPS}
    for length in lengths:
        names = [name for name in STEPS if length <= LONGEST.get(name, length)]
        calls = {name: partial(training_step, build(name, length), length) for name in names}
        for name, seconds in median_seconds(calls, rounds).items():
            times[name][length] = seconds
        del calls
        for name in names:
            peaks[name][length] = float(run_in_subprocess("--peak", name, length))
        print(f"training step, {length} tokens done", file=sys.stderr)
    return times, peaks


def peak(name: str, length: int) -> float:
    """Returns the peak gigabytes of this process after it has built the model and run a training step."""
    training_step(build(name, length), length)
    return peak_gigabytes()


def measure_decode(rounds: int, contexts: tuple[int, int] = (1024, 32_768), tokens: int = 8) -> dict[str, dict]:
    """Returns milliseconds per token after a short and a long context, and the bytes of the long KV cache."""
    short, long = contexts
    results = {}
    for name in ("banded 256", "strided 128", "fixed 128, 8"):
        torch.manual_seed(0)
        model = GPTForCausalLM(build_config(PATTERNS[name], 4, long + 1024)).eval()
        caches = {context: DynamicCache(config=model.config) for context in contexts}
        token = torch.ones(1, 1, dtype=torch.long)

        def decode(cache: DynamicCache) -> None:
            for _ in range(tokens):
                model(token, past_key_values=cache)  # noqa: B023 called at once

        with torch.inference_mode():
            for context, cache in caches.items():
                model(torch.randint(1, VOCABULARY, (1, context)), past_key_values=cache, logits_to_keep=1)
            seconds = median_seconds({context: partial(decode, cache) for context, cache in caches.items()}, 3 * rounds)
        layers = caches[long].layers
        results[name] = {
            **{f"ms per token after {context}": 1000 * value / tokens for context, value in seconds.items()},
            "ratio": seconds[long] / seconds[short],
            "cache bytes": sum(states.nbytes for layer in layers for states in (layer.keys, layer.values)),
            "cache bytes by hf-gpt info": account(
                model.config, caches[long].get_seq_length(), torch.float32
            ).cache_bytes,
        }
    return results


def print_table(title: str, times: Times, unit: str = "s") -> None:
    lengths = sorted({length for by_length in times.values() for length in by_length})
    exponents = growth_exponents(times)
    print(f"\n{title}\n{'':20}" + "".join(f"{length:>11,}" for length in lengths) + "   exponent, 4k to 16k")
    for name, by_length in times.items():
        cells = (f"{by_length[n]:>10.3f}{unit[0]}" if n in by_length else f"{'':>11}" for n in lengths)
        print(f"{name:20}" + "".join(cells) + (f"{exponents[name]:>10.2f}" if name in exponents else ""))


def plot(charts: dict[str, Times]) -> None:
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(1, len(charts), figsize=(5 * len(charts), 4.5), squeeze=False)
    for axis, (title, times) in zip(axes[0], charts.items(), strict=True):
        for name, by_length in times.items():
            ours = name in PATTERNS or name.startswith("ours")
            axis.loglog(list(by_length), list(by_length.values()), "o-" if ours else "s--", label=name)
        axis.set(title=title, xlabel="sequence length (tokens)")
        axis.legend(fontsize=7)
        axis.grid(True, which="both", alpha=0.2)
    figure.tight_layout()
    figure.savefig(PLOT, dpi=75)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ["alone", "step", "decode"]
    lengths = [512, 1024, 2048, 4096, 8192, 16384, 32768, 65536]
    parser.add_argument("--parts", nargs="+", default=parts, choices=parts, help="default: all")
    parser.add_argument("--lengths", nargs="+", type=int, default=lengths, help="sequence lengths of `alone`")
    parser.add_argument("--step-lengths", nargs="+", type=int, default=lengths[1:6], help="sequence lengths of `step`")
    parser.add_argument("--rounds", type=int, default=3, help="alternating rounds at 8,192 tokens and more")
    parser.add_argument("--plot", action="store_true", help=f"write {PLOT.name} (needs matplotlib)")
    parser.add_argument("--peak", nargs=2, help=argparse.SUPPRESS)  # one case, in its own process
    arguments = parser.parse_args()
    if arguments.peak:
        print(peak(arguments.peak[0], int(arguments.peak[1])))
        return
    rows: dict[str, dict] = {}
    charts: dict[str, Times] = {}
    if "alone" in arguments.parts:
        for part, times in measure_alone(arguments.lengths, arguments.rounds).items():
            rows[f"alone, {part}"] = charts[f"attention alone, {part} (s)"] = times
            print_table(f"Attention alone, {HEADS} heads of {HEAD_DIM}: {part}", times)
    if "step" in arguments.parts:
        times, peaks = measure_steps(arguments.step_lengths, arguments.rounds)
        rows["step, seconds"] = charts["training step, two layers (s)"] = times
        rows["step, gigabytes"] = charts["training step, peak memory (GB)"] = peaks
        print_table("Training step", times)
        print_table("Training step, peak memory", peaks, "GB")
    if "decode" in arguments.parts:
        rows["decode"] = measure_decode(arguments.rounds)
        print("\nDecode, four layers")
        for name, row in rows["decode"].items():
            print(f"{name:20}" + "  ".join(f"{key} {value:,.2f}" for key, value in row.items()))
    if arguments.plot and charts:
        plot(charts)
    print_json(rows=rows)


if __name__ == "__main__":
    main()
