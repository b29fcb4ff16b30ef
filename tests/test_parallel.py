"""Two processes on gloo, every way to split a model over them: the loss and gradients of one process."""

import os
import socket
from pathlib import Path

import pytest
import torch
from tiny import make_model, random_ids
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.multiprocessing import spawn
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig

from hf_gpt import GPTForCausalLM
from hf_gpt.parallel_plans import ALL_PARALLEL_STYLES

RANKS = 2
# What transformers splits; and whether ranks see a part of the batch each.
LAYOUTS = {
    "fsdp": ({"fsdp_size": RANKS}, True),
    "tensor": ({"tp_size": RANKS}, False),
    "expert": ({"tp_size": RANKS, "ep_size": RANKS}, False),
    "expert_fsdp": ({"fsdp_size": RANKS, "ep_size": RANKS}, True),
}
VARIANTS = {
    "mixtral": {"router_aux_loss_coef": 0.5, "router_z_loss_coef": 0.1},
    "gpt_oss": {"router_aux_loss_coef": 0.5, "num_local_experts": 4, "num_key_value_heads": 2},
    "deepseek": {"router_aux_loss_coef": 0.5},
    "llama": {},
}


def step(model, ids):
    """Loss and gradients of a training step, and what the routers have counted."""
    model.train()
    loss = model(ids, labels=ids).loss
    loss.backward()
    gradients = {name: whole(parameter.grad) for name, parameter in model.named_parameters()}
    counts = {name: buffer.clone() for name, buffer in model.named_buffers() if name.endswith("tokens_per_expert")}
    return loss.detach(), gradients, counts


def whole(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def work(rank, folder, port, variant):
    """What each process does: every layout in turn, which loads the checkpoint that the one before it has saved."""
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    batch = random_ids(4, 9)
    part = batch.chunk(RANKS)[rank]
    results = {}

    model = DistributedDataParallel(GPTForCausalLM.from_pretrained(folder / "whole"))
    loss, gradients, counts = step(model, part)
    distributed.all_reduce(loss)
    strip = lambda values: {name.removeprefix("module."): value for name, value in values.items()}  # noqa: E731
    results["data"] = loss / RANKS, strip(gradients), strip(counts)

    source = folder / "whole"
    for layout, (sizes, splits_batch) in LAYOUTS.items():
        if "ep_size" in sizes and variant == "llama":
            continue
        config = DistributedConfig(**sizes)
        model = GPTForCausalLM.from_pretrained(source, distributed_config=config)
        loss, gradients, counts = step(model, part if splits_batch else batch)
        if splits_batch:
            distributed.all_reduce(loss)
            loss = loss / RANKS
        results[layout] = loss, gradients, counts
        source = folder / layout
        model.save_pretrained(source)
        distributed.barrier()
    if rank == 0:
        torch.save(results, folder / "results.pt")
    distributed.destroy_process_group()


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_layout_trains_as_one_process(variant, tmp_path):
    if ALL_PARALLEL_STYLES is None and variant != "llama":
        pytest.skip("transformers 5.17 cannot split experts")
    model = make_model(variant, **VARIANTS[variant], vocab_size=100)
    model.save_pretrained(tmp_path / "whole")
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        port = probe.getsockname()[1]
    spawn(work, (Path(tmp_path), port, variant), nprocs=RANKS)
    results = torch.load(tmp_path / "results.pt")

    expected_loss, expected_gradients, expected_counts = step(model, random_ids(4, 9))
    assert len(results) == (3 if variant == "llama" else 1 + len(LAYOUTS))
    for layout, (loss, gradients, counts) in results.items():
        assert torch.allclose(loss, expected_loss, rtol=1e-5), layout
        assert gradients.keys() == expected_gradients.keys(), layout
        for name, expected in expected_gradients.items():
            assert (gradients[name] - expected).abs().max() < 1e-5 * expected.abs().max() + 1e-7, (layout, name)
        assert counts.keys() == expected_counts.keys(), layout
        for name, expected in expected_counts.items():  # of the whole batch; ratios count
            assert torch.allclose(counts[name] / counts[name].sum(), expected / expected.sum()), (layout, name)
        if layout in LAYOUTS:
            saved = GPTForCausalLM.from_pretrained(tmp_path / layout).state_dict()
            assert all(torch.equal(saved[name], value) for name, value in model.state_dict().items()), layout
