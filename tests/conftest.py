import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tiny import VARIANTS

from hf_gpt.model import attention_masks

torch.set_num_threads(1)  # tiny models: a second thread only waits


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def tiny_sequences_are_cut_like_long_ones(monkeypatch):
    monkeypatch.setattr(attention_masks, "SHORTEST", 2)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """New floating-point memory holds NaN: what is read before it is written shows."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
