"""The decoder against transformers' own classes: the same weights give the same logits, loss and gradients."""

from functools import partial

import pytest
import torch
import transformers
from tiny import TINY, make_config, random_ids
from transformers import set_seed

from hf_gpt import GPTForCausalLM

ROPE = {
    "default": {"rope_type": "default", "rope_theta": 10_000.0},
    "linear": {"rope_type": "linear", "rope_theta": 10_000.0, "factor": 4.0},
    "dynamic": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 2.0},
    "yarn": {"rope_type": "yarn", "rope_theta": 10_000.0, "factor": 4.0, "original_max_position_embeddings": 16},
    "longrope": {
        "rope_type": "longrope",
        "rope_theta": 10_000.0,
        "factor": 4.0,
        "short_factor": [1.0, 1.1, 1.2, 1.3],
        "long_factor": [1.0, 2.0, 3.0, 4.0],
        "original_max_position_embeddings": 16,
    },
    "llama3": {
        "rope_type": "llama3",
        "rope_theta": 10_000.0,
        "factor": 8.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 16,
    },
}


def gpt2():
    native = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64, bos_token_id=0, eos_token_id=0
        )
    )
    names = {"transformer.wte": "model.embed_tokens", "transformer.wpe": "model.embed_positions"}
    names |= {"transformer.ln_f": "model.norm", "transformer.h": "model.layers"} | CONV1D_BLOCK
    names |= {".ln_1.": ".self_attn_norm.", ".ln_2.": ".mlp_norm."}
    return native, make_config("learned"), partial(conv1d_weights, names)


def gpt1():
    native = transformers.OpenAIGPTLMHeadModel(
        transformers.OpenAIGPTConfig(vocab_size=99, n_embd=32, n_layer=2, n_head=4, n_positions=64)
    )
    names = {"transformer.tokens_embed": "model.embed_tokens", "transformer.positions_embed": "model.embed_positions"}
    names |= {"transformer.h": "model.layers"} | CONV1D_BLOCK
    names |= {".ln_1.": ".self_attn_norm.", ".ln_2.": ".mlp_norm."}
    return native, make_config("learned", norm_position="post"), partial(conv1d_weights, names)


def neox():
    native = transformers.GPTNeoXForCausalLM(
        transformers.GPTNeoXConfig(
            vocab_size=99,
            hidden_size=32,
            num_hidden_layers=2,
            num_attention_heads=4,
            intermediate_size=128,
            max_position_embeddings=64,
            rope_parameters={"rope_type": "default", "rope_theta": 10_000.0, "partial_rotary_factor": 0.5},
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    names = {
        "gpt_neox.embed_in": "model.embed_tokens",
        "gpt_neox.final_layer_norm": "model.norm",
        "gpt_neox.layers": "model.layers",
        "embed_out": "lm_head",
        ".input_layernorm.": ".self_attn_norm.",
        ".post_attention_layernorm.": ".mlp_norm.",
        ".attention.dense.": ".self_attn.o_proj.",
        ".mlp.dense_h_to_4h.": ".mlp.up_proj.",
        ".mlp.dense_4h_to_h.": ".mlp.down_proj.",
    }
    config = make_config("partial_rotary", parallel_residual=True, hidden_act="gelu", tie_word_embeddings=False)
    return native, config, partial(neox_weights, names)


def llama(rope="default", **fields):
    native = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(
            **TINY, num_key_value_heads=2, intermediate_size=48, rms_norm_eps=1e-5, rope_parameters=ROPE[rope], **fields
        )
    )
    names = {".input_layernorm.": ".self_attn_norm.", ".post_attention_layernorm.": ".mlp_norm."}
    config = make_config(
        "llama", num_key_value_heads=2, intermediate_size=48, rope_parameters=ROPE[rope], qk_norm=False, **fields
    )
    return native, config, partial(rename, names)


CONV1D_BLOCK = {".mlp.c_fc.": ".mlp.up_proj.", ".mlp.c_proj.": ".mlp.down_proj.", ".attn.c_proj.": ".self_attn.o_proj."}


def rename(names, weights):
    renamed = {}
    for key, tensor in weights.items():
        for old, new in names.items():
            key = key.replace(old, new)
        renamed[key] = tensor
    return renamed


def conv1d_weights(names, weights):
    split = {}
    for key, tensor in rename(names, weights).items():
        if key.endswith(".attn.bias"):  # a buffer of GPT-1: its causal mask
            continue
        if ("_proj" in key or "c_attn" in key) and tensor.ndim == 2:
            tensor = tensor.t()
        if "attn.c_attn" in key:
            for part, letter in zip(tensor.chunk(3), "qkv", strict=True):
                split[key.replace("attn.c_attn", f"self_attn.{letter}_proj")] = part
        else:
            split[key] = tensor
    return split


def neox_weights(names, weights):
    split = {}
    for key, tensor in rename(names, weights).items():
        if "query_key_value" in key:  # for each head: its query, key and value
            for part, letter in zip(tensor.view(4, 3, 8, *tensor.shape[1:]).unbind(1), "qkv", strict=True):
                split[key.replace("attention.query_key_value", f"self_attn.{letter}_proj")] = part.flatten(0, 1)
        else:
            split[key] = tensor
    return split


PEERS = {"gpt1": gpt1, "gpt2": gpt2, "neox": neox}
PEERS |= {f"llama_{rope}": partial(llama, rope) for rope in ROPE}
PEERS |= {"llama_biased": partial(llama, attention_bias=True, mlp_bias=True)}


@pytest.fixture(params=PEERS)
def peers(request):
    """A native model with strong random weights, ours with the same, and what renames them."""
    set_seed(0)
    native, config, convert = PEERS[request.param]()
    with torch.no_grad():
        for parameter in native.parameters():
            parameter.normal_(0.0, 0.2)
    ours = GPTForCausalLM(config)
    missing, unexpected = ours.load_state_dict(convert(native.state_dict()), strict=False)
    assert set(missing) <= {"lm_head.weight"}
    assert set(unexpected) <= {"lm_head.weight"}
    assert ours.num_parameters() == native.num_parameters()
    return native.eval(), ours.eval(), convert


def test_logits_and_loss(peers):
    native, ours, _ = peers
    ids = random_ids(3, 40)  # longer than the original length of the scaled RoPE types
    expected, actual = native(ids, labels=ids), ours(ids, labels=ids)
    scale = expected.logits.abs().max()
    assert (actual.logits - expected.logits).abs().max() <= 1e-5 * scale
    assert torch.allclose(actual.loss, expected.loss, rtol=1e-5)


def test_padded_batch(peers):
    native, ours, _ = peers
    ids, mask = random_ids(2, 12), torch.ones(2, 12, dtype=torch.long)
    mask[0, :5] = 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    expected = native(ids, attention_mask=mask, position_ids=positions).logits
    actual = ours(ids, attention_mask=mask).logits  # which counts the positions itself
    seen = mask.bool()
    assert (actual - expected)[seen].abs().max() <= 1e-5 * expected[seen].abs().max()


def test_gradients(peers):
    native, ours, convert = peers
    ids = random_ids(2, 16)
    for model in (native, ours):
        model(ids, labels=ids).loss.backward()
    scale = max(parameter.grad.abs().max() for parameter in native.parameters())
    expected = convert({name: parameter.grad for name, parameter in native.named_parameters()})
    for name, parameter in ours.named_parameters():
        assert (parameter.grad - expected[name]).abs().max() <= 1e-5 * scale, name


def test_greedy_generation(peers):
    native, ours, _ = peers
    ids = random_ids(2, 6)
    options = {"max_new_tokens": 12, "do_sample": False, "eos_token_id": None, "pad_token_id": 0}
    assert torch.equal(ours.generate(ids, **options), native.generate(ids, **options))
