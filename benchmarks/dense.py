"""Compares the dense decoder with transformers' GPT-2 and Llama of the same shape: training step, prefill, decode.

python benchmarks/dense.py [--rounds 7]
"""

import argparse

import torch
import transformers
from measure import GREEDY, compare, default_device, print_comparison, print_json

from hf_gpt import GPTConfig, GPTForCausalLM

SHAPE = {"vocab_size": 8192, "hidden_size": 512, "num_hidden_layers": 6, "num_attention_heads": 8}
LENGTH, ROWS, PROMPT, NEW_TOKENS = 512, 2, 64, 32


def build_gpt2() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns our model and transformers' GPT-2."""
    ours = GPTConfig(**SHAPE, max_position_embeddings=1024, position_embedding_type="learned")
    peer = transformers.GPT2Config(
        vocab_size=8192, n_embd=512, n_layer=6, n_head=8, resid_pdrop=0, embd_pdrop=0, attn_pdrop=0, bos_token_id=0,
        eos_token_id=0,
    )  # fmt: skip
    return GPTForCausalLM(ours), transformers.GPT2LMHeadModel(peer)


def build_llama() -> tuple[torch.nn.Module, torch.nn.Module]:
    """Returns our model and transformers' Llama."""
    shape = SHAPE | {"intermediate_size": 1376, "num_key_value_heads": 4, "max_position_embeddings": 1024}
    ours = GPTConfig(
        **shape, norm_type="rms_norm", mlp_type="glu", hidden_act="silu", attention_bias=False, mlp_bias=False,
        tie_word_embeddings=False,
    )  # fmt: skip
    return GPTForCausalLM(ours), transformers.LlamaForCausalLM(transformers.LlamaConfig(**shape))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7, help="alternating rounds (default: %(default)s)")
    rounds = parser.parse_args().rounds
    ids = torch.randint(0, SHAPE["vocab_size"], (ROWS, LENGTH), device=default_device())

    def train(model):
        model.train()
        model.zero_grad()
        model(ids, labels=ids, use_cache=False).loss.backward()

    @torch.inference_mode()
    def prefill(model):
        model.eval()(ids, logits_to_keep=1)

    @torch.inference_mode()
    def decode(model):
        model.eval().generate(ids[:1, :PROMPT], max_new_tokens=NEW_TOKENS, **GREEDY)

    rows = {}
    for name, build in (("gpt2", build_gpt2), ("llama", build_llama)):
        ours, peer = (model.to(ids.device) for model in build())
        assert ours.num_parameters() == peer.num_parameters()
        workloads = {
            f"{name} training step {ROWS}x{LENGTH}": train,
            f"{name} prefill {ROWS}x{LENGTH}": prefill,
            f"{name} decode {NEW_TOKENS} tokens": decode,
        }
        for label, run in workloads.items():
            rows[label] = compare(lambda: run(ours), lambda: run(peer), rounds)  # noqa: B023 called at once
    print_comparison(rows)
    print_json(rows=rows)


if __name__ == "__main__":
    main()
