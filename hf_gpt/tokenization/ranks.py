"""Converts between the two definitions of a byte-level BPE: an ordered list of merges, and tiktoken's ranks.

tokenizers merges only the pairs in its list of merges. tiktoken has no list: it merges any two adjacent tokens whose
concatenation is a token, lowest rank first. The two give the same tokens for every text if each token has exactly one
merge, the one that BPE with the lower ranks leaves of the token's bytes, and the list is in the order of the ranks.
Reason: two adjacent tokens concatenate to a third only where nothing was merged across their outer ends, so their bytes
were merged as if they stood alone.
"""

from collections.abc import Iterator
from math import inf
from typing import Any

from .byte_alphabet import BYTE_CHARACTERS


def recover_merges(ranks: dict[str, int]) -> Iterator[tuple[str, str]]:
    """Recovers the list of merges from ranks.

    Args:
        ranks: the rank of each token, in the byte alphabet.

    Yields:
        For each token of several bytes, in the order of the ranks, the two tokens that BPE with the lower ranks leaves
        of its bytes.

    Raises:
        ValueError: the bytes of a token do not merge to two tokens.
    """
    parts: dict[str, tuple[str, str]] = {}
    for token in _merged_tokens(ranks):
        splits = ((token[:at], token[at:]) for at in range(1, len(token)))
        pair = next((pair for pair in splits if _is_merge(pair, ranks[token], ranks, parts)), None)
        if pair is None:
            raise ValueError(f"expected rank {ranks[token]} to join two tokens of lower rank, got {token!r}")
        parts[token] = pair
        yield pair


def extract_ranks(tokenizer_json: dict[str, Any]) -> dict[str, int]:
    """Returns the ranks that make tiktoken encode as a byte-level BPE of tokenizers does.

    Args:
        tokenizer_json: the parsed tokenizer.json.

    Returns:
        The rank of each token that is not an added token, in the byte alphabet. It is the token's id.

    Raises:
        ValueError: the model is not a byte-level BPE, or its merges are not those that its ids, in order, define.
    """
    model = tokenizer_json["model"]
    added = {token["content"] for token in tokenizer_json["added_tokens"]}
    ranks = {token: index for token, index in model.get("vocab", {}).items() if token not in added}
    has_variant = any(model.get(name) for name in ("dropout", "continuing_subword_prefix", "end_of_word_suffix"))
    if model["type"] != "BPE" or has_variant or not ranks.keys() >= BYTE_CHARACTERS:
        raise ValueError("expected a byte-level BPE")
    if not _defines_merges(ranks, [tuple(merge) for merge in model["merges"]]):
        raise ValueError("expected one merge for each token, in the order of the ids")
    return ranks


def _defines_merges(ranks: dict[str, int], merges: list[tuple[str, str]]) -> bool:
    """True if `recover_merges(ranks)` would yield `merges`, which is faster to check than to recover."""
    tokens = _merged_tokens(ranks)
    parts = dict(zip(tokens, merges, strict=False))
    return len(tokens) == len(merges) and all(
        left + right == token and _is_merge((left, right), ranks[token], ranks, parts)
        for token, (left, right) in parts.items()
    )


def _merged_tokens(ranks: dict[str, int]) -> list[str]:
    return sorted((token for token in ranks if len(token) > 1), key=ranks.get)


def _is_merge(pair: tuple[str, str], rank: int, ranks: dict[str, int], parts: dict[str, tuple[str, str]]) -> bool:
    """True if BPE with the ranks below `rank` merges the bytes of `pair`, concatenated, to these two tokens.

    Both tokens must have lower ranks, and no merge may cross the boundary between them. The token that ends at the
    boundary is first the last byte of `left`, then what that byte is merged into, and so on up to `left`; each exists
    until the merge with the rank of the next. Likewise on the right. A merge across the boundary happens if its rank
    comes before both; of equal ranks BPE merges the leftmost pair first.

    Args:
        parts: the merge of each token of lower rank.
    """
    left, right = pair
    if not all(len(token) == 1 or ranks.get(token, inf) < rank for token in pair):
        return False
    before, before_until = left, rank
    while True:
        after, after_until = right, rank
        while True:
            across = ranks.get(before + after, inf)
            if across < before_until and across <= after_until:
                return False
            if len(after) == 1:
                break
            after, after_until = parts[after][0], ranks[after]
        if len(before) == 1:
            return True
        before, before_until = parts[before][1], ranks[before]
