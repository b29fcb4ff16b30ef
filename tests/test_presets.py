import json

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gpt import GPTForCausalLM, preset_config, preset_names
from hf_gpt.conversion.families import FAMILIES

# Sizes as published, in the papers named in presets.py. (layers, width, heads, head width)
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
    "gpt-neo-125m": (12, 768, 12, 64),
    "gpt-neo-1.3b": (24, 2048, 16, 128),
    "gpt-neo-2.7b": (32, 2560, 20, 128),
    "gpt-j-6b": (28, 4096, 16, 256),
    "gpt-neox-20b": (44, 6144, 64, 96),
    "pythia-14m": (6, 128, 4, 32),
    "pythia-31m": (6, 256, 8, 32),
    "pythia-70m": (6, 512, 8, 64),
    "pythia-160m": (12, 768, 12, 64),
    "pythia-410m": (24, 1024, 16, 64),
    "pythia-1b": (16, 2048, 8, 256),
    "pythia-1.4b": (24, 2048, 16, 128),
    "pythia-2.8b": (32, 2560, 32, 80),
    "pythia-6.9b": (32, 4096, 32, 128),
    "pythia-12b": (36, 5120, 40, 128),
    "opt-125m": (12, 768, 12, 64),
    "opt-350m": (24, 1024, 16, 64),
    "opt-1.3b": (24, 2048, 32, 64),
    "opt-2.7b": (32, 2560, 32, 80),
    "opt-6.7b": (32, 4096, 32, 128),
    "opt-13b": (40, 5120, 40, 128),
    "opt-30b": (48, 7168, 56, 128),
    "opt-66b": (64, 9216, 72, 128),
    "opt-175b": (96, 12288, 96, 128),
    "llama-3-8b": (32, 4096, 32, 128),
    "mixtral-8x7b": (32, 4096, 32, 128),
    "gpt-oss-20b": (24, 2880, 64, 64),
    "gpt-oss-120b": (36, 2880, 64, 64),
}

# What the published config.json of a family have in common, in their own words. Of OPT 175B there is none: as its kin.
GPT = json.loads("""{
    "model_type": "openai-gpt", "vocab_size": 40478, "n_positions": 512,
    "afn": "gelu", "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1
}""")
GPT2 = json.loads("""{
    "model_type": "gpt2", "vocab_size": 50257, "n_positions": 1024, "bos_token_id": 50256, "eos_token_id": 50256,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
    "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1
}""")
GPT_NEO = json.loads("""{
    "model_type": "gpt_neo", "vocab_size": 50257, "max_position_embeddings": 2048,
    "bos_token_id": 50256, "eos_token_id": 50256,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
    "intermediate_size": null, "window_size": 256,
    "resid_dropout": 0, "embed_dropout": 0, "attention_dropout": 0
}""")
GPT_J = json.loads("""{
    "model_type": "gptj", "vocab_size": 50400, "n_positions": 2048, "bos_token_id": 50256, "eos_token_id": 50256,
    "activation_function": "gelu_new", "layer_norm_epsilon": 1e-05, "initializer_range": 0.02,
    "n_inner": null, "rotary_dim": 64, "tie_word_embeddings": false,
    "resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0
}""")
GPT_NEOX = json.loads("""{
    "model_type": "gpt_neox", "vocab_size": 50432, "max_position_embeddings": 2048,
    "bos_token_id": 0, "eos_token_id": 0,
    "hidden_act": "gelu_fast", "layer_norm_eps": 1e-05, "initializer_range": 0.02,
    "rotary_pct": 0.25, "rotary_emb_base": 10000, "tie_word_embeddings": false
}""")
PYTHIA = GPT_NEOX | json.loads("""{
    "vocab_size": 50304, "hidden_act": "gelu", "use_parallel_residual": true, "attention_bias": true,
    "hidden_dropout": 0.0, "attention_dropout": 0.0, "classifier_dropout": 0.1
}""")
OPT = json.loads("""{
    "model_type": "opt", "vocab_size": 50272, "max_position_embeddings": 2048,
    "pad_token_id": 1, "bos_token_id": 2, "eos_token_id": 2,
    "activation_function": "relu", "do_layer_norm_before": true, "init_std": 0.02,
    "dropout": 0.1, "attention_dropout": 0.0, "layerdrop": 0.0
}""")
LLAMA_3 = json.loads("""{
    "model_type": "llama", "vocab_size": 128256, "max_position_embeddings": 8192,
    "bos_token_id": 128000, "eos_token_id": 128001,
    "hidden_act": "silu", "rms_norm_eps": 1e-05, "initializer_range": 0.02,
    "intermediate_size": 14336, "num_key_value_heads": 8, "attention_bias": false, "attention_dropout": 0.0,
    "rope_theta": 500000.0, "rope_scaling": null, "tie_word_embeddings": false
}""")
MIXTRAL = json.loads("""{
    "model_type": "mixtral", "vocab_size": 32000, "max_position_embeddings": 32768,
    "bos_token_id": 1, "eos_token_id": 2,
    "hidden_act": "silu", "rms_norm_eps": 1e-05, "initializer_range": 0.02,
    "intermediate_size": 14336, "num_key_value_heads": 8, "attention_dropout": 0.0, "sliding_window": null,
    "num_local_experts": 8, "num_experts_per_tok": 2, "router_aux_loss_coef": 0.02, "output_router_logits": false,
    "rope_theta": 1000000.0, "tie_word_embeddings": false
}""")
GPT_OSS = json.loads("""{
    "model_type": "gpt_oss", "vocab_size": 201088, "max_position_embeddings": 131072,
    "pad_token_id": 199999, "eos_token_id": 200002,
    "hidden_act": "silu", "swiglu_limit": 7.0, "rms_norm_eps": 1e-05, "initializer_range": 0.02,
    "intermediate_size": 2880, "num_key_value_heads": 8, "head_dim": 64, "attention_bias": true,
    "attention_dropout": 0.0, "sliding_window": 128,
    "num_experts_per_tok": 4, "router_aux_loss_coef": 0.9, "output_router_logits": false,
    "rope_theta": 150000, "tie_word_embeddings": false,
    "rope_scaling": {
        "rope_type": "yarn", "factor": 32.0, "original_max_position_embeddings": 4096,
        "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false
    }
}""")
CONFIG_JSON = {
    "gpt": GPT,
    **dict.fromkeys(("gpt2", "gpt2-medium", "gpt2-large", "gpt2-xl"), GPT2),
    **dict.fromkeys(("gpt-neo-125m", "gpt-neo-1.3b", "gpt-neo-2.7b"), GPT_NEO),
    "gpt-j-6b": GPT_J,
    "gpt-neox-20b": GPT_NEOX,
    **{f"pythia-{size}": PYTHIA for size in ("14m", "31m", "70m", "160m", "410m", "1b", "1.4b", "2.8b")},
    "pythia-6.9b": PYTHIA | {"vocab_size": 50432},
    "pythia-12b": PYTHIA | {"vocab_size": 50688},
    **{f"opt-{size}": OPT for size in ("125m", "1.3b", "2.7b", "6.7b", "13b", "30b", "66b", "175b")},
    "opt-350m": OPT | {"do_layer_norm_before": False, "word_embed_proj_dim": 512},
    "llama-3-8b": LLAMA_3,
    "mixtral-8x7b": MIXTRAL,
    "gpt-oss-20b": GPT_OSS | {"num_local_experts": 32},
    "gpt-oss-120b": GPT_OSS | {"num_local_experts": 128},
}

# As published with the models.
PARAMETERS = {
    "gpt2": 124_439_808,
    "gpt2-medium": 354_823_168,
    "gpt2-large": 774_030_080,
    "gpt2-xl": 1_557_611_200,
    "gpt-neo-1.3b": 1_315_575_808,
    "gpt-neo-2.7b": 2_651_307_520,
    "gpt-neox-20b": 20_554_567_680,
    "pythia-70m": 70_426_624,
    "pythia-160m": 162_322_944,
    "pythia-410m": 405_334_016,
    "pythia-1b": 1_011_781_632,
    "pythia-1.4b": 1_414_647_808,
    "pythia-2.8b": 2_775_208_960,
    "pythia-6.9b": 6_857_302_016,
    "pythia-12b": 11_846_072_320,
    "opt-350m": 331_196_416,
    "opt-6.7b": 6_658_473_984,
    "llama-3-8b": 8_030_261_248,
    "mixtral-8x7b": 46_702_792_704,
    "gpt-oss-20b": 20_914_757_184,
    "gpt-oss-120b": 116_829_156_672,
}
WITH_CONFIG_JSON = [name for name in preset_names() if not name.startswith("gpt3")]


def published(name: str) -> PreTrainedConfig:
    """The native configuration: what the family has in common, and the sizes by the names that they have there."""
    layers, width, heads, _ = SIZES[name]
    family = CONFIG_JSON[name]["model_type"]
    if family in ("openai-gpt", "gpt2", "gptj"):
        sizes = {"n_layer": layers, "n_embd": width, "n_head": heads}
    elif family == "gpt_neo":
        sizes = {"num_layers": layers, "hidden_size": width, "num_heads": heads}
        sizes["attention_types"] = [[["global", "local"], layers // 2]]
    else:
        sizes = {"num_hidden_layers": layers, "hidden_size": width, "num_attention_heads": heads}
    if family == "gpt_neox":
        sizes["intermediate_size"] = 4 * width
    if family == "opt":
        sizes |= {"ffn_dim": 4 * width, "word_embed_proj_dim": width}
    if family == "gpt_oss":
        sizes["layer_types"] = ["sliding_attention", "full_attention"] * (layers // 2)
    return CONFIG_MAPPING[family].from_dict(sizes | CONFIG_JSON[name])


def meaning(config: PreTrainedConfig) -> dict:
    """Every field of a configuration, so that equal ones mean the same."""
    fields = config.to_dict()
    for name in {"activation_function", "hidden_act"} & fields.keys():
        if fields[name] in ("gelu_new", "gelu_fast"):  # one function by three names
            fields[name] = "gelu_pytorch_tanh"
    derived = {
        "n_inner": 4 * config.hidden_size,
        "intermediate_size": 4 * config.hidden_size,
        "head_dim": config.hidden_size // config.num_attention_heads,
    }
    return fields | {name: value for name, value in derived.items() if name in fields and fields[name] is None}


def parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def test_names():
    assert preset_names() == list(SIZES)


@pytest.mark.parametrize("name", preset_names())
def test_sizes(name):
    config = preset_config(name)
    actual = (config.num_hidden_layers, config.hidden_size, config.num_attention_heads, config.head_dim)
    assert actual == SIZES[name]


@pytest.mark.parametrize("name", WITH_CONFIG_JSON)
def test_as_many_parameters_as_the_native_class(name):
    with torch.device("meta"):
        ours, native = GPTForCausalLM(preset_config(name)), AutoModelForCausalLM.from_config(published(name))
    assert parameters(ours) == parameters(native) == PARAMETERS.get(name, parameters(native))


@pytest.mark.parametrize("name", WITH_CONFIG_JSON)
def test_exports_to_the_published_configuration(name):
    native = published(name)
    fields = FAMILIES[native.model_type].to_native(preset_config(name))
    assert meaning(CONFIG_MAPPING[native.model_type].from_dict(fields)) == meaning(native)


@pytest.mark.parametrize("name", WITH_CONFIG_JSON)
def test_is_what_the_published_configuration_converts_to(name, tmp_path):
    native = published(name)
    native.save_pretrained(tmp_path)
    family = FAMILIES[native.model_type]
    config = family.to_ours(*family.storage.read_fields(tmp_path))
    if family.name in ("openai-gpt", "gpt2"):  # the dropout before a head has another name there, and is set aside
        config.classifier_dropout = 0.1
    assert meaning(config) | {"native_fields": None} == meaning(preset_config(name))


def test_configurations_share_nothing():
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


def test_an_unknown_preset_is_refused():
    with pytest.raises(ValueError, match="no preset 'gpt5': expected one of gpt, gpt2"):
        preset_config("gpt5")
