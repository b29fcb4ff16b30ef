"""Compares each family with its native class in transformers, with the same weights: a forward pass, and generation.

python benchmarks/lineage.py [--rounds 9] [--families gpt2 opt ...]
"""

import argparse
import tempfile
from pathlib import Path

import torch
from measure import GREEDY, compare, default_device, print_comparison, print_json
from transformers import AutoModelForCausalLM, PreTrainedModel
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from hf_gpt import GPTForCausalLM
from hf_gpt.conversion import convert

LENGTH, PROMPT, NEW_TOKENS = 512, 64, 32

CONV1D = {"n_embd": 512, "n_layer": 6, "n_head": 8, "n_positions": 1024}
GROUPED = {
    "hidden_size": 512,
    "intermediate_size": 1376,
    "num_hidden_layers": 6,
    "num_attention_heads": 8,
    "num_key_value_heads": 4,
    "head_dim": 64,
    "max_position_embeddings": 1024,
}
EXPERTS = {"num_local_experts": 8, "num_experts_per_tok": 2, "intermediate_size": 512}

FAMILIES = {
    "openai-gpt": CONV1D,
    "gpt2": CONV1D,
    "gpt_neo": {
        "hidden_size": 512,
        "num_layers": 6,
        "num_heads": 8,
        "attention_types": [[["global", "local"], 3]],
        "max_position_embeddings": 1024,
    },
    "gpt_neox": {
        "hidden_size": 512,
        "intermediate_size": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "max_position_embeddings": 1024,
    },
    "gptj": CONV1D | {"rotary_dim": 32},
    "opt": {
        "hidden_size": 512,
        "ffn_dim": 2048,
        "num_hidden_layers": 6,
        "num_attention_heads": 8,
        "max_position_embeddings": 1024,
    },
    "gpt_oss": GROUPED | EXPERTS,
    "llama": GROUPED,
    "mixtral": GROUPED | EXPERTS,
}


def build(family: str) -> tuple[PreTrainedModel, PreTrainedModel]:
    """Returns our model and the native one with the same random weights, each loaded by `from_pretrained`."""
    torch.manual_seed(0)
    config = CONFIG_MAPPING[family](vocab_size=8192, bos_token_id=0, eos_token_id=0, **FAMILIES[family])
    with tempfile.TemporaryDirectory() as folder:
        native = Path(folder) / "native"
        AutoModelForCausalLM.from_config(config, trust_remote_code=False).save_pretrained(native)
        ours = GPTForCausalLM.from_pretrained(convert(native, Path(folder) / "ours"))
        return ours.eval(), AutoModelForCausalLM.from_pretrained(native, trust_remote_code=False).eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=9, help="alternating rounds (default: %(default)s)")
    parser.add_argument("--families", nargs="+", default=list(FAMILIES), choices=FAMILIES, help="default: all")
    arguments = parser.parse_args()
    ids = torch.randint(1, 8192, (2, LENGTH), device=default_device())
    prompt = ids[:1, :PROMPT]

    @torch.inference_mode()
    def forward(model: PreTrainedModel) -> None:
        model(ids)

    @torch.inference_mode()
    def generate(model: PreTrainedModel) -> None:
        model.generate(prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=NEW_TOKENS, **GREEDY)

    rows = {}
    for family in arguments.families:
        ours, peer = (model.to(ids.device) for model in build(family))
        for label, run in {f"forward 2x{LENGTH}": forward, f"generate {NEW_TOKENS}": generate}.items():
            rows[f"{family} {label}"] = compare(lambda: run(ours), lambda: run(peer), arguments.rounds)  # noqa: B023
    print_comparison(rows)
    print_json(rows=rows)


if __name__ == "__main__":
    main()
