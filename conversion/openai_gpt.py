"""GPT-1 (Radford et al. 2018): `OpenAIGPTLMHeadModel`. Post-norm, without a final norm."""

from ..model.configuration_gpt import GPTConfig
from .family import Family
from .gpt2 import CAUSAL_MASKS, CONV1D_BLOCK, FIELDS, GPT2
from .storage import Fields, Storage
from .weights import rule

# Native activations; what GPT-1 calls `gelu` is the approximation by tanh.
ACTIVATIONS = {"gelu": "gelu_new", "relu": "relu", "silu": "silu", "swish": "swish"}
NATIVE_ACTIVATIONS = {ours: native for native, ours in ACTIVATIONS.items()} | {"gelu_pytorch_tanh": "gelu"}


def read(native: Fields) -> Fields:
    if native["afn"] not in ACTIVATIONS:
        raise ValueError(f"afn={native['afn']!r}: expected one of {', '.join(ACTIVATIONS)}")
    return {"hidden_act": ACTIVATIONS[native["afn"]]}


def write(config: GPTConfig) -> Fields:
    if config.hidden_act not in NATIVE_ACTIVATIONS:
        raise ValueError(f"hidden_act={config.hidden_act!r} cannot be expressed by openai-gpt")
    return {"afn": NATIVE_ACTIVATIONS[config.hidden_act]}


OPENAI_GPT = Family(
    storage=Storage("openai-gpt"),
    fields=FIELDS,
    constants={"position_embedding_type": "learned", "norm_position": "post"},
    read=read,
    write=write,
    passthrough=GPT2.passthrough,
    layouts=(
        (
            rule("transformer.tokens_embed.weight", "model.embed_tokens.weight"),
            rule("transformer.positions_embed.weight", "model.embed_positions.weight"),
            *CONV1D_BLOCK,
            rule("lm_head.weight", "lm_head.weight"),
        ),
    ),
    base_model_prefix="transformer.",
    computed=(*CAUSAL_MASKS, ".position_ids"),
)
