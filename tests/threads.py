"""Generations of eight threads that share one model, held to those of one thread, bit for bit.

    python tests/threads.py 1000

repeats the cases until this many generations have run, and prints how many differ.
"""

import sys
from collections.abc import Callable
from functools import partial
from itertools import cycle, product
from threading import Barrier, Thread
from typing import Any

import torch
from tiny import ROPES, VARIANTS, make_model, random_ids

from hf_gpt.model.linear import PackedWeights
from hf_gpt.surgery import quantize

THREADS = 8


def rotated(rope_type: str):
    return make_model(rope_parameters={"rope_type": rope_type, "rope_theta": 500.0, **ROPES[rope_type]})


# What is shared, by name: every variant of the configuration, RoPE type and precision. The prompts of some threads
# exceed the original length of the RoPE types.
MODELS: dict[str, Callable[[], Any]] = {
    **{variant: partial(make_model, variant) for variant in VARIANTS},
    **{rope_type: partial(rotated, rope_type) for rope_type in ROPES},
    "bfloat16": lambda: make_model("llama").bfloat16(),
    "bfloat16_experts": lambda: make_model("gpt_oss").bfloat16(),
    "float16": lambda: make_model("llama").half(),
    "int8": lambda: quantize(make_model("llama"), "int8"),
    "int4": lambda: quantize(make_model("llama"), "int4"),
    "eager": lambda: make_model("sparse_transformer", attention="eager"),
}

GREEDY = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
# How it is used, by name: the arguments of generate().
WAYS: dict[str, dict[str, Any]] = {
    "dynamic": {},
    "static": {"cache_implementation": "static"},
    "no_cache": {"use_cache": False},
    "beams": {"num_beams": 3},
    "chunks": {"prefill_chunk_size": 4},
    "prompt_lookup": {"prompt_lookup_num_tokens": 3},
    "early_exit": {"assistant_early_exit": 1},
    "assisted": {"assistant_model": make_model("multi_query")},
    "all_outputs": {"output_hidden_states": True},
}


# Every model in one way, and one model in every way.
FEW = [*zip(MODELS, cycle(WAYS)), *(("default", way) for way in WAYS)]


def prompt_of(thread: int) -> torch.Tensor:
    """A prompt of each thread's own length, (1, 3 to 24)."""
    return random_ids(1, 3 * thread + 3, seed=thread)


def generate(model, thread: int, options: dict[str, Any]) -> tuple[torch.Tensor, ...]:
    """The tokens, and the logits of each step."""
    ids, mask = prompt_of(thread), None
    if options.keys() <= {"use_cache", "cache_implementation", "num_beams", "prefill_chunk_size"} and thread % 2:
        ids = torch.cat((ids, torch.zeros_like(ids[:, :2])), dim=1).roll(2, dims=1).repeat(2, 1)  # left padding
        mask = (torch.arange(ids.shape[1]) >= torch.tensor([[0], [2]])).long()
    result = model.generate(
        ids, attention_mask=mask, output_logits=True, return_dict_in_generate=True, **GREEDY, **options
    )
    states = [state for step in result.get("hidden_states") or () for state in step]
    return result.sequences, *result.logits, *states


def in_threads(work: Callable[[int], Any], count: int = THREADS) -> list[Any]:
    """Returns the results of `work(thread)` of all threads, which start together; an exception is a result."""
    results, barrier = [None] * count, Barrier(count)

    def run(thread: int) -> None:
        barrier.wait()
        try:
            results[thread] = work(thread)
        except Exception as error:
            results[thread] = error

    threads = [Thread(target=run, args=(thread,)) for thread in range(count)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return results


def is_same(found: Any, expected: tuple[torch.Tensor, ...]) -> bool:
    return isinstance(found, tuple) and len(found) == len(expected) and all(map(torch.equal, found, expected))


def differences(model_name: str, way: str) -> list[Any]:
    """Returns the threads whose generations are not those of one thread, and what they were.

    The model of the threads has not been used before: the first use installs hooks, packs weights and compiles masks.
    """
    options = WAYS[way]
    alone, shared = MODELS[model_name](), MODELS[model_name]()
    expected = {thread: generate(alone, thread, options) for thread in reversed(range(THREADS))}
    found = in_threads(lambda thread: generate(shared, thread, options))
    return [(thread, each) for thread, each in enumerate(found) if not is_same(each, expected[thread])]


def main(generations: int) -> None:
    torch.set_num_threads(1)
    PackedWeights.MIN_CALLS = 1
    done = different = 0
    while done < generations:
        for model_name, way in product(MODELS, WAYS):
            found = differences(model_name, way)
            done, different = done + THREADS, different + len(found)
            for thread, each in found:
                what = f"{type(each).__name__}: {each}" if isinstance(each, Exception) else "other values"
                print(f"{model_name}, {way}, thread {thread}: {what[:300]}", flush=True)
    print(f"{done} generations in {THREADS} threads, {different} unlike those of one thread", flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]))
