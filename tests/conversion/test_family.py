"""What each side can express: fields in several forms, features that the other side lacks, changed models."""

import re
from dataclasses import fields as declared_fields

import pytest
import torch
from native import (
    assert_close,
    assert_convert_raises,
    save_native,
    update_config,
)
from native_families import NATIVE, ROPE
from tiny import VARIANTS, make_config, make_model, random_ids
from transformers import AutoModelForCausalLM, GPT2LMHeadModel

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.conversion import FAMILIES, convert, export
from hf_gpt.surgery import set_attention_patterns


@pytest.mark.parametrize(
    ("family", "beside", "fields"),
    [
        ("llama", {"partial_rotary_factor": 0.5}, {"head_dim": 8, "rope_parameters": ROPE[0]}),
        ("llama", {"original_max_position_embeddings": 12}, {"head_dim": 8, "rope_parameters": ROPE[4]}),
        ("mixtral", {}, {"head_dim": 8, "rope_parameters": ROPE[0] | {"partial_rotary_factor": 0.5}}),
        ("gpt_oss", {}, {"head_dim": 8, "rope_parameters": ROPE[0] | {"partial_rotary_factor": 0.5}}),
        ("gpt_neo", {"attention_layers": ["global"] * 2}, {"attention_types": [[["local"], 2]], "num_layers": 2}),
        ("llama", {"pad_token_id": -1}, {}),
    ],
)
def test_native_fields_in_two_forms_or_without_effect(family, beside, fields, tmp_path):
    """The native class determines the meaning."""
    save_native(tmp_path / "native", family, **fields)
    update_config(tmp_path / "native", beside)
    native = AutoModelForCausalLM.from_pretrained(tmp_path / "native", experts_implementation="eager")
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    ids = random_ids(2, 30, high=native.config.vocab_size)
    assert_close(ours(ids).logits, native(ids).logits)
    export(tmp_path / "ours", tmp_path / "back", family)
    back = AutoModelForCausalLM.from_pretrained(tmp_path / "back", experts_implementation="eager")
    assert torch.equal(back(ids).logits, native(ids).logits)


@pytest.mark.parametrize(
    ("family", "fields", "message"),
    [
        ("gpt2", {"add_cross_attention": True}, "add_cross_attention=True"),
        ("gpt2", {"reorder_and_upcast_attn": True}, "reorder_and_upcast_attn=True"),
        ("gpt2", {"activation_function": "xielu"}, "activation_function='xielu': expected one of"),
        ("gpt_neox", {"hidden_act": "prelu"}, "hidden_act='prelu': expected one of"),
        ("gpt_neo", {"window_size": 1}, "window_size=1: expected an integer from 2 to"),
        ("gptj", {"rotary_dim": 64}, "rotary_dim=64: expected 2 to"),
        ("llama", {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "base": 7}}, "'base' is unknown"),
        ("openai-gpt", {"afn": "mish"}, "afn='mish': expected one of gelu, relu"),
    ],
)
def test_native_features_that_hf_gpt_lacks(family, fields, message, tmp_path):
    save_native(tmp_path / "native", family)
    update_config(tmp_path / "native", fields)
    assert_convert_raises(tmp_path / "native", message)


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("n_head", 7, "n_head=7 does not divide hidden_size=24|num_attention_heads=7"),
        ("n_head", 0, "n_head=0: expected an integer from 1 to"),
        ("layer_norm_epsilon", 0.0, "layer_norm_epsilon=0.*: expected a positive number"),
    ],
)
def test_errors_have_native_names(native, field, value, message):
    update_config(native, {field: value})
    assert_convert_raises(native, message)


@pytest.mark.parametrize(
    ("variant", "family", "message"),
    [
        ("learned", "gpt_neox", "position_embedding_type='learned'"),
        ("learned", "llama", "position_embedding_type='learned'"),
        ("default", "gpt2", "position_embedding_type='rope'"),
        ("post_norm", "llama", "norm_type='layer_norm'|norm_position='post'"),
        ("grouped", "gpt_neox", "num_key_value_heads=2 cannot be expressed by gpt_neox, which has 4"),
        ("llama", "llama", "qk_norm=True"),
        ("banded", "gpt_neox", "attention_patterns="),
        ("mixtral", "llama", "mlp_layer_types="),
        ("mixtral", "mixtral", "mlp_layer_types=|moe_intermediate_size"),
        ("gpt_oss", "mixtral", "attention_bias=True"),
        ("partial_rotary", "llama", "rope_parameters=.*partial_rotary_factor"),
        ("bare", "opt", "attention_bias=False|attention_output_bias=True"),
    ],
)
def test_features_that_a_family_lacks(variant, family, message, tmp_path):
    make_model(variant).save_pretrained(tmp_path / "ours")
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "ours", tmp_path / "native", family)
    assert not list(tmp_path.glob("native*"))


def test_a_scale_of_the_embeddings_is_not_dropped():
    config = make_config("llama", qk_norm=False)
    FAMILIES["llama"].to_native(config)
    with pytest.raises(ValueError, match=r"embedding_scale=2\.0 cannot be expressed by llama, which has 1\.0"):
        FAMILIES["llama"].to_native(config.replace(embedding_scale=2.0))


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_export_is_exact_or_names_a_field(family, variant):
    config = make_config(variant)
    native_names = [*FAMILIES[family].fields, "rotary_dim"]
    names = "|".join([*(field.name for field in declared_fields(GPTConfig)), *map(re.escape, native_names)])
    try:
        FAMILIES[family].to_native(config)
    except ValueError as error:
        assert re.match(f"({names})\\b", str(error))
        assert f"cannot be expressed by {family}" in str(error) or f"(a {family} configuration)" in str(error)


@pytest.mark.parametrize("family", NATIVE)
def test_no_family_has_strided_layers(family, tmp_path):
    save_native(tmp_path / "native", family)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    set_attention_patterns(ours, "strided", attention_stride=4).save_pretrained(tmp_path / "strided")
    with pytest.raises(ValueError, match=r"attention_patterns=\['strided'.* cannot be expressed"):
        export(tmp_path / "strided", tmp_path / "back", family)


def test_new_patterns_are_exported_to_a_family_that_has_them(tmp_path):
    save_native(tmp_path / "native", "gpt_neo", attention_types=[[["global"], 2]], num_layers=2)
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    local = set_attention_patterns(ours, {1: "banded"}, sliding_window=4)
    local.save_pretrained(tmp_path / "local")
    native = AutoModelForCausalLM.from_pretrained(export(tmp_path / "local", tmp_path / "back", "gpt_neo"))
    assert native.config.attention_layers == ["global", "local"]
    ids = random_ids(2, 20, high=native.config.vocab_size)
    assert_close(local(ids).logits, native(ids).logits)


def is_expressed(variant: str, family: str) -> bool:
    try:
        FAMILIES[family].to_native(make_config(variant))
    except ValueError:
        return False
    return True


@pytest.mark.parametrize(
    ("variant", "family"),
    [(variant, family) for variant in VARIANTS for family in FAMILIES if is_expressed(variant, family)],
)
def test_export_of_a_model_that_was_not_converted(variant, family, tmp_path):
    """What its configuration leaves out is not a default of the native class."""
    ours = make_model(variant)
    ours.save_pretrained(tmp_path / "ours")
    native = FAMILIES[family].storage.load(export(tmp_path / "ours", tmp_path / "native", family))
    ids = random_ids(2, 20)
    assert_close(native.eval()(ids).logits, ours(ids).logits)


def test_entries_that_name_code_are_neither_kept_nor_exported():
    family, code = FAMILIES["gpt2"], {"auto_map": {"AutoModel": "theirs.Model"}}
    native = family.to_native(make_config("learned"))
    extras = code | {"note": [code], "kept": 1}
    config = family.from_native(native, extras)
    assert config.native_fields == {"model_type": "gpt2", "note": [{}], "kept": 1}
    config.native_fields = {"model_type": "gpt2", **extras}
    assert family.to_native(config) == native | {"note": [{}], "kept": 1}


def test_export_of_a_changed_model(native, tmp_path):
    """`native_fields` do not override a change."""
    ours = GPTForCausalLM.from_pretrained(convert(native, tmp_path / "ours"))
    ours.resize_token_embeddings(ours.config.vocab_size + 3)
    ours.config.residual_dropout = 0.4
    ours.save_pretrained(tmp_path / "changed")
    export(tmp_path / "changed", tmp_path / "back", "gpt2")
    back = GPT2LMHeadModel.from_pretrained(tmp_path / "back")
    ids = random_ids(1, 9, high=ours.config.vocab_size - 3)
    assert_close(back(ids).logits, ours(ids).logits)
    assert back.config.resid_pdrop == 0.4
