"""A converted model beside the native one: how far apart their logits are."""

import gc
from pathlib import Path
from typing import NamedTuple

import torch
from transformers import AutoTokenizer

from ..data.text_sources import standard_library_documentation
from ..model.configuration_gpt import GPTConfig
from ..model.modeling_gpt import GPTForCausalLM
from .families import find_family
from .sources import locate
from .tokenizers import TOKENIZER

LENGTH = 128  # tokens in a row, where the model takes as many


class Difference(NamedTuple):
    """The largest difference between two models' logits on some tokens, and the largest of these logits."""

    largest: float
    scale: float

    @property
    def relative(self) -> float:
        return self.largest / self.scale


def verify(ours: str | Path, native: str | Path, family: str) -> dict[str, Difference]:
    """Run both sides of a conversion in float32, one after the other, and compare their logits.

    Args:
        ours: folder or Hub id of the model of hf_gpt.
        native: of the native one.
        family: what the native one is, one of `FAMILIES`.

    Returns:
        The difference on `random tokens`, and, where there is a tokenizer, on `real tokens`, those of documentation.
    """
    ours, native = locate(ours), locate(native)
    inputs = _inputs(ours)

    @torch.no_grad()
    def logits(load, folder: Path) -> dict[str, torch.Tensor]:
        model = load(folder).eval()
        outputs = {name: model(ids).logits for name, ids in inputs.items()}
        del model
        gc.collect()  # before the other one is loaded
        return outputs

    expected = logits(find_family(family).storage.load, native)
    actual = logits(lambda folder: GPTForCausalLM.from_pretrained(folder, dtype=torch.float32), ours)
    return {
        name: Difference((actual[name] - expected[name]).abs().max().item(), expected[name].abs().max().item())
        for name in inputs
    }


def _inputs(folder: Path) -> dict[str, torch.Tensor]:
    config = GPTConfig.from_pretrained(folder)
    length = min(LENGTH, config.max_position_embeddings)
    ids = torch.randint(config.vocab_size, (2, length), generator=torch.Generator().manual_seed(0))
    inputs = {"random tokens": ids}
    if (folder / TOKENIZER).is_file():
        tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
        text = standard_library_documentation()[0][: 20 * length]
        real = tokenizer(text, return_tensors="pt", truncation=True, max_length=length)["input_ids"]
        inputs["real tokens"] = real.clamp(max=config.vocab_size - 1)
    return inputs
