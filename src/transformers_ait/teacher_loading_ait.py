"""Teachers of dense decoders by name: loading, the head alone, what configurations say of them, their identity."""

import hashlib
from typing import Any

import torch
import transformers
from torch import nn
from transformers import PreTrainedConfig

from .configuration_checks_ait import resolve_sub_config
from .configuration_plain_dense import AiTPlainDenseConfig
from .modeling_plain_dense import AiTPlainDenseModel
from .teachers_ait import TASK_MODELS, TaskModel


def build_task_head(config: Any, task: str | None = None) -> TaskModel:
    """The head of a task model with random weights, frozen.

    Args:
        config: of the task model, or its dictionary.
        task: which of its tasks.

    Raises:
        ValueError: a task model of another family.
    """
    resolved: Any = resolve_sub_config("teacher_config", config, [AiTPlainDenseConfig], others=True)
    head = _adapter(resolved)(model_class_of(resolved)(resolved), task)
    head.drop_backbone()
    return head.requires_grad_(False).eval()


def load_task_model(name: str, revision: str | None = None, task: str | None = None) -> TaskModel:
    """A trained task model from a folder or the Hub, frozen, in float32.

    Args:
        name: folder, or name on the Hub.
        revision: on the Hub.
        task: which of its tasks, where it has several; None is the first.

    Raises:
        OSError: there is no such model.
        ValueError: it is of another family, or has no such task.
    """
    arguments = {} if revision is None else {"revision": revision}
    config = transformers.AutoConfig.from_pretrained(name, **arguments)
    adapter = _adapter(config)
    model = model_class_of(config).from_pretrained(name, dtype=torch.float32, **arguments)
    return adapter(model, task).requires_grad_(False).eval()


def model_class_of(config: PreTrainedConfig) -> Any:
    """Class of the task model that a configuration is of."""
    name = _adapter(config).model_class
    return AiTPlainDenseModel if name == AiTPlainDenseModel.__name__ else getattr(transformers, name)


@torch.no_grad()
def describe_teacher(teacher: TaskModel, image_size: int) -> dict[str, Any]:
    """Fields of `DenseDecoderConfig` that follow from a trained task model; its name and revision do not.

    Args:
        teacher: with its backbone.
        image_size: side S of the images.
    """
    first = next(teacher.model.parameters())
    features = teacher.features(first.new_zeros(1, 3, image_size, image_size))
    names = teacher.class_names
    fields: dict[str, Any] = {
        "map_kind": teacher.kind.name,
        "num_channels": teacher.num_channels,
        "image_size": image_size,
        "teacher_config": teacher.model.config.to_dict(),
        "teacher_task": teacher.task,
        "teacher_fingerprint": fingerprint(teacher),
        "feature_shapes": [list(feature.shape[1:]) for feature in features],
    }
    return fields if names is None else fields | {"id2label": dict(enumerate(names))}


def fingerprint(teacher: TaskModel) -> str:
    """SHA-256 of a task model's weights, backbone and head, with their names and shapes."""
    return weights_fingerprint(teacher.model)


def weights_fingerprint(model: nn.Module) -> str:
    """SHA-256 of any model's weights and buffers in float32, with their names and shapes."""
    digest = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        digest.update(f"{name} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().to(torch.float32).contiguous().numpy().tobytes())
    return digest.hexdigest()


def check_same_teacher(config: Any, teacher: TaskModel) -> None:
    """Raise where a dense decoder was trained with another teacher.

    Args:
        config: of the dense decoder.
        teacher: with its backbone.

    Raises:
        ValueError: the teacher's weights are others.
    """
    found = fingerprint(teacher)
    if config.teacher_fingerprint not in (None, found):
        raise ValueError(
            f"The teacher has changed: the dense decoder was trained with {config.teacher_name or 'one'} of "
            f"fingerprint {config.teacher_fingerprint[:12]}..., the given one has {found[:12]}...; name the teacher "
            "that it was trained with, or train another dense decoder."
        )


def _adapter(config: PreTrainedConfig) -> type[TaskModel]:
    if config.model_type not in TASK_MODELS:
        raise ValueError(
            f"The teacher must be a task model of type {sorted(TASK_MODELS)}, got {config.model_type!r}; others need "
            "an adapter in teachers_ait.py."
        )
    return TASK_MODELS[config.model_type]


__all__ = [
    "build_task_head",
    "check_same_teacher",
    "describe_teacher",
    "fingerprint",
    "load_task_model",
    "weights_fingerprint",
]
