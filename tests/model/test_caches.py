"""The cache layers of the attention patterns: which keys they hold, and each operation of generate() on a cache."""

import importlib.util
from copy import copy

import pytest
import torch
from greedy import GREEDY
from naive import visible
from tiny import VARIANTS, make_model, random_ids
from transformers import DynamicCache
from transformers.cache_utils import DynamicLayer, Fp8QuantizedLayer

from hf_gpt.model.attention_patterns import Fixed
from hf_gpt.model.caches import DenseLayer, FixedLayer, PreallocatedLayer

STRIDE, SUMMARY = 4, 2


def states(length, batch=1, start=0):
    """Returns keys and values, (B, 1, T, 1), that equal their slot numbers."""
    slots = torch.arange(start, start + length, dtype=torch.float)
    return slots.expand(batch, 1, length)[..., None].clone(), slots.expand(batch, 1, length)[..., None].clone()


def cached_slots(layer, row=0):
    """Returns the slots of the cached tokens."""
    return [
        int(key) for key, position in zip(layer.keys[row, 0, :, 0], layer.positions[row], strict=True) if position >= 0
    ]


def needed(length, padding=0):
    """Returns the slots that some later query of a fixed layer may see."""
    following = length - padding
    own = following // STRIDE
    return [
        slot + padding for slot in range(length - padding) if slot // STRIDE == own or slot % STRIDE >= STRIDE - SUMMARY
    ]


@pytest.mark.parametrize("chunk", [1, 3, 4, 30])
def test_fixed_layer_holds_its_own_block_and_the_summaries(chunk):
    layer = FixedLayer(Fixed(STRIDE, SUMMARY))
    for start in range(0, 30, chunk):
        length = min(chunk, 30 - start)
        before = [] if start == 0 else cached_slots(layer)
        keys, _ = layer.update(*states(length, start=start))
        assert keys.flatten().tolist() == [*before, *range(start, start + length)]  # keys are dropped after the update
        assert cached_slots(layer) == needed(start + length)
        assert torch.equal(layer.keys, layer.values)
        assert layer.get_seq_length() == start + length
        cached = layer.keys.shape[2]
        assert layer.get_mask_sizes(5) == (cached + 5, start + length - cached)
    assert layer.keys.shape[2] == 30 % STRIDE + 30 // STRIDE * SUMMARY


def test_padded_rows_have_their_own_blocks():
    layer, paddings = FixedLayer(Fixed(STRIDE, SUMMARY)), [0, 1, 6]
    mask = torch.stack([torch.arange(30) >= padding for padding in paddings])
    positions = torch.where(mask, mask.long().cumsum(-1) - 1, -1)
    layer.expect(positions[:, :7])
    layer.update(*states(7, batch=3))
    for slot in range(7, 30):
        layer.expect(positions[:, slot : slot + 1])
        layer.update(*states(1, batch=3, start=slot))
        for row, padding in enumerate(paddings):
            assert set(needed(slot + 1, padding)) <= set(cached_slots(layer, row))
        assert layer.keys.shape[2] == max(len(needed(slot + 1, padding)) for padding in paddings)


def test_crop():
    layer = FixedLayer(Fixed(STRIDE, SUMMARY))
    layer.update(*states(10))
    layer.crop(0)
    layer.update(*states(1, start=10))
    layer.crop(-1)
    assert cached_slots(layer) == needed(10)
    assert layer.get_seq_length() == 10
    layer.crop(-2)  # tokens of the unfinished block can be removed
    layer.update(*states(2, start=8))
    with pytest.raises(RuntimeError, match="cannot remove 3 tokens: a block was complete after 8 of 10"):
        layer.crop(-3)
    with pytest.raises(ValueError, match="expected a negative number"):
        layer.crop(3)
    layer.activate_past_recording()
    layer.update(*states(7, start=10))
    layer.crop(-6)
    assert cached_slots(layer) == needed(11)
    layer.update(*states(5, start=11))
    layer.crop(-4)
    assert cached_slots(layer) == needed(12)


def test_rows_are_reordered_repeated_and_selected():
    layer = FixedLayer(Fixed(STRIDE, SUMMARY))
    layer.expect(torch.tensor([[0, 1, 2, 3, 4], [-1, -1, 0, 1, 2]]))
    layer.update(*states(5, batch=2))
    first, second = cached_slots(layer, 0), cached_slots(layer, 1)
    layer.reorder_cache(torch.tensor([1, 0]))
    assert [cached_slots(layer, row) for row in range(2)] == [second, first]
    layer.batch_repeat_interleave(2)
    assert [cached_slots(layer, row) for row in range(4)] == [second, second, first, first]
    layer.batch_select_indices(torch.tensor([0, 3]))
    assert [cached_slots(layer, row) for row in range(2)] == [second, first]
    layer.reset()
    assert layer.get_seq_length() == 0
    layer.update(*states(3))
    assert cached_slots(layer) == [0, 1, 2]


@pytest.mark.parametrize(("variant", "key_counts"), [("fixed", [11, 3 + 2 * SUMMARY]), ("strided", [11, 11])])
def test_each_pattern_gets_its_cache_layer(variant, key_counts):
    model, ids = make_model(variant), random_ids(2, 11)
    made, given = model(ids).past_key_values, DynamicCache(config=model.config)
    model(ids, past_key_values=given)
    own = {"dense": "DenseLayer", "fixed": "FixedLayer", "strided": "PreallocatedLayer"}
    for cache in (made, given):
        assert [type(layer).__name__ for layer in cache.layers] == [own[p] for p in model.config.attention_patterns]
        assert [layer.keys.shape[2] for layer in cache.layers] == key_counts
    lazy = DynamicCache()  # without a configuration its layers are dynamic ones, which hold all keys
    model(ids, past_key_values=lazy)
    assert [layer.keys.shape[2] for layer in lazy.layers] == [11, 11]
    following = random_ids(2, 1, seed=2)
    expected = model(torch.cat((ids, following), dim=1)).logits[:, -1:]
    for cache in (made, given, lazy):
        assert torch.allclose(model(following, past_key_values=cache).logits, expected, atol=1e-5)


@pytest.mark.parametrize("variant", ["banded", "strided", "fixed", "sparse_transformer"])
@pytest.mark.parametrize("chunk", [1, 4])
def test_padding_between_tokens_does_not_change_the_logits(variant, chunk):
    """A second turn of a conversation, in a batch whose rows ended at different slots."""
    model, ids = make_model(variant), random_ids(2, 16)
    mask = torch.ones_like(ids)
    mask[0, 5:8] = 0
    if variant == "banded":
        mask[0, 5:8] = 1  # the window of its cache counts slots, not logical positions
    cache = DynamicCache(config=model.config)
    parts = [
        model(ids[:, t : t + chunk], attention_mask=mask[:, : t + chunk], past_key_values=cache).logits
        for t in range(0, 16, chunk)
    ]
    with torch.no_grad():
        actual, alone = torch.cat(parts, dim=1), model(ids[:1, mask[0].bool()]).logits[0]
    assert torch.allclose(actual[0, mask[0].bool()], alone, atol=1e-5)


def test_crop_after_padding_raises():
    """A row that ends in padding cannot be cropped slot by slot."""
    layer = FixedLayer(Fixed(STRIDE, SUMMARY))
    layer.expect(torch.tensor([[0, 1, 2, 3, 4, 5], [0, 1, 2, 3, 4, -1]]))
    layer.update(*states(6, batch=2))
    with pytest.raises(RuntimeError, match="cannot remove 1 tokens"):
        layer.crop(-1)


def test_a_prepared_mask_keeps_all_keys():
    model, ids = make_model("fixed", attention="eager", attention_patterns=["fixed"] * 2), random_ids(2, 17)
    mask = torch.ones_like(ids)
    mask[0, :3] = 0
    expected = model(ids, attention_mask=mask).logits[:, 12:]
    square = visible("fixed", model.config, mask[:, :12])[:, None] | torch.eye(12, dtype=torch.bool)
    positions = (mask[:, :12].cumsum(-1) - 1).clamp(min=0)
    cache = model(ids[:, :12], attention_mask=square, position_ids=positions).past_key_values
    assert torch.allclose(model(ids[:, 12:], attention_mask=mask, past_key_values=cache).logits, expected, atol=1e-5)
    cache = model(ids[:, :12], attention_mask=mask[:, :12]).past_key_values
    with pytest.raises(ValueError, match="attention_mask: a prepared mask does not fit the cache of a fixed layer"):
        model(ids[:, 12:], attention_mask=square[:, :, :5], past_key_values=cache)


@pytest.mark.parametrize("variant", ["banded", "strided", "fixed", "gpt_oss"])
def test_decoding_under_autocast(variant):
    model, ids = make_model(variant), random_ids(2, 9)
    with torch.no_grad(), torch.autocast("cpu", dtype=torch.bfloat16):
        cache = DynamicCache(config=model.config)
        steps = [model(ids[:, t : t + 1], past_key_values=cache).logits for t in range(9)]
        expected = model(ids, use_cache=False).logits
    assert (torch.cat(steps, dim=1) - expected).abs().max() < 0.05 * expected.abs().max()


def test_offload_and_prefetch():
    """The calls of an offloaded cache, on the CPU."""
    layer = FixedLayer(Fixed(STRIDE, SUMMARY))
    layer.update(*states(9))
    layer.offload()
    layer.prefetch()
    layer.update(*states(1, start=9))
    assert cached_slots(layer) == needed(10)


@pytest.mark.parametrize("growing_class", [PreallocatedLayer, DenseLayer])
@torch.no_grad()
def test_growing_layer_equals_dynamic_layer(growing_class):
    growing, dynamic = growing_class(), DynamicLayer()
    steps = [
        lambda layer: layer.update(*states(5, batch=2)),
        lambda layer: layer.update(*states(1, batch=2, start=5)),
        lambda layer: layer.crop(-2),
        lambda layer: layer.update(*states(100, batch=2, start=50)),
        lambda layer: layer.reorder_cache(torch.tensor([1, 1])),
        lambda layer: layer.update(*states(1, batch=2, start=7)),
        lambda layer: layer.batch_repeat_interleave(2),
        lambda layer: layer.batch_select_indices(torch.tensor([0, 3])),
        lambda layer: layer.update(*states(3, batch=2, start=9)),
        lambda layer: (layer.offload(), layer.prefetch()),
        lambda layer: layer.update(*states(1, batch=2, start=3)),
        lambda layer: layer.reset(),
        lambda layer: layer.update(*states(2, batch=2, start=1)),
    ]
    for step in steps:
        outputs = [step(layer) for layer in (growing, dynamic)]
        if isinstance(outputs[1], tuple):
            for actual, expected in zip(*outputs, strict=True):
                assert expected is None or torch.equal(actual, expected)
        assert growing.get_seq_length() == dynamic.get_seq_length()
        assert growing.get_mask_sizes(3) == dynamic.get_mask_sizes(3)


@pytest.mark.parametrize("share", [copy, lambda layer: layer], ids=["copied", "cropped"])
@torch.no_grad()
def test_growing_layer_does_not_overwrite_returned_keys(share):
    layer = DenseLayer()
    layer.update(*states(5))
    first = layer.update(*states(1, start=5))[0]
    other = share(layer)
    other.crop(-1)
    assert other.update(*states(1, start=70))[0].flatten().tolist() == [0, 1, 2, 3, 4, 70]
    assert first.flatten().tolist() == [0, 1, 2, 3, 4, 5]


@torch.no_grad()
def test_growing_layer_accepts_another_dtype_and_fewer_rows():
    layer = DenseLayer()
    layer.update(*states(5, batch=2))
    layer.batch_select_indices(slice(0, 1))
    assert layer.update(*states(1, start=5))[0].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    layer = PreallocatedLayer()
    layer.update(*(each.bfloat16() for each in states(5)))
    keys, _ = layer.update(*states(1, start=5))
    assert keys.dtype == torch.float32
    assert keys.flatten().tolist() == [0, 1, 2, 3, 4, 5]


@pytest.mark.parametrize(
    ("layer", "dtype", "grows"),
    [
        (PreallocatedLayer(), torch.float32, True),
        (PreallocatedLayer(), torch.bfloat16, True),
        (DenseLayer(), torch.float32, True),
        (DenseLayer(), torch.bfloat16, False),
    ],
)
@torch.no_grad()
def test_growing_layer_does_not_copy_at_each_token(layer, dtype, grows):
    layer.update(*(each.to(dtype) for each in states(1000)))
    places = set()
    for slot in range(1000, 1060):
        layer.update(*(each.to(dtype) for each in states(1, start=slot)))
        places.add(layer.keys.data_ptr())
    assert (len(places) == 1) == grows


def test_growing_layer_outside_inference_mode_and_with_gradients():
    layer = PreallocatedLayer()
    with torch.inference_mode():
        layer.update(*states(3))
    with torch.no_grad():
        layer.update(*states(1, start=3))
    keys, values = states(1, start=4)
    layer.update(keys.requires_grad_(), values)[0].sum().backward()
    assert keys.grad is not None
    assert layer.keys.flatten().tolist() == [0, 1, 2, 3, 4]


DENSE_CACHES = [name for name, fields in VARIANTS.items() if "banded" not in fields.get("attention_patterns", ())]


def decode(model, **cache):
    outputs = model.generate(
        random_ids(2, 12), **GREEDY | {"max_new_tokens": 12}, **cache, return_dict_in_generate=True, output_logits=True
    )
    return outputs.sequences, torch.stack(outputs.logits), outputs.past_key_values


@pytest.mark.parametrize("variant", DENSE_CACHES)
def test_quantized_cache_holds_the_right_keys(variant, monkeypatch):
    """In float64 in place of eight bits, so that a wrong key is the only possible difference."""
    monkeypatch.setattr(Fp8QuantizedLayer, "fp8_dtype", torch.float64)
    model = make_model(variant).double()
    sequences, expected, _ = decode(model)
    written, found, cache = decode(model, cache_implementation="quantized", cache_config={"backend": "fp8"})
    assert {type(layer) for layer in cache.layers} == {Fp8QuantizedLayer}
    assert torch.equal(written, sequences)
    assert torch.allclose(found, expected, atol=1e-4)


def test_quantized_cache_is_close_and_small():
    torch.manual_seed(0)
    model = make_model(initializer_range=0.05)
    _, expected, plain_cache = decode(model)
    _, found, cache = decode(model, cache_implementation="quantized", cache_config={"backend": "fp8"})
    assert (found - expected).abs().max() < 0.05 * expected.abs().max()
    for layer, exact in zip(cache.layers, plain_cache.layers, strict=True):
        quantized = (layer._quantized_keys[0], layer._quantized_values[0])
        assert sum(states.nbytes for states in quantized) * 4 == exact.keys.nbytes + exact.values.nbytes


@pytest.mark.skipif(importlib.util.find_spec("hqq") is None, reason="hqq is not installed")
@pytest.mark.parametrize("variant", DENSE_CACHES)
def test_hqq_cache_is_close(variant):
    model = make_model(variant)
    groups = {"backend": "hqq", "nbits": 8, "axis_key": 1, "axis_value": 1, "q_group_size": 16, "residual_length": 4}
    (sequences, expected, _), (written, found, _) = (
        decode(model), decode(model, cache_implementation="quantized", cache_config=groups)
    )  # fmt: skip
    same = (written == sequences).all(0).cumprod(0).bool()[12:]  # steps after a different token are not comparable
    assert (found - expected)[same].abs().max() < 0.02 * expected.abs().max()


def test_quantized_cache_with_banded_layers_raises():
    with pytest.raises(ValueError, match="only full attention layers"):
        decode(make_model("banded"), cache_implementation="quantized", cache_config={"backend": "fp8"})
