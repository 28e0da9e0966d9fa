"""Where a task-solver starts from: pretrained backbones, earlier runs, aligned positions."""

import importlib.util
import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.utils import logging

from ...configuration_ait import AiTConfig
from ...modeling_ait import AiTForDenseAndInstancePrediction
from ...modeling_ait_base import ID_TABLES
from ...modeling_plain_dense import AiTPlainDenseModel
from ...modeling_token_decoder import sine_table
from ...sequence_ait import HEADER_LENGTH
from ...token_vocabulary import shared_ids
from ..recipes.reading import RecipeError, build_config
from ..recipes.scripts import SolverModelRecipe
from ..recipes.tokenizers import INSTANCE_TASK, SOLVER, require_model

logger = logging.get_logger(__name__)
PACKAGE_PREFIX = "package:"
DETECTION_TASK = "detection"
TASK_TABLES = ("decoder.task_embeddings", "decoder.position_embeddings")


def build_task_solver(
    recipe: SolverModelRecipe, values: Mapping[str, Any], tokenizers: Mapping[str, PreTrainedModel]
) -> AiTForDenseAndInstancePrediction:
    """Task-solver of a recipe with its trained tokenizers, at the point that training starts from.

    Args:
        recipe: what to train.
        values: fields of `AiTConfig`.
        tokenizers: trained ones by task; both as `with_tokenizers` gives them.

    Raises:
        FileNotFoundError: `recipe.initialize_from` holds no model.
        RecipeError: the configuration is not valid, or does not fit the earlier run.
    """
    model = AiTForDenseAndInstancePrediction(build_config(AiTConfig, values, "the recipe"))
    for task, tokenizer in tokenizers.items():
        model.tokenizer(task).load_state_dict(tokenizer.state_dict())
    if recipe.backbone_weights is not None:
        load_backbone_weights(model, recipe.backbone_weights)
    if getattr(recipe, "align_positions", False):
        align_positions(model)
    if recipe.initialize_from is not None:
        initialize_from(model, recipe.initialize_from, decoder=getattr(recipe, "initialize_decoder", True))
    return model


def load_backbone_weights(model: AiTForDenseAndInstancePrediction | AiTPlainDenseModel, source: str) -> None:
    """Load pretrained weights into a timm backbone.

    Args:
        model: its backbone is a `TimmBackbone`.
        source: a file of weights (`.pth`) whose entries stand in timm's order, such as the ImageNet weights of
            EfficientNet-Lite; or `package:NAME`, an installed package that carries one such file. Entries beyond the
            backbone's last stage (a classifier) are left out.

    Raises:
        FileNotFoundError: no such file or package.
        RecipeError: the backbone is no timm model, or the file does not fit it.
    """
    holder = model.model if isinstance(model, AiTForDenseAndInstancePrediction) else model
    backbone = getattr(holder.backbone, "_backbone", None)
    if not isinstance(backbone, nn.Module):
        raise RecipeError("model.backbone_weights needs a backbone_config of model_type timm_backbone.")
    file = _weights_file(source)
    try:
        stored = list(torch.load(file, weights_only=True, map_location="cpu").values())
    except pickle.UnpicklingError as error:
        raise RecipeError(
            f"model.backbone_weights {file} is refused: it holds more than tensors, or is damaged. It is only read "
            "with weights_only=True; keep its tensors alone in a file of their own."
        ) from error
    state = backbone.state_dict()
    if len(stored) < len(state):
        raise RecipeError(
            f"{file} holds {len(stored)} tensors, but the backbone has {len(state)}; name its own weights."
        )
    paired = dict(zip(state, stored, strict=False))
    misfit = [name for name, tensor in paired.items() if tensor.shape != state[name].shape]
    if misfit:
        name = misfit[0]
        raise RecipeError(
            f"{file} does not fit the backbone: {name} is {tuple(state[name].shape)} there and "
            f"{tuple(paired[name].shape)} in the file; name the weights of this very backbone."
        )
    backbone.load_state_dict(paired)


def _weights_file(source: str) -> Path:
    if not source.startswith(PACKAGE_PREFIX):
        if not Path(source).is_file():
            raise FileNotFoundError(f"model.backbone_weights {source} is no file; give a .pth file or package:NAME.")
        return Path(source)
    name = source.removeprefix(PACKAGE_PREFIX)
    spec = importlib.util.find_spec(name)
    files = sorted(Path(spec.origin).parent.rglob("*.pth")) if spec is not None and spec.origin else []
    if not files:
        raise FileNotFoundError(
            f"model.backbone_weights {source}: no installed package {name} with a .pth file; "
            f"pip install {name.replace('_', '-')}."
        )
    return files[0]


def initialize_from(model: AiTForDenseAndInstancePrediction, folder: str, decoder: bool = True) -> None:
    """Start from the backbone and encoder of an earlier run, and from its decoder.

    The models may differ in their tasks: what the decoder learnt for the ids and tasks that both have is copied, other
    rows stay as they are, and classes are matched by name. The decoder of a detection model serves one for instances. A
    mask embedding may be missing on either side, so that parallel and autoregressive models can start from each other;
    the tokenizers stay the model's own.

    Args:
        model: what to start.
        folder: of the earlier model.
        decoder: False leaves the decoder as it is; the earlier one may then have any vocabulary.

    Raises:
        OSError: the folder holds no checkpoint.
        RecipeError: it holds another kind of model, or one of another shape.
    """
    require_model(folder, "model.initialize_from", SOLVER)
    earlier = AiTForDenseAndInstancePrediction.from_pretrained(folder)
    state, own = earlier.model.state_dict(), model.model.state_dict()
    if not decoder:
        state, own = (_without_decoder(x) for x in (state, own))
    optional, tables = {"decoder.mask_embedding"}, {*ID_TABLES, *TASK_TABLES}
    misfit = sorted((state.keys() ^ own.keys()) - optional)
    both = (state.keys() & own.keys()) - tables
    misfit += [name for name in sorted(both) if state[name].shape != own[name].shape]
    if misfit:
        raise RecipeError(f"model.initialize_from {folder} is another architecture; {misfit[0]} does not fit.")
    model.model.load_state_dict({name: state[name] for name in both}, strict=False)
    if decoder:
        _copy_tables(earlier, model, folder)
        _log_differences(earlier.config, model.config, folder)


def _log_differences(earlier: Any, config: Any, folder: str) -> None:
    """Say what of an earlier model is left out, and what starts untrained."""
    found = {"tasks": (earlier.tasks, config.tasks)}
    if earlier.object_tasks and config.object_tasks:
        found["classes"] = (list(earlier.id2label.values()), list(config.id2label.values()))
    for what, (before, now) in found.items():
        gone, new = ([x for x in first if x not in second] for first, second in ((before, now), (now, before)))
        if gone or new:
            kept = [x for x in now if x in before]
            logger.warning(
                f"{folder}: of its {what}, {kept or 'none'} kept, {gone or 'none'} left out; new: {new or 'none'}."
            )


def _without_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}


@torch.no_grad()
def _copy_tables(
    earlier: AiTForDenseAndInstancePrediction, model: AiTForDenseAndInstancePrediction, folder: str
) -> None:
    """Copy the rows of ids and tasks that both models have."""
    _check_lengths(earlier.config, model.config, folder)
    state, own = earlier.model.state_dict(), model.model.state_dict()  # which shares the model's memory
    source, target = _shared_ids(earlier.config, model.config, folder)
    for name in ID_TABLES:
        own[name][target] = state[name][source]
    before, now = earlier.config.task_ids, model.config.task_ids
    # Of equal tables also the rows that no task has.
    both = min(earlier.config.num_task_rows, model.config.num_task_rows)
    rows = range(both) if before == now else None
    pairs = [(x, x) for x in rows] if rows else [(before[task], now[task]) for task in before.keys() & now.keys()]
    for name in TASK_TABLES:
        length = min(state[name].shape[1], own[name].shape[1])
        for old, new in pairs:
            own[name][new, :length] = state[name][old, :length]
    for task, other in ((INSTANCE_TASK, DETECTION_TASK), (DETECTION_TASK, INSTANCE_TASK)):
        if task in model.config.tasks and other in earlier.config.tasks and task not in earlier.config.tasks:
            _move_positions(earlier, model, other, task)


def _check_lengths(earlier: Any, config: Any, folder: str) -> None:
    """Raise where a place in a sequence does not mean the same to both models."""
    for task in set(earlier.tasks) & set(config.tasks):
        before, now = (
            x.tokens_per_object[task] if task in x.object_tasks else x.sequence_length(task) for x in (earlier, config)
        )
        if before != now:
            raise RecipeError(
                f"model.initialize_from {folder} is another architecture; it writes {before} tokens where this model "
                f"writes {now} for the task {task!r}."
            )


def _shared_ids(earlier: Any, config: Any, folder: str) -> tuple[Tensor, Tensor]:
    """Ids of the earlier vocabulary, and of this one, that mean the same."""
    old, new = earlier.vocabulary, config.vocabulary
    if old == new and earlier.id2label == config.id2label:
        return torch.arange(old.size), torch.arange(new.size)
    dense = [task for task in earlier.dense if task in config.dense]
    needed = {task: (old.codes(task), new.codes(task)) for task in dense}
    if earlier.object_tasks and config.object_tasks:
        needed["coordinates"] = old.coordinates, new.coordinates
    if INSTANCE_TASK in earlier.tasks and INSTANCE_TASK in config.tasks:
        needed["mask codes"] = old.mask_codes, new.mask_codes
    for name, (before, now) in needed.items():
        if before.size != now.size:
            raise RecipeError(
                f"model.initialize_from {folder} is another architecture; it has {before.size} ids for {name}, this "
                f"model {now.size}."
            )
    pairs = shared_ids(old, new, [*earlier.id2label.values()], [*config.id2label.values()])
    source, target = torch.tensor(pairs).T
    return source, target


@torch.no_grad()
def _move_positions(
    earlier: AiTForDenseAndInstancePrediction, model: AiTForDenseAndInstancePrediction, source: str, task: str
) -> None:
    """Give box and class of the n-th object the position and task embeddings of the other task of objects."""
    old, new = earlier.model.decoder, model.model.decoder
    from_row, to_row = earlier.config.task_ids[source], model.config.task_ids[task]
    count = min(earlier.config.num_objects, model.config.num_objects)
    objects, offsets = torch.arange(count)[:, None], torch.arange(HEADER_LENGTH)
    before, now = earlier.config.tokens_per_object[source], model.config.tokens_per_object[task]
    learnt = old.position_embeddings[from_row][objects * before + offsets]
    new.position_embeddings[to_row, objects * now + offsets] = learnt
    new.task_embeddings[to_row] = old.task_embeddings[from_row]


@torch.no_grad()
def align_positions(model: AiTForDenseAndInstancePrediction) -> None:
    """Let every token of a dense task attend to its own place of the image from the first step on.

    The positions start as the sine table that marks the memory, and the cross-attention keys as the queries. Trainings
    without a pretrained task-solver otherwise spend their first part finding this correspondence.

    Raises:
        RecipeError: tokens and memory form different grids.
    """
    config = model.config
    for task, spec in config.dense.items():
        side = spec.tokenizer_config.grid_size
        if side != config.grid_size:
            raise RecipeError(
                f"model.align_positions needs equal grids, got {side} x {side} tokens of {task} and {config.grid_size} "
                f"x {config.grid_size} positions of memory; leave it out."
            )
        table: Tensor = sine_table(side, config.decoder_config.hidden_size)
        model.model.decoder.position_embeddings[config.task_ids[task], : len(table)] = table
    for block in model.model.decoder.blocks:
        block.cross_attention.key.weight.copy_(block.cross_attention.query.weight)
