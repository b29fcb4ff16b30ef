"""The cache layers of the attention patterns: which keys they hold, and each operation of generate() on a cache."""

import importlib.util
import pickle
from copy import copy, deepcopy

import pytest
import torch
from greedy import GREEDY
from naive import visible
from tiny import VARIANTS, make_model, padding, random_ids
from transformers import DynamicCache, GenerationConfig
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
    mask = torch.stack([torch.arange(30) >= cut for cut in paddings])
    positions = torch.where(mask, mask.long().cumsum(-1) - 1, -1)
    layer.expect(positions[:, :7])
    layer.update(*states(7, batch=3))
    for slot in range(7, 30):
        layer.expect(positions[:, slot : slot + 1])
        layer.update(*states(1, batch=3, start=slot))
        for row, cut in enumerate(paddings):
            assert set(needed(slot + 1, cut)) <= set(cached_slots(layer, row))
        assert layer.keys.shape[2] == max(len(needed(slot + 1, cut)) for cut in paddings)


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


COPIES = {"copy": copy, "deepcopy": deepcopy, "pickle": lambda layer: pickle.loads(pickle.dumps(layer))}


@pytest.mark.parametrize("copied", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("layer_class", [PreallocatedLayer, DenseLayer])
@torch.no_grad()
def test_a_copy_holds_what_is_written_alone(layer_class, copied):
    """Not the other slots of the buffers, which are uninitialized."""
    layer = layer_class()
    layer.update(*states(5))
    other = copied(layer)
    assert type(other) is layer_class
    for held in (other.keys, other.values):
        assert held.untyped_storage().nbytes() == 5 * held.element_size()
    assert layer.update(*states(1, start=5))[0].flatten().tolist() == [0, 1, 2, 3, 4, 5]
    assert other.update(*states(2, start=70))[0].flatten().tolist() == [0, 1, 2, 3, 4, 70, 71]
    assert copied(layer_class()).update(*states(1))[0].flatten().tolist() == [0]


@pytest.mark.parametrize("release", ["offload", "reset"])
@torch.no_grad()
def test_buffers_are_released(release):
    layer = PreallocatedLayer()
    layer.update(*states(5))
    getattr(layer, release)()
    assert layer.buffers == ()


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


EXPORTED = ["default", "banded", "strided", "fixed", "gpt_oss"]
"""Each pattern, and sinks with experts."""


def generation_parts(model, mask, cache=None, **options):
    """Returns the first two forward passes of generate(), as transformers' exporters record them: the model and its
    arguments."""
    exporters = pytest.importorskip("transformers.exporters.utils", reason="exporters came with transformers 5.20")
    settings = GenerationConfig(pad_token_id=0, eos_token_id=-1, do_sample=False, disable_compile=True)
    if cache is not None:
        settings.cache_implementation, settings.max_cache_len = cache, 24
    inputs = {"input_ids": random_ids(*mask.shape), "attention_mask": mask}
    return exporters.decompose_for_generation(model, inputs, generation_config=settings, **options)


def leaf_tensors(outputs):
    """Returns the tensors that transformers' exporters find, by name."""
    from transformers.exporters.utils import get_leaf_tensors

    return get_leaf_tensors(outputs)


def export(model, inputs, dynamic):
    from transformers.exporters import DynamoConfig, DynamoExporter

    return DynamoExporter().export(model, deepcopy(inputs), config=DynamoConfig(dynamic=dynamic)).program.module()


def compare_exported(model, inputs, dynamic, has_all_keys):
    """The exported forward pass returns the logits of the model, and the same cache where it keeps all keys."""
    with torch.no_grad():
        expected = leaf_tensors(model(**deepcopy(inputs)))
        exported = export(model, inputs, dynamic)
        given = {name: value for name, value in deepcopy(inputs).items() if name not in ("use_cache", "return_dict")}
        found = leaf_tensors(exported(**given))
    assert found.keys() == expected.keys()
    assert torch.allclose(found["logits"], expected["logits"], atol=1e-9)
    if has_all_keys:
        for name, held in expected.items():
            assert torch.allclose(found[name], held, atol=1e-9), name


@pytest.mark.parametrize(
    ("variant", "dynamic"),
    [*((variant, False) for variant in EXPORTED), ("default", True), ("fixed", True), ("gpt_oss", True)],
)
def test_exported_generation_equals_eager(variant, dynamic):
    """Prefill and decoding with a dynamic cache, by transformers' own exporter; with dynamic shapes, decoding of any
    number of tokens. Banded and fixed layers keep all keys in an exported graph, so their caches differ."""
    model = make_model(variant, initializer_range=0.5).double()
    for part, inputs in generation_parts(model, padding("none"), multi_token_decode=dynamic).values():
        compare_exported(part, inputs, dynamic, has_all_keys=variant in ("default", "strided"))


@pytest.mark.parametrize("cache", [None, "static"], ids=["dynamic", "static"])
@pytest.mark.parametrize("variant", EXPORTED)
def test_exported_generation_with_padding(variant, cache):
    model = make_model(variant, initializer_range=0.5).double()
    for part, inputs in generation_parts(model, padding("left"), cache).values():
        compare_exported(part, inputs, dynamic=False, has_all_keys=cache == "static")


@pytest.mark.parametrize("variant", ["strided", "fixed", "sparse_transformer"])
def test_exported_decoding_of_two_tokens_with_a_static_cache(variant):
    """transformers joins the masks of two steps: the keys of both are found in the joined one."""
    model = make_model(variant).double()
    model_part, inputs = generation_parts(model, padding("left"), "static", multi_token_decode=True)["decode"]
    assert inputs["input_ids"].shape[1] == 2
    compare_exported(model_part, inputs, dynamic=True, has_all_keys=True)


@pytest.mark.parametrize("variant", EXPORTED)
@torch.no_grad()
def test_a_cache_shows_what_is_cached_alone(variant):
    """Its attributes have no uninitialized tensor, and none that a copy would have to share."""
    pytest.importorskip("transformers.exporters.utils", reason="exporters came with transformers 5.20")
    cache = make_model(variant)(random_ids(2, 9)).past_key_values
    names = {name.rsplit(".", 1)[1] for name in leaf_tensors(cache)}
    assert names <= {"keys", "values", "positions", "_sliding_window_tensor"}
    for held in leaf_tensors(cache).values():
        assert held.isfinite().all()


def test_a_fixed_layer_drops_no_key_in_a_trace():
    """The number of needed keys depends on values. The next update outside drops the others."""
    layer = FixedLayer(Fixed(STRIDE, SUMMARY))

    def append(keys, values):
        return layer.update(keys, values)[0].clone()

    torch.compile(append, backend="eager", fullgraph=True)(*states(9))
    assert layer.keys.shape[2] == layer.get_seq_length() == 9
    layer.update(*states(1, start=9))
    assert cached_slots(layer) == needed(10)


def test_positions_of_a_failed_forward_pass_are_forgotten(monkeypatch):
    model, ids = make_model("fixed", attention_patterns=["fixed"] * 2), random_ids(2, 9)
    cache, mask = DynamicCache(config=model.config), padding("left", rows=2)
    with monkeypatch.context() as context, pytest.raises(ZeroDivisionError):
        context.setattr(model.model.layers[0], "forward", lambda *args, **kwargs: 1 / 0)
        model(ids, attention_mask=mask, past_key_values=cache)
    expected = model(ids, use_cache=False).logits
    assert torch.allclose(model(ids, past_key_values=cache).logits, expected, atol=1e-5)
    following = random_ids(2, 1, seed=3)
    expected = model(torch.cat((ids, following), dim=1), use_cache=False).logits[:, -1:]
    assert torch.allclose(model(following, past_key_values=cache).logits, expected, atol=1e-5)
