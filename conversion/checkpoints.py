"""Weight files of a folder: read one tensor at a time, and written as sharded safetensors."""

import json
import mmap
import pickle
import shutil
import zipfile
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple

import torch
from huggingface_hub import split_torch_state_dict_into_shards
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from transformers.utils import SAFE_WEIGHTS_INDEX_NAME, SAFE_WEIGHTS_NAME, WEIGHTS_INDEX_NAME, WEIGHTS_NAME

from ..folders import PartialFolder
from ..json_files import read_json

DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
MAX_NAME = 255  # of a file, on common file systems


class Checkpoint:
    """The tensors of a model in one folder. Only headers are read at first."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.meta: dict[str, torch.Tensor] = {}
        """Shape and dtype of every tensor, on the meta device."""
        self._readers: dict[str, Callable[[str], torch.Tensor]] = {}
        for file in weight_files(folder):
            open_file = _open_safetensors if file.suffix == ".safetensors" else _open_pickle
            tensors, read = open_file(file)
            self.meta |= tensors
            self._readers |= dict.fromkeys(tensors, read)

    def rename(self, new_name: Callable[[str], str]) -> None:
        """Replaces the name of every tensor."""
        old_names = {new_name(name): name for name in self.meta}
        readers = self._readers
        self.meta = {new: self.meta[old] for new, old in old_names.items()}
        self._readers = {new: lambda _, old=old: readers[old](old) for new, old in old_names.items()}

    def drop(self, names: Iterable[str]) -> None:
        """Removes tensors from the checkpoint, not from the file."""
        for name in names:
            del self.meta[name]

    def read(self, name: str) -> torch.Tensor:
        """Returns a tensor as it is stored.

        Raises:
            ValueError: it contains NaN or infinity.
        """
        tensor = self._readers[name](name)
        if not is_finite(tensor):
            raise ValueError(f"{name} in {self.folder} contains NaN or infinity")
        return tensor


def is_finite(tensor: torch.Tensor) -> bool:
    """True if a tensor contains neither NaN nor infinity; true for integers and 8-bit floating point."""
    if not tensor.is_floating_point() or tensor.element_size() == 1 or not tensor.numel():
        return True
    return bool(torch.stack(tensor.aminmax()).isfinite().all())


def weight_files(folder: Path) -> list[Path]:
    """Returns the weight files of a folder: safetensors, or pickles where there are none.

    Raises:
        FileNotFoundError: there are no weight files, or one that the index lists does not exist.
        ValueError: the index is invalid or lists a path outside the folder, or there are several checkpoints.
    """
    for single, index in ((SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME), (WEIGHTS_NAME, WEIGHTS_INDEX_NAME)):
        if (folder / index).is_file():
            return _indexed_files(folder / index)
        if (folder / single).is_file():
            return [folder / single]
    if pickles := sorted(folder.glob("*.pt")):
        if len(pickles) > 1:
            raise ValueError(f"{folder} contains {', '.join(file.name for file in pickles)}: expected one checkpoint")
        return pickles
    raise FileNotFoundError(f"{folder} contains no weights: expected {SAFE_WEIGHTS_NAME}, its index, or {WEIGHTS_NAME}")


def _indexed_files(index: Path) -> list[Path]:
    weight_map = read_json(index).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise ValueError(f"{index} is not an index of weight files: expected a weight_map from tensor to file")
    names = sorted(set(weight_map.values()))
    for name in names:
        if not name.isprintable() or len(name) > MAX_NAME or {*name} & {*"/\\"} or name in ("", ".", ".."):
            raise ValueError(f"{index} lists a path outside its folder: {name[:MAX_NAME]!r}")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} lists {name}, which does not exist")
    return [index.parent / name for name in names]


def _open_safetensors(file: Path) -> tuple[dict[str, torch.Tensor], Callable[[str], torch.Tensor]]:
    def read(name: str) -> torch.Tensor:
        with open_safetensors(file) as opened:  # closed again, because mapped pages count as memory
            return opened.get_tensor(name)

    with open_safetensors(file) as opened:
        slices = {name: opened.get_slice(name) for name in opened.keys()}  # noqa: SIM118 not a mapping
        return {name: _meta_of(each, f"{name} in {file}") for name, each in slices.items()}, read


@contextmanager
def open_safetensors(file: Path) -> Iterator[safe_open]:
    """Opens a file of tensors, for which an OSError is raised if it is truncated or damaged."""
    try:
        with safe_open(file, framework="pt") as opened:
            yield opened
    except SafetensorError as error:
        raise OSError(f"{file} is truncated or damaged: {error}") from None


def _meta_of(stored: Any, where: str) -> torch.Tensor:
    if stored.get_dtype() not in DTYPES:
        raise ValueError(f"{where} is of type {stored.get_dtype()}: expected one of {', '.join(DTYPES)}")
    return torch.empty(stored.get_shape(), dtype=DTYPES[stored.get_dtype()], device="meta")


def _open_pickle(file: Path) -> tuple[dict[str, torch.Tensor], Callable[[str], torch.Tensor]]:
    tensors = load_pickle(file)
    tensors = tensors.get("model", tensors) if isinstance(tensors, dict) else tensors
    if not isinstance(tensors, dict) or not all(isinstance(name, str) for name in tensors):
        raise ValueError(f"{file} is not a dict of tensors")
    meta = {name: _check_tensor(tensor, f"{name} in {file}").to("meta") for name, tensor in tensors.items()}
    return meta, tensors.__getitem__


def _check_tensor(tensor: Any, where: str) -> torch.Tensor:
    """Returns a tensor of a pickle if it is dense and no larger than its storage, which a stride of 0 allows."""
    is_plain = type(tensor) in (torch.Tensor, torch.nn.Parameter)
    if not is_plain or tensor.layout != torch.strided or tensor.device.type != "cpu":
        raise ValueError(f"{where} is not a dense tensor")
    if tensor.dtype not in DTYPES.values():
        raise ValueError(f"{where} is of type {tensor.dtype}: expected one of {', '.join(DTYPES)}")
    if tensor.nbytes > tensor.untyped_storage().nbytes():
        raise ValueError(f"{where} has the shape {tuple(tensor.shape)}, of which the file does not contain every value")
    return tensor


def load_pickle(file: Path) -> Any:
    """Returns the tensors and plain containers in a pickle. No code in it runs, and tensors are memory-mapped.

    Memory is proportional to the size of the file without the tensors of an archive.

    Raises:
        ValueError: the file contains anything else.
        OSError: the file is truncated or damaged.
    """
    with open(file, "rb") as opened:
        is_archive = opened.read(4) == b"PK\x03\x04"  # files of PyTorch before 1.6 are none and cannot be mapped
    try:
        _check_pickle(file, is_archive)
        return torch.load(file, map_location="cpu", weights_only=True, mmap=is_archive)
    except pickle.UnpicklingError as error:
        reason = str(error).strip().splitlines()[-1]
        raise ValueError(f"{file} is not loaded: it contains more than tensors and plain values ({reason})") from None
    except Exception as error:  # whatever the opcodes of a damaged pickle raise
        raise OSError(f"{file} is truncated or damaged: {error}") from None


def _check_pickle(file: Path, is_archive: bool) -> None:
    """Raises UnpicklingError for a pickle whose memory would not be bounded by the size of its file.

    That is one which is compressed, as torch.save writes none, or names `bytearray`: of all that torch.load may call it
    is the only function that writes to as much memory as an argument states.
    """
    if not file.stat().st_size:
        raise EOFError("it is empty")
    with open(file, "rb") as opened, mmap.mmap(opened.fileno(), 0, access=mmap.ACCESS_READ) as content:
        parts: Iterable[Any] = [content]
        if is_archive:
            with zipfile.ZipFile(opened) as archive:
                records = archive.infolist()
                if compressed := [record for record in records if record.compress_type != zipfile.ZIP_STORED]:
                    raise pickle.UnpicklingError(f"{compressed[0].filename[:MAX_NAME]!r} is compressed")
                parts = [archive.read(record) for record in records if record.filename.endswith(".pkl")]
        if any(part.find(b"bytearray") >= 0 for part in parts):
            raise pickle.UnpicklingError("bytearray")


class Weights(NamedTuple):
    """Tensors to write, made one at a time."""

    meta: dict[str, torch.Tensor]
    """Shape and dtype of each tensor, on the meta device."""
    make: Callable[[str], torch.Tensor]
    """Returns a tensor by its name."""

    @property
    def dtype(self) -> torch.dtype:
        """The dtype of the first tensor, the token embeddings."""
        return next(iter(self.meta.values())).dtype


Track = Callable[[Iterable[str]], Iterable[str]]  # wraps an iterable over names of tensors in a progress bar


def write_shards(folder: PartialFolder, weights: Weights, max_shard_size: int | str, track: Track) -> None:
    """Writes safetensors one shard at a time. Complete shards of an earlier, interrupted call are not written again.

    Raises:
        OSError: the disk is full. Checked before the first shard is written, as far as possible.
    """
    plan = split_torch_state_dict_into_shards(weights.meta, max_shard_size=max_shard_size)
    shards = {file: names for file, names in plan.filename_to_tensors.items() if not (folder.content / file).exists()}
    needed = sum(weights.meta[name].nbytes for names in shards.values() for name in names)
    free = shutil.disk_usage(folder.root).free
    if needed > free:
        raise OSError(f"not enough disk space for {folder.root}: {needed:,} bytes needed, {free:,} free")
    names = iter(track([name for names in shards.values() for name in names]))
    for file, shard in shards.items():
        tensors = {name: _detached_copy(weights.make(name)) for name in islice(names, len(shard))}
        with folder.writing() as unfinished:
            save_file(tensors, unfinished / file, metadata={"format": "pt"})
        del tensors  # frees memory before the next shard is made
    next(names, None)  # ends the progress bar
    if plan.is_sharded:
        index = {"metadata": plan.metadata, "weight_map": plan.tensor_to_filename}
        with folder.writing() as unfinished:
            (unfinished / SAFE_WEIGHTS_INDEX_NAME).write_text(json.dumps(index, indent=2) + "\n")


def _detached_copy(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a contiguous copy, which holds no reference to a memory-mapped file. Safetensors requires contiguity."""
    return tensor.clone(memory_format=torch.contiguous_format)
