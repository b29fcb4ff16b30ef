"""generate(): every way of decoding, every cache, on every variant."""

import os
import signal
import threading
from asyncio import CancelledError
from contextvars import copy_context
from itertools import cycle

import pytest
import torch
from greedy import GREEDY, without_cache
from snapshots import changes, state_of, with_hooks
from threads import FEW, MODELS, WAYS, differences, generate, is_same
from tiny import FLASH, IMPLEMENTATIONS, VARIANTS, make_model, random_ids
from transformers import (
    ContinuousBatchingConfig,
    DynamicCache,
    GenerationConfig,
    StaticCache,
    TextIteratorStreamer,
    TextStreamer,
)

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


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("model_name", ["default", "bfloat16_experts"])
def test_a_call_changes_nothing_and_depends_on_no_earlier_one(model_name, way, monkeypatch):
    monkeypatch.setattr(PackedWeights, "MIN_CALLS", 1)
    model, options = with_hooks(MODELS[model_name]()), WAYS[way]
    before = state_of(model)
    short = generate(model, 0, options)
    generate(model, 7, options)
    assert changes(before, state_of(model)) == []
    assert is_same(generate(model, 0, options), short)


class Interrupts:
    """A logits processor, stopping criterion, streamer and prefix function that raises at its third call."""

    def __init__(self, error: BaseException) -> None:
        self.error, self.calls, self.packed = error, 0, None

    def __call__(self, *args):
        self.calls += 1
        if packed := PACKED.get():
            self.packed = packed
        if self.calls == 3:
            raise self.error
        return args[1] if args[1:] and isinstance(args[1], torch.Tensor) else None

    put = __call__

    def end(self) -> None:
        raise self.error


class StopsNever(Interrupts):
    def __call__(self, input_ids, *_):
        super().__call__()
        return torch.zeros(len(input_ids), dtype=torch.bool)


class EndRaises(Interrupts):
    def __call__(self, *_):
        self.packed = PACKED.get() or self.packed

    put = __call__


# Where a call is interrupted: the argument of generate() that raises.
INTERRUPTIONS = {
    "logits processor": lambda error: {"logits_processor": [Interrupts(error)]},
    "stopping criterion": lambda error: {"stopping_criteria": [StopsNever(error)]},
    "streamer": lambda error: {"streamer": Interrupts(error)},
    "end of the streamer": lambda error: {"streamer": EndRaises(error)},
    "prefix function": lambda error: {"prefix_allowed_tokens_fn": Interrupts(error)},
}
ERRORS = [RuntimeError(), KeyboardInterrupt(), GeneratorExit(), CancelledError(), SystemExit(), StopIteration()]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: type(error).__name__)
@pytest.mark.parametrize(("place", "way"), [*zip(INTERRUPTIONS, cycle(["dynamic", "static", "early_exit"]))])
def test_an_interrupted_call_leaves_nothing_behind(place, way, error, monkeypatch):
    monkeypatch.setattr(PackedWeights, "MIN_CALLS", 1)
    model, settings = with_hooks(make_model("llama").bfloat16()), GenerationConfig(**GREEDY, **WAYS[way])
    expected, before, chosen = model.generate(random_ids(1, 6), settings), state_of(model), settings.to_dict()
    arguments = INTERRUPTIONS[place](error)
    with pytest.raises(type(error)):
        model.generate(random_ids(1, 6), settings, **arguments)
    (argument,) = arguments.values()
    interrupter = argument[0] if isinstance(argument, list) else argument
    assert interrupter.packed.bytes == 0
    assert settings.to_dict() == chosen
    assert changes(before, state_of(model)) == []
    assert torch.equal(model.generate(random_ids(1, 6), settings), expected)


@pytest.mark.parametrize("cache_class", [DynamicCache, StaticCache])
@pytest.mark.parametrize("place", ["processor", "block", "last block"])
@pytest.mark.parametrize("variant", ["default", "banded", "sparse_transformer", "gpt_oss"])
def test_a_cache_of_an_interrupted_call_can_be_used_again(variant, place, cache_class):
    """It holds all tokens that were read, or is empty if an exception came from within a forward pass."""
    model, ids, interrupter = make_model(variant), random_ids(1, 6), Interrupts(KeyboardInterrupt())
    cache = cache_class(config=model.config, **{"max_cache_len": 40} if cache_class is StaticCache else {})
    arguments = {"logits_processor": [interrupter]} if place == "processor" else {}
    block = model.model.layers[-1 if place == "last block" else 0]
    hook = block.mlp.register_forward_hook(lambda *_: interrupter()) if not arguments else None
    with pytest.raises(KeyboardInterrupt):
        model.generate(ids, past_key_values=cache, **arguments, **GREEDY)
    if hook is not None:
        hook.remove()
    expected = model.generate(ids, **GREEDY)
    assert int(cache.get_seq_length()) == (8 if place == "processor" else 0)
    written = expected[:, :9] if place == "processor" else ids
    mask = torch.ones_like(written)
    options = GREEDY | {"max_new_tokens": 14 - written.shape[1], "attention_mask": mask}
    assert torch.equal(model.generate(written, past_key_values=cache, **options), expected)


def test_a_wrong_argument_does_not_empty_a_cache():
    model, ids = make_model(), random_ids(1, 6)
    cache = model(ids).past_key_values
    with pytest.raises(ValueError, match="input_ids from"):
        model.generate(torch.cat((ids, torch.tensor([[99]])), dim=1), past_key_values=cache, **GREEDY)
    assert cache.get_seq_length() == 6


def test_packed_weights_are_released_in_copies_of_the_context_too(monkeypatch):
    """A task that a streamer starts runs in a copy."""
    monkeypatch.setattr(PackedWeights, "MIN_CALLS", 1)
    model, contexts = make_model("llama").bfloat16(), []
    copying = Interrupts(None)
    copying.put = lambda _: contexts.append(copy_context())
    copying.end = lambda: None
    model.generate(random_ids(1, 4), streamer=copying, **GREEDY)
    packed = contexts[-1][PACKED]
    assert packed.bytes == 0
    contexts[-1].run(model, random_ids(1, 4))
    assert packed.bytes == 0


def in_child(holds):
    """Returns whether a function returns True in a forked process, within a minute."""
    if (child := os.fork()) == 0:
        signal.alarm(60)
        try:
            os._exit(0 if holds() else 1)
        finally:
            os._exit(2)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0


@pytest.mark.parametrize("model_name", ["default", "bfloat16", "int8", "int4"])
def test_a_child_that_is_forked_after_use_generates_the_same(model_name, monkeypatch):
    monkeypatch.setattr(PackedWeights, "MIN_CALLS", 1)
    model = MODELS[model_name]()
    expected = generate(model, 0, {})
    assert in_child(lambda: is_same(generate(model, 0, {}), expected))


def test_control_c():
    """Signals at any time, in a process of its own: what comes after is as if nothing had been."""
    assert in_child(lambda: sum(interrupt_by_signal(delay / 400) for delay in range(12)) > 6)


def interrupt_by_signal(delay: float) -> bool:
    """Interrupts one call, and checks the model, the cache and the next call. Returns whether the signal came."""
    model, ids = with_hooks(make_model("gpt_oss").bfloat16()), random_ids(1, 6)
    expected, cache = model.generate(ids, **GREEDY), DynamicCache(config=model.config)
    before = state_of(model)
    timer = threading.Timer(delay, os.kill, (os.getpid(), signal.SIGINT))
    is_interrupted = False
    try:
        timer.start()
        model.generate(ids, past_key_values=cache, max_new_tokens=400, do_sample=False, pad_token_id=0)
        timer.join()
    except KeyboardInterrupt:
        is_interrupted = True
    assert changes(before, state_of(model)) == []
    lengths = {cache.get_seq_length(layer) for layer in range(2)}
    assert len(lengths) == 1
    assert torch.equal(model.generate(ids, **GREEDY), expected)
    return is_interrupted
