"""The tokenizer beside a checkpoint comes along, in every form it may have."""

import base64
import json

import pytest
from native import save_native
from transformers import AutoTokenizer, GPT2Tokenizer, OpenAIGPTTokenizer

from hf_gpt.conversion import convert, export
from hf_gpt.conversion.tokenizers import open_tokenizer
from hf_gpt.tokenization import tokenizer_to_tiktoken, train_tokenizer

TEXT = "Not all heroes wear capes; some wear hats, and some nothing at all.\n"


@pytest.fixture
def trained():
    return train_tokenizer([TEXT * 9], 300)


@pytest.fixture
def native(tmp_path):
    save_native(tmp_path / "native", "gpt2", vocab_size=300)
    return tmp_path / "native"


def write_vocab_and_merges(tokenizer, folder, vocab, merges):
    model = json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    (folder / vocab).write_text(json.dumps(model["vocab"]))
    lines = [" ".join(merge) for merge in model["merges"]]
    (folder / merges).write_text("\n".join(["#version: 0.2", *lines]) + "\n")


def write_openai(tokenizer, folder):
    write_vocab_and_merges(tokenizer, folder, "encoder.json", "vocab.bpe")


def write_hugging_face(tokenizer, folder):
    write_vocab_and_merges(tokenizer, folder, "vocab.json", "merges.txt")


def write_saved(tokenizer, folder):
    tokenizer.save_pretrained(folder)


def write_saved_without_its_class(tokenizer, folder):
    """As GPT-2's own repository has it."""
    tokenizer.save_pretrained(folder)
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')


@pytest.mark.parametrize(
    "write", [write_saved, write_saved_without_its_class, write_openai, write_hugging_face], ids=lambda f: f.__name__
)
def test_a_byte_level_tokenizer(native, trained, write, tmp_path):
    write(trained, native)
    convert(native, tmp_path / "ours")
    export(tmp_path / "ours", tmp_path / "back", "gpt2")
    expected = trained(TEXT)["input_ids"]
    for folder in ("ours", "back"):
        tokenizer = AutoTokenizer.from_pretrained(tmp_path / folder, trust_remote_code=False)
        assert tokenizer(TEXT)["input_ids"] == expected
        assert tokenizer.decode(expected) == TEXT


def test_an_existing_tokenizer_is_copied_as_it_is(native, trained, tmp_path):
    trained.chat_template = "{{ messages }}"
    trained.save_pretrained(native)
    convert(native, tmp_path / "ours")
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "ours" / name).read_bytes() == (native / name).read_bytes()


def test_what_the_native_class_adds_stays(native, trained, tmp_path):
    """A space before the first word is an option of the class, in no file of the vocabulary."""
    write_hugging_face(trained, native)
    (native / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer", "add_prefix_space": true}')
    convert(native, tmp_path / "ours")
    expected = GPT2Tokenizer.from_pretrained(native)("heroes")["input_ids"]
    assert AutoTokenizer.from_pretrained(tmp_path / "ours")("heroes")["input_ids"] == expected
    assert expected == trained(" heroes")["input_ids"]


def test_gpt1_words(tmp_path):
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


@pytest.mark.parametrize("write", [write_saved, write_openai, write_hugging_face], ids=lambda f: f.__name__)
def test_a_tokenizer_is_opened_in_any_form(trained, write, tmp_path):
    write(trained, tmp_path)
    assert open_tokenizer(tmp_path)(TEXT)["input_ids"] == trained(TEXT)["input_ids"]


def test_a_file_of_ranks_is_opened(trained, tmp_path):
    tokenizer_to_tiktoken(trained, tmp_path / "r50k_base.tiktoken")
    assert open_tokenizer(tmp_path / "r50k_base.tiktoken")(TEXT)["input_ids"] == trained(TEXT)["input_ids"]
    (tmp_path / "r50k_base.tiktoken").rename(tmp_path / "mine.tiktoken")
    with pytest.raises(ValueError, match=r"mine\.tiktoken: expected the name of an encoding, r50k_base"):
        open_tokenizer(tmp_path / "mine.tiktoken")


def test_no_tokenizer_to_open(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    (tmp_path / "junk").mkdir()
    (tmp_path / "junk" / "tokenizer.json").write_text("{}")
    for name in (tmp_path, tmp_path / "none", tmp_path / "junk", "nobody/nothing"):
        with pytest.raises(OSError, match="is no folder with a tokenizer, and no tokenizer on the Hub"):
            open_tokenizer(name, local_files_only=True)


def test_without_a_tokenizer_there_is_none(native, tmp_path):
    convert(native, tmp_path / "ours")
    assert not list((tmp_path / "ours").glob("*token*"))
