"""A longer context: each method against its formula, and the models that it makes."""

import math

import pytest
import torch
from greedy import GREEDY, without_cache
from native import assert_close, save_native
from overfitting import overfit
from stranger import stranger
from tiny import make_config, make_model, random_ids
from transformers import AutoModelForCausalLM, modeling_rope_utils

from hf_gpt import GPTConfig, GPTForCausalLM, GPTForTokenClassification, GPTModel
from hf_gpt.conversion import convert, export
from hf_gpt.surgery import extend_context, extended_config
from hf_gpt.surgery.context import METHODS

# 16 rotated dimensions and 64 tokens. By this base some dimensions rotate often in 64 tokens, others less than once.
THETA, DIM, OLD, NEW = 500.0, 16, 64, 256
ROPE = {"rope_type": "default", "rope_theta": THETA, "partial_rotary_factor": 0.5}
GROWTH = NEW / OLD
SIZES = {"head_dim": 32, "rope_parameters": ROPE}


def frequencies(theta: float = THETA) -> list[float]:
    return [theta ** (-2 * i / DIM) for i in range(DIM // 2)]


def yarn(beta_fast: float = 32, beta_slow: float = 1, truncate: bool = True) -> list[float]:
    """As in the authors' code: a ramp over the dimensions, between those of beta_fast and beta_slow rotations."""

    def dimension(rotations):
        return DIM * math.log(OLD / (rotations * 2 * math.pi)) / (2 * math.log(THETA))

    low, high = dimension(beta_fast), dimension(beta_slow)
    if truncate:
        low, high = math.floor(low), math.ceil(high)
    low, high = max(low, 0), min(high, DIM - 1)
    ramp = [min(1, max(0, (i - low) / (high - low))) for i in range(DIM // 2)]
    return [f / GROWTH * r + f * (1 - r) for f, r in zip(frequencies(), ramp, strict=True)]


RAISED = THETA * GROWTH ** (DIM / (DIM - 2))
SOFTMAX = 0.1 * math.log(GROWTH) + 1
LONG = math.sqrt(1 + math.log(GROWTH) / math.log(OLD))
SEARCHED = [1.0, 1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0]
# Method, options, inverse frequencies, and factor of cosines and sines for a sequence of NEW tokens.
FORMULAS = {
    "linear": ("linear", {}, [f / GROWTH for f in frequencies()], 1.0),
    "ntk": ("ntk", {}, frequencies(RAISED), 1.0),
    "ntk, given base": ("ntk", {"rope_theta": 7e3}, frequencies(7e3), 1.0),
    "dynamic": ("dynamic", {}, frequencies(RAISED), 1.0),
    "yarn": ("yarn", {}, yarn(), SOFTMAX),
    "yarn, other rotations": ("yarn", {"beta_fast": 8, "beta_slow": 2}, yarn(8, 2), SOFTMAX),
    "yarn, not truncated": ("yarn", {"truncate": False, "attention_factor": 1.5}, yarn(truncate=False), 1.5),
    "longrope": ("longrope", {}, yarn(), LONG),
    "longrope, given factors": (
        "longrope",
        {"long_factor": SEARCHED, "attention_factor": 1.0},
        [f / divisor for f, divisor in zip(frequencies(), SEARCHED, strict=True)],
        1.0,
    ),
}


def rotary(config: GPTConfig, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines of the model for a sequence, (length, DIM) each."""
    positions = torch.arange(length)[None]
    cos, sin = GPTModel(config).rotary_emb(torch.zeros(1, length, 1), positions)
    return cos[0], sin[0]


def definition(inverse: list[float], factor: float, length: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Cosines and sines by their definition, (length, DIM) each."""
    angles = torch.arange(length, dtype=torch.double)[:, None] * torch.tensor(inverse * 2, dtype=torch.double)
    return (angles.cos() * factor).float(), (angles.sin() * factor).float()


@pytest.mark.parametrize(("method", "options", "inverse", "factor"), FORMULAS.values(), ids=FORMULAS)
def test_rotations_at_the_new_length_follow_the_formula(method, options, inverse, factor):
    config = extended_config(make_config(**SIZES), NEW, method, **options)
    torch.testing.assert_close(rotary(config, NEW), definition(inverse, factor, NEW), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("length", [OLD, OLD + 1, 100, NEW, 2 * NEW])
def test_dynamic_scales_by_the_length_of_the_sequence(length):
    config = extended_config(make_config(**SIZES), NEW, "dynamic")
    growth = max(1, length / OLD)
    inverse = frequencies(THETA * growth ** (DIM / (DIM - 2)))
    torch.testing.assert_close(rotary(config, length), definition(inverse, 1.0, length), atol=5e-4, rtol=1e-4)


@pytest.mark.parametrize(("length", "divisors"), [(OLD, [2.0] * 8), (OLD + 1, SEARCHED)])
def test_longrope_uses_the_long_factors_beyond_the_old_length(length, divisors):
    config = extended_config(make_config(**SIZES), NEW, "longrope", short_factor=[2.0] * 8, long_factor=SEARCHED)
    inverse = [f / divisor for f, divisor in zip(frequencies(), divisors, strict=True)]
    torch.testing.assert_close(rotary(config, length), definition(inverse, LONG, length), atol=2e-4, rtol=1e-4)


@pytest.mark.parametrize("method", METHODS)
def test_only_positions_change(method):
    model, ids = make_model(**SIZES), random_ids(2, 40)
    before, config = model(ids).logits, model.config.to_dict()
    changed = extend_context(model, NEW, method)
    assert changed.config.max_position_embeddings == NEW
    changes = {name for name, value in changed.config.to_dict().items() if config[name] != value}
    assert changes - {"dtype"} == {"max_position_embeddings", "rope_parameters"}
    assert model.config.to_dict() == config
    assert changed.state_dict().keys() == model.state_dict().keys()
    assert all(torch.equal(weight, changed.state_dict()[name]) for name, weight in model.state_dict().items())
    assert torch.equal(changed(ids).logits, before) == (method == "dynamic")
    with torch.no_grad():
        for parameter in changed.parameters():
            parameter.zero_()
    assert torch.equal(model(ids).logits, before)


@pytest.mark.parametrize("method", METHODS)
def test_loads_by_configuration_saves_and_loads(method, tmp_path):
    model, ids = make_model(**SIZES), random_ids(2, 100)
    model.save_pretrained(tmp_path / "short")
    extended = extend_context(model, NEW, method)
    config = extended_config(GPTConfig.from_pretrained(tmp_path / "short"), NEW, method)
    loaded = GPTForCausalLM.from_pretrained(tmp_path / "short", config=config)
    assert torch.equal(loaded(ids).logits, extended(ids).logits)
    extended.save_pretrained(tmp_path / "long")
    again = AutoModelForCausalLM.from_pretrained(tmp_path / "long", trust_remote_code=True)
    assert torch.equal(again(ids).logits, extended(ids).logits)
    assert again.config.rope_parameters == extended.config.rope_parameters


def test_loads_without_hf_gpt(tmp_path):
    extended, ids = extend_context(make_model(**SIZES), NEW, "dynamic"), random_ids(1, 80)
    extended.save_pretrained(tmp_path / "long")
    written = stranger(tmp_path / "long", tmp_path / "again", ids, "AutoModelForCausalLM")
    assert written["AutoModelForCausalLM"] == extended.generate(ids, **GREEDY | {"max_new_tokens": 6}).tolist()


@pytest.mark.parametrize("method", METHODS)
def test_extending_again_starts_from_the_original_length(method):
    in_steps = make_config(**SIZES)
    at_once = extended_config(in_steps, NEW, method)
    for length in (96, 200, NEW):
        in_steps = extended_config(in_steps, length, method)
    ours, expected = dict(in_steps.rope_parameters), dict(at_once.rope_parameters)
    assert ours.pop("rope_type") == expected.pop("rope_type")
    assert ours.keys() == expected.keys()
    assert all(ours[name] == pytest.approx(expected[name]) for name in expected)
    torch.testing.assert_close(rotary(in_steps, NEW), rotary(at_once, NEW), atol=2e-4, rtol=1e-4)


def test_options_are_inherited_by_the_next_extension():
    config = extended_config(make_config(**SIZES), 128, "yarn", beta_fast=8, attention_factor=1.5)
    rope = extended_config(config, NEW, "yarn").rope_parameters
    assert rope["beta_fast"] == 8
    assert "attention_factor" not in rope  # it depends on the growth
    config = extended_config(make_config(**SIZES), 128, "longrope", short_factor=SEARCHED, long_factor=SEARCHED)
    rope = extended_config(config, NEW, "longrope").rope_parameters
    assert rope["short_factor"] == SEARCHED
    assert rope["long_factor"] != SEARCHED


def test_every_method_can_follow_ntk():
    raised = extended_config(make_config(**SIZES), 128, "ntk")
    assert raised.rope_parameters["rope_type"] == "default"
    rope = extended_config(raised, NEW, "yarn").rope_parameters
    assert (rope["factor"], rope["original_max_position_embeddings"]) == (2.0, 128)
    assert rope["rope_theta"] == raised.rope_parameters["rope_theta"]


@pytest.mark.parametrize("method", [m for m in METHODS if m != "dynamic"])
def test_generates_beyond_the_old_and_the_new_length(method):
    model, ids = extend_context(make_model(**SIZES), 68, method), random_ids(2, 60)
    expected = without_cache(model, ids, steps=12)  # beyond the old length and the new one
    for options in ({}, {"cache_implementation": "static"}, {"num_beams": 2}):
        ours = model.generate(ids, **GREEDY | {"max_new_tokens": 12}, **options)
        assert ours.shape == (2, 72)
        if "num_beams" not in options:
            assert torch.equal(ours, expected)


def test_longrope_generates_the_same_with_padding_and_without_a_cache():
    model = extend_context(make_model(**SIZES), NEW, "longrope")
    ids, mask = random_ids(2, 62), torch.ones(2, 62, dtype=torch.long)
    mask[1, :9] = 0
    options = GREEDY | {"attention_mask": mask}
    assert torch.equal(model.generate(ids, **options), model.generate(ids, use_cache=False, **options))


def test_dynamic_has_no_state_between_calls():
    model, ids = extend_context(make_model(**SIZES), NEW, "dynamic").eval(), random_ids(1, 200)
    alone = [model(ids[:, :length]).logits for length in (40, OLD, 90)]
    model(ids)
    for length, logits in zip((40, OLD, 90), alone, strict=True):
        assert torch.equal(model(ids[:, :length]).logits, logits)


def test_dynamic_scales_from_the_length_of_the_model_if_the_original_is_longer():
    model = make_model(**SIZES)
    length = model.config.max_position_embeddings
    ids, models = random_ids(1, 3 * length), {}
    for original in (None, length, 16384):
        named = {} if original is None else {"original_max_position_embeddings": original}
        rope = {"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0, **named}
        models[original] = make_model(**{**SIZES, "rope_parameters": rope})(ids).logits
    assert not torch.equal(model(ids).logits, models[None])
    assert all(torch.equal(logits, models[None]) for logits in models.values())


def test_dynamic_with_a_cache():
    model, ids = extend_context(make_model(**SIZES), NEW, "dynamic"), random_ids(2, 50)
    assert torch.equal(model.generate(ids, **GREEDY), without_cache(model, ids))  # within the old length
    assert model.generate(ids, **GREEDY | {"max_new_tokens": 30}).shape == (2, 80)


@pytest.mark.parametrize("offset", [0, 2])
def test_learned_positions_are_interpolated(offset, tmp_path):
    model = make_model("learned", position_offset=offset)
    changed = extend_context(model, NEW, "linear")
    old, new = (m.model.embed_positions.weight.detach() for m in (model, changed))
    assert new.shape == (offset + NEW, 32)
    assert torch.equal(new[:offset], old[:offset])
    assert torch.equal(new[offset::4], old[offset:])
    torch.testing.assert_close(new[offset + 1], 0.75 * old[offset] + 0.25 * old[offset + 1])
    assert torch.equal(new[-1], old[-1])
    in_steps = extend_context(extend_context(model, 128, "linear"), NEW, "linear")
    torch.testing.assert_close(in_steps.model.embed_positions.weight, changed.model.embed_positions.weight)
    ids = random_ids(1, NEW)
    changed.save_pretrained(tmp_path)
    assert torch.equal(GPTForCausalLM.from_pretrained(tmp_path)(ids).logits, changed(ids).logits)
    with pytest.raises(ValueError, match=r"position_ids from 0 to 256: expected 0 to 255, by max_position_embeddings"):
        changed(random_ids(1, NEW + 1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_learned_positions_of_other_classes_lengths_and_dtypes(dtype):
    model = make_model("learned", GPTForTokenClassification).to(dtype)
    table = extend_context(model, 100, "linear").model.embed_positions.weight
    assert (table.shape, table.dtype) == ((100, 32), dtype)
    assert table.isfinite().all()
    assert extend_context(make_model("learned", GPTModel), 65, "linear").embed_positions.weight.shape == (65, 32)


def test_the_extended_model_learns():
    model = extend_context(make_model(**SIZES).train(), NEW, "yarn")
    assert model.training
    losses = overfit(model, random_ids(2, 100), steps=15)
    assert losses[-1] < losses[0] / 2


UNSCALED = {"max_position_embeddings": 16, "rope_parameters": {"rope_type": "default", "rope_theta": 1e4}}
NATIVE_SIZES = {
    "llama": {"head_dim": 8, **UNSCALED},
    "gpt_neox": UNSCALED,
    "gptj": {"n_head": 2, "n_embd": 32, "rotary_dim": 8},
}


@pytest.mark.parametrize("method", ["linear", "ntk", "yarn", "longrope"])
@pytest.mark.parametrize("family", ["llama", "gpt_neox"])
def test_exports_to_its_family(family, method, tmp_path):
    save_native(tmp_path / "native", family, **NATIVE_SIZES[family])
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    longer = extend_context(ours, 48, method)
    longer.save_pretrained(tmp_path / "longer")
    native = AutoModelForCausalLM.from_pretrained(export(tmp_path / "longer", tmp_path / "back", family))
    assert native.config.max_position_embeddings == 48
    ids = random_ids(2, 48, high=native.config.vocab_size)
    assert_close(longer(ids).logits, native(ids).logits)


@pytest.mark.parametrize(
    ("family", "method", "message"),
    [
        ("llama", "dynamic", "rope_parameters=.*original_max_position_embeddings.* cannot be expressed by llama"),
        ("gpt_neox", "dynamic", "rope_parameters=.* cannot be expressed by gpt_neox"),
        *(("gptj", method, "rope_parameters=.* cannot be expressed by gptj") for method in METHODS),
    ],
)
def test_a_family_without_the_method_raises(family, method, message, tmp_path):
    save_native(tmp_path / "native", family, **NATIVE_SIZES[family])
    ours = GPTForCausalLM.from_pretrained(convert(tmp_path / "native", tmp_path / "ours"))
    extend_context(ours, 4096, method).save_pretrained(tmp_path / "longer")
    with pytest.raises(ValueError, match=message):
        export(tmp_path / "longer", tmp_path / "back", family)


@pytest.mark.parametrize("method", METHODS)
def test_transformers_logs_no_warning(method, monkeypatch):
    warnings = []
    for name in ("warning", "warning_once"):
        monkeypatch.setattr(modeling_rope_utils.logger, name, warnings.append)
    GPTModel(extended_config(make_config(**SIZES), NEW, method))(random_ids(1, 100))
    assert not warnings


LINEAR = {"rope_parameters": {"rope_type": "linear", "factor": 2.0}}
LLAMA3 = {
    "rope_parameters": {
        "rope_type": "llama3",
        "factor": 2.0,
        "low_freq_factor": 1.0,
        "high_freq_factor": 4.0,
        "original_max_position_embeddings": 32,
    }
}
BAD_ARGUMENTS = [
    ({}, (128, "spiral"), {}, "method='spiral': expected one of linear, ntk, dynamic, yarn, longrope"),
    ({}, (64, "yarn"), {}, "length=64: expected an integer above max_position_embeddings=64"),
    ({}, (32, "ntk"), {}, "length=32: expected an integer above"),
    ({}, (128.0, "ntk"), {}, "length=128.0: expected an integer above"),
    ({}, (128, "linear"), {"beta_fast": 8}, "beta_fast is not an option of method='linear': expected none"),
    (
        {},
        (128, "yarn"),
        {"theta": 8},
        "theta is not an option of method='yarn': expected attention_factor or beta_fast",
    ),
    ({}, (128, "yarn"), {"beta_fast": -1}, "rope_parameters: beta_fast=-1, expected a positive number"),
    ({}, (128, "ntk"), {"rope_theta": 1e3}, "rope_theta=1000.0: expected a number above that of the model, 10000.0"),
    ({}, (128, "ntk"), {"rope_theta": "1e6"}, "rope_theta='1e6': expected a number above"),
    ({}, (128, "longrope"), {"long_factor": [1.0]}, "long_factor has 1 entries, expected 4"),
    ({"head_dim": 2}, (128, "ntk"), {}, "method='ntk' with 2 rotated dimensions: expected at least 4"),
    ({"head_dim": 2}, (128, "dynamic"), {}, "2 dimensions of head_dim=2: expected an even number of at least 4"),
    (LINEAR, (128, "yarn"), {}, "rope_type='linear' is already scaled .*method='yarn'.*: expected default or yarn"),
    (LINEAR, (128, "ntk"), {}, "rope_type='linear' is already scaled .*method='ntk'.*: expected default$"),
    *((LLAMA3, (128, method), {}, "rope_type='llama3' is already scaled") for method in METHODS),
    *(
        ({"position_embedding_type": "learned"}, (128, method), {}, f"method='{method}' does not apply to .*'learned'")
        for method in METHODS
        if method != "linear"
    ),
    ({"position_embedding_type": "learned"}, (64, "linear"), {}, "length=64: expected an integer above"),
    *(
        (
            {"position_embedding_type": positions},
            (128, "linear"),
            {},
            f"method='linear' does not apply to .*'{positions}', .*=128",
        )
        for positions in ("sinusoidal", "none")
    ),
]


@pytest.mark.parametrize(("fields", "arguments", "options", "message"), BAD_ARGUMENTS)
def test_bad_arguments_raise(fields, arguments, options, message):
    with pytest.raises(ValueError, match=message):
        extend_context(make_model(**fields), *arguments, **options)


def test_learned_positions_require_extend_context(tmp_path):
    make_model("learned").save_pretrained(tmp_path)
    config = extended_config(GPTConfig.from_pretrained(tmp_path), NEW, "linear")
    with pytest.raises((ValueError, RuntimeError), match=r"embed_positions|mismatch"):
        GPTForCausalLM.from_pretrained(tmp_path, config=config)
