import os

os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import pytest
import torch
from tiny import VARIANTS

from hf_gpt.model import attention_masks

torch.set_num_threads(1)  # a second thread has no work on tiny models


@pytest.fixture(params=VARIANTS)
def variant(request) -> str:
    return request.param


@pytest.fixture(autouse=True)
def low_threshold_for_pieces(monkeypatch):
    """Splits tiny sequences into the pieces of sparse attention, as the model splits long ones."""
    monkeypatch.setattr(attention_masks, "MIN_KEYS_FOR_PIECES", 2)


@pytest.fixture(autouse=True)
def poisoned_memory():
    """Fills new floating-point memory with NaN, so that a read before the first write changes the result."""
    torch.utils.deterministic.fill_uninitialized_memory = True
    torch.use_deterministic_algorithms(True, warn_only=True)
    yield
    torch.use_deterministic_algorithms(False)
