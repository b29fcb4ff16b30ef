"""Random configurations: each raises an error that names a field, or trains, saves, loads and generates."""

import re
import tempfile

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import random_ids
from transformers import set_seed

from hf_gpt import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from hf_gpt.model.configuration_gpt import ACTIVATIONS, LAYER_TYPES
from hf_gpt.model.rope_parameters import ROPE_TYPES

probabilities = st.sampled_from([0.0, 0.1])


@st.composite
def rope_parameters(draw, head_dim: int) -> dict:
    """Draws the parameters that each RoPE type needs, for heads of `head_dim`."""
    rope_type = draw(st.sampled_from(ROPE_TYPES))
    portion = draw(st.sampled_from([0.5, 1.0]))
    rope = {"rope_type": rope_type, "rope_theta": draw(st.sampled_from([100.0, 10_000.0]))}
    rope["partial_rotary_factor"] = portion
    if rope_type != "default":
        rope["factor"] = draw(st.sampled_from([1.0, 4.0]))
    if rope_type in ("yarn", "longrope", "llama3"):
        rope["original_max_position_embeddings"] = draw(st.sampled_from([8, 16]))
    if rope_type == "longrope":
        pairs = int(head_dim * portion) // 2
        rope |= {"short_factor": [1.0] * pairs, "long_factor": [2.0] * pairs}
    if rope_type == "llama3":
        rope |= {"low_freq_factor": 1.0, "high_freq_factor": draw(st.sampled_from([2.0, 4.0]))}
    return rope


@st.composite
def configurations(draw) -> dict:
    """Draws mostly valid configurations; an invalid one must raise."""
    heads, layers = draw(st.sampled_from([1, 2, 4])), draw(st.sampled_from([1, 2, 3]))
    head_dim = draw(st.sampled_from([4, 8]))
    patterns = draw(st.none() | st.lists(st.sampled_from(list(LAYER_TYPES)), min_size=layers, max_size=layers))
    position = draw(st.sampled_from(["rope", "rope", "learned", "sinusoidal", "none"]))
    experts = draw(st.sampled_from([None, None, 1, 3]))
    return {
        "vocab_size": 99,
        "max_position_embeddings": 32,
        "hidden_size": draw(st.sampled_from([8, 16, 24, 25])),
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": draw(st.sampled_from([None, 1, heads, 3])),
        "head_dim": head_dim,
        "intermediate_size": draw(st.sampled_from([None, 12])),
        "embedding_size": draw(st.sampled_from([None, 12])),
        "hidden_act": draw(st.sampled_from(ACTIVATIONS)),
        "mlp_type": draw(st.sampled_from(["mlp", "glu", "clamped_glu"])),
        "norm_type": draw(st.sampled_from(["layer_norm", "rms_norm"])),
        "norm_parameters": draw(st.sampled_from([None, None, "weight_and_bias", "weight", "none"])),
        "final_norm": draw(st.sampled_from([None, True, False])),
        "shared_norm": draw(st.sampled_from([False, False, True])),
        "attention_output_bias": draw(st.sampled_from([None, True, False])),
        "attention_scale": draw(st.sampled_from([None, 1.0])),
        "scale_attn_by_inverse_layer_idx": draw(st.booleans()),
        "attention_sinks": draw(st.sampled_from([False, False, True])),
        "position_offset": draw(st.sampled_from([0, 0, 2])) if position == "learned" else 0,
        "lm_head_bias": draw(st.booleans()),
        "num_local_experts": experts,
        "num_experts_per_tok": draw(st.sampled_from([1, 2])),
        "router_bias": draw(st.booleans()),
        "num_shared_experts": draw(st.integers(0, 2)) if experts else 0,
        "router_score_function": draw(st.sampled_from(["softmax", "sigmoid"])),
        "norm_topk_prob": draw(st.booleans()),
        "routed_scaling_factor": draw(st.sampled_from([1.0, 2.5])),
        "router_bias_update_rate": draw(st.sampled_from([None, 0.0, 0.01])) if experts else None,
        "router_jitter_noise": draw(probabilities),
        "norm_position": draw(st.sampled_from(["pre", "pre", "post"])),
        "parallel_residual": draw(st.booleans()),
        "position_embedding_type": position,
        "rope_parameters": draw(rope_parameters(head_dim)) if position == "rope" else None,
        "attention_bias": draw(st.booleans()),
        "mlp_bias": draw(st.booleans()),
        "qk_norm": draw(st.booleans()),
        "attention_patterns": patterns,
        "sliding_window": draw(st.sampled_from([1, 3, 50])) if "banded" in (patterns or ()) else None,
        "attention_stride": draw(st.sampled_from([None, 2, 5])) if {"strided", "fixed"} & set(patterns or ()) else None,
        "attention_summary_size": draw(st.sampled_from([None, 1, 3])) if "fixed" in (patterns or ()) else None,
        "embedding_dropout": draw(probabilities),
        "residual_dropout": draw(probabilities),
        "attention_dropout": draw(probabilities),
        "classifier_dropout": draw(probabilities),
        "layerdrop": draw(probabilities),
        "tie_word_embeddings": draw(st.booleans()),
        "use_cache": draw(st.booleans()),
        "pad_token_id": draw(st.sampled_from([None, 0, 98])),
        "eos_token_id": draw(st.sampled_from([None, 2, 98, 99])),
    }


@given(fields=configurations(), implementation=st.sampled_from(["eager", None]))
@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_a_configuration_works_or_the_error_names_a_field(fields, implementation):
    try:
        config = GPTConfig(**fields)
    except ValueError as error:
        assert any(re.search(rf"\b{name}\b", str(error)) for name in fields), f"no field is named: {error}"
        return
    set_seed(0)
    model = GPTForCausalLM._from_config(config, attn_implementation=implementation).train()
    ids = random_ids(2, 12)
    loss = model(ids, labels=ids).loss
    loss.backward()
    assert torch.isfinite(loss)
    assert all(torch.isfinite(parameter.grad).all() for parameter in model.parameters() if parameter.grad is not None)

    with tempfile.TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        head = GPTForSequenceClassification.from_pretrained(folder)
        assert torch.isfinite(head(ids, attention_mask=torch.ones_like(ids)).logits).all()
        loaded = GPTForCausalLM.from_pretrained(folder, attn_implementation=implementation)
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    written = loaded.generate(ids[:, :4], use_cache=True, **greedy)
    assert torch.equal(written, loaded.generate(ids[:, :4], use_cache=False, **greedy))
