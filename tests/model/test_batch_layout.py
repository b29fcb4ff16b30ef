"""Where the tokens are, against loops over slots: padded, packed and cached rows, and prepared masks."""

import numpy as np
import pytest
import torch
from greedy import GREEDY
from tiny import LENGTH, PACKED_POSITIONS, PACKED_SEQUENCES, make_config, make_model, padding, random_ids
from torch._subclasses import FakeTensorMode
from transformers import DynamicCache, StaticCache

from hf_gpt.model.batch_layout import BatchLayout

CPU = torch.device("cpu")
SIDES = ["none", "left", "right", "scattered"]
PREPARED = {
    "mask": torch.zeros(3, 1, LENGTH, LENGTH),
    "masks by pattern": {"dense": torch.zeros(3, 1, LENGTH, LENGTH), "banded": None},
}


def cache_of(past: int, kind: str):
    """Returns a cache of one layer that holds `past` slots of 3 rows."""
    config = make_config(num_hidden_layers=1)
    cache = DynamicCache(config=config) if kind == "dynamic" else StaticCache(config=config, max_cache_len=2 * LENGTH)
    if past:
        cache.update(torch.zeros(3, 4, past, 8), torch.zeros(3, 4, past, 8), 0)
    return cache


def layout_of(mask, past=0, kind="dynamic", position_ids=None):
    """Returns the layout of the slots of `mask` after the cached ones, (3, past + T)."""
    return BatchLayout(3, mask.shape[1] - past, CPU, mask, position_ids, cache_of(past, kind) if past else None)


def logical_positions(mask):
    """Counts the tokens before each slot of (rows, slots); -1 for padding."""
    rows = mask.long().tolist()
    return [[sum(row[:slot]) if row[slot] else -1 for slot in range(len(row))] for row in rows]


def spans(mask):
    """Returns row, first and last slot + 1 of each row with tokens; None if padding interrupts one."""
    found = []
    for row, slots in enumerate(mask.long().tolist()):
        tokens = [slot for slot, is_token in enumerate(slots) if is_token]
        if tokens and tokens != [*range(tokens[0], tokens[-1] + 1)]:
            return None
        found += [(row, tokens[0], tokens[-1] + 1)] if tokens else []
    return found


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("past", [0, 1, 6, 8])
@pytest.mark.parametrize("side", SIDES)
@pytest.mark.parametrize("dtype", [torch.long, torch.bool, torch.float])
def test_padded_rows(dtype, side, past, kind):
    mask = padding(side).to(dtype)
    tokens = layout_of(mask, past, kind)
    expected = logical_positions(mask)
    assert isinstance(tokens.past, torch.Tensor) == (kind == "static" and past > 0)
    assert (tokens.batch, tokens.length, int(tokens.past)) == (3, LENGTH - past, past)
    assert tokens.mask.dtype == torch.bool
    assert torch.equal(tokens.mask, mask.bool())
    assert tokens.logical_positions.tolist() == expected
    assert tokens.spans == spans(mask)
    assert tokens.sequences is None
    assert not tokens.is_prepared

    new = torch.tensor(expected)[:, past:]
    assert torch.equal(tokens.position_ids[new >= 0], new[new >= 0])
    assert (tokens.position_ids >= 0).all()  # of padding too: they are indices of learned positions
    assert tokens.position_ids.shape == new.shape


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("past", [0, 4])
def test_rows_without_a_mask(past, kind):
    tokens = BatchLayout(3, 5, CPU, None, None, cache_of(past, kind))
    assert (tokens.mask, tokens.sequences, tokens.is_prepared) == (None, None, False)
    assert tokens.position_ids.tolist() == [[*range(past, past + 5)]]
    assert tokens.spans == [(row, 0, past + 5) for row in range(3)]
    assert tokens.is_plain_causal == (past == 0)


def test_a_row_of_padding_has_no_span():
    mask = padding("left")
    mask[1] = 0
    assert layout_of(mask).spans == [(0, 2, LENGTH), (2, 0, LENGTH)]
    assert layout_of(torch.zeros_like(mask)).spans == []


@pytest.mark.parametrize("rows", [3, 1], ids=["positions of each row", "positions of one row for all"])
def test_packed_sequences(rows):
    positions, sequences = PACKED_POSITIONS[:rows], PACKED_SEQUENCES[:rows].expand(3, -1)
    tokens = BatchLayout(3, LENGTH, CPU, None, positions)
    assert torch.equal(tokens.sequences, sequences)
    assert torch.equal(tokens.position_ids, positions)
    assert tokens.logical_positions.tolist() == positions.expand(3, -1).tolist()
    expected = [
        (row, numbers.index(number), LENGTH - numbers[::-1].index(number))
        for row, numbers in enumerate(sequences.tolist())
        for number in sorted(set(numbers))
    ]
    assert tokens.spans == expected
    assert not tokens.is_plain_causal


def test_logical_positions_of_packed_sequences_start_at_0():
    """Those of the caller may start anywhere."""
    tokens = BatchLayout(1, 6, CPU, None, torch.tensor([[5, 6, 7, 3, 4, 9]]))
    assert tokens.logical_positions.tolist() == [[0, 1, 2, 0, 1, 0]]
    assert tokens.spans == [(0, 0, 3), (0, 3, 5), (0, 5, 6)]


@pytest.mark.parametrize("case", ["no restart", "mask", "cache"])
def test_positions_are_packed_only_without_mask_and_cache(case):
    positions = torch.arange(LENGTH)[None] + 3 if case == "no restart" else PACKED_POSITIONS
    mask = padding("none") if case == "mask" else None
    cache = DynamicCache(config=make_config()) if case == "cache" else None
    tokens = BatchLayout(3, LENGTH, CPU, mask, positions, cache)
    assert tokens.sequences is None
    assert tokens.spans == [(row, 0, LENGTH) for row in range(3)]
    assert torch.equal(tokens.position_ids, positions)
    assert tokens.is_plain_causal


@pytest.mark.parametrize("prepared", PREPARED.values(), ids=PREPARED)
def test_prepared_masks(prepared):
    tokens = BatchLayout(3, LENGTH, CPU, prepared)
    assert tokens.is_prepared
    assert (tokens.mask, tokens.spans, tokens.sequences) == (None, None, None)
    assert tokens.position_ids.tolist() == [[*range(LENGTH)]]


@pytest.mark.parametrize(("side", "past", "is_plain"), [("none", 0, True), ("none", 4, False), ("left", 0, False)])
def test_plain_causal_rows(side, past, is_plain):
    assert layout_of(padding(side), past).is_plain_causal == is_plain


@pytest.mark.parametrize("kind", ["dynamic", "static"])
@pytest.mark.parametrize("past", [0, 6])
def test_a_mask_that_is_too_short_raises(past, kind):
    with pytest.raises(ValueError, match=f"attention_mask has 8 slots: expected {past} of the past and 9 new ones"):
        BatchLayout(3, 9, CPU, torch.ones(3, 8), None, cache_of(past, kind) if past else None)


@pytest.mark.parametrize("past", [0, 6])
def test_a_mask_that_is_too_long_raises(past):
    """Only with a static cache may it be longer than the tokens."""
    with pytest.raises(ValueError, match=f"attention_mask has 18 slots: expected {past} of the past and 9 new ones"):
        BatchLayout(3, 9, CPU, torch.ones(3, 18), None, cache_of(past, "dynamic") if past else None)


def test_a_static_mask_covers_all_slots_of_the_cache():
    """Only the slots up to the new tokens count."""
    mask = torch.nn.functional.pad(padding("left"), (0, LENGTH))
    tokens = BatchLayout(3, 3, CPU, mask, None, cache_of(6, "static"))
    assert torch.equal(tokens.mask, padding("left").bool())
    assert torch.equal(tokens.position_ids, layout_of(padding("left"), 6).position_ids)


def test_a_compiled_graph_does_not_depend_on_the_mask():
    def positions(mask, position_ids):
        tokens = BatchLayout(3, LENGTH, CPU, mask, position_ids)
        assert tokens.spans is None
        return tokens.position_ids, tokens.logical_positions

    compiled = torch.compile(positions, backend="eager", fullgraph=True)
    for side in ("left", "none", "scattered"):
        expected = layout_of(padding(side))
        found = compiled(padding(side), None)
        assert torch.equal(found[0], expected.position_ids)
        assert torch.equal(found[1], expected.logical_positions)
    assert torch.equal(compiled(None, PACKED_POSITIONS)[1], PACKED_POSITIONS)


@pytest.mark.parametrize("variant", ["default", "learned", "banded", "strided", "fixed", "gpt_oss"])
def test_generation_with_a_static_cache_equals_a_dynamic_one(variant):
    """With left padding: generate() prepares the masks of a static cache outside the model."""
    model, ids, mask = make_model(variant), random_ids(3, LENGTH), padding("left")
    options = {**GREEDY, "return_dict_in_generate": True, "output_logits": True}
    dynamic = model.generate(ids, attention_mask=mask, **options)
    static = model.generate(ids, attention_mask=mask, cache_implementation="static", **options)
    assert torch.equal(static.sequences, dynamic.sequences)
    assert torch.allclose(torch.stack(static.logits), torch.stack(dynamic.logits), atol=1e-5)


def test_the_past_of_a_static_cache_on_an_accelerator_is_not_read():
    """Reading it would synchronize at every token; a tensor on the meta device raises if it is read."""

    class Elsewhere:
        is_compileable = True

        def get_seq_length(self):
            return torch.tensor(4, device="meta")

    layout = BatchLayout(2, 1, CPU, torch.ones(2, 5), torch.full((2, 1), 4), Elsewhere())
    assert torch.equal(layout.mask, torch.ones(2, 5, dtype=torch.bool))
    assert torch.equal(layout.position_ids, torch.full((2, 1), 4))


WRONG = {
    "tuples of keys and values": (
        {"past_key_values": ((torch.zeros(3, 4, 2, 8),) * 2,) * 2},
        r"past_key_values is a tuple: expected a Cache. DynamicCache\(past_key_values\) makes one",
    ),
    "positions of too few tokens": ({"position_ids": torch.arange(8)[None]}, r"position_ids of shape \(1, 8\)"),
    "positions of one token": ({"position_ids": torch.zeros(3, 1).long()}, r"expected numbers of shape \(3 or 1, 9\)"),
    "positions of other rows": ({"position_ids": torch.zeros(2, 9).long()}, r"position_ids of shape \(2, 9\)"),
    "positions without rows": ({"position_ids": torch.arange(9)}, r"position_ids of shape \(9,\) and type int64"),
    "positions of three axes": ({"position_ids": torch.zeros(3, 3, 9).long()}, r"position_ids of shape \(3, 3, 9\)"),
    "positions that are booleans": ({"position_ids": torch.ones(3, 9).bool()}, "type bool: expected numbers"),
    "mask of one row": ({"attention_mask": torch.ones(1, 9)}, r"attention_mask of shape \(1, 9\): expected \(3, past"),
    "mask of more rows": ({"attention_mask": torch.ones(4, 9)}, r"attention_mask of shape \(4, 9\)"),
    "mask without rows": ({"attention_mask": torch.ones(9)}, r"attention_mask of shape \(9,\)"),
    "mask of three dimensions": ({"attention_mask": torch.ones(3, 9, 9)}, r"a prepared mask, \(3, 1, T, keys\)"),
    "mask that is a list": ({"attention_mask": [[1] * 9] * 3}, "attention_mask is a list: expected a tensor"),
    "mask of numpy": ({"attention_mask": np.ones((3, 9))}, "attention_mask is a ndarray: expected a tensor"),
    "embeddings without rows": (
        {"inputs_embeds": torch.zeros(9, 32)},
        r"inputs_embeds of shape \(9, 32\): .*\(B, T, D\)",
    ),
    "ids without rows": ({"input_ids": torch.arange(9)}, r"input_ids of shape \(9,\): expected \(B, T\)"),
}


@pytest.mark.parametrize("variant", ["default", "learned", "fixed", "gpt_oss"])
@pytest.mark.parametrize(("arguments", "message"), WRONG.values(), ids=WRONG)
def test_arguments_of_a_wrong_shape_or_type_raise(variant, arguments, message):
    ids = {} if {"input_ids", "inputs_embeds"} & arguments.keys() else {"input_ids": random_ids(3, 9)}
    with pytest.raises(ValueError, match=message):
        make_model(variant)(**ids, **arguments)


@torch.no_grad()
def test_tuples_of_keys_and_values_become_a_cache():
    """As the message says."""
    model, ids = make_model(), random_ids(3, 9)
    cache = model(ids[:, :6]).past_key_values
    pairs = tuple((layer.keys, layer.values) for layer in cache.layers)
    found = model(ids[:, 6:], past_key_values=DynamicCache(pairs)).logits
    assert torch.allclose(found, model(ids).logits[:, 6:], atol=1e-5)


@pytest.mark.parametrize("variant", ["default", "banded", "gpt_oss"])
def test_positions_between_integers(variant):
    """Rotary and sinusoidal positions may be any numbers; a shift of all does not change the scores."""
    model, positions = make_model(variant), torch.arange(9)[None]
    expected = model(random_ids(3, 9), position_ids=positions, use_cache=False).logits
    found = model(random_ids(3, 9), position_ids=positions + 0.5, use_cache=False).logits
    assert torch.allclose(found, expected, atol=1e-4)


def test_learned_positions_between_integers_raise():
    with pytest.raises(ValueError, match="position_ids of type float32: expected integers, the rows of a table"):
        make_model("learned")(random_ids(3, 9), position_ids=torch.arange(9.0)[None])


def make_traces():
    """Returns what evaluates a function of tensors without reading their values, by name."""

    def of_fake_tensors(function, *inputs):
        with FakeTensorMode() as mode:
            function(*(mode.from_tensor(each) for each in inputs))

    return {
        "FakeTensorMode": of_fake_tensors,
        "torch.jit.trace": lambda function, *inputs: torch.jit.trace(function, inputs, check_trace=False)(*inputs),
        "torch.func.vmap": lambda function, *inputs: torch.func.vmap(function)(*(each[None] for each in inputs)),
    }


@pytest.mark.parametrize("trace", make_traces().values(), ids=make_traces())
@pytest.mark.parametrize("kind", ["padded", "packed"])
def test_a_trace_does_not_read_values(trace, kind):
    seen = []

    def layout(states):
        mask, positions = (states, None) if kind == "padded" else (None, states)
        tokens = BatchLayout(3, LENGTH, CPU, mask, positions)
        seen.append((tokens.may_read_values, tokens.spans, tokens.is_plain_causal))
        return tokens.position_ids + tokens.logical_positions

    trace(layout, padding("scattered") if kind == "padded" else PACKED_POSITIONS)
    assert seen[0] == (False, None, True)


def test_a_trace_takes_a_mask_of_all_slots_of_a_static_cache():
    """The new tokens are behind the past, not at the end of the mask."""
    mask, cache = torch.nn.functional.pad(padding("left"), (0, LENGTH), value=1), cache_of(6, "static")

    def positions(mask):
        return BatchLayout(3, 3, CPU, mask, None, cache).position_ids

    expected = layout_of(padding("left"), 6).position_ids
    assert torch.equal(torch.compile(positions, backend="eager", fullgraph=True)(mask), expected)
    assert torch.equal(positions(mask), expected)
