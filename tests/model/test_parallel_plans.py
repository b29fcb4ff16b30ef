"""Every parallel layout on two gloo processes has the loss and gradients of one process; the plans name real parts."""

import socket

import pytest
import torch
from layouts import RANKS, layouts_of, step, work
from tiny import make_model, random_ids
from torch.multiprocessing import spawn

from hf_gpt import GPTForCausalLM
from hf_gpt.model.parallel_plans import ALL_PARALLEL_STYLES

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
    assert [f"model.{name}" in modules for name in config.base_model_pp_plan] == [True] * 3
    assert list(config.base_model_pp_plan) == ["embed_tokens", "layers", "norm"]
