"""GPTConfig: validation, derived fields, overrides, saving and loading."""

import copy
import json
import math
import pickle
from itertools import pairwise

import pytest
import torch
from greedy import GREEDY
from tiny import TINY, VARIANTS, make_config, make_model, random_ids

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.model.configuration_gpt import (
    ACTIVATIONS,
    DERIVATIONS,
    LAYER_TYPES,
    PATTERN_FIELDS,
    PER_LAYER,
    PRESENT_IF,
)


def fields_of(config):
    """Everything that is saved but the source."""
    saved = config.to_diff_dict()
    return {name: saved[name] for name in saved if name not in ("_name_or_path", "auto_map", "architectures", "dtype")}


INVALID = [
    ({"attention_scale": 10**400}, "attention_scale=1000.*: expected a positive number up to 10000 or None"),
    ({"attention_dropout": -(10**400)}, r"attention_dropout=-1000.*: expected a number in \[0, 1\)"),
    ({"num_hidden_layers": 2**31}, "num_hidden_layers=2147483648: expected an integer from 1 to 10000"),
    ({"attention_patterns": ["fixed"] * 2, "attention_stride": 10**30}, "attention_stride=1000.*: expected an integer"),
    ({"initializer_range": 1e8}, "initializer_range=100000000.0: expected a positive number up to 100"),
    ({"hidden_act": "x" * 5000}, r"hidden_act='x{119}\.\.\.: expected one of"),
    ({"scale_attn_weights": [], "attention_scores_scalar": "8"}, "attention_scores_scalar='8' has no meaning here"),
    ({"vocab_size": 0}, "vocab_size=0: expected an integer from 1 to"),
    ({"hidden_size": 32.0}, "hidden_size=32.0"),
    ({"hidden_size": "wide"}, "hidden_size='wide'"),
    ({"num_hidden_layers": True}, "num_hidden_layers=True"),
    ({"head_dim": -1}, "head_dim=-1: expected an integer from 1 to 524288 or None"),
    ({"mlp_type": "moe"}, "mlp_type='moe': expected one of mlp, glu, clamped_glu"),
    ({"attention_output_bias": 1}, "attention_output_bias=1: expected True or False or None"),
    ({"attention_scale": 0}, "attention_scale=0: expected a positive number up to 10000 or None"),
    ({"norm_parameters": "bias"}, "norm_parameters='bias': expected one of weight_and_bias"),
    (
        {"norm_type": "rms_norm", "norm_parameters": "weight_and_bias"},
        "norm_parameters='weight_and_bias' with norm_type='rms_norm': expected one of weight, none",
    ),
    ({"shared_norm": True}, "shared_norm=True with parallel_residual=False: expected parallel_residual=True"),
    ({"position_offset": 2}, "position_offset=2 with position_embedding_type='rope': expected 'learned'"),
    ({"position_offset": -1}, "position_offset=-1: expected an integer from 0 to"),
    ({"swiglu_limit": -7.0}, "swiglu_limit=-7.0: expected a positive number"),
    ({"num_local_experts": 2, "num_experts_per_tok": 3}, "num_experts_per_tok=3: expected at most num_local_experts=2"),
    ({"num_local_experts": 2, "mlp_layer_types": ["dense"] * 2}, "num_local_experts=2 without a sparse layer"),
    ({"mlp_layer_types": ["sparse", "dense"]}, "num_local_experts=None: the sparse layers"),
    (
        {"num_local_experts": 2, "mlp_layer_types": ["sparse"]},
        r"num_hidden_layers=[26]: expected as many entries.* and mlp_layer_types \(has 1\)",
    ),
    ({"num_local_experts": 2, "mlp_layer_types": ["sparse", "moe"]}, "mlp_layer_types holds 'moe'"),
    ({"moe_intermediate_size": 0}, "moe_intermediate_size=0: expected an integer from 1 to 524288 or None"),
    ({"router_aux_loss_coef": -0.1}, "router_aux_loss_coef=-0.1: expected a number from 0 to 10000"),
    ({"router_z_loss_coef": -1}, "router_z_loss_coef=-1: expected a number from 0 to 10000"),
    ({"router_bias_update_rate": -1}, "router_bias_update_rate=-1: expected a number from 0 to 10000 or None"),
    ({"router_bias_update_rate": 0.1}, "router_bias_update_rate=0.1 without a sparse layer"),
    ({"num_shared_experts": 1}, "num_shared_experts=1 without a sparse layer"),
    ({"num_local_experts": 4, "router_score_function": "tanh"}, "router_score_function='tanh': expected one of"),
    ({"num_local_experts": 4, "router_aux_loss_type": "none"}, "router_aux_loss_type='none': expected one of"),
    ({"num_local_experts": 4, "routed_scaling_factor": 0}, "routed_scaling_factor=0: expected a positive number"),
    (
        {"num_local_experts": 4, "layerdrop": 0.1},
        "layerdrop=0.1 with experts: expected 0, skipped experts cannot be balanced",
    ),
    ({"router_jitter_noise": 1}, r"router_jitter_noise=1: expected a number in \[0, 1\)"),
    ({"native_fields": []}, r"native_fields=\[\]: expected a dict of JSON or None"),
    ({"norm_type": "batch_norm"}, "norm_type='batch_norm': expected one of layer_norm, rms_norm"),
    ({"norm_position": "both"}, "norm_position='both': expected one of pre, post"),
    ({"position_embedding_type": "alibi"}, "position_embedding_type='alibi': expected one of learned"),
    ({"hidden_act": "gelo"}, "hidden_act='gelo': expected one of"),
    ({"attention_bias": "yes"}, "attention_bias='yes': expected True or False"),
    ({"attention_dropout": 1.5}, r"attention_dropout=1.5: expected a number in \[0, 1\)"),
    ({"norm_eps": 0}, "norm_eps=0: expected a positive number"),
    ({"num_attention_heads": 5}, "num_attention_heads=5 does not divide hidden_size=32"),
    ({"num_key_value_heads": 3}, "num_key_value_heads=3 does not divide num_attention_heads=4"),
    ({"attention_patterns": ["dense"]}, r"num_hidden_layers=2: expected as many entries.*attention_patterns \(has 1\)"),
    ({"attention_patterns": ["dense", "random"]}, "attention_patterns holds 'random': expected dense or banded"),
    ({"attention_patterns": "dense"}, "attention_patterns='dense': expected a list"),
    ({"layer_types": ["full_attention"] * 3}, r"num_hidden_layers=2: expected as many entries.*layer_types \(has 3\)"),
    ({"layer_types": ["full_attention", "mamba"]}, "attention_patterns holds 'mamba'"),
    (
        {"layer_types": ["sliding_attention"] * 2, "attention_patterns": ["dense"] * 2},
        "layer_types=.* contradicts attention_patterns",
    ),
    (
        {"sliding_window": 1, "attention_patterns": ["banded"] * 2},
        "sliding_window=1: expected an integer from 2 to",
    ),
    ({"sliding_window": 8}, "sliding_window=8 without a banded layer"),
    ({"attention_stride": 8}, "attention_stride=8 without a strided or fixed layer"),
    ({"attention_summary_size": 8}, "attention_summary_size=8 without a fixed layer"),
    ({"attention_patterns": ["strided"] * 2}, "attention_stride=None: the strided layers in attention_patterns"),
    ({"attention_patterns": ["fixed"] * 2, "attention_stride": 4}, "attention_summary_size=None: the fixed layers"),
    (
        {"attention_patterns": ["fixed"] * 2, "attention_stride": 4, "attention_summary_size": 5},
        "attention_summary_size=5: expected at most attention_stride=4",
    ),
    (
        {"attention_patterns": ["strided"] * 2, "attention_stride": 1},
        "attention_stride=1: expected an integer from 2 to",
    ),
    ({"attention_patterns": ["banded", "dense"]}, "sliding_window=None: the banded layers"),
    (
        {"parallel_residual": True, "norm_position": "post"},
        "norm_position='post' with parallel_residual=True: expected 'pre'",
    ),
    (
        {"position_embedding_type": "sinusoidal", "hidden_size": 33, "head_dim": 8},
        "hidden_size=33: expected an even number for sinusoidal positions",
    ),
    (
        {"position_embedding_type": "learned", "rope_parameters": {"rope_theta": 1e4}},
        "rope_parameters=.* with position_embedding_type='learned': leave it out",
    ),
    (
        {"position_embedding_type": "none", "rope_theta": 1e4},
        "rope_parameters=.*'rope_theta': 10000.0.* with position_embedding_type='none': leave it out",
    ),
    ({"initializer_range": float("inf")}, "initializer_range=inf: expected a positive number"),
    ({"eos_token_id": []}, r"eos_token_id=\[\]: expected a token id"),
    ({"eos_token_id": 99}, "eos_token_id=99: expected less than vocab_size=99"),
    ({"eos_token_id": [1, 99]}, r"eos_token_id=\[1, 99\]: expected less than vocab_size=99"),
    ({"pad_token_id": -1}, "pad_token_id=-1: expected a token id"),
    ({"model_type": "gpt-mini"}, "model_type='gpt-mini': expected 'hf_gpt'"),
    ({"num_hidden_layer": 3}, "num_hidden_layer is not a field of GPTConfig: did you mean num_hidden_layers"),
]


@pytest.mark.parametrize(("fields", "message"), INVALID, ids=[str(fields)[:60] for fields, _ in INVALID])
def test_invalid_fields_raise(fields, message):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**{**TINY, **fields})


@pytest.mark.parametrize("layers", [2**31, 10**400, -1])
def test_no_list_is_made_for_an_invalid_number_of_layers(layers):
    config = make_config()
    config.num_hidden_layers = layers
    with pytest.raises(ValueError, match=r"num_hidden_layers=.*: expected an integer from 1 to 10000"):
        config.validate()
    stored = make_config().to_diff_dict() | {"num_hidden_layers": layers}
    with pytest.raises(ValueError, match=r"num_hidden_layers=.*: expected an integer from 1 to 10000"):
        GPTConfig.from_dict(stored, attention_dropout=0.1)
    assert GPTConfig.from_dict(stored, num_hidden_layers=3).attention_patterns == ["dense"] * 3


def test_omitted_fields_are_derived():
    config = make_config(attention_patterns=["banded", "dense"], sliding_window=4)
    assert (config.head_dim, config.num_key_value_heads, config.embedding_size) == (8, 4, 32)
    assert config.intermediate_size == 128
    assert config.layer_types == ["sliding_attention", "full_attention"]
    assert make_config(layer_types=config.layer_types, sliding_window=4).attention_patterns == ["banded", "dense"]
    assert make_config().rope_parameters == {"rope_type": "default", "rope_theta": 10_000.0}
    assert (config.attention_output_bias, config.norm_parameters, config.final_norm) == (True, "weight_and_bias", True)
    assert (make_config("llama").attention_output_bias, make_config("llama").norm_parameters) == (False, "weight")
    assert not make_config("post_norm").final_norm
    assert (config.mlp_layer_types, config.moe_intermediate_size) == (["dense"] * 2, None)
    experts = make_config(num_local_experts=3)
    assert (experts.mlp_layer_types, experts.moe_intermediate_size) == (["sparse"] * 2, 128)


def test_no_rope_without_rotary_positions():
    assert not hasattr(make_config("learned"), "rope_parameters")  # tools take its presence for RoPE


def test_saves_and_loads(variant, tmp_path):
    config = make_config(variant, bos_token_id=1, eos_token_id=[2, 3], num_labels=5)
    config.save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path).to_dict() == config.to_dict()
    stored = json.loads((tmp_path / "config.json").read_text())
    assert stored["model_type"] == "hf_gpt"
    assert stored["layer_types"] == config.layer_types


def test_every_field_has_a_line_of_documentation():
    import ast
    import inspect

    body = ast.parse(inspect.getsource(GPTConfig)).body[0].body
    for statement, following in pairwise(body):
        if isinstance(statement, ast.AnnAssign):
            assert isinstance(following, ast.Expr), f"{statement.target.id} is not documented"


def test_special_tokens_may_be_assigned_before_the_vocabulary_grows():
    model = make_model()
    model.config.pad_token_id = TINY["vocab_size"]
    with pytest.raises(ValueError, match="pad_token_id=99: expected less than vocab_size=99"):
        model.config.check_token_ids()
    model.resize_token_embeddings(100)
    model.config.check_token_ids()
    model.config.eos_token_id = [1, 2]
    model.resize_token_embeddings(2)
    model.config.pad_token_id = None
    with pytest.raises(ValueError, match=r"eos_token_id=\[1, 2\]: expected less than vocab_size=2"):
        model.config.check_token_ids()


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_activation_builds(activation):
    GPTForCausalLM(make_config(hidden_act=activation))


def test_a_changed_configuration_is_validated_again(tmp_path):
    config = make_config(num_key_value_heads=4, head_dim=8)
    config.num_attention_heads = 3
    with pytest.raises(ValueError, match="num_key_value_heads=4 does not divide num_attention_heads=3"):
        GPTForCausalLM(config)
    with pytest.raises(ValueError, match="num_key_value_heads=4"):
        config.save_pretrained(tmp_path)


def test_overrides_at_loading_update_derived_fields(tmp_path):
    GPTConfig(**{**TINY, "num_key_value_heads": 2}).save_pretrained(tmp_path)
    config = GPTConfig.from_pretrained(tmp_path, hidden_size=64, num_hidden_layers=3)
    assert (config.embedding_size, config.intermediate_size, config.head_dim, config.num_key_value_heads) == (
        64,
        256,
        16,
        2,
    )
    assert config.attention_patterns == ["dense"] * 3
    banded = GPTConfig.from_pretrained(tmp_path, attention_patterns=["banded"] * 2, sliding_window=4)
    assert banded.layer_types == ["sliding_attention"] * 2
    with pytest.raises(ValueError, match="sliding_window=8 without a banded layer"):
        GPTConfig.from_pretrained(tmp_path, sliding_window=8)


# A field, its derived value, fields that change this value when they are set at loading, and the new one.
MOE = {"num_local_experts": 3}
SINUSOIDAL = {"position_embedding_type": "sinusoidal"}
CHANGES = [
    ({}, "head_dim", 8, {"hidden_size": 64}, 16),
    ({}, "num_key_value_heads", 4, {"num_attention_heads": 8}, 8),
    ({}, "embedding_size", 32, {"hidden_size": 64}, 64),
    ({"position_embedding_type": "learned"}, "embedding_scale", 1.0, SINUSOIDAL, math.sqrt(32)),
    (SINUSOIDAL, "embedding_scale", math.sqrt(32), {"hidden_size": 64}, 8.0),
    (SINUSOIDAL, "embedding_scale", math.sqrt(32), {"position_embedding_type": "none"}, 1.0),
    ({}, "intermediate_size", 128, {"hidden_size": 64}, 256),
    ({}, "attention_output_bias", True, {"attention_bias": False}, False),
    ({"norm_type": "rms_norm"}, "norm_parameters", "weight", {"norm_type": "layer_norm"}, "weight_and_bias"),
    ({}, "final_norm", True, {"norm_position": "post"}, False),
    (MOE, "moe_intermediate_size", 128, {"intermediate_size": 50}, 50),
    (MOE, "moe_intermediate_size", 128, {"hidden_size": 64}, 256),
    (MOE, "mlp_layer_types", ["sparse"] * 2, {"num_hidden_layers": 3}, ["sparse"] * 3),
    ({}, "attention_patterns", ["dense"] * 2, {"num_hidden_layers": 3}, ["dense"] * 3),
    ({}, "layer_types", ["full_attention"] * 2, {"num_hidden_layers": 1}, ["full_attention"]),
]


@pytest.mark.parametrize(("fields", "name", "value", "overrides", "derived"), CHANGES)
def test_a_derived_field_follows_overrides(fields, name, value, overrides, derived, tmp_path):
    config = make_config(**fields)
    assert name in config.derived_fields
    assert getattr(config, name) == value
    config.save_pretrained(tmp_path)
    loaded = GPTConfig.from_pretrained(tmp_path, **overrides)
    assert getattr(loaded, name) == derived
    assert name in loaded.derived_fields


@pytest.mark.parametrize(("fields", "name", "value", "overrides", "derived"), CHANGES)
def test_an_explicit_field_does_not_follow_overrides(fields, name, value, overrides, derived, tmp_path):
    """Even if its value is the one that would be derived."""
    config = make_config(**fields, **{name: value})
    assert name not in config.derived_fields
    config.save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path).derived_fields == config.derived_fields
    loaded = GPTConfig.from_pretrained(tmp_path, **overrides)
    assert getattr(loaded, name) == (derived if isinstance(value, list) else value)  # a list follows the depth
    assert name not in loaded.derived_fields


@pytest.mark.parametrize(("fields", "name", "value", "changes", "derived"), CHANGES)
def test_a_derived_field_follows_assignments(fields, name, value, changes, derived, tmp_path):
    config = make_config(**fields)
    for field, new in changes.items():
        setattr(config, field, new)
    assert getattr(config, name) == derived
    assert fields_of(config) == fields_of(make_config(**fields | changes))
    GPTForCausalLM(config).save_pretrained(tmp_path)
    assert fields_of(GPTForCausalLM.from_pretrained(tmp_path).config) == fields_of(config)


@pytest.mark.parametrize(("fields", "name", "value", "changes", "derived"), CHANGES)
def test_an_explicit_field_does_not_follow_assignments(fields, name, value, changes, derived):
    config, assigned = make_config(**fields, **{name: value}), make_config(**fields)
    setattr(assigned, name, value)
    assert fields_of(assigned) == fields_of(config)
    assigned.update(changes)
    assert getattr(assigned, name) == (derived if isinstance(value, list) else value)  # a list follows the depth
    assert name not in assigned.derived_fields


def test_assignments_are_checked_when_a_model_is_built(tmp_path):
    """Not between them: the first two contradict each other."""
    config = make_config()
    config.hidden_size = 50
    with pytest.raises(ValueError, match="num_attention_heads=4 does not divide hidden_size=50: choose a divisor"):
        GPTForCausalLM(config)
    with pytest.raises(ValueError, match="num_attention_heads=4 does not divide hidden_size=50: choose a divisor"):
        config.save_pretrained(tmp_path)
    config.num_attention_heads = 5
    assert fields_of(config) == fields_of(make_config(hidden_size=50, num_attention_heads=5))
    config.hidden_size = "wide"
    with pytest.raises(ValueError, match="hidden_size='wide': expected an integer"):
        config.validate()
    config.hidden_size = 40
    assert fields_of(config) == fields_of(make_config(hidden_size=40, num_attention_heads=5))


def test_an_assignment_of_none_is_derived():
    config = make_config(intermediate_size=50, attention_patterns=["banded", "dense"], sliding_window=4)
    config.intermediate_size = None
    assert config.intermediate_size == 128
    config.hidden_size = 64
    assert config.intermediate_size == 256
    config.attention_patterns = None
    assert config.layer_types == ["full_attention"] * 2


def test_an_edit_in_place_is_explicit(tmp_path):
    config = make_config()
    config.rope_parameters["rope_theta"] = 5e5
    config.hidden_size = 64
    assert config == make_config(hidden_size=64, rope_theta=5e5)
    config = make_config(num_local_experts=4)
    config.mlp_layer_types[0] = "dense"
    config.hidden_size = 64
    assert config == make_config(num_local_experts=4, mlp_layer_types=["dense", "sparse"], hidden_size=64)
    config.attention_patterns[0] = "banded"
    config.sliding_window = 4
    with pytest.raises(ValueError, match=r"layer_types=.* contradicts attention_patterns"):
        config.validate()


def test_assignments_in_any_order():
    """`update` with the fields of another configuration."""
    for variant in VARIANTS:
        fields = {**TINY, **VARIANTS[variant], "num_hidden_layers": 2}
        for order in (list(fields), list(reversed(fields))):
            config = make_config("learned", num_hidden_layers=3, num_attention_heads=8)
            config.update({name: fields[name] for name in order})
            if "position_embedding_type" not in fields:
                config.position_embedding_type = "rope"
            expected = fields_of(make_config(variant))
            assert fields_of(config) | {"derived_fields": None} == expected | {"derived_fields": None}


def test_a_change_of_positions(tmp_path):
    """`rope_parameters` exists with rotary positions only: other tools take its presence for RoPE."""
    config = make_config()
    config.position_embedding_type = "learned"
    assert not hasattr(config, "rope_parameters")
    GPTForCausalLM(config).save_pretrained(tmp_path)
    assert fields_of(GPTConfig.from_pretrained(tmp_path)) == fields_of(make_config("learned"))
    config.position_embedding_type = "rope"
    assert fields_of(config) == fields_of(make_config())
    GPTForCausalLM(config)
    make_config().save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path, position_embedding_type="none") == GPTConfig.from_pretrained(
        tmp_path, position_embedding_type="none", rope_parameters=None
    )
    config = make_config(rope_theta=5e5)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=r"rope_parameters=.* with position_embedding_type='none': leave it out"):
        GPTConfig.from_pretrained(tmp_path, position_embedding_type="none")
    config = make_config("learned")
    config.rope_parameters = {"rope_theta": 5e5}
    with pytest.raises(ValueError, match=r"rope_parameters=.* with position_embedding_type='learned': leave it out"):
        config.validate()
    config.position_embedding_type = "rope"
    assert config == make_config(rope_theta=5e5)


def test_a_copy_does_not_change_the_original(variant):
    """transformers sets fields on shallow copies, for the layers of a heterogeneous model."""
    config = make_config(variant)
    before = copy.deepcopy(fields_of(config))
    twin = copy.copy(config)
    twin.hidden_size, twin.num_hidden_layers = 64, 5
    assert fields_of(config) == before


DEPTHS = {
    "derived": {},
    "explicit": {"attention_patterns": ["banded"] * 4, "sliding_window": 4},
    "layer types": {"layer_types": ["sliding_attention"] * 4, "sliding_window": 4},
    "experts": {"num_local_experts": 4, "mlp_layer_types": ["sparse"] * 4},
    "strided": {"attention_patterns": ["strided"] * 4, "attention_stride": 3},
}
MIXED = {
    "patterns": {"attention_patterns": ["banded", "dense"] * 2, "sliding_window": 4},
    "experts": {"num_local_experts": 4, "mlp_layer_types": ["dense", "sparse"] * 2},
}
THREE_LISTS = (
    r"num_hidden_layers=[26]: expected as many entries, one for each layer, in attention_patterns \(has \d\), "
    r"layer_types \(has \d\) and mlp_layer_types \(has \d\)"
)


def runs_and_is_saved(model, folder):
    """The model computes and generates, and what is saved has the same logits."""
    ids = random_ids(2, 6)
    with torch.no_grad():
        logits = model.eval()(ids).logits
    assert model.generate(ids, **GREEDY).shape == (2, 14)
    model.save_pretrained(folder)
    loaded = GPTForCausalLM.from_pretrained(folder)
    assert fields_of(loaded.config) == fields_of(model.config)
    with torch.no_grad():
        assert torch.equal(loaded(ids).logits, logits)


@pytest.mark.parametrize("fields", DEPTHS.values(), ids=DEPTHS)
@pytest.mark.parametrize("layers", [2, 6])
def test_another_depth(fields, layers, tmp_path):
    make_config(**fields, num_hidden_layers=4).save_pretrained(tmp_path)
    loaded = GPTConfig.from_pretrained(tmp_path, num_hidden_layers=layers)
    config = GPTConfig.from_pretrained(tmp_path)
    config.num_hidden_layers = layers
    updated = GPTConfig.from_pretrained(tmp_path)
    updated.update_from_string(f"num_hidden_layers={layers}")
    assert fields_of(loaded) == fields_of(config) == fields_of(updated)
    assert {len(getattr(config, name)) for name in PER_LAYER} == {layers}
    runs_and_is_saved(GPTForCausalLM(config), tmp_path / "saved")


@pytest.mark.parametrize("fields", DEPTHS.values(), ids=DEPTHS)
def test_a_pruned_model_is_saved(fields, tmp_path):
    model = make_model(**fields, num_hidden_layers=4)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    runs_and_is_saved(model, tmp_path)


@pytest.mark.parametrize("fields", MIXED.values(), ids=MIXED)
def test_the_depth_of_unlike_layers_is_set_by_hand(fields, tmp_path):
    config = make_config(**fields, num_hidden_layers=4)
    config.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=THREE_LISTS):
        GPTConfig.from_pretrained(tmp_path, num_hidden_layers=2)
    config.num_hidden_layers = 2
    with pytest.raises(ValueError, match=THREE_LISTS):
        GPTForCausalLM(config)
    model = make_model(**fields, num_hidden_layers=4)
    model.model.layers = model.model.layers[:2]
    model.config.num_hidden_layers = 2
    with pytest.raises(ValueError, match=THREE_LISTS):
        model.save_pretrained(tmp_path)
    for name in ("attention_patterns", "mlp_layer_types"):  # layer_types follows the first
        setattr(model.config, name, getattr(model.config, name)[:2])
    runs_and_is_saved(model, tmp_path)


@pytest.mark.parametrize("fields", [*DEPTHS.values(), *MIXED.values()], ids=[*DEPTHS, *MIXED])
def test_a_depth_that_is_restored(fields):
    """Tools lower it to run the first layers, as transformers' models to draft, and restore it."""
    config = make_config(**fields, num_hidden_layers=4)
    before = copy.deepcopy(fields_of(config))
    for layers in (1, 0, None, "4"):
        config.num_hidden_layers = layers
        config.num_hidden_layers = 4
        assert fields_of(config) == before
    model, ids = make_model(**fields, num_hidden_layers=4), random_ids(1, 6)
    with torch.no_grad():
        expected = model(ids).logits
        model.config.num_hidden_layers = 1
        assert not torch.equal(model(ids).logits, expected)
        model.config.num_hidden_layers = 4
        assert torch.equal(model(ids).logits, expected)
    assert fields_of(model.config) == before


@pytest.mark.parametrize("fields", DEPTHS.values(), ids=DEPTHS)
def test_replicated_layers_of_peft(fields):
    """Layers 0, 1, 1, 2: the logits are those of a model with these layers, and of its cache."""
    peft = pytest.importorskip("peft")
    fields = {name: value[:3] if isinstance(value, list) else value for name, value in fields.items()}
    model = make_model(**fields, num_hidden_layers=3)
    longer = make_model(**{k: v[:1] * 4 if isinstance(v, list) else v for k, v in fields.items()}, num_hidden_layers=4)
    weights = model.state_dict()
    longer.load_state_dict(
        {
            name: weights[name.replace(f"layers.{layer}.", f"layers.{(0, 1, 1, 2)[layer]}.")]
            for name in longer.state_dict()
            for layer in [int(name.split(".")[2]) if ".layers." in name else 0]
        }
    )
    target = ["q_proj", "v_proj"]
    adapted = peft.get_peft_model(model, peft.LoraConfig(layer_replication=[[0, 2], [1, 3]], target_modules=target))
    ids = random_ids(2, 6)
    with torch.no_grad():
        assert torch.allclose(adapted.eval()(ids).logits, longer(ids).logits, atol=1e-5)
    assert torch.equal(adapted.generate(input_ids=ids, **GREEDY), longer.generate(ids, **GREEDY))


@pytest.mark.parametrize("fields", MIXED.values(), ids=MIXED)
def test_replicated_layers_that_are_unlike_raise(fields):
    """Until the lists are set too. The patterns of missing entries are needed at once, the kinds when it is saved."""
    peft = pytest.importorskip("peft")
    model = make_model(**fields, num_hidden_layers=4)
    peft.get_peft_model(model, peft.LoraConfig(layer_replication=[[0, 4], [0, 2]], target_modules=["q_proj"]))
    needed = model if "attention_patterns" in fields else lambda _: model.config.validate()
    with pytest.raises(ValueError, match=THREE_LISTS):
        needed(random_ids(2, 6))
    for name in ("attention_patterns", "mlp_layer_types"):
        setattr(model.config, name, (getattr(model.config, name) * 2)[:6])
    model.config.validate()
    assert torch.isfinite(model(random_ids(2, 6)).logits).all()


def test_an_override_is_explicit(tmp_path):
    """Also in the configuration that is saved next."""
    make_config().save_pretrained(tmp_path)
    GPTConfig.from_pretrained(tmp_path, intermediate_size=128).save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path, hidden_size=64).intermediate_size == 128


EARLIER = [
    (
        {"attention_patterns": ["banded", "strided"], "sliding_window": 4, "attention_stride": 3},
        {"residual_dropout": 0.1},
    ),
    ({"layer_types": ["sliding_attention", "full_attention"], "sliding_window": 4}, {"hidden_size": 64}),
    ({"intermediate_size": 50, "head_dim": 16}, {"hidden_size": 64}),
    ({"num_key_value_heads": 2}, {"num_attention_heads": 8}),
    ({}, {"num_attention_heads": 8, "num_hidden_layers": 5}),
    ({"norm_type": "rms_norm", "final_norm": False}, {"norm_type": "layer_norm"}),
    ({"num_local_experts": 4, "mlp_layer_types": ["dense", "sparse"]}, {"intermediate_size": 50}),
    ({"rope_theta": 5e5}, {"head_dim": 16}),
]


@pytest.mark.parametrize(("fields", "overrides"), EARLIER, ids=str)
def test_a_file_of_an_earlier_version_without_derived_fields(fields, overrides, tmp_path):
    """What has its derived value is derived again, by overrides and by assignments."""
    config = make_config(**fields)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["derived_fields"]
    path.write_text(json.dumps(stored))
    assigned = GPTConfig.from_pretrained(tmp_path)
    assigned.update(overrides)
    for found, expected in [
        (GPTConfig.from_pretrained(tmp_path), config),
        (GPTConfig.from_pretrained(tmp_path, **overrides), make_config(**fields | overrides)),
        (assigned, make_config(**fields | overrides)),
    ]:
        assert fields_of(found) | {"derived_fields": None} == fields_of(expected) | {"derived_fields": None}


def test_an_override_of_none_is_derived(tmp_path):
    make_config(intermediate_size=50).save_pretrained(tmp_path)
    config = GPTConfig.from_pretrained(tmp_path, intermediate_size=None)
    assert config.intermediate_size == 128
    assert "intermediate_size" in config.derived_fields


def edit(folder, **fields):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | fields))


@pytest.mark.parametrize(
    "fields",
    [
        {"intermediate_size": 50},
        {"head_dim": 16},
        {"num_attention_heads": 5, "num_key_value_heads": 5},  # 5 does not divide 32, but the file has head_dim
        {"hidden_size": 36, "num_attention_heads": 5, "num_key_value_heads": 5},
        {"final_norm": False},
    ],
    ids=str,
)
def test_a_value_that_is_edited_in_the_file_is_explicit(fields, tmp_path):
    """So are the others that would be derived otherwise."""
    make_config().save_pretrained(tmp_path)
    before = json.loads((tmp_path / "config.json").read_text())
    edit(tmp_path, **fields)
    loaded = GPTConfig.from_pretrained(tmp_path)
    derivable = set(DERIVATIONS) & set(before)
    assert {name: getattr(loaded, name) for name in derivable | set(fields)} == {
        name: (before | fields)[name] for name in derivable | set(fields)
    }
    changed = {name for name in fields if DERIVATIONS.get(name, lambda _: None)(loaded) != fields[name]}
    assert not set(loaded.derived_fields) & changed
    assert GPTConfig.from_pretrained(tmp_path, num_hidden_layers=1).head_dim == loaded.head_dim


@pytest.mark.parametrize(
    ("fields", "overrides"),
    [
        ({"mlp_type": "gated"}, {"mlp_type": "glu"}),
        ({"eos_token_id": 120}, {"vocab_size": 200}),
        ({"num_attention_heads": 2, "num_key_value_heads": 4}, {"num_key_value_heads": 2}),
        ({"num_hidden_layers": 3}, {"attention_patterns": ["dense"] * 3, "mlp_layer_types": ["dense"] * 3}),
    ],
    ids=str,
)
def test_an_override_replaces_what_is_wrong_in_the_file(fields, overrides, tmp_path):
    make_config().save_pretrained(tmp_path)
    edit(tmp_path, **fields)
    with pytest.raises(ValueError, match=next(iter(fields)) if len(fields) == 1 else "num_key_value_heads=4"):
        GPTConfig.from_pretrained(tmp_path)
    config = GPTConfig.from_pretrained(tmp_path, **overrides)
    assert {name: getattr(config, name) for name in overrides} == overrides


PATTERNS = {"attention_patterns": ["strided", "banded"], "attention_stride": 3, "sliding_window": 4}
TYPES = {"layer_types": ["full_attention", "sliding_attention"], "sliding_window": 4}


@pytest.mark.parametrize(
    ("stored", "overrides", "patterns"),
    [
        (TYPES, {"attention_patterns": ["banded", "dense"]}, ["banded", "dense"]),
        (PATTERNS, {"attention_patterns": ["banded", "strided"]}, ["banded", "strided"]),
        (PATTERNS, {"layer_types": ["sliding_attention"] * 2, "attention_stride": None}, ["banded"] * 2),
        (TYPES, {"layer_types": ["full_attention"] * 2, "sliding_window": None}, ["dense"] * 2),
        ({}, {"layer_types": ["sliding_attention"] * 2, "sliding_window": 4}, ["banded"] * 2),
        ({}, PATTERNS | TYPES | {"attention_patterns": ["strided", "banded"]}, ["strided", "banded"]),
    ],
)
def test_patterns_and_layer_types_replace_each_other(stored, overrides, patterns, tmp_path):
    make_config(**stored).save_pretrained(tmp_path)
    config = GPTConfig.from_pretrained(tmp_path, **overrides)
    assert config.attention_patterns == patterns
    assert config.layer_types == [LAYER_TYPES[pattern] for pattern in patterns]


COPIES = {
    "deepcopy": copy.deepcopy,
    "copy": copy.copy,
    "pickle": lambda config: pickle.loads(pickle.dumps(config)),
}


@pytest.mark.parametrize("duplicate", COPIES.values(), ids=COPIES)
@pytest.mark.parametrize("variant", ["default", "learned", "mixtral", "fixed"])
def test_a_copy_is_equal(variant, duplicate):
    config = make_config(variant, bos_token_id=1)
    twin = duplicate(config)
    assert twin == config
    assert twin.to_dict() == config.to_dict()
    assert vars(twin).keys() == vars(config).keys()
    assert twin != make_config(variant, bos_token_id=2)


def test_dictionaries_make_the_same_configuration(variant):
    config = make_config(variant, bos_token_id=1)
    for made in (GPTConfig.from_dict(config.to_dict()), GPTConfig(**config.to_dict()), config.replace()):
        assert made.to_dict() == config.to_dict()
        assert made == config
        for name in PRESENT_IF:
            assert hasattr(made, name) == hasattr(config, name)


@pytest.mark.parametrize("name", PATTERN_FIELDS)
def test_a_size_without_its_pattern_is_dropped_when_set_later(name):
    config = make_config()
    setattr(config, name, 8)
    GPTForCausalLM(config)
    assert getattr(config, name) is None


@pytest.mark.parametrize("content", ['{"model_type": "gpt2", "n_embd": 8}', "{}"], ids=["gpt2", "nothing"])
def test_another_model_type_raises(tmp_path, content):
    (tmp_path / "config.json").write_text(content)
    for load in (GPTConfig.from_pretrained, GPTForCausalLM.from_pretrained):
        with pytest.raises(ValueError, match=r"model_type=.*expected 'hf_gpt'"):
            load(tmp_path)


@pytest.mark.parametrize(
    ("content", "error", "message"),
    [
        ("[]", ValueError, "expected a JSON object, got list"),
        ("5", ValueError, "expected a JSON object, got int"),
        ("[" * 100_000, ValueError, "is not valid JSON: it is nested too deeply"),
        ('{"hidden_size": %s}' % ("9" * 5000), ValueError, "is not valid JSON: .*5000 digits"),
        ('{"hidden_size": ', OSError, "is not a valid JSON file"),
    ],
    ids=["list", "number", "deep", "digits", "truncated"],
)
def test_a_file_that_is_no_json_object_raises(content, error, message, tmp_path):
    (tmp_path / "config.json").write_text(content)
    for load in (GPTConfig.from_pretrained, GPTForCausalLM.from_pretrained):
        with pytest.raises(error, match=rf"config.json.*{message}"):
            load(tmp_path)


def test_variants_differ():
    assert len({make_config(name).to_json_string() for name in VARIANTS}) == len(VARIANTS)


@pytest.mark.parametrize("name", ["num_experts_per_tok", "output_router_logits"])
def test_a_field_without_a_meaning_is_deleted(name):
    config = make_config()
    setattr(config, name, 1 if name == "num_experts_per_tok" else True)
    config.validate()
    assert not hasattr(config, name)


def test_replace_derives_again():
    config = make_config(intermediate_size=50)
    replaced = config.replace(hidden_size=64)
    assert (replaced.head_dim, replaced.intermediate_size) == (16, 50)
    assert config.replace().derived_fields == config.derived_fields
    with pytest.raises(ValueError, match="num_attention_heads=5 does not divide hidden_size=32"):
        config.replace(num_attention_heads=5)


def test_a_field_that_earlier_versions_did_not_save(tmp_path):
    """A file without it, with the version of transformers that wrote it, is from an earlier version. A configuration
    that is written by hand derives it."""
    by_hand = {"model_type": "hf_gpt", "hidden_size": 64, "num_attention_heads": 4} | SINUSOIDAL
    assert GPTConfig.from_dict(by_hand).embedding_scale == GPTConfig(**by_hand).embedding_scale == 8
    for version, scale in ((None, 8), ("5.23.0", 1)):
        stored = by_hand | ({"transformers_version": version} if version else {})
        (tmp_path / "config.json").write_text(json.dumps(stored))
        for overrides in ({}, {"attention_dropout": 0.1}):
            config = GPTConfig.from_pretrained(tmp_path, **overrides)
            assert config.embedding_scale == scale
            assert ("embedding_scale" in config.derived_fields) == (version is None)
            assert config.replace(use_cache=False).embedding_scale == scale
        assert GPTConfig.from_pretrained(tmp_path, embedding_scale=None).embedding_scale == 8
        assert GPTConfig.from_pretrained(tmp_path, embedding_scale=3.0).embedding_scale == 3


def test_unknown_names_of_derived_fields_are_ignored(tmp_path):
    make_config().save_pretrained(tmp_path)
    edit(tmp_path, derived_fields=["head_dim", "no such field"])
    assert GPTConfig.from_pretrained(tmp_path, hidden_size=64).head_dim == 16
