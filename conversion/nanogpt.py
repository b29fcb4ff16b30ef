"""nanoGPT and minGPT (Karpathy): GPT-2 in one file of Python each, with checkpoints of their own."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel
from transformers.utils import CONFIG_NAME

from .checkpoints import Checkpoint, Track, Weights, load_pickle, weight_files
from .family import Family
from .gpt2 import GPT2
from .storage import Fields, Storage, read_json
from .weights import TRANSPOSED

# GPT-2's rules, but for linear layers that are not transposed.
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
    """One pickle: its tensors are mapped when read, and held in memory together when written."""

    file: str
    peer: Fields
    """What makes a GPT-2 of transformers compute the same."""

    def open(self, folder: Path) -> Checkpoint:
        checkpoint = super().open(folder)
        checkpoint.rename(lambda name: name.removeprefix("_orig_mod."))  # saved while compiled
        return checkpoint

    def write(self, folder: Path, fields: Fields, weights: Weights, max_shard_size: int | str, track: Track) -> None:
        tensors = {name: weights.make(name).contiguous() for name in track(list(weights.meta))}
        try:
            torch.save(self.payload(folder, fields, tensors), folder / self.file)
        except RuntimeError as error:  # in which PyTorch wraps errors of the system
            raise OSError(f"{folder / self.file} could not be written: {error}") from None

    def payload(self, folder: Path, fields: Fields, tensors: dict[str, torch.Tensor]) -> Any:
        raise NotImplementedError

    def load(self, folder: Path) -> PreTrainedModel:
        """No class of transformers: the same model as a GPT-2, biases of zero where it has none."""
        fields, _ = self.read_fields(folder)
        sizes = {name: fields[name] for name in FIELDS if name != "block_size"}
        model = GPT2LMHeadModel(GPT2Config(**sizes, n_positions=fields["block_size"], **self.peer))
        checkpoint = self.open(folder)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                stored = checkpoint.read(name) if name in checkpoint.meta else torch.zeros_like(parameter)
                parameter.copy_(stored.t() if stored.ndim == 2 and ".h." in name else stored)
        return model.eval()


class NanoGPTStorage(PickleStorage):
    """`ckpt.pt`: the weights as `model`, the arguments of the model as `model_args`."""

    file = "ckpt.pt"
    peer = {"activation_function": "gelu"}

    def read_fields(self, folder: Path) -> tuple[Fields, Fields]:
        payload = load_pickle(weight_files(folder)[0])
        return {"bias": True, "dropout": 0.0, **payload["model_args"]}, {}  # early versions had no `bias`

    def payload(self, folder: Path, fields: Fields, tensors: dict[str, torch.Tensor]) -> Any:
        return {"model": tensors | {"lm_head.weight": tensors["transformer.wte.weight"]}, "model_args": fields}


# minGPT names sizes, and its config.json may hold the name alone.
MINGPT_HEADS = {
    "openai-gpt": 12,
    "gpt2": 12,
    "gpt2-medium": 16,
    "gpt2-large": 20,
    "gpt2-xl": 25,
    "gopher-44m": 16,
    "gpt-mini": 6,
    "gpt-micro": 4,
    "gpt-nano": 3,
}


class MinGPTStorage(PickleStorage):
    """`model.pt`: the weights alone; beside it config.json, with the arguments of the model as `model`."""

    file = "model.pt"
    peer = {"activation_function": "gelu_new", "tie_word_embeddings": False}

    def read_fields(self, folder: Path) -> tuple[Fields, Fields]:
        stored = read_json(folder / CONFIG_NAME)
        given = {name: value for name, value in stored["model"].items() if value is not None}
        heads = MINGPT_HEADS.get(given.pop("model_type", None))
        shapes = {name: tensor.shape for name, tensor in self.open(folder).meta.items()}
        (vocab_size, width), (block_size, _) = shapes["transformer.wte.weight"], shapes["transformer.wpe.weight"]
        found = {
            "n_layer": sum(name.endswith(".ln_1.weight") for name in shapes),
            "n_head": heads,
            "n_embd": width,
            "block_size": block_size,
            "vocab_size": vocab_size,
        }
        if given.get("n_head", heads) is None:
            raise ValueError(f"{folder / CONFIG_NAME}: expected n_head in its model, the weights do not tell")
        return DROPOUTS | found | given, {name: value for name, value in stored.items() if name != "model"}

    def payload(self, folder: Path, fields: Fields, tensors: dict[str, torch.Tensor]) -> Any:
        of_model = {name: fields[name] for name in (*FIELDS, *DROPOUTS)}
        others = {name: value for name, value in fields.items() if name not in of_model}
        (folder / CONFIG_NAME).write_text(json.dumps({**others, "model": of_model}, indent=2) + "\n")
        size = fields["block_size"]
        mask = torch.ones(size, size).tril()[None, None]  # its load_state_dict asks for the causal mask of every layer
        masks = {f"transformer.h.{layer}.attn.bias": mask for layer in range(fields["n_layer"])}
        return tensors | masks


DROPOUTS = {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1}  # as minGPT has them by default


def read_nanogpt(native: Fields) -> Fields:
    bias = native["bias"]
    return {
        "embedding_dropout": native["dropout"],
        "attention_dropout": native["dropout"],
        "mlp_bias": bias,
        "norm_parameters": "weight_and_bias" if bias else "weight",
    }


NANOGPT = Family(
    name="nanogpt",
    storage=NanoGPTStorage("nanogpt"),
    fields=FIELDS | {"bias": "attention_bias", "dropout": "residual_dropout"},
    constants={"position_embedding_type": "learned", "hidden_act": "gelu"},
    read=read_nanogpt,
    layouts=(WEIGHTS,),
)
MINGPT = Family(
    name="mingpt",
    storage=MinGPTStorage("mingpt"),
    fields=FIELDS
    | {"embd_pdrop": "embedding_dropout", "resid_pdrop": "residual_dropout", "attn_pdrop": "attention_dropout"},
    constants={"position_embedding_type": "learned", "hidden_act": "gelu_new", "tie_word_embeddings": False},
    layouts=(WEIGHTS,),
)
