"""Every method of transformers and torch that the model overrides exists there, and is called by them.

A release that renames one fails the test of that name. Without it the override would have no effect, silently.
"""

import functools
import inspect
import sys
import tempfile

import pytest
import torch
from greedy import GREEDY
from safetensors.torch import load_file
from tiny import make_config, make_model, random_ids
from torch import nn
from transformers import ContinuousBatchingConfig, GenerationConfig, GenerationMixin, PreTrainedConfig, PreTrainedModel
from transformers.cache_utils import DynamicLayer, DynamicSlidingWindowLayer
from transformers.generation import utils as generation
from transformers.generation.continuous_batching import ContinuousMixin

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.model import checkpoints
from hf_gpt.model.caches import DenseLayer, FixedLayer, PreallocatedLayer
from hf_gpt.model.moe import BiasedChoiceRouter
from hf_gpt.model.quantized_weights import QuantizedLinear


def experts(implementation):
    return lambda: make_model("mixtral").set_experts_implementation(implementation)


def generate(**options):
    return lambda: make_model().generate(random_ids(1, 4), **GREEDY, **options)


def generate_batch():
    small = ContinuousBatchingConfig(num_blocks=64, max_batch_tokens=64)
    make_model().generate_batch([[5, 6, 7]], GenerationConfig(**GREEDY, eos_token_id=-1), small, progress_bar=False)


def draft():
    make_model("fixed").generate(random_ids(1, 6), prompt_lookup_num_tokens=3, **GREEDY)


def read_configuration():
    with tempfile.TemporaryDirectory() as folder:
        make_config().save_pretrained(folder)
        GPTConfig.from_pretrained(folder)


def cached(call):
    """Returns a function that calls a cache of fixed and strided layers, of 2 rows with 7 tokens."""
    fields = {"attention_patterns": ["fixed", "strided"], "attention_stride": 4, "attention_summary_size": 2}

    @torch.no_grad()
    def run():
        call(make_model(**fields)(random_ids(2, 7)).past_key_values)

    return run


def update(cache):
    for layer_idx in range(2):
        cache.update(*torch.zeros(2, 2, 4, 1, 8), layer_idx)


ROWS = torch.tensor([1, 0])
# By the class with the overrides: the class with the original of each, and a call that leads to it.
OVERRIDES = {
    GPTForCausalLM: {
        "_check_and_adjust_attn_implementation": (PreTrainedModel, make_model),
        "_supports_flash_attn": (PreTrainedModel, make_model),
        "_can_set_experts_implementation": (PreTrainedModel, experts("batched_mm")),
        "get_correct_experts_implementation": (PreTrainedModel, experts("batched_mm")),
        "_grouped_mm_can_dispatch": (PreTrainedModel, experts("grouped_mm")),
        "_init_weights": (PreTrainedModel, make_model),
        "_prepare_cache_for_generation": (GenerationMixin, generate()),
        "_get_candidate_generator": (GenerationMixin, generate(prompt_lookup_num_tokens=3)),
        "prepare_inputs_for_generation": (GenerationMixin, generate()),
        "create_masks_for_generate": (generation, generate(cache_implementation="static")),
        "init_continuous_batching": (ContinuousMixin, generate_batch),
    },
    GPTConfig: {
        "_dict_from_json_file": (PreTrainedConfig, read_configuration),
        "_validate_dynamic_rope_parameters": (
            PreTrainedConfig,
            lambda: make_config(rope_parameters={"rope_type": "dynamic", "rope_theta": 1e4, "factor": 2.0}),
        ),
    },
    PreallocatedLayer: {
        "update": (DynamicLayer, cached(update)),
        "offload": (DynamicLayer, cached(lambda cache: cache.offload(1, only_non_sliding=False))),
        "reset": (DynamicLayer, cached(lambda cache: cache.reset())),
    },
    DenseLayer: {"update": (DynamicLayer, generate())},
    FixedLayer: {
        "update": (DynamicLayer, cached(update)),
        "get_seq_length": (DynamicLayer, cached(lambda cache: cache.get_seq_length(0))),
        "get_mask_sizes": (DynamicLayer, cached(lambda cache: cache.get_mask_sizes(1, 0))),
        "reset": (DynamicLayer, cached(lambda cache: cache.reset())),
        "crop": (DynamicLayer, draft),
        "activate_past_recording": (DynamicSlidingWindowLayer, draft),
        "reorder_cache": (DynamicLayer, cached(lambda cache: cache.reorder_cache(ROWS))),
        "batch_repeat_interleave": (DynamicLayer, cached(lambda cache: cache.batch_repeat_interleave(2))),
        "batch_select_indices": (DynamicLayer, cached(lambda cache: cache.batch_select_indices(ROWS))),
    },
    QuantizedLinear: {
        "_load_from_state_dict": (
            nn.Linear,
            lambda: QuantizedLinear(2, 2).load_state_dict(nn.Linear(2, 2).state_dict()),
        ),
    },
    BiasedChoiceRouter: {"_apply": (nn.Module, lambda: make_model("deepseek").bfloat16())},
}
LONGEST_CACHE = "_previous_max_cache_length"
CASES = [(owner, name) for owner, names in OVERRIDES.items() for name in names]


class Spy:
    """An attribute of a class that counts its calls, or as a property its reads, by transformers and torch."""

    def __init__(self, wrapped):
        self.wrapped, self.calls = wrapped, 0

    def __get__(self, instance, owner=None):
        found = self.wrapped.__get__(instance, owner)
        if not callable(found):
            self.count(sys._getframe(1))
            return found

        @functools.wraps(found)
        def call(*args, **kwargs):
            self.count(sys._getframe(1))
            return found(*args, **kwargs)

        return call

    def count(self, caller):
        self.calls += caller.f_globals["__name__"].partition(".")[0] in ("transformers", "torch")


@pytest.mark.parametrize(("owner", "name"), CASES, ids=[f"{owner.__name__}.{name}" for owner, name in CASES])
def test_an_override_is_called(owner, name, monkeypatch):
    base, trigger = OVERRIDES[owner][name]
    assert hasattr(base, name)
    assert name in own_names(owner)
    spy = Spy(inspect.getattr_static(owner, name))
    monkeypatch.setattr(owner, name, spy)
    trigger()
    assert spy.calls


def own_names(owner):
    """Returns the names that our classes among the bases of a class define."""
    ours = [base for base in owner.__mro__ if base.__module__.startswith("hf_gpt")]
    return {name for base in ours for name in vars(base) if not name.startswith("__")}


def frameworks_names(owner):
    bases = [base for base in owner.__mro__ if not base.__module__.startswith("hf_gpt")]
    return {name for base in bases for name in vars(base)}


@pytest.mark.parametrize("owner", OVERRIDES, ids=lambda owner: owner.__name__)
def test_every_private_override_has_a_test(owner):
    """Of cache layers, every override: transformers has no stable interface for them."""
    overrides = {name for name in own_names(owner) & frameworks_names(owner) if callable(getattr(owner, name))}
    if not issubclass(owner, DynamicLayer):
        overrides = {name for name in overrides if name.startswith("_")}
    assert overrides <= set().union(*(OVERRIDES.get(base, {}) for base in owner.__mro__))


def test_private_attributes_of_the_model_are_those_of_transformers():
    private = {name for name in own_names(GPTForCausalLM) if name.startswith("_")}
    cached = {name for name in private if name.endswith("_cached_value")}  # set by transformers
    elsewhere = {"_fsdp_plan", LONGEST_CACHE}  # not in 5.17; set on a model
    assert private - cached - elsewhere <= frameworks_names(GPTForCausalLM)


def test_transformers_reads_the_length_of_the_longest_static_cache(monkeypatch):
    spy = Spy(inspect.getattr_static(GPTForCausalLM, LONGEST_CACHE))
    monkeypatch.setattr(GPTForCausalLM, LONGEST_CACHE, spy)
    generate(cache_implementation="static")()
    assert spy.calls


def test_ignored_keys_are_not_saved(monkeypatch, tmp_path):
    monkeypatch.setattr(checkpoints, "tied_quantized_parts", lambda model: ["model.norm.weight"])
    model = make_model()
    model.save_pretrained(tmp_path)
    saved = load_file(tmp_path / "model.safetensors")
    assert model.state_dict().keys() - saved.keys() == {"model.norm.weight", "lm_head.weight"}  # the second is tied


def test_the_bias_of_routers_is_loaded_in_float32(tmp_path):
    model = make_model("deepseek")
    assert model._get_dtype_plan(torch.bfloat16) == {"e_score_correction_bias": torch.float32}
    (router,) = model.model.routers
    router.e_score_correction_bias.copy_(torch.arange(6) / 10)
    model.save_pretrained(tmp_path)
    (router,) = GPTForCausalLM.from_pretrained(tmp_path, dtype=torch.bfloat16).model.routers
    assert torch.equal(router.e_score_correction_bias, torch.arange(6) / 10)
