"""`hf-gpt convert`, `export`, `upcycle` and `quantize`: a new checkpoint from another one."""

from pathlib import Path
from typing import Annotated

import typer

from ..accounting import account
from ..conversion import FAMILIES, convert, export, verify
from ..conversion.engine import SHARD_SIZE
from ..conversion.families import recognize
from ..conversion.loading import load_model
from ..conversion.sources import locate
from ..conversion.tokenizers import copy_tokenizer
from ..folders import output_folder
from ..model.configuration_gpt import GPTConfig
from ..surgery import quantize, upcycle_checkpoint
from ..surgery.quantization import GROUP_SIZE, SCHEMES
from .console import error_console, print_line
from .options import ModelSource, NewFolder, Seed, SetFields, ShardSize, parse_fields

Verify = Annotated[bool, typer.Option("--verify", help="Load both checkpoints and compare their logits.")]

MAX_RELATIVE_DIFFERENCE = 1e-3  # of the logits of a model and its conversion; rounding stays below it at any depth

commands = typer.Typer()


@commands.command("convert")
def convert_command(
    src: Annotated[str, typer.Argument(help="Folder or Hub id of a native checkpoint.")],
    out: NewFolder,
    verify: Verify = False,
    max_shard_size: ShardSize = SHARD_SIZE,
) -> None:
    """Convert a native checkpoint to hf_gpt. The family is recognized. The same command resumes after an
    interruption."""
    source = locate(src)
    family = recognize(source).name
    convert(source, out, max_shard_size=max_shard_size, show_progress=True)
    print_line(f"{out}: hf_gpt, from {family}")
    if verify:
        compare_logits(ours=out, native=source, family=family)


@commands.command("export")
def export_command(
    src: ModelSource,
    out: NewFolder,
    to: Annotated[str, typer.Option(metavar="FAMILY", help=f"One of {', '.join(FAMILIES)}.")],
    verify: Verify = False,
    max_shard_size: ShardSize = SHARD_SIZE,
) -> None:
    """Export a model of hf_gpt to a native checkpoint. A field that the family cannot express is an error."""
    source = locate(src)
    export(source, out, to, max_shard_size=max_shard_size, show_progress=True)
    print_line(f"{out}: {to}, from hf_gpt")
    if verify:
        compare_logits(ours=source, native=out, family=to)


@commands.command("upcycle")
def upcycle_command(
    src: Annotated[str, typer.Argument(help="Folder or Hub id of a dense model of hf_gpt.")],
    out: NewFolder,
    num_experts: Annotated[int, typer.Option(min=1, help="Experts in each sparse layer.")] = 8,
    num_experts_per_tok: Annotated[int, typer.Option(min=1, help="Experts selected for each token.")] = 2,
    granularity: Annotated[
        int, typer.Option(min=1, help="Split the feed-forward layer into this number of narrower experts.")
    ] = 1,
    layer: Annotated[
        list[int] | None, typer.Option(help="A layer to make sparse. Default: all.", show_default=False)
    ] = None,
    noise: Annotated[
        float, typer.Option(min=0, help="Noise on the weights of the experts, relative to their standard deviation.")
    ] = 0.0,
    reinitialize: Annotated[
        float, typer.Option(min=0, max=1, help="Fraction of the inner units of each expert that are drawn again.")
    ] = 0.0,
    reinitialise: Annotated[float | None, typer.Option(min=0, max=1, hidden=True)] = None,
    set_fields: SetFields = None,
    seed: Seed = 0,
    max_shard_size: ShardSize = SHARD_SIZE,
) -> None:
    """Convert a dense model to a mixture of experts that computes the same function until it is trained. The same
    command resumes after an interruption."""
    if reinitialise is not None:
        print_line("warning: --reinitialise is deprecated: use --reinitialize", style="yellow", console=error_console)
        reinitialize = reinitialise
    upcycle_checkpoint(
        src,
        out,
        num_experts,
        num_experts_per_tok,
        granularity=granularity,
        layers=layer,
        noise=noise,
        reinitialize=reinitialize,
        seed=seed,
        max_shard_size=max_shard_size,
        show_progress=True,
        **parse_fields(set_fields),
    )
    dense, sparse = (account(GPTConfig.from_pretrained(folder)) for folder in (locate(src), out))
    print_line(
        f"{out}: {sparse.parameters:,} parameters, {sparse.active_parameters:,} of them active, from "
        f"{dense.parameters:,}"
    )


@commands.command("quantize")
def quantize_command(
    src: ModelSource,
    out: NewFolder,
    to: Annotated[str, typer.Option(help=f"One of {', '.join(SCHEMES)}.")] = "int8",
    group_size: Annotated[
        int, typer.Option(help="Input features that share a scale in int4: 32, 64, 128 or 256.")
    ] = GROUP_SIZE,
) -> None:
    """Quantize the weights of a model for decoding on a CPU. The result loads and generates like any model."""
    source = locate(src)
    with output_folder(out) as folder:
        model = quantize(load_model(source), to, group_size=group_size)
        with folder.writing() as unfinished:
            model.save_pretrained(unfinished)
            copy_tokenizer(source, unfinished)
    size = sum(file.stat().st_size for file in out.glob("*.safetensors"))
    print_line(f"{out}: {to}, {size / 1e6:,.1f} MB of weights, from {src}")


def compare_logits(ours: Path | str, native: Path | str, family: str) -> None:
    """Prints the differences between the logits of a model and of its conversion.

    Raises:
        RuntimeError: a difference exceeds `MAX_RELATIVE_DIFFERENCE`.
    """
    differences = verify(ours, native, family)
    for name, difference in differences.items():
        print_line(
            f"{name}: largest difference {difference.largest:.2e}, {difference.relative:.1e} of the largest logit"
        )
    if not all(difference.relative <= MAX_RELATIVE_DIFFERENCE for difference in differences.values()):  # or NaN
        raise RuntimeError(f"the logits of {ours} and {native} differ")
