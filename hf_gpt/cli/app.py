"""`hf-gpt`: the command line. Each command is a few calls into the rest of the package."""

import difflib
import json
import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import torch
import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GenerationConfig,
    TextStreamer,
    set_seed,
)

from ..accounting import account
from ..conversion import FAMILIES, convert, export
from ..conversion import verify as verify_conversion
from ..conversion.engine import SHARD_SIZE
from ..conversion.families import recognise
from ..conversion.sources import locate
from ..conversion.tokenizers import open_tokenizer
from ..data.documents import read_documents
from ..data.encoders import Encoder, build_encoder
from ..data.text_sources import read_dataset, read_files, standard_library_documentation
from ..data.token_files import skipped_documents
from ..data.tokenizing import SHARD_TOKENS, tokenize_files
from ..folders import new_folder
from ..model.attention_patterns import build_pattern
from ..model.configuration_gpt import GPTConfig
from ..surgery.quantization import GROUP_SIZE, SCHEMES, quantize
from ..surgery.upcycling import upcycle_checkpoint
from ..tokenization.construction import SPECIAL_TOKENS
from ..tokenization.loading import SHIPPED_TOKENIZER
from ..tokenization.split_patterns import SPLIT_PATTERNS
from ..tokenization.training import SAMPLE_BYTES, train_tokenizer
from ..training.runs import RunSettings
from .recipes import DEMO, DEMO_SETTINGS, LOSS_CURVE, Outcome, find_origin, train_from_text

app = typer.Typer(
    name="hf-gpt",
    help="The GPT lineage as one Hugging Face model.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)
console = Console()

MOST_RELATIVE_DIFFERENCE = 1e-3  # between the logits of a model and of its conversion: beyond rounding in any depth

Files = Annotated[list[Path] | None, typer.Argument(metavar="[FILE]...", help="More text files.", show_default=False)]
Text = Annotated[list[Path] | None, typer.Option(metavar="FILE...", help="Text files, UTF-8.", show_default=False)]
Corpus = Annotated[list[Path], typer.Argument(help="Text (.gz), .jsonl (.gz) or .parquet; UTF-8.")]
Column = Annotated[str, typer.Option(help="Where a row of .jsonl or .parquet has its document.")]
Out = Annotated[Path, typer.Option(help="Folder to write. It must be new, or empty.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the unfinished run of the same settings.")]
Verify = Annotated[bool, typer.Option("--verify", help="Load both sides afterwards, and compare their logits.")]
ShardSize = Annotated[str, typer.Option(help="Most bytes in a file of weights; memory follows it.")]
Seed = Annotated[int, typer.Option(help="Seed of initial weights, order of the data and sampling.")]
Set = Annotated[
    list[str] | None,
    typer.Option("--set", "-s", metavar="FIELD=VALUE", help="Change a field of the configuration.", show_default=False),
]


def main() -> None:
    """Run a command; an error that a user can mend is one line, and a status of 1."""
    try:
        app()
    except (OSError, ValueError, ImportError, RuntimeError) as error:
        line = " ".join(str(error).split())
        Console(stderr=True).print(f"error: {line}", style="red", markup=False, highlight=False, soft_wrap=True)
        sys.exit(1)


@app.command()
def demo(
    more: Files = None,
    text: Text = None,
    prompt: Annotated[str, typer.Option(help="What the trained model continues.")] = "The function returns",
    out: Out = Path("hf-gpt-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = DEMO_SETTINGS.steps,
    resume: Resume = False,
    seed: Seed = 0,
) -> None:
    """Train a tokenizer and a small GPT on the documentation of Python, or on your text, and let it write."""
    files = [*(text or []), *(more or [])]
    texts = read_files(files) if files else standard_library_documentation()
    name = ", ".join(file.name for file in files) or "the documentation of the Python standard library"
    settings = replace(DEMO_SETTINGS, steps=steps, seed=seed)
    outcome = train_from_text(out, texts, name, DEMO, settings, prompt=prompt, resume=resume)
    print_outcome(out, outcome)


@app.command()
def train(
    out: Out,
    more: Files = None,
    text: Text = None,
    dataset: Annotated[str | None, typer.Option(help="A data set by its name on the Hub, or a folder.")] = None,
    tokens: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder that `hf-gpt tokenize` wrote.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    column: Annotated[str, typer.Option(help="Column of the data set that holds the text.")] = "text",
    model: Annotated[
        str, typer.Option(help="A preset, a config.json, or a folder with weights to fine-tune.")
    ] = "gpt2",
    set_fields: Set = None,
    tokenizer: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A tokenizer; one is trained otherwise.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1000,
    context: Annotated[int | None, typer.Option(min=2, help="Tokens in a row; the model's most otherwise.")] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a forward pass.")] = 8,
    gradient_accumulation_steps: Annotated[int, typer.Option(min=1, help="Forward passes in a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 6e-4,
    evaluation_fraction: Annotated[float, typer.Option(min=0, max=0.5, help="Part of the text held out.")] = 0.02,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    bf16: Annotated[bool, typer.Option(help="Multiply in bfloat16.")] = False,
    gradient_checkpointing: Annotated[bool, typer.Option(help="Trade time for memory.")] = False,
    prompt: Annotated[str | None, typer.Option(help="What the trained model continues.")] = None,
    resume: Resume = False,
    seed: Seed = 0,
) -> None:
    """Train a language model on your text: any preset or configuration, from the beginning or from weights."""
    files = [*(text or []), *(more or [])]
    if sum(map(bool, (files, dataset, tokens))) != 1:
        raise ValueError("expected one of --text, --dataset and --tokens")
    if tokens is not None and tokenizer is not None:
        raise ValueError("--tokens have a tokenizer already: expected no --tokenizer")
    if tokens is not None:
        texts, name = tokens, tokens.name
    elif files:
        texts, name = read_files(files), ", ".join(file.name for file in files)
    else:
        texts, name = read_dataset(dataset, split, column), f"{dataset} ({split})"
    overrides = parse_fields(set_fields or [])
    origin = find_origin(model, overrides)
    if overrides and origin.checkpoint is not None:
        raise ValueError(f"{model} has weights already: {next(iter(overrides))} can no longer be changed")
    settings = RunSettings(
        context=context or origin.config.max_position_embeddings,
        steps=steps,
        batch_size=batch_size,
        gradient_accumulation_steps=gradient_accumulation_steps,
        learning_rate=learning_rate,
        evaluation_fraction=evaluation_fraction,
        save_steps=save_steps,
        bf16=bf16,
        gradient_checkpointing=gradient_checkpointing,
        seed=seed,
    )
    outcome = train_from_text(
        out, texts, name, origin, settings, tokenizer_folder=tokenizer, prompt=prompt, resume=resume
    )
    print_outcome(out, outcome)


@app.command("train-tokenizer")
def train_tokenizer_command(
    files: Corpus,
    out: Out,
    vocab_size: Annotated[int, typer.Option(help="Most tokens, bytes and special ones included.")] = 50257,
    split_pattern: Annotated[str, typer.Option(help=f"One of {', '.join(SPLIT_PATTERNS)}.")] = "gpt2",
    special_token: Annotated[
        list[str] | None, typer.Option(help="A special token beside those of every tokenizer.", show_default=False)
    ] = None,
    column: Column = "text",
    sample_bytes: Annotated[
        int, typer.Option(min=1, help="Most text to learn from, spread evenly; memory follows it.")
    ] = SAMPLE_BYTES,
    against: Annotated[str, typer.Option(help="A tokenizer to compare with, if it is at hand.")] = "gpt2",
) -> None:
    """Train a byte-level BPE tokenizer that AutoTokenizer loads anywhere."""
    skipped: list[str] = []
    with new_folder(out) as folder:
        tokenizer = train_tokenizer(
            read_texts(files, column, skipped),
            vocab_size,
            split_pattern,
            special_tokens=[*(special_token or []), *SPECIAL_TOKENS],
            sample_bytes=sample_bytes,
            show_progress=True,
        )
        tokenizer.save_pretrained(folder)
    print_skipped(skipped)
    console.print(f"{out}: {len(tokenizer):,} tokens")
    compared = {str(out): build_encoder(tokenizer)}
    with suppress(OSError, ValueError):
        compared[against] = build_encoder(open_tokenizer(against, local_files_only=True))
    print_bytes_per_token(compared, files, column)


@app.command("tokenize")
def tokenize_command(
    files: Corpus,
    out: Out,
    tokenizer: Annotated[
        str,
        typer.Option(
            help="Folder or Hub id of a tokenizer, or a file like o200k_base.tiktoken; otherwise the one that ships."
        ),
    ] = SHIPPED_TOKENIZER,
    column: Column = "text",
    engine: Annotated[
        str | None, typer.Option(help="tiktoken or tokenizers; the faster otherwise. The ids are the same.")
    ] = None,
    threads: Annotated[int | None, typer.Option(min=1, help="One for each core otherwise.")] = None,
    shard_tokens: Annotated[int, typer.Option(min=1, help="Tokens after which a new file begins.")] = SHARD_TOKENS,
) -> None:
    """Encode a corpus into files of tokens that TokenBlocks maps into memory. Run again, it goes on where it was."""
    index = tokenize_files(
        files,
        open_tokenizer(tokenizer),
        out,
        column=column,
        engine=engine,
        threads=threads,
        shard_tokens=shard_tokens,
        show_progress=True,
    )
    print_skipped(skipped_documents(out))
    console.print(
        f"{out}: {index.tokens:,} tokens of {index.documents:,} documents, {index.text_bytes / index.tokens:.2f} bytes "
        f"in each; {len(index.shards)} files of {np.dtype(index.dtype).name}"
    )


@app.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue; several make one batch.", show_default=False)
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="File whose text is a prompt.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
) -> None:
    """Continue prompts, files, or standard input.

    Every option of generate() goes by its own name: --max_new_tokens 50 --do_sample --temperature 0.8 --top_k 40
    --top_p 0.9 --repetition_penalty 1.1 --num_beams 4 --num_return_sequences 3 ...
    """
    options = parse_generation_options(context.args)
    prompts = [*(prompt or []), *read_files(file or [])]
    if not prompts:
        if sys.stdin.isatty():
            raise ValueError("nothing to continue: expected --prompt, --file or text on standard input")
        prompts = [sys.stdin.read()]
    if not all(prompts):
        raise ValueError("a prompt is empty: expected text to continue")

    try:
        tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left")
    except (OSError, ValueError) as error:
        raise OSError(f"{model} is no folder with a model and a tokenizer, and no model on the Hub: {error}") from error
    network = AutoModelForCausalLM.from_pretrained(model)
    if torch.accelerator.is_available():
        network.to(torch.accelerator.current_accelerator())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    options = {"pad_token_id": tokenizer.pad_token_id, "tokenizer": tokenizer, **options}
    if seed is not None:
        set_seed(seed)
    inputs = tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1).to(network.device)
    try:
        asked = network.generation_config.to_dict() | options
        rows = len(prompts) * (asked.get("num_return_sequences") or 1) * (asked.get("num_beams") or 1)
        streamer = TextStreamer(tokenizer, skip_special_tokens=True) if rows == 1 else None
        sequences = network.generate(**inputs, streamer=streamer, **options)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"generate() refused its options: {error}") from error
    if streamer is None:
        for index, written in enumerate(tokenizer.batch_decode(sequences, skip_special_tokens=True)):
            console.rule(str(index + 1))
            print(written)


@app.command("convert")
def convert_command(
    src: Annotated[str, typer.Argument(help="Folder or Hub id of a native checkpoint.")],
    out: Annotated[Path, typer.Argument(help="Folder to write. It must be new, or empty.")],
    verify: Verify = False,
    max_shard_size: ShardSize = SHARD_SIZE,
) -> None:
    """Make a model of hf_gpt from a native checkpoint; its family is recognised. Run again, it goes on where it was."""
    source = locate(src)
    family = recognise(source).name
    convert(source, out, max_shard_size=max_shard_size, show_progress=True)
    console.print(f"{out}: hf_gpt, from {family}")
    if verify:
        print_verification(ours=out, native=source, family=family)


@app.command("export")
def export_command(
    src: Annotated[str, typer.Argument(help="Folder or Hub id of a model of hf_gpt.")],
    out: Annotated[Path, typer.Argument(help="Folder to write. It must be new, or empty.")],
    to: Annotated[str, typer.Option(metavar="FAMILY", help=f"One of {', '.join(FAMILIES)}.")],
    verify: Verify = False,
    max_shard_size: ShardSize = SHARD_SIZE,
) -> None:
    """Make a native checkpoint from a model of hf_gpt, or say what the family cannot express."""
    source = locate(src)
    export(source, out, to, max_shard_size=max_shard_size, show_progress=True)
    console.print(f"{out}: {to}, from hf_gpt")
    if verify:
        print_verification(ours=source, native=out, family=to)


@app.command("upcycle")
def upcycle_command(
    src: Annotated[str, typer.Argument(help="Folder or Hub id of a dense model of hf_gpt.")],
    out: Annotated[Path, typer.Argument(help="Folder to write. It must be new, or empty.")],
    num_experts: Annotated[int, typer.Option(min=1, help="Experts in each sparse layer.")] = 8,
    num_experts_per_tok: Annotated[int, typer.Option(min=1, help="How many of them work on each token.")] = 2,
    granularity: Annotated[int, typer.Option(min=1, help="Cut the layer into so many experts, a part as wide.")] = 1,
    layer: Annotated[
        list[int] | None, typer.Option(help="A layer to make sparse; all otherwise.", show_default=False)
    ] = None,
    noise: Annotated[float, typer.Option(min=0, help="Noise on the experts, as a part of their weights.")] = 0.0,
    reinitialise: Annotated[
        float, typer.Option(min=0, max=1, help="Part of each expert's width that is drawn anew.")
    ] = 0.0,
    set_fields: Set = None,
    seed: Seed = 0,
    max_shard_size: ShardSize = SHARD_SIZE,
) -> None:
    """Make a mixture of experts of a dense model: it computes the same, until it is trained. Run again, it goes on
    where it was."""
    upcycle_checkpoint(
        src,
        out,
        num_experts,
        num_experts_per_tok,
        granularity=granularity,
        layers=layer,
        noise=noise,
        reinitialise=reinitialise,
        seed=seed,
        max_shard_size=max_shard_size,
        show_progress=True,
        **parse_fields(set_fields or []),
    )
    dense, sparse = (account(GPTConfig.from_pretrained(folder)) for folder in (locate(src), out))
    console.print(
        f"{out}: {sparse.parameters:,} parameters, {sparse.active_parameters:,} of them active, from "
        f"{dense.parameters:,}"
    )


@app.command("quantize")
def quantize_command(
    src: Annotated[str, typer.Argument(help="Folder or Hub id of a model of hf_gpt.")],
    out: Annotated[Path, typer.Argument(help="Folder to write. It must be new, or empty.")],
    to: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEMES)}.")] = "int8",
    group_size: Annotated[
        int, typer.Option(help="Weights of int4 that share a scale: 32, 64, 128 or 256.")
    ] = GROUP_SIZE,
) -> None:
    """Quantise the weights of a model, for decoding on a CPU. The folder loads and generates as any model does."""
    source = locate(src)
    with new_folder(out) as folder:
        quantize(AutoModelForCausalLM.from_pretrained(source), to, group_size=group_size).save_pretrained(folder)
        with suppress(OSError, ValueError):  # a model may have no tokenizer
            AutoTokenizer.from_pretrained(source).save_pretrained(folder)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    console.print(f"{out}: {to}, {size / 1e6:,.1f} MB of weights, from {src}")


@app.command()
def info(
    model: Annotated[str, typer.Argument(help="A preset, a config.json, or a folder of a model.")],
    set_fields: Set = None,
    context: Annotated[int | None, typer.Option(min=1, help="Tokens in a row.")] = None,
) -> None:
    """Show what a configuration is and costs: parameters, FLOPs, cache, layers. No weights are made or read."""
    config = find_origin(model, parse_fields(set_fields or [])).config
    context = context or config.max_position_embeddings
    costs = account(config, context, torch.bfloat16)

    table = Table(title=model, show_header=False)
    table.add_row("parameters", f"{costs.parameters:,}")
    table.add_row("active parameters", f"{costs.active_parameters:,}")
    table.add_row("FLOPs per token, forward", f"{costs.forward_flops_per_token:,.0f}")
    table.add_row("FLOPs per token, training", f"{costs.training_flops_per_token:,.0f}")
    table.add_row("activation bytes per token, training", f"{costs.activation_bytes_per_token:,}")
    table.add_row("cache bytes per token", f"{costs.cache_bytes_per_token:,}")
    table.add_row(f"cache bytes at {context:,} tokens", f"{costs.cache_bytes:,}")
    console.print(table)
    console.print(
        f"FLOPs at {context:,} tokens of context; cache of one row in bfloat16; activations in float32 on a CPU, "
        "without dropout and gradient checkpointing.",
        style="dim",
    )

    layers = Table("layer", "attention", "heads", "kv heads", "head", "feed-forward", "parameters")
    for index, layer in enumerate(costs.layers):
        pattern = layer.attention_pattern
        layers.add_row(
            str(index),
            " ".join((pattern, *map(str, build_pattern(config, pattern)))),
            str(config.num_attention_heads),
            str(config.num_key_value_heads),
            str(config.head_dim),
            describe_feed_forward(config, index),
            f"{layer.parameters:,}",
        )
    console.print(layers)


def describe_feed_forward(config: GPTConfig, layer: int) -> str:
    if config.mlp_layer_types[layer] == "dense":
        return f"{config.mlp_type} {config.intermediate_size}"
    shared = f"{config.num_shared_experts} + " if config.num_shared_experts else ""
    experts = f"{config.num_experts_per_tok}/{config.num_local_experts}"
    return f"{shared}{experts} {config.mlp_type} {config.moe_intermediate_size}"


def print_verification(ours: Path | str, native: Path | str, family: str) -> None:
    """Compare both sides of a conversion.

    Raises:
        RuntimeError: they do not compute the same.
    """
    differences = verify_conversion(ours, native, family)
    for name, difference in differences.items():
        console.print(
            f"{name}: largest difference {difference.largest:.2e}, {difference.relative:.1e} of the largest logit"
        )
    if max(difference.relative for difference in differences.values()) > MOST_RELATIVE_DIFFERENCE:
        raise RuntimeError(f"{ours} and {native} do not compute the same")


def print_outcome(out: Path, outcome: Outcome) -> None:
    """Say what was written where, and how to use it."""
    report = outcome.report
    if outcome.sample:
        console.rule("a new interpreter wrote")
        print(outcome.sample)
    console.rule("trained")
    print(f"{report.parameters:,} parameters, {report.steps} steps, {report.seconds:.0f} s")
    print(
        f"held-out loss {report.evaluation_loss:.3f} nats per token (perplexity {report.perplexity:.1f}); "
        f"unigram entropy {report.unigram_entropy:.3f}"
    )
    if report.max_violations:
        busiest = ", ".join(f"{1 + violation:.2f}" for violation in report.max_violations)
        print(f"load of the busiest expert of each layer, where the mean is 1: {busiest}")
    contents = {
        "model.safetensors, config.json, *.py": "the model, and the code that loads it",
        "tokenizer.json": "the tokenizer",
        "README.md": "the model card",
        LOSS_CURVE: "the loss curve",
        "report.json, settings.json": "every figure, every setting",
    }
    if not (out / LOSS_CURVE).exists():
        contents[LOSS_CURVE] = escape("not drawn: pip install 'hf_gpt[plot]'")
    table = Table(title=f"in {out}", show_header=False)
    for name, meaning in contents.items():
        table.add_row(name, meaning)
    console.print(table)
    console.rule("use it")
    print(outcome.usage)


def read_texts(files: list[Path], column: str, skipped: list[str]) -> Iterator[str]:
    """Documents, piece by piece; what cannot be read is named in `skipped`.

    Raises:
        ValueError: nothing could be read.
    """
    read = False
    for file in files:
        for piece in read_documents(file, column):
            if piece.error:
                skipped.append(piece.error)
            else:
                read = True
                yield piece.text
    if not read:
        raise ValueError(f"no document to read: {skipped[0]}")


def print_skipped(skipped: list[str], most: int = 5) -> None:
    for flaw in skipped[:most]:
        console.print(f"skipped: {flaw}", style="yellow", markup=False, highlight=False, soft_wrap=True)
    if len(skipped) > most:
        console.print(f"skipped: {len(skipped):,} documents in all", style="yellow")


def print_bytes_per_token(encoders: dict[str, Encoder], files: list[Path], column: str, most_files: int = 20) -> None:
    """A table; of each file, what is in the first megabyte or so."""
    table = Table("bytes in a token", *encoders)
    total = Counter()
    for file in files[:most_files]:
        counts = Counter()
        for piece in read_documents(file, column):
            if counts["bytes"] > 1_000_000:
                break
            counts["bytes"] += len(piece.text.encode())
            counts.update({name: len(encoder.encode([piece.text])[0]) for name, encoder in encoders.items()})
        if counts["bytes"]:
            table.add_row(file.name, *(f"{counts['bytes'] / max(1, counts[name]):.2f}" for name in encoders))
            total += counts
    if total["bytes"]:
        table.add_row("all", *(f"{total['bytes'] / max(1, total[name]):.2f}" for name in encoders), style="bold")
        console.print(table)


def parse_fields(assignments: list[str]) -> dict[str, Any]:
    """`FIELD=VALUE`, the value as JSON, or else as it stands."""
    values, known = {}, [field.name for field in fields(GPTConfig)]
    for assignment in assignments:
        name, equals, value = assignment.partition("=")
        if not equals:
            raise ValueError(f"--set {assignment}: expected FIELD=VALUE")
        if name not in known:
            close = difflib.get_close_matches(name, known, n=1)
            raise ValueError(f"--set {assignment}: no such field" + (f", did you mean {close[0]}?" if close else ""))
        values[name] = parse_value(value)
    return values


def parse_generation_options(arguments: list[str]) -> dict[str, Any]:
    """`--name value`, `--name=value` or `--flag`, by the names of GenerationConfig; hyphens pass for underscores."""
    known = GenerationConfig().to_dict()
    options: dict[str, Any] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            if name not in known:
                close = difflib.get_close_matches(name, known, n=1)
                raise ValueError(f"generate() has no option {name}" + (f": did you mean {close[0]}?" if close else ""))
            options[name] = parse_value(value) if equals else True
        elif name is None:
            raise ValueError(f"unexpected argument {argument!r}: expected --prompt, or an option of generate()")
        else:
            options[name], name = parse_value(argument), None
    return options


def parse_value(text: str) -> Any:
    try:
        return json.loads({"True": "true", "False": "false", "None": "null"}.get(text, text))
    except json.JSONDecodeError:
        return text


if __name__ == "__main__":
    main()
