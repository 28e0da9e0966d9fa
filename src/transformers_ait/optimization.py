"""Parameter groups with layer-wise rate decay and without needless weight decay, and learning-rate schedules.

A schedule is a pure function of the step: the factor on every group's own rate. `make_scheduler` hands it to PyTorch.
"""

import math
import re
from collections.abc import Callable
from typing import Any

from timm.models import group_parameters
from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR

Schedule = Callable[[int], float]

# Segments of the names of what the original never decays besides vectors.
_UNDECAYED = {
    "logit_scale",
    "position_mlp",
    "token_embeddings",
    "position_embeddings",
    "task_embeddings",
    "mask_embedding",
}
_SWIN_LAYER = re.compile(
    r"(?P<embeddings>embeddings)\..+|stages\.(?P<stage>\d+)\.(?:blocks\.(?P<block>\d+)|downsample)\..+"
)


def parameter_groups(
    model: nn.Module, lr: float, weight_decay: float, layer_decay: float = 1.0
) -> list[dict[str, Any]]:
    """Groups for `torch.optim.AdamW`, with the rules of the original AiT.

    Vectors, biases, logit scales, position-bias MLPs and embeddings of the decoder are not decayed. The rate of layer i
    of n is `lr * layer_decay ** (n - i)`: layer 0 is the patch embedding, then comes every Swin block, with each patch
    merging as one more layer after its stage; layer n is the backbone's final norm and everything outside the backbone.
    A timm backbone is layered by its own `group_matcher`; any other backbone has the full rate throughout.

    Args:
        model: any model; parameters without gradient are left out.
        lr: rate of the last layer.
        weight_decay: decay of the decayed parameters.
        layer_decay: in (0, 1]; 1 is one rate for all.

    Returns:
        One dictionary per pair of rate and decay: `params`, `param_names`, `lr`, `lr_scale`, `weight_decay`.

    Raises:
        ValueError: an argument is out of range.
    """
    if not lr > 0:
        raise ValueError(f"lr must be positive, got {lr}.")
    if not weight_decay >= 0:
        raise ValueError(f"weight_decay must not be negative, got {weight_decay}.")
    if not 0 < layer_decay <= 1:
        raise ValueError(f"layer_decay must lie in (0, 1], got {layer_decay}; 1 turns it off.")
    depths = _layers_above(model)
    groups: dict[tuple[int, bool], dict[str, Any]] = {}
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        above, decayed = depths.get(name, 0), is_decayed(name, parameter)
        scale = layer_decay**above
        empty = {
            "params": [],
            "param_names": [],
            "lr": lr * scale,
            "lr_scale": scale,
            "weight_decay": weight_decay if decayed else 0.0,
        }
        group = groups.setdefault((above, decayed), empty)
        group["params"].append(parameter)
        group["param_names"].append(name)
    return list(groups.values())


def is_decayed(name: str, parameter: nn.Parameter) -> bool:
    """Whether weight decay applies to a parameter of this name."""
    return parameter.ndim > 1 and not _UNDECAYED.intersection(name.split("."))


def _layers_above(model: nn.Module) -> dict[str, int]:
    """Number of layers between each backbone parameter and the last layer, by parameter name."""
    for path, module in model.named_modules():
        # By model type, not class: remote code may hold a second copy of the class.
        if getattr(getattr(module, "config", None), "model_type", None) == "ait_swinv2":
            layers = _swin_layers(module)
        elif callable(getattr(module, "group_matcher", None)):
            layers = group_parameters(module, module.group_matcher(coarse=False), reverse=True)
        else:
            continue
        count = max(layers.values()) + 1
        return {f"{path}.{name}".lstrip("."): count - layer for name, layer in layers.items()}
    return {}


def _swin_layers(backbone: nn.Module) -> dict[str, int]:
    """Layer number by parameter name, from 0; the final norm belongs to none of them."""
    keys = {}
    for name, _ in backbone.named_parameters():
        if match := _SWIN_LAYER.fullmatch(name):
            # (stage, whether it is the merging after the stage, block)
            stage = -1 if match["embeddings"] else int(match["stage"])
            keys[name] = (stage, stage >= 0 and match["block"] is None, int(match["block"] or 0))
    order = {key: number for number, key in enumerate(sorted(set(keys.values())))}
    return {name: order[key] for name, key in keys.items()}


def make_scheduler(optimizer: Optimizer, schedule: Schedule) -> LambdaLR:
    """PyTorch scheduler that multiplies every group's initial rate by `schedule(step)`; step once per update."""
    return LambdaLR(optimizer, schedule)


def with_warmup(schedule: Schedule, steps: int, start: float) -> Schedule:
    """`schedule`, times a factor that grows linearly from `start` at step 0 to 1 at step `steps`."""

    def warmed_up(step: int) -> float:
        share = min(step / steps, 1.0) if steps else 1.0
        return schedule(step) * (start + (1 - start) * share)

    return warmed_up


def step_decay(milestones: list[int], factor: float = 0.1) -> Schedule:
    """Multiply by `factor` at each milestone step."""
    return lambda step: factor ** sum(step >= milestone for milestone in milestones)


def linear_decay(total: int, final: float = 0.0) -> Schedule:
    """From 1 at step 0 in a straight line to `final` at step `total`."""
    return lambda step: final + (1 - final) * (1 - min(step / total, 1.0))


def cosine_decay(total: int, final: float = 0.0) -> Schedule:
    """From 1 at step 0 along half a cosine to `final` at step `total`."""
    return lambda step: final + (1 - final) * 0.5 * (1 + math.cos(math.pi * min(step / total, 1.0)))


def exponential_decay(every: int = 500, factor: float = 0.98) -> Schedule:
    """Multiply by `factor` every `every` steps."""
    return lambda step: factor ** (step // every)


def constant() -> Schedule:
    """Always 1."""
    return lambda step: 1.0
