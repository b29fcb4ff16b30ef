"""Presets against the papers, the published config.json files and the native classes."""

import pytest
import torch
from native_families import NATIVE, Model, Release
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gpt import GPTForCausalLM, preset_config, preset_names
from hf_gpt.conversion.families import FAMILIES

PUBLISHED: dict[str, tuple[str, Release, Model]] = {
    name: (family, release, model)
    for family, row in NATIVE.items()
    for release in row.releases
    for name, model in release.models.items()
}
WITH_CONFIG_JSON = [name for name, (_, release, _) in PUBLISHED.items() if release.config_json is not None]


def native_config(name: str) -> PreTrainedConfig:
    """Returns the configuration that was published with a model."""
    family, release, model = PUBLISHED[name]
    sizes = {
        "num_hidden_layers": model.layers,
        "hidden_size": model.hidden,
        "num_attention_heads": model.heads,
        "intermediate_size": 4 * model.hidden,
        "embedding_size": model.hidden,
    }
    native_sizes = {native: sizes[ours] for native, ours in FAMILIES[family].fields.items() if ours in sizes}
    fields = native_sizes | release.per_layer(model.layers) | release.config_json | model.config_json
    return CONFIG_MAPPING[family].from_dict(fields)


def meaning(config: PreTrainedConfig) -> dict:
    """Returns every field of a configuration in a form in which equal values mean the same."""
    fields = config.to_dict()
    for name in {"activation_function", "hidden_act"} & fields.keys():
        if fields[name] in ("gelu_new", "gelu_fast"):  # three names of one function
            fields[name] = "gelu_pytorch_tanh"
    derived = {
        "n_inner": 4 * config.hidden_size,
        "intermediate_size": 4 * config.hidden_size,
        "head_dim": config.hidden_size // config.num_attention_heads,
    }
    return fields | {name: value for name, value in derived.items() if name in fields and fields[name] is None}


def count_parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_names():
    assert preset_names() == list(PUBLISHED)


@pytest.mark.parametrize("name", preset_names())
def test_sizes(name):
    config, (_, _, model) = preset_config(name), PUBLISHED[name]
    actual = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.head_dim)
    assert actual == (model.layers, model.hidden, model.heads, model.head_dim)


@pytest.mark.parametrize("name", WITH_CONFIG_JSON)
def test_number_of_parameters(name):
    with torch.device("meta"):
        ours, native = GPTForCausalLM(preset_config(name)), AutoModelForCausalLM.from_config(native_config(name))
    expected = count_parameters(native)
    _, _, model = PUBLISHED[name]
    assert count_parameters(ours) == expected == (model.parameters or expected)


@pytest.mark.parametrize("name", WITH_CONFIG_JSON)
def test_exports_to_the_published_configuration(name):
    native = native_config(name)
    fields = FAMILIES[native.model_type].to_native(preset_config(name))
    assert meaning(CONFIG_MAPPING[native.model_type].from_dict(fields)) == meaning(native)


@pytest.mark.parametrize("name", WITH_CONFIG_JSON)
def test_equals_the_conversion_of_the_published_configuration(name, tmp_path):
    native = native_config(name)
    native.save_pretrained(tmp_path)
    family = FAMILIES[native.model_type]
    config = family.from_native(*family.storage.read_fields(tmp_path))
    if "summary_first_dropout" in family.passthrough:  # classifier_dropout has this name there
        config.classifier_dropout = 0.1
    assert meaning(config) | {"native_fields": None} == meaning(preset_config(name))


def test_configurations_share_no_dict():
    preset_config("gpt-j-6b").rope_parameters["rope_theta"] = 2.0
    assert preset_config("gpt-j-6b").rope_parameters["rope_theta"] == 10_000.0


def test_gpt3_alternates_dense_and_banded_layers():
    assert preset_config("gpt3-175b").attention_patterns == ["dense", "banded"] * 48
    assert preset_config("gpt3-small", num_hidden_layers=3).attention_patterns == ["dense", "banded", "dense"]


def test_overrides():
    config = preset_config("gpt2", num_hidden_layers=2, norm_type="rms_norm")
    assert (config.num_hidden_layers, config.norm_type, config.vocab_size) == (2, "rms_norm", 50257)
    with pytest.raises(ValueError, match="norm_type='none'"):
        preset_config("gpt2", norm_type="none")


def test_unknown_preset():
    with pytest.raises(ValueError, match="no preset 'gpt5': expected one of gpt, gpt2"):
        preset_config("gpt5")
