"""The judgement of a configuration that was accepted: its model trains, is saved and loaded, and generates."""

import json
from pathlib import Path

import torch
import transformers
from tiny import random_ids
from transformers import AutoModelForCausalLM, PreTrainedModel, set_seed

from hf_gpt import GPTConfig
from hf_gpt.model.positions import longrope_threshold

MAX_WEIGHTS = 300_000  # of a model that is built
LENGTH, NEW_TOKENS = 7, 3
HEADS = ("SequenceClassification", "TokenClassification", "QuestionAnswering", "MultipleChoice")
GREEDY = {"do_sample": False, "pad_token_id": 0, "return_dict_in_generate": True, "output_logits": True}


def count_weights(config: GPTConfig) -> int:
    """Returns about the number of weights, without building the model."""
    width, inner = config.hidden_size, config.intermediate_size
    attention = width * config.head_dim * 2 * (config.num_attention_heads + config.num_key_value_heads)
    experts = (config.num_local_experts or 0) + config.num_shared_experts
    feed_forward = 3 * width * (inner + experts * (config.moe_intermediate_size or 0))
    positions = config.max_position_embeddings + config.position_offset
    learned = positions * width if config.position_embedding_type == "learned" else 0
    embeddings = 2 * (config.vocab_size + width + config.num_labels) * config.embedding_size
    return config.num_hidden_layers * (attention + feed_forward) + learned + embeddings


def build(config: GPTConfig, implementation: str) -> PreTrainedModel:
    """Returns a seeded language model with random weights."""
    set_seed(0)
    return AutoModelForCausalLM.from_config(config, attn_implementation=implementation, dtype=torch.float32)


def load(folder: Path, auto_class: str = "CausalLM", **options) -> PreTrainedModel:
    return getattr(transformers, f"AutoModelFor{auto_class}").from_pretrained(folder, dtype=torch.float32, **options)


def assert_works(model: PreTrainedModel, folder: Path, extra: str) -> None:
    """Trains a language model for a step, saves, loads, and generates with it.

    Args:
        folder: an empty folder.
        extra: one of `EXTRAS`, which is done too.
    """
    config = model.config
    assert_same_dictionaries(config)
    length = min(LENGTH, config.max_position_embeddings)
    ids = random_ids(2, length, low=0, high=min(config.vocab_size, 97))
    train(model, ids, labels=ids)
    model.eval().save_pretrained(folder)
    loaded = load(folder, attn_implementation=config._attn_implementation).eval()
    with torch.no_grad():
        expected = logits(model, ids)
        assert expected.isfinite().all(), "logits are not finite"
        assert torch.equal(logits(loaded, ids), expected), "other logits after loading"
        assert_generates(loaded, ids)
    EXTRAS[extra](loaded, folder, ids, expected)


def logits(model: PreTrainedModel, ids: torch.Tensor, **inputs) -> torch.Tensor:
    return model(ids, return_dict=True, **inputs).logits


def assert_close(actual: torch.Tensor, expected: torch.Tensor) -> None:
    difference = (actual - expected).abs().max() / expected.abs().max().clamp(min=1e-3)
    assert difference <= 2e-4, f"logits are {difference} apart"


def assert_same_dictionaries(config: GPTConfig) -> None:
    """The configuration is the same after JSON, and after replace()."""
    written = config.to_json_string()
    stored = json.loads(written)
    json.dumps(stored, allow_nan=False)
    assert GPTConfig.from_dict(stored).to_json_string() == written, "another configuration after JSON"
    assert config.replace().to_json_string() == written, "another configuration after replace()"


def train(model: PreTrainedModel, ids: torch.Tensor, **inputs) -> None:
    """One step of the optimizer: the loss and each gradient are finite, and every parameter has one."""
    if ids.shape[-1] < 2:  # nothing to predict: the mean is NaN
        return
    model.train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    loss = model(input_ids=ids, return_dict=True, **inputs).loss
    assert loss.isfinite(), f"loss={loss}"
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None or model.config.layerdrop, f"{name} has no gradient"
        assert parameter.grad is None or parameter.grad.isfinite().all(), f"the gradient of {name} is not finite"
    optimizer.step()


def assert_generates(model: PreTrainedModel, ids: torch.Tensor) -> None:
    """Greedy decoding of a left-padded batch with a cache has the logits of a forward pass without padding or cache."""
    config = model.config
    limit = config.max_position_embeddings if config.position_embedding_type == "learned" else LENGTH + NEW_TOKENS
    long = min(ids.shape[1], limit - NEW_TOKENS)
    if long < 1:
        return
    lengths = (long, max(1, long - 2))
    prompts = [row[:length] for row, length in zip(ids, lengths, strict=True)]
    padded = torch.stack([torch.nn.functional.pad(prompt, (long - len(prompt), 0)) for prompt in prompts])
    mask = torch.stack([(torch.arange(long) >= long - length).long() for length in lengths])
    options = {"max_new_tokens": NEW_TOKENS, "min_new_tokens": NEW_TOKENS, "use_cache": True}
    output = model.generate(padded, attention_mask=mask, **options, **GREEDY)
    assert output.sequences.max() < config.vocab_size
    for row, length in enumerate(lengths if is_cacheable(config, long) else ()):
        whole = output.sequences[row : row + 1, long - length : -1]
        steps = torch.stack([each[row] for each in output.logits])
        assert_close(steps, logits(model, whole, use_cache=False)[0, length - 1 :])


def is_cacheable(config: GPTConfig, length: int) -> bool:
    """False where cached keys are rotated otherwise than in a longer sequence: they are not rotated again."""
    rope, end = getattr(config, "rope_parameters", None) or {}, length + NEW_TOKENS
    original = rope.get("original_max_position_embeddings", config.max_position_embeddings)
    grows = rope.get("rope_type") == "dynamic" and min(original, config.max_position_embeddings) < end
    return not grows and longrope_threshold(config) >= end


@torch.no_grad()
def compare_implementations(model, folder, ids, expected) -> None:
    other = {"eager": "sdpa", "sdpa": "eager"}[model.config._attn_implementation]
    assert_close(logits(load(folder, attn_implementation=other).eval(), ids), expected)


@torch.no_grad()
def run_bfloat16(model, folder, ids, expected) -> None:
    assert logits(model.bfloat16(), ids).isfinite().all(), "bfloat16 logits are not finite"


@torch.no_grad()
def generate_without_cache(model, folder, ids, expected) -> None:
    room = model.config.max_position_embeddings - ids.shape[1]
    if model.config.position_embedding_type != "learned" or room > 0:
        model.generate(ids, attention_mask=torch.ones_like(ids), use_cache=False, max_new_tokens=1, do_sample=False)


def train_head(model, folder, ids, expected, name: str) -> None:
    """Trains a task head on the decoder."""
    head, rows = load(folder, name), ids.shape[0]
    zeros = torch.zeros(rows, dtype=torch.long)
    labels = {
        "SequenceClassification": {"labels": labels_of_rows(head.config, rows)},
        "TokenClassification": {"labels": torch.zeros_like(ids)},
        "QuestionAnswering": {"start_positions": zeros, "end_positions": zeros},
        "MultipleChoice": {"labels": zeros},
    }[name]
    ids = ids[:, None].repeat(1, 2, 1) if name == "MultipleChoice" else ids
    train(head, ids, attention_mask=torch.ones_like(ids), **labels)


def labels_of_rows(config: GPTConfig, rows: int) -> torch.Tensor:
    if config.problem_type == "multi_label_classification":
        return torch.ones(rows, config.num_labels)
    if config.problem_type == "regression" or config.num_labels == 1:
        return torch.ones(rows, config.num_labels).squeeze(-1)
    return torch.zeros(rows, dtype=torch.long)


EXTRAS = {
    "other implementation": compare_implementations,
    "bfloat16": run_bfloat16,
    "no cache": generate_without_cache,
    **{name: lambda *args, name=name: train_head(*args, name) for name in HEADS},
}
