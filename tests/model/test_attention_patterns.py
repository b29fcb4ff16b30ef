"""Attention patterns: which keys a query sees, against the definition key by key."""

import pytest
import torch
from naive import visible
from tiny import PATTERN_SIZES, sparse_config

from hf_gpt.model.attention_patterns import build_pattern


@pytest.mark.parametrize("pattern", PATTERN_SIZES)
def test_visible_keys_equal_the_definition(pattern):
    config, positions = sparse_config(pattern), torch.arange(30)
    actual = build_pattern(config, pattern).visible(positions[:, None], positions).tril()
    assert torch.equal(actual, visible(pattern, config, torch.ones(1, 30))[0])


@pytest.mark.parametrize("pattern", PATTERN_SIZES)
def test_keys_cached_counts_the_keys_of_later_queries(pattern):
    config = sparse_config(pattern)
    rule, length = build_pattern(config, pattern), 40
    seen = visible(pattern, config, torch.ones(1, length))[0]
    for tokens in range(1, 30):
        assert rule.keys_cached(tokens) == int(seen[tokens:, :tokens].any(0).sum())


@pytest.mark.parametrize("pattern", PATTERN_SIZES)
@pytest.mark.parametrize(("queries", "keys"), [(30, 30), (150, 150), (7, 30), (1, 30), (70, 153)])
def test_pieces_contain_each_visible_pair_once(pattern, queries, keys):
    """The views of a piece, applied to slot numbers, give its queries and keys."""
    config = sparse_config(pattern)
    counts = torch.zeros(queries, keys, dtype=torch.long)
    query_slots, key_slots = (torch.arange(length)[None, :, None] for length in (queries, keys))
    for piece in build_pattern(config, pattern).pieces(keys, queries):
        q = piece.queries(query_slots).flatten(1)  # (X, q)
        k = piece.keys(key_slots).flatten(1)  # (X, parts x k)
        seen = torch.ones(q.shape[1], k.shape[1], dtype=torch.bool)
        seen = seen.tril() if piece.causal else seen if piece.mask is None else piece.mask.view(seen.shape)
        for queries_of, keys_of in zip(q, k, strict=True):
            counts[queries_of[:, None], keys_of] += seen.long()
    assert torch.equal(counts, visible(pattern, config, torch.ones(1, keys))[0, keys - queries :].long())


@pytest.mark.parametrize("pattern", PATTERN_SIZES)
def test_pairs_and_reach_equal_the_definition(pattern):
    config = sparse_config(pattern)
    rule, length = build_pattern(config, pattern), 30
    seen = visible(pattern, config, torch.ones(1, length))[0]
    assert [rule.pairs(tokens) for tokens in range(length + 1)] == [0, *seen.sum(-1).cumsum(0).tolist()]
    if pattern != "dense":
        complete = [n for n in range(1, length + 1) if int(seen[:n, :n].sum()) == n * (n + 1) // 2]
        assert rule.reach == complete[-1]


@pytest.mark.parametrize("pattern", ["strided", "fixed"])
@pytest.mark.parametrize("most", [0, 7, 40])
def test_the_keys_of_one_query(pattern, most):
    config = sparse_config(pattern)
    seen = visible(pattern, config, torch.ones(1, 41))[0]
    positions = torch.arange(most + 1)[:, None]
    for position, keys in enumerate(build_pattern(config, pattern).keys_of(positions, most)):
        assert sorted(keys[keys >= 0].tolist()) == seen[position].nonzero().flatten().tolist()
