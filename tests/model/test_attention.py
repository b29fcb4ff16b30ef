"""Every attention implementation against the definition: padded, packed and cached."""

import pytest
import torch
from naive import attention, visible
from tiny import (
    FLASH,
    IMPLEMENTATIONS,
    LENGTH,
    PACKED_POSITIONS,
    PACKED_SEQUENCES,
    logits,
    make_config,
    make_model,
    masks_by_pattern,
    padding,
    random_ids,
)
from transformers import DynamicCache, StaticCache
from transformers.masking_utils import ALL_MASK_ATTENTION_FUNCTIONS, flash_attention_mask
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hf_gpt.model import attention_masks
from hf_gpt.model.attention import OURS, GPTAttention
from hf_gpt.model.implementations import SUPPORT, Support

PATTERNS = {
    "dense": {},
    "banded": {"sliding_window": 3},
    "strided": {"attention_stride": 3},
    "fixed": {"attention_stride": 3, "attention_summary_size": 1},
}


@pytest.mark.parametrize("pattern", PATTERNS)
@pytest.mark.parametrize("side", ["none", "left", "right", "scattered", "packed"])
@pytest.mark.parametrize("implementation", ["eager", "sdpa", "sdpa, some pieces", "sdpa, full mask", "flex_attention"])
@pytest.mark.parametrize(
    ("heads", "sinks"), [(4, False), (2, False), (1, False), (2, True)], ids=["mha", "gqa", "mqa", "gqa with sinks"]
)
def test_implementations_equal_the_definition(implementation, heads, sinks, side, pattern, monkeypatch):
    implementation, _, path = implementation.partition(", ")
    if path:
        monkeypatch.setattr(attention_masks, "MIN_KEYS_FOR_PIECES", {"some pieces": 6, "full mask": LENGTH + 1}[path])
    config = make_config(
        num_key_value_heads=heads, attention_patterns=[pattern] * 2, attention_sinks=sinks, **PATTERNS[pattern]
    )
    config._attn_implementation = implementation
    module = GPTAttention(config, 0).eval()
    generator = torch.Generator().manual_seed(0)
    query = torch.randn(3, 4, LENGTH, 8, generator=generator, dtype=torch.float64)
    key, value = torch.randn(2, 3, heads, LENGTH, 8, generator=generator, dtype=torch.float64)
    scores = torch.randn(4, generator=generator, dtype=torch.float64) if sinks else None

    mask, sequences, positions = padding(side), None, None
    if side == "packed":
        sequences, positions = PACKED_SEQUENCES, PACKED_POSITIONS
    attention_mask = None if side in ("none", "packed") else mask
    masks = masks_by_pattern(config, attention_mask, positions)
    attend = OURS.get(config._attn_implementation) or ALL_ATTENTION_FUNCTIONS[config._attn_implementation]
    arguments = {"scaling": module.scaling, "s_aux": scores.float() if sinks else None}
    if sinks and implementation == "flex_attention":
        with pytest.raises(ValueError, match="sinks cannot be run on CPU"):
            attend(module, query.float(), key.float(), value.float(), masks[pattern], **arguments)
        return
    actual, _ = attend(module, query.float(), key.float(), value.float(), masks[pattern], **arguments)
    allowed = visible(pattern, config, mask, sequences)
    expected = attention(query, key, value, allowed, module.scaling, scores)
    seen = mask.bool()
    assert (actual.double() - expected)[seen].abs().max() < 1e-6


@pytest.fixture
def kernel_by_definition(monkeypatch):
    """FlashAttention's contract by definition: a padding mask or none, a window, queries last among the keys."""

    def attend(module, query, key, value, attention_mask, scaling, sliding_window=None, dropout=0.0, s_aux=None, **_):
        keys, length = key.shape[2], query.shape[2]
        mask = torch.ones(query.shape[0], keys) if attention_mask is None else attention_mask
        assert mask.shape == (query.shape[0], keys)
        pattern, config = ("banded", module.config) if sliding_window else ("dense", None)
        allowed = visible(pattern, config, mask)[:, keys - length :]
        return attention(query, key, value, allowed, scaling, s_aux), None

    monkeypatch.setitem(SUPPORT, "kernel_by_definition", Support(("dense", "banded"), sinks=True))
    monkeypatch.setitem(ALL_ATTENTION_FUNCTIONS._global_mapping, "kernel_by_definition", attend)
    monkeypatch.setitem(ALL_MASK_ATTENTION_FUNCTIONS._global_mapping, "kernel_by_definition", flash_attention_mask)


@pytest.mark.parametrize("side", ["none", "left", "right"])
@pytest.mark.parametrize("variant", FLASH)
def test_flash_attention_gets_padding_mask_and_window(kernel_by_definition, variant, side):
    model = make_model(variant, attention="eager")
    ids, mask = random_ids(3, LENGTH), padding(side)
    expected = logits(model, ids, mask)
    model.set_attn_implementation("kernel_by_definition")
    assert torch.allclose(logits(model, ids, mask)[mask.bool()], expected[mask.bool()], atol=1e-5)


CACHES = {
    "dynamic": lambda config: DynamicCache(config=config),
    "static": lambda config: StaticCache(config=config, max_cache_len=LENGTH + 3),
}


@pytest.mark.parametrize("cache", CACHES)
@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize(("variant", "implementation"), IMPLEMENTATIONS)
def test_token_by_token_equals_one_forward(variant, implementation, side, cache):
    check_token_by_token(make_model(variant, attention=implementation), padding(side), cache)


@pytest.mark.parametrize(("variant", "side"), [("default", "none"), ("grouped", "left"), ("banded", "left")])
@torch._dynamo.config.patch(
    automatic_dynamic_shapes=False
)  # torch 2.13 generates C++ for dynamic shapes that does not compile
def test_token_by_token_equals_one_forward_in_flex_attention(variant, side):
    torch.compiler.reset()
    check_token_by_token(make_model(variant, attention="flex_attention"), padding(side, rows=2, length=5), "dynamic")


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("variant", FLASH)
def test_token_by_token_equals_one_forward_in_flash_attention(kernel_by_definition, variant, side):
    model = make_model(variant, attention="eager")
    model.set_attn_implementation("kernel_by_definition")
    check_token_by_token(model, padding(side), "dynamic")


def check_token_by_token(model, mask, cache):
    ids = random_ids(*mask.shape)
    expected = logits(model, ids, mask)
    past = CACHES[cache](model.config)
    steps = [
        logits(model, ids[:, t : t + 1], mask[:, : t + 1], past_key_values=past, use_cache=True)
        for t in range(mask.shape[1])
    ]
    seen = mask.bool()
    assert torch.allclose(torch.cat(steps, dim=1)[seen], expected[seen], atol=1e-5)


@pytest.mark.parametrize("chunk", [2, 4])
def test_prefill_in_chunks_equals_one_forward(variant, chunk):
    model, ids, mask = make_model(variant), random_ids(3, LENGTH), padding("left")
    past = DynamicCache(config=model.config)
    parts = [
        logits(model, ids[:, t : t + chunk], mask[:, : t + chunk], past_key_values=past)
        for t in range(0, LENGTH, chunk)
    ]
    assert torch.allclose(torch.cat(parts, dim=1)[mask.bool()], logits(model, ids, mask)[mask.bool()], atol=1e-5)


@pytest.mark.parametrize("side", ["none", "left", "right"])
def test_gradients_equal_those_of_eager_attention(variant, side):
    ids, mask = random_ids(3, LENGTH), padding(side)
    predicted_by_padding = mask.diff(dim=1, prepend=torch.ones(3, 1, dtype=torch.long)) == 1
    labels = ids.masked_fill((mask == 0) | predicted_by_padding, -100)
    gradients = []
    for implementation in ("eager", None):
        model = make_model(variant, attention=implementation).double()
        model(ids, attention_mask=mask, labels=labels).loss.backward()
        gradients.append([parameter.grad for parameter in model.parameters()])
    for expected, actual in zip(*gradients, strict=True):
        assert torch.allclose(actual, expected, atol=1e-9)


@pytest.mark.parametrize("cache", CACHES)
def test_one_query_in_bfloat16_avoids_the_flash_kernel(variant, cache, monkeypatch):
    """On a CPU the kernel of sdpa is slow for one query over many keys; matrix products are faster."""
    monkeypatch.setattr("hf_gpt.model.attention.MANY_KEYS", 1)
    model, ids = make_model(variant, attention="sdpa").bfloat16(), random_ids(2, LENGTH)
    past = CACHES[cache](model.config)
    with torch.no_grad():
        expected = make_model(variant).double()(ids).logits[:, -1]
        model(ids[:, :-1], past_key_values=past)
        with torch.profiler.profile() as profile:
            found = model(ids[:, -1:], past_key_values=past).logits[:, -1]
    assert "aten::_scaled_dot_product_flash_attention_for_cpu" not in {event.key for event in profile.key_averages()}
    if model.config.num_local_experts is None:  # rounding may change which experts are chosen
        assert (found - expected).abs().max() < 0.1 * expected.abs().max()
