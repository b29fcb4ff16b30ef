"""Models as data parallelism wraps them, on one process: parameters are not where `register_parameter` put them."""

import socket
from contextlib import contextmanager

import torch
from torch import distributed, nn
from torch.distributed.fsdp import FullyShardedDataParallel, MixedPrecision, fully_shard
from torch.distributed.fsdp.wrap import ModuleWrapPolicy
from torch.nn.parallel import DistributedDataParallel


@contextmanager
def process_group():
    """A process group of this process alone."""
    with socket.socket() as probe:
        probe.bind(("localhost", 0))
        address = f"tcp://localhost:{probe.getsockname()[1]}"
    distributed.init_process_group("gloo", init_method=address, rank=0, world_size=1)
    try:
        yield
    finally:
        distributed.destroy_process_group()


def replica(model: nn.Module) -> nn.Module:
    """Returns a replica as `nn.DataParallel` makes it on another device: copies of the parameters, which are plain
    tensors of the graph and not in `_parameters`, and copies of the buffers."""
    modules = list(model.modules())
    copies = {module: module._replicate_for_data_parallel() for module in modules}
    for module, copied in copies.items():
        for name, child in module._modules.items():
            copied._modules[name] = child if child is None else copies[child]
        for name, parameter in module._parameters.items():
            if parameter is None:
                copied._parameters[name] = None
            else:
                setattr(copied, name, parameter * 1)
        for name, buffer in module._buffers.items():
            copied._buffers[name] = None if buffer is None else buffer.clone()
    return copies[model]


def fsdp1(model: nn.Module, **options) -> nn.Module:
    policy = ModuleWrapPolicy({type(model.base_model.layers[0])})
    return FullyShardedDataParallel(model, auto_wrap_policy=policy, device_id=torch.device("cpu"), **options)


def fsdp2(model: nn.Module) -> nn.Module:
    for block in model.base_model.layers:
        fully_shard(block)
    return fully_shard(model)


# By name: how a model is wrapped; all but the replica need a process group.
WRAPPERS = {
    "ddp": DistributedDataParallel,
    "fsdp1": lambda model: fsdp1(model, use_orig_params=True),
    "fsdp1_flat": lambda model: fsdp1(model, use_orig_params=False),
    "fsdp1_mixed": lambda model: fsdp1(
        model, use_orig_params=False, mixed_precision=MixedPrecision(buffer_dtype=torch.bfloat16)
    ),
    "fsdp2": fsdp2,
}
