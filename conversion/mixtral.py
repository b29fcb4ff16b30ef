"""Mixtral (Jiang et al. 2024): `MixtralForCausalLM`. Llama with a mixture of experts."""

from .family import Family, same
from .llama import CONSTANTS, FIELDS, INV_FREQ, SAME_NAMES, canonical
from .storage import Fields, Storage
from .weights import LAYER, TRANSPOSED, UNSTACKED_EXPERTS, UNSTACKED_GATED_EXPERTS, rule

ROUTING = same("num_local_experts", "num_experts_per_tok", "router_aux_loss_coef", "output_router_logits")
# The balancing loss of transformers: over the tokens of all layers together.
POOLED = {"router_aux_loss_type": "pooled"}
SPARSE, MLP = f"{LAYER}block_sparse_moe.", f"{LAYER}mlp."


def read(native: Fields) -> Fields:
    pattern = "dense" if native["sliding_window"] is None else "banded"
    return {"attention_patterns": [pattern] * native["num_hidden_layers"]}


MIXTRAL = Family(
    storage=Storage("mixtral"),
    fields=FIELDS | ROUTING | same("router_jitter_noise", "sliding_window"),
    constants=CONSTANTS | POOLED | {"attention_bias": False, "mlp_bias": False},
    read=read,
    canonical=canonical,
    layouts=(
        (
            *SAME_NAMES,
            rule(f"{SPARSE}gate.weight", f"{MLP}router.weight"),
            rule(
                (f"{SPARSE}experts.{{expert}}.w1.weight", f"{SPARSE}experts.{{expert}}.w3.weight"),
                f"{MLP}experts.gate_up_proj",
                UNSTACKED_GATED_EXPERTS,
            ),
            rule(f"{SPARSE}experts.{{expert}}.w2.weight", f"{MLP}experts.down_proj", UNSTACKED_EXPERTS),
        ),
        (  # as in memory, and as `save_pretrained(save_original_format=False)` writes it
            *SAME_NAMES,
            rule(f"{MLP}gate.weight", f"{MLP}router.weight"),
            *(rule(name, name, TRANSPOSED) for name in (f"{MLP}experts.gate_up_proj", f"{MLP}experts.down_proj")),
        ),
    ),
    base_model_prefix="model.",
    computed=INV_FREQ,
)
