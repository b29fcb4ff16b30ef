"""Decoding in bfloat16, int8 and int4 beside float32 and beside transformers' GPT-2; and what it costs in perplexity.

python benchmarks/decode.py [--parts speed profile perplexity] [--rounds 5] [--text FILE ...] [--model DIR] [--plot]

speed       GPT-2 small, 124M, random weights: 64 new tokens after 64, greedy, by generate(), one row and sixteen
profile     where the time of one more token goes
perplexity  a small model, trained on nine tenths of each text (kept in --model, and taken from there the next time),
            over the last tenths; and of the model as it is, with a quantised cache
"""

import argparse
import json
import tempfile
from functools import partial
from pathlib import Path

import torch
import transformers
from measure import machine, medians, plot_bars, read_rate
from transformers import AutoTokenizer, PreTrainedModel, QuantizedCache, set_seed

from hf_gpt import GPTConfig, GPTForCausalLM, preset_config
from hf_gpt.data import encode_texts
from hf_gpt.data.text_sources import read_files, standard_library_documentation
from hf_gpt.surgery.quantization import quantize
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.training.runs import RunSettings, train_model

PROMPT, NEW_TOKENS, ROWS = 64, 64, (1, 16)
PARAMETERS = 124e6
BYTES = {"float32": 4, "bfloat16": 2, "int8": 1, "int4": 0.72, "peer float32": 4, "peer bfloat16": 2}  # of a weight
GREEDY = {"max_new_tokens": NEW_TOKENS, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
SMALL = {"hidden_size": 256, "num_hidden_layers": 4, "num_attention_heads": 4}
VOCABULARY, CONTEXT, HELD_OUT = 2048, 256, 0.1
GROUPS = (64, 128)  # beside the default


def variants(model: GPTForCausalLM) -> dict[str, GPTForCausalLM]:
    """One model, in each precision."""
    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        bfloat16 = GPTForCausalLM.from_pretrained(folder, dtype=torch.bfloat16)
    quantized = {"int8": quantize(model, "int8"), "int4": quantize(model, "int4")}
    return {"float32": model, "bfloat16": bfloat16, **quantized}


def gpt2() -> dict[str, PreTrainedModel]:
    set_seed(0)
    peer = {
        f"peer {dtype}": transformers.GPT2LMHeadModel._from_config(
            transformers.GPT2Config(), dtype=getattr(torch, dtype)
        )
        for dtype in ("float32", "bfloat16")
    }
    return {name: model.eval() for name, model in (variants(GPTForCausalLM(preset_config("gpt2"))) | peer).items()}


@torch.inference_mode()
def generate(model: PreTrainedModel, rows: int) -> torch.Tensor:
    ids = torch.randint(1, 50257, (rows, PROMPT), generator=torch.Generator().manual_seed(0))
    return model.generate(ids, attention_mask=torch.ones_like(ids), **GREEDY)


def speed(rounds: int) -> dict[str, dict[str, float]]:
    """New tokens in a second, the prompt's forward pass included; and of one row, what part of the rate at which this
    machine reads memory the reading of the weights is."""
    models = gpt2()
    results = {}
    for rows in ROWS:
        seconds = medians({name: partial(generate, model, rows) for name, model in models.items()}, rounds)
        results[f"{rows} rows"] = {name: rows * NEW_TOKENS / value for name, value in seconds.items()}
    rate, one_row = read_rate(), results["1 rows"]
    results["of memory"] = {name: one_row[name] * PARAMETERS * size / rate for name, size in BYTES.items()}
    return results


def profile() -> dict[str, dict[str, float]]:
    """Milliseconds of one more token, by operation; what is left is Python."""
    results = {}
    for name in ("float32", "int8", "int4"):
        model = gpt2()[name]
        generate(model, 1)
        with torch.profiler.profile() as recorded:
            generate(model, 1)
        events = sorted(recorded.key_averages(), key=lambda event: -event.self_cpu_time_total)[:8]
        results[name] = {event.key: event.self_cpu_time_total / 1e3 / NEW_TOKENS for event in events}
    return results


def trained(folder: Path, texts: list[str], steps: int) -> tuple[GPTForCausalLM, list[int]]:
    """A small model, trained before or now, and the tokens that it has not seen."""
    cuts = [int(len(text) * (1 - HELD_OUT)) for text in texts]
    if not (folder / "config.json").exists():
        seen = [text[:cut] for text, cut in zip(texts, cuts, strict=True)]
        tokenizer = train_tokenizer(seen, VOCABULARY)
        set_seed(0)
        config = GPTConfig(vocab_size=len(tokenizer), max_position_embeddings=CONTEXT, **SMALL)
        settings = RunSettings(context=CONTEXT, steps=steps, batch_size=8, learning_rate=2e-3, save_steps=steps)
        train_model(GPTForCausalLM(config), tokenizer, encode_texts(tokenizer, seen), folder, settings)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    held_out = [token for text, cut in zip(texts, cuts, strict=True) for token in tokenizer.encode(text[cut:])]
    return GPTForCausalLM.from_pretrained(folder), held_out


@torch.inference_mode()
def perplexity_of(
    model: PreTrainedModel, tokens: torch.Tensor, chunk: int = CONTEXT, cache: str | None = None
) -> float:
    """Over rows of the context, (N, CONTEXT), read in chunks, between which a cache of that backend keeps the past."""
    losses = []
    for rows in tokens.split(8):
        past = cache and QuantizedCache(cache, model.config)
        chunks = [model.eval()(part, past_key_values=past, use_cache=past is not None) for part in rows.split(chunk, 1)]
        logits = torch.cat([outputs.logits for outputs in chunks], dim=1)[:, :-1].float()
        losses.append(torch.nn.functional.cross_entropy(logits.flatten(0, 1), rows[:, 1:].flatten(), reduction="none"))
    return torch.cat(losses).double().mean().exp().item()


def perplexity(folder: Path, texts: list[str], steps: int) -> dict[str, dict[str, float]]:
    """Of each precision, and by how many percent it is above the model's own."""
    model, held_out = trained(folder, texts, steps)
    tokens = torch.tensor(held_out[: len(held_out) // CONTEXT * CONTEXT]).view(-1, CONTEXT)
    models = variants(model) | {f"int4, groups of {size}": quantize(model, "int4", group_size=size) for size in GROUPS}
    values = {name: perplexity_of(each, tokens) for name, each in models.items()}
    values["float32, cache in fp8"] = perplexity_of(model, tokens, chunk=CONTEXT // 8, cache="fp8")
    return {
        name: {"perplexity": value, "percent": 100 * (value / values["float32"] - 1)} for name, value in values.items()
    }


def plot(rates: dict[str, dict[str, float]]) -> None:
    charts = {}
    for rows in ROWS:
        groups: dict[str, dict[str, float]] = {}
        for name, rate in rates[f"{rows} rows"].items():
            *peer, dtype = name.split()
            groups.setdefault(dtype, {})["GPT2LMHeadModel" if peer else "ours"] = rate
        charts[f"new tokens in a second, {rows} rows"] = groups
    plot_bars(charts, Path(__file__).with_suffix(".png"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parts = ("speed", "profile", "perplexity")
    parser.add_argument("--parts", nargs="+", default=["speed", "perplexity"], choices=parts)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--text", nargs="+", type=Path, help="the documentation of Python otherwise")
    parser.add_argument("--model", type=Path, help="where the trained model is, or is to be")
    parser.add_argument("--plot", action="store_true", help="draw the speed (needs matplotlib)")
    arguments = parser.parse_args()

    results = {}
    if "speed" in arguments.parts:
        results["new tokens in a second"] = rates = speed(arguments.rounds)
        if arguments.plot:
            plot(rates)
    if "profile" in arguments.parts:
        results["milliseconds of one more token"] = profile()
    if "perplexity" in arguments.parts:
        texts = read_files(arguments.text) if arguments.text else standard_library_documentation()
        with tempfile.TemporaryDirectory() as folder:
            results["perplexity"] = perplexity(arguments.model or Path(folder) / "model", texts, arguments.steps)
    for title, table in results.items():
        print(f"\n{title}")
        for row, values in table.items():
            print(f"{row:24}", "  ".join(f"{name} {value:.3f}" for name, value in values.items()))
    print(json.dumps({"machine": machine(), "results": results}))


if __name__ == "__main__":
    main()
