import json

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiny_tokenizers import TOKENIZERS

from hf_gpt.tokenization import train_tokenizer
from hf_gpt.tokenization.byte_alphabet import BYTE_CHARACTERS
from hf_gpt.tokenization.ranks import extract_ranks, recover_merges

BYTE_RANKS = {character: index for index, character in enumerate(sorted(BYTE_CHARACTERS))}


def stored(tokenizer) -> dict:
    return json.loads(tokenizer.backend_tokenizer.to_str())


def with_tokens(*tokens: str) -> dict[str, int]:
    return BYTE_RANKS | {token: index for index, token in enumerate(tokens, start=256)}


@pytest.mark.parametrize("tokenizer", TOKENIZERS.values(), ids=TOKENIZERS)
def test_ranks_are_the_ids(tokenizer):
    special_tokens = {*tokenizer.all_special_tokens}
    expected = {token: index for token, index in tokenizer.get_vocab().items() if token not in special_tokens}
    assert extract_ranks(stored(tokenizer)) == expected


@given(words=st.lists(st.text("abc", min_size=1, max_size=8), min_size=1, max_size=40))
@settings(max_examples=100, deadline=None, derandomize=True)
def test_merges_are_recovered_from_ranks(words):
    tokenizer_json = stored(train_tokenizer(["\n".join(words)], 300))
    merges = [tuple(merge) for merge in tokenizer_json["model"]["merges"]]
    assert list(recover_merges(extract_ranks(tokenizer_json))) == merges


@pytest.mark.parametrize(
    ("tokens", "merges"),
    [
        (["aa", "aaa"], [("a", "a"), ("aa", "a")]),  # not ("a", "aa"): of equal ranks the leftmost pair merges first
        (["bc", "abc"], [("b", "c"), ("a", "bc")]),
        (["ab", "bc", "abc"], [("a", "b"), ("b", "c"), ("ab", "c")]),
    ],
)
def test_merges_of_small_vocabularies(tokens, merges):
    assert list(recover_merges(with_tokens(*tokens))) == merges


@pytest.mark.parametrize("tokens", [["abc"], ["abc", "ab"], ["aa", "aab", "aaab"]])
def test_token_without_a_merge(tokens):
    with pytest.raises(ValueError, match=r"expected rank \d+ to join two tokens of lower rank, got"):
        list(recover_merges(with_tokens(*tokens)))


def change_model(tokenizer_json: dict, **fields) -> dict:
    return tokenizer_json | {"model": tokenizer_json["model"] | fields}


@pytest.mark.parametrize(
    "fields", [{"type": "WordPiece"}, {"dropout": 0.1}, {"end_of_word_suffix": "</w>"}, {"vocab": {"a": 0}}]
)
def test_other_models_have_no_ranks(fields):
    with pytest.raises(ValueError, match="expected a byte-level BPE"):
        extract_ranks(change_model(stored(TOKENIZERS["gpt2"]), **fields))


@pytest.mark.parametrize("reorder", [lambda merges: merges[::-1], lambda merges: merges[:-1]])
def test_merges_in_another_order_have_no_ranks(reorder):
    tokenizer_json = stored(TOKENIZERS["gpt2"])
    with pytest.raises(ValueError, match="expected one merge for each token, in the order of the ids"):
        extract_ranks(change_model(tokenizer_json, merges=reorder(tokenizer_json["model"]["merges"])))
