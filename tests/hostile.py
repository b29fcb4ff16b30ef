"""Hostile inputs for every file format that a command reads.

A format has a valid folder, a command that reads it, the file that is replaced, and its hostile contents by name.
"""

import base64
import gzip
import io
import json
import os
import pickle
import shutil
import struct
import zipfile
import zlib
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from command_line import TEXT
from safetensors.torch import load_file, save_file
from tiny import make_model
from transformers import GPT2Config, GPT2LMHeadModel

from hf_gpt.data import tokenize_files
from hf_gpt.data.token_index import CHECKSUM, with_checksum
from hf_gpt.tokenization import train_tokenizer
from hf_gpt.tokenization.byte_alphabet import BYTE_CHARACTERS

MARKER = "code-was-run"  # in the working folder, if a command runs code of an input

Content = bytes | Callable[[Path], Any]
"""The content of a file, or a function that writes the file."""


@dataclass
class Format:
    """A file format that a command reads."""

    file: str
    """The file that is replaced, below the working folder."""
    command: str
    """Reads the file."""
    contents: dict[str, Content]
    """Hostile contents of the file, by name."""
    memory: int = 400_000_000
    """Bytes within which the command fails."""
    named: str = ""
    """The name in the error message, if it is not that of the file. An input `name=value` is named by its field."""


def dump(value: Any) -> bytes:
    return json.dumps(value).encode()


# --- folders with valid files ---------------------------------------------------------------------------------------


def make_folders(folder: Path) -> None:
    """Writes valid inputs of every kind."""
    (folder / "book.txt").write_text(TEXT)
    tokenizer = train_tokenizer([TEXT], 300)
    model = make_model(vocab_size=len(tokenizer), eos_token_id=tokenizer.eos_token_id)
    model.save_pretrained(folder / "ours")
    tokenizer.save_pretrained(folder / "ours")
    tokenizer.save_pretrained(folder / "tokenizer")
    (folder / "pair").mkdir()
    tokenizer.backend_tokenizer.model.save(str(folder / "pair"))
    sizes = {"n_layer": 2, "n_head": 2, "n_embd": 8, "n_positions": 16, "vocab_size": 32}
    GPT2LMHeadModel(GPT2Config(**sizes, bos_token_id=0, eos_token_id=0)).save_pretrained(folder / "native")
    shutil.copytree(folder / "native", folder / "pickled")
    (folder / "pickled/model.safetensors").unlink()
    (folder / "nanogpt").mkdir()
    shutil.copytree(folder / "native", folder / "sharded")
    (folder / "sharded/model.safetensors").rename(folder / "sharded/a.safetensors")
    tokenize_files([folder / "book.txt"], tokenizer, folder / "tokens")
    (folder / "out.partial/content").mkdir(parents=True)
    (folder / "out.partial/content/tokens-00000.bin").write_bytes(b"a shard")
    (folder / "outside").mkdir()
    shutil.copyfile(folder / "native/model.safetensors", folder / "outside/model.safetensors")


# --- JSON -----------------------------------------------------------------------------------------------------------

NO_JSON = {
    "empty": b"",
    "a list": b"[]",
    "cut off": b'{"a": ',
    "nested lists": b"[" * 100_000,
    "nested objects": b'{"a":' * 100_000,
    "an integer of 5000 digits": b'{"a": 1' + b"0" * 5000 + b"}",
    "an integer of 400 digits": b'{"a": 1' + b"0" * 400 + b"}",
    "NaN": b'{"a": NaN}',
    "Infinity": b'{"a": 1e999}',
    "a repeated key": b'{"model_type": "gpt2", "model_type": "hf_gpt"}',
    "not UTF-8": b'{"a": "\xff"}',
    "a byte order mark": b"\xef\xbb\xbf{}",
    "binary": bytes(range(256)) * 100,
}


def changed(source: str, *path: str | int, value: Any) -> Callable[[Path], None]:
    """Returns a function that writes a JSON file of the working folder with one value replaced."""

    def write(file: Path) -> None:
        content = json.loads((file.parents[1] / source).read_text())
        parent = content
        for key in path[:-1]:
            parent = parent[key]
        parent[path[-1]] = value
        file.write_text(json.dumps(content))

    return write


def config_with(source: str, **fields: Any) -> dict[str, Content]:
    return {f"{name}={str(value)[:20]}": changed(source, name, value=value) for name, value in fields.items()}


def index_with(**values: Any) -> dict[str, Content]:
    """Returns functions that write the index of a folder of tokens with one value replaced, and its checksum."""

    def replace(name: str, value: Any) -> Callable[[Path], None]:
        def write(file: Path) -> None:
            content = json.loads(file.read_text())
            del content[CHECKSUM]
            file.write_text(json.dumps(with_checksum(content | {name: value})))

        return write

    return {f"{name}={str(value)[:20]}": replace(name, value) for name, value in values.items()}


TOKENIZER = "tokenizer/tokenizer.json"
HOSTILE_TOKENIZERS = {
    "no model": b"{}",
    "a model that is a list": b'{"model": [], "added_tokens": []}',
    "a negative id": changed(TOKENIZER, "model", "vocab", "a", value=-1),
    "an id of 4 billion": changed(TOKENIZER, "model", "vocab", "a", value=4_000_000_000),
    "an id of 10^30": changed(TOKENIZER, "model", "vocab", "a", value=10**30),
    "an id that repeats": changed(TOKENIZER, "model", "vocab", "a", value=1),
    "an id that is true": changed(TOKENIZER, "model", "vocab", "a", value=True),
    "an id that is a float": changed(TOKENIZER, "model", "vocab", "a", value=0.5),
    "an added id of 4 billion": changed(TOKENIZER, "added_tokens", 0, "id", value=4_000_000_000),
    "an added id that is a list": changed(TOKENIZER, "added_tokens", 0, "id", value=[]),
    "an empty pattern": changed(
        TOKENIZER, "normalizer", value={"type": "Replace", "pattern": {"String": ""}, "content": "a"}
    ),
}
# Valid JSON with valid ids, of which the library of tokenizers makes nothing.
BROKEN_TOKENIZERS = {
    "merges of no token": changed(TOKENIZER, "model", "merges", value=[["a", "no such token"]]),
    "an unknown model": changed(TOKENIZER, "model", "type", value="Evil"),
    "an invalid pattern": changed(
        TOKENIZER,
        "pre_tokenizer",
        value={"type": "Split", "pattern": {"Regex": "("}, "behavior": "Isolated", "invert": False},
    ),
}

BYTES = [(bytes([byte]), byte) for byte in range(256)]


def ranks(*more: tuple[bytes, object]) -> bytes:
    """Returns the content of a rank file with all bytes and some other lines."""
    return b"".join(base64.b64encode(token) + f" {rank}\n".encode() for token, rank in (*BYTES, *more))


VOCAB = {character: number for number, character in enumerate(sorted(BYTE_CHARACTERS))}

# --- text -----------------------------------------------------------------------------------------------------------

# Repeated, they are texts without a word boundary.
UNITS = {
    "blanks": " ",
    "letters": "a",
    "line ends": "\n",
    "NUL": "\0",
    "combining marks": "e\u0301",
    "Chinese": "红楼梦",
    "emoji": "👩\u200d",
    "digits": "7",
    "punctuation": "!",
    "line ends of Windows": "\r\n",
    "control characters": "\x1b[",
}
NOT_TEXT = {
    "empty": b"",
    "not UTF-8": b"a\xffb",
    "UTF-16": "text".encode("utf-16"),
    "cut within a character": b"a\xe7\xba",
}


def repeat(unit: str) -> Callable[[Path], None]:
    """Returns a function that writes 8 MB of a unit."""
    return lambda file: file.write_text(unit * ((8 << 20) // len(unit.encode())), "utf-8")


HOSTILE_TEXTS = NOT_TEXT | {f"8 MB of {name}": repeat(unit) for name, unit in UNITS.items()}


def bomb(unit: bytes, size: int, start: bytes = b"") -> Callable[[Path], None]:
    """Returns a function that writes a gzip file, in which a unit is repeated up to a size."""

    def write(file: Path) -> None:
        packer = zlib.compressobj(1, wbits=31)
        block = unit * ((1 << 20) // len(unit))
        with file.open("wb") as out:
            out.write(packer.compress(start))
            for _ in range(size >> 20):
                out.write(packer.compress(block))
            out.write(packer.flush())

    return write


def write_parquet(make_table: Callable[[Any], Any], **options: Any) -> Callable[[Path], None]:
    def write(file: Path) -> None:
        import pyarrow
        from pyarrow import parquet

        parquet.write_table(make_table(pyarrow), file, **{"compression": "zstd", **options})

    return write


def parquet_of(values: Any, kind: str | None = None, **options: Any) -> Callable[[Path], None]:
    return write_parquet(lambda pyarrow: pyarrow.table({"text": pyarrow.array(values, kind)}), **options)


def repeat_one_cell(size: int, rows: int) -> Callable[[Path], None]:
    """Returns a function that writes a file which contains one text, and repeats it in every row."""

    def make_table(pyarrow: Any) -> Any:
        cells = pyarrow.DictionaryArray.from_arrays(pyarrow.array([0] * rows), pyarrow.array(["a" * size]))
        return pyarrow.table({"text": cells})

    return write_parquet(make_table)


def damage(write: Callable[[Path], None], start: int, end: int | None, content: bytes) -> Callable[[Path], None]:
    """Returns a function that writes a file and replaces some of its bytes."""

    def write_damaged(file: Path) -> None:
        write(file)
        data = bytearray(file.read_bytes())
        data[start:end] = content
        file.write_bytes(data)

    return write_damaged


GOOD_PARQUET = parquet_of([TEXT])

# --- weights --------------------------------------------------------------------------------------------------------


def safetensors(header: Any, data: bytes = b"", length: int | None = None) -> bytes:
    text = header if isinstance(header, bytes) else dump(header)
    return struct.pack("<Q", len(text) if length is None else length) + text + data


def tensor(dtype: str = "F32", shape: Any = (1,), offsets: Any = (0, 4)) -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


class Call:
    """Becomes a call of a function when it is unpickled."""

    def __init__(self, function: Callable, *arguments: Any) -> None:
        self.call = function, arguments

    def __reduce__(self) -> tuple:
        return self.call


class Storage(tuple):
    """A reference of torch.save to a storage."""


def rebuilt(size: tuple[int, ...], stride: tuple[int, ...], floats: int = 1, offset: int = 0) -> Call:
    """Returns a tensor that is rebuilt from a storage with any values."""
    storage = Storage(("storage", torch.FloatStorage, "0", "cpu", floats))
    return Call(torch._utils._rebuild_tensor_v2, storage, offset, size, stride, False, OrderedDict())


def archive(payload: Any, compression: int = zipfile.ZIP_STORED) -> bytes:
    """Returns an archive as torch.save writes it, with a storage of one float."""
    stream = io.BytesIO()

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return tuple(value) if isinstance(value, Storage) else None

    Pickler(stream, 2).dump(payload)
    packed = io.BytesIO()
    with zipfile.ZipFile(packed, "w", compression) as out:
        out.writestr("archive/data.pkl", stream.getvalue())
        out.writestr("archive/byteorder", "little")
        out.writestr("archive/version", "3\n")
        out.writestr("archive/data/0", b"\0\0\x80\x3f")
    return packed.getvalue()


def saved(payload: Any, **options: Any) -> bytes:
    stream = io.BytesIO()
    torch.save(payload, stream, **options)
    return stream.getvalue()


def pickles(wrap: Callable[[Any], Any]) -> dict[str, Content]:
    """Returns hostile pickles of a value, each wrapped into the payload of a format."""
    recursive: dict[str, Any] = {}
    recursive["a"] = recursive
    run = Call(os.system, f"touch {MARKER}")
    return {
        "empty": b"",
        "no pickle": b"junk" * 100,
        "half an archive": saved(wrap(torch.ones(1000)))[:2000],
        "code": archive(wrap(run)),
        "code, not in an archive": pickle.dumps(wrap(run), 2),
        "a call that fills memory": archive(wrap(Call(bytearray, 10**11))),
        "a tensor of 10^11 numbers": archive(wrap(Call(torch.Tensor, 10**11))),
        "compressed": archive(wrap("a" * 10**8), zipfile.ZIP_DEFLATED),
        "expanded": saved(wrap(torch.ones(1).expand(10**12))),
        "expanded, not in an archive": saved(wrap(torch.ones(1).expand(10**12)), _use_new_zipfile_serialization=False),
        "a storage that is too large": archive(wrap(rebuilt((10**10,), (1,), floats=10**10))),
        "a shape beyond the storage": archive(wrap(rebuilt((1000,), (1,), floats=1000))),
        "a shape of 10^36": archive(wrap(rebuilt((10**18, 10**18), (0, 0)))),
        "a stride of 10^15": archive(wrap(rebuilt((2,), (10**15,)))),
        "a negative stride": archive(wrap(rebuilt((2,), (-1,)))),
        "a negative offset": archive(wrap(rebuilt((1,), (1,), offset=-9))),
        "a sparse tensor": saved(wrap(torch.eye(3).to_sparse())),
        "8-bit floats": saved(wrap(torch.ones(3).to(torch.float8_e4m3fn))),
        "a tensor without values": saved(wrap(torch.empty(10**12, device="meta"))),
        "complex numbers": saved(wrap(torch.ones(3, dtype=torch.complex64))),
        "a container that contains itself": saved(wrap(recursive)),
        "a set": saved(wrap({1, 2})),
        "nested": b"\x80\x02" + b"(" * 10**5 + b"t" * 10**5 + b".",
    }


def weight_map(names: dict[str, Any] | Any) -> bytes:
    return dump({"metadata": {}, "weight_map": names})


def shard(**tensors: torch.Tensor) -> Callable[[Path], None]:
    """Returns a function that lists a shard which lacks the tensors of the model."""

    def write(file: Path) -> None:
        save_file(tensors, file.parent / "b.safetensors")
        file.write_bytes(weight_map({"transformer.wte.weight": "b.safetensors"}))

    return write


# --- files with checksums, and weights that a model is made of ------------------------------------------------------


def edited(edit: Callable[[bytes], bytes]) -> Callable[[Path], None]:
    """Returns a function that edits the bytes of a file."""

    def write(file: Path) -> None:
        file.write_bytes(edit(file.read_bytes()))

    return write


def replaced(replace: Callable[[Path], Any]) -> Callable[[Path], None]:
    """Returns a function that replaces a file by something else."""

    def write(file: Path) -> None:
        file.unlink()
        replace(file)

    return write


DAMAGED = {
    "empty": b"",
    "a byte": b"\0",
    "a flipped bit at the start": edited(lambda data: bytes([data[0] ^ 1]) + data[1:]),
    "a flipped bit at the end": edited(lambda data: data[:-1] + bytes([data[-1] ^ 128])),
    "zeros": edited(lambda data: bytes(len(data))),
    "ones": edited(lambda data: b"\xff" * len(data)),
    "reversed": edited(lambda data: data[::-1]),
    "cut off": edited(lambda data: data[:-1]),
    "longer": edited(lambda data: data + b"\0"),
    "a terabyte of zeros": lambda file: os.truncate(file, 10**12),
    "missing": Path.unlink,
    "a folder": replaced(Path.mkdir),
    "a pipe": replaced(os.mkfifo),
    "a link to a device": replaced(lambda file: file.symlink_to("/dev/zero")),
    "a link to another file": replaced(lambda file: file.symlink_to("/etc/passwd")),
}
BIAS = "model.layers.1.mlp.down_proj.bias"


def weights(**changes: torch.Tensor | None) -> Callable[[Path], None]:
    """Returns a function that replaces, adds, or (None) removes tensors of a file. `bias` is `BIAS`."""

    def write(file: Path) -> None:
        named = {BIAS if name == "bias" else name: tensor for name, tensor in changes.items()}
        tensors = {name: tensor for name, tensor in (load_file(file) | named).items() if tensor is not None}
        save_file(tensors, file, {"format": "pt"})

    return write


WEIGHTS = {
    "a missing tensor": weights(bias=None),
    "another tensor": weights(score=torch.ones(2)),
    "another size": weights(bias=torch.ones(3)),
    "no size": weights(bias=torch.ones(0)),
    "another number of dimensions": weights(bias=torch.ones(32, 1)),
    "integers": weights(bias=torch.ones(32, dtype=torch.int64)),
    "8-bit integers": weights(bias=torch.ones(32, dtype=torch.int8)),
    "booleans": weights(bias=torch.ones(32, dtype=torch.bool)),
    "8-bit floating point": weights(bias=torch.ones(32).to(torch.float8_e4m3fn)),
    "complex numbers": weights(bias=torch.ones(32, dtype=torch.complex64)),
    "a head that differs": weights(**{"lm_head.weight": torch.ones(300, 32)}),
    "no tensors": safetensors({}),
    "a long header": safetensors(b"{}", length=2**40),
    "cut off": edited(lambda data: data[:-1]),
    "empty": b"",
    "missing": Path.unlink,
}


# --- the table ------------------------------------------------------------------------------------------------------

ENCODE = "--out out --tokenizer tokenizer --threads 1"

NATIVE_HEADER = {"transformer.wte.weight": tensor()}
SIZES = {
    "vocab_size": 10**18,
    "n_layer": 10**9,
    "n_head": 0,
    "n_embd": "8",
    "n_positions": -1,
    "activation_function": ["gelu"],
    "layer_norm_epsilon": "small",
    "quantization_config": [],
    "n_inner": {},
    "scale_attn_weights": 7,
}
FIELDS = {
    "num_attention_heads": 0,
    "hidden_size": "8",
    "num_hidden_layers": -1,
    "vocab_size": 1.5,
    "attention_patterns": [[1]],
    "norm_type": [],
    "norm_eps": 10**60,
    "lm_z_loss_coef": -1,
    "position_embedding_type": {},
    "rope_parameters": [1],
    "mlp_layer_types": "dense",
}
INDEX_VALUES = {
    "dtype": "<U9",
    "eos_token_id": -1,
    "shards": [-1],
    "documents": 10**18,
    "skipped": "../skipped",
    "place": [0],
    "vocab_size": -1,
    "checksums": {"../outside": ""},
}

FORMATS = {
    "config.json": Format("ours/config.json", "info ours", NO_JSON | config_with("ours/config.json", **FIELDS)),
    "config.json, a field set": Format(
        "ours/config.json", "info ours -s num_hidden_layers=2", dict(islice(NO_JSON.items(), 5))
    ),
    "native config.json": Format(
        "native/config.json", "convert native out", NO_JSON | config_with("native/config.json", **SIZES)
    ),
    "generation_config.json": Format("native/generation_config.json", "convert native out", NO_JSON),
    "tokenizer.json": Format("tokenizer/tokenizer.json", f"tokenize book.txt {ENCODE}", NO_JSON | HOSTILE_TOKENIZERS),
    "tokenizer.json, broken": Format(
        "tokenizer/tokenizer.json", f"tokenize book.txt {ENCODE}", BROKEN_TOKENIZERS, named="tokenizer"
    ),
    "tokenizer_config.json": Format("tokenizer/tokenizer_config.json", f"tokenize book.txt {ENCODE}", NO_JSON),
    "vocab.json": Format(
        "pair/vocab.json",
        "tokenize book.txt --out out --tokenizer pair",
        NO_JSON
        | {
            "a negative id": dump(VOCAB | {"aa": -1}),
            "an id of 4 billion": dump(VOCAB | {"aa": 2**32 - 1}),
            "an id of 10^30": dump(VOCAB | {"aa": 10**30}),
            "an id that repeats": dump(VOCAB | {"aa": 0}),
            "an id that is true": dump(VOCAB | {"aa": True}),
        },
    ),
    "merges.txt": Format(
        "pair/merges.txt",
        "tokenize book.txt --out out --tokenizer pair",
        {
            "empty": b"",
            "one token": b"a\n",
            "three tokens": b"a b c\n",
            "no tokens": b" \n",
            "blanks": b" " * (4 << 20),
            "line ends": b"\n" * (4 << 20),
            "one long line": b"a" * (4 << 20),
            "not UTF-8": b"\xff \xff\n",
            "NUL": b"\0 \0\n",
            "tokens that merge to none": b"z z\n",
        },
    ),
    "rank file": Format(
        "r50k_base.tiktoken",
        "tokenize book.txt --out out --tokenizer r50k_base.tiktoken",
        {
            "empty": b"",
            "binary": bytes(range(256)) * 100,
            "a rank of 10^9 - 1": ranks((b"ab", 10**9 - 1)),
            "a rank of 10^9": ranks((b"ab", 10**9)),
            "a rank of 400 digits": ranks((b"ab", 10**400)),
            "a negative rank": ranks((b"ab", -1)),
            "a rank that repeats": ranks((b"ab", 7)),
            "a token that repeats": ranks((b"ab", 256), (b"ab", 257)),
            "a rank that is a float": ranks((b"ab", 256.0)),
            "no rank": ranks((b"ab", "")),
            "no base64": ranks() + b"a!b 256\n",
            "a token without parts": ranks((b"abc", 256)),
            "a token of 1 MB": ranks((b"a" * 10**6, 256)),
            "an empty token": ranks((b"", 256)),
            "one long line": b"a" * (4 << 20),
        },
    ),
    "text": Format("hostile.txt", f"tokenize hostile.txt {ENCODE}", HOSTILE_TEXTS, memory=200_000_000),
    "text to train on": Format("hostile.txt", "train hostile.txt --out out --model ours --steps 1", HOSTILE_TEXTS),
    "text to train a tokenizer on": Format("hostile.txt", "train-tokenizer hostile.txt --out out", HOSTILE_TEXTS),
    "compressed text": Format(
        "hostile.txt.gz",
        f"tokenize hostile.txt.gz {ENCODE}",
        {
            "empty": b"",
            "nothing compressed": gzip.compress(b""),
            "not gzip": TEXT.encode(),
            "only a header": gzip.compress(b"")[:10],
            "cut off": gzip.compress(TEXT.encode())[:-20],
            "a wrong checksum": gzip.compress(TEXT.encode())[:-8] + bytes(8),
            "junk at its end": gzip.compress(TEXT.encode()) + b"junk",
            "not UTF-8": gzip.compress(b"\xff"),
            "damaged": gzip.compress(TEXT.encode())[:20] + b"\xff" * 20 + gzip.compress(TEXT.encode())[40:],
            "a bomb of blanks": bomb(b" ", 256 << 20),
            "a bomb of letters after a word": bomb(b"a", 32 << 20, b"to be "),
            "a bomb of NUL": bomb(b"\0", 32 << 20),
        },
        memory=200_000_000,
    ),
    "JSON lines": Format(
        "hostile.jsonl",
        f"tokenize hostile.jsonl {ENCODE}",
        {
            "empty": b"\n",
            "not JSON": b"{",
            "no objects": b"[]\n7\nnull\n",
            "no text": b'{"body": "a"}',
            "text that is a number": b'{"text": 7}',
            "nested": b"[" * 1_000_000,
            "nested in an object": b'{"text": ' * 100_000,
            "an integer of 5000 digits": b'{"text": 1' + b"0" * 5000 + b"}",
            "half a surrogate pair": b'{"text": "\\ud800"}',
            "not UTF-8": b'{"text": "\xff"}',
            "a long word": dump({"text": "a" * (8 << 20)}),
            "one line of 40 MB": b" " * (40 << 20),
            "many small objects": b'{"text": "", "a": [' + b"{}," * (4 << 20) + b"{}]}",
        },
        memory=600_000_000,
    ),
    "compressed JSON lines": Format(
        "hostile.jsonl.gz",
        f"tokenize hostile.jsonl.gz {ENCODE}",
        {
            "a bomb of one line": bomb(b"a", 256 << 20, b'{"text": "'),
            "a bomb of line ends": bomb(b"\n", 1 << 20, b"{"),
            "not gzip": b'{"text": "a"}',
            "cut off": gzip.compress(b'{"text": "a"}')[:-9],
        },
        memory=600_000_000,
    ),
    "Parquet": Format(
        "hostile.parquet",
        f"tokenize hostile.parquet {ENCODE}",
        {
            "empty": b"",
            "not Parquet": TEXT.encode(),
            "only its name": b"PAR1PAR1",
            "a footer of 2 GB": b"PAR1" + struct.pack("<I", 2**31 - 1) + b"PAR1",
            "a damaged footer": damage(GOOD_PARQUET, -200, -20, b"\xff" * 180),
            "damaged pages": damage(GOOD_PARQUET, 4, 60, b"\xff" * 56),
            "numbers": parquet_of([1, 2]),
            "bytes": parquet_of([b"a"]),
            "lists": parquet_of([["a"]]),
            "only nulls": parquet_of([None, None], "string"),
            "no rows": parquet_of([], "string"),
            "another column": write_parquet(lambda pyarrow: pyarrow.table({"body": ["a"]})),
            "a cell of 20 MB": parquet_of(["a" * (20 << 20)]),
            "40 times one cell of 20 MB": repeat_one_cell(20 << 20, 40),
            "a long word": parquet_of(["a" * (8 << 20)]),
        },
        memory=1_000_000_000,
    ),
    "safetensors": Format(
        "native/model.safetensors",
        "convert native out",
        {
            "empty": b"",
            "only zeros": bytes(1000),
            "a header of 2^63 bytes": safetensors({}, length=2**63),
            "a header of 100 MB": safetensors({}, length=100_000_000),
            "no JSON": safetensors(b"{"),
            "a list": safetensors([]),
            "nested": safetensors(b'{"a": ' + b"[" * 100_000),
            "nested metadata": safetensors(NATIVE_HEADER | {"__metadata__": {"a": {"b": {}}}}, bytes(4)),
            "an unknown type": safetensors({"a": tensor(dtype="F7")}, bytes(4)),
            "a shape of 10^36": safetensors({"a": tensor(shape=(10**18, 10**18))}, bytes(4)),
            "a negative shape": safetensors({"a": tensor(shape=(-1,))}, bytes(4)),
            "a shape of a string": safetensors({"a": tensor(shape="1")}, bytes(4)),
            "offsets beyond the end": safetensors({"a": tensor(shape=(10**9,), offsets=(0, 4 * 10**9))}, bytes(4)),
            "offsets that overlap": safetensors({"a": tensor(), "b": tensor(offsets=(2, 6))}, bytes(6)),
            "offsets in reverse": safetensors({"a": tensor(offsets=(4, 0))}, bytes(4)),
            "a gap": safetensors({"a": tensor(), "b": tensor(offsets=(8, 12))}, bytes(12)),
            "a type that is not read": safetensors({"a": tensor(dtype="F8_E4M3", offsets=(0, 1))}, bytes(1)),
            "more than its tensors": safetensors(NATIVE_HEADER, bytes(1000)),
        },
    ),
    "index of safetensors": Format(
        "sharded/model.safetensors.index.json",
        "convert sharded out",
        NO_JSON
        | {
            "no weight_map": b"{}",
            "a list of names": weight_map(["a.safetensors"]),
            "a name that is a number": weight_map({"a": 7}),
            "a name that is a list": weight_map({"a": ["a.safetensors"]}),
            "an absolute path": weight_map({"a": "/etc/passwd"}),
            "a folder above": weight_map({"a": "../outside/model.safetensors"}),
            "a folder above, and back": weight_map({"a": "../sharded/a.safetensors"}),
            "a folder above of Windows": weight_map({"a": "..\\outside\\model.safetensors"}),
            "NUL": weight_map({"a": "a.safetensors\0"}),
            "an empty name": weight_map({"a": ""}),
            "the folder": weight_map({"a": "."}),
            "a long name": weight_map({"a": "a" * 5000}),
            "a missing shard": weight_map({"a": "b.safetensors"}),
            "200,000 tensors in one missing shard": weight_map({str(n): "b.safetensors" for n in range(200_000)}),
        },
        memory=600_000_000,
    ),
    "shards without the tensors of the index": Format(
        "sharded/model.safetensors.index.json",
        "convert sharded out",
        {"a shard of others": shard(a=torch.ones(2)), "an empty shard": shard()},
        named="sharded",
    ),
    "index of tokens": Format(
        "tokens/index.json",
        "tokenize --verify tokens",
        NO_JSON | {"no place": changed("tokens/index.json", "place", value=None)} | index_with(**INDEX_VALUES),
    ),
    "shard of tokens": Format("tokens/tokens-00000.bin", "tokenize --verify tokens", DAMAGED),
    "documents of tokens": Format("tokens/documents.bin", "tokenize --verify tokens", DAMAGED),
    "tokenizer of tokens": Format("tokens/tokenizer.json", "tokenize --verify tokens", DAMAGED),
    "tokens to train on": Format(
        "tokens/tokens-00000.bin", "train --tokens tokens --model ours --steps 1 --out out", DAMAGED
    ),
    "weights to generate with": Format("ours/model.safetensors", "generate ours --prompt The", WEIGHTS, named="ours"),
    "weights to quantize": Format("ours/model.safetensors", "quantize ours out", WEIGHTS, named="ours"),
    "journal": Format("out.partial/journal.json", f"tokenize book.txt {ENCODE}", NO_JSON | {"no command": b"{}"}),
    "pickled weights": Format(
        "pickled/pytorch_model.bin", "convert pickled out", pickles(lambda value: {"transformer.wte.weight": value})
    ),
    "checkpoint of nanoGPT": Format(
        "nanogpt/ckpt.pt",
        "convert nanogpt out",
        pickles(lambda value: {"model": {"transformer.wte.weight": value}, "model_args": {"n_layer": 1}})
        | {
            "no arguments": saved({"model": {}}),
            "arguments that are a list": saved({"model": {}, "model_args": [1]}),
            "an argument that is a list": saved({"model": {}, "model_args": {"n_layer": [1]}}),
        },
        named="nanogpt",
    ),
}
