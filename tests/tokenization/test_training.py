import itertools
import json
import os
import subprocess
import sys
from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import TEXTS
from transformers import AutoTokenizer
from transformers.convert_slow_tokenizer import bytes_to_unicode

from hf_gpt.tokenization.construction import SPECIAL_TOKENS
from hf_gpt.tokenization.split_patterns import SPLIT_PATTERNS
from hf_gpt.tokenization.training import sample_evenly, train_tokenizer

# --- the textbook algorithm: Sennrich et al. 2016, algorithm 1 ---------------------------------------------------

ALPHABET = sorted(bytes_to_unicode().values())


def learn(words: Counter[str], count: int) -> list[tuple[str, str]]:
    """Merges the most frequent pair of adjacent tokens, `count` times; of equal pairs, the one with the lowest ids."""
    splits = {word: list(word) for word in words}
    ids = {character: index for index, character in enumerate(ALPHABET)}
    merges = []
    while len(merges) < count:
        pairs = Counter()
        for word, parts in splits.items():
            for pair in itertools.pairwise(parts):
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
    """Applies each merge in order."""
    parts = list(word)
    for merge in merges:
        parts = join(parts, merge)
    return parts


def words_of(tokenizer, text: str) -> list[str]:
    return [word for word, _ in tokenizer.backend_tokenizer.pre_tokenizer.pre_tokenize_str(text)]


def merges_of(tokenizer) -> list[tuple[str, str]]:
    return [tuple(merge) for merge in json.loads(tokenizer.backend_tokenizer.to_str())["model"]["merges"]]


SENNRICH = {"low": 5, "lower": 2, "newest": 6, "widest": 3}


def test_worked_example_of_sennrich():
    """Without `widest`, which copies of the example often omit, the first merge would be `w e`."""
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
def test_real_text_in_many_scripts(pattern):
    tokenizer = train_tokenizer([REAL], 330, pattern)
    merges = learn(Counter(words_of(tokenizer, REAL)), 330 - 256 - 2)
    assert merges_of(tokenizer) == merges
    for text in (REAL, REAL[::-1], REAL.upper()):
        assert tokenizer.tokenize(text) == [part for word in words_of(tokenizer, text) for part in encode(word, merges)]


# --- arguments ---------------------------------------------------------------------------------------------------


def test_special_tokens_without_a_role(tmp_path):
    special_tokens = ["<a>", "<b>", *SPECIAL_TOKENS]
    tokenizer = train_tokenizer(TEXTS, 350, special_tokens=special_tokens)
    assert tokenizer.convert_ids_to_tokens(range(346, 350)) == special_tokens
    assert len(tokenizer) == tokenizer.vocab_size == 350
    tokenizer.save_pretrained(tmp_path)
    loaded = AutoTokenizer.from_pretrained(tmp_path)
    assert set(loaded.all_special_tokens) == set(special_tokens)
    assert loaded("x<b>y")["input_ids"][1] == 347
    assert 347 not in loaded("x<b>y", split_special_tokens=True)["input_ids"]


def test_training_is_deterministic(tmp_path):
    tokenizer = train_tokenizer(TEXTS, 350)
    assert train_tokenizer(iter(TEXTS), 350).get_vocab() == tokenizer.get_vocab()
    (tmp_path / "texts.json").write_text(json.dumps(TEXTS))
    script = (
        "import sys, json; from hf_gpt.tokenization import train_tokenizer; "
        "print(train_tokenizer(json.load(open(sys.argv[1])), 350).backend_tokenizer.to_str())"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path / "texts.json")],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=os.environ | {"PYTHONHASHSEED": "7", "RAYON_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"},
    )
    assert done.stdout.strip() == tokenizer.backend_tokenizer.to_str(), done.stderr


def test_vocabulary_size():
    assert len(train_tokenizer(TEXTS, 300)) == 300
    assert len(train_tokenizer(["ab"], 50257)) < 300  # no more pairs to merge


def test_large_text_is_sampled_evenly():
    texts = ["a b " * 5000, "c d " * 5000] * 20
    whole, sampled = train_tokenizer(texts, 300), train_tokenizer(texts, 300, sample_bytes=100_000)
    assert set(sampled.get_vocab()) == set(whole.get_vocab())
    assert len(train_tokenizer(texts, 300, sample_bytes=1)) < len(whole)


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((TEXTS, 257), {}, "vocab_size=257: expected at least 258"),
        ((TEXTS, 258), {"special_tokens": ["<a>", *SPECIAL_TOKENS]}, "vocab_size=258: expected at least 259"),
        ((TEXTS, 400, "gpt5"), {}, "split_pattern='gpt5': expected one of gpt2, cl100k, o200k"),
        (([], 400), {}, "no text"),
        ((["", ""], 400), {}, "no text"),
        (
            (TEXTS, 400),
            {"special_tokens": ["<a>", "<b>", "<a>"]},
            r"special_tokens: expected each once.*\['<a>'\]",
        ),
        ((TEXTS, 400), {"special_tokens": [""]}, r"special_tokens: expected each once and none empty, got \[''\]"),
        ((TEXTS, 400), {"special_tokens": ["cat"]}, r"special_tokens: \['cat'\] are tokens of the text"),
    ],
)
def test_bad_input(arguments, options, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(*arguments, **options)


# --- sampling ----------------------------------------------------------------------------------------------------


def test_sample_is_even_ordered_and_bounded():
    chunks = [f"{number:04}" for number in range(1000)]
    sample = sample_evenly(iter(chunks), 1000)
    assert sample == sorted(sample)
    assert 500 <= 4 * len(sample) <= 1000
    gaps = {int(b) - int(a) for a, b in itertools.pairwise(sample)}
    assert max(gaps) <= 3 * min(gaps)
    assert sample_evenly(chunks, 4000) == chunks
    assert sample_evenly(["红" * 100, "b"], 10) == ["红" * 100]  # at least one chunk


@pytest.mark.parametrize("period", range(2, 9))
def test_sample_of_alternating_texts(period):
    chunks = [str(number % period) for number in range(4000)]
    sample = sample_evenly(chunks, 500)
    counts = Counter(sample)
    assert len(counts) == period
    assert max(counts.values()) < 1.3 * min(counts.values())
