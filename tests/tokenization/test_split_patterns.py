import pytest
from tokenizers import Regex, pre_tokenizers

from hf_gpt.tokenization.split_patterns import SPLIT_PATTERNS

SPLITS = {
    "gpt2": [("It's  12345 OK'S\n\nx", ["It", "'s", " ", " 12345", " OK", "'", "S", "\n", "\n", "x"])],
    "cl100k": [
        ("It's  12345 OK'S\n\nx", ["It", "'s", " ", " ", "123", "45", " OK", "'S", "\n\n", "x"]),
        ("x\n\n  ", ["x", "\n\n  "]),
    ],
    "o200k": [("It's  12345 OK'S\n\nxY", ["It's", " ", " ", "123", "45", " OK'S", "\n\n", "x", "Y"])],
}


@pytest.mark.parametrize("pattern", SPLITS)
def test_split_patterns(pattern):
    splitter = pre_tokenizers.Split(Regex(SPLIT_PATTERNS[pattern]), behavior="isolated")
    for text, expected in SPLITS[pattern]:
        assert [word for word, _ in splitter.pre_tokenize_str(text)] == expected
