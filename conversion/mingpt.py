"""minGPT (Karpathy 2020): `model.pt` and `config.json`, the model as GPT-2 with its head not tied."""

import json
from pathlib import Path
from typing import Any

import torch
from transformers.utils import CONFIG_NAME

from ..json_files import read_json
from .family import Family
from .gpt2 import CAUSAL_MASKS
from .nanogpt import FIELDS, WEIGHTS, PickleStorage
from .storage import Fields

# `model_type` in minGPT names a size; config.json may contain the name alone, and the weights do not determine n_head.
HEADS = {
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
DROPOUTS = {"embd_pdrop": 0.1, "resid_pdrop": 0.1, "attn_pdrop": 0.1}  # minGPT's defaults


class MinGPTStorage(PickleStorage):
    """`model.pt`: the weights; `config.json`: the arguments of the model under `model`."""

    file = "model.pt"
    gpt2_fields = {"activation_function": "gelu_new", "tie_word_embeddings": False}

    def recognizes(self, folder: Path, stored: Fields | None) -> bool:
        return stored is not None and "model_type" not in stored and isinstance(stored.get("model"), dict)

    def read_fields(self, folder: Path) -> tuple[Fields, Fields]:
        stored = read_json(folder / CONFIG_NAME)
        arguments = {name: value for name, value in stored["model"].items() if value is not None}
        heads = HEADS.get(arguments.pop("model_type", None))
        shapes = {name: tensor.shape for name, tensor in self.open(folder).meta.items()}
        (vocab_size, width), (block_size, _) = shapes["transformer.wte.weight"], shapes["transformer.wpe.weight"]
        sizes = {
            "n_layer": sum(name.endswith(".ln_1.weight") for name in shapes),
            "n_head": heads,
            "n_embd": width,
            "block_size": block_size,
            "vocab_size": vocab_size,
        }
        if arguments.get("n_head", heads) is None:
            raise ValueError(f"{folder / CONFIG_NAME}: expected n_head under `model`; the weights do not determine it")
        return DROPOUTS | sizes | arguments, {name: value for name, value in stored.items() if name != "model"}

    def payload(self, folder: Path, fields: Fields, tensors: dict[str, torch.Tensor]) -> Any:
        arguments = {name: fields[name] for name in (*FIELDS, *DROPOUTS)}
        others = {name: value for name, value in fields.items() if name not in arguments}
        (folder / CONFIG_NAME).write_text(json.dumps({**others, "model": arguments}, indent=2) + "\n")
        size = fields["block_size"]
        mask = torch.ones(size, size).tril()[None, None]  # minGPT's load_state_dict needs the mask of every layer
        masks = {f"transformer.h.{layer}.attn.bias": mask for layer in range(fields["n_layer"])}
        return tensors | masks


MINGPT = Family(
    storage=MinGPTStorage("mingpt"),
    fields=FIELDS
    | {"embd_pdrop": "embedding_dropout", "resid_pdrop": "residual_dropout", "attn_pdrop": "attention_dropout"},
    constants={"position_embedding_type": "learned", "hidden_act": "gelu_new", "tie_word_embeddings": False},
    layouts=(WEIGHTS,),
    computed=CAUSAL_MASKS,
)
