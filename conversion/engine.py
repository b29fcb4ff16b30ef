"""Native checkpoints in and out: one way through for every family, a tensor at a time."""

import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from rich.progress import track
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import GENERATION_CONFIG_NAME

from ..folders import resumable_folder, state_of
from ..model.configuration_gpt import GPTConfig
from ..model.modeling_gpt import AUTO_MAP, GPTForCausalLM
from ..version import __version__
from .checkpoints import Checkpoint, Track, Weights, write_shards
from .families import find_family, recognise
from .family import Family
from .sources import locate
from .tokenizers import carry_tokenizer
from .weights import Piece, Rule, pieces

SHARD_SIZE = "500MB"

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"

# What older checkpoints hold beside their weights, and every class computes: causal masks, rotary tables.
COMPUTED = re.compile(
    r"(\.(attn|attention)\.(bias|masked_bias|embed_positions)|rotary_emb\.inv_freq|(^|\.)position_ids)$"
)


def convert(
    src: str | Path, out: str | Path, *, max_shard_size: int | str = SHARD_SIZE, show_progress: bool = False
) -> Path:
    """Make a model of hf_gpt from a native checkpoint: weights, configuration, tokenizer, and the code that loads it.

    Called again after an interruption, it goes on where it was.

    Args:
        src: folder or Hub id of a checkpoint of any family in `FAMILIES`.
        out: folder to write, new or empty. It appears when it is complete.
        max_shard_size: of a file of weights, as `"500MB"` or in bytes; memory follows it.

    Returns:
        `out`.

    Raises:
        ValueError: the family is unknown, its configuration says what we cannot express, or the weights are not what
            the configuration promises, or not finite. The message names the field or the tensor.
        OSError: files are missing or damaged, `out` holds something, or the disk is full.
    """
    folder = locate(src)
    family = recognise(folder)
    config = _read_configuration(folder, family)
    checkpoint = family.storage.open(folder)
    ours = weights_of(config)
    layout = _clean(checkpoint, family, config, ours)
    weights = _translate(checkpoint, pieces(layout, config, ours), config, to_ours=True)

    return write_ours(out, folder, GPTConfig.model_type, config, weights, max_shard_size, show_progress)


def export(
    src: str | Path,
    out: str | Path,
    family: str,
    *,
    max_shard_size: int | str = SHARD_SIZE,
    show_progress: bool = False,
) -> Path:
    """Make a native checkpoint from a model of hf_gpt; the arguments and errors are those of `convert`, and:

    Args:
        family: which native format, one of `FAMILIES`.

    Raises:
        ValueError: the model has a feature that the family cannot express. The message names it.
    """
    target = find_family(family)
    folder = locate(src)
    config, checkpoint, ours = read_ours(folder)
    fields = target.to_native(config)
    weights = _translate(checkpoint, pieces(target.layouts[0], config, ours), config, to_ours=False)

    with _unfinished(out, folder, family, max_shard_size) as unfinished:
        _carry_the_rest(folder, unfinished)
        target.storage.write(unfinished, fields, weights, max_shard_size, _tracker(show_progress, "export"))
    return Path(out)


def _read_configuration(folder: Path, family: Family) -> GPTConfig:
    try:
        return family.to_ours(*family.storage.read_fields(folder))
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        # of types or sizes that no such model can have, and that its own class trips over too
        raise ValueError(f"{folder} has no configuration of {family.name}: {type(error).__name__}, {error}") from error


def read_ours(folder: Path) -> tuple[GPTConfig, Checkpoint, dict[str, torch.Tensor]]:
    """A language model of hf_gpt that lies in a folder, and its `weights_of`.

    Raises:
        ValueError: its weights are not what its configuration promises.
    """
    config, checkpoint = GPTConfig.from_pretrained(folder), Checkpoint(folder)
    _drop_tied_head(checkpoint, config, HEAD, EMBEDDINGS)
    ours = weights_of(config)
    _check(checkpoint, ours)
    return config, checkpoint, ours


def write_ours(
    out: str | Path,
    source: Path,
    target: str,
    config: GPTConfig,
    weights: Weights,
    max_shard_size: int | str,
    show_progress: bool,
) -> Path:
    """Write a language model of hf_gpt, with the tokenizer of `source`; or go on where the same call was interrupted.

    Args:
        target: what the source becomes: another call that says the same goes on.
    """
    config.dtype, config.auto_map = weights.dtype, AUTO_MAP
    config.architectures = [GPTForCausalLM.__name__]
    with _unfinished(out, source, target, max_shard_size) as unfinished:
        _carry_the_rest(source, unfinished)
        write_shards(unfinished, weights, max_shard_size, _tracker(show_progress, Path(out).name))
        config.save_pretrained(unfinished)
        custom_object_save(_on_meta(config), unfinished, config=config)
    return Path(out)


def _on_meta(config: GPTConfig) -> GPTForCausalLM:
    with torch.device("meta"):
        return GPTForCausalLM(config)


def weights_of(config: GPTConfig) -> dict[str, torch.Tensor]:
    """The tensors of a language model, on the meta device; a tied head is none of its own."""
    tied = {HEAD} if config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in _on_meta(config).state_dict().items() if name not in tied}


def _clean(
    checkpoint: Checkpoint, family: Family, config: GPTConfig, ours: dict[str, torch.Tensor]
) -> tuple[Rule, ...]:
    """Bring the names of a native checkpoint into full form, check them, and say in which layout they are."""
    prefix = family.bare_prefix
    if not any(name.startswith(prefix) for name in checkpoint.meta):
        heads = ("lm_head.", "embed_out.")
        checkpoint.rename(lambda name: name if name.startswith(heads) else prefix + name)
    checkpoint.forget([name for name in checkpoint.meta if COMPUTED.search(name)])

    def expected(layout: tuple[Rule, ...]) -> dict[str, torch.Tensor]:
        found = {}
        for piece in pieces(layout, config, ours):
            found |= _apply(piece, ours.__getitem__, config, to_ours=False)
        return found

    candidates = [(layout, expected(layout)) for layout in family.layouts]
    layout, wanted = max(candidates, key=lambda each: len(each[1].keys() & checkpoint.meta.keys()))
    native_names = {each.ours[0]: each.native[0] for each in layout}
    _drop_tied_head(checkpoint, config, native_names.get(HEAD, HEAD), native_names[EMBEDDINGS])
    _check(checkpoint, wanted)
    return layout


def _drop_tied_head(checkpoint: Checkpoint, config: GPTConfig, head: str, embeddings: str) -> None:
    if not config.tie_word_embeddings or head not in checkpoint.meta or embeddings not in checkpoint.meta:
        return
    if not torch.equal(checkpoint.read(head), checkpoint.read(embeddings)):
        raise ValueError(
            f"tie_word_embeddings=True contradicts {checkpoint.folder}: {head} is not {embeddings}. Expected False"
        )
    checkpoint.forget([head])


def _check(checkpoint: Checkpoint, expected: dict[str, torch.Tensor]) -> None:
    """Raise a ValueError if the tensors of a checkpoint are not those that its configuration promises."""
    found = checkpoint.meta
    faults = {
        "is missing": [name for name in expected if name not in found],
        "has no place in a model of this configuration": [name for name in found if name not in expected],
    }
    for fault, names in faults.items():
        if names:
            more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
            raise ValueError(f"{names[0]} in {checkpoint.folder} {fault}{more}")
    for name, tensor in expected.items():
        if found[name].is_floating_point() != tensor.is_floating_point():
            raise ValueError(f"{name} in {checkpoint.folder} is of type {found[name].dtype}: expected floating point")
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"{name} in {checkpoint.folder} is {tuple(found[name].shape)}: expected {tuple(tensor.shape)} by its "
                "configuration"
            )


def _apply(
    piece: Piece, read: Callable[[str], torch.Tensor], config: GPTConfig, to_ours: bool
) -> dict[str, torch.Tensor]:
    """The tensors that a piece makes of those of the other side."""
    if to_ours:
        return dict(zip(piece.ours, piece.to_ours([read(name) for name in piece.native], config), strict=True))
    return dict(zip(piece.native, piece.to_native([read(name) for name in piece.ours], config), strict=True))


def _translate(checkpoint: Checkpoint, all_pieces: list[Piece], config: GPTConfig, to_ours: bool) -> Weights:
    """The tensors of the other side: their shapes at once, each of them when it is asked for."""

    meta, origins = {}, {}
    for piece in all_pieces:
        made = _apply(piece, checkpoint.meta.__getitem__, config, to_ours)
        meta |= made
        origins |= dict.fromkeys(made, piece)

    latest: dict[str, torch.Tensor] = {}

    def make(name: str) -> torch.Tensor:
        if name not in latest:
            latest.clear()  # before the next are read
            latest.update(_apply(origins[name], checkpoint.read, config, to_ours))
        return latest.pop(name)

    return Weights(meta, make)


def _unfinished(out: str | Path, source: Path, target: str, max_shard_size: int | str) -> AbstractContextManager[Path]:
    """A new folder, or that of an earlier run of the very same conversion, which was interrupted."""
    files = state_of(sorted(file for file in source.iterdir() if file.is_file()))
    return resumable_folder(out, {"files": files, "target": target, "shards": max_shard_size, "version": __version__})


def _carry_the_rest(source: Path, out: Path) -> None:
    if (source / GENERATION_CONFIG_NAME).is_file():
        shutil.copyfile(source / GENERATION_CONFIG_NAME, out / GENERATION_CONFIG_NAME)
    carry_tokenizer(source, out)


def _tracker(show_progress: bool, description: str) -> Track:
    return partial(track, description=description, disable=not show_progress)
