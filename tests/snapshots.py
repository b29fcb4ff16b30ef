"""The state of a model and of the code that runs it: what forward and generate() must leave as it was."""

import os
import sys
from typing import Any

import torch
from torch import nn
from torch._dynamo import eval_frame
from torch.nn.modules import module as module_state
from torch.optim import optimizer as optimizer_state
from transformers.utils.output_capturing import maybe_install_capturing_hooks

from hf_gpt.model.linear import PACKED


def state_of(model: nn.Module) -> dict[str, Any]:
    """Returns, by name, all attributes, parameters, buffers, hooks and configurations of a model, and the globals."""
    state = {}
    for name, module in model.named_modules():
        state |= {f"{name}: {attribute}": described(value) for attribute, value in vars(module).items()}
        if hasattr(module, "config"):
            state |= {f"{name}: config.{field}": repr(value) for field, value in vars(module.config).items()}
    for field, value in vars(model.generation_config).items():
        state[f"generation_config.{field}"] = repr(value)
    return state | globals_of_the_code()


def globals_of_the_code() -> dict[str, Any]:
    state = {
        "packed weights": PACKED.get(),
        "stance of torch.compile": eval_frame._stance,
        "hooks of all modules": described(module_state._global_forward_hooks),
        "hooks of all optimizers": len(optimizer_state._global_optimizer_post_hooks),
        "random numbers": torch.random.get_rng_state().numpy().tobytes(),
        "gradients are recorded": torch.is_grad_enabled(),
        "inference mode": torch.is_inference_mode_enabled(),
        "environment": dict(os.environ),
    }
    for name, module in [*sys.modules.items()]:
        if name.startswith("hf_gpt.model"):
            state |= {f"{name}.{attribute}": described(value) for attribute, value in vars(module).items()}
    return state


def described(value: Any) -> Any:
    """Returns what changes if a value is replaced or edited in place: its identity and its contents."""
    if isinstance(value, torch.Tensor):
        parts = value.__tensor_flatten__()[0] if hasattr(value, "__tensor_flatten__") else []
        contents = [described(getattr(value, part)) for part in parts] or [value._version, bits(value)]
        attributes = vars(value).keys() - {"packed"}  # the copy of an int4 weight that the kernel reads, made once
        return id(value), contents, None if value.grad is None else bits(value.grad), sorted(attributes)
    if isinstance(value, dict):
        return id(value), {repr(key): described(each) for key, each in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return id(value), [described(each) for each in value]
    return value if isinstance(value, (bool, int, float, str, type(None))) else id(value)


def bits(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()


def changes(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Returns the names whose values differ."""
    return [name for name in before | after if before.get(name, "absent") != after.get(name, "absent")]


def with_hooks(model: nn.Module) -> nn.Module:
    """Returns a model with the hooks that transformers installs where outputs are first requested, once for all."""
    maybe_install_capturing_hooks(getattr(model, "model", model))
    return model
