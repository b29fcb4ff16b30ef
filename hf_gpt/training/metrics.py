"""Metrics that a `Trainer` logs during training."""

from collections.abc import Callable
from typing import Any
from weakref import WeakMethod, finalize

import torch
from accelerate.utils import reduce
from torch import nn
from transformers import TrainerCallback


class ExpertMetrics(TrainerCallback):
    """Logs the terms of the loss and the load of the experts, with any `Trainer` of a language model.

        Trainer(model, args, train_dataset=data, callbacks=[ExpertMetrics()])

    Adds to each log with a `loss`, for the steps since the last log:

    - `lm_loss`: the loss without balancing terms;
    - `aux_loss`, `z_loss`: the balancing terms without their coefficients, means over micro-batches;
    - `max_violation`: the load of the busiest expert divided by the mean load, minus 1; the maximum of all layers
      (MaxVio, Wang et al. 2024, section 4.1).

    A dense model logs nothing more. A callback that reports the logs elsewhere must follow this one in `callbacks`.
    """

    def __init__(self) -> None:
        self.max_violations: list[float] = []
        """MaxVio of each sparse layer in the last log."""
        self._sums: dict[str, torch.Tensor] = {}
        self._remove_hook: Callable[[], Any] = lambda: None

    def on_train_begin(self, args, state, control, model: nn.Module, **kwargs) -> None:
        self.on_train_end(args, state, control)  # if the last run was interrupted
        add = WeakMethod(self._add)
        hook = model.register_forward_hook(lambda *call: add()(*call))
        self._remove_hook = finalize(self, hook.remove)  # an interrupted run does not call on_train_end

    def on_train_end(self, args, state, control, **kwargs) -> None:
        self._sums = {}
        self._remove_hook()

    def _add(self, model: nn.Module, inputs: tuple, outputs: Any) -> None:
        """Adds the outputs of a forward pass to the sums."""
        if not model.training or getattr(outputs, "tokens_per_expert", None) is None:
            return
        values = {name: getattr(outputs, name) for name in ("loss", "lm_loss", "aux_loss", "z_loss")}
        values |= {"tokens_per_expert": outputs.tokens_per_expert, "forwards": torch.ones_like(outputs.aux_loss)}
        for name, value in values.items():
            if value is not None:
                self._sums[name] = self._sums.get(name, 0) + value.detach()

    def on_log(self, args, state, control, logs: dict[str, float], **kwargs) -> None:
        if not self._sums or "loss" not in logs:
            return
        sums = {name: reduce(value) for name, value in self._sums.items()}
        load, forwards = sums["tokens_per_expert"], sums["forwards"]  # load: (layers, experts)
        self.max_violations = (load.amax(dim=1) / load.mean(dim=1) - 1).tolist()
        metrics = {name: (sums[name] / forwards).item() for name in ("aux_loss", "z_loss")}
        if "lm_loss" in sums:  # the Trainer scales it like the loss
            metrics["lm_loss"] = logs["loss"] * (sums["lm_loss"] / sums["loss"]).item()
        metrics["max_violation"] = max(self.max_violations)
        logs |= metrics
        state.log_history[-1] |= {**metrics, "max_violations": self.max_violations}
        self._sums = {}
