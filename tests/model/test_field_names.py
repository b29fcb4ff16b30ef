"""Names of other classes: each is a field, translated, or refused with the right name; none is stored unused."""

import dataclasses
import json
import logging

import numpy as np
import pytest
import transformers
from tiny import TINY, make_config
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedConfig

from hf_gpt import GPTConfig, GPTForCausalLM, preset_config
from hf_gpt.cli.options import parse_fields
from hf_gpt.conversion import gpt2, openai_gpt, opt
from hf_gpt.conversion.families import FAMILIES
from hf_gpt.model.configuration_gpt import own_fields
from hf_gpt.model.field_names import CONVERTED, FIELD_OF, LACKING, OTHER_NAMES, REFUSED, ROPE_ENTRIES, UNREADABLE

OURS = own_fields(GPTConfig)

# The names that the constructors take; those of classes that are not installed are written out.
NANOGPT = "block_size vocab_size n_layer n_head n_embd dropout bias"
MINGPT = "model_type n_layer n_head n_embd vocab_size block_size embd_pdrop resid_pdrop attn_pdrop"
LITGPT = """
    hf_config block_size n_layer n_embd vocab_size padding_multiple padded_vocab_size norm_class_name norm_eps norm_qk
    norm_qk_type post_attention_norm post_mlp_norm parallel_residual shared_attention_norm n_head head_size
    n_query_groups attn_bias attention_scores_scalar sliding_window_size sliding_window_indices
    attention_logit_softcapping rope_base rotary_percentage rope_condense_ratio rope_adjustments intermediate_size
    moe_intermediate_size bias mlp_class_name gelu_approximate n_expert n_expert_per_token scale_embeddings lm_head_bias
    final_logit_softcapping norm_1 norm_2 latent_attention rope_local_base_freq rope_indices
"""
NATIVE = {
    name: {field.name for field in dataclasses.fields(getattr(transformers, f"{name}Config"))}
    for name in ("OpenAIGPT", "GPT2", "GPTNeo", "GPTJ", "GPTNeoX", "OPT", "Llama", "Mixtral", "GptOss")
} | {"nanoGPT": {*NANOGPT.split()}, "minGPT": {*MINGPT.split()}, "litgpt": {*LITGPT.split()}}
# Names by which earlier versions of these classes, and other libraries, are known.
LEGACY = """
    rope_theta rope_scaling partial_rotary_factor rotary_pct rotary_emb_base attention_layers n_ctx n_layers n_heads
    d_model num_kv_heads n_kv_heads n_head_kv hidden_dropout use_bias qkv_bias use_qk_norm num_experts n_routed_experts
    n_shared_experts n_shared_expert moe_num_experts num_experts_per_token scoring_func embed_size heads
    forward_expansion
"""
NAMES = sorted(set(LEGACY.split()).union(*NATIVE.values()))

# Names without effect that transformers sets on any configuration.
EVERY_CLASS = {field.name for field in dataclasses.fields(PreTrainedConfig)} | {"is_decoder"}

# A value of each translated name that is not the default of its field, and the other fields that it needs.
EXPERTS = {"num_local_experts": 4}
VALUES = {
    **dict.fromkeys([name for name, field in FIELD_OF.items() if field.endswith("_dropout")], 0.25),
    **dict.fromkeys([name for name, field in FIELD_OF.items() if field in ("norm_eps", "initializer_range")], 0.5),
    **dict.fromkeys(["norm_qk", "use_qk_norm", "use_parallel_residual", "shared_attention_norm"], True),
    **dict.fromkeys([name for name, field in FIELD_OF.items() if field == "hidden_act"], "relu"),
    **dict.fromkeys([name for name, entry in ROPE_ENTRIES.items() if entry == "rope_theta"], 5e5),
    **dict.fromkeys([name for name, entry in ROPE_ENTRIES.items() if entry == "partial_rotary_factor"], 0.5),
    "rope_scaling": {"type": "linear", "factor": 2.0},
    "scoring_func": "sigmoid",
    **dict.fromkeys([name for name, field in FIELD_OF.items() if field == "hidden_size"], 48),
    "afn": "relu",
    "scale_attn_weights": False,
    "do_layer_norm_before": False,
    "_remove_final_layer_norm": True,
    "layer_norm_elementwise_affine": False,
    "norm_class_name": "RMSNorm",
    "attention_scores_scalar": 16,
    "n_expert_per_token": 1,
    "num_experts_per_token": 1,
    "n_kv_heads": 6,
    "model_type": "gpt-mini",
}
NEEDED = {
    "shared_norm": {"parallel_residual": True},
    "num_experts_per_tok": EXPERTS,
    "num_shared_experts": EXPERTS,
}


def value_of(name):
    return VALUES.get(name, 6)


def needed_by(name):
    fields = CONVERTED[name](1) if name in CONVERTED else [FIELD_OF.get(name)]
    return NEEDED.get(next(iter(fields)), {})


@pytest.mark.parametrize("name", NAMES)
def test_no_native_name_is_stored_without_effect(name):
    if name in OURS | EVERY_CLASS:
        return
    needed = needed_by(name)
    if FIELD_OF.get(name) == "sliding_window":
        patterns = ["banded"] * 12
        assert GPTConfig(attention_patterns=patterns, **{name: 6}).sliding_window == 6
        return
    try:
        config = GPTConfig(**needed, **{name: value_of(name)})
    except ValueError as error:
        assert str(error).startswith(f"{name}=")
        return
    assert name in OTHER_NAMES
    assert name not in vars(config)
    assert config != GPTConfig(**needed)


@pytest.mark.parametrize("name", NAMES)
def test_a_native_name_is_refused_with_names_of_fields(name):
    if name not in REFUSED:
        return
    with pytest.raises(ValueError, match=f"{name}=6 is not a field of GPTConfig: ") as error:
        GPTConfig(**{name: 6})
    words = {word.strip(",") for word in str(error.value).split(": ", 1)[1].split()}
    assert words & OURS or name == "hf_config"


def test_every_name_belongs_to_one_table():
    tables = (set(FIELD_OF), set(CONVERTED), {*ROPE_ENTRIES, "rope_scaling"}, set(REFUSED), set(LACKING))
    assert sum(map(len, tables)) == len(OTHER_NAMES)
    assert set(FIELD_OF.values()) <= OURS
    assert not OTHER_NAMES & (OURS | EVERY_CLASS)
    assert set(NAMES) >= OTHER_NAMES


def test_features_that_are_lacking():
    config = make_config(pretraining_tp=1, add_cross_attention=False, norm_1=True)
    assert config.pretraining_tp == 1  # scripts set it on every Llama
    config.pretraining_tp = 1
    for name, value in LACKING.items():
        make_config(**{name: value})
        with pytest.raises(ValueError, match=f"{name}=7: this model has no such feature, expected {value!r}"):
            make_config(**{name: 7})


@pytest.mark.parametrize("family", FAMILIES.values(), ids=FAMILIES)
def test_the_tables_of_conversion_agree(family):
    for native, ours in family.fields.items():
        if native in REFUSED:
            assert ours in REFUSED[native]
        else:
            assert FIELD_OF.get(native, native) == ours


def test_the_values_that_conversion_reads_agree():
    for name, ours in openai_gpt.ACTIVATIONS.items():
        assert GPTConfig(afn=name).hidden_act == ours
    for scaled in (True, False):
        read = gpt2.read({"scale_attn_weights": scaled})
        assert GPTConfig(scale_attn_weights=scaled).attention_scale == read["attention_scale"]
    for before in (True, False):
        for removed in (True, False):
            for affine in (True, False):
                native = {
                    "do_layer_norm_before": before,
                    "_remove_final_layer_norm": removed,
                    "layer_norm_elementwise_affine": affine,
                }
                read, config = opt.read(native | {"enable_bias": True}), GPTConfig(**native)
                assert {name: getattr(config, name) for name in read} == read


# Keyword arguments under other names, and under ours, for a configuration of the sizes of TINY.
SAME = [
    (
        {"n_layer": 3, "n_head": 2, "n_embd": 16, "n_positions": 10, "n_inner": 24, "activation_function": "relu"},
        {
            "num_hidden_layers": 3,
            "num_attention_heads": 2,
            "hidden_size": 16,
            "max_position_embeddings": 10,
            "intermediate_size": 24,
            "hidden_act": "relu",
        },
    ),
    ({"n_inner": None}, {"intermediate_size": None}),
    ({"embd_pdrop": 0.1, "resid_pdrop": 0.2}, {"embedding_dropout": 0.1, "residual_dropout": 0.2}),
    ({"num_layers": 3, "block_size": 20}, {"num_hidden_layers": 3, "max_position_embeddings": 20}),
    ({"word_embed_proj_dim": 24, "ffn_dim": 50}, {"embedding_size": 24, "intermediate_size": 50}),
    ({"do_layer_norm_before": False}, {"norm_position": "post"}),
    ({"use_parallel_residual": True, "layer_norm_eps": 1e-3}, {"parallel_residual": True, "norm_eps": 1e-3}),
    ({"num_experts": 4, "num_experts_per_token": 1}, {"num_local_experts": 4, "num_experts_per_tok": 1}),
    ({"num_kv_heads": 2}, {"num_key_value_heads": 2}),
    ({"rope_theta": 5e5}, {"rope_parameters": {"rope_theta": 5e5}}),
    ({"rotary_pct": 0.5}, {"rope_parameters": {"partial_rotary_factor": 0.5}}),
    (
        {"rope_scaling": {"type": "linear", "factor": 2.0}, "rotary_emb_base": 5e5},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
    ),
    ({"vocab_size": np.int64(120), "n_embd": np.int32(16)}, {"vocab_size": 120, "hidden_size": 16}),
    ({"attn_pdrop": np.float32(0.25)}, {"attention_dropout": 0.25}),
]


def fields_of(config):
    """Everything that is saved but the source."""
    return {name: value for name, value in config.to_diff_dict().items() if name not in ("_name_or_path", "auto_map")}


@pytest.mark.parametrize(("others", "ours"), SAME, ids=lambda each: str(each)[:50])
def test_other_names_make_the_same_configuration(others, ours, tmp_path):
    expected = GPTConfig(**TINY | ours)
    rest = {name: TINY[name] for name in TINY if name not in ours}
    assert fields_of(GPTConfig(**rest, **others)) == fields_of(expected)
    assert fields_of(GPTConfig.from_dict(rest | others)) == fields_of(expected)
    overrides = {name: value.item() if isinstance(value, np.generic) else value for name, value in others.items()}
    assert parse_fields([f"{name}={json.dumps(value)}" for name, value in overrides.items()]) == overrides

    GPTConfig(**TINY).save_pretrained(tmp_path)
    for load in (GPTConfig.from_pretrained, AutoConfig.from_pretrained):
        assert fields_of(load(tmp_path, **others)) == fields_of(GPTConfig.from_pretrained(tmp_path, **ours))
    config, updated = GPTConfig(**TINY), GPTConfig(**TINY)
    for name, value in others.items():
        setattr(config, name, value)
    updated.update(others)
    assert fields_of(config) == fields_of(updated) == fields_of(expected)


@pytest.mark.parametrize(
    ("others", "ours"),
    [
        ({"n_layer": 3, "n_embd": 64}, {"num_hidden_layers": 3, "hidden_size": 64}),
        ({"rope_theta": 10.0}, {"rope_parameters": {"rope_theta": 10.0, "partial_rotary_factor": 0.25}}),
        ({"rotary_pct": 1.0}, {"rope_parameters": {"partial_rotary_factor": 1.0}}),
    ],
)
def test_presets_accept_other_names(others, ours):
    assert preset_config("pythia-14m", **others) == preset_config("pythia-14m", **ours)


def test_a_model_is_loaded_with_other_names(tmp_path):
    GPTForCausalLM(make_config("llama")).save_pretrained(tmp_path)
    for model_class in (GPTForCausalLM, AutoModelForCausalLM):
        model = model_class.from_pretrained(tmp_path, attn_pdrop=0.1, rope_theta=5e5)
        assert model.config.attention_dropout == 0.1
        assert model.config.rope_parameters == {"rope_type": "default", "rope_theta": 5e5}
        assert model.model.rotary_emb.inv_freq[1] == pytest.approx(5e5 ** (-2 / 8))
        with pytest.raises(ValueError, match=r"dropout=0\.1 is not a field of GPTConfig: set residual_dropout"):
            model_class.from_pretrained(tmp_path, dropout=0.1)


def test_assignments_by_string(tmp_path):
    """As `run_clm.py --config_overrides`, with the example of its documentation."""
    config = make_config()
    config.update_from_string("n_embd=24,n_head=3,resid_pdrop=0.2,activation_function=relu")
    assert config == make_config(hidden_size=24, num_attention_heads=3, residual_dropout=0.2, hidden_act="relu")


def test_rope_overrides_keep_the_other_parameters(tmp_path):
    stored = {"rope_type": "yarn", "rope_theta": 5e5, "factor": 4.0, "partial_rotary_factor": 0.5, "beta_fast": 16.0}
    config = make_config(rope_parameters=stored | {"original_max_position_embeddings": 16})
    config.save_pretrained(tmp_path)
    kept = {"rope_theta": 5e5, "partial_rotary_factor": 0.5}
    for overrides, expected in [
        ({"rope_theta": 1e6}, config.rope_parameters | {"rope_theta": 1e6}),
        ({"rotary_pct": 0.25}, config.rope_parameters | {"partial_rotary_factor": 0.25}),
        ({"rope_scaling": {"type": "linear", "factor": 2.0}}, kept | {"rope_type": "linear", "factor": 2.0}),
        ({"rope_scaling": None}, kept | {"rope_type": "default"}),
        ({"rope_parameters": {"rope_theta": 1e3}}, {"rope_type": "default", "rope_theta": 1e3}),
        ({"rope_theta": None}, config.rope_parameters | {"rope_theta": 1e4}),
    ]:
        assert GPTConfig.from_pretrained(tmp_path, **overrides).rope_parameters == expected
        changed = GPTConfig.from_pretrained(tmp_path)
        for name, value in overrides.items():
            setattr(changed, name, value)
        assert changed.rope_parameters == expected
        GPTForCausalLM(changed)


def test_the_dict_of_the_caller_is_not_changed():
    rope = {"type": "linear", "factor": 2.0}
    make_config(rope_scaling=rope, rope_theta=5e5)
    make_config(rope_parameters=rope)
    assert rope == {"type": "linear", "factor": 2.0}


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"n_layer": 2, "num_hidden_layers": 3}, "num_hidden_layers=3 contradicts n_layer=2: give one of the two"),
        ({"num_hidden_layers": 12, "n_layer": 2}, "n_layer=2 contradicts num_hidden_layers=12"),  # the default
        ({"n_layer": 2, "num_layers": 3}, "num_layers=3 contradicts n_layer=2"),
        ({"n_inner": None, "intermediate_size": 5}, "intermediate_size=5 contradicts n_inner=None"),
        ({"do_layer_norm_before": True, "norm_position": "post"}, "norm_position='post' contradicts"),
        ({"rope_theta": 1e4, "rotary_emb_base": 1e5}, "rotary_emb_base=100000.0 contradicts rope_theta=10000.0"),
        ({"rope_theta": 5e5, "rope_parameters": {"rope_theta": 1e4}}, r"contradicts rope_parameters\['rope_theta'\]"),
        (
            {"rope_scaling": {"type": "linear", "rope_type": "yarn", "factor": 2.0}},
            r"rope_scaling\['rope_type'\]='yarn' contradicts rope_scaling\['type'\]='linear'",
        ),
        ({"rope_scaling": "linear"}, "rope_scaling='linear': expected a flat dict or None"),
        ({"rotary_dim": 4}, "rotary_dim=4 is not a field of GPTConfig: set rope_parameters with partial_rotary_factor"),
        ({"dropout": 0.1}, "dropout=0.1 is not a field of GPTConfig: set residual_dropout, embedding_dropout and"),
        ({"position_embedding_type": "learned", "rotary_pct": 0.5}, "with position_embedding_type='learned'"),
    ],
    ids=lambda each: str(each)[:50],
)
def test_contradictions_raise(fields, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        GPTConfig(**fields)
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_dict(fields)
    make_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_pretrained(tmp_path, **fields)


def test_names_without_information_are_accepted():
    assert make_config(n_layer=2, num_layers=2) == make_config()
    assert make_config("learned", rope_theta=None, rope_scaling=None) == make_config("learned")
    assert make_config(rope_theta=None, rope_scaling=None) == make_config()


def test_a_refused_name_cannot_be_assigned():
    config = make_config()
    with pytest.raises(ValueError, match="bias=False is not a field of GPTConfig: set attention_bias"):
        config.bias = False
    with pytest.raises(ValueError, match=r"dropout=0\.5 is not"):
        config.update({"dropout": 0.5})
    assert config == make_config()


def test_attributes_of_the_user_are_kept(tmp_path):
    """transformers does, also what it stores itself."""
    others = {"architectures": ["Mine"], "num_labels": 5, "note": [1, 2], "is_decoder": True, "name": "mine"}
    config = make_config(**others)
    config.another = 3
    config.save_pretrained(tmp_path)
    loaded = GPTConfig.from_pretrained(tmp_path, note="new")
    expected = others | {"another": 3, "note": "new"}
    assert {name: getattr(loaded, name) for name in expected} == expected


SWALLOWED = {
    "n_layer": 6,
    "n_embd": 384,
    "dropout": 0.2,
    "bias": False,
    "block_size": 256,
    "rotary_pct": 0.25,
    "ffn_dim": 99,
    "summary_type": "cls_index",
    "do_layer_norm_before": False,
    "rope_theta": 77.0,
}


@pytest.mark.parametrize("variant", ["default", "learned", "gpt_oss"])
def test_names_that_an_earlier_version_saved_have_no_effect(variant, tmp_path, caplog):
    """The configuration is that of the model that was built: 12 x 768, whatever `n_layer` is stored."""
    config = make_config(variant)
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | SWALLOWED | {"n_head": None, "base_model_ep_plan": None}))
    logging.getLogger("transformers").propagate = True
    for load in (GPTConfig.from_pretrained, AutoConfig.from_pretrained):
        caplog.clear()
        assert fields_of(load(tmp_path)) == fields_of(config)
        ignored = [name for name in SWALLOWED if f"{name}={SWALLOWED[name]!r} had no effect" in caplog.text]
        assert ignored == list(SWALLOWED)
    assert fields_of(GPTConfig.from_json_file(path)) == fields_of(config)
    GPTConfig.from_pretrained(tmp_path).save_pretrained(tmp_path)
    assert not json.loads(path.read_text()).keys() & SWALLOWED.keys()
    assert GPTConfig.from_pretrained(tmp_path, n_layer=2).num_hidden_layers == 2


def test_a_file_by_hand_is_translated(tmp_path):
    fields = {"model_type": "hf_gpt", "n_layer": 3, "n_head": 2, "n_embd": 16, "rope_theta": 5e5}
    (tmp_path / "config.json").write_text(json.dumps(fields))
    config = AutoConfig.from_pretrained(tmp_path)
    expected = GPTConfig(num_hidden_layers=3, num_attention_heads=2, hidden_size=16, rope_theta=5e5)
    assert fields_of(config) == fields_of(expected)


def test_legacy_rope_keys_in_a_file(tmp_path):
    config = make_config("llama", rope_parameters={"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5})
    config.save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    stored = json.loads(path.read_text())
    del stored["rope_parameters"]
    path.write_text(json.dumps(stored | {"rope_scaling": {"type": "linear", "factor": 2.0}, "rope_theta": 5e5}))
    assert fields_of(AutoConfig.from_pretrained(tmp_path)) == fields_of(config)


def test_rope_scaling_is_added_to_a_file(tmp_path):
    """As the model cards of Qwen advise."""
    make_config("llama", rope_theta=5e5).save_pretrained(tmp_path)
    path = tmp_path / "config.json"
    scaling = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}
    path.write_text(json.dumps(json.loads(path.read_text()) | {"rope_scaling": scaling}))
    assert GPTConfig.from_pretrained(tmp_path).rope_parameters == scaling | {"rope_theta": 5e5}
    assert GPTConfig.from_pretrained(tmp_path, rope_theta=1e6).rope_parameters == scaling | {"rope_theta": 1e6}


def test_other_names_are_read(variant):
    config = make_config(variant)
    for name, field in FIELD_OF.items():
        value = getattr(config, field, None)
        assert getattr(config, name, None) == (None if name in UNREADABLE else value)
        assert hasattr(config, name) == (value is not None and name not in UNREADABLE)
        assert name not in config.to_dict()


def test_experts_are_recognized_by_the_presence_of_their_names(variant):
    """TRL counts FLOPs by `num_experts_per_tok`, and reads `num_experts`."""
    config = make_config(variant)
    has_experts = config.num_local_experts is not None
    for name in ("num_experts", "num_experts_per_tok", "output_router_logits"):
        assert hasattr(config, name) == has_experts
    config.num_local_experts, config.mlp_layer_types = None, None
    assert not hasattr(config, "num_experts")
    assert not hasattr(config, "num_experts_per_tok")
    config.num_experts = 4
    assert (config.num_local_experts, config.num_experts_per_tok, config.num_experts) == (4, 2, 4)


class Subclass(GPTConfig):
    model_type = "my_gpt"
    mine: int = 1


class SubclassWithInit(GPTConfig):
    model_type = "other_gpt"

    def __init__(self, mine=1, **kwargs):
        self.mine = mine
        super().__init__(**kwargs)


@pytest.mark.parametrize("config_class", [Subclass, SubclassWithInit])
def test_subclasses_accept_other_names(config_class, tmp_path):
    config = config_class(**TINY, mine=2, n_inner=50)
    assert (config.mine, config.intermediate_size) == (2, 50)
    with pytest.raises(ValueError, match="num_hidden_layers=12 contradicts n_layer=3"):
        config_class(n_layer=3, num_hidden_layers=12)
    config.save_pretrained(tmp_path)
    loaded = config_class.from_pretrained(tmp_path, n_embd=16)
    assert (loaded.mine, loaded.hidden_size, loaded.intermediate_size) == (2, 16, 50)
