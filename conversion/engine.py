"""Converts and exports checkpoints: the same steps for every family, one tensor at a time."""

from collections.abc import Callable
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path

import torch
from rich.markup import escape
from rich.progress import track
from transformers.dynamic_module_utils import custom_object_save
from transformers.utils import GENERATION_CONFIG_NAME

from ..folders import PartialFolder, output_folder, state_of
from ..model.checkpoints import refuse_quantized
from ..model.class_names import auto_map
from ..model.configuration_gpt import GPTConfig
from ..model.modeling_gpt import GPTForCausalLM
from ..trust import copy_settings
from ..version import __version__
from .checkpoints import Checkpoint, Track, Weights, write_shards
from .families import find_family, recognize
from .family import Family
from .sources import locate
from .tokenizers import copy_tokenizer
from .weights import Read, Rule, TensorMapping, expand

SHARD_SIZE = "500MB"

EMBEDDINGS, HEAD = "model.embed_tokens.weight", "lm_head.weight"
BASE = "model."  # prefix of all tensors but the head, absent where the decoder alone was saved

NamedTensors = dict[str, torch.Tensor]


def convert(
    src: str | Path, out: str | Path, *, max_shard_size: int | str = SHARD_SIZE, show_progress: bool = False
) -> Path:
    """Converts a native checkpoint to a model of hf_gpt: weights, configuration, tokenizer, and the code to load it.

    The same call resumes an interrupted conversion.

    Args:
        src: folder or Hub id of a checkpoint of any family in `FAMILIES`.
        out: folder to write, new or empty. It appears when it is complete.
        max_shard_size: size of a weight file, such as `"500MB"`, or in bytes. Memory is proportional to it.
        show_progress: whether to print a progress bar.

    Returns:
        `out`.

    Raises:
        ValueError: the family is unknown, hf_gpt cannot express the configuration, or the weights do not match the
            configuration or are not finite. The message names the field or the tensor.
        OSError: a file is missing or damaged, `out` is not empty, or the disk is full.
    """
    folder = locate(src)
    family = recognize(folder)
    config = _read_configuration(folder, family)
    checkpoint = family.storage.open(folder)
    _normalize_names(checkpoint, family)
    ours = model_tensors(config)
    layout = _check_layout(checkpoint, family, config, ours)
    weights = _translate(checkpoint, expand(layout, config, ours), config, TensorMapping.from_native)

    return write_model(out, folder, GPTConfig.model_type, config, weights, max_shard_size, show_progress)


def export(
    src: str | Path,
    out: str | Path,
    family: str,
    *,
    max_shard_size: int | str = SHARD_SIZE,
    show_progress: bool = False,
) -> Path:
    """Exports a model of hf_gpt to a native checkpoint. The other arguments and errors are those of `convert`.

    Args:
        src: folder or Hub id of a model of hf_gpt.
        out: folder to write, new or empty.
        family: the native format, one of `FAMILIES`.

    Returns:
        `out`.

    Raises:
        ValueError: the family cannot express a feature of the model. The message names it.
    """
    target = find_family(family)
    folder = locate(src)
    config, checkpoint, ours = read_model(folder)
    fields = target.to_native(config)
    weights = _translate(checkpoint, expand(target.layouts[0], config, ours), config, TensorMapping.to_native)

    with _output_folder(out, folder, family, max_shard_size) as partial_folder:
        with partial_folder.writing() as unfinished:  # first, because they may be damaged
            _copy_companions(folder, unfinished)
        target.storage.write(partial_folder, fields, weights, max_shard_size, _tracker(show_progress, "export"))
    return Path(out)


def read_model(folder: Path) -> tuple[GPTConfig, Checkpoint, NamedTensors]:
    """Returns the configuration and the tensors of a language model of hf_gpt, and its `model_tensors`.

    Raises:
        ValueError: the tensors do not match the configuration, or are quantized.
    """
    config = GPTConfig.from_pretrained(folder)
    refuse_quantized(config)
    checkpoint = Checkpoint(folder)
    if not any(name.startswith(BASE) for name in checkpoint.meta):
        checkpoint.rename(lambda name: BASE + name)
    _drop_tied_head(checkpoint, config, HEAD, EMBEDDINGS)
    ours = model_tensors(config)
    check(checkpoint, ours)
    return config, checkpoint, ours


def write_model(
    out: str | Path,
    source: Path,
    target: str,
    config: GPTConfig,
    weights: Weights,
    max_shard_size: int | str,
    show_progress: bool,
) -> Path:
    """Writes a language model of hf_gpt with the tokenizer of `source`, or resumes the same, interrupted call.

    Args:
        target: description of the output. A call with another description does not resume this one.
    """
    config.dtype, config.auto_map = weights.dtype, auto_map()
    config.architectures = [GPTForCausalLM.__name__]
    with _output_folder(out, source, target, max_shard_size) as partial_folder:
        with partial_folder.writing() as unfinished:  # first, because they may be damaged
            _copy_companions(source, unfinished)
        write_shards(partial_folder, weights, max_shard_size, _tracker(show_progress, Path(out).name))
        with partial_folder.writing() as unfinished:
            config.save_pretrained(unfinished)
            custom_object_save(_on_meta(config), unfinished, config=config)
    return Path(out)


def model_tensors(config: GPTConfig) -> NamedTensors:
    """Returns the tensors of a language model by name, on the meta device and without a tied head."""
    tied = {HEAD} if config.tie_word_embeddings else set()
    return {name: tensor for name, tensor in _on_meta(config).state_dict().items() if name not in tied}


def _on_meta(config: GPTConfig) -> GPTForCausalLM:
    with torch.device("meta"):
        return GPTForCausalLM(config)


def _read_configuration(folder: Path, family: Family) -> GPTConfig:
    try:
        return family.from_native(*family.storage.read_fields(folder))
    except (KeyError, TypeError, AttributeError, IndexError, ArithmeticError) as error:
        # Types or sizes that no model of the family can have; the native class fails on them too.
        file = folder / family.storage.file
        raise ValueError(f"{file} has no configuration of {family.name}: {type(error).__name__}, {error}") from error


def _normalize_names(checkpoint: Checkpoint, family: Family) -> None:
    """Adds the prefix of the base model where it is absent, and drops tensors that the class computes."""
    prefix, heads = family.base_model_prefix, family.head_modules
    if not any(name.startswith(prefix) for name in checkpoint.meta):
        checkpoint.rename(lambda name: name if name.split(".")[0] in heads else prefix + name)
    checkpoint.drop([name for name in checkpoint.meta if name.endswith(family.computed)])


def _check_layout(checkpoint: Checkpoint, family: Family, config: GPTConfig, ours: NamedTensors) -> tuple[Rule, ...]:
    """Returns the layout of a native checkpoint, after checking that its tensors match the configuration."""

    def expected(layout: tuple[Rule, ...]) -> NamedTensors:
        tensors = {}
        for mapping in expand(layout, config, ours):
            tensors |= mapping.to_native(ours.__getitem__, config)
        return tensors

    candidates = [(layout, expected(layout)) for layout in family.layouts]
    layout, tensors = max(candidates, key=lambda each: len(each[1].keys() & checkpoint.meta.keys()))
    embeddings, head = (mapping.native[0] for mapping in expand(layout, config, (EMBEDDINGS, HEAD)))
    _drop_tied_head(checkpoint, config, head, embeddings)
    check(checkpoint, tensors)
    return layout


def _drop_tied_head(checkpoint: Checkpoint, config: GPTConfig, head: str, embeddings: str) -> None:
    """Removes a tied head that is equal to the embeddings, or renames it if it is stored in their place."""
    if not config.tie_word_embeddings or head not in checkpoint.meta:
        return
    if embeddings not in checkpoint.meta:
        checkpoint.rename(lambda name: embeddings if name == head else name)
        return
    if not torch.equal(checkpoint.read(head), checkpoint.read(embeddings)):
        raise ValueError(
            f"tie_word_embeddings=True contradicts {checkpoint.folder}: {head} differs from {embeddings}. Expected "
            "False"
        )
    checkpoint.drop([head])


def check(checkpoint: Checkpoint, expected: NamedTensors) -> None:
    """Raises a ValueError if the tensors of a checkpoint do not match its configuration."""
    found = checkpoint.meta
    raise_for([name for name in expected if name not in found], checkpoint.folder, "is missing")
    extra = [name for name in found if name not in expected]
    raise_for(extra, checkpoint.folder, "has no place in a model of this configuration")
    for name, tensor in expected.items():
        if _kind(found[name]) != _kind(tensor):
            raise ValueError(f"{name} in {checkpoint.folder} is of type {found[name].dtype}: expected {_kind(tensor)}")
        if found[name].shape != tensor.shape:
            raise ValueError(
                f"{name} in {checkpoint.folder} has the shape {tuple(found[name].shape)}: expected "
                f"{tuple(tensor.shape)} from its configuration"
            )


def _kind(tensor: torch.Tensor) -> str | torch.dtype:
    """Returns the same for all floating-point types, which can be cast."""
    return "floating point" if tensor.is_floating_point() else tensor.dtype


def raise_for(names: list[str], folder: Path, fault: str) -> None:
    """Raises a ValueError if any tensors of a folder have a fault."""
    if names:
        more = f" (and {len(names) - 1} more)" if len(names) > 1 else ""
        raise ValueError(f"{names[0]} in {folder} {fault}{more}")


def _translate(
    checkpoint: Checkpoint,
    mappings: list[TensorMapping],
    config: GPTConfig,
    direction: Callable[[TensorMapping, Read, GPTConfig], NamedTensors],
) -> Weights:
    """Returns the tensors of the other side: their shapes now, each tensor when it is written.

    Args:
        direction: `TensorMapping.from_native` or `TensorMapping.to_native`.
    """
    meta: NamedTensors = {}
    origins: dict[str, TensorMapping] = {}
    for mapping in mappings:
        translated = direction(mapping, checkpoint.meta.__getitem__, config)
        meta |= translated
        origins |= dict.fromkeys(translated, mapping)

    latest: NamedTensors = {}  # a mapping may return several tensors, which are written in turn

    def make(name: str) -> torch.Tensor:
        if name not in latest:
            latest.clear()  # frees memory before the next tensors are read
            latest.update(direction(origins[name], checkpoint.read, config))
        return latest.pop(name)

    return Weights(meta, make)


def _output_folder(
    out: str | Path, source: Path, target: str, max_shard_size: int | str
) -> AbstractContextManager[PartialFolder]:
    files = state_of(sorted(file for file in source.iterdir() if file.is_file()))
    return output_folder(
        out, {"files": files, "target": target, "max_shard_size": max_shard_size, "release": __version__}
    )


def _copy_companions(source: Path, out: Path) -> None:
    """Copies the generation configuration and the tokenizer."""
    if (source / GENERATION_CONFIG_NAME).is_file():
        copy_settings(source / GENERATION_CONFIG_NAME, out / GENERATION_CONFIG_NAME)
    copy_tokenizer(source, out)


def _tracker(show_progress: bool, description: str) -> Track:
    return partial(track, description=escape(description), disable=not show_progress)
