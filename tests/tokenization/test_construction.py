import itertools
import subprocess
import sys
from bisect import bisect_left, bisect_right

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import (
    ANY_TEXT,
    MIXED_TEXTS,
    TEXTS,
    TOKENIZERS,
    read_pairs,
    write_vocab_and_merges,
    write_word_level_model,
)
from tokenizers.decoders import DecodeStream
from transformers import AutoTokenizer, GPT2Tokenizer, PreTrainedTokenizerFast, TextStreamer

from hf_gpt.tokenization import (
    load_tokenizer,
    tokenizer_from_tiktoken,
    tokenizer_from_vocab_and_merges,
    tokenizer_to_tiktoken,
    train_tokenizer,
)
from hf_gpt.tokenization.byte_alphabet import characters_to_bytes
from hf_gpt.tokenization.vocabulary_files import read_vocab

PATTERNS = list(TOKENIZERS)


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


@given(text=ANY_TEXT | st.binary().map(lambda data: data.decode(errors="replace")), pattern=st.sampled_from(PATTERNS))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_decoding_inverts_encoding(text, pattern):
    tokenizer = TOKENIZERS[pattern]
    assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


@given(text=ANY_TEXT, pattern=st.sampled_from(PATTERNS))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_offsets_are_the_characters_of_each_token(text, pattern):
    tokenizer = TOKENIZERS[pattern]
    encoded = tokenizer(text, return_offsets_mapping=True)
    data = text.encode()
    starts = [0, *itertools.accumulate(len(character.encode()) for character in text)]
    at = 0
    for token, (first, last) in zip(encoded.tokens(), encoded["offset_mapping"], strict=True):
        end = at + len(characters_to_bytes(token))
        assert data[at:end] == characters_to_bytes(token)
        assert starts[first] <= at < end <= starts[last]  # a token can begin or end within a character
        assert first == bisect_right(starts, at) - 1
        assert last == bisect_left(starts, end)
        at = end
    assert at == len(data)


@given(text=ANY_TEXT)
@settings(max_examples=200, deadline=None, derandomize=True)
def test_streaming_decodes_whole_characters(text):
    tokenizer = TOKENIZERS["gpt2"]
    streamed, shown = DecodeStream(skip_special_tokens=False), ""
    ids = tokenizer(text)["input_ids"]
    for token in ids:
        shown += streamed.step(tokenizer.backend_tokenizer, token) or ""
        assert text.startswith(shown)
    if "\ufffd" not in text:
        assert shown == text


def test_text_streamer_prints_whole_characters(capsys):
    tokenizer = TOKENIZERS["gpt2"]
    text = "The cat: 红楼梦 第一回 🐈‍⬛ wörter.\n"
    streamer = TextStreamer(tokenizer)
    for token in tokenizer(text)["input_ids"]:
        streamer.put(torch.tensor([token]))
        assert "\ufffd" not in capsys.readouterr().out, token


def test_stock_tokenizer_loads_without_hf_gpt(tokenizer, tmp_path):
    assert type(tokenizer) is PreTrainedTokenizerFast
    tokenizer.save_pretrained(tmp_path)
    assert AutoTokenizer.from_pretrained(tmp_path).get_vocab() == tokenizer.get_vocab()
    script = (
        "import sys; from transformers import AutoTokenizer; "
        "print(AutoTokenizer.from_pretrained(sys.argv[1])('The cat')['input_ids']); assert 'hf_gpt' not in sys.modules"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert done.stdout.strip() == str(tokenizer("The cat")["input_ids"]), done.stderr


def test_default_special_tokens(tokenizer):
    assert tokenizer.eos_token == tokenizer.bos_token == tokenizer.unk_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|padding|>"
    assert [tokenizer.pad_token_id, tokenizer.eos_token_id] == sorted(tokenizer.all_special_ids)
    assert tokenizer.eos_token_id == len(tokenizer) - 1
    assert tokenizer.convert_ids_to_tokens([0, 255]) == ["!", "Ń"]  # bytes come first, as in GPT-2
    padded = tokenizer(["The cat", "The"], padding=True, return_tensors="pt")
    assert padded["attention_mask"].tolist()[1][-1] == 0


# --- options -----------------------------------------------------------------------------------------------------


def from_vocab_and_merges(folder, **options):
    files = write_vocab_and_merges(TOKENIZERS["gpt2"].backend_tokenizer, folder)
    return tokenizer_from_vocab_and_merges(*files, **options)


def from_tiktoken(folder, **options):
    tokenizer_to_tiktoken(TOKENIZERS["cl100k"], folder / "ranks")
    return tokenizer_from_tiktoken(folder / "ranks", "cl100k_base", **options)


def trained(folder, **options):
    return train_tokenizer(TEXTS, 400, "o200k", **options)


def shipped(folder, **options):
    return load_tokenizer(**options)


@pytest.fixture(params=[from_vocab_and_merges, from_tiktoken, trained, shipped], ids=lambda make: make.__name__)
def make(request, tmp_path):
    """Makes a tokenizer with options, saves it, and returns what AutoTokenizer loads."""

    def make_and_load_again(**options):
        request.param(tmp_path, **options).save_pretrained(tmp_path / "saved")
        return AutoTokenizer.from_pretrained(tmp_path / "saved")

    return make_and_load_again


def test_add_prefix_space(make):
    plain, prefixed = make(), make(add_prefix_space=True)
    for text in ("The cat", " The cat", "  x", "\tx", "红 x", " "):
        expected = plain(text if text.startswith(" ") else " " + text)["input_ids"]
        encoded = prefixed(text, return_offsets_mapping=True)
        assert encoded["input_ids"] == expected
        assert encoded["offset_mapping"][-1][1] == len(text)
    assert prefixed("")["input_ids"] == []


def test_prefix_space_is_the_same_as_in_gpt2_tokenizer(tmp_path):
    vocab, merges = write_vocab_and_merges(TOKENIZERS["gpt2"].backend_tokenizer, tmp_path)
    theirs = GPT2Tokenizer(vocab=read_vocab(vocab), merges=read_pairs(merges), add_prefix_space=True)
    ours = tokenizer_from_vocab_and_merges(vocab, merges, add_prefix_space=True)
    for text in [*MIXED_TEXTS, "x<|endoftext|>y<|endoftext|> z"]:
        expected, encoded = (tokenizer(text, return_offsets_mapping=True) for tokenizer in (theirs, ours))
        assert encoded["input_ids"] == expected["input_ids"]
        assert encoded["offset_mapping"] == expected["offset_mapping"]


def test_add_bos_token(make):
    tokenizer = make(add_bos_token=True)
    assert tokenizer("x")["input_ids"] == [tokenizer.bos_token_id, *make()("x")["input_ids"]]
    assert tokenizer("x", add_special_tokens=False)["input_ids"] == make()("x")["input_ids"]


def test_roles(make):
    tokenizer = make(unk_token="!", bos_token="<s>", eos_token="</s>", pad_token="#", add_bos_token=True)
    assert tokenizer.convert_ids_to_tokens(tokenizer.unk_token_id) == "!"
    assert tokenizer.pad_token_id == make().convert_tokens_to_ids("#")
    assert not {tokenizer.bos_token_id, tokenizer.eos_token_id} & {*make().get_vocab().values()}
    assert tokenizer("x")["input_ids"][0] == tokenizer.bos_token_id


def test_gpt1_has_the_same_options(tmp_path):
    word_level_files = write_word_level_model(tmp_path)
    plain = tokenizer_from_vocab_and_merges(*word_level_files)
    options = {"bos_token": "<s>", "eos_token": "</s>", "pad_token": "<pad>"}
    tokenizer = tokenizer_from_vocab_and_merges(*word_level_files, add_prefix_space=True, add_bos_token=True, **options)
    assert tokenizer("The cat")["input_ids"] == [len(plain), *plain("The cat")["input_ids"]]
    with pytest.raises(ValueError, match="add_bos_token: the vocabulary has no beginning-of-text token"):
        tokenizer_from_vocab_and_merges(*word_level_files, add_bos_token=True)


def test_unknown_option():
    with pytest.raises(TypeError, match="add_eos"):
        train_tokenizer(TEXTS, 400, add_eos=True)
