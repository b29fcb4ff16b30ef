"""The training step of each process under every parallel layout; each layout loads what the one before it saved.

This is a module of its own because a spawned process imports it by name.
"""

import os

import torch
from tiny import random_ids
from torch import distributed
from torch.distributed.tensor import DTensor
from torch.nn.parallel import DistributedDataParallel
from transformers.distributed import DistributedConfig

from hf_gpt import GPTForCausalLM
from hf_gpt.model.balancing import sum_over_processes
from hf_gpt.model.moe import BiasedChoiceRouter

RANKS = 2
# The sizes that transformers splits by (None: DistributedDataParallel), and whether each rank gets a part of the batch.
LAYOUTS = {
    "data": (None, True),
    "fsdp": ({"fsdp_size": RANKS}, True),
    "tensor": ({"tp_size": RANKS}, False),
    "expert": ({"tp_size": RANKS, "ep_size": RANKS}, False),
    "expert_fsdp": ({"fsdp_size": RANKS, "ep_size": RANKS}, True),
}


def layouts_of(variant):
    """Returns the layouts of a variant: expert parallelism only for a mixture of experts."""
    return [layout for layout in LAYOUTS if variant != "llama" or "expert" not in layout]


def step(model, ids):
    """Returns the loss and gradients of a training step, and the token counts of the routers."""
    loss = model(ids, labels=ids).loss
    loss.backward()
    bare = getattr(model, "module", model)
    gradients = {name: full_tensor(parameter.grad) for name, parameter in bare.named_parameters()}
    routers = [router for router in bare.model.routers if isinstance(router, BiasedChoiceRouter)]
    return loss.detach(), gradients, [sum_over_processes(router.tokens_per_expert) for router in routers]


def full_tensor(tensor):
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def load(folder, sizes):
    if sizes is None:
        return DistributedDataParallel(GPTForCausalLM.from_pretrained(folder)).train()
    return GPTForCausalLM.from_pretrained(folder, distributed_config=DistributedConfig(**sizes)).train()


def work(rank, folder, port, variant):
    os.environ |= {"RANK": str(rank), "LOCAL_RANK": str(rank), "WORLD_SIZE": str(RANKS)}
    os.environ |= {"MASTER_ADDR": "localhost", "MASTER_PORT": str(port)}
    torch.set_num_threads(1)
    distributed.init_process_group("gloo")
    batch, results, source = random_ids(4, 9), {}, folder / "model"
    for layout in layouts_of(variant):
        sizes, splits_batch = LAYOUTS[layout]
        model = load(source, sizes)
        loss, gradients, counts = step(model, batch.chunk(RANKS)[rank] if splits_batch else batch)
        if splits_batch:
            distributed.all_reduce(loss)
            loss = loss / RANKS
        results[layout] = loss, gradients, counts
        if sizes is not None:
            source = folder / layout
            model.save_pretrained(source)
        distributed.barrier()
    if rank == 0:
        torch.save(results, folder / "results.pt")
    distributed.destroy_process_group()
