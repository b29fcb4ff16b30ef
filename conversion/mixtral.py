"""Mixtral (Jiang et al. 2024): Llama with eight experts."""

from .family import Family
from .llama import BLOCK, CONSTANTS, FIELDS, SAME_NAMES, canonical
from .storage import Fields, Storage
from .weights import EXPERTS, GATED_EXPERTS, TRANSPOSED, rule

ROUTING = {
    "num_local_experts": "num_local_experts",
    "num_experts_per_tok": "num_experts_per_tok",
    "router_aux_loss_coef": "router_aux_loss_coef",
    "output_router_logits": "output_router_logits",
}
# One loss for all layers, as the classes of transformers have it.
POOLED = {"router_aux_loss_type": "pooled"}
SPARSE, OURS = f"{BLOCK}block_sparse_moe.", f"{BLOCK}mlp."


def read(native: Fields) -> Fields:
    pattern = "dense" if native["sliding_window"] is None else "banded"
    return {"attention_patterns": [pattern] * native["num_hidden_layers"]}


MIXTRAL = Family(
    name="mixtral",
    storage=Storage("mixtral"),
    fields=FIELDS | ROUTING | {"router_jitter_noise": "router_jitter_noise", "sliding_window": "sliding_window"},
    constants=CONSTANTS | POOLED | {"attention_bias": False, "mlp_bias": False},
    read=read,
    canonical=canonical,
    layouts=(
        (
            *SAME_NAMES,
            rule(f"{SPARSE}gate.weight", f"{OURS}router.weight"),
            rule(
                (f"{SPARSE}experts.{{expert}}.w1.weight", f"{SPARSE}experts.{{expert}}.w3.weight"),
                f"{OURS}experts.gate_up_proj",
                GATED_EXPERTS,
            ),
            rule(f"{SPARSE}experts.{{expert}}.w2.weight", f"{OURS}experts.down_proj", EXPERTS),
        ),
        (  # as transformers holds it, and saves it on request
            *SAME_NAMES,
            rule(f"{OURS}gate.weight", f"{OURS}router.weight"),
            *(rule(name, name, TRANSPOSED) for name in (f"{OURS}experts.gate_up_proj", f"{OURS}experts.down_proj")),
        ),
    ),
    bare_prefix="model.",
)
