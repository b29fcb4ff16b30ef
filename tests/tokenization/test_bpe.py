"""Byte pair encoding as the textbooks write it (Sennrich et al. 2016, algorithm 1), and ours beside it."""

import json
from collections import Counter
from itertools import pairwise

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_gpt.tokenization.building import SPLIT_PATTERNS, train_tokenizer

ALPHABET = sorted(bytes_to_unicode().values())


def learn(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Join the most frequent pair of neighbours, again and again; of equals, the pair whose parts are older."""
    splits = {word: list(word) for word in words}
    ids = {character: index for index, character in enumerate(ALPHABET)}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, parts in splits.items():
            for pair in pairwise(parts):
                pairs[pair] += words[word]
        if not pairs:
            break
        best = min(pairs, key=lambda pair: (-pairs[pair], ids[pair[0]], ids[pair[1]]))
        merges.append(best)
        ids["".join(best)] = len(ids)
        splits = {word: join(parts, best) for word, parts in splits.items()}
    return merges


def join(parts: list[str], pair: tuple[str, str]) -> list[str]:
    joined = []
    for part in parts:
        if joined and (joined[-1], part) == pair:
            joined[-1] += part
        else:
            joined.append(part)
    return joined


def encode(word: str, merges: list[tuple[str, str]]) -> list[str]:
    """Apply each merge, oldest first."""
    parts = list(word)
    for merge in merges:
        parts = join(parts, merge)
    return parts


def words_of(tokenizer, text: str) -> list[str]:
    return [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def merges_of(tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


SENNRICH = {"low": 5, "lower": 2, "newest": 6, "widest": 3}


def test_the_worked_example():
    """Of Sennrich et al.; without `widest`, `w e` would come first."""
    expected = [("e", "s"), ("es", "t"), ("l", "o"), ("lo", "w")]
    assert learn(Counter(SENNRICH), 4) == expected
    text = "\n".join(word for word, count in SENNRICH.items() for _ in range(count))
    assert merges_of(train_tokenizer([text], 262))[:4] == expected


small_words = st.lists(st.text("abcd", min_size=1, max_size=6), min_size=1, max_size=40)


@given(words=small_words)
@settings(max_examples=100, deadline=None, derandomize=True)
def test_trained_merges_are_those_of_the_textbook(words):
    text = "\n".join(words)
    tokenizer = train_tokenizer([text], 280)
    expected = learn(Counter(words_of(tokenizer, text)), 280 - 256 - 2)
    assert merges_of(tokenizer) == expected


REAL = (
    "The cat sat on the mat. It's 12345 o'clock, we'll SEE!\n\n\tdef f(x):\n        return x ** 2\n红楼梦 第一回 🐈\n"
)


@pytest.mark.parametrize("pattern", SPLIT_PATTERNS)
def test_real_text_of_any_script(pattern):
    tokenizer = train_tokenizer([REAL], 330, pattern)
    merges = learn(Counter(words_of(tokenizer, REAL)), 330 - 256 - 2)
    assert merges_of(tokenizer) == merges
    for text in (REAL, REAL[::-1], REAL.upper()):
        assert tokenizer.tokenize(text) == [part for word in words_of(tokenizer, text) for part in encode(word, merges)]
