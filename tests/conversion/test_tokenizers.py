import base64
import json

import pytest
from native import assert_convert_raises, save_native
from tiny_tokenizers import write_hugging_face, write_openai, write_saved
from transformers import AutoTokenizer, GPT2Tokenizer, OpenAIGPTTokenizer

from hf_gpt.conversion import checkpoints, convert, export
from hf_gpt.tokenization import train_tokenizer

TEXT = "Not all heroes wear capes; some wear hats, and some nothing at all.\n"


@pytest.fixture(scope="module")
def trained():
    return train_tokenizer([TEXT * 9], 300)


@pytest.fixture
def native(tmp_path):
    """The folder of a native GPT-2 without a tokenizer."""
    save_native(tmp_path / "native", "gpt2", vocab_size=300)
    return tmp_path / "native"


def write_saved_without_class(tokenizer, folder):
    """As in GPT-2's repository on the Hub."""
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')


@pytest.mark.parametrize(
    "write", [write_saved, write_saved_without_class, write_openai, write_hugging_face], ids=lambda f: f.__name__
)
def test_byte_level(native, trained, write, tmp_path):
    write(trained, native)
    convert(native, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", "gpt2")
    expected = trained(TEXT)["input_ids"]
    for folder in ("ours", "back"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder, trust_remote_code=False)
        assert tokenizer(TEXT)["input_ids"] == expected
        assert tokenizer.decode(expected) == TEXT


def test_an_existing_tokenizer_is_copied_unchanged(native, trained, tmp_path):
    trained.chat_template = "{{ messages }}"
    trained.save_pretrained(native)
    convert(native, tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "ours" / name).read_bytes() == (native / name).read_bytes()


def test_options_of_the_native_class(native, trained, tmp_path):
    """`add_prefix_space` is an option of the class, in no file of the vocabulary."""
    write_hugging_face(trained, native)
    (native / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}')
    convert(native, tmp_path / "ours")
    expected = GPT2Tokenizer.from_pretrained(native)("heroes")["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("heroes")["input_ids"] == expected
    assert expected == trained(" heroes")["input_ids"]


def test_word_level(tmp_path):
    """GPT-1's words."""
    letters = sorted({*TEXT.lower()} - {" ", "\n"})
    vocab = ["<unk>", *letters, *(f"{letter}</w>" for letter in letters), "al", "all</w>"]
    save_native(tmp_path / "native", "openai-gpt", vocab_size=len(vocab))
    ids = {token: index for index, token in enumerate(vocab)}
    (tmp_path / "native/vocab.json").write_text(json.dumps(ids))
    (tmp_path / "native/merges.txt").write_text("#version: 0.2\na l\nal l</w>\n")
    convert(tmp_path / "native", tmp_path / "ours")
    expected = OpenAIGPTTokenizer.from_pretrained(tmp_path / "native")(TEXT)["input_ids"]
    assert ids["all</w>"] in expected
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")(TEXT)["input_ids"] == expected


def test_tiktoken_ranks(native, tmp_path):
    ranks = [bytes([byte]) for byte in range(256)] + [b"he", b"al", b"all"]
    lines = [base64.b64encode(token) + b" " + str(rank).encode() for rank, token in enumerate(ranks)]
    (native / "r50k_base.tiktoken").write_bytes(b"\n".join(lines))
    convert(native, tmp_path / "ours")
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("heal all")["input_ids"] == [256, 257, 32, 258]


def test_no_tokenizer(native, tmp_path):
    convert(native, tmp_path / "ours")
    assert not list((tmp_path / "ours").glob("*token*"))


def test_an_invalid_tokenizer_is_detected_before_weights_are_written(native, monkeypatch):
    (native / "tokenizer.json").write_text("{}")
    (native / "tokenizer_config.json").write_text("{")
    monkeypatch.setattr(checkpoints, "save_file", None)
    assert_convert_raises(native, "tokenizer_config.json is not valid JSON")
