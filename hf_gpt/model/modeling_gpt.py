"""The GPT decoder, as one Hugging Face model.

    input_ids -> embed_tokens -> project_in -> + positions -> dropout
              -> N x block:  x + attention(norm(x)),  x + feed_forward(norm(x))
              -> norm -> project_out -> lm_head, or the output layer of a task head

`GPTConfig` names each choice that makes this GPT-1, GPT-2, GPT-NeoX, OPT or gpt-oss. The modules are chosen when the
model is built; in a forward pass only masks, caches and layerdrop depend on the configuration.
"""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import nn
from transformers import Cache, DynamicCache, PreTrainedModel
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
from transformers.utils import TransformersKwargs, can_return_tuple
from transformers.utils.generic import merge_with_config_defaults
from transformers.utils.output_capturing import OutputRecorder, capture_outputs

from .attention import GPTAttention
from .attention_masks import create_attention_masks
from .balancing import BalancedDecoder, warn_unless_called_by_head
from .batch_layout import BatchLayout, check_inputs, padding_mask
from .caches import prepare_cache
from .checkpoints import CheckpointFiles
from .class_names import NamedModel
from .configuration_gpt import GPTConfig
from .embedding import look_up_tied, suits_tied_lookup
from .embedding_scale import build_embedding, build_projection
from .generation import GPTGenerationMixin
from .implementations import ImplementationChoice
from .initial_weights import InitialWeights
from .linear import project
from .losses import LossTerms, language_model_loss
from .moe import TopKRouter, build_feed_forward, routers_to_count
from .norms import build_norm
from .parallel_plans import is_missing
from .positions import build_positions, check_indices, identity
from .targets import Targets, check_rows, check_shape, next_token_targets


def build_dropout(probability: float) -> Callable[[torch.Tensor], torch.Tensor]:
    """Returns a dropout layer, or the identity for a probability of 0."""
    return nn.Dropout(probability) if probability else identity


class GPTBlock(GradientCheckpointingLayer):
    """Attention and feed-forward around the residual stream. Subclasses differ in the order of norms and sums."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__()
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
    """x + attention(norm(x)), then x + feed_forward(norm(x)): GPT-2 and most later models."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = hidden_states + self.attend(self.self_attn_norm(hidden_states), **kwargs)
        return hidden_states + self.feed_forward(self.mlp_norm(hidden_states))


class PostNormBlock(GPTBlock):
    """norm(x + attention(x)), then norm(x + feed_forward(x)): GPT-1, OPT 350M."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        hidden_states = self.self_attn_norm(hidden_states + self.attend(hidden_states, **kwargs))
        return self.mlp_norm(hidden_states + self.feed_forward(hidden_states))


class ParallelBlock(GPTBlock):
    """x + attention(norm_1(x)) + feed_forward(norm_2(x)): GPT-NeoX."""

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        attended = self.attend(self.self_attn_norm(hidden_states), **kwargs)
        return hidden_states + attended + self.feed_forward(self.mlp_norm(hidden_states))


class SharedNormBlock(GPTBlock):
    """x + attention(norm(x)) + feed_forward(norm(x)): GPT-J."""

    def __init__(self, config: GPTConfig, layer_idx: int) -> None:
        super().__init__(config, layer_idx)
        self.mlp_norm = None

    def forward(self, hidden_states: torch.Tensor, **kwargs: Unpack[TransformersKwargs]) -> torch.Tensor:
        normed = self.self_attn_norm(hidden_states)
        return hidden_states + self.attend(normed, **kwargs) + self.feed_forward(normed)


def block_class(config: GPTConfig) -> type[GPTBlock]:
    """Returns the block with the order of norms and residual sums that the configuration names."""
    if config.norm_position == "post":
        return PostNormBlock
    if config.parallel_residual:
        return SharedNormBlock if config.shared_norm else ParallelBlock
    return PreNormBlock


class GPTPreTrainedModel(CheckpointFiles, ImplementationChoice, InitialWeights, NamedModel, PreTrainedModel):
    """The base class of all models here: what transformers may do with them."""

    config_class = GPTConfig
    base_model_prefix = "model"
    supports_gradient_checkpointing = True
    _no_split_modules = []  # a model names the class of its blocks
    _skip_keys_device_placement = ["past_key_values"]
    # Experts follow the interface of `@use_experts_implementation`, a text that transformers looks for in this file.
    _can_record_outputs = {
        "hidden_states": GPTBlock,
        "attentions": GPTAttention,
        "router_logits": OutputRecorder(TopKRouter, index=0),
        "router_indices": OutputRecorder(TopKRouter, index=2),
    }

    def __init__(self, config: GPTConfig) -> None:
        config.validate()  # its fields may have been changed
        super().__init__(config)
        self._no_split_modules = {block_class(config).__name__}
        if config.router_bias_update_rate is not None:
            self._keep_in_fp32_modules_strict = {"e_score_correction_bias"}


@dataclass
class GPTModelOutput(MoeModelOutputWithPast):
    """For a mixture of experts also `router_indices`, the chosen experts of each sparse layer, (B x T, k).

    Tools that rebuild outputs, as FSDP 2 does, know an output by its fields.
    """

    router_indices: tuple[torch.LongTensor, ...] | None = None


class GPTModel(GPTPreTrainedModel, auto_class="AutoModel"):
    """The decoder without a head."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        width, embedding = config.hidden_size, config.embedding_size
        self.embed_tokens = build_embedding(config)
        self.project_in = build_projection(config, embedding, width)
        self.embed_positions, self.rotary_emb = build_positions(config)
        self.dropout = build_dropout(config.embedding_dropout)
        block = block_class(config)
        self.layers = nn.ModuleList(block(config, layer_idx) for layer_idx in range(config.num_hidden_layers))
        self.norm = build_norm(config, width) if config.final_norm else nn.Identity()
        self.project_out = build_projection(config, width, embedding)
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
        early_exit: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GPTModelOutput:
        """Run the decoder.

        Args:
            input_ids: (B, T), each in [0, vocab_size). Exactly one of this and `inputs_embeds`.
            attention_mask: (B, past + T), 1 for a token, 0 for padding, which may be anywhere; or a prepared mask,
                (B, 1, T, keys), or a mapping of these by attention pattern.
            position_ids: (B, T). By default counted from the attention mask, so that padding does not shift a token. A
                restart within a row, without attention mask and cache, starts a packed sequence.
            past_key_values: keys and values of `past` earlier slots, extended in place.
            inputs_embeds: (B, T, embedding_size), instead of `input_ids`.
            use_cache: return `past_key_values`, a new cache if none is passed.
            early_exit: run only this many first blocks (Elhoushi et al. 2024), by default all.

        Returns:
            `last_hidden_state` of (B, T, embedding_size), and what `use_cache`, `output_hidden_states`,
            `output_attentions` and `output_router_logits` request.

        Raises:
            ValueError: both or neither of `input_ids` and `inputs_embeds`; an argument of another shape or type; an id
                outside the vocabulary or a position beyond the learned ones (on a CPU; an accelerator asserts).
        """
        warn_unless_called_by_head(self, kwargs)
        check_inputs(input_ids, inputs_embeds)
        if inputs_embeds is None:
            rows = getattr(self.embed_tokens, "num_embeddings", self.config.vocab_size)  # a user may have replaced it
            check_indices("input_ids", input_ids, "vocab_size", rows)
            inputs_embeds = self.embed_tokens(input_ids)

        if self.training:
            self.config.check_token_ids()  # a Trainer may have set them; saving would fail, after the training
        batch, length = inputs_embeds.shape[:2]
        tokens = BatchLayout(batch, length, inputs_embeds.device, attention_mask, position_ids, past_key_values)
        masks = create_attention_masks(self.config, inputs_embeds, tokens)
        position_ids = tokens.position_ids
        if use_cache and past_key_values is None:
            past_key_values = DynamicCache(config=self.config)
        prepare_cache(self.config, past_key_values, tokens)

        hidden_states = inputs_embeds
        if not is_missing(self.layers[0]):  # a later pipeline stage continues with hidden states
            hidden_states = self.dropout(self.embed_positions(project(self.project_in, inputs_embeds), position_ids))
        position_embeddings = self.rotary_emb(hidden_states, position_ids)
        routers = routers_to_count(self)
        for block, pattern in self.blocks_to_run(early_exit):
            hidden_states = block(
                hidden_states,
                attention_mask=masks[pattern],
                position_embeddings=position_embeddings,
                position_ids=position_ids,
                past_key_values=past_key_values,
                use_cache=use_cache,
                **kwargs,
            )
        for router in routers:
            router.count(tokens.mask)
        if not is_missing(self.layers[-1]):
            hidden_states = project(self.project_out, self.norm(hidden_states))
        return GPTModelOutput(last_hidden_state=hidden_states, past_key_values=past_key_values)

    @property
    def routers(self) -> list[TopKRouter]:
        """The routers of the sparse layers, in order."""
        return [module for module in self.modules() if isinstance(module, TopKRouter)]

    def blocks_to_run(self, early_exit: int | None = None) -> Iterable[tuple[GPTBlock, str]]:
        """Returns the first blocks, by default all, and their attention patterns; in training without those that
        layerdrop skips."""
        depth, patterns = self.config.num_hidden_layers, self.config.attention_patterns
        if depth > len(patterns):
            self.config.check_depth()  # raises
        if early_exit is not None and not 0 < early_exit <= depth:
            raise ValueError(f"early_exit={early_exit}: expected 1 to {depth}, by num_hidden_layers={depth}")
        blocks = zip(self.layers[: early_exit or depth], patterns, strict=False)
        if not (self.training and self.config.layerdrop):
            return blocks
        return [block for block in blocks if torch.rand(()).item() >= self.config.layerdrop]


@dataclass
class GPTCausalLMOutput(MoeCausalLMOutputWithPast):
    """For a mixture of experts also `lm_loss`, `aux_loss` and `z_loss`, scalars without coefficients, and
    `tokens_per_expert`, (sparse layers, experts)."""

    lm_loss: torch.Tensor | None = None
    z_loss: torch.Tensor | None = None
    tokens_per_expert: torch.Tensor | None = None


class GPTForCausalLM(BalancedDecoder, GPTPreTrainedModel, GPTGenerationMixin, auto_class="AutoModelForCausalLM"):
    """The decoder as a language model."""

    _tied_weights_keys = {"lm_head.weight": "model.embed_tokens.weight"}
    _tp_plan = {"lm_head": "colwise_gather_output"}
    _pp_plan = {"lm_head": (["hidden_states"], ["logits"])}
    _fsdp_plan = {"lm_head": "keep_full_weight"}

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        self.model = GPTModel(config)
        self.lm_head = nn.Linear(config.embedding_size, config.vocab_size, bias=config.lm_head_bias)
        self.post_init()

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
        early_exit: int | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> GPTCausalLMOutput:
        """Predict the token after each one. The arguments are those of `GPTModel`, and:

        Args:
            labels: (B, T), usually `input_ids`; -100 (or `ignore_index`) is ignored. They are shifted: position t
                predicts the label at t + 1. If all are ignored, the mean is NaN, as in PyTorch.
            logits_to_keep: compute the logits of this many last positions (0: of all), or of these indices.
            skip_logits: return the loss without logits, in memory that does not depend on the length. The default is
                True in training with labels.

        Returns:
            `logits` of (B, kept positions, vocab_size), and with labels `loss`, the mean cross-entropy in nats. For a
            mixture of experts, in training or if `output_router_logits` requests it, also `lm_loss`, `aux_loss` and
            `z_loss`, whose weighted sum is `loss`, and `tokens_per_expert`.

        Raises:
            ValueError: as `GPTModel`; a label outside the vocabulary (on a CPU); `skip_logits=True` without labels or
                with a loss function of the user.
        """
        skip_logits, tied_weight = self.resolve_skip_logits(skip_logits, labels), None
        embedding, head = self.model.embed_tokens, self.lm_head
        if skip_logits and inputs_embeds is None and suits_tied_lookup(embedding, head, input_ids):
            inputs_embeds, tied_weight = look_up_tied(head.weight, input_ids)
            input_ids = None
        outputs, balance = self.run_decoder(
            input_ids,
            attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            early_exit=early_exit,
            has_labels=labels is not None,
            **kwargs,
        )
        hidden_states, logits, loss, lm_loss = outputs.last_hidden_state, None, None, None
        if not skip_logits:
            kept = slice(-logits_to_keep, None) if isinstance(logits_to_keep, int) else logits_to_keep
            logits = project(self.lm_head, hidden_states[:, kept])
        if labels is not None:
            if hasattr(self, "_loss_function"):  # of the user, who may have labels of any shape
                targets = Targets(labels, kwargs.get("num_items_in_batch"))
                lm_loss = self.loss_function(logits, labels, vocab_size=self.config.vocab_size, **kwargs)
            else:
                targets = next_token_targets(labels, hidden_states, **kwargs)
                in_order = logits if isinstance(logits_to_keep, int) else None
                lm_loss = self.compute_loss(hidden_states, in_order, targets, tied_weight)
            loss = self.add_balance(lm_loss, balance, targets)
        result = GPTCausalLMOutput(
            loss=loss,
            logits=logits,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            router_logits=outputs.router_logits,
        )
        if balance is not None:  # behind the other fields, so that their indices are those of a dense model
            result.lm_loss = lm_loss
            result.tokens_per_expert, result.aux_loss, result.z_loss = balance
        return result

    def resolve_skip_logits(self, skip_logits: bool | None, labels: torch.Tensor | None) -> bool:
        """Returns whether to compute the loss without logits, by default in training. A loss function that the user has
        set (`model.loss_function = ...`) needs logits."""
        if skip_logits and labels is None:
            raise ValueError("skip_logits=True without labels: expected labels, or there is nothing to return")
        if skip_logits and hasattr(self, "_loss_function"):
            raise ValueError("skip_logits=True with a loss_function of the user: expected False, it needs logits")
        can_skip = labels is not None and not hasattr(self, "_loss_function")
        return can_skip and (self.training if skip_logits is None else skip_logits)

    def compute_loss(
        self,
        hidden_states: torch.Tensor,
        logits: torch.Tensor | None,
        targets: Targets,
        tied_weight: torch.Tensor | None,
    ) -> torch.Tensor:
        """Returns the loss of the language model, a scalar, from logits of all positions if these exist."""
        config, options = self.config, {"vocab_size": self.config.vocab_size, "tied_weight": tied_weight}
        terms = LossTerms(config.label_smoothing, config.lm_z_loss_coef) if self.training else LossTerms()
        has_all_logits = logits is not None and logits.shape[1] == hidden_states.shape[1]
        head, states = (identity, logits) if has_all_logits else (self.lm_head, hidden_states)
        return language_model_loss(head, states, targets, terms, **options)


class Prediction(NamedTuple):
    """What a task head computes."""

    loss: torch.Tensor | None
    logits: torch.Tensor
    decoder: GPTModelOutput

    def as_fields(self, *names: str) -> dict[str, Any]:
        """Returns the fields that the outputs of all heads have, and further ones of the decoder's output."""
        names = ("hidden_states", "attentions", *names)
        return {"loss": self.loss, "logits": self.logits} | {name: getattr(self.decoder, name) for name in names}


class GPTTaskModel(BalancedDecoder, GPTPreTrainedModel):
    """The decoder with a linear output layer, `score`, on each token or on the last one of each row."""

    pools = False
    """Whether the last token of each row is scored, instead of all."""

    def __init__(self, config: GPTConfig, num_outputs: int | None = None) -> None:
        super().__init__(config)
        self.num_labels = config.num_labels
        self.model = GPTModel(config)
        self.dropout = build_dropout(config.classifier_dropout)
        self.score = nn.Linear(config.embedding_size, num_outputs or config.num_labels)
        self.post_init()

    def mean_loss(self, logits: torch.Tensor, labels: Any) -> torch.Tensor:
        """Returns the mean loss of the scores, a scalar."""
        raise NotImplementedError

    def predict(
        self,
        labels: Any,
        input_ids: torch.LongTensor | None,
        attention_mask: torch.Tensor | None,
        position_ids: torch.LongTensor | None,
        inputs_embeds: torch.FloatTensor | None,
        *,
        use_cache: bool | None = False,
        num_items_in_batch: torch.Tensor | int | None = None,
        **kwargs,
    ) -> Prediction:
        """Runs decoder, output layer and loss, with the arguments of the head's `forward`. Logits are (B, T, outputs),
        or (B, outputs) if the head pools."""
        inputs = {"position_ids": position_ids, "inputs_embeds": inputs_embeds, "use_cache": use_cache, **kwargs}
        outputs, balance = self.run_decoder(input_ids, attention_mask, has_labels=labels is not None, **inputs)
        states = outputs.last_hidden_state
        logits = project(
            self.score, self.dropout(self.pool(states, input_ids, attention_mask) if self.pools else states)
        )
        loss = None
        if labels is not None:
            targets = Targets(labels, num_items_in_batch)
            loss = self.add_balance(targets.per_item(self.mean_loss(logits, labels)), balance, targets)
        return Prediction(loss, logits, outputs)

    def pool(
        self, hidden_states: torch.Tensor, input_ids: torch.Tensor | None, attention_mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Returns the state of each row's last token, which has seen all others. (B, T, D) to (B, D).

        Raises:
            ValueError: several rows, without an attention mask or a padding token.
        """
        mask = padding_mask(attention_mask)
        if mask is None and input_ids is not None and self.config.pad_token_id is not None:
            mask = input_ids.ne(self.config.pad_token_id)
        if mask is None and hidden_states.shape[0] > 1:
            raise ValueError(
                "attention_mask=None and pad_token_id=None for several rows: expected one of them, to find the last "
                "token of each row (without padding, a mask of ones)"
            )
        if mask is None:
            return hidden_states[:, -1]
        slots = torch.arange(hidden_states.shape[1], device=hidden_states.device)
        last = (slots * mask[:, -len(slots) :].to(slots)).argmax(dim=-1)  # (B,), with padding on either side
        return hidden_states[torch.arange(hidden_states.shape[0], device=last.device), last]


class GPTForSequenceClassification(GPTTaskModel, auto_class="AutoModelForSequenceClassification"):
    """One class, several classes or a number for each row, from its last token."""

    pools = True

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
        """`logits` of (B, num_labels). `labels` are, by `config.problem_type`, classes, (B,); numbers, (B,) or
        (B, num_labels); or zeros and ones, (B, num_labels). Other arguments are those of `GPTModel`."""
        kwargs |= {"past_key_values": past_key_values, "use_cache": use_cache, "num_items_in_batch": num_items_in_batch}
        prediction = self.predict(labels, input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        return SequenceClassifierOutputWithPast(**prediction.as_fields("past_key_values"))

    def mean_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        check_rows("labels", labels, logits)
        return self.loss_function(labels=labels, pooled_logits=logits, config=self.config)


class GPTForTokenClassification(GPTTaskModel, auto_class="AutoModelForTokenClassification"):
    """One class for each token."""

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> TokenClassifierOutput:
        """`logits` of (B, T, num_labels). `labels` are classes, (B, T); -100 is ignored. Other arguments are those of
        `GPTModel`."""
        prediction = self.predict(labels, input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        return TokenClassifierOutput(**prediction.as_fields())

    def mean_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        check_shape("labels", labels, logits)
        return self.loss_function(logits, labels, self.config)


class GPTForQuestionAnswering(GPTTaskModel, auto_class="AutoModelForQuestionAnswering"):
    """The span of the text that answers a question."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, num_outputs=2)

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
        """`start_logits` and `end_logits` of (B, T). `start_positions` and `end_positions` are slots in [0, T), (B,).
        Other arguments are those of `GPTModel`."""
        labels = None if start_positions is None or end_positions is None else (start_positions, end_positions)
        kwargs |= {"num_items_in_batch": None}  # the Trainer counts `labels`, not positions
        prediction = self.predict(labels, input_ids, attention_mask, position_ids, inputs_embeds, **kwargs)
        fields = prediction.as_fields()
        start_logits, end_logits = fields.pop("logits").unbind(dim=-1)
        return QuestionAnsweringModelOutput(start_logits=start_logits, end_logits=end_logits, **fields)

    def mean_loss(self, logits: torch.Tensor, labels: tuple[torch.Tensor, torch.Tensor]) -> torch.Tensor:
        return self.loss_function(*logits.unbind(dim=-1), *labels)


class GPTForMultipleChoice(GPTTaskModel, auto_class="AutoModelForMultipleChoice"):
    """The best of several texts, each scored by its last token."""

    pools = True

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config, num_outputs=1)

    @can_return_tuple
    def forward(
        self,
        input_ids: torch.LongTensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.LongTensor | None = None,
        inputs_embeds: torch.FloatTensor | None = None,
        labels: torch.LongTensor | None = None,
        **kwargs: Unpack[TransformersKwargs],
    ) -> MultipleChoiceModelOutput:
        """`logits` of (B, choices) for inputs of (B, choices, T). `labels` are the indices of the right choices, (B,).
        Other arguments are those of `GPTModel`."""
        inputs = (input_ids, attention_mask, position_ids, inputs_embeds)
        texts = input_ids if inputs_embeds is None else inputs_embeds
        if labels is not None:
            check_rows("labels", labels, texts)
        choices = texts.shape[1]
        rows = [each if each is None else each.flatten(0, 1) for each in inputs]  # (B x choices, T)
        fields = self.predict(labels, *rows, **kwargs).as_fields()
        return MultipleChoiceModelOutput(**fields | {"logits": fields["logits"].view(-1, choices)})

    def mean_loss(self, logits: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        return nn.functional.cross_entropy(logits.view(len(labels), -1).float(), labels)


TASK_MODELS = (GPTForSequenceClassification, GPTForTokenClassification, GPTForQuestionAnswering, GPTForMultipleChoice)
AUTO_CLASSES = {each.auto_class: each for each in (GPTModel, GPTForCausalLM, *TASK_MODELS)}
"""The class of each Auto class."""
