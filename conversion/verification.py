"""Compares the logits of a converted model with those of the native one."""

import gc
from collections.abc import Callable
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

import torch
from transformers import PreTrainedModel

from ..model.configuration_gpt import GPTConfig
from ..tokenization.loading import open_tokenizer
from ..tokenization.vocabulary_files import TOKENIZER_FILE
from .families import find_family
from .loading import load_model
from .sources import locate

LENGTH = 128  # tokens per row, or `max_position_embeddings` if that is less


class Difference(NamedTuple):
    """How far the logits of two models on the same tokens are apart."""

    largest: float
    """The largest absolute difference of two logits."""
    scale: float
    """The largest absolute logit of the native model."""

    @property
    def relative(self) -> float:
        return self.largest / self.scale


def verify(ours: str | Path, native: str | Path, family: str) -> dict[str, Difference]:
    """Runs both models of a conversion in float32, one after the other, and compares their logits.

    Args:
        ours: folder or Hub id of the model of hf_gpt.
        native: folder or Hub id of the native model.
        family: the family of the native model, one of `FAMILIES`.

    Returns:
        The difference on `random tokens` and, if there is a tokenizer, on `real tokens`, those of documentation.
    """
    ours, native = locate(ours), locate(native)
    inputs = _inputs(ours)
    expected = _logits(find_family(family).storage.load, native, inputs)
    actual = _logits(lambda folder: load_model(folder, dtype=torch.float32), ours, inputs)
    return {
        name: Difference((actual[name] - expected[name]).abs().max().item(), expected[name].abs().max().item())
        for name in inputs
    }


@torch.no_grad()
def _logits(
    load: Callable[[Path], PreTrainedModel], folder: Path, inputs: dict[str, torch.Tensor]
) -> dict[str, torch.Tensor]:
    model = load(folder).eval()
    logits = {name: model(ids).logits for name, ids in inputs.items()}
    del model
    gc.collect()  # before the other model is loaded
    return logits


def _inputs(folder: Path) -> dict[str, torch.Tensor]:
    """Returns token ids of shape (rows, length) by name."""
    config = GPTConfig.from_pretrained(folder)
    length = min(LENGTH, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    inputs = {"random tokens": ids}
    if (folder / TOKENIZER_FILE).is_file():
        text = topics["function"][: 20 * length]  # documentation that comes with Python
        real = open_tokenizer(folder)(text, return_tensors="pt", truncation=True, max_length=length)["input_ids"]
        inputs["real tokens"] = real.clamp(max=config.vocab_size - 1)
    return inputs
