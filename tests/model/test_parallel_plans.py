"""Every parallel layout on two gloo processes has the loss and gradients of one process; the plans name real parts."""

import copy
import socket
from functools import wraps

import pytest
import torch
from greedy import GREEDY
from layouts import RANKS, layouts_of, step, work
from tiny import make_config, make_model, random_ids
from torch import nn
from torch.multiprocessing import spawn

from hf_gpt import GPTConfig, GPTForCausalLM
from hf_gpt.model.parallel_plans import ALL_PARALLEL_STYLES
from hf_gpt.model.positions import NoPositions

VARIANTS = {
    "mixtral": {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1},
    "gpt_oss": {"router_aux_loss_coef": 0.5, "num_local_experts": 4, "num_key_value_heads": 2},
    "deepseek": {"router_aux_loss_coef": 0.5},
    "llama": {},
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_equals_one_process(variant, tmp_path):
    if ALL_PARALLEL_STYLES is None and variant != "llama":
        pytest.skip("transformers 5.17 cannot split experts")
    model = make_model(variant, **VARIANTS[variant], vocab_size=100)
    model.save_pretrained(tmp_path / "model")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    spawn(work, (tmp_path, port, variant), nprocs=RANKS)
    results = torch.load(tmp_path / "results.pt")

    expected_loss, expected_gradients, expected_counts = step(model.train(), random_ids(4, 9))
    assert list(results) == layouts_of(variant)
    for layout, (loss, gradients, counts) in results.items():
        assert torch.allclose(loss, expected_loss, rtol=1e-5), layout
        assert gradients.keys() == expected_gradients.keys(), layout
        for name, expected in expected_gradients.items():
            assert (gradients[name] - expected).abs().max() < 1e-5 * expected.abs().max() + 1e-7, (layout, name)
        for count, expected in zip(counts, expected_counts, strict=True):  # only the ratios matter
            assert torch.allclose(count / count.sum(), expected / expected.sum()), layout
        if layout != "data":
            saved = GPTForCausalLM.from_pretrained(tmp_path / layout).state_dict()
            assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items()), layout


def test_parallel_plans_name_parts_of_the_model(variant):
    model = make_model(variant)
    modules = {name for name, _ in model.named_modules()}
    parts = modules | {name for name, _ in model.named_parameters()}
    config, ours = model.config, {name.replace(f".{layer}.", ".*.", 1) for name in parts for layer in "01"}
    for plan in (config.base_model_tp_plan, config.base_model_ep_plan or {}):
        assert {f"model.{pattern}" for pattern in plan} <= ours
    for projection, style in {"q": "colwise", "k": "colwise", "v": "colwise", "o": "rowwise"}.items():
        assert model.tp_plan[f"model.layers.*.self_attn.{projection}_proj"] == style
    for name, parameter in model.model.layers.named_parameters():
        name = f"layers.*.{name[2:]}"
        if parameter.ndim > 1 and "router" not in name and not name.endswith("down_proj_bias"):
            assert {name, name.rpartition(".")[0]} & config.base_model_tp_plan.keys(), name
        if ".experts." in name:
            assert config.base_model_ep_plan[name] == "grouped_gemm"
    assert isinstance(model.model.get_submodule("layers"), nn.ModuleList)


def test_plans_are_attributes_that_can_be_set():
    """They follow the configuration until then. None is saved."""
    config = make_config("llama")
    assert GPTConfig.base_model_tp_plan is None
    config.qk_norm = False
    assert "layers.*.self_attn.q_norm" not in config.base_model_tp_plan
    assert not {name for name in config.to_dict() if name.endswith("_plan")}
    config.base_model_tp_plan = {"layers.*": "replicate"}
    assert config.base_model_tp_plan == {"layers.*": "replicate"}
    assert copy.deepcopy(config).base_model_tp_plan == config.base_model_tp_plan


PIPELINES = {
    "rope": {},
    "learned": {"position_embedding_type": "learned", "position_offset": 2},
    "sinusoidal": {"position_embedding_type": "sinusoidal"},
    "narrow": {"position_embedding_type": "learned", "embedding_size": 16},
    "untied": {"position_embedding_type": "learned", "tie_word_embeddings": False},
    "post-norm": {"position_embedding_type": "learned", "norm_position": "post"},
    "patterns": {"attention_patterns": ["banded", "strided"] * 2, "sliding_window": 4, "attention_stride": 3},
    "patterns of one stage": {
        "attention_patterns": ["banded", "strided", "fixed", "dense"],
        "sliding_window": 4,
        "attention_stride": 3,
        "attention_summary_size": 1,
    },
    "experts": {"num_local_experts": 4, "mlp_layer_types": ["dense", "sparse"] * 2, "mlp_type": "glu"},
}


class Missing(nn.Identity):
    """A module of another stage, as in transformers (`PipelineIdentityLayer`) and vLLM (`PPMissingLayer`)."""

    def forward(self, *args, **kwargs):
        return args[0] if args else next(iter(kwargs.values()))


def is_identity(module):
    return type(module) is nn.Identity or isinstance(module, NoPositions)


@pytest.mark.parametrize("fields", PIPELINES.values(), ids=PIPELINES)
def test_the_pipeline_plan_lists_what_computes(fields):
    model = make_model(**fields, num_hidden_layers=4).model
    children = {name: module for name, module in model.named_children() if name not in ("rotary_emb", "dropout")}
    computing = [name for name, module in children.items() if not is_identity(module)]
    order = ["embed_tokens", "project_in", "embed_positions", "layers", "norm", "project_out"]
    assert list(model.config.base_model_pp_plan) == [name for name in order if name in computing]
    assert list(model._pp_plan) == list(model.config.base_model_pp_plan)


def by_plan(model, is_first, tied):
    """Replaces what another stage has, by the plan, as vLLM."""
    plan = list(model._pp_plan)
    before, after = plan[: plan.index("layers")], plan[plan.index("layers") + 1 :]
    for name in after if is_first else [] if tied else before:  # tied: the last stage has the embeddings too
        setattr(model, name, Missing())


def by_name(model, is_first, tied):
    """As transformers, which knows three modules."""
    for name in ["norm"] if is_first else [] if tied else ["embed_tokens"]:
        setattr(model, name, Missing())


def split_in_two(whole, replace=by_name):
    """Returns two stages of two layers each."""
    stages = [copy.deepcopy(whole), copy.deepcopy(whole)]
    for stage, is_first in zip(stages, (True, False), strict=True):
        replace(stage.model, is_first, whole.config.tie_word_embeddings)
        for layer_idx in range(4):
            if (layer_idx < 2) != is_first:
                stage.model.layers[layer_idx] = Missing()
    return stages


@pytest.mark.parametrize("fields", PIPELINES.values(), ids=PIPELINES)
@pytest.mark.parametrize("replace", [by_plan, by_name])
def test_two_pipeline_stages_equal_the_whole_model(replace, fields):
    whole, ids = make_model(**fields, num_hidden_layers=4), random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    stages = split_in_two(whole, replace)
    with torch.no_grad():
        states = stages[0].model(ids, attention_mask=mask).last_hidden_state
        assert states.shape == (2, 9, whole.config.hidden_size)
        outputs = stages[1](inputs_embeds=states, attention_mask=mask)
        assert torch.allclose(outputs.logits, whole(ids, attention_mask=mask).logits, atol=1e-6)


class Pipeline(GPTForCausalLM):
    """Two stages in one process, as in the naive pipeline: each has a cache of its own, whose other layers are
    empty, and makes its own masks."""

    create_masks_for_generate = staticmethod(lambda config, inputs_embeds, attention_mask, *_, **__: attention_mask)

    @wraps(GPTForCausalLM.forward)
    def forward(self, input_ids, attention_mask=None, position_ids=None, past_key_values=None, **kwargs):
        cache = past_key_values and vars(past_key_values).setdefault("twin", copy.deepcopy(past_key_values))
        first, last = self.stages
        embeds, kwargs = first.get_input_embeddings()(input_ids), kwargs | {"position_ids": position_ids}
        states = self.run(first.model, embeds, attention_mask, past_key_values, **kwargs).last_hidden_state
        outputs = self.run(last, states, attention_mask, cache, **kwargs)
        outputs.past_key_values = past_key_values
        return outputs

    def run(self, stage, embeds, mask, cache, **kwargs):
        if getattr(cache, "is_compileable", False):
            mask = GPTForCausalLM.create_masks_for_generate(stage.config, embeds, mask, cache, kwargs["position_ids"])
        return stage(inputs_embeds=embeds, attention_mask=mask, past_key_values=cache, **kwargs)


@pytest.mark.parametrize("cache", ["dynamic", "static"])
@pytest.mark.parametrize("fields", PIPELINES.values(), ids=PIPELINES)
def test_generation_by_two_pipeline_stages(fields, cache):
    """The cache of the last stage has no keys in its first layers; generate() has padded rows."""
    whole, ids = make_model(**fields, num_hidden_layers=4), random_ids(2, 9)
    mask = torch.ones_like(ids)
    mask[1, :3] = 0
    pipeline = Pipeline(whole.config).eval()
    pipeline.stages = split_in_two(whole)
    options = GREEDY | {"cache_implementation": cache}
    options |= {"attention_mask": mask, "output_logits": True, "return_dict_in_generate": True}
    found, expected = (model.generate(ids, **options) for model in (pipeline, whole))
    assert torch.equal(found.sequences, expected.sequences)
    assert torch.allclose(torch.stack(found.logits), torch.stack(expected.logits), atol=1e-5)
