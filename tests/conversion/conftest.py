import pytest
from native import save_native


@pytest.fixture
def native(tmp_path):
    """The folder of a native GPT-2 with two layers and an untied head."""
    save_native(tmp_path / "native", "gpt2", n_layer=2, n_embd=24, n_head=3, tie_word_embeddings=False)
    return tmp_path / "native"
