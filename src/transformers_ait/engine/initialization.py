"""Where a task-solver starts from: pretrained backbones, earlier runs, aligned positions."""

import importlib.util
from pathlib import Path

import torch
from torch import Tensor, nn

from ..configuration_ait import TASK_IDS, AiTConfig
from ..modeling_ait import AiTForDenseAndInstancePrediction
from ..modeling_token_decoder import sine_table
from .recipes import RecipeError
from .tokenizers import require_model

PACKAGE_PREFIX = "package:"


def load_backbone_weights(model: AiTForDenseAndInstancePrediction, source: str) -> None:
    """Load pretrained weights into a timm backbone.

    Args:
        model: task-solver whose backbone is a `TimmBackbone`.
        source: a file of weights (`.pth`) whose entries stand in timm's order, such as the ImageNet weights of
            EfficientNet-Lite; or `package:NAME`, an installed package that carries one such file. Entries beyond the
            backbone's last stage (a classifier) are left out.

    Raises:
        FileNotFoundError: no such file or package.
        RecipeError: the backbone is no timm model, or the file does not fit it.
    """
    backbone = getattr(model.model.backbone, "_backbone", None)
    if not isinstance(backbone, nn.Module):
        raise RecipeError("model.backbone_weights needs a backbone_config of model_type timm_backbone.")
    file = _weights_file(source)
    stored = list(torch.load(file, weights_only=True, map_location="cpu").values())
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

    A mask embedding may be missing on either side, so that parallel and autoregressive models can start from each
    other; the tokenizers stay the model's own. The decoder of a detection model serves one for instances.

    Args:
        model: what to start.
        folder: of the earlier model.
        decoder: False leaves the decoder as it is; the earlier one may then have any vocabulary.

    Raises:
        OSError: the folder holds no checkpoint.
        RecipeError: it holds another kind of model, or one of another shape.
    """
    require_model(folder, "model.initialize_from", AiTConfig.model_type, "task-solver")
    earlier = AiTForDenseAndInstancePrediction.from_pretrained(folder)
    state, own = earlier.model.state_dict(), model.model.state_dict()
    if not decoder:
        state, own = (_without_decoder(x) for x in (state, own))
    optional = {"decoder.mask_embedding"}
    misfit = sorted((state.keys() ^ own.keys()) - optional)
    misfit += [name for name in state.keys() & own.keys() if state[name].shape != own[name].shape]
    if misfit:
        raise RecipeError(f"model.initialize_from {folder} is another architecture; {misfit[0]} does not fit.")
    model.model.load_state_dict({name: tensor for name, tensor in state.items() if name in own}, strict=False)
    learnt = set(earlier.config.tasks)
    if decoder and "instance" in model.config.tasks and "detection" in learnt and "instance" not in learnt:
        _spread_positions(model)


def _without_decoder(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: tensor for name, tensor in state.items() if not name.startswith("decoder.")}


@torch.no_grad()
def _spread_positions(model: AiTForDenseAndInstancePrediction) -> None:
    """Give box and class of the n-th object of an instance sequence the position and task embeddings of detection."""
    decoder, config = model.model.decoder, model.config
    short, long = (config.tokens_per_object[task] for task in ("detection", "instance"))
    objects, offsets = torch.arange(config.num_objects)[:, None], torch.arange(short)
    table = decoder.position_embeddings
    source = table[TASK_IDS["detection"]][objects * short + offsets]
    table[TASK_IDS["instance"], objects * long + offsets] = source
    decoder.task_embeddings[TASK_IDS["instance"]] = decoder.task_embeddings[TASK_IDS["detection"]]


@torch.no_grad()
def align_positions(model: AiTForDenseAndInstancePrediction) -> None:
    """Let every depth token attend to its own place of the image from the first step on.

    The depth positions start as the sine table that marks the memory, and the cross-attention keys as the queries.
    Trainings without a pretrained task-solver otherwise spend their first part finding this correspondence.

    Raises:
        RecipeError: tokens and memory form different grids.
    """
    config = model.config
    side = config.depth_tokenizer_config.grid_size
    if side != config.grid_size:
        raise RecipeError(
            f"model.align_positions needs equal grids, got {side} x {side} tokens and {config.grid_size} x "
            f"{config.grid_size} positions of memory; leave it out."
        )
    table: Tensor = sine_table(side, config.decoder_config.hidden_size)
    model.model.decoder.position_embeddings[TASK_IDS["depth"], : len(table)] = table
    for block in model.model.decoder.blocks:
        block.cross_attention.key.weight.copy_(block.cross_attention.query.weight)
