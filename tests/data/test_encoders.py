import itertools
import json
import sys

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from threads import THREADS, in_threads
from tokenizers import AddedToken, Tokenizer, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from hf_gpt.data.encoders import build_encoder
from hf_gpt.tokenization import load_tokenizer, train_tokenizer
from hf_gpt.tokenization.chunking import split_into_chunks
from hf_gpt.tokenization.split_patterns import SPLIT_PATTERNS

TEXT = "The cat sat on the mat. It's 12345 o'clock!\n\n\tdef f(x):\n        return x\n红楼梦 第一回 🐈‍⬛\r\n"
TOKENIZERS = {pattern: train_tokenizer([TEXT * 3], 400, pattern) for pattern in SPLIT_PATTERNS}
ENGINES = ("tiktoken", "tokenizers")
ENCODERS = {(name, engine): build_encoder(TOKENIZERS[name], engine) for name in SPLIT_PATTERNS for engine in ENGINES}


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
@given(text=st.text() | st.text(st.sampled_from(TEXT + "'sS")))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_both_engines_give_the_ids_of_the_tokenizer(pattern, text):
    tokenizer = TOKENIZERS[pattern]
    expected = tokenizer(text, split_special_tokens=True)["input_ids"]
    for engine in ("tiktoken", "tokenizers"):
        encoder = build_encoder(tokenizer, engine)
        assert encoder.engine == engine
        assert encoder.encode([text])[0].tolist() == expected


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
@given(text=st.text(st.sampled_from("aB1 \t\n\r'!/_，红e\u0301\0🐈")) | st.text(), size=st.integers(1, 9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_chunks_have_the_ids_of_the_whole_text(pattern, engine, text, size):
    encoder = ENCODERS[pattern, engine]
    chunks = encoder.encode([*split_into_chunks(text, size)])
    assert [index for ids in chunks for index in ids.tolist()] == encoder.encode([text])[0].tolist()


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("count", [0, 1, 2, 5])
def test_texts_of_one_call_have_the_ids_of_each(engine, count):
    encoder = build_encoder(TOKENIZERS["gpt2"], engine)
    tricky = [TEXT, "", " <|", "<|between two texts|>", "between two texts|> <|between two texts|>"]
    for texts in itertools.permutations(tricky, count):
        ids = encoder.encode([*texts])
        assert [each.tolist() for each in ids] == [TOKENIZERS["gpt2"](text)["input_ids"] for text in texts]


@pytest.mark.parametrize("engine", ENGINES)
def test_no_text_becomes_a_control_token(engine):
    tokenizer = load_tokenizer()
    encoder = build_encoder(tokenizer, engine)
    for token in tokenizer.all_special_tokens:
        ids = encoder.encode([f"a{token}b {token}"])[0]
        assert not {*ids.tolist()} & {*tokenizer.all_special_ids}
        assert tokenizer.decode(ids) == f"a{token}b {token}"


@pytest.mark.parametrize(("size", "dtype"), [(300, np.uint16), (65536, np.uint16), (65537, np.uint32)])
def test_smallest_integer_type(size, dtype):
    tokenizer = train_tokenizer([TEXT], 300)
    tokenizer.add_tokens([f"<{number}>" for number in range(300, size)])
    assert build_encoder(tokenizer).dtype == dtype


def train_and_change(change) -> PreTrainedTokenizerFast:
    tokenizer = train_tokenizer([TEXT * 3], 400)
    change(tokenizer)
    return tokenizer


def swap_two_merges(tokenizer):
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    merges = stored["model"]["merges"]
    merges[3], merges[40] = merges[40], merges[3]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(stored))


def drop_a_merge(tokenizer):
    stored = json.loads(tokenizer.backend_tokenizer.to_str())
    del stored["model"]["merges"][-1]
    tokenizer._tokenizer = type(tokenizer.backend_tokenizer).from_str(json.dumps(stored))


def normalize(tokenizer):
    tokenizer.backend_tokenizer.normalizer = normalizers.NFC()


def add_a_word(tokenizer):
    tokenizer.add_tokens([AddedToken("cat sat", special=False)])


def split_at_blanks(tokenizer):
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.WhitespaceSplit(), pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)]
    )


@pytest.mark.parametrize(
    "change", [swap_two_merges, drop_a_merge, normalize, add_a_word, split_at_blanks], ids=lambda f: f.__name__
)
def test_tiktoken_is_used_only_where_it_is_exact(change):
    tokenizer = train_and_change(change)
    encoder = build_encoder(tokenizer)
    assert encoder.engine == "tokenizers"
    assert encoder.encode([TEXT])[0].tolist() == tokenizer(TEXT)["input_ids"]
    with pytest.raises(ValueError, match="engine='tiktoken' would not give the ids of this tokenizer: expected"):
        build_encoder(tokenizer, "tiktoken")


def test_built_in_byte_level_pattern():
    def use_the_built_in_pattern(tokenizer):
        tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)

    encoder = build_encoder(train_and_change(use_the_built_in_pattern))
    assert (encoder.engine, encoder.is_chunkable) == ("tiktoken", True)
    assert encoder.encode([TEXT])[0].tolist() == TOKENIZERS["gpt2"](TEXT)["input_ids"]


def test_without_tiktoken(monkeypatch):
    monkeypatch.setattr("hf_gpt.data.encoders.find_spec", lambda name: None)
    encoder = build_encoder(TOKENIZERS["gpt2"])
    assert encoder.engine == "tokenizers"
    assert encoder.is_chunkable
    monkeypatch.setitem(sys.modules, "tiktoken", None)
    with pytest.raises(ImportError, match=r"pip install 'hf_gpt\[fast\]'"):
        build_encoder(TOKENIZERS["gpt2"], "tiktoken")


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
@pytest.mark.parametrize("blanks", [" ", "\n", " \t"])
def test_more_blanks_than_tiktoken_supports(pattern, blanks):
    text = "a" + blanks * 1_100_000 + "b"
    fast, slow = (build_encoder(TOKENIZERS[pattern], engine) for engine in ("tiktoken", "tokenizers"))
    for texts in ([text], ["x", text, "y"]):
        assert all(np.array_equal(a, b) for a, b in zip(fast.encode(texts), slow.encode(texts), strict=True))


def build_word_level_tokenizer(vocab: list[str], **roles) -> PreTrainedTokenizerFast:
    backend = Tokenizer(models.WordLevel({word: index for index, word in enumerate(vocab)}, unk_token="<unk>"))
    backend.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=backend, **roles)


@pytest.mark.parametrize(
    ("make", "text"),
    [
        (lambda: build_word_level_tokenizer(["<unk>", "</s>", "a"], eos_token="</s>", unk_token="<unk>"), "</s>"),
        (lambda: build_word_level_tokenizer(["<unk>", "a"], eos_token="<unk>", unk_token="<unk>"), "<unk>"),
        (lambda: load_tokenizer(eos_token="."), "."),
        (lambda: load_tokenizer(pad_token="!"), "!"),
    ],
)
def test_text_that_becomes_a_control_token_raises(make, text):
    with pytest.raises(ValueError, match=rf"the text {text!r} would become .* expected special tokens that no text"):
        build_encoder(make())


def test_unknown_word_is_not_a_control_token():
    encoder = build_encoder(build_word_level_tokenizer(["<unk>", "a"], unk_token="<unk>"))
    assert encoder.encode(["a b"])[0].tolist() == [1, 0]


def test_tokenizer_with_added_words_is_not_chunkable():
    assert not build_encoder(train_and_change(add_a_word)).is_chunkable


def test_unknown_engine():
    with pytest.raises(ValueError, match="engine='quick': expected tiktoken or tokenizers"):
        build_encoder(TOKENIZERS["gpt2"], "quick")


@pytest.mark.parametrize("engine", ENGINES)
def test_threads_share_an_encoder(engine):
    encoder = build_encoder(TOKENIZERS["gpt2"], engine)
    texts = [[TEXT[start : start + 50 * (thread + 1)] for start in range(60)] for thread in range(THREADS)]
    alone = [[ids.tolist() for ids in encoder.encode(each)] for each in texts]
    encoder = build_encoder(TOKENIZERS["gpt2"], engine)  # its caches are empty
    assert in_threads(lambda thread: [ids.tolist() for ids in encoder.encode(texts[thread])]) == alone
