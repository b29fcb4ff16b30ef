"""Records what PyTorch runs: operators, the dtypes of matrix products, the largest tensor."""

import torch
from torch.utils._python_dispatch import TorchDispatchMode


def kernels_of(call):
    """Returns the names of the operators that a call runs."""
    with torch.no_grad(), torch.profiler.profile() as profile:
        call()
    return {event.key for event in profile.key_averages()}


class LargestTensor(TorchDispatchMode):
    """Records the number of elements of the largest storage that an operation returns."""

    def __init__(self):
        super().__init__()
        self.elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **kwargs or {})
        for output in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(output, torch.Tensor) and output.numel():
                size = output.untyped_storage().nbytes() // output.element_size()
                self.elements = max(self.elements, size)
        return result


class ProductDtypes(TorchDispatchMode):
    """Records the dtypes of all matrices that are multiplied."""

    PRODUCTS = ("aten.mm.", "aten.addmm.", "mkldnn._linear_pointwise.")

    def __init__(self):
        super().__init__()
        self.dtypes = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        if str(func).startswith(self.PRODUCTS):
            self.dtypes |= {each.dtype for each in args if isinstance(each, torch.Tensor)}
        return func(*args, **(kwargs or {}))
