"""The factor on the token embeddings, and that models of every position type and width learn."""

import copy
import json
import math
from functools import cache

import pytest
import torch
from overfitting import overfit
from peft import LoraConfig, PromptTuningConfig, get_peft_model
from tiny import make_model, random_ids
from torch import nn
from transformers import AutoModelForCausalLM

from hf_gpt import GPTConfig, GPTForCausalLM, GPTForSequenceClassification
from hf_gpt.recipes import find_origin
from hf_gpt.surgery import quantize, set_attention_patterns, upcycle

# Position types, scales and widths of the embeddings.
SHAPES = {
    "sinusoidal": {"position_embedding_type": "sinusoidal"},
    "untied": {"position_embedding_type": "sinusoidal", "tie_word_embeddings": False},
    "narrow": {"position_embedding_type": "sinusoidal", "hidden_size": 64, "embedding_size": 32},
    "gemma": {"embedding_scale": math.sqrt(32)},
    "post": {"position_embedding_type": "learned", "norm_position": "post", "embedding_scale": 3.0},
}


@pytest.fixture(params=SHAPES)
def shape(request):
    return SHAPES[request.param]


def test_embeddings_are_scaled(shape):
    model, ids = make_model(**shape), random_ids(2, 7)
    embedding = model.get_input_embeddings()
    expected = nn.functional.embedding(ids, embedding.weight) * model.config.embedding_scale
    assert torch.equal(embedding(ids), expected)
    assert embedding.embed_scale == model.config.embedding_scale > 1


def test_a_scale_of_1_adds_no_operation():
    assert type(make_model(embedding_scale=1.0).get_input_embeddings()).__name__ == "Embedding"


@pytest.mark.parametrize("model_class", [GPTForCausalLM, GPTForSequenceClassification])
def test_embeddings_of_the_module_are_inputs_of_the_decoder(shape, model_class):
    """PEFT and TRL call it to make `inputs_embeds`: these are used unchanged."""
    model, ids = make_model(model_class=model_class, pad_token_id=0, **shape), random_ids(2, 7)
    embeds = model.get_input_embeddings()(ids)
    mask = torch.ones_like(ids)
    expected = model(ids, attention_mask=mask).logits
    assert torch.equal(model(inputs_embeds=embeds, attention_mask=mask).logits, expected)


def test_the_scale_is_a_factor_on_the_weight(shape):
    scaled, plain = (
        make_model(**shape | {"tie_word_embeddings": False, **scale}) for scale in ({}, {"embedding_scale": 1.0})
    )
    weights = scaled.state_dict()
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"] * scaled.config.embedding_scale
    plain.load_state_dict(weights)
    ids = random_ids(2, 7)
    assert torch.allclose(scaled(ids).logits, plain(ids).logits, atol=1e-5)


def test_gradients_without_logits(shape):
    """The gradient of a tied weight counts the scale where it is an embedding, and not where it is the head."""
    model, ids = make_model(**shape).train(), random_ids(2, 9)
    gradients = []
    for skip_logits in (True, False):
        model.zero_grad()
        model(ids, labels=ids, skip_logits=skip_logits).loss.backward()
        gradients.append({name: parameter.grad for name, parameter in model.named_parameters()})
    for name, gradient in gradients[1].items():
        torch.testing.assert_close(gradients[0][name], gradient, rtol=1e-4, atol=1e-6, msg=name)


@pytest.mark.parametrize("scheme", ["int8", "int4"])
def test_quantized_embeddings_are_scaled(shape, scheme):
    model, ids = make_model(**shape), random_ids(2, 7)
    expected, embedding = model.get_input_embeddings()(ids), quantize(model, scheme).get_input_embeddings()
    assert embedding.embed_scale == model.config.embedding_scale
    assert torch.allclose(embedding(ids).float(), expected, atol=0.03 * expected.abs().max().item())


def test_resized_embeddings_are_scaled(shape):
    model, ids = make_model(**shape), random_ids(1, 5)
    before = model.get_input_embeddings()(ids)
    model.resize_token_embeddings(120)
    assert torch.equal(model.get_input_embeddings()(ids), before)


@pytest.mark.parametrize(
    "options", [{"target_modules": ["embed_tokens"]}, {"target_modules": ["q_proj"], "trainable_token_indices": [5, 7]}]
)
def test_adapters_of_embeddings_are_scaled(shape, options):
    """PEFT computes with the adapter what it computes after the adapter is merged."""
    model = make_model(**shape | {"tie_word_embeddings": False})
    adapted = get_peft_model(model, LoraConfig(task_type="CAUSAL_LM", init_lora_weights=False, **options)).eval()
    ids = torch.tensor([[5, 6, 7, 8]])
    with torch.no_grad():
        for name, parameter in adapted.named_parameters():
            if "trainable_tokens_delta" in name:
                parameter.add_(1.0)
        expected = adapted(input_ids=ids).logits
        merged = adapted.merge_and_unload()(input_ids=ids).logits
    assert torch.allclose(merged, expected, atol=1e-4 * expected.abs().max().item())


def test_soft_prompts_of_token_embeddings(shape):
    """A soft prompt with the embeddings of tokens has the logits of these tokens."""
    model, ids = make_model(**shape), random_ids(1, 8)
    expected = model(ids).logits[:, 3:]
    width = model.config.embedding_size  # the default of PEFT is hidden_size
    prompt = PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=3, token_dim=width)
    prompted = get_peft_model(model, prompt).eval()
    with torch.no_grad():
        prompted.prompt_encoder["default"].embedding.weight.copy_(model.get_input_embeddings()(ids[0, :3]))
        logits = prompted(input_ids=ids[:, 3:]).logits[:, 3:]
    assert torch.allclose(logits, expected, atol=1e-5)


def test_surgery_keeps_the_scale(shape):
    model, ids = make_model(**shape), random_ids(2, 12)
    expected = model(ids).logits
    for changed in (set_attention_patterns(model, "dense"), upcycle(model), copy.deepcopy(model)):
        assert changed.config.embedding_scale == model.config.embedding_scale
        assert torch.allclose(changed(ids).logits, expected, atol=1e-4)


# --- checkpoints from before the field -----------------------------------------------------------------------------


def save_earlier(folder, **fields):
    """Saves a model with a scale of 1 as the versions did that had no `embedding_scale`, and returns it."""
    model = make_model("sinusoidal", embedding_scale=1.0, **fields)
    model.save_pretrained(folder)
    path = folder / "config.json"
    stored = json.loads(path.read_text())
    assert stored.pop("embedding_scale") == 1.0
    path.write_text(json.dumps(stored))
    return model


def overridden(folder):
    return GPTForCausalLM.from_pretrained(folder, attention_dropout=0.1)


def replaced(folder):
    return GPTForCausalLM.from_pretrained(folder, config=GPTConfig.from_pretrained(folder).replace(use_cache=False))


def from_origin(folder):
    return GPTForCausalLM.from_pretrained(folder, config=find_origin(str(folder), {"attention_dropout": 0.1}).config)


def saved_again(folder):
    GPTForCausalLM.from_pretrained(folder).save_pretrained(folder / "again")
    return GPTForCausalLM.from_pretrained(folder / "again", attention_dropout=0.1)


LOADS = {
    "model": GPTForCausalLM.from_pretrained,
    "auto": AutoModelForCausalLM.from_pretrained,
    "overridden": overridden,
    "replaced": replaced,
    "origin": from_origin,
    "saved again": saved_again,
    "other patterns": lambda folder: set_attention_patterns(GPTForCausalLM.from_pretrained(folder), "dense"),
}


@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False}, {"embedding_size": 16}], ids=str)
def test_an_earlier_checkpoint_keeps_its_logits(load, fields, tmp_path):
    model, ids = save_earlier(tmp_path, **fields), random_ids(2, 7)
    loaded = load(tmp_path).eval()
    assert loaded.config.embedding_scale == 1
    assert torch.equal(loaded(ids).logits, model(ids).logits)


@pytest.mark.parametrize("fields", [{}, {"tie_word_embeddings": False}, {"embedding_size": 16}], ids=str)
@pytest.mark.parametrize("load", LOADS.values(), ids=LOADS)
def test_a_checkpoint_keeps_its_logits(load, fields, tmp_path):
    model, ids = make_model("sinusoidal", **fields), random_ids(2, 7)
    model.save_pretrained(tmp_path)
    loaded = load(tmp_path).eval()
    assert loaded.config.embedding_scale == math.sqrt(32)
    assert torch.equal(loaded(ids).logits, model(ids).logits)


# --- learning ------------------------------------------------------------------------------------------------------

SYMBOLS, LENGTH = 64, 32
POSITIONS = ("learned", "sinusoidal", "rope", "none")


@cache
def written_text() -> torch.Tensor:
    """Returns 20,000 symbols of a Markov chain: each symbol has four successors. The unigram entropy is 3.5 nats, that
    of a symbol after another one 0.56."""
    generator = torch.Generator().manual_seed(0)
    successors = [torch.randperm(SYMBOLS, generator=generator)[:4].tolist() for _ in range(SYMBOLS)]
    probabilities = torch.tensor([0.85, 0.1, 0.03, 0.02])
    text = [0]
    for choice in torch.multinomial(probabilities, 20_000, replacement=True, generator=generator).tolist():
        text.append(successors[text[-1]][choice])
    return torch.tensor(text)


def unigram_entropy() -> float:
    counts = written_text().bincount().double()
    return torch.distributions.Categorical(counts).entropy().item()


def learned_loss(**fields) -> float:
    """Returns the mean loss of the last ten of 60 steps, each on eight new rows of the text."""
    sizes = {"vocab_size": SYMBOLS, "hidden_size": 64, "max_position_embeddings": LENGTH, "initializer_range": 0.02}
    model, text = make_model(**sizes | fields).train(), written_text()
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3)
    generator = torch.Generator().manual_seed(0)
    losses = []
    for _ in range(60):
        starts = torch.randint(len(text) - LENGTH, (8, 1), generator=generator)
        ids = text[starts + torch.arange(LENGTH)]
        loss = model(ids, labels=ids).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        losses.append(loss.item())
    return sum(losses[-10:]) / 10


@cache
def loss_of_rope(**fields) -> float:
    return learned_loss(**fields)


@pytest.mark.parametrize("embedding_size", [64, 16])
@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize("positions", [positions for positions in POSITIONS if positions != "rope"])
def test_every_position_type_learns(positions, tied, norm_position, embedding_size):
    fields = {"tie_word_embeddings": tied, "norm_position": norm_position, "embedding_size": embedding_size}
    loss = learned_loss(position_embedding_type=positions, **fields)
    assert loss < loss_of_rope(**fields) + 0.15 < unigram_entropy() / 2


def test_the_decoder_of_tutorials_learns():
    """Sinusoidal positions, post-norm, an output layer of its own: from embeddings of 0.02 its loss is 2.4."""
    loss = learned_loss(
        position_embedding_type="sinusoidal",
        norm_position="post",
        hidden_act="gelu",
        attention_scale=64**-0.5,
        tie_word_embeddings=False,
        lm_head_bias=True,
    )
    assert loss < 1.1


@pytest.mark.parametrize("norm_position", ["pre", "post"])
@pytest.mark.parametrize("positions", POSITIONS)
def test_narrow_embeddings_overfit_one_batch(positions, norm_position):
    """As in transformers' `test_training_overfit`, the loss and the norm of the gradients fall by 90 %."""
    fields = {"position_embedding_type": positions, "norm_position": norm_position, "embedding_size": 16}
    model = make_model(initializer_range=0.02, qk_norm=True, intermediate_size=32, **fields).train()
    ids = torch.arange(1, 20).repeat(4)[None, :64].repeat(2, 1)

    def gradient_norm():
        gradients = torch.autograd.grad(model(ids, labels=ids).loss, list(model.parameters()))
        return nn.utils.get_total_norm(gradients).item()

    norm = gradient_norm()
    losses = overfit(model, ids, steps=200, learning_rate=1e-3)
    assert losses[-1] < 0.1 * losses[0]
    assert gradient_norm() < 0.1 * norm
