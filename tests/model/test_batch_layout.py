"""Where the tokens are, against loops over slots: padded, packed and cached rows, and prepared masks."""

import pytest
import torch
from greedy import GREEDY
from tiny import LENGTH, PACKED_POSITIONS, PACKED_SEQUENCES, make_config, make_model, padding, random_ids
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
