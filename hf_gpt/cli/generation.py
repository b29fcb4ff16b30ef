"""`hf-gpt generate`: continues prompts by `generate()`."""

import sys
from pathlib import Path
from typing import Annotated, Any

import torch
import typer
from transformers import GenerationConfig, TextStreamer, set_seed

from ..conversion.loading import load_model
from ..data.text_sources import read_files
from ..tokenization import open_tokenizer
from .console import console
from .options import parse_value, suggest

commands = typer.Typer()


@commands.command(context_settings={"allow_extra_args": True, "ignore_unknown_options": True})
def generate(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Folder or Hub id of a model.")],
    prompt: Annotated[
        list[str] | None, typer.Option(help="Text to continue. Several prompts are one batch.", show_default=False)
    ] = None,
    file: Annotated[list[Path] | None, typer.Option(help="Text file to continue.", show_default=False)] = None,
    seed: Annotated[int | None, typer.Option(help="Seed of the sampling.")] = None,
) -> None:
    """Continue prompts, text files or standard input.

    Options of generate() are passed by their names: --max_new_tokens 50 --do_sample --temperature 0.8 --top_k 40
    --top_p 0.9 --repetition_penalty 1.1 --num_beams 4 --num_return_sequences 3 ...
    """
    options = parse_generation_options(context.args)
    prompts = read_prompts(prompt or [], file or [])
    tokenizer = open_tokenizer(model)
    tokenizer.padding_side = "left"
    network = load_model(model)
    if torch.accelerator.is_available():
        network.to(torch.accelerator.current_accelerator())
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    options = {"pad_token_id": tokenizer.pad_token_id, "tokenizer": tokenizer, **options}
    if seed is not None:
        set_seed(seed)
    inputs = tokenizer(prompts, return_tensors="pt", padding=len(prompts) > 1).to(network.device)
    try:
        values = network.generation_config.to_dict() | options
        rows = len(prompts) * (values.get("num_return_sequences") or 1) * (values.get("num_beams") or 1)
        streamer = TextStreamer(tokenizer, skip_special_tokens=True) if rows == 1 else None
        sequences = network.generate(**inputs, streamer=streamer, **options)
    except (TypeError, ArithmeticError) as error:
        raise ValueError(f"generate() does not accept its options: {error}") from error
    if streamer is None:
        for index, text in enumerate(tokenizer.batch_decode(sequences, skip_special_tokens=True)):
            console.rule(str(index + 1))
            print(text)


def read_prompts(prompts: list[str], files: list[Path]) -> list[str]:
    """Returns the prompts and the texts of the files, or standard input if there are none.

    Raises:
        ValueError: there is no prompt, or one is empty.
    """
    prompts = [*prompts, *read_files(files)]
    if not prompts:
        if sys.stdin.isatty():
            raise ValueError("no prompt: expected --prompt, --file or text on standard input")
        prompts = [sys.stdin.read()]
    if not all(prompts):
        raise ValueError("a prompt is empty: expected text to continue")
    return prompts


def parse_generation_options(arguments: list[str]) -> dict[str, Any]:
    """Parses `--name value`, `--name=value` and `--flag`, where the names are fields of GenerationConfig.

    Hyphens are equivalent to underscores.

    Raises:
        ValueError: a name is not a field, or a value has no name.
    """
    known = GenerationConfig().to_dict()
    options: dict[str, Any] = {}
    name = None
    for argument in arguments:
        if argument.startswith("--"):
            name, equals, value = argument.removeprefix("--").partition("=")
            name = name.replace("-", "_")
            if name not in known:
                raise ValueError(f"generate() has no option {name}{suggest(name, known)}")
            options[name] = parse_value(value) if equals else True
        elif name is None:
            raise ValueError(f"unexpected argument {argument!r}: expected --prompt, or an option of generate()")
        else:
            options[name], name = parse_value(argument), None
    return options
