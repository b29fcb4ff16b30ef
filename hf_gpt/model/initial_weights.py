"""Initial weights of each kind of module."""

import math

import torch
from torch import nn
from transformers import initialization as init

from .attention import GPTAttention
from .experts import Experts
from .moe import BiasedChoiceRouter, TopKRouter


class InitialWeights:
    """The part of a model class that initializes weights."""

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Initializes the parameters of one module.

            linear layers, embeddings, routers, sinks      normal, std = initializer_range
            o_proj, down_proj of a pre-norm block          normal, std / sqrt(2 x layers) (GPT-2, section 2.3)
            embed_tokens with sinusoidal positions         normal, 1/2 / embedding_scale (`build_embedding`)
            project_in, project_out                        normal, embedding_size^-1/2 (`build_projection`)
            norms                                          1
            all biases                                     0

        The second line keeps the variance of the residual stream, a sum of 2 x layers outputs, independent of depth. A
        post-norm block normalizes each sum, and draws them as all others (GPT-1, section 4.1).
        """
        super()._init_weights(module)
        std = self.config.initializer_range
        residual_layers = 2 * self.config.num_hidden_layers if self.config.norm_position == "pre" else 1
        residual_std = std / math.sqrt(residual_layers)
        if getattr(module, "writes_to_residual", False):
            init.normal_(module.weight, mean=0.0, std=residual_std)
        if hasattr(module, "initial_std"):
            init.normal_(module.weight, mean=0.0, std=module.initial_std)
        if isinstance(module, GPTAttention) and self.config.attention_sinks:
            init.normal_(module.sinks, mean=0.0, std=std)
        if isinstance(module, Experts):
            init.normal_(getattr(module, module.first), mean=0.0, std=std)
            init.normal_(module.down_proj, mean=0.0, std=residual_std)
            if module.has_bias:
                init.zeros_(getattr(module, f"{module.first}_bias"))
                init.zeros_(module.down_proj_bias)
        if isinstance(module, TopKRouter):
            init.normal_(module.weight, mean=0.0, std=std)
            if module.bias is not None:
                init.zeros_(module.bias)
        if isinstance(module, BiasedChoiceRouter):
            init.zeros_(module.e_score_correction_bias)
