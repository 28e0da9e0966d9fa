"""The table of dense tasks: what each predicts, its tokenizer and weights; and where every task has its row."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Any

from huggingface_hub.dataclasses import strict
from torch import nn
from transformers import PreTrainedConfig

from .configuration_checks_ait import resolve_sub_config
from .configuration_tokenizers import AiTBinTokenizerConfig, AiTVQVAEConfig
from .configuration_unipixtask import DenseDecoderConfig
from .map_kinds_ait import DENSE_KINDS, MAP_KINDS, MapKind
from .token_vocabulary import DEPTH_TASK

DENSE_TOKENIZERS: tuple[type[PreTrainedConfig], ...] = (AiTVQVAEConfig, AiTBinTokenizerConfig, DenseDecoderConfig)
OBJECT_TASKS = ("detection", "instance")
# Rows of the task embedding; those of further dense tasks follow.
TASK_IDS = {"detection": 0, "instance": 1, DEPTH_TASK: 2}


def task_rows(dense_tasks: Iterable[str]) -> dict[str, int]:
    """Rows of the task embedding by task.

    Args:
        dense_tasks: names of a model's dense tasks in their order, depth or not.
    """
    further = [name for name in dense_tasks if name not in TASK_IDS]
    return TASK_IDS | {name: len(TASK_IDS) + place for place, name in enumerate(further)}


def check_task_name(name: str) -> None:
    """Raise a ValueError for what cannot name a dense task."""
    if not re.fullmatch(r"[A-Za-z]\w*", name) or name in OBJECT_TASKS or hasattr(nn.ModuleDict(), name):
        raise ValueError(
            f"name of a dense task must be a letter and further letters, digits or '_', none of {OBJECT_TASKS} and no "
            f"attribute of torch.nn.ModuleDict, got {name!r}; rename the task."
        )


@strict
@dataclass
class AiTDenseTaskConfig:
    """A task that predicts a map; its ids and its row of the task embedding follow from its place in `dense_tasks`.

    Args:
        name: of letters, digits and "_"; what `task`, `dense_labels` and `dense_maps` call it.
        kind: what its values mean, a key of `MAP_KINDS`; "mask" is for instances.
        tokenizer_config: `AiTVQVAEConfig`, `AiTBinTokenizerConfig` or, without encoded mapping, `DenseDecoderConfig`
            of that kind; None is the default VQ-VAE.
        loss_weight: weight of the whole loss of the task.
        aux_weight: weight of the loss of the soft-decoded map, see `MapKind.auxiliary_loss`.
        class_names: of a task of classes, in the order of their ids; None are the tokenizer's.

    Raises:
        ValueError: (as the cause of a strict-dataclass error) a name or kind that cannot be, a tokenizer of another
            kind, or a dense decoder with its encoded mapping.
    """

    name: str
    kind: str = DEPTH_TASK
    tokenizer_config: Any = None
    loss_weight: float | int = 1.0
    aux_weight: float | int = 1.0
    class_names: list[str] | tuple[str, ...] | None = None

    def __post_init__(self):
        if self.kind not in DENSE_KINDS:
            raise ValueError(f"kind of the dense task {self.name!r} must be one of {DENSE_KINDS}, got {self.kind!r}.")
        if self.class_names is not None:
            if not self.map_kind.has_scores:
                raise ValueError(f"class_names do not suit the dense task {self.name!r} of kind {self.kind!r}.")
            self.class_names = [*self.class_names]  # as JSON gives them back
        if self.tokenizer_config is None:
            self.tokenizer_config = {}
        if isinstance(self.tokenizer_config, Mapping):
            given = {"model_type": AiTVQVAEConfig.model_type, "map_kind": self.kind} | dict(self.tokenizer_config)
            if self.class_names is not None:
                given.setdefault("id2label", dict(enumerate(self.class_names)))
            self.tokenizer_config = given
        name = f"tokenizer_config of the dense task {self.name!r}"
        self.tokenizer_config = resolve_sub_config(name, self.tokenizer_config, DENSE_TOKENIZERS)
        if self.class_names is None and self.map_kind.has_scores:
            self.class_names = self.tokenizer_config.class_names

    @property
    def map_kind(self) -> MapKind:
        """What the map's values mean."""
        return MAP_KINDS[self.kind]

    @property
    def channels(self) -> int:
        """Channels of the map in tokenizer form."""
        return self.tokenizer_config.num_channels

    def to_dict(self) -> dict[str, Any]:
        """As JSON has it; what follows from the tokenizer, and what every configuration has, is left out."""
        common = PreTrainedConfig().to_dict()
        entries = self.tokenizer_config.to_dict().items()
        tokenizer = {name: value for name, value in entries if name not in common or value != common[name]}
        values = {name: value for name, value in vars(self).items() if name != "class_names"}
        return values | {"tokenizer_config": tokenizer}

    def validate_name(self):
        """The name must be usable as a key, as a folder and as the name of a module."""
        check_task_name(self.name)

    def validate_tokenizer(self):
        """The tokenizer must be of the task's kind, with a channel per class, and only decode where it sees images."""
        kind = self.tokenizer_config.kind.name
        if kind != self.kind:
            raise ValueError(
                f"the dense task {self.name!r} is of kind {self.kind!r}, but its tokenizer is of kind {kind!r}; name a "
                "tokenizer that was trained on such maps."
            )
        if self.class_names is not None and self.class_names != self.tokenizer_config.class_names:
            raise ValueError(
                f"class_names of the dense task {self.name!r} are {self.class_names}, but its tokenizer's are "
                f"{self.tokenizer_config.class_names}; leave them out."
            )
        if self.tokenizer_config.encodes_images and self.tokenizer_config.has_encoder:
            raise ValueError(
                f"the dense task {self.name!r} takes of a dense decoder what decodes, but its tokenizer_config has "
                "has_encoder=True; give dense_decoder.without_encoder().config."
            )


def dense_task(entry: Any) -> AiTDenseTaskConfig:
    """An entry of `AiTConfig.dense_tasks`, of a dictionary or as it is.

    Raises:
        TypeError: it is neither, or has unknown keys.
    """
    if isinstance(entry, AiTDenseTaskConfig):
        return entry
    # By name, not class: remote code may hold a second copy of the class.
    if type(entry).__name__ == AiTDenseTaskConfig.__name__:
        entry = entry.to_dict()
    if not isinstance(entry, Mapping) or "name" not in entry:
        raise TypeError(
            f"dense_tasks must hold dictionaries with a name, such as {{'name': 'normals'}}, got {entry!r}."
        )
    known = [field.name for field in fields(AiTDenseTaskConfig)]
    unknown = sorted(entry.keys() - set(known))
    if unknown:
        raise TypeError(f"dense_tasks: {entry['name']!r} has unknown keys {unknown}; known ones are {known}.")
    return AiTDenseTaskConfig(**entry)
