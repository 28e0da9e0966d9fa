"""Learning rates of a run from its recipe."""

from accelerate.logging import get_logger

from ... import optimization
from ..recipes.reading import RecipeError
from ..recipes.sections import OptimRecipe, RunRecipe, ScheduleRecipe

logger = get_logger(__name__)


def learning_rate(optim: OptimRecipe, run: RunRecipe) -> float:
    """Rate of the last layer, scaled to the batch where the recipe says so; batches other than published are warned of.

    Raises:
        RecipeError: the rate is to be scaled, but there is no published batch.
    """
    if run.published_batch_size is None:
        if optim.scale_lr:
            raise RecipeError("optim.scale_lr needs run.published_batch_size, the batch that optim.lr is meant for.")
        return optim.lr
    ratio = run.batch_size / run.published_batch_size
    if ratio == 1:
        return optim.lr
    what = f"run.batch_size is {run.batch_size}, published is {run.published_batch_size}"
    if not optim.scale_lr:
        logger.warning(f"{what}: results will differ. --optim.scale_lr true would multiply the rate by {ratio:.4g}.")
        return optim.lr
    logger.warning(f"{what}: the rate is {optim.lr * ratio:.4g} in place of {optim.lr:.4g}; steps stay as they are.")
    return optim.lr * ratio


def make_schedule(recipe: ScheduleRecipe, steps: int) -> optimization.Schedule:
    """Schedule of a recipe for a run of `steps`."""
    schedule = {
        "constant": optimization.constant,
        "step": lambda: optimization.step_decay(recipe.milestones, recipe.factor),
        "linear": lambda: optimization.linear_decay(steps, recipe.final),
        "cosine": lambda: optimization.cosine_decay(steps, recipe.final),
        "exponential": lambda: optimization.exponential_decay(recipe.every, recipe.factor),
    }[recipe.name]()
    return optimization.with_warmup(schedule, recipe.warmup_steps, recipe.warmup_start)
