"""Configuration of ordinary decoders on a backbone, what token prediction of dense maps is measured against."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, is_dataclass
from typing import Any

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import SubConfigSpec

from .configuration_ait import given_classes
from .configuration_ait_swinv2 import AiTSwinV2Config
from .configuration_checks_ait import (
    AiTBaseConfig,
    check_common,
    check_dictionary,
    check_list,
    require_positive,
    resolve_sub_config,
)
from .configuration_dense_tasks import check_task_name
from .map_kinds_ait import DENSE_KINDS, IGNORED_CLASS, MAP_KINDS, MapKind

NUM_GROUPS = 8  # of the group normalisations


@strict
@dataclass(kw_only=True)
class AiTPlainDenseTask:
    """A task that predicts a map with a decoder of its own.

    Args:
        name: of letters, digits and "_"; what `task`, `dense_labels` and `dense_maps` call it.
        kind: what its values mean, a key of `MAP_KINDS`; "mask" is for instances.
        channels: of the prediction; None is what the kind says, one per class name, else 1.
        loss_weight: weight of the task's loss.
        class_names: of a task of classes, in the order of their ids; None numbers them.

    Raises:
        ValueError: (as the cause of a strict-dataclass error, or itself) a name, kind or channels that cannot be.
    """

    name: str
    kind: str
    channels: int | None = None
    loss_weight: float | int = 1.0
    class_names: list[str] | tuple[str, ...] | None = None

    def __post_init__(self) -> None:
        if self.kind not in DENSE_KINDS:
            raise ValueError(f"kind of the dense task {self.name!r} must be one of {DENSE_KINDS}, got {self.kind!r}.")
        if self.map_kind.has_scores and self.class_names is None:
            if self.channels is None:
                raise ValueError(f"the dense task {self.name!r} needs class_names, or as channels their number.")
            self.class_names = [f"LABEL_{index}" for index in range(self.channels)]
        if self.class_names is not None:
            self.class_names = [*self.class_names]  # as JSON gives them back
        if self.channels is None:
            self.channels = len(self.class_names or ()) or self.map_kind.channels or 1

    @property
    def map_kind(self) -> MapKind:
        """What the map's values mean."""
        return MAP_KINDS[self.kind]

    def validate_name(self) -> None:
        """The name must be usable as a key, as a folder and as the name of a module."""
        check_task_name(self.name)

    def validate_channels(self) -> None:
        """There must be as many channels as the kind or the class names ask for."""
        require_positive(self, "channels")
        if self.map_kind.has_scores and self.channels > IGNORED_CLASS:  # type: ignore[operator]
            raise ValueError(f"channels must be at most {IGNORED_CLASS} classes, got {self.channels}.")
        if self.class_names is not None and not self.map_kind.has_scores:
            raise ValueError(f"class_names do not suit the dense task {self.name!r} of kind {self.kind!r}.")
        expected = self.map_kind.channels if self.class_names is None else len(self.class_names)
        if expected not in (None, self.channels):
            raise ValueError(
                f"channels of the dense task {self.name!r} must be {expected}, as its kind {self.kind!r} or its "
                f"class_names have, got {self.channels}; leave them out."
            )


def _as_dict(entry: Any) -> Any:
    return asdict(entry) if is_dataclass(entry) and not isinstance(entry, type) else entry


def _dense_task(entry: Any) -> AiTPlainDenseTask:
    """An entry of `dense_tasks`, of a dictionary or a dataclass; remote code may hold another copy of its class."""
    entry = _as_dict(entry)
    known = [field.name for field in fields(AiTPlainDenseTask)]
    if not isinstance(entry, Mapping) or not {"name", "kind"} <= entry.keys() <= set(known):
        raise ValueError(f"dense_tasks must hold dictionaries with name, kind and others of {known}, got {entry!r}.")
    return AiTPlainDenseTask(**entry)


@strict
class AiTPlainDenseConfig(AiTBaseConfig):
    """Ordinary convolutional decoders on a backbone, one per dense task.

    `id2label` is the class table of the first task of classes.

    Args:
        backbone_config: `AiTSwinV2Config`, or any configuration that `AutoBackbone` takes (timm included); all
            requested feature maps are used, finest first.
        dense_tasks: each an `AiTPlainDenseTask` or its dictionary; kept as dictionaries, see `dense`.
        image_size: side S of the square input in pixels; smaller images are zero-padded at bottom and right.
        hidden_size: width of the decoders.
    """

    model_type = "ait_plain_dense"
    sub_configs_defaults = {"backbone_config": SubConfigSpec(AiTSwinV2Config, optional=True)}

    backbone_config: Any = None
    dense_tasks: Any = ({"name": "depth", "kind": "depth"},)
    image_size: int = 480
    hidden_size: int = 128

    def __post_init__(self, **kwargs):
        backbone = resolve_sub_config("backbone_config", self.backbone_config, [AiTSwinV2Config], others=True)
        self.backbone_config = backbone or AiTSwinV2Config()
        check_common({**vars(self), **kwargs})
        check_list("dense_tasks", self.dense_tasks, "tasks, such as {'name': 'depth', 'kind': 'depth'}")
        self.dense_tasks = [asdict(_dense_task(entry)) for entry in self.dense_tasks]
        if self.id2label is None and self._class_table:
            self.id2label = dict(enumerate(self._class_table))
            self.label2id = {name: index for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_dict`; other classes are those of the first task of classes.

        Raises:
            ValueError: `num_labels` and `id2label` that differ.
        """
        check_dictionary(config_dict)
        given = given_classes(config_dict, kwargs)
        listed = kwargs.pop("dense_tasks", config_dict.get("dense_tasks", ()))
        check_list("dense_tasks", listed, "tasks, such as {'name': 'depth', 'kind': 'depth'}")
        entries = [asdict(_dense_task(entry)) for entry in listed]
        if given:
            for entry in [entry for entry in entries if entry.get("class_names")][:1]:
                entry |= {"class_names": [*given["id2label"].values()], "channels": len(given["id2label"])}
        tasks = {"dense_tasks": entries} if entries else {}
        if "tasks" in kwargs:
            raise ValueError("tasks follow from dense_tasks, and cannot be given; change dense_tasks.")
        return super().from_dict({**config_dict, **tasks, **given}, **kwargs)

    @property
    def dense(self) -> dict[str, AiTPlainDenseTask]:
        """The tasks by name."""
        return {entry["name"]: AiTPlainDenseTask(**entry) for entry in self.dense_tasks}

    @property
    def tasks(self) -> list[str]:
        """Names of the tasks, in the order of results."""
        return [entry["name"] for entry in self.dense_tasks]

    @property
    def default_task(self) -> str:
        """The first task."""
        return self.tasks[0]

    @property
    def _class_table(self) -> list[str]:
        return next((list(entry["class_names"]) for entry in self.dense_tasks if entry["class_names"]), [])

    def validate_sizes(self):
        """Nothing can be less than a pixel, or less than a channel per group, wide."""
        require_positive(self, "image_size", "hidden_size")
        if self.hidden_size % NUM_GROUPS:
            raise ValueError(f"hidden_size must be a multiple of {NUM_GROUPS}, got {self.hidden_size}.")

    def validate_tasks(self):
        """Tasks must have different names, and `id2label` the first ones of classes."""
        if not self.tasks or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(f"dense_tasks must be at least one, all of different names, got {self.tasks}.")
        if self._class_table and [*(self.id2label or {}).values()] != self._class_table:
            raise ValueError(
                f"id2label must be {self._class_table}, the class_names of the first task of classes, got "
                f"{self.id2label}; leave it out."
            )


__all__ = ["AiTPlainDenseConfig", "AiTPlainDenseTask"]
