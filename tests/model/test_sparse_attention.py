"""Attention by pieces against the definition, forward and backward, in float64, float32 and bfloat16."""

import math
from unittest.mock import patch

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from naive import attention
from recording import LargestTensor
from tiny import PATTERN_SIZES, make_model, random_ids, sparse_config

from hf_gpt.model import backends
from hf_gpt.model.attention_patterns import build_pattern
from hf_gpt.model.sparse_attention import CPUKernels, Plain, Span, UnionAttention, attend_by_pieces, combine

# Sizes for many keys.
WIDE = {
    "dense": {},
    "banded": {"sliding_window": 32},
    "strided": {"attention_stride": 32},
    "fixed": {"attention_stride": 32, "attention_summary_size": 2},
}


def random_states(batch, heads, kv_heads, queries, keys, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    lengths = ((heads, queries), (kv_heads, keys), (kv_heads, keys))
    return [torch.randn(batch, h, n, 8, generator=generator, dtype=dtype).requires_grad_() for h, n in lengths]


def jobs_of(config, pattern, batch, queries, keys):
    pieces = build_pattern(config, pattern).pieces(keys, queries)
    return [(Span(row, 0, 0, queries, keys), pieces) for row in range(batch)]


def by_kernels(query, key, value, sinks, jobs):
    return UnionAttention.apply(query, key, value, sinks, jobs, 0.3)[0].transpose(1, 2)


def by_operations(query, key, value, sinks, jobs):
    return combine(query, key, value, sinks, jobs, Plain(0.3, 0.0))[0].transpose(1, 2)


@st.composite
def problems(draw):
    pattern = draw(st.sampled_from(list(PATTERN_SIZES)))
    sizes = {
        "dense": {},
        "banded": {"sliding_window": draw(st.integers(2, 300))},
        "strided": {"attention_stride": (stride := draw(st.integers(2, 80)))},
        "fixed": {"attention_stride": stride, "attention_summary_size": draw(st.integers(1, stride))},
    }
    queries = draw(st.integers(1, 400))
    return {
        "pattern": pattern,
        "sizes": sizes[pattern],
        "queries": queries,
        "keys": queries + draw(st.sampled_from([0, 0, 1, stride, stride + 1, 77, 200])),
        "kv_heads": draw(st.sampled_from([1, 2, 4])),
        "sinks": draw(st.booleans()),
        "batch": draw(st.integers(1, 2)),
    }


@pytest.mark.parametrize(
    ("attend", "hidden"),
    [(by_kernels, ()), (by_kernels, ("FLASH", "FLASH_BACKWARD")), (by_operations, ())],
    ids=["kernels", "fallback", "operations"],
)
@given(problem=problems())
@settings(max_examples=60, deadline=None, derandomize=True)
def test_pieces_equal_the_definition(attend, hidden, problem):
    with patch.dict(vars(backends), dict.fromkeys(hidden)):
        check_pieces(attend, problem)


def check_pieces(attend, problem):
    queries, keys, batch, pattern = (problem[name] for name in ("queries", "keys", "batch", "pattern"))
    config = sparse_config(pattern, **problem["sizes"])
    states = random_states(batch, 4, problem["kv_heads"], queries, keys)
    sinks = torch.linspace(-1, 1, 4, dtype=torch.float64).requires_grad_() if problem["sinks"] else None
    inputs = [*states, sinks] if problem["sinks"] else states

    positions = torch.arange(keys)
    allowed = build_pattern(config, pattern).visible(positions[:, None], positions).tril()[None, keys - queries :]
    expected = attention(*states, allowed, 0.3, sinks)
    actual = attend(*states, sinks, jobs_of(config, pattern, batch, queries, keys))
    assert torch.allclose(actual, expected, atol=1e-12)
    weight = torch.randn(expected.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    gradients = (torch.autograd.grad((output * weight).sum(), inputs) for output in (actual, expected))
    for got, wanted in zip(*gradients, strict=True):
        assert torch.allclose(got, wanted, atol=1e-11)


@pytest.mark.parametrize("sinks", [False, True])
@pytest.mark.parametrize("pattern", PATTERN_SIZES)
@pytest.mark.parametrize(("dtype", "forward", "backward"), [(torch.float32, 1e-6, 1e-5), (torch.bfloat16, 2e-2, 1e-1)])
def test_precision(pattern, sinks, dtype, forward, backward):
    """Compares with float64 at a length at which rounding errors could accumulate."""
    config = sparse_config(pattern, **WIDE[pattern])
    length = 1000
    exact = random_states(1, 4, 2, length, length)
    sink = torch.linspace(-1, 1, 4, dtype=torch.float64) if sinks else None
    jobs = jobs_of(config, pattern, 1, length, length)
    rounded = [states.detach().to(dtype).requires_grad_() for states in exact]
    exact = [states.detach().double().requires_grad_() for states in rounded]
    outputs = []
    for states in (exact, rounded):
        sinks_of_dtype = None if sink is None else sink.to(states[0].dtype)
        output = attend_by_pieces(*states, sinks_of_dtype, jobs, 8**-0.5)
        output.double().pow(2).sum().backward()
        outputs.append(output)
    assert (outputs[1].double() - outputs[0]).abs().max() < forward
    for wanted, got in zip(exact, rounded, strict=True):
        assert (got.grad.double() - wanted.grad).abs().max() < backward * max(1.0, wanted.grad.abs().max().item())


@pytest.mark.parametrize("pattern", PATTERN_SIZES)
def test_dropout_acts_on_probabilities(pattern):
    """With unit vectors as values the output is the probabilities: each is zero, or divided by 1 - dropout."""
    config, length = sparse_config(pattern), 40
    query, key, _ = random_states(1, 2, 2, length, length)
    value = torch.eye(length, dtype=torch.float64).expand(1, 2, -1, -1)
    query, key = (pad_features(states, length) for states in (query, key))
    jobs = jobs_of(config, pattern, 1, length, length)
    expected = attend_by_pieces(query, key, value, None, jobs, 0.3)
    torch.manual_seed(0)
    dropped = attend_by_pieces(query, key, value, None, jobs, 0.3, dropout=0.25)
    zero = dropped == 0
    assert torch.allclose(dropped, torch.where(zero, 0.0, expected / 0.75), atol=1e-12)
    assert abs((zero & (expected > 0)).sum() / (expected > 0).sum() - 0.25) < 0.08


def pad_features(states, width):
    return torch.nn.functional.pad(states, (0, width - states.shape[-1]))


@pytest.mark.parametrize("side", ["none", "left", "packed"])
@pytest.mark.parametrize(
    ("pattern", "dropout"),
    [(name, dropout) for name in WIDE for dropout in (0.0, 0.1) if (name, dropout) != ("dense", 0.1)],
)
def test_no_full_matrix_of_scores_is_allocated(pattern, dropout, side, monkeypatch):
    monkeypatch.undo()  # the real thresholds
    model = make_model(attention_patterns=[pattern] * 2, **WIDE[pattern], attention_dropout=dropout).train()
    length = 2048
    ids = random_ids(1, length)
    arguments = {
        "none": {},
        "left": {"attention_mask": (torch.arange(length) >= 7).long()[None]},
        "packed": {"position_ids": (torch.arange(length) % 700)[None]},
    }[side]
    with LargestTensor() as largest:
        model(ids, use_cache=False, **arguments).logits[:, -1].sum().backward()
    assert largest.elements <= length * max(99, 4 * 3 * 64)  # logits, or the scores of 4 heads with three blocks
    assert largest.elements < length**2 / 2


def test_kernels_return_the_log_sum_exp():
    config = sparse_config("strided")
    query, key, value = random_states(1, 4, 4, 50, 50)
    with torch.no_grad():
        _, total = combine(query, key, value, None, jobs_of(config, "strided", 1, 50, 50), CPUKernels(0.3))
    positions = torch.arange(50)
    allowed = build_pattern(config, "strided").visible(positions[:, None], positions).tril()
    scores = (query @ key.transpose(-1, -2) * 0.3).masked_fill(~allowed, -math.inf)
    assert torch.allclose(total[..., 0], scores.logsumexp(-1), atol=1e-12)


@pytest.mark.parametrize("pattern", list(PATTERN_SIZES))
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_autocast_leaves_float64_alone(pattern, dtype):
    """As matrix products and scaled_dot_product_attention do."""
    config = sparse_config(pattern)
    query, key, value = random_states(1, 4, 4, 9, 9, dtype)
    jobs = jobs_of(config, pattern, 1, 9, 9)
    expected = attend_by_pieces(query, key, value, None, jobs, 0.3)
    with torch.autocast("cpu", torch.bfloat16):
        actual = attend_by_pieces(query, key, value, None, jobs, 0.3)
    assert actual.dtype == (dtype if dtype == torch.float64 else torch.bfloat16)
    assert (dtype == torch.float32) or torch.equal(actual, expected)
