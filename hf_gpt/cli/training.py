"""`hf-gpt demo` and `train`: a model from text in one run."""

from dataclasses import replace
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ..data.text_sources import read_dataset, read_files, standard_library_documentation
from ..recipes import DEMO, DEMO_SETTINGS, LOSS_CURVE, Outcome, find_origin, train_from_text
from ..training import RunSettings
from .console import console
from .options import Files, Out, Resume, Seed, SetFields, Text, parse_fields

commands = typer.Typer()


@commands.command()
def demo(
    more: Files = None,
    text: Text = None,
    prompt: Annotated[str, typer.Option(help="Text that the trained model continues.")] = "The function returns",
    out: Out = Path("hf-gpt-demo"),
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = DEMO_SETTINGS.steps,
    resume: Resume = False,
    seed: Seed = 0,
) -> None:
    """Train a tokenizer and a small GPT on the documentation of Python or on your text, and generate text with it."""
    files = [*(text or []), *(more or [])]
    texts = read_files(files) if files else standard_library_documentation()
    data = _join_names(files) or "the documentation of the Python standard library"
    settings = replace(DEMO_SETTINGS, steps=steps, seed=seed)
    print_outcome(out, train_from_text(out, texts, data, DEMO, settings, prompt=prompt, resume=resume))


@commands.command()
def train(
    out: Out,
    more: Files = None,
    text: Text = None,
    dataset: Annotated[str | None, typer.Option(help="A data set: its name on the Hub, or a folder.")] = None,
    tokens: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="A folder that `hf-gpt tokenize` wrote.")
    ] = None,
    split: Annotated[str, typer.Option(help="Split of the data set.")] = "train",
    column: Annotated[str, typer.Option(help="Column of the data set that contains the text.")] = "text",
    model: Annotated[
        str, typer.Option(help="A preset, a config.json, or a folder with weights to fine-tune.")
    ] = "gpt2",
    set_fields: SetFields = None,
    tokenizer: Annotated[
        Path | None, typer.Option(exists=True, file_okay=False, help="Folder of a tokenizer. Default: train one.")
    ] = None,
    steps: Annotated[int, typer.Option(min=1, help="Training steps.")] = 1000,
    context: Annotated[
        int | None, typer.Option(min=2, help="Tokens in a row. Default: the maximum of the model.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, help="Rows in a forward pass.")] = 8,
    gradient_accumulation_steps: Annotated[int, typer.Option(min=1, help="Forward passes in a step.")] = 1,
    learning_rate: Annotated[float, typer.Option(min=0, help="Peak learning rate.")] = 6e-4,
    evaluation_fraction: Annotated[float, typer.Option(min=0, max=0.5, help="Fraction of the text held out.")] = 0.02,
    save_steps: Annotated[int, typer.Option(min=1, help="Steps between checkpoints.")] = 100,
    bf16: Annotated[bool, typer.Option(help="Mixed precision in bfloat16.")] = False,
    gradient_checkpointing: Annotated[
        bool, typer.Option(help="Recompute activations in the backward pass: less memory, more time.")
    ] = False,
    prompt: Annotated[str | None, typer.Option(help="Text that the trained model continues.")] = None,
    resume: Resume = False,
    seed: Seed = 0,
) -> None:
    """Train a language model on your text: any preset or configuration from random weights, or a model with weights."""
    files = [*(text or []), *(more or [])]
    if sum(map(bool, (files, dataset, tokens))) != 1:
        raise ValueError("expected one of --text, --dataset and --tokens")
    if tokens is not None and tokenizer is not None:
        raise ValueError("--tokens already have a tokenizer: expected no --tokenizer")
    if tokens is not None:
        texts, data = tokens, tokens.name
    elif files:
        texts, data = read_files(files), _join_names(files)
    else:
        texts, data = read_dataset(dataset, split, column), f"{dataset} ({split})"
    overrides = parse_fields(set_fields)
    origin = find_origin(model, overrides)
    if overrides and origin.checkpoint is not None:
        raise ValueError(f"--set {next(iter(overrides))}: {model} has weights, whose configuration cannot be changed")
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
        out, texts, data, origin, settings, tokenizer_folder=tokenizer, prompt=prompt, resume=resume
    )
    print_outcome(out, outcome)


def print_outcome(out: Path, outcome: Outcome) -> None:
    """Prints the results of a run, the files that it wrote, and code that loads the model."""
    report = outcome.report
    if outcome.sample:
        console.rule("generated in a new interpreter")
        print(outcome.sample)
    console.rule("trained")
    print(f"{report.parameters:,} parameters, {report.steps} steps, {report.seconds:.0f} s")
    print(
        f"held-out loss {report.evaluation_loss:.3f} nats per token (perplexity {report.perplexity:.1f}); "
        f"unigram entropy {report.unigram_entropy:.3f}"
    )
    if report.max_violations:
        loads = ", ".join(f"{1 + violation:.2f}" for violation in report.max_violations)
        print(f"load of the busiest expert of each layer, relative to the mean: {loads}")
    contents = {
        "model.safetensors, config.json, *.py": "the model and its code",
        "tokenizer.json": "the tokenizer",
        "README.md": "the model card",
        LOSS_CURVE: "the loss curve",
        "report.json, settings.json": "all results and all settings",
    }
    if not (out / LOSS_CURVE).exists():
        contents[LOSS_CURVE] = "requires matplotlib: pip install 'hf_gpt[plot]'"
    table = Table(title=f"in {out}", show_header=False)
    for name, meaning in contents.items():
        table.add_row(name, meaning)
    console.print(table)
    console.rule("use it")
    print(outcome.usage)


def _join_names(files: list[Path]) -> str:
    return ", ".join(file.name for file in files)
