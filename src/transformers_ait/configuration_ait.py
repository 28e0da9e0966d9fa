"""Configurations: SwinV2 backbone, dense tasks and the whole task-solver."""

from collections.abc import Iterable, Mapping
from typing import Any, Literal

from huggingface_hub.dataclasses import strict
from transformers.configuration_utils import SubConfigSpec

from .configuration_ait_swinv2 import AiTSwinV2Config
from .configuration_checks_ait import (
    AiTBaseConfig,
    check_common,
    check_dictionary,
    check_list,
    require_positive,
    resolve_sub_config,
)
from .configuration_dense_tasks import (
    DENSE_TOKENIZERS,
    OBJECT_TASKS,
    TASK_IDS,
    AiTDenseTaskConfig,
    dense_task,
    task_rows,
)
from .configuration_token_decoder import AiTTokenDecoderConfig
from .configuration_tokenizers import AiTBinTokenizerConfig, AiTVQVAEConfig
from .token_vocabulary import DEPTH_TASK, TokenVocabulary

MAX_IMAGE_SIZE = 2**14
_COCO_CLASS_NAMES = (
    "person bicycle car motorcycle airplane bus train truck boat traffic_light fire_hydrant stop_sign "
    "parking_meter bench bird cat dog horse sheep cow elephant bear zebra giraffe backpack umbrella handbag "
    "tie suitcase frisbee skis snowboard sports_ball kite baseball_bat baseball_glove skateboard surfboard "
    "tennis_racket bottle wine_glass cup fork knife spoon bowl banana apple sandwich orange broccoli carrot "
    "hot_dog pizza donut cake chair couch potted_plant bed dining_table toilet tv laptop mouse remote keyboard "
    "cell_phone microwave oven toaster sink refrigerator book clock vase scissors teddy_bear hair_drier "
    "toothbrush"
)
COCO_CLASSES = tuple(name.replace("_", " ") for name in _COCO_CLASS_NAMES.split())


def given_classes(config_dict: Mapping[str, Any], kwargs: dict[str, Any]) -> dict[str, Any]:
    """The class table that arguments of `from_pretrained` ask for, as fields of a configuration; taken out of them.

    Args:
        config_dict: the stored configuration.
        kwargs: arguments; `num_labels` alone numbers the classes, unless there are as many as before.

    Raises:
        ValueError: `num_labels` is not the number of `id2label`, or `id2label` does not number its classes from 0.
    """
    check_common({name: kwargs.get(name, config_dict.get(name)) for name in ("num_labels", "id2label", "label2id")})
    count, names = kwargs.pop("num_labels", None), kwargs.pop("id2label", None)
    kwargs.pop("label2id", None)  # follows
    if names is None and (count is None or count == len(config_dict.get("id2label") or ())):
        return {}
    names = {x: f"LABEL_{x}" for x in range(count or 0)} if names is None else names
    names = {int(index): name for index, name in names.items()}
    if sorted(names) != list(range(len(names))) or count not in (None, len(names)):
        raise ValueError(
            f"id2label must number its classes from 0, and num_labels be their number where given; got {names} and "
            f"num_labels={count}."
        )
    names = dict(sorted(names.items()))
    return {"id2label": names, "label2id": {name: index for index, name in names.items()}}


@strict
class AiTConfig(AiTBaseConfig):
    """Task-solver: backbone, encoder, token decoder, tokenizers and the shared vocabulary (AiT, arXiv 2301.02229).

    Args:
        backbone_config: `AiTSwinV2Config`, or any configuration that `AutoBackbone` takes (timm included); its last
            requested feature map is used, and with `feature_pyramid` all of them.
        decoder_config: encoder and token decoder.
        dense_tasks: tasks that predict maps, each an `AiTDenseTaskConfig` or its dictionary. An entry "depth" is kept
            in `depth_tokenizer_config`, `depth_loss_weight` and `depth_aux_weight`, where it always stood.
        depth_tokenizer_config: `AiTVQVAEConfig`, `AiTBinTokenizerConfig` or `DenseDecoderConfig`; needed by the task
            "depth".
        mask_tokenizer_config: `AiTVQVAEConfig`; needed by the task "instance".
        image_size: side S of the square input in pixels; smaller images are zero-padded at bottom and right.
        feature_stride: pixels per position of the backbone map; None takes it from an `AiTSwinV2Config`, else 32.
        feature_pyramid: a 3 x 3 convolution of every requested backbone map, summed at `feature_stride`, which need not
            be the backbone's then (UniPixTask, section 4.1).
        tasks: what the checkpoint does: names of dense tasks, "instance", "detection". None are the dense tasks, or
            "depth" without any.
        default_task: the task of a call that names none; None is the first of `tasks`.
        num_bins: coordinate bins.
        coordinate_scale: pixels that the coordinate bins span; None is `image_size`.
        num_mask_codes: mask-code ids in the vocabulary.
        num_depth_codes: depth-code ids in the vocabulary.
        num_spare_tokens: unused ids behind the depth codes.
        num_objects: objects per decoded sequence.
        object_order: of the true objects in training sequences: "random", drawn anew each time, or "area", the largest
            box first. Noise objects follow them.
        soft_feedback: feed expected embeddings back while decoding codes, instead of picked codes.
        soft_decode: decode code probabilities, and train with the auxiliary loss through the frozen detokenizer.
        parallel: AiT-P, in dense tasks every input after the task embedding is one learned mask embedding, one decoder
            pass; objects are decoded step by step all the same.
        top_p: nucleus of coordinate and class sampling; 0 is greedy.
        depth_loss_weight: weight of the whole depth loss.
        depth_aux_weight: weight of the scale-invariant log loss of the soft-decoded depth.
        detection_loss_weight: weight of the whole detection loss.
        instance_loss_weight: weight of the whole instance loss.
        instance_aux_weight: weight of Dice and squared error of the soft-decoded masks.
        mask_code_weight: weight of a mask code in the cross-entropy.
        max_aux_objects: objects per image, at most, in the auxiliary mask loss.
        initialization_only: part of the weights (the decoder, say) is untrained, so the checkpoint can start a training
            but predict nothing; set to False once trained.

    Classes have one table: with object tasks `id2label` names the objects, and a task of classes must have the same
    names; without, `id2label` is the table of the first task of classes.
    """

    model_type = "ait"
    # Any below, because a field holds a dictionary before __post_init__ and a configuration object ever after.
    sub_configs_defaults = {
        "backbone_config": SubConfigSpec(AiTSwinV2Config, optional=True),
        "decoder_config": SubConfigSpec(AiTTokenDecoderConfig),
        "depth_tokenizer_config": SubConfigSpec(AiTVQVAEConfig, optional=True),
        "mask_tokenizer_config": SubConfigSpec(AiTVQVAEConfig, optional=True),
    }

    backbone_config: Any = None
    decoder_config: Any = None
    dense_tasks: Any = ()
    depth_tokenizer_config: Any = None
    mask_tokenizer_config: Any = None
    image_size: int = 480
    feature_stride: int | None = None
    feature_pyramid: bool = False
    tasks: list[str] | tuple[str, ...] | None = None
    default_task: str | None = None
    num_bins: int = 2000
    coordinate_scale: int | float | None = None
    num_mask_codes: int = 128
    num_depth_codes: int = 128
    num_spare_tokens: int = 0
    num_objects: int = 100
    object_order: Literal["random", "area"] = "random"
    soft_feedback: bool = True
    soft_decode: bool = True
    parallel: bool = False
    top_p: float | int = 0.3
    depth_loss_weight: float | int = 1.0
    depth_aux_weight: float | int = 1.0
    detection_loss_weight: float | int = 1.0
    instance_loss_weight: float | int = 1.0
    instance_aux_weight: float | int = 5.0
    mask_code_weight: float | int = 0.2
    max_aux_objects: int = 100
    initialization_only: bool = False

    def __post_init__(self, **kwargs):
        backbone = resolve_sub_config("backbone_config", self.backbone_config, [AiTSwinV2Config], others=True)
        self.backbone_config = backbone or AiTSwinV2Config()
        check_common({**vars(self), **kwargs})
        check_list("dense_tasks", self.dense_tasks or (), "tasks, such as {'name': 'normals'}")
        entries = [dense_task(entry) for entry in self.dense_tasks or ()]
        names = [entry.name for entry in entries]
        if len(set(names)) < len(names):
            raise ValueError(f"dense_tasks must have different names, got {names}.")
        self.dense_tasks = [entry for entry in entries if entry.name != DEPTH_TASK]
        if self.tasks is None:
            self.tasks = names or [DEPTH_TASK]
        for entry in entries:
            if entry.name == DEPTH_TASK:
                self._take_depth(entry)
        for name, own in (("depth_tokenizer_config", DENSE_TOKENIZERS), ("mask_tokenizer_config", [AiTVQVAEConfig])):
            setattr(self, name, resolve_sub_config(name, getattr(self, name), own))
        if self.depth_tokenizer_config is None and DEPTH_TASK in self.tasks:
            self.depth_tokenizer_config = AiTVQVAEConfig(tau=0.8)
        if self.mask_tokenizer_config is None and "instance" in self.tasks:
            self.mask_tokenizer_config = AiTVQVAEConfig(
                image_size=64, downsample_ratio=16, symmetric_range=True, ignore_zero=False
            )
        if self.feature_stride is None:
            self.feature_stride = getattr(self.backbone_config, "stride", 32)
        if self.coordinate_scale is None:
            self.coordinate_scale = self.image_size
        if self.default_task is None and self.tasks:
            self.default_task = self.tasks[0]
        if self.id2label is None and kwargs.get("num_labels") is None:
            self.id2label = dict(enumerate(self._default_classes()))
            self.label2id = {name: index for index, name in self.id2label.items()}
        super().__post_init__(**kwargs)

    def _take_depth(self, entry: AiTDenseTaskConfig) -> None:
        """Keep a table's entry "depth" where depth always stood."""
        if self.depth_tokenizer_config is not None:
            raise ValueError(
                f"dense_tasks has an entry {DEPTH_TASK!r}, and depth_tokenizer_config is given too; give one of them."
            )
        if entry.kind != DEPTH_TASK:
            raise ValueError(
                f"the dense task {DEPTH_TASK!r} must be of that kind, got {entry.kind!r}; rename the task."
            )
        self.depth_tokenizer_config = entry.tokenizer_config
        self.depth_loss_weight, self.depth_aux_weight = entry.loss_weight, entry.aux_weight

    def _default_classes(self) -> Iterable[str]:
        return next((spec.class_names for spec in self.dense_tasks if spec.map_kind.has_scores), COCO_CLASSES)

    @classmethod
    def from_dict(cls, config_dict: dict[str, Any], **kwargs: Any) -> Any:
        """See `PreTrainedConfig.from_dict`, which sets arguments after the table of tasks has been read.

        Raises:
            ValueError: `num_labels` and `id2label` that differ, or classes that a task's tokenizer does not have.
        """
        check_dictionary(config_dict)
        given: dict[str, Any] = {name: kwargs.pop(name) for name in ("dense_tasks", "tasks") if name in kwargs}
        given |= given_classes(config_dict, kwargs)
        return super().from_dict({**config_dict, **given}, **kwargs)

    def to_dict(self) -> dict[str, Any]:
        """See `PreTrainedConfig.to_dict`, which knows no lists of configurations."""
        return super().to_dict() | {"dense_tasks": [entry.to_dict() for entry in self.dense_tasks]}

    @property
    def dense(self) -> dict[str, AiTDenseTaskConfig]:
        """The model's dense tasks by name, in the order of their rows: depth, then that of the table."""
        specs = {spec.name: spec for spec in self.dense_tasks}
        if DEPTH_TASK in self.tasks:
            weights = self.depth_loss_weight, self.depth_aux_weight
            specs[DEPTH_TASK] = AiTDenseTaskConfig(DEPTH_TASK, DEPTH_TASK, self.depth_tokenizer_config, *weights)
        return {task: specs[task] for task in self.task_ids if task in specs}

    @property
    def object_tasks(self) -> list[str]:
        """The model's tasks that write objects."""
        return [task for task in self.tasks if task in OBJECT_TASKS]

    @property
    def task_ids(self) -> dict[str, int]:
        """Row of the task embedding by task."""
        return task_rows(spec.name for spec in self.dense_tasks)

    @property
    def num_task_rows(self) -> int:
        """Rows of the task and position embeddings."""
        return max(self.decoder_config.num_tasks, len(self.task_ids))

    @property
    def vocabulary(self) -> TokenVocabulary:
        """The token map, the only source of vocabulary offsets and sizes."""
        return TokenVocabulary(
            num_bins=self.num_bins,
            num_classes=self.num_labels,
            num_mask_codes=self.num_mask_codes,
            num_depth_codes=self.num_depth_codes,
            num_spare=self.num_spare_tokens,
            dense_codes=tuple((spec.name, spec.tokenizer_config.num_codes) for spec in self.dense_tasks),
        )

    @property
    def grid_size(self) -> int:
        """Side of the backbone map, and of the encoder's position table, for a full-size image."""
        return self.image_size // self.feature_stride

    @property
    def tokens_per_object(self) -> dict[str, int]:
        """Tokens of one object for the tasks that write objects: four coordinates, the class, and the mask codes."""
        mask_tokens = self.mask_tokenizer_config.num_tokens if self.mask_tokenizer_config is not None else 0
        return {"detection": 5, "instance": 5 + mask_tokens}

    def sequence_length(self, task: str) -> int:
        """Number of tokens that `task` decodes."""
        if task in OBJECT_TASKS:
            return self.num_objects * self.tokens_per_object[task]
        return self.dense[task].tokenizer_config.num_tokens

    def validate_tasks(self):
        """Tasks must be known, and the default one of them."""
        known = {*self.task_ids}
        if set(self.tasks) - known or not self.tasks:
            raise ValueError(f"tasks must name at least one of {sorted(known)}, got {list(self.tasks)}.")
        missing = [spec.name for spec in self.dense_tasks if spec.name not in self.tasks]
        if missing or len(set(self.tasks)) < len(self.tasks):
            raise ValueError(
                f"tasks must name every dense task once, got {list(self.tasks)} without {missing}; leave tasks out, or "
                "add the names."
            )
        if self.parallel and not self.dense:
            raise ValueError(
                f"parallel decoding is for dense tasks, and tasks {list(self.tasks)} have none; set parallel=False."
            )
        if self.default_task not in self.tasks:
            raise ValueError(f"default_task must be one of tasks {list(self.tasks)}, got {self.default_task!r}.")

    def validate_image_size(self):
        """The position table needs whole positions, and no tokenizer may look at more than the model sees."""
        require_positive(self, "image_size", "feature_stride", most=MAX_IMAGE_SIZE)
        require_positive(self, "num_bins", "num_mask_codes", "num_depth_codes", "num_objects")
        if self.image_size % self.feature_stride:
            raise ValueError(
                f"image_size must be a multiple of feature_stride {self.feature_stride}, got {self.image_size}."
            )
        stride = getattr(self.backbone_config, "stride", self.feature_stride)
        if stride != self.feature_stride and not self.feature_pyramid:
            raise ValueError(
                f"feature_stride must be {stride}, backbone_config's stride, or left out; got {self.feature_stride}."
            )
        for task, spec in self.dense.items():
            if spec.tokenizer_config.image_size > self.image_size:
                raise ValueError(
                    f"image_size of the {task} tokenizer must not exceed the model's image_size {self.image_size}, got "
                    f"{spec.tokenizer_config.image_size}."
                )

    def validate_classes(self):
        """The first task of classes, and with object tasks every one, shares `id2label`."""
        tables = {task: spec.class_names for task, spec in self.dense.items() if spec.map_kind.has_scores}
        for task, names in list(tables.items())[: None if self.object_tasks else 1]:
            if names != [*self.id2label.values()]:
                raise ValueError(
                    f"id2label must hold the classes of the dense task {task!r}, {names}, which object tasks share, "
                    f"got {[*self.id2label.values()]}; leave id2label out, or give the task a tokenizer that was "
                    "trained on these classes, which are its channels."
                )

    def validate_tokenizers(self):
        """Codebooks must fit the vocabulary's ranges, sequences the position tables."""
        for task, tokenizer, name in (
            (DEPTH_TASK, self.depth_tokenizer_config, "num_depth_codes"),
            ("instance", self.mask_tokenizer_config, "num_mask_codes"),
        ):
            if task in self.tasks and tokenizer.num_codes != getattr(self, name):
                raise ValueError(
                    f"{name} is {getattr(self, name)}, but the {task} tokenizer has {tokenizer.num_codes} codes; "
                    f"set {name}={tokenizer.num_codes} or use a tokenizer of {getattr(self, name)} codes."
                )
        for task in self.tasks:
            if self.sequence_length(task) > self.decoder_config.max_positions:
                raise ValueError(
                    f"decoder_config.max_positions must be at least {self.sequence_length(task)}, the sequence "
                    f"length of task {task!r}; got {self.decoder_config.max_positions}."
                )


__all__ = [
    "TASK_IDS",
    "AiTBinTokenizerConfig",
    "AiTConfig",
    "AiTDenseTaskConfig",
    "AiTSwinV2Config",
    "AiTVQVAEConfig",
    "COCO_CLASSES",
    "task_rows",
]
