"""What training shares between processes; every function is the identity in a single process."""

import torch
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


def gather_over_processes(tensor: Tensor) -> Tensor:
    """Detached tensors of equal shapes (N, ...) of all processes, one after the other: (processes * N, ...)."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor.detach()
    parts = [torch.empty_like(tensor) for _ in range(dist.get_world_size())]
    dist.all_gather(parts, tensor.detach().contiguous())
    return torch.cat(parts)


def broadcast_from_first(tensor: Tensor) -> Tensor:
    """The first process's tensor on all processes; shapes must agree."""
    if not (dist.is_available() and dist.is_initialized()):
        return tensor
    shared = tensor.detach().clone().contiguous()
    dist.broadcast(shared, src=0)
    return shared
