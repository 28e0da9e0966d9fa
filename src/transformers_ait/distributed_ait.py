"""The two reductions over processes that training needs; both are the identity in a single process."""

import torch.distributed as dist
from torch import Tensor


def sum_over_processes(tensor: Tensor) -> Tensor:
    """Sum of a detached tensor over all processes, the tensor itself when there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    total = tensor.detach().clone()
    dist.all_reduce(total)
    return total


def mean_over_processes(tensor: Tensor) -> Tensor:
    """Mean of a detached tensor over all processes, the tensor itself when there is one."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    return sum_over_processes(tensor) / dist.get_world_size()
