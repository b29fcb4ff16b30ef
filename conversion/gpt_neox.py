"""GPT-NeoX and Pythia (Black et al. 2022; Biderman et al. 2023)."""

from .family import TOKEN_IDS, Family
from .storage import Fields, Storage
from .weights import QKV_BY_HEAD, rule

BLOCK, OURS = "gpt_neox.layers.{layer}.", "model.layers.{layer}."

DECODER = (
    rule("gpt_neox.embed_in.weight", "model.embed_tokens.weight"),
    rule(f"{BLOCK}input_layernorm.*", f"{OURS}self_attn_norm.*"),
    rule(
        f"{BLOCK}attention.query_key_value.*",
        tuple(f"{OURS}self_attn.{part}_proj.*" for part in "qkv"),
        QKV_BY_HEAD,
    ),
    rule(f"{BLOCK}attention.dense.*", f"{OURS}self_attn.o_proj.*"),
    rule(f"{BLOCK}post_attention_layernorm.*", f"{OURS}mlp_norm.*"),
    rule(f"{BLOCK}mlp.dense_h_to_4h.*", f"{OURS}mlp.up_proj.*"),
    rule(f"{BLOCK}mlp.dense_4h_to_h.*", f"{OURS}mlp.down_proj.*"),
    rule("gpt_neox.final_layer_norm.*", "model.norm.*"),
)


def read(native: Fields) -> Fields:
    return {"embedding_dropout": native["hidden_dropout"]}


GPT_NEOX = Family(
    name="gpt_neox",
    storage=Storage("gpt_neox"),
    fields=TOKEN_IDS
    | {
        "vocab_size": "vocab_size",
        "hidden_size": "hidden_size",
        "num_hidden_layers": "num_hidden_layers",
        "num_attention_heads": "num_attention_heads",
        "intermediate_size": "intermediate_size",
        "hidden_act": "hidden_act",
        "attention_dropout": "attention_dropout",
        "hidden_dropout": "residual_dropout",
        "classifier_dropout": "classifier_dropout",
        "max_position_embeddings": "max_position_embeddings",
        "initializer_range": "initializer_range",
        "layer_norm_eps": "norm_eps",
        "use_cache": "use_cache",
        "tie_word_embeddings": "tie_word_embeddings",
        "use_parallel_residual": "parallel_residual",
        "rope_parameters": "rope_parameters",
        "attention_bias": "attention_bias",
    },
    constants={},
    read=read,
    aside=frozenset({"is_decoder"}),
    layouts=(
        (*DECODER, rule("embed_out.weight", "lm_head.weight")),
        (*DECODER, rule("lm_head.weight", "lm_head.weight")),  # the name of the module, in some fine-tuned checkpoints
    ),
    bare_prefix="gpt_neox.",
)
