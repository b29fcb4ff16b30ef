"""The mask of each attention pattern: padding, packed sequences, cached tokens, prepared masks, short sequences."""

import pytest
import torch
from naive import visible
from tiny import (
    FLASH,
    IMPLEMENTATIONS,
    LENGTH,
    PACKED_POSITIONS,
    PACKED_SEQUENCES,
    PATTERN_SIZES,
    logits,
    make_config,
    make_model,
    masks_by_pattern,
    padding,
    random_ids,
    sparse_config,
)
from torch.nn.attention.flex_attention import create_mask
from transformers import LlamaConfig, StaticCache
from transformers.masking_utils import create_masks_for_generate as native_masks_for_generate

from hf_gpt.model import attention_masks
from hf_gpt.model.attention_masks import create_masks_for_generate


def masks_of_layers(model, *args, **kwargs):
    """Returns the attention mask of each layer in one forward pass."""
    masks = []
    handles = [
        layer.self_attn.register_forward_pre_hook(
            lambda module, args, kwargs: masks.append(kwargs["attention_mask"]), with_kwargs=True
        )
        for layer in model.model.layers
    ]
    with torch.no_grad():
        model(*args, **kwargs)
    for handle in handles:
        handle.remove()
    return masks


@pytest.mark.parametrize("pattern", PATTERN_SIZES)
@pytest.mark.parametrize("side", ["none", "left", "right", "scattered", "packed"])
def test_eager_masks_equal_the_definition(pattern, side):
    """The mask allows exactly the visible keys of each token; rows of padding are not compared."""
    model = make_model(attention="eager", attention_patterns=[pattern] * 2, **PATTERN_SIZES[pattern])
    mask = padding(side)
    inputs = {"none": {}, "packed": {"position_ids": PACKED_POSITIONS}}.get(side, {"attention_mask": mask})
    expected = visible(pattern, model.config, mask, PACKED_SEQUENCES if side == "packed" else None)
    for found in masks_of_layers(model, random_ids(3, LENGTH), use_cache=False, **inputs):
        allowed = found if found.dtype == torch.bool else found == 0
        allowed = allowed.expand(3, 1, LENGTH, LENGTH)[:, 0]
        assert torch.equal(allowed[mask.bool()], expected[mask.bool()])


@pytest.mark.parametrize("variant", ["default", "banded", "strided", "fixed"])
def test_masks_of_new_tokens_cover_the_cache(variant):
    """The mask of three tokens after six allows as many cached keys as the mask of all nine tokens."""
    model, ids, mask = make_model(variant, attention="eager"), random_ids(3, LENGTH), padding("left")
    cache = model(ids[:, :6], attention_mask=mask[:, :6]).past_key_values
    masks = masks_of_layers(model, ids[:, 6:], attention_mask=mask, past_key_values=cache)
    for pattern, found in zip(model.config.attention_patterns, masks, strict=True):
        expected = visible(pattern, model.config, mask)[:, 6:]
        allowed = (found if found.dtype == torch.bool else found == 0)[:, 0]
        assert torch.equal(allowed.sum(-1), expected.sum(-1))


def test_plain_causal_attention_needs_no_mask():
    """sdpa then takes its causal kernel, without a full (T x T) mask."""
    ones = torch.ones(3, LENGTH, dtype=torch.long)
    for attention_mask in (None, ones):
        masks = masks_of_layers(make_model(attention="sdpa"), random_ids(3, LENGTH), attention_mask=attention_mask)
        assert masks == [None, None]


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize(("variant", "implementation"), IMPLEMENTATIONS)
def test_a_padded_row_equals_itself_without_padding(variant, implementation, side):
    model = make_model(variant, attention=implementation)
    ids, mask = random_ids(3, LENGTH), padding(side)
    padded = logits(model, ids, mask)
    for row in range(3):
        seen = mask[row].bool()
        alone = logits(model, ids[row, seen][None])[0]
        assert torch.allclose(padded[row, seen], alone, atol=1e-5)


@pytest.mark.parametrize(("variant", "implementation"), IMPLEMENTATIONS)
def test_packed_sequences_do_not_see_each_other(variant, implementation):
    model = make_model(variant, attention=implementation)
    lengths = [4, 7, 2]
    sequences = [random_ids(1, length, seed=length) for length in lengths]
    positions = torch.cat([torch.arange(length) for length in lengths])[None]
    packed = logits(model, torch.cat(sequences, dim=1), position_ids=positions)
    apart = torch.cat([logits(model, sequence) for sequence in sequences], dim=1)
    assert torch.allclose(packed, apart, atol=1e-5)


def test_banded_layers_see_only_their_window():
    model, ids = make_model("banded", attention="eager"), random_ids(1, 12)
    banded, dense = model(ids, output_attentions=True).attentions
    assert not banded.tril(-4).any()
    assert dense.tril(-4).any()


def test_a_prepared_mask_is_used_as_it_is(variant):
    model, ids = make_model(variant, attention="eager"), random_ids(3, LENGTH)
    masks = masks_by_pattern(model.config)
    assert torch.equal(logits(model, ids, masks), logits(model, ids))
    by_layer_type = {"full_attention": masks.get("dense"), "sliding_attention": masks.get("banded")}
    if variant in FLASH:
        assert torch.equal(logits(model, ids, by_layer_type), logits(model, ids))
    else:
        with pytest.raises(ValueError, match=r"Continuous batching.*use generate"):
            logits(model, ids, by_layer_type)


@pytest.mark.parametrize("variant", ["default", "banded", "strided", "fixed"])
def test_a_mask_shorter_than_the_cache_raises(variant):
    model, ids = make_model(variant), random_ids(2, 9)
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match="attention_mask has 2 slots: expected 9 of the past and 2 new ones"):
        model(ids[:, :2], attention_mask=torch.ones_like(ids[:, :2]), past_key_values=cache)


def test_short_sequences_take_a_mask_instead_of_pieces(monkeypatch):
    monkeypatch.undo()
    config = sparse_config("strided")
    for length in (attention_masks.MIN_KEYS_FOR_PIECES - 1, attention_masks.MIN_KEYS_FOR_PIECES):
        config._attn_implementation = "sdpa"
        mask = masks_by_pattern(config, rows=1, length=length)["strided"]
        assert isinstance(mask, attention_masks.Pieces) == (length == attention_masks.MIN_KEYS_FOR_PIECES)


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("length", [1, LENGTH])
@pytest.mark.parametrize("patterns", [["dense"] * 2, ["banded"] * 2, ["dense", "banded"]], ids="-".join)
def test_masks_for_generate_are_those_of_transformers(patterns, length, side):
    """One mask for all layers or one for each layer type, of the same values."""
    config = make_config(attention_patterns=patterns, sliding_window=5 if "banded" in patterns else None)
    config._attn_implementation = "eager"
    native = LlamaConfig(num_hidden_layers=2, sliding_window=5 if "banded" in patterns else None)
    if len(set(patterns)) > 1:
        native.layer_types = config.layer_types
    native._attn_implementation = "eager"
    embeddings, mask = torch.empty(3, length, 0), padding(side)
    cache = StaticCache(config=config, max_cache_len=LENGTH + 3)
    if length == 1:
        for layer_idx in range(2):
            cache.update(torch.zeros(3, 4, LENGTH - 1, 8), torch.zeros(3, 4, LENGTH - 1, 8), layer_idx)
    found = create_masks_for_generate(config, embeddings, mask, cache)
    expected = native_masks_for_generate(native, embeddings, mask, cache)
    torch.testing.assert_close(found, expected, rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["strided", "fixed", "sparse_transformer"])
def test_masks_for_generate_are_tensors(variant):
    """Exporters and torch.compile do not accept others as inputs."""
    config = make_config(variant)
    config._attn_implementation = "sdpa"
    cache = StaticCache(config=config, max_cache_len=LENGTH + 3)
    for layer_idx in range(2):
        cache.update(torch.zeros(3, 4, LENGTH - 1, 8), torch.zeros(3, 4, LENGTH - 1, 8), layer_idx)
    masks = create_masks_for_generate(config, torch.empty(3, 1, 0), padding("left"), cache)
    assert set(masks) == set(config.attention_patterns)
    assert all(isinstance(mask, torch.Tensor) and mask.ndim == 4 for mask in masks.values())


WRONG_MASKS = {
    "other rows": torch.zeros(2, 1, LENGTH, LENGTH),
    "other heads": torch.zeros(3, 3, LENGTH, LENGTH),
    "other queries": torch.zeros(3, 1, 2, LENGTH),
    "too few keys": torch.zeros(3, 1, LENGTH, LENGTH - 1),
    "integers": torch.ones(3, 1, LENGTH, LENGTH).long(),
}


@pytest.mark.parametrize("mask", WRONG_MASKS.values(), ids=WRONG_MASKS)
@pytest.mark.parametrize("variant", ["default", "banded", "strided", "fixed", "gpt_oss"])
def test_a_prepared_mask_of_another_shape_or_type_raises(variant, mask):
    model, ids = make_model(variant), random_ids(3, LENGTH)
    kind = str(mask.dtype).removeprefix("torch.")
    message = rf"attention_mask of shape \({', '.join(map(str, mask.shape))}\) and type {kind}: expected \(3, 1, 9, 9\)"
    with pytest.raises(ValueError, match=message):
        model(ids, attention_mask=mask)
    with pytest.raises(ValueError, match=message):
        model(ids, attention_mask=dict.fromkeys(("full_attention", *model.config.attention_patterns), mask))


def test_a_prepared_mask_must_cover_a_cache():
    model, ids = make_model(), random_ids(3, LENGTH)
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match=r"attention_mask of shape \(3, 1, 2, 2\).*expected \(3, 1, 2, 11\)"):
        model(ids[:, :2], attention_mask=torch.zeros(3, 1, 2, 2), past_key_values=cache)


def test_masks_of_other_layer_types_raise():
    with pytest.raises(ValueError, match="masks by full_attention: expected sliding_attention too"):
        make_model("banded")(random_ids(3, LENGTH), attention_mask={"full_attention": None})


@pytest.mark.parametrize("side", ["none", "left"])
@pytest.mark.parametrize("variant", ["default", "banded", "strided", "fixed", "gpt_oss", "sparse_transformer"])
def test_export_with_dynamic_length(variant, side):
    """One program for all lengths, also those at which eager mode would take pieces."""
    model = make_model(variant).double()

    class Logits(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.model = model

        def forward(self, ids, mask):
            return self.model(ids, attention_mask=mask, use_cache=False).logits

    def inputs(length):
        return random_ids(3, length), padding(side, length=length) if side == "left" else None

    length = {1: torch.export.Dim("length", min=2, max=60)}
    shapes = (length, length if side == "left" else None)
    program = torch.export.export(Logits(), inputs(11), dynamic_shapes=shapes).module()
    for length in (5, 11, 23):
        ids, mask = inputs(length)
        seen = padding(side, length=length).bool()
        assert torch.allclose(program(ids, mask)[seen], logits(model, ids, mask)[seen], atol=1e-9)


@pytest.mark.parametrize("kind", ["none", "left", "scattered"])
@pytest.mark.parametrize("pattern", PATTERN_SIZES)
def test_block_masks_of_flex_attention_on_a_cpu(pattern, kind, monkeypatch):
    """They are those of the definition, made without torch.compile and without its stance, which all threads share."""
    monkeypatch.delattr(torch, "compile")
    monkeypatch.delattr(torch.compiler, "set_stance")
    config, mask = sparse_config(pattern), padding(kind)
    config._attn_implementation = "flex_attention"
    block_mask = masks_by_pattern(config, mask)[pattern]
    assert config._attn_implementation == "flex_attention"
    config._attn_implementation = "eager"
    expected = masks_by_pattern(config, mask)[pattern]
    found = create_mask(block_mask.mask_mod, 3, None, LENGTH, LENGTH, device="cpu")
    is_token = mask.bool()[:, None, :, None]
    assert torch.equal(found & is_token, (expected == 0) & is_token)
