import itertools
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from hf_gpt.tokenization.building import SPLIT_PATTERNS, train_tokenizer
from hf_gpt.tokenization.pieces import cut, sample_evenly

TRICKY = (
    "It's 12345 o'clock, we'LL'S see  3.14,15\n\n\tdef f(x):\r\n        return -x_y  # {}\r\n"
    "红楼梦，第一回。「こんにちは」 안녕 e\u0301 ê̄. नमस्ते, ½ ² Ⅷ ٣\u00a0\u2028\u3000\x1c\x85 ſ's 🐈‍⬛! ǅ'x "
)
TOKENIZERS = {pattern: train_tokenizer([TRICKY * 3], 400, pattern) for pattern in SPLIT_PATTERNS}


def word_level():
    """GPT-1's normalizer and words, whose normalizer drops control characters."""
    tokenizer = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=2000))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    tokenizer.train_from_iterator([TRICKY], trainers.WordPieceTrainer(show_progress=False, special_tokens=["[UNK]"]))
    return tokenizer


WORD_LEVEL = word_level()


@given(text=st.text(st.sampled_from(TRICKY + "\x0b\x0c\x1d\x85"), max_size=60) | st.text(max_size=60))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_pieces_have_the_words_of_the_whole(text):
    words = [word for piece in cut(text, 2) for word in WORD_LEVEL.encode(piece).tokens]
    assert words == WORD_LEVEL.encode(text).tokens


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
@given(text=st.text(st.sampled_from(TRICKY), max_size=60) | st.text(max_size=60), size=st.integers(1, 9))
@settings(max_examples=200, deadline=None, derandomize=True)
def test_pieces_have_the_tokens_of_the_whole(pattern, text, size):
    tokenizer = TOKENIZERS[pattern]
    pieces = list(cut(text, size))
    assert "".join(pieces) == text
    assert all(pieces)
    parts = [token for piece in pieces for token in tokenizer.tokenize(piece, split_special_tokens=True)]
    assert parts == tokenizer.tokenize(text, split_special_tokens=True)


def test_pieces_are_about_as_long_as_asked():
    assert max(map(len, cut("to be or not to be " * 50, 100))) <= 100
    assert list(cut("x" * 500 + " y", 100)) == ["x" * 500, " y"]  # nowhere to cut before
    assert list(cut("")) == []


def test_a_sample_is_even_in_order_and_no_larger_than_asked():
    pieces = [f"{number:04}" for number in range(1000)]
    sample = sample_evenly(iter(pieces), 1000)
    assert sample == sorted(sample)
    assert 500 <= 4 * len(sample) <= 1000
    gaps = {int(b) - int(a) for a, b in itertools.pairwise(sample)}
    assert max(gaps) <= 3 * min(gaps)
    assert sample_evenly(pieces, 4000) == pieces
    assert sample_evenly(["红" * 100, "b"], 10) == ["红" * 100]  # one piece at least


@pytest.mark.parametrize("period", range(2, 9))
def test_a_sample_has_all_that_takes_turns(period):
    pieces = [str(number % period) for number in range(4000)]
    sample = sample_evenly(pieces, 500)
    counts = Counter(sample)
    assert len(counts) == period
    assert max(counts.values()) < 1.3 * min(counts.values())
