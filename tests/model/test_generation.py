"""generate(): every way of decoding, every cache, on every variant."""

import pytest
import torch
from greedy import GREEDY, without_cache
from snapshots import changes, state_of, with_hooks
from threads import FEW, MODELS, WAYS, differences, generate, is_same
from tiny import FLASH, IMPLEMENTATIONS, VARIANTS, make_model, random_ids
from transformers import ContinuousBatchingConfig, DynamicCache, GenerationConfig, TextIteratorStreamer, TextStreamer

from hf_gpt import GPTForCausalLM
from hf_gpt.model import generation
from hf_gpt.model.linear import PACKED, PackedWeights
from hf_gpt.surgery.context import extended_config


@pytest.fixture
def model(variant):
    return make_model(variant)


@pytest.mark.parametrize(("variant", "implementation"), IMPLEMENTATIONS)
@pytest.mark.parametrize("cache", [None, "dynamic", "static"])
def test_greedy(variant, implementation, cache):
    model, ids = make_model(variant, attention=implementation), random_ids(2, 5)
    options = {"use_cache": False} if cache is None else {"cache_implementation": cache}
    assert torch.equal(model.generate(ids, **GREEDY, **options), without_cache(model, ids))


def test_left_padded_rows_equal_single_prompts(model):
    prompts = [random_ids(1, length, seed=length) for length in (2, 5, 7)]
    ids, mask = torch.zeros(3, 7, dtype=torch.long), torch.zeros(3, 7, dtype=torch.long)
    for row, prompt in enumerate(prompts):
        ids[row, 7 - prompt.shape[1] :], mask[row, 7 - prompt.shape[1] :] = prompt[0], 1
    for options in ({}, {"cache_implementation": "static"}, {"use_cache": False}):
        together = model.generate(ids, attention_mask=mask, **GREEDY, **options)[:, 7:]
        for row, prompt in enumerate(prompts):
            alone = model.generate(prompt, **GREEDY, **options)[0, prompt.shape[1] :]
            assert torch.equal(together[row], alone)


def test_sampling(model):
    ids = random_ids(2, 4)
    options = {"do_sample": True, "temperature": 0.7, "top_k": 20, "top_p": 0.9, "repetition_penalty": 1.2}
    torch.manual_seed(0)
    first = model.generate(ids, num_return_sequences=3, max_new_tokens=8, pad_token_id=0, **options)
    torch.manual_seed(0)
    again = model.generate(ids, num_return_sequences=3, max_new_tokens=8, pad_token_id=0, **options)
    assert first.shape == (6, 12)
    assert torch.equal(first, again)
    assert len({tuple(row.tolist()) for row in first[:3]}) > 1
    certain = options | {"top_k": 1, "repetition_penalty": 1.0, "max_new_tokens": 8, "pad_token_id": 0}
    assert torch.equal(model.generate(ids, **certain), model.generate(ids, **GREEDY))


@pytest.mark.parametrize("sample", [False, True])
def test_beam_search(model, sample):
    ids = random_ids(2, 4)
    outputs = model.generate(
        ids,
        num_beams=4,
        num_return_sequences=2,
        max_new_tokens=6,
        do_sample=sample,
        pad_token_id=0,
        return_dict_in_generate=True,
        output_scores=True,
        length_penalty=0.0,
    )
    assert outputs.sequences.shape == (4, 10)
    if sample:
        return
    # The score of a beam is the log-probability of its tokens only if the cache was reordered correctly.
    logits = model(outputs.sequences).logits.log_softmax(-1)
    written = logits[:, 3:-1].gather(-1, outputs.sequences[:, 4:, None]).sum((1, 2))
    assert torch.allclose(written, outputs.sequences_scores, atol=1e-4)


def test_assisted_decoding_equals_greedy_decoding(model, variant):
    assistant = make_model(variant, num_hidden_layers=2)
    with torch.no_grad():  # its drafts are sometimes right
        for parameter in assistant.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    ids = random_ids(1, 6)
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, assistant_model=assistant, **GREEDY), expected)
    assert torch.equal(model.generate(ids, prompt_lookup_num_tokens=3, **GREEDY), expected)


def test_early_exit_decoding_equals_greedy_decoding(model):
    ids = random_ids(1, 6)
    expected = model.generate(ids, **GREEDY)
    assert torch.equal(model.generate(ids, assistant_early_exit=1, **GREEDY), expected)


def test_continues_from_a_cache(model):
    ids = random_ids(2, 5)
    at_once = model.generate(ids, **{**GREEDY, "max_new_tokens": 10})
    cache = DynamicCache(config=model.config)
    half = model.generate(ids, past_key_values=cache, **{**GREEDY, "max_new_tokens": 4})
    mask = torch.ones_like(half)  # the padding token may have been generated
    options = GREEDY | {"max_new_tokens": 6, "attention_mask": mask}
    assert torch.equal(model.generate(half, past_key_values=cache, **options), at_once)


def test_generates_from_embeddings(model):
    ids = random_ids(2, 5)
    embeds = model.get_input_embeddings()(ids)
    expected = model.generate(ids, **GREEDY)[:, 5:]
    assert torch.equal(model.generate(inputs_embeds=embeds, **GREEDY), expected)
    assert torch.equal(model.generate(inputs_embeds=embeds, cache_implementation="static", **GREEDY), expected)


def test_long_prompts_are_prefilled_in_chunks(model, monkeypatch):
    """By default, and with the tokens of one prefill, also for padded rows."""
    ids, mask = random_ids(2, 21), torch.ones(2, 21, dtype=torch.long)
    mask[0, :6] = 0
    expected = model.generate(ids, attention_mask=mask, **GREEDY)
    lengths = []
    model.model.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 8)
    assert torch.equal(model.generate(ids, attention_mask=mask, **GREEDY), expected)
    assert lengths[:4] == [8, 8, 5, 1]
    assert model.generation_config.prefill_chunk_size is None
    lengths.clear()
    model.generate(ids, attention_mask=mask, prefill_chunk_size=10, **GREEDY)
    assert lengths[:4] == [10, 10, 1, 1]


@pytest.mark.parametrize("chosen", [{}, {"prefill_chunk_size": 4}])
@pytest.mark.parametrize("rope_type", ["dynamic", "longrope"])
def test_length_dependent_rope_prefills_in_one_pass(rope_type, chosen, monkeypatch):
    config = extended_config(make_model(max_position_embeddings=16).config, 64, rope_type)
    model, lengths = GPTForCausalLM(config).eval(), []
    model.model.register_forward_pre_hook(
        lambda _, __, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    monkeypatch.setattr(generation, "PREFILL_CHUNK", 8)
    model.generate(random_ids(1, 21), **GREEDY, **chosen)
    assert lengths[0] == 21


def test_bfloat16_decodes_with_packed_weights(variant, monkeypatch):
    """Only during the call, with the logits of plain weights."""
    model, ids = make_model(variant).to(torch.bfloat16), random_ids(2, 5)
    options = GREEDY | {"max_new_tokens": 6, "output_logits": True, "return_dict_in_generate": True}
    expected = model.generate(ids, **options).logits[0]
    monkeypatch.setattr(PackedWeights, "MIN_CALLS", 1)
    sizes = []
    monkeypatch.setattr(PackedWeights, "release", lambda self: sizes.append(self.bytes) or release(self))
    actual = model.generate(ids, **options).logits[0]
    assert sizes[0] > 0
    assert PACKED.get() is None
    assert torch.allclose(actual, expected, atol=0.05 * expected.abs().max().item())


release = PackedWeights.release


class Letters:
    """The part of a tokenizer that a streamer needs."""

    def decode(self, ids, **_):
        return "".join(chr(40 + int(token)) + " " for token in ids)


@pytest.mark.parametrize("streamer_class", [TextStreamer, TextIteratorStreamer])
def test_streams_every_token(streamer_class, capsys):
    model, ids = make_model(), random_ids(1, 4)
    streamer = streamer_class(Letters(), skip_prompt=True)
    written = model.generate(ids, streamer=streamer, **GREEDY)[0, 4:]
    text = capsys.readouterr().out.rstrip("\n") if streamer_class is TextStreamer else "".join(streamer)
    assert text.split() == Letters().decode(written).split()


@pytest.mark.parametrize("variant", FLASH)
def test_generate_batch(variant):
    """Continuous batching equals generate() for each request."""
    model = make_model(variant)
    prompts = [random_ids(1, length, seed=length)[0].tolist() for length in (3, 9, 5)]
    expected = [model.generate(torch.tensor([p]), **GREEDY)[0, len(p) :].tolist() for p in prompts]
    model.set_attn_implementation("paged|eager" if model.config.attention_sinks else "paged|sdpa")
    assert generate_batch(model, prompts) == expected


def generate_batch(model, prompts):
    settings = GenerationConfig(**GREEDY, eos_token_id=-1)
    small = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)  # the default takes most of the memory
    outputs = model.generate_batch(prompts, settings, small, progress_bar=False).values()
    in_order = sorted(outputs, key=lambda output: int(output.request_id.removeprefix("req_")))
    return [output.generated_tokens for output in in_order]


def test_generate_batch_with_sinks_in_sdpa_raises():
    with pytest.raises(ValueError, match="attention_sinks"):
        generate_batch(make_model("gpt_oss", attention="sdpa"), [[5, 6, 7]])


@pytest.mark.parametrize("variant", sorted(set(VARIANTS) - set(FLASH)))
def test_generate_batch_with_strided_or_fixed_layers_raises(variant):
    with pytest.raises(ValueError, match=r"layers.*choose sdpa, eager or flex_attention"):
        generate_batch(make_model(variant), [[5, 6, 7]])


def test_stops_at_the_end_of_text():
    model, ids = make_model(), random_ids(1, 4)
    written = model.generate(ids, **GREEDY)[0, 4:].tolist()
    stop = written[3]
    stopped = model.generate(ids, eos_token_id=stop, **GREEDY)[0, 4:].tolist()
    assert stopped == written[: written.index(stop) + 1]


def test_compiled_generation():
    """With a static cache the decoding step compiles as one graph."""
    model, ids = make_model(), random_ids(1, 5)
    expected = model.generate(ids, **GREEDY)
    torch.compiler.reset()
    model.forward = torch.compile(model.forward, fullgraph=True, backend="aot_eager")
    assert torch.equal(model.generate(ids, cache_implementation="static", **GREEDY), expected)


@pytest.mark.parametrize(("model_name", "way"), FEW)
def test_threads_that_share_a_model(model_name, way, monkeypatch):
    monkeypatch.setattr(PackedWeights, "MIN_CALLS", 1)
    assert differences(model_name, way) == []


@pytest.mark.parametrize(("model_name", "way"), FEW)
def test_a_call_changes_nothing_and_depends_on_no_earlier_one(model_name, way, monkeypatch):
    monkeypatch.setattr(PackedWeights, "MIN_CALLS", 1)
    model, options = with_hooks(MODELS[model_name]()), WAYS[way]
    before = state_of(model)
    short = generate(model, 0, options)
    generate(model, 7, options)
    assert changes(before, state_of(model)) == []
    assert is_same(generate(model, 0, options), short)
