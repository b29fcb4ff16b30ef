"""Private operations of torch and transformers, each with a fallback in plain PyTorch.

This code is saved with checkpoints and has to run on later releases. An operation that a release has renamed, removed
or given other arguments is None here, and the fallback computes the same results more slowly. No other module of the
model calls a private operation.
"""

from collections.abc import Callable

import torch
from torch import nn

try:
    from transformers.distributed.parallel_utils import ALL_PARALLEL_STYLES
    from transformers.distributed.tensor_parallel import MoeExpertsParallel
except ImportError:  # transformers 5.17 cannot split experts over processes
    ALL_PARALLEL_STYLES, MoeExpertsParallel = None, object

try:
    from transformers.utils.output_capturing import _CAN_RECORD_REGISTRY as RECORDED_OUTPUTS
except ImportError:
    RECORDED_OUTPUTS = {}


def find_operation(path: str, *arguments: str) -> Callable | None:
    """Returns an operation of torch, or None if this release does not have it.

    Args:
        path: name below `torch`, such as `ops.aten.alias.default`.
        arguments: names of the arguments that the caller passes, in the order of the operation's schema. An operation
            without a schema is not checked.
    """
    found = torch
    for name in path.split("."):
        found = getattr(found, name, None)
        if found is None:
            return None
    schema = getattr(found, "_schema", None)
    if schema is not None and tuple(argument.name for argument in schema.arguments[: len(arguments)]) != arguments:
        return None
    return found


FUNCTORCH_ACTIVE = find_operation("_C._are_functorch_transforms_active")
DISPATCH_MODES = find_operation("_C._len_torch_dispatch_stack")
DISPATCH_MODE = find_operation("_C._get_dispatch_mode")
TRACING_MODES = [find_operation(f"_C._TorchDispatchModeKey.{name}") for name in ("FAKE", "PROXY")]
GLOBAL_HOOKS = find_operation("nn.modules.module._has_any_global_hook")
ALIAS = find_operation("ops.aten.alias.default", "self")

# Inductor compiles a linear layer on a CPU to the first. It has no backward, and no kernel in builds without oneDNN.
ONEDNN_LINEAR = find_operation("ops.mkldnn._linear_pointwise.default", "X", "W", "B", "attr", "scalars", "algorithm")
ONEDNN_PACK = find_operation("ops.mkldnn._reorder_linear_weight.default", "self", "batch_size")
if not torch.backends.mkldnn.is_available():
    ONEDNN_LINEAR = ONEDNN_PACK = None
ONEDNN_DTYPES = (torch.float32, torch.bfloat16)

# A product of two float16 matrices in float32, on CUDA.
FLOAT32_MATMUL = find_operation("ops.aten.mm.dtype", "self", "mat2", "out_dtype")

# The kernels of scaled_dot_product_attention on a CPU, with their log-sum-exp.
FLASH = find_operation(
    "ops.aten._scaled_dot_product_flash_attention_for_cpu.default",
    *("query", "key", "value", "dropout_p", "is_causal", "attn_mask", "scale"),
)
FLASH_BACKWARD = find_operation(
    "ops.aten._scaled_dot_product_flash_attention_for_cpu_backward.default",
    *("grad_out", "query", "key", "value", "out", "logsumexp", "dropout_p", "is_causal", "attn_mask", "scale"),
)

INT8_MATMUL = find_operation("ops.aten._weight_int8pack_mm.default", "self", "mat2", "scales")
INT4_MATMUL = find_operation("ops.aten._weight_int4pack_mm_for_cpu.default", "self", "mat2", "qGroupSize")
INT4_PACK = find_operation("ops.aten._convert_weight_to_int4pack_for_cpu.default", "self", "innerKTiles")


# --- who else looks at an operation --------------------------------------------------------------------------------


PLAIN_TYPES = (torch.Tensor, nn.Parameter)


def is_plain(*operands: torch.Tensor | None) -> bool:
    """True if no operand is quantized, sharded or fake, and nothing traces or transforms the operations: then an
    operation may be replaced by an autograd function."""
    for operand in operands:
        if operand is not None and (type(operand) not in PLAIN_TYPES or operand.is_meta):
            return False
    return not (is_traced() or is_forward_ad_active())


def is_traced(states: torch.Tensor | None = None) -> bool:
    """True where values of tensors cannot be read: in torch.compile, torch.export, torch.jit.trace, make_fx,
    FakeTensorMode and transforms of torch.func, and for a tensor on the meta device."""
    if states is not None and states.is_meta:
        return True
    if torch.compiler.is_compiling() or is_functorch_active() or torch.jit.is_tracing():
        return True
    if not is_observed() or DISPATCH_MODE is None:
        return False
    return any(mode is not None and DISPATCH_MODE(mode) is not None for mode in TRACING_MODES)


def is_observed() -> bool:
    """True under a dispatch mode, which receives each operation: FlopCounterMode does not know those of oneDNN."""
    return DISPATCH_MODES is not None and DISPATCH_MODES() > 0


def is_functorch_active() -> bool:
    """True inside torch.func transforms, which our autograd functions do not support, or if torch cannot report it."""
    return FUNCTORCH_ACTIVE is None or FUNCTORCH_ACTIVE()


def is_forward_ad_active() -> bool:
    """True inside `torch.autograd.forward_ad.dual_level`: our autograd functions have no forward derivative."""
    return getattr(torch.autograd.forward_ad, "_current_level", -1) >= 0


def has_global_hooks() -> bool:
    """True if hooks are registered for all modules (`register_module_forward_hook`)."""
    return GLOBAL_HOOKS is not None and GLOBAL_HOOKS()


def alias(tensor: torch.Tensor) -> torch.Tensor:
    """Returns a view of the tensor that autograd records as an operation of its own."""
    return tensor.view_as(tensor) if ALIAS is None else ALIAS(tensor)


# --- matrix products -----------------------------------------------------------------------------------------------


def suits_onednn(dtype: torch.dtype, *operands: torch.Tensor | None) -> bool:
    """True for plain tensors on a CPU in a dtype of oneDNN's linear kernel: the condition of `Route.ONEDNN` and of
    `matmul`."""
    if ONEDNN_LINEAR is None or dtype not in ONEDNN_DTYPES or not is_plain(*operands) or is_observed():
        return False
    return all(operand is None or operand.is_cpu for operand in operands)


def onednn_linear(states: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """Returns x W^T + b, for a weight of (out, in) or one that `pack_weight` has returned. Not differentiable."""
    return ONEDNN_LINEAR(states, weight, bias, "none", [], "")


def pack_weight(weight: torch.Tensor) -> torch.Tensor:
    """Returns a weight, (out, in), in the memory layout from which oneDNN reads it for a few rows."""
    return weight if ONEDNN_PACK is None else ONEDNN_PACK(weight, 1)


def matmul(left: torch.Tensor, right: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Returns left x right + bias, (..., n) by (n, m); by oneDNN on a CPU where no gradient is recorded."""
    if not torch.is_grad_enabled() and left.dtype == right.dtype and suits_onednn(left.dtype, left, right):
        return onednn_linear(left, right.t(), bias)
    return left @ right if bias is None else left @ right + bias


def matmul_float32(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
    """Returns left x right in float32, (n, k) by (k, m) in float16, whose range the product may exceed."""
    if FLOAT32_MATMUL is not None and left.is_cuda and torch.version.cuda:
        return FLOAT32_MATMUL(left, right, torch.float32)
    with torch.autocast(left.device.type, enabled=False):
        return left.float() @ right.float()


# --- attention with its log-sum-exp --------------------------------------------------------------------------------


def flash_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Attention of one batch on a CPU. Not differentiable: `flash_attention_backward` is its backward.

    Args:
        query: (B, heads, q, head_dim).
        key, value: (B, kv_heads, k, head_dim).
        mask: (B or 1, 1, q, k), added to the scores, in the dtype of the query.
        is_causal: the i-th query sees the first i + 1 keys.

    Returns:
        The output, (B, heads, q, head_dim), and the log-sum-exp of each row of scores, (B, heads, q, 1).
    """
    if FLASH is None:
        return plain_attention(query, key, value, mask, is_causal, scale)
    output, logsumexp = FLASH(query, key, value, 0.0, is_causal, attn_mask=mask, scale=scale)
    return output, logsumexp[..., None]


def flash_attention_backward(
    gradient: torch.Tensor,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    output: torch.Tensor,
    logsumexp: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Gradients of `flash_attention` with respect to query, key and value.

    `output` and `logsumexp` may be those of a softmax over more keys than these (Liu et al. 2023, ring attention).
    """
    if FLASH_BACKWARD is not None:
        statistics = logsumexp[..., 0].contiguous()
        return FLASH_BACKWARD(
            gradient, query, key, value, output, statistics, 0.0, is_causal, attn_mask=mask, scale=scale
        )
    groups = key.shape[:2]
    scores = attention_scores(query, key, mask, is_causal, scale)
    probabilities = (scores - logsumexp).exp()  # (B, heads, q, k)
    rows = (gradient * output).sum(dim=-1, keepdim=True)  # (B, heads, q, 1)
    to_probabilities = by_key_head(gradient, groups) @ value.transpose(-2, -1)
    to_scores = probabilities * (by_query_head(to_probabilities, query.shape[2]) - rows) * scale
    to_scores, probabilities = (by_key_head(states.to(query.dtype), groups) for states in (to_scores, probabilities))
    to_query = by_query_head(to_scores @ key, query.shape[2])
    to_key = to_scores.transpose(-2, -1) @ by_key_head(query, groups)
    return to_query, to_key, probabilities.transpose(-2, -1) @ by_key_head(gradient, groups)


def plain_attention(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor | None,
    is_causal: bool,
    scale: float,
    dropout: float = 0.0,
) -> tuple[torch.Tensor, torch.Tensor]:
    """The same as `flash_attention` in differentiable operations, on every device and with dropout."""
    scores = attention_scores(query, key, mask, is_causal, scale)
    logsumexp = scores.logsumexp(dim=-1, keepdim=True)
    probabilities = nn.functional.dropout((scores - logsumexp).exp(), dropout).to(value.dtype)
    output = by_key_head(probabilities, key.shape[:2]) @ value
    return by_query_head(output, query.shape[2]), logsumexp


def attention_scores(
    query: torch.Tensor, key: torch.Tensor, mask: torch.Tensor | None, is_causal: bool, scale: float
) -> torch.Tensor:
    """Scaled and masked scores in float32 at least, (B, heads, q, k)."""
    scores = by_key_head(query, key.shape[:2]) @ key.transpose(-2, -1) * scale
    scores = by_query_head(scores, query.shape[2])
    scores = scores.to(torch.promote_types(scores.dtype, torch.float32))
    if is_causal:
        seen = scores.new_ones(scores.shape[-2:], dtype=torch.bool).tril()
        return scores.masked_fill(~seen, torch.finfo(scores.dtype).min)
    return scores if mask is None else scores + mask


def by_key_head(states: torch.Tensor, groups: tuple[int, int]) -> torch.Tensor:
    """(B, heads, q, d) to (B, kv_heads, heads / kv_heads x q, d): query heads that share a key head become rows."""
    if torch.compiler.is_compiling() and groups[1] < states.shape[1]:  # torch.export cannot solve for a merged size
        return torch.cat(states.unflatten(1, (groups[1], -1)).unbind(2), dim=2)
    return states.reshape(*groups, -1, states.shape[-1])


def by_query_head(states: torch.Tensor, queries: int) -> torch.Tensor:
    """The reverse of `by_key_head`, in two steps, so that torch.export can solve for the sizes."""
    return states.view(*states.shape[:2], states.shape[2] // queries, queries, states.shape[-1]).flatten(1, 2)
