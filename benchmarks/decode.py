"""Compares decoding in float32, bfloat16, int8 and int4 with transformers' GPT-2, and the perplexity of each precision.

python benchmarks/decode.py [--parts speed profile perplexity] [--rounds 5] [--text FILE ...] [--model DIR] [--plot]

speed       GPT-2 small (124M), random weights: generate() 64 tokens greedily after a prompt of 64, for 1 and 16 rows
profile     milliseconds per generated token by operation
perplexity  a small model trained on the first nine tenths of each text, evaluated on the rest in each precision, and
            with a quantized KV cache
"""

import argparse
import tempfile
from functools import partial
from pathlib import Path

import torch
import transformers
from measure import GREEDY, median_seconds, plot_bars, print_json, read_bytes_per_second
from training import read_texts
from transformers import PreTrainedModel, QuantizedCache, set_seed

from hf_gpt import GPTConfig, GPTForCausalLM, preset_config
from hf_gpt.data import encode_texts
from hf_gpt.folders import output_folder
from hf_gpt.surgery import quantize
from hf_gpt.tokenization import open_tokenizer, train_tokenizer
from hf_gpt.training import RunSettings, train_model

PROMPT, NEW_TOKENS, ROWS = 64, 64, (1, 16)
PARAMETERS = 124e6
# Bytes per weight; int4 is the mean of packed weights, their scales and zero points, and int8 embeddings.
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.72, "peer float32": 4, "peer bfloat16": 2}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCABULARY, CONTEXT, HELD_OUT = 2048, 256, 0.1
GROUP_SIZES = (64, 128)  # of int4, in addition to the default of 32


def build_variants(model: GPTForCausalLM) -> dict[str, GPTForCausalLM]:
    """Returns the model in each precision."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        bfloat16 = GPTForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    quantized = {"int8": quantize(model, "int8"), "int4": quantize(model, "int4")}
    return {"float32": model, "bfloat16": bfloat16, **quantized}


def build_gpt2() -> dict[str, PreTrainedModel]:
    """Returns our GPT-2 small in each precision, and transformers' in float32 and bfloat16."""
    set_seed(0)
    models = build_variants(GPTForCausalLM(preset_config("gpt2")))
    for dtype in (torch.float32, torch.bfloat16):
        peer = transformers.GPT2LMHeadModel._from_config(transformers.GPT2Config(), dtype=dtype)
        models[f"peer {str(dtype).removeprefix('torch.')}"] = peer
    return {name: model.eval() for name, model in models.items()}


@torch.inference_mode()
def generate(model: PreTrainedModel, rows: int) -> torch.Tensor:
    ids = torch.randint(1, 50257, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    return model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=NEW_TOKENS, **GREEDY)


def measure_speed(rounds: int) -> dict[str, dict[str, float]]:
    """Returns generated tokens per second, prefill included, and the fraction of memory bandwidth of one row.

    The fraction is the rate of reading all weights once per token, divided by the measured read rate.
    """
    models = build_gpt2()
    results = {}
    for rows in ROWS:
        seconds = median_seconds({name: partial(generate, model, rows) for name, model in models.items()}, rounds)
        results[f"{rows} rows"] = {name: rows * NEW_TOKENS / value for name, value in seconds.items()}
    bandwidth, one_row = read_bytes_per_second(), results["1 rows"]
    results["fraction of memory bandwidth"] = {
        name: one_row[name] * PARAMETERS * size / bandwidth for name, size in BYTES.items()
    }
    return results


def measure_profile() -> dict[str, dict[str, float]]:
    """Returns milliseconds per generated token of the eight most expensive operations; Python is not included."""
    results = {}
    models = build_gpt2()
    for name in ("float32", "int8", "int4"):
        generate(models[name], 1)
        with torch.profiler.profile() as profile:
            generate(models[name], 1)
        events = sorted(profile.key_averages(), key=lambda event: -event.self_cpu_time_total)[:8]
        results[name] = {event.key: event.self_cpu_time_total / 1e3 / NEW_TOKENS for event in events}
    return results


def load_or_train(folder: Path, texts: list[str], steps: int) -> tuple[GPTForCausalLM, list[int]]:
    """Returns a small trained model and the held-out tokens. The folder holds the model between runs."""
    cuts = [int(len(text) * (1 - HELD_OUT)) for text in texts]
    if not (folder / "config.json").exists():
        training_texts = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
        tokenizer = train_tokenizer(training_texts, VOCABULARY)
        set_seed(0)
        config = GPTConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **SMALL)
        settings = RunSettings(context=CONTEXT, steps=steps, batch_size=8, learning_rate=2e-3, save_steps=steps)
        tokens = encode_texts(tokenizer, training_texts)
        with output_folder(folder) as new:
            train_model(GPTForCausalLM(config), tokenizer, tokens, new, settings)
    tokenizer = open_tokenizer(folder)
    held_out = [token for text, cut in zip(texts, cuts, strict=True) for token in tokenizer.encode(text[cut:])]
    return GPTForCausalLM.from_pretrained(folder), held_out


@torch.inference_mode()
def perplexity_of(
    model: PreTrainedModel, tokens: torch.Tensor, chunk: int = CONTEXT, cache: str | None = None
) -> float:
    """Returns the perplexity of rows of tokens, (N, CONTEXT).

    Args:
        chunk: number of tokens per forward pass.
        cache: backend of a quantized KV cache between the chunks.
    """
    losses = []
    for rows in tokens.split(8):
        past = cache and QuantizedCache(cache, model.config)
        chunks = [model.eval()(ids, past_key_values=past, use_cache=past is not None) for ids in rows.split(chunk, 1)]
        logits = torch.cat([outputs.logits for outputs in chunks], dim=1)[:, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none"))
    return torch.cat(losses).double().mean().exp().item()


def measure_perplexity(folder: Path, texts: list[str], steps: int) -> dict[str, dict[str, float]]:
    """Returns the perplexity of each precision, and by how many percent it exceeds that of float32."""
    model, held_out = load_or_train(folder, texts, steps)
    tokens = torch.tensor(held_out[: len(held_out) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    models = build_variants(model)
    models |= {f"int4, groups of {size}": quantize(model, "int4", group_size=size) for size in GROUP_SIZES}
    values = {name: perplexity_of(each, tokens) for name, each in models.items()}
    values["float32, fp8 KV cache"] = perplexity_of(model, tokens, chunk=CONTEXT // 8, cache="fp8")
    return {
        name: {"perplexity": value, "percent": 100 * (value / values["float32"] - 1)} for name, value in values.items()
    }


def plot(results: dict[str, dict[str, float]]) -> None:
    charts = {}
    for rows in ROWS:
        groups: dict[str, dict[str, float]] = {}
        for name, rate in results[f"{rows} rows"].items():
            *peer, dtype = name.split()
            groups.setdefault(dtype, {})["GPT2LMHeadModel" if peer else "ours"] = rate
        charts[f"tokens per second, {rows} rows"] = groups
    plot_bars(charts, Path(__file__).with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("speed", "profile", "perplexity")
    parser.add_argument("--parts", nargs="+", default=["speed", "perplexity"], choices=parts)
    parser.add_argument("--rounds", type=int, default=5, help="alternating rounds (default: %(default)s)")
    parser.add_argument("--steps", type=int, default=600, help="training steps of the small model")
    parser.add_argument("--text", nargs="+", type=Path, help="text files (default: the documentation of Python)")
    parser.add_argument("--model", type=Path, help="folder of the small model; trained and written if it has none")
    parser.add_argument("--plot", action="store_true", help="write decode.png, the speed (needs matplotlib)")
    arguments = parser.parse_args()

    results = {}
    if "speed" in arguments.parts:
        results["tokens per second"] = speed = measure_speed(arguments.rounds)
        if arguments.plot:
            plot(speed)
    if "profile" in arguments.parts:
        results["milliseconds per token"] = measure_profile()
    if "perplexity" in arguments.parts:
        with tempfile.TemporaryDirectory() as folder:
            model = arguments.model or Path(folder) / "model"
            results["perplexity"] = measure_perplexity(model, read_texts(arguments.text), arguments.steps)
    for title, table in results.items():
        print(f"\n{title}")
        for row, values in table.items():
            print(f"{row:30}", "  ".join(f"{name} {value:.3f}" for name, value in values.items()))
    print_json(results=results)


if __name__ == "__main__":
    main()
