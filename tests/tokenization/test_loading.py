import importlib
import json
import shutil
import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import TOKENIZERS, write_hugging_face, write_openai, write_saved
from transformers import PreTrainedTokenizerFast

from hf_gpt.data.encoders import build_encoder
from hf_gpt.tokenization import tokenizer_to_tiktoken
from hf_gpt.tokenization.loading import SHIPPED_TOKENIZER, forget_code, load_tokenizer, open_tokenizer

TEXT = "Not all heroes wear capes; some wear hats, and some nothing at all.\n"
TRAINED = TOKENIZERS["gpt2"]
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


@pytest.mark.parametrize("write", [write_saved, write_openai, write_hugging_face], ids=lambda f: f.__name__)
def test_open_a_folder(write, tmp_path):
    write(TRAINED, tmp_path)
    assert open_tokenizer(tmp_path)(TEXT)["input_ids"] == TRAINED(TEXT)["input_ids"]


def test_a_tokenizer_does_not_save_how_it_was_loaded(tmp_path):
    TRAINED.save_pretrained(tmp_path / "saved")
    open_tokenizer(tmp_path / "saved", local_files_only=True).save_pretrained(tmp_path / "again")
    for file in (tmp_path / "saved").iterdir():
        assert (tmp_path / "again" / file.name).read_text() == file.read_text()


def test_open_a_file_of_ranks(tmp_path):
    tokenizer_to_tiktoken(TRAINED, tmp_path / "r50k_base.tiktoken")
    assert open_tokenizer(tmp_path / "r50k_base.tiktoken")(TEXT)["input_ids"] == TRAINED(TEXT)["input_ids"]
    (tmp_path / "r50k_base.tiktoken").rename(tmp_path / "mine.tiktoken")
    with pytest.raises(ValueError, match=r"mine\.tiktoken: expected the name of an encoding, r50k_base"):
        open_tokenizer(tmp_path / "mine.tiktoken")


def test_open_a_missing_tokenizer(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    for name in (tmp_path, tmp_path / "none", "nobody/nothing"):
        with pytest.raises(OSError, match="is neither a folder with a tokenizer nor a tokenizer on the Hub"):
            open_tokenizer(name, local_files_only=True)


@pytest.mark.parametrize("content", ["{}", "[]", "{", '{"model": {"vocab": {"a": -1}}, "added_tokens": []}'])
def test_open_a_damaged_tokenizer(tmp_path, content):
    (tmp_path / "tokenizer.json").write_text(content)
    with pytest.raises(ValueError, match=r"tokenizer\.json"):
        open_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "auto_map",
    [
        {"AutoTokenizer": ["theirs.Slow", "someone/other--theirs.Fast"]},
        {"AutoTokenizer": "theirs.Tokenizer"},
        {"AutoTokenizer": []},
        {"AutoTokenizer": 7},
        {"AutoProcessor": "theirs.Processor"},
        ["theirs.Slow", None],
        "theirs.Tokenizer",
        7,
        None,
    ],
    ids=str,
)
@pytest.mark.parametrize("tokenizer_class", ["PreTrainedTokenizerFast", "GPT2Tokenizer", "Theirs", None])
def test_a_tokenizer_class_that_is_code_is_not_loaded(auto_map, tokenizer_class, tmp_path):
    """tokenizer.json is, by the class of transformers that the tokenizer names, if there is one."""
    TRAINED.save_pretrained(tmp_path)
    settings = json.loads((tmp_path / "tokenizer_config.json").read_text())
    settings |= {"auto_map": auto_map, "tokenizer_class": tokenizer_class}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(settings))
    tokenizer = open_tokenizer(tmp_path)
    assert tokenizer(TEXT)["input_ids"] == TRAINED(TEXT)["input_ids"]
    tokenizer.save_pretrained(tmp_path / "again")
    assert "theirs" not in (tmp_path / "again" / "tokenizer_config.json").read_text()


def test_a_tokenizer_of_a_registered_class_is_saved_with_its_code(tmp_path, monkeypatch):
    """`forget_code` removes what was loaded, not what the user has registered."""
    (tmp_path / "our_tokenizer.py").write_text(
        "from transformers import PreTrainedTokenizerFast\nclass OurTokenizer(PreTrainedTokenizerFast): pass\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    ours = importlib.import_module("our_tokenizer").OurTokenizer
    ours.register_for_auto_class()
    tokenizer = ours(tokenizer_object=TRAINED.backend_tokenizer, auto_map={"AutoTokenizer": "theirs.Tokenizer"})
    forget_code(tokenizer).save_pretrained(tmp_path / "saved")
    settings = json.loads((tmp_path / "saved" / "tokenizer_config.json").read_text())
    assert settings["auto_map"] == {"AutoTokenizer": ["our_tokenizer.OurTokenizer", None]}
    assert (tmp_path / "saved" / "our_tokenizer.py").is_file()
