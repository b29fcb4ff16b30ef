"""nanoGPT (Karpathy 2022): `ckpt.pt`, the model as GPT-2 with exact GELU, with or without biases."""

from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel

from ..folders import PartialFolder
from .checkpoints import Checkpoint, Track, Weights, load_pickle, weight_files
from .family import Family
from .gpt2 import CAUSAL_MASKS, GPT2
from .storage import Fields, Storage
from .weights import TRANSPOSED

# The rules of GPT-2 without the transposition of linear layers.
WEIGHTS = tuple(
    each._replace(operations=tuple(step for step in each.operations if step is not TRANSPOSED))
    for each in GPT2.layouts[0]
)
FIELDS = {
    "n_layer": "num_hidden_layers",
    "n_head": "num_attention_heads",
    "n_embd": "hidden_size",
    "block_size": "max_position_embeddings",
    "vocab_size": "vocab_size",
}


class PickleStorage(Storage):
    """One pickle. Its tensors are memory-mapped when they are read, and all in memory when they are written."""

    file: ClassVar[str]
    gpt2_fields: ClassVar[Fields]
    """Fields with which `GPT2LMHeadModel` computes the same."""

    def open(self, folder: Path) -> Checkpoint:
        checkpoint = super().open(folder)
        checkpoint.rename(lambda name: name.removeprefix("_orig_mod."))  # prefix of a compiled model
        return checkpoint

    def write(
        self, folder: PartialFolder, fields: Fields, weights: Weights, max_shard_size: int | str, track: Track
    ) -> None:
        tensors = {name: weights.make(name).contiguous() for name in track(list(weights.meta))}
        with folder.writing() as unfinished:
            torch.save(self.payload(unfinished, fields, tensors), unfinished / self.file)

    def payload(self, folder: Path, fields: Fields, tensors: dict[str, torch.Tensor]) -> Any:
        """Returns the content of the pickle; writes the other files."""
        raise NotImplementedError

    def load(self, folder: Path) -> PreTrainedModel:
        """Returns the model as a GPT-2 of transformers, with biases of zero where it has none."""
        fields, _ = self.read_fields(folder)
        sizes = {name: fields[name] for name in FIELDS if name != "block_size"}
        model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=fields["block_size"], **self.gpt2_fields))
        checkpoint = self.open(folder)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                stored = checkpoint.read(name) if name in checkpoint.meta else torch.zeros_like(parameter)
                parameter.copy_(stored.t() if stored.ndim == 2 and ".h." in name else stored)
        return model.eval()


class NanoGPTStorage(PickleStorage):
    """`ckpt.pt`: the weights under `model`, the arguments of the model under `model_args`."""

    file = "ckpt.pt"
    gpt2_fields = {"activation_function": "gelu"}

    def recognizes(self, folder: Path, stored: Fields | None) -> bool:
        return stored is None and any(folder.glob("*.pt"))

    def read_fields(self, folder: Path) -> tuple[Fields, Fields]:
        file = weight_files(folder)[0]
        payload = load_pickle(file)
        arguments = payload.get("model_args") if isinstance(payload, dict) else None
        numbers = (int, float)
        if not isinstance(arguments, dict) or not all(isinstance(value, numbers) for value in arguments.values()):
            raise ValueError(f"{file} is no checkpoint of nanoGPT: expected the numbers of its model under model_args")
        return {"bias": True, "dropout": 0.0, **arguments}, {}  # early versions had no `bias`

    def payload(self, folder: Path, fields: Fields, tensors: dict[str, torch.Tensor]) -> Any:
        return {"model": tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}, "model_args": fields}


def read(native: Fields) -> Fields:
    bias = native["bias"]
    return {
        "embedding_dropout": native["dropout"],
        "attention_dropout": native["dropout"],
        "mlp_bias": bias,
        "norm_parameters": "weight_and_bias" if bias else "weight",
    }


NANOGPT = Family(
    storage=NanoGPTStorage("nanogpt"),
    fields=FIELDS | {"bias": "attention_bias", "dropout": "residual_dropout"},
    constants={"position_embedding_type": "learned", "hidden_act": "gelu"},
    read=read,
    layouts=(WEIGHTS,),
    computed=CAUSAL_MASKS,
)
