"""The fields that every configuration of transformers has: checked by every way to set them."""

import pytest
import torch
from tiny import TINY, make_config

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.model.common_fields import RULES, check_common_fields

INVALID = [
    ({"dtype": "float33"}, "dtype='float33': expected one of float32, float64, float16, bfloat16"),
    ({"dtype": "torch.float32"}, "dtype='torch.float32': expected one of"),
    ({"dtype": "nn"}, "dtype='nn': expected one of"),
    ({"torch_dtype": ""}, "torch_dtype='': expected one of"),
    ({"dtype": torch.int8}, "dtype=torch.int8: expected one of"),
    ({"num_labels": 10**12}, "num_labels=1000000000000: expected an integer from 1 to"),
    ({"num_labels": -1}, "num_labels=-1: expected an integer from 1 to"),
    ({"id2label": {}}, "id2label={}: expected a dict with the keys 0, 1, 2 and so on"),
    ({"id2label": {"a": "b"}}, "id2label={'a': 'b'}: expected a dict with the keys 0"),
    ({"id2label": ["a"]}, r"id2label=\['a'\]: expected a dict with the keys 0"),
    ({"label2id": [1]}, r"label2id=\[1\]: expected a dict"),
    ({"problem_type": "ranking"}, "problem_type='ranking': expected one of regression, single_label_classification"),
    ({"problem_type": ["regression"]}, "problem_type=.*: expected one of regression"),
    ({"architectures": "GPT"}, "architectures='GPT': expected a list of strings"),
    ({"output_attentions": 1e39}, r"output_attentions=1e\+39: expected True or False"),
    ({"output_hidden_states": 0.5}, "output_hidden_states=0.5: expected True, False, or the indices"),
    ({"return_dict": "no"}, "return_dict='no': expected True or False"),
    ({"attn_implementation": 4.0}, "attn_implementation=4.0: expected the name of an implementation"),
    ({"experts_implementation": [1]}, r"experts_implementation=\[1\]: expected the name of an implementation"),
    ({"is_encoder_decoder": True}, "is_encoder_decoder=True: expected nothing, as this model has no such feature"),
    ({"chunk_size_feed_forward": -1}, "chunk_size_feed_forward=-1: expected an integer from 0 to 524288"),
    (
        {"per_layer_config": {"0": {"head_dim": 4}}},
        "per_layer_config=.*: expected nothing, as this model has no such feature",
    ),
    ({"per_layer_config": 0}, "per_layer_config=0: expected nothing"),
    ({"per_layer_config": 5}, "per_layer_config=5: expected nothing, as this model has no such feature"),
    ({"auto_map": 1.0}, "auto_map=1.0: expected a dict of names of classes"),
    ({"auto_map": {"AutoModel": 1e38}}, r"auto_map={'AutoModel': 1e\+38}: expected a dict of names of classes"),
    ({"quantization_config": {"0": "a"}}, "quantization_config={'0': 'a'}: expected a dict with a quant_method"),
    ({"transformers_version": 5}, "transformers_version=5: expected a string"),
    ({"name_or_path": {"a": 1}}, "name_or_path={'a': 1}: expected a string or a path"),
    ({"derived_fields": "head_dim"}, "derived_fields='head_dim': expected a list of strings"),
    ({"note": torch.float32}, "note=torch.float32: expected a value that config.json can contain"),
    ({"note": 1j}, "note=1j: expected a value that config.json can contain"),
    ({"note": {"a": [torch.ones(2, 2)]}}, r"note={'a': \[tensor.*: expected a value that config.json can contain"),
    ({"note": 10**5000}, "note=.int, too long to be shown.: expected a value that config.json can contain"),
]
MEMBERS = ["to_dict", "validate", "base_model_tp_plan", "save_pretrained", "attribute_map", "update", "replace"]


@pytest.mark.parametrize(("fields", "message"), INVALID, ids=[str(number) for number in range(len(INVALID))])
def test_an_invalid_value_raises_by_every_way(fields, message, tmp_path):
    make_config().save_pretrained(tmp_path)
    with pytest.raises(ValueError, match=message):
        GPTConfig(**TINY, **fields)
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_dict(make_config().to_dict() | fields)
    if next(iter(fields)) in RULES:  # other keywords have no effect
        with pytest.raises(ValueError, match=message):
            GPTConfig.from_pretrained(tmp_path, **fields)


@pytest.mark.parametrize("name", MEMBERS)
def test_a_member_of_the_class_is_not_replaced(name):
    message = f"{name} is an attribute of the class of a configuration, not a field"
    with pytest.raises(ValueError, match=message):
        GPTConfig(**TINY, **{name: 1})
    with pytest.raises(ValueError, match=message):
        GPTConfig.from_dict(make_config().to_dict(), **{name: 1})


def test_the_name_of_the_instance_is_no_field():
    with pytest.raises(ValueError, match="self=1 is not a field of GPTConfig"):
        GPTConfig.from_dict({"self": 1})


@pytest.mark.parametrize("name", ["_auto_class", "_heterogeneity_spec", "__class__", "_post_init_done", "_anything"])
def test_private_names_of_a_file_have_no_effect(name):
    config = make_config()
    loaded = GPTConfig.from_dict(config.to_dict() | {name: 1})
    assert loaded == config
    assert vars(loaded).keys() == vars(config).keys() | {"model_type"}


def test_assigned_values_are_checked_at_saving(tmp_path):
    config = make_config()
    config.note = torch.ones(2)
    with pytest.raises(ValueError, match=r"note=tensor.*expected a value that config.json can contain"):
        config.save_pretrained(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("num_labels", 2**63),
        ("num_labels", 1e30),
        ("per_layer_config", {0: {"head_dim": 4}}),
        ("output_attentions", [1]),
    ],
)
def test_a_property_is_checked_at_assignment(name, value):
    config = make_config()
    with pytest.raises(ValueError, match=f"^{name}=.*: expected"):
        setattr(config, name, value)
    assert config == make_config()


@pytest.mark.parametrize(
    "fields",
    [
        {"num_labels": 3, "dtype": torch.bfloat16},
        {"id2label": {"0": "no", "1": "yes"}, "label2id": {"no": 0, "yes": 1}, "problem_type": "regression"},
        {"output_hidden_states": [0, -1], "return_dict": False, "architectures": ["GPTForCausalLM"]},
        {"note": {"a": [1, None, {"b": 2.5}]}, "is_encoder_decoder": False, "chunk_size_feed_forward": 4},
        {"attn_implementation": "eager", "output_attentions": True},
    ],
    ids=str,
)
def test_valid_values(fields, tmp_path):
    config = make_config(**fields)
    config.save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path) == config


def test_every_rule_accepts_none():
    check_common_fields(dict.fromkeys(RULES))


def test_an_assigned_implementation_is_that_of_the_model(tmp_path):
    config = make_config("mixtral")
    config.attn_implementation, config.experts_implementation = "eager", "batched_mm"
    assert "attn_implementation" not in config.to_dict()
    config = GPTForCausalLM(config).config
    assert (config._attn_implementation, config._experts_implementation) == ("eager", "batched_mm")
    config.save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path).to_json_string() == config.to_json_string()


def test_dtype_auto_is_that_of_the_file(tmp_path):
    make_config(dtype="bfloat16").save_pretrained(tmp_path)
    assert GPTConfig.from_pretrained(tmp_path, dtype="auto").dtype == torch.bfloat16
