"""Random configurations: each is refused by name, or builds, learns, saves, loads and writes."""

import re
import tempfile

import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tiny import random_ids
from transformers import set_seed

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.configuration_gpt import ACTIVATIONS, ROPE_TYPES

sizes = st.sampled_from([1, 2, 3, 4, 6, 8, 12])
widths = st.sampled_from([8, 12, 16, 24])
optional = lambda strategy: st.none() | strategy  # noqa: E731
probabilities = st.sampled_from([0.0, 0.1])

rope_parameters = st.fixed_dictionaries(
    {"rope_type": st.sampled_from(ROPE_TYPES), "rope_theta": st.sampled_from([100.0, 10_000.0])},
    optional={
        "factor": st.sampled_from([0.5, 1.0, 4.0]),
        "partial_rotary_factor": st.sampled_from([0.25, 0.5, 1.0]),
        "original_max_position_embeddings": st.sampled_from([8, 16]),
        "low_freq_factor": st.just(1.0),
        "high_freq_factor": st.sampled_from([0.5, 4.0]),
        "short_factor": st.lists(st.just(1.0), min_size=1, max_size=4),
        "long_factor": st.lists(st.just(2.0), min_size=1, max_size=4),
    },
)

fields = st.fixed_dictionaries(
    {"vocab_size": st.just(99), "max_position_embeddings": st.just(32)},
    optional={
        "hidden_size": widths,
        "num_attention_heads": sizes,
        "num_key_value_heads": optional(sizes),
        "num_hidden_layers": st.sampled_from([1, 2, 3]),
        "intermediate_size": optional(widths),
        "embedding_size": optional(widths),
        "head_dim": optional(st.sampled_from([2, 3, 4, 8])),
        "hidden_act": st.sampled_from(ACTIVATIONS),
        "mlp_type": st.sampled_from(["mlp", "glu"]),
        "norm_type": st.sampled_from(["layer_norm", "rms_norm"]),
        "norm_position": st.sampled_from(["pre", "post"]),
        "parallel_residual": st.booleans(),
        "position_embedding_type": st.sampled_from(["learned", "sinusoidal", "rope", "none"]),
        "rope_parameters": optional(rope_parameters),
        "attention_bias": st.booleans(),
        "mlp_bias": st.booleans(),
        "qk_norm": st.booleans(),
        "attention_patterns": optional(st.lists(st.sampled_from(["dense", "banded"]), min_size=1, max_size=3)),
        "sliding_window": optional(st.sampled_from([1, 3, 50])),
        "embedding_dropout": probabilities,
        "residual_dropout": probabilities,
        "attention_dropout": probabilities,
        "classifier_dropout": probabilities,
        "layerdrop": probabilities,
        "tie_word_embeddings": st.booleans(),
        "use_cache": st.booleans(),
        "pad_token_id": optional(st.sampled_from([0, 98, 99])),
        "eos_token_id": optional(st.sampled_from([2, 98, 99])),
    },
)


@given(fields=fields, implementation=st.sampled_from(["eager", "sdpa"]))
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck), derandomize=True)
def test_a_configuration_is_refused_by_name_or_works(fields, implementation):
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
        loaded = GPTForCausalLM.from_pretrained(folder, attn_implementation=implementation)
    assert torch.equal(loaded(ids).logits, model.eval()(ids).logits)
    greedy = {"max_new_tokens": 6, "do_sample": False, "pad_token_id": 0}
    written = loaded.generate(ids[:, :4], use_cache=True, **greedy)
    assert torch.equal(written, loaded.generate(ids[:, :4], use_cache=False, **greedy))
