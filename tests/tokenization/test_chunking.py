import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers

from hf_gpt.tokenization import chunking, train_tokenizer
from hf_gpt.tokenization.chunking import find_long_word, last_boundary, next_boundary, split_into_chunks
from hf_gpt.tokenization.split_patterns import SPLIT_PATTERNS

TRICKY = (
    "It's 12345 o'clock, we'LL'S see  3.14,15\n\n\tdef f(x):\r\n        return -x_y  # {}\r\n"
    "红楼梦，第一回。「こんにちは」 안녕 e\u0301 ê̄. नमस्ते, ½ ² Ⅷ ٣\u00a0\u2028\u3000\x1c\x85 ſ's 🐈‍⬛! ǅ'x "
)
TOKENIZERS = {pattern: train_tokenizer([TRICKY * 3], 400, pattern) for pattern in SPLIT_PATTERNS}


def train_word_level_tokenizer() -> Tokenizer:
    """Trains a tokenizer with GPT-1's words and its normalizer, which removes control characters."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=2000))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator([TRICKY], trainers.WordPieceTrainer(show_progress=False, special_tokens=["[UNK]"]))
    return tokenizer


WORD_LEVEL = train_word_level_tokenizer()


@given(text=st.text(st.sampled_from(TRICKY + "\x0b\x0c\x1d\x85"), max_size=60) | st.text(max_size=60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_chunks_have_the_words_of_the_whole_text(text):
    words = [word for chunk in split_into_chunks(text, 2) for word in WORD_LEVEL.encode(chunk).tokens]
    assert words == WORD_LEVEL.encode(text).tokens


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
@given(text=st.text(st.sampled_from(TRICKY), max_size=60) | st.text(max_size=60), size=st.integers(1, 9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_chunks_have_the_tokens_of_the_whole_text(pattern, text, size):
    tokenizer = TOKENIZERS[pattern]
    chunks = list(split_into_chunks(text, size))
    assert "".join(chunks) == text
    assert all(chunks)
    tokens = [token for chunk in chunks for token in tokenizer.tokenize(chunk, split_special_tokens=True)]
    assert tokens == tokenizer.tokenize(text, split_special_tokens=True)


# A letter, number, blank, line end, mark, control and format character of each kind that a split pattern distinguishes.
KINDS = "aBsʰ红ǅ1²Ⅷ \t\n\r\u00a0\x85\u2028'!/_$，’、\u0301ा\0\u200d🐈"
SPLITS = {name: pre_tokenizers.Split(Regex(pattern), "isolated") for name, pattern in SPLIT_PATTERNS.items()}


def split_words(pattern: str, text: str) -> list[str]:
    if pattern == "gpt1":
        text, split = WORD_LEVEL.normalizer.normalize_str(text), WORD_LEVEL.pre_tokenizer
    else:
        split = SPLITS[pattern]
    return [word for word, _ in split.pre_tokenize_str(text)]


@pytest.mark.parametrize("pattern", [*SPLITS, "gpt1"])
def test_no_word_crosses_a_boundary(pattern):
    """In every text of three characters, one of each kind."""
    count = 0
    for text in map("".join, itertools.product(KINDS, repeat=3)):
        for at in (1, 2):
            if next_boundary(text[: at + 1], at) == at:
                count += 1
                words = split_words(pattern, text[:at]) + split_words(pattern, text[at:])
                assert words == split_words(pattern, text), (text, at)
    assert count > 1000


@given(text=st.text(st.sampled_from(KINDS)), start=st.integers(0, 9), end=st.integers(0, 40))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_last_boundary_is_the_last(text, start, end):
    boundaries = [at for at in range(len(text)) if next_boundary(text[: at + 1], at) == at]
    within = [at for at in boundaries if start < at <= end]
    assert last_boundary(text, start, end) == (within[-1] if within else None)
    assert next_boundary(text, start) == next((at for at in boundaries if at >= start), None)


@given(data=st.data(), text=st.text(st.sampled_from("aaaaaa! \n红")), limit=st.integers(1, 9))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_long_words_are_found(data, text, limit):
    """However the text is divided into parts."""
    boundaries = [at for at in range(len(text)) if next_boundary(text[: at + 1], at) == at]
    words = itertools.pairwise([0, *boundaries, len(text)])
    expected = next((start for start, end in words if end - start > limit), None)
    cuts = sorted(data.draw(st.lists(st.integers(0, len(text)))))
    parts = [text[start:end] for start, end in itertools.pairwise([0, *cuts, len(text)])]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(chunking, "MAX_WORD_CHARACTERS", limit)
        assert find_long_word(parts) == expected


def test_length_of_chunks():
    assert max(map(len, split_into_chunks("to be or not to be " * 50, 100))) <= 100
    assert list(split_into_chunks("x" * 500 + " y", 100)) == ["x" * 500, " y"]  # no earlier boundary
    assert list(split_into_chunks("")) == []
