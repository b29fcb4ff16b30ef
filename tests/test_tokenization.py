import subprocess
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Regex, pre_tokenizers
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from hf_gpt.tokenization import SPLIT_PATTERNS, train_tokenizer

TEXTS = [
    "The cat sat on the mat. It's 12345 o'clock, we'll SEE!\n\n\tdef f(x):\n        return x ** 2\n",
    "Zwölf Boxkämpfer jagen Viktor über den Sylter Deich. 红楼梦 第一回 🐈‍⬛\r\n",
] * 10


TOKENIZERS = {pattern: train_tokenizer(TEXTS, 400, pattern) for pattern in SPLIT_PATTERNS}


@pytest.fixture(params=TOKENIZERS)
def tokenizer(request) -> PreTrainedTokenizerFast:
    return TOKENIZERS[request.param]


@given(text=st.text(), pattern=st.sampled_from(list(TOKENIZERS)))
@settings(max_examples=300, deadline=None, derandomize=True)
def test_decodes_to_what_it_encoded(text, pattern):
    tokenizer = TOKENIZERS[pattern]
    if not any(token in text for token in tokenizer.all_special_tokens):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


SPLITS = {
    "gpt2": [("It's  12345 OK'S\n\nx", ["It", "'s", " ", " 12345", " OK", "'", "S", "\n", "\n", "x"])],
    "cl100k": [("It's  12345 OK'S\n\nx", ["It", "'s", " ", " ", "123", "45", " OK", "'S", "\n\n", "x"])],
    "o200k": [("It's  12345 OK'S\n\nxY", ["It's", " ", " ", "123", "45", " OK'S", "\n\n", "x", "Y"])],
}


@pytest.mark.parametrize("pattern", SPLITS)
def test_split_patterns(pattern):
    splitter = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[pattern]), behavior="isolated")
    for text, expected in SPLITS[pattern]:
        assert [piece for piece, _ in splitter.pre_tokenize_str(text)] == expected


def test_is_a_stock_tokenizer_that_loads_without_hf_gpt(tokenizer, tmp_path):
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


def test_special_tokens(tokenizer):
    assert tokenizer.eos_token == tokenizer.bos_token == "<|endoftext|>"
    assert tokenizer.pad_token == "<|padding|>"
    assert tokenizer.pad_token_id != tokenizer.eos_token_id
    padded = tokenizer(["The cat", "The"], padding=True, return_tensors="pt")
    assert padded["attention_mask"].tolist()[1][-1] == 0


def test_same_text_same_tokenizer():
    assert train_tokenizer(TEXTS, 350).get_vocab() == train_tokenizer(iter(TEXTS), 350).get_vocab()


def test_vocabulary_size_is_kept():
    assert len(train_tokenizer(TEXTS, 300)) == 300
    assert len(train_tokenizer(["ab"], 50257)) < 300  # no more pairs to merge


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((TEXTS, 257), "vocab_size=257: expected at least 258"),
        ((TEXTS, 400, "gpt5"), "split_pattern='gpt5': expected one of gpt2, cl100k, o200k"),
        (([], 400), "no text"),
        ((["", ""], 400), "no text"),
    ],
)
def test_bad_input(arguments, message):
    with pytest.raises(ValueError, match=message):
        train_tokenizer(*arguments)
