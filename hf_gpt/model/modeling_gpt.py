"""The GPT decoder, as one Hugging Face model.

    input_ids -> embed_tokens -> project_in -> + positions -> dropout
              -> N x block:  x + attention(norm(x)),  x + feed_forward(norm(x))
              -> norm -> project_out -> lm_head, or the output layer of a task head

Every choice that makes GPT-1, GPT-2, GPT-NeoX, OPT or gpt-oss of it is named by a field of `GPTConfig` and taken when
the model is built: forward passes do not ask.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from functools import wraps
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from transformers import Cache, DynamicCache, GenerationMixin, PreTrainedModel
from transformers import initialization as init
from transformers.modeling_layers import GradientCheckpointingLayer
from transformers.modeling_outputs import (
    MoeCausalLMOutputWithPast,
    MoeModelOutputWithPast,
    MultipleChoiceModelOutput,
    QuestionAnsweringModelOutput,
    SequenceClassifierOutputWithPast,
    TokenClassifierOutput,
)
from transformers.processing_utils import Unpack
from transformers.utils import TransformersKwargs, can_return_tuple, logging
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import GPTAttention
from .attention_masks import create_attention_masks
from .balancing import Balance, measure_balance, weighted_losses
from .caches import expect_tokens, shape_cache
from .configuration_gpt import OWN_PATTERNS, GPTConfig
from .embedding import Embedding, look_up_tied, worth_tying
from .experts import Experts
from .linear import PACKED, Linear, PackedWeights
from .losses import Terms, language_model_loss, per_item
from .moe import BiasedChoiceRouter, TopKRouter, build_feed_forward
from .norms import build_norm
from .positions import build_positions, change_over, check_indices, keep

logger = logging.get_logger(__name__)

# Prompts that are twice as long are read in parts: what a layer needs for a moment stays small.
PREFILL_CHUNK = 4096

NEEDS_TORCHAO = "quantised weights need torchao: pip install 'hf_gpt[quant]'"


def build_dropout(probability: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """A dropout of 0 is no layer at all."""
    return nn.Dropout(probability) if probability else keep


class GPTBlock(GradientCheckpointingLayer):
    """Attention and feed-forward round the residual stream; the subclasses are the orders of the lineage."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
        self.attention_pattern = config.attention_patterns[layer_idx]
        self.self_attn_norm = build_norm(config, config.hidden_size)
        self.self_attn = GPTAttention(config, layer_idx)
        self.mlp_norm = build_norm(config, config.hidden_size)
        self.mlp = build_feed_forward(config, layer_idx)
        self.dropout = build_dropout(config.residual_dropout)

    def attend(self, hidden_states: torch.Tensor, **kwargs) -> torch.Tensor:
        return self.dropout(self.self_attn(hidden_states, **kwargs)[0])

    def feed_forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return self.dropout(self.mlp(hidden_states))


class PreNormBlock(GPTBlock):
    """GPT-2 and most of what followed."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = hidden_states + self.attend(self.self_attn_norm(hidden_states), **kwargs)
        return hidden_states + self.feed_forward(self.mlp_norm(hidden_states))


class PostNormBlock(GPTBlock):
    """GPT-1, OPT 350M."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.self_attn_norm(hidden_states + self.attend(hidden_states, **kwargs))
        return self.mlp_norm(hidden_states + self.feed_forward(hidden_states))


class ParallelBlock(GPTBlock):
    """GPT-NeoX."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended = self.attend(self.self_attn_norm(hidden_states), **kwargs)
        return hidden_states + attended + self.feed_forward(self.mlp_norm(hidden_states))


class SharedNormBlock(GPTBlock):
    """GPT-J."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.mlp_norm = None

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        normed = self.self_attn_norm(hidden_states)
        return hidden_states + self.attend(normed, **kwargs) + self.feed_forward(normed)


def block_class(config: GPTConfig) -> type[GPTBlock]:
    """The order of residual sums and norms that the configuration names."""
    if config.norm_position == "post":
        return PostNormBlock
    if config.parallel_residual:
        return SharedNormBlock if config.shared_norm else ParallelBlock
    return PreNormBlock


class GPTPreTrainedModel(PreTrainedModel):
    """What all models here share: what transformers may do with them, their initial weights, how they are saved."""

    config_class = GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = ["PreNormBlock", "PostNormBlock", "ParallelBlock", "SharedNormBlock"]
    _skip_keys_device_placement = ["past_key_values"]
    _supports_sdpa = True
    _supports_flex_attn = True
    _supports_attention_backend = True
    _can_compile_fullgraph = True
    _can_record_outputs = {
        "hidden_states": GPTBlock,
        "attentions": GPTAttention,
        "router_logits": OutputRecorder(TopKRouter, index=0),
        "router_indices": OutputRecorder(TopKRouter, index=2),
    }

    # In the manner of `@use_experts_implementation`; transformers asks the class, before there is a configuration.
    has_built_experts = False

    def __init__(self, config: GPTConfig) -> None:
        config.validate()  # it may have been changed since it was made
        if config.num_local_experts is not None:
            GPTPreTrainedModel.has_built_experts = True
        super().__init__(config)
        if config.router_bias_update_rate is not None:
            self._keep_in_fp32_modules_strict = {"e_score_correction_bias"}

    @classmethod
    def _can_set_experts_implementation(cls) -> bool:
        return GPTPreTrainedModel.has_built_experts

    @property
    def _supports_flash_attn(self) -> bool:
        return not self.config.attention_sinks and not set(OWN_PATTERNS) & set(self.config.attention_patterns)

    def _check_and_adjust_attn_implementation(self, attn_implementation: str | None, *args, **kwargs) -> str:
        """Choose the attention implementation, as in the base class; none that would leave something out in silence."""
        refuse_implementation(self.config, attn_implementation or "")
        return super()._check_and_adjust_attn_implementation(attn_implementation, *args, **kwargs)

    def get_correct_experts_implementation(self, requested_experts: str | None) -> str:
        """Choose the experts implementation, as in the base class. On a CPU ours is the fastest."""
        if requested_experts is None and not torch.accelerator.is_available():
            return "eager"
        return super().get_correct_experts_implementation(requested_experts)

    def _grouped_mm_can_dispatch(self) -> bool:
        for name in ("hidden_size", "moe_intermediate_size"):
            if (getattr(self.config, name) or 0) % 8:
                raise ValueError(f"{name}={getattr(self.config, name)}: grouped_mm expects multiples of 8")
        return super()._grouped_mm_can_dispatch()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        """Normal weights and zero biases; N = 2 x layers projections into the residual stream scaled by 1 / sqrt(N), so
        that their sum keeps the variance of one (GPT-2, section 2.3)."""
        super()._init_weights(module)
        std = self.config.initializer_range
        residual_std = std / math.sqrt(2 * self.config.num_hidden_layers)
        if getattr(module, "writes_to_residual", False):
            init.normal_(module.weight, mean=0.0, std=residual_std)
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
            init.zeros_(module.tokens_per_expert)

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path, *args, **kwargs):
        """Load a checkpoint, as in the base class.

        Raises:
            OSError: a weight file is missing or truncated.
            ValueError: the checkpoint is another architecture's; or it is quantised, and `quantization_config` asks
                for that once more.
            ImportError: the checkpoint is quantised by torchao, which is not installed.
        """
        if kwargs.get("config") is not None and (Path(pretrained_model_name_or_path or "") / "config.json").is_file():
            cls.config_class.get_config_dict(pretrained_model_name_or_path)  # refuses another architecture's weights
        if kwargs.get("quantization_config") is not None:
            refuse_quantized(kwargs.get("config") or cls.config_class.from_pretrained(pretrained_model_name_or_path))
        try:
            return super().from_pretrained(pretrained_model_name_or_path, *args, **kwargs)
        except ModuleNotFoundError as error:
            raise ImportError(NEEDS_TORCHAO) if (error.name or "").startswith("torchao") else error from None
        except SafetensorError as error:
            raise OSError(f"{broken_weights(pretrained_model_name_or_path)} is truncated or damaged: {error}") from None

    def save_pretrained(self, save_directory, *args, **kwargs) -> None:
        """Save weights, configuration and this code, so that every Auto class loads the folder without hf_gpt installed
        (`trust_remote_code=True`)."""
        self.config.auto_map = {**(getattr(self.config, "auto_map", None) or {}), **AUTO_MAP}
        self._keys_to_ignore_on_save = tied_parts(self)
        if getattr(self, "hf_quantizer", None) is not None:
            kwargs["save_original_format"] = False  # transformers cannot turn what it has loaded back into it
        super().save_pretrained(save_directory, *args, **kwargs)


def refuse_implementation(config: GPTConfig, implementation: str) -> None:
    """Raise a ValueError for an attention implementation that does not know what the model is made of."""
    sparse = [pattern for pattern in OWN_PATTERNS if pattern in config.attention_patterns]
    if sparse and ("flash" in implementation or "paged" in implementation):
        raise ValueError(
            f"attn_implementation={implementation!r} knows no {' or '.join(sparse)} layers (attention_patterns): "
            "choose sdpa, eager or flex_attention"
        )
    if config.attention_sinks and ("flash" in implementation or implementation == "paged|sdpa"):
        raise ValueError(
            f"attn_implementation={implementation!r} would leave out the attention sinks (attention_sinks): choose "
            "sdpa, eager or, on an accelerator, flex_attention"
        )


def refuse_quantized(config: GPTConfig) -> None:
    """Raise a ValueError if the weights are quantised."""
    if getattr(config, "quantization_config", None) is not None:
        raise ValueError("the model is quantised already (quantization_config): expected the one that it was made of")


def tied_parts(model: PreTrainedModel) -> list[str]:
    """The tensors that quantised, tied weights would be saved in once more. (torchao copies them; other tied weights
    transformers recognises by their memory.)"""
    parts = []
    for tied, source in model.all_tied_weights_keys.items():
        module, _, name = tied.rpartition(".")
        weight = model.get_parameter(source)
        if hasattr(weight, "__tensor_flatten__"):
            parts += [f"{module}._{name}_{part}" for part in weight.__tensor_flatten__()[0]]
    return parts


def broken_weights(checkpoint: str | Path) -> str:
    """The first weight file of a local folder that cannot be opened; otherwise the name of the checkpoint."""
    for path in sorted(Path(checkpoint).glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError:
            return str(path)
    return str(checkpoint)


class GPTModel(GPTPreTrainedModel):
    """The decoder without a head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        width, embedding = config.hidden_size, config.embedding_size
        projected = width != embedding
        self.embed_tokens = Embedding(config.vocab_size, embedding)  # no padding_idx: it would freeze a shared <eos>
        self.project_in = Linear(embedding, width, bias=False) if projected else nn.Identity()
        self.embed_positions, self.rotary_emb = build_positions(config)
        self.dropout = build_dropout(config.embedding_dropout)
        block = block_class(config)
        self.layers = nn.ModuleList(block(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = build_norm(config, width) if config.final_norm else nn.Identity()
        self.project_out = Linear(width, embedding, bias=False) if projected else nn.Identity()
        self.gradient_checkpointing = False
        self.post_init()

    @merge_with_config_defaults
    @capture_outputs
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        use_cache: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MoeModelOutputWithPast:
        """Run the decoder.

        Args:
            input_ids: (B, T), each in [0, vocab_size). Exactly one of this and `inputs_embeds`.
            attention_mask: (B, past + T), 1 where there is a token, 0 where there is padding; on either side.
            position_ids: (B, T). By default counted from the attention mask, so that padding does not move a token;
                a restart within a row, without attention mask and cache, separates packed sequences.
            past_key_values: keys and values of `past` earlier positions, extended in place.
            inputs_embeds: (B, T, embedding_size), instead of `input_ids`.
            use_cache: return `past_key_values`, made here if not given.

        Returns:
            `last_hidden_state` of (B, T, embedding_size), and what was asked for by `use_cache`,
            `output_hidden_states`, `output_attentions` and `output_router_logits`.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; no token at all; a token id outside the
                vocabulary, or a position beyond the learned ones (on the CPU; an accelerator asserts).
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise ValueError("expected exactly one of input_ids and inputs_embeds")
        given = input_ids if inputs_embeds is None else inputs_embeds
        if not given.numel():
            raise ValueError(f"inputs of shape {tuple(given.shape)}: expected at least one token")
        if inputs_embeds is None:
            check_indices("input_ids", input_ids, "vocab_size", self.config.vocab_size)
            inputs_embeds = self.embed_tokens(input_ids)
        # Before a cache is made: packed sequences are looked for only where there is none.
        masks = create_attention_masks(self.config, inputs_embeds, attention_mask, past_key_values, position_ids)
        if position_ids is None:
            position_ids = count_positions(inputs_embeds, attention_mask, past_key_values)
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        shape_cache(self.config, past_key_values)
        expect_tokens(past_key_values, attention_mask, inputs_embeds.shape[1])

        hidden_states = self.embed_positions(self.project_in(inputs_embeds), position_ids)
        hidden_states = self.dropout(hidden_states)
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        for block in self.blocks_to_run():
            hidden_states = block(
                hidden_states,
                attention_mask=masks[block.attention_pattern],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        hidden_states = self.project_out(self.norm(hidden_states))
        return MoeModelOutputWithPast(last_hidden_state=hidden_states, past_key_values=past_key_values)

    @property
    def routers(self) -> list[TopKRouter]:
        """Those of the sparse layers, in their order."""
        blocks = zip(self.blocks_to_run(), self.config.mlp_layer_types, strict=False)
        return [block.mlp.router for block, kind in blocks if kind == "sparse"]

    def blocks_to_run(self) -> Iterable[GPTBlock]:
        """All blocks, or what layerdrop leaves of them in training."""
        blocks = self.layers[: self.config.num_hidden_layers]  # generate() may lower it, to draft with the first layers
        if not (self.training and self.config.layerdrop):
            return blocks
        return [block for block in blocks if torch.rand(()).item() >= self.config.layerdrop]


def count_positions(
    inputs_embeds: torch.Tensor, attention_mask: torch.Tensor | None, past_key_values: Cache | None
) -> torch.LongTensor:
    """Positions of the T new tokens: how many tokens, padding not counted, precede each. (B, T) or (1, T)."""
    length = inputs_embeds.shape[1]
    if isinstance(attention_mask, torch.Tensor) and attention_mask.ndim == 2:
        return (attention_mask.long().cumsum(dim=-1) - 1).clamp(min=0)[:, -length:]
    past = past_key_values.get_seq_length() if past_key_values is not None else 0
    return (torch.arange(length, device=inputs_embeds.device) + past)[None]


class GPTHeadModel(GPTPreTrainedModel):
    """A decoder under a head; in training the head sees to it that the experts are used evenly."""

    def run_decoder(
        self, input_ids: torch.LongTensor | None, attention_mask: torch.Tensor | None, **kwargs
    ) -> tuple[MoeModelOutputWithPast, Balance | None]:
        """What `GPTModel` returns, and how evenly its experts were used: in training, or where `output_router_logits`
        asks for it."""
        asked = kwargs.pop("output_router_logits", getattr(self.config, "output_router_logits", False))
        learns = self.training and torch.is_grad_enabled()
        inputs = {"input_ids": input_ids, "attention_mask": attention_mask, **kwargs, "return_dict": True}
        if "sparse" not in self.config.mlp_layer_types or not (learns or asked):
            return self.model(**inputs, output_router_logits=False), None
        outputs = self.model(**inputs, output_router_logits=True, output_router_indices=True)
        if not outputs.router_logits:  # generate() drafts with the first layers
            return outputs, None
        routed = (outputs.router_logits, outputs.router_indices, attention_mask)
        balance = measure_balance(*routed, self.config, over_processes=learns)
        if learns and self.config.router_bias_update_rate:
            for router, load in zip(self.model.routers, balance.tokens_per_expert, strict=True):
                if router.weight.requires_grad:
                    router.tokens_per_expert.add_(load)
        if learns and self.model.gradient_checkpointing and not balance.aux_loss.requires_grad:
            logger.warning_once("reentrant gradient checkpointing cuts the routers off from their balancing losses")
        if not asked:
            outputs.router_logits = None
        return outputs, balance

    def add_balance(
        self,
        loss: torch.Tensor,
        balance: Balance | None,
        targets: torch.Tensor,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> torch.Tensor:
        """A loss with the balancing losses, each by its coefficient, for this micro-batch's share of a batch."""
        if balance is None:
            return loss
        return loss + per_item(weighted_losses(balance, self.config), targets, num_items_in_batch)


@dataclass
class GPTCausalLMOutput(MoeCausalLMOutputWithPast):
    """Of a mixture of experts also, in training: what the loss is made of, and how evenly its experts are used.

    `aux_loss` and `z_loss` are without their coefficients; `tokens_per_expert` is (sparse layers, experts).
    """

    lm_loss: torch.Tensor | None = None
    z_loss: torch.Tensor | None = None
    tokens_per_expert: torch.Tensor | None = None


class GPTForCausalLM(GPTHeadModel, GenerationMixin):
    """The decoder as a language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    # generate() makes the masks of static caches itself: by the model's patterns, not by the layer types alone
    create_masks_for_generate = staticmethod(create_attention_masks)

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = Linear(config.embedding_size, config.vocab_size, bias=config.lm_head_bias)
        self.change_over = change_over(config)
        self.post_init()

    @wraps(GenerationMixin.generate)
    def generate(self, *args, **kwargs):
        """Continue token ids, as in transformers. Long prompts are read in parts, and bfloat16 weights packed."""
        token = PACKED.set(None)
        try:
            return super().generate(*args, **kwargs)
        finally:
            PACKED.reset(token)  # with what was packed for it

    def _prepare_cache_for_generation(self, generation_config, model_kwargs, *args, **kwargs) -> None:
        mask = model_kwargs.get("attention_mask")
        prompt = mask.shape[1] if isinstance(mask, torch.Tensor) else 0
        if generation_config.max_length - prompt >= PackedWeights.WORTH:
            PACKED.set(PackedWeights())
        if prompt >= 2 * PREFILL_CHUNK and self.reads_in_chunks(generation_config, model_kwargs):
            generation_config.prefill_chunk_size = PREFILL_CHUNK
        super()._prepare_cache_for_generation(generation_config, model_kwargs, *args, **kwargs)
        cache = model_kwargs.get("past_key_values")
        shape_cache(self.config, cache)
        if generation_config.is_assistant and cache is not None:
            cache.activate_past_recording()  # once more: the layers may be new

    def reads_in_chunks(self, generation_config, model_kwargs) -> bool:
        """Whether generate() may read a long prompt in parts: where it has a cache and token ids, and nobody has chosen
        otherwise; nor do rotary positions depend on how much is read at once."""
        rope = getattr(self.config, "rope_parameters", None) or {}
        ids = generation_config.use_cache and model_kwargs.get("inputs_embeds") is None
        chosen = generation_config.is_assistant or generation_config.prefill_chunk_size is not None
        return ids and not chosen and rope.get("rope_type") not in ("dynamic", "longrope")

    @wraps(GenerationMixin.prepare_inputs_for_generation)  # transformers asks for its arguments
    def prepare_inputs_for_generation(self, input_ids, *args, past_key_values=None, **kwargs):
        # Where longrope changes over to its long factors, the keys in the cache are rotated by the short ones.
        past = past_key_values.get_seq_length() if past_key_values is not None else 0
        if 0 < past <= self.change_over < input_ids.shape[1]:
            past_key_values = kwargs["next_sequence_length"] = None  # all over again
        return super().prepare_inputs_for_generation(input_ids, *args, past_key_values=past_key_values, **kwargs)

    def init_continuous_batching(self, *args, **kwargs):
        """Start continuous batching (`generate_batch`), as in transformers."""
        refuse_implementation(self.config, "paged|" + self.config._attn_implementation.removeprefix("paged|"))
        return super().init_continuous_batching(*args, **kwargs)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        use_cache: bool | None = None,
        logits_to_keep: int | torch.Tensor = 0,
        skip_logits: bool | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GPTCausalLMOutput:
        """Predict the token after each one; the arguments are those of `GPTModel`, and:

        Args:
            labels: (B, T), usually `input_ids`; -100 is ignored. Shifted here, so that position t predicts t + 1.
                Without any that count, the mean is NaN, as in PyTorch.
            logits_to_keep: make logits of the last so many positions only (0: of all), or of these indices.
            skip_logits: make no logits, only the loss, whose memory then does not depend on the length. By default in
                training with labels.

        Returns:
            `logits` of (B, kept positions, vocab_size), and `loss`, the mean cross-entropy in nats, with labels. Of a
            mixture of experts also `lm_loss`, `aux_loss` and `z_loss`, whose weighted sum `loss` is, and
            `tokens_per_expert`: in training, or where `output_router_logits` asks for it.
        """
        skip_logits, tied_weight = self.skips_logits(skip_logits, labels), None
        if skip_logits and inputs_embeds is None and worth_tying(self.model.embed_tokens, self.lm_head, input_ids):
            inputs_embeds, tied_weight = look_up_tied(self.lm_head.weight, input_ids)
            input_ids = None
        outputs, balance = self.run_decoder(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        hidden_states, logits, loss, lm_loss = outputs.last_hidden_state, None, None, None
        if not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = self.lm_head(hidden_states[:, kept])
        if labels is not None:
            lm_loss = self.compute_loss(hidden_states, logits, labels, tied_weight=tied_weight, **kwargs)
            targets = labels[..., 1:] if kwargs.get("shift_labels") is None else kwargs["shift_labels"]
            loss = self.add_balance(lm_loss, balance, targets, kwargs.get("num_items_in_batch"))
        outputs = GPTCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )
        if balance is not None:
            outputs.lm_loss = lm_loss
            outputs.tokens_per_expert, outputs.aux_loss, outputs.z_loss = balance
        return outputs

    def skips_logits(self, asked: bool | None, labels: torch.Tensor | None) -> bool:
        """Whether only the loss is to be made: as asked, or else in training. A loss function of the user's own
        (`model.loss_function = ...`) needs the logits."""
        if asked is not None and asked and labels is None:
            raise ValueError("skip_logits=True without labels: there would be nothing to return")
        if hasattr(self, "_loss_function") or labels is None:
            return False
        return self.training if asked is None else asked

    def compute_loss(
        self,
        hidden_states: torch.Tensor,
        logits: torch.Tensor | None,
        labels: torch.Tensor,
        tied_weight: torch.Tensor | None,
        **kwargs,
    ) -> torch.Tensor:
        """The loss of the language model, from the logits if they are there."""
        if hasattr(self, "_loss_function"):
            return self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
        terms = Terms(self.config.label_smoothing, self.config.lm_z_loss_coef) if self.training else Terms()
        whole = logits is not None and logits.shape[1] == hidden_states.shape[1]
        head, states = (keep, logits) if whole else (self.lm_head, hidden_states)
        vocab_size = self.config.vocab_size
        return language_model_loss(
            head, states, labels, terms=terms, vocab_size=vocab_size, tied_weight=tied_weight, **kwargs
        )


class GPTTaskModel(GPTHeadModel):
    """The decoder under a linear output layer, `score`."""

    def __init__(self, config: GPTConfig, outputs: int) -> None:
        super().__init__(config)
        self.model = GPTModel(config)
        self.dropout = build_dropout(config.classifier_dropout)
        self.score = Linear(config.embedding_size, outputs)
        self.post_init()

    def pool(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """The state of each row's last token, which alone has seen all others. (B, T, D) to (B, D)."""
        if attention_mask is None and input_ids is not None and self.config.pad_token_id is not None:
            attention_mask = input_ids.ne(self.config.pad_token_id)
        if attention_mask is None:
            if hidden_states.shape[0] > 1:
                raise ValueError(
                    "several rows, but nothing that tells their padding: pass attention_mask, or set "
                    "config.pad_token_id. (Where there is no padding, a mask of ones.)"
                )
            return hidden_states[:, -1]
        slots = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        # (B,); padding may stand on either side
        last = (slots * attention_mask[:, -len(slots) :].to(slots)).argmax(dim=-1)
        return hidden_states[torch.arange(hidden_states.shape[0], device=last.device), last]


class GPTForSequenceClassification(GPTTaskModel):
    """One label, several labels or a number for each row, from its last token."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, outputs=config.num_labels)
        self.num_labels = config.num_labels

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        past_key_values: Cache | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> SequenceClassifierOutputWithPast:
        """`logits` of (B, num_labels). `labels` are classes, (B,); numbers, (B,) or (B, num_labels); or several labels
        at once as zeros and ones, (B, num_labels): see `config.problem_type`."""
        outputs, balance = self.run_decoder(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            **kwargs,
        )
        pooled = self.pool(outputs.last_hidden_state, input_ids, attention_mask)
        logits = self.score(self.dropout(pooled))
        loss = None
        if labels is not None:
            loss = self.loss_function(labels=labels, pooled_logits=logits, config=self.config)
            loss = self.add_balance(per_item(loss, labels, num_items_in_batch), balance, labels, num_items_in_batch)
        return SequenceClassifierOutputWithPast(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class GPTForTokenClassification(GPTTaskModel):
    """One label for each token."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, outputs=config.num_labels)
        self.num_labels = config.num_labels

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """`logits` of (B, T, num_labels); `labels`, (B, T), -100 is ignored."""
        outputs, balance = self.run_decoder(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{"use_cache": False, **kwargs},
        )
        logits = self.score(self.dropout(outputs.last_hidden_state))
        loss = None
        if labels is not None:
            loss = per_item(self.loss_function(logits, labels, self.config), labels, num_items_in_batch)
            loss = self.add_balance(loss, balance, labels, num_items_in_batch)
        return TokenClassifierOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


class GPTForQuestionAnswering(GPTTaskModel):
    """The span of the text that answers a question."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, outputs=2)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        start_positions: torch.LongTensor | None = None,
        end_positions: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> QuestionAnsweringModelOutput:
        """`start_logits` and `end_logits` of (B, T); `start_positions` and `end_positions`, (B,), slots in [0, T)."""
        outputs, balance = self.run_decoder(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            inputs_embeds=inputs_embeds,
            **{"use_cache": False, **kwargs},
        )
        start_logits, end_logits = self.score(self.dropout(outputs.last_hidden_state)).unbind(dim=-1)
        loss = None
        if start_positions is not None and end_positions is not None:
            loss = self.loss_function(start_logits, end_logits, start_positions, end_positions)
            loss = self.add_balance(loss, balance, start_positions)
        return QuestionAnsweringModelOutput(
            loss=loss,
            start_logits=start_logits,
            end_logits=end_logits,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
        )


class GPTForMultipleChoice(GPTTaskModel):
    """The best of several texts, each scored by its last token."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, outputs=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """`logits` of (B, choices) for inputs of (B, choices, T); `labels`, (B,), the index of the right choice."""
        given = input_ids if input_ids is not None else inputs_embeds
        inputs = {
            "input_ids": input_ids,
            "attention_mask": attention_mask,
            "position_ids": position_ids,
            "inputs_embeds": inputs_embeds,
        }
        inputs = {name: value if value is None else value.flatten(0, 1) for name, value in inputs.items()}
        outputs, balance = self.run_decoder(**{"use_cache": False, **inputs, **kwargs})
        pooled = self.pool(outputs.last_hidden_state, inputs["input_ids"], inputs["attention_mask"])
        logits = self.score(self.dropout(pooled)).view(given.shape[:2])
        loss = None
        if labels is not None:
            loss = per_item(nn.functional.cross_entropy(logits.float(), labels), labels, num_items_in_batch)
            loss = self.add_balance(loss, balance, labels, num_items_in_batch)
        return MultipleChoiceModelOutput(
            loss=loss, logits=logits, hidden_states=outputs.hidden_states, attentions=outputs.attentions
        )


# Every Auto class loads its model from any checkpoint saved here: this names the file and class that each one needs.
AUTO_CLASSES = {
    "AutoModel": GPTModel,
    "AutoModelForCausalLM": GPTForCausalLM,
    "AutoModelForSequenceClassification": GPTForSequenceClassification,
    "AutoModelForTokenClassification": GPTForTokenClassification,
    "AutoModelForQuestionAnswering": GPTForQuestionAnswering,
    "AutoModelForMultipleChoice": GPTForMultipleChoice,
}
AUTO_MAP = {"AutoConfig": "configuration_gpt.GPTConfig"} | {
    auto_class: f"modeling_gpt.{model_class.__name__}" for auto_class, model_class in AUTO_CLASSES.items()
}
