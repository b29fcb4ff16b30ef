import shutil
import subprocess
import sys

from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import PreTrainedTokenizerFast

from hf_gpt.data.encoders import build_encoder
from hf_gpt.tokenization.loading import SHIPPED_TOKENIZER, load_tokenizer

TOKENIZER = load_tokenizer()
ENCODER = build_encoder(TOKENIZER)
ROLES = ["<|system|>", "<|user|>", "<|assistant|>", "<|tool|>"]


def test_vocabulary_has_the_size_of_gpt2():
    assert len(TOKENIZER) == TOKENIZER.vocab_size == 50257
    assert type(TOKENIZER) is PreTrainedTokenizerFast
    assert TOKENIZER.eos_token_id == TOKENIZER.bos_token_id == 50256
    assert TOKENIZER.eos_token == "<|endoftext|>"
    assert TOKENIZER.pad_token == "<|padding|>"
    expected = [*(f"<|reserved_{n}|>" for n in range(8)), *ROLES, "[Start]", "[Delim]", "[Extract]"]
    assert TOKENIZER.convert_ids_to_tokens(range(50240, 50255)) == expected
    assert {*TOKENIZER.all_special_tokens} == {*expected, "<|endoftext|>", "<|padding|>"}


def test_folder_loads_without_hf_gpt(tmp_path):
    """A copy of the folder loads in a process without hf_gpt, and so does what that process saves."""
    shutil.copytree(SHIPPED_TOKENIZER, tmp_path / "copy")
    script = (
        "import sys; from transformers import AutoTokenizer; t = AutoTokenizer.from_pretrained('copy'); "
        "t.save_pretrained('again'); t = AutoTokenizer.from_pretrained('again'); assert 'hf_gpt' not in sys.modules; "
        "print(len(t), t('Hello 世界<|user|>')['input_ids'], t.chat_template is not None)"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, cwd=tmp_path)
    assert done.stdout.strip() == f"50257 {TOKENIZER('Hello 世界<|user|>')['input_ids']} True", done.stderr


@given(text=st.text() | st.binary().map(lambda data: data.decode("latin-1")))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_decoding_inverts_encoding(text):
    assert TOKENIZER.decode(TOKENIZER(text)["input_ids"]) == text
    assert TOKENIZER.decode(ENCODER.encode([text])[0]) == text
