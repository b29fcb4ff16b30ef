import pytest
import torch
import transformers

from hf_gpt import GPTForCausalLM, preset_config, preset_names

# Sizes as published: Radford et al. 2018, 2019; Brown et al. 2020, table 2.1. (layers, width, heads, head width)
SIZES = {
    "gpt": (12, 768, 12, 64),
    "gpt2": (12, 768, 12, 64),
    "gpt2-medium": (24, 1024, 16, 64),
    "gpt2-large": (36, 1280, 20, 64),
    "gpt2-xl": (48, 1600, 25, 64),
    "gpt3-small": (12, 768, 12, 64),
    "gpt3-medium": (24, 1024, 16, 64),
    "gpt3-large": (24, 1536, 16, 96),
    "gpt3-xl": (24, 2048, 24, 128),
    "gpt3-2.7b": (32, 2560, 32, 80),
    "gpt3-6.7b": (32, 4096, 32, 128),
    "gpt3-13b": (40, 5140, 40, 128),
    "gpt3-175b": (96, 12288, 96, 128),
}


def parameters(model_class, config) -> int:
    with torch.device("meta"):
        return model_class(config).num_parameters()


@pytest.mark.parametrize("name", preset_names())
def test_sizes(name):
    config = preset_config(name)
    actual = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.head_dim)
    assert actual == SIZES[name]


@pytest.mark.parametrize("name", [name for name in preset_names() if not name.startswith("gpt3")])
def test_as_many_parameters_as_the_native_class(name):
    config = preset_config(name)
    sizes = {"n_layer": config.num_hidden_layers, "n_embd": config.hidden_size, "n_head": config.num_attention_heads}
    native = (
        (transformers.OpenAIGPTLMHeadModel, transformers.OpenAIGPTConfig)
        if name == "gpt"
        else (transformers.GPT2LMHeadModel, transformers.GPT2Config)
    )
    assert parameters(GPTForCausalLM, config) == parameters(native[0], native[1](**sizes))


def test_gpt3_alternates_dense_and_banded_layers():
    assert preset_config("gpt3-175b").attention_patterns == ["dense", "banded"] * 48
    assert preset_config("gpt3-small", num_hidden_layers=3).attention_patterns == ["dense", "banded", "dense"]


def test_overrides():
    config = preset_config("gpt2", num_hidden_layers=2, norm_type="rms_norm")
    assert (config.num_hidden_layers, config.norm_type, config.vocab_size) == (2, "rms_norm", 50257)
    with pytest.raises(ValueError, match="norm_type='none'"):
        preset_config("gpt2", norm_type="none")


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="no preset 'gpt5': expected one of gpt, gpt2"):
        preset_config("gpt5")
