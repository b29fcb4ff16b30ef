import pytest
import torch
from tiny import make_config

from hf_gpt.conversion import weights
from hf_gpt.conversion.gpt_oss import INTERLEAVED_GATE_UP
from hf_gpt.conversion.weights import LAYER, TRANSPOSED, expand, rule

# 4 heads of 8 dimensions, 2 of them rotated; 2 key-value heads; 4 experts
CONFIG = make_config(
    "mixtral", num_key_value_heads=2, rope_parameters={"rope_theta": 1e4, "partial_rotary_factor": 0.5}
)


@pytest.mark.parametrize(
    ("operation", "native", "ours"),
    [
        (weights.TRANSPOSED, [(3, 5)], [(5, 3)]),
        (weights.TRANSPOSED, [(3,)], [(3,)]),
        (weights.TRANSPOSED, [(4, 3, 5)], [(4, 5, 3)]),
        (weights.FUSED_QKV, [(64, 5)], [(32, 5), (16, 5), (16, 5)]),
        (weights.FUSED_QKV, [(64,)], [(32,), (16,), (16,)]),
        (weights.FUSED_QKV_BY_HEAD, [(96, 5)], [(32, 5)] * 3),
        (weights.FUSED_QKV_BY_HEAD, [(96,)], [(32,)] * 3),
        (weights.INTERLEAVED_ROPE, [(32, 5)], [(32, 5)]),
        (weights.INTERLEAVED_ROPE, [(32,)], [(32,)]),
        (weights.UNSTACKED_EXPERTS, [(3, 5)] * 4, [(4, 5, 3)]),
        (weights.UNSTACKED_GATED_EXPERTS, [(3, 5)] * 8, [(4, 5, 6)]),
        (INTERLEAVED_GATE_UP, [(4, 5, 6)], [(4, 5, 6)]),
        (INTERLEAVED_GATE_UP, [(4, 6)], [(4, 6)]),
    ],
)
def test_operations_are_reversible(operation, native, ours):
    tensors = [torch.randn(shape) for shape in native]
    there = operation.from_native(tensors, CONFIG)
    assert [tuple(tensor.shape) for tensor in there] == ours
    back = operation.to_native(there, CONFIG)
    assert len(back) == len(tensors)
    assert all(torch.equal(actual, expected) for actual, expected in zip(back, tensors, strict=True))


def test_fused_qkv():
    """Rows of all queries, keys and values; or of the query, key and value of each head."""
    rows = torch.arange(64)
    query, key, value = weights.FUSED_QKV.from_native([rows], CONFIG)
    assert (query.tolist(), key.tolist(), value.tolist()) == (
        list(range(32)),
        list(range(32, 48)),
        list(range(48, 64)),
    )
    query, key, value = weights.FUSED_QKV_BY_HEAD.from_native([torch.arange(96)], CONFIG)
    assert query[:9].tolist() == [0, 1, 2, 3, 4, 5, 6, 7, 24]
    assert key[:9].tolist() == [8, 9, 10, 11, 12, 13, 14, 15, 32]
    assert value[:9].tolist() == [16, 17, 18, 19, 20, 21, 22, 23, 40]


def test_interleaved_rope():
    """Pairs (2i, 2i + 1) become (i, i + rotary_dim / 2); the dimensions that are not rotated stay."""
    (permuted,) = weights.INTERLEAVED_ROPE.from_native([torch.arange(32)], CONFIG)
    assert permuted[:12].tolist() == [0, 2, 1, 3, 4, 5, 6, 7, 8, 10, 9, 11]


def test_gated_experts():
    """All gates come first, then all up projections; hf_gpt has the gate in the first columns."""
    gates, ups = [torch.full((3, 5), float(i)) for i in range(4)], [torch.full((3, 5), 10.0 + i) for i in range(4)]
    (stacked,) = weights.UNSTACKED_GATED_EXPERTS.from_native([*gates, *ups], CONFIG)
    assert stacked[:, 0].tolist() == [[float(i)] * 3 + [10.0 + i] * 3 for i in range(4)]


RULES = (
    rule("wte.weight", "model.embed_tokens.weight"),
    rule("h.{layer}.c.*", (f"{LAYER}a.*", f"{LAYER}b.*"), TRANSPOSED),
    rule("h.{layer}.e.{expert}.w", f"{LAYER}experts.down_proj"),
)


def test_expand():
    names = ["model.layers.1.a.bias", "model.layers.1.b.bias", "model.embed_tokens.weight"]
    names += ["model.layers.0.experts.down_proj"]
    mappings = expand(RULES, CONFIG, names)
    assert [mapping.native for mapping in mappings] == [
        ["h.1.c.bias"],
        ["wte.weight"],
        ["h.0.e.0.w", "h.0.e.1.w", "h.0.e.2.w", "h.0.e.3.w"],
    ]
    assert mappings[0].ours == names[:2]


def test_a_tensor_without_a_rule():
    with pytest.raises(ValueError, match=r"model\.layers\.2\.a\.bias has no place in this family"):
        expand(RULES, CONFIG, ["model.layers.2.a.bias"])


def test_mappings_apply_operations_in_both_directions():
    """The operations of a rule are applied from native to hf_gpt in order, and back in reverse."""
    each = rule("qkv", tuple("qkv"), weights.TRANSPOSED, weights.FUSED_QKV)
    (mapping,) = expand([each], CONFIG, "qkv")
    native = {"qkv": torch.randn(5, 64)}
    ours = mapping.from_native(native.__getitem__, CONFIG)
    assert torch.equal(ours["k"], native["qkv"].T[32:48])
    assert torch.equal(mapping.to_native(ours.__getitem__, CONFIG)["qkv"], native["qkv"])
