"""Moving average of a task-solver's weights, which is evaluated and saved in their place."""

from typing import Any

from accelerate import Accelerator
from accelerate.utils import DistributedType
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from transformers import PreTrainedModel

from ...distributed_ait import broadcast_from_first
from ...modeling_ait_vqvae import AiTVQVAEModel
from ..recipes.reading import RecipeError


def make_average(model: PreTrainedModel, decay: float | None, accelerator: Accelerator) -> Any:
    """Exponential moving average that the checkpoints of a run hold; None without `decay`.

    Args:
        model: what is trained, not wrapped, in its final layout.
        decay: share of the average that stays at every step.
        accelerator: the run's.

    Raises:
        RecipeError: a tokenizer, or sharded weights.
    """
    if decay is None:
        return None
    if isinstance(model, AiTVQVAEModel):
        raise RecipeError("run.ema is for task-solvers; a tokenizer's codebook is a moving average already.")
    if accelerator.distributed_type == DistributedType.FSDP:
        raise RecipeError("run.ema needs whole weights in every process, which FSDP has not; leave it out.")
    average = AveragedModel(model, device=accelerator.device, multi_avg_fn=get_ema_multi_avg_fn(decay))
    average.requires_grad_(False).eval()
    accelerator.register_for_checkpointing(average)
    return average


def share_buffers(average: AveragedModel) -> None:
    """Give all processes the first one's running statistics, which are those that are saved."""
    for buffer in average.module.buffers():
        buffer.copy_(broadcast_from_first(buffer))
