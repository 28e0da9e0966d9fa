"""Trained task models taken apart into backbone features and task head: the teachers of UniPixTask's dense decoders.

A task model T is T2(T1(image)): T1 is its backbone, T2 all that comes after it, such as a neck and a head, or a pixel
decoder and a transformer. The dense decoder learns to restore T1's feature maps from codes, and then runs T2 as it is
(UniPixTask, section 3.3): through the task model's own forward pass, with given maps in place of its backbone's.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_outputs import BackboneOutput, BaseModelOutput

from .configuration_plain_dense import AiTPlainDenseConfig
from .map_kinds_ait import MAP_KINDS, MapKind
from .modeling_bin_tokenizer import SMALLEST_PROBABILITY


class GivenMaps(nn.Module):
    """Stands where a task model's backbone was, and returns what it was given.

    Attributes:
        output: what the backbone would return.
    """

    def __init__(self) -> None:
        super().__init__()
        self.output: Any = None

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        """The given output, whatever the image."""
        return self.output

    forward_with_filtered_kwargs = forward  # what transformers calls a backbone by


class TaskModel(nn.Module):
    """A trained task model: `features` is T1, `output` T2, and calling it gives T2's output as a map.

    Args:
        model: the task model.
        task: which of its tasks, where it has several.

    Attributes:
        model_class: name of the task model's class.
        backbone_path: where its backbone is.
    """

    model_class: str
    backbone_path = "backbone"

    def __init__(self, model: PreTrainedModel, task: str | None = None):
        super().__init__()
        if task is not None:
            raise ValueError(f"task must be None for a {self.model_class}, which has one task, got {task!r}.")
        self.model: Any = model

    @property
    def task(self) -> str | None:
        """Which of several tasks it is for."""
        return None

    @property
    def kind(self) -> MapKind:
        """What the predicted map's values mean."""
        return MAP_KINDS["classes"]

    @property
    def class_names(self) -> list[str] | None:
        """Names of the classes in the order of their ids; None of other maps."""
        names = self.model.config.id2label
        return [names[index] for index in range(len(names))] if self.kind.has_scores else None

    @property
    def num_channels(self) -> int:
        """Channels of the predicted map."""
        return len(self.class_names or "1")

    @property
    def backbone(self) -> Any:
        """What makes the features."""
        return self.model.get_submodule(self.backbone_path)

    def drop_backbone(self) -> None:
        """Keep the head alone; `features` is not possible then."""
        parent, _, name = self.backbone_path.rpartition(".")
        setattr(self.model.get_submodule(parent), name, GivenMaps())
        for module in self.model.modules():
            if isinstance(module, PreTrainedModel):
                module.get_input_embeddings = _no_entrance  # type: ignore[method-assign]

    def features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Feature maps, each (B, C, h, w), of images (B, 3, S, S)."""
        return tuple(self.backbone(pixel_values).feature_maps)

    def output(self, features: tuple[Tensor, ...], size: int) -> Any:
        """What the task model returns for images of S x S pixels with these feature maps."""
        slot = self.backbone
        if not isinstance(slot, GivenMaps):
            raise ValueError("output needs a task model without its backbone; call drop_backbone first.")
        slot.output = self._backbone_output(features)
        # Of the image, only its shape is looked at.
        images = features[0].new_zeros(1).expand(len(features[0]), 3, size, size)
        try:
            return self.model(images, return_dict=True)
        finally:
            slot.output = None

    def forward(self, features: tuple[Tensor, ...], size: int) -> Tensor:
        """Map (B, C, S, S) float32 in tokenizer form of the task model's feature maps."""
        return _resized(self.output(features, size).logits.float(), size)

    def _backbone_output(self, features: tuple[Tensor, ...]) -> Any:
        return _backbone_maps(features)


class UperNetTaskModel(TaskModel):
    """UperNet: the features are its backbone's maps."""

    model_class = "UperNetForSemanticSegmentation"


class SegformerTaskModel(TaskModel):
    """SegFormer: the features are its encoder's four maps."""

    model_class = "SegformerForSemanticSegmentation"
    backbone_path = "segformer"

    def features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """See `TaskModel.features`.

        Raises:
            ValueError: a model whose last map is a sequence (`reshape_last_stage` is False).
        """
        if not self.model.config.reshape_last_stage:
            raise ValueError(
                "reshape_last_stage of a SegFormer teacher must be True, so that all its features are maps."
            )
        return tuple(self.model.segformer(pixel_values, output_hidden_states=True).hidden_states)

    def _backbone_output(self, features: tuple[Tensor, ...]) -> Any:
        return BaseModelOutput(hidden_states=features)


class _DepthTaskModel(TaskModel):
    """What DPT and Depth-Anything share: features of vision transformers, one channel of output."""

    @property
    def kind(self) -> MapKind:
        """Values: what such models are trained on is mostly relative, inverse depth."""
        return MAP_KINDS["values"]

    def forward(self, features: tuple[Tensor, ...], size: int) -> Tensor:
        """See `TaskModel.forward`."""
        return _resized(self.output(features, size).predicted_depth.float().unsqueeze(1), size)


class DPTTaskModel(_DepthTaskModel):
    """DPT: the backbone's patches as maps, and of every layer the readout token as a map of one position.

    The output is relative unless the checkpoint says otherwise on its card; `map_kind: depth` then overrules `kind`.
    """

    model_class = "DPTForDepthEstimation"

    def __init__(self, model: PreTrainedModel, task: str | None = None):
        super().__init__(model, task)
        if self.model.config.is_hybrid:
            raise ValueError("A hybrid DPT takes features of two networks; name a DPT with is_hybrid False.")
        # Where the model has no backbone of its own, it holds a whole DPTModel.
        self.backbone_path = "backbone" if self.model.config.backbone_config is not None else "dpt"

    def features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """See `TaskModel.features`."""
        if self.backbone_path == "backbone":
            layers = tuple(self.model.backbone(pixel_values).feature_maps)
        else:
            states = self.model.dpt(pixel_values, output_hidden_states=True).hidden_states[1:]
            layers = tuple(states[index] for index in sorted(self.model.config.backbone_out_indices))
        if layers[0].ndim == 4:
            return layers
        readouts = tuple(layer[:, 0, :, None, None] for layer in layers)
        return tuple(_patch_map(layer) for layer in layers) + (readouts if self._reads_out else ())

    @property
    def _reads_out(self) -> bool:
        return self.model.config.readout_type != "ignore"

    def _backbone_output(self, features: tuple[Tensor, ...]) -> Any:
        config = self.model.config
        if self.model.neck.reassemble_stage is None:  # maps from the start
            return _backbone_maps(features)
        count = len(config.neck_hidden_sizes)
        readouts = features[count:] if self._reads_out else [None] * count
        layers = [_sequence(patches, readout) for patches, readout in zip(features[:count], readouts, strict=True)]
        if self.backbone_path == "backbone":
            return _backbone_maps(tuple(layers))
        places = dict(zip(sorted(config.backbone_out_indices), layers, strict=True))
        # Those in between are looked at by nobody; the first is the embedding's.
        states = (layers[0], *(places.get(index, layers[0]) for index in range(config.num_hidden_layers)))
        return BaseModelOutput(hidden_states=states)


class DepthAnythingTaskModel(_DepthTaskModel):
    """Depth-Anything: the backbone's patches as maps; its head does not look at the readout token."""

    model_class = "DepthAnythingForDepthEstimation"

    @property
    def kind(self) -> MapKind:
        """Depth in metres of metric checkpoints, else values: relative, inverse depth."""
        return MAP_KINDS["depth" if self.model.config.depth_estimation_type == "metric" else "values"]

    def features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """See `TaskModel.features`."""
        return tuple(_patch_map(layer) for layer in self.model.backbone(pixel_values).feature_maps)

    def _backbone_output(self, features: tuple[Tensor, ...]) -> Any:
        return _backbone_maps(tuple(_sequence(patches, None) for patches in features))


class MaskFormerTaskModel(TaskModel):
    """MaskFormer: the features are its backbone's maps; classes of queries times their masks are class scores."""

    model_class = "MaskFormerForInstanceSegmentation"
    backbone_path = "model.pixel_level_module.encoder"

    def forward(self, features: tuple[Tensor, ...], size: int) -> Tensor:
        """See `TaskModel.forward`: logarithms of the scores that transformers' processors take the largest of."""
        output = self.output(features, size)
        classes = output.class_queries_logits.float().softmax(dim=-1)[..., :-1]  # without the class of no object
        scores = torch.einsum("bqc,bqhw->bchw", classes, output.masks_queries_logits.float().sigmoid())
        return _resized(scores, size).clamp(min=SMALLEST_PROBABILITY).log()


class Mask2FormerTaskModel(MaskFormerTaskModel):
    """Mask2Former: as MaskFormer."""

    model_class = "Mask2FormerForUniversalSegmentation"


class PlainTaskModel(TaskModel):
    """One task of this package's plain decoders (`AiTPlainDenseModel`).

    Its features are the fused map, its head the rest: backbone maps hold all that other tasks need too, in ranges that
    few codes do not reach.

    Raises:
        ValueError: the model has no such task.
    """

    model_class = "AiTPlainDenseModel"

    def __init__(self, model: PreTrainedModel, task: str | None = None):
        super().__init__(model)
        self._task = task or self.model.config.default_task
        if self._task not in self.model.config.dense:
            raise ValueError(f"task must be one of the teacher's, {list(self.model.config.dense)}, got {task!r}.")

    @property
    def task(self) -> str | None:
        """See `TaskModel.task`."""
        return self._task

    @property
    def kind(self) -> MapKind:
        """See `TaskModel.kind`."""
        return MAP_KINDS[self.model.config.dense[self._task].kind]

    @property
    def class_names(self) -> list[str] | None:
        """See `TaskModel.class_names`."""
        return self.model.config.dense[self._task].class_names

    @property
    def num_channels(self) -> int:
        """See `TaskModel.num_channels`."""
        return self.model.config.dense[self._task].channels

    def drop_backbone(self) -> None:
        """See `TaskModel.drop_backbone`; what fuses its maps goes too, and decoders of other tasks."""
        super().drop_backbone()
        for other in [name for name in self.model.heads if name != self._task]:
            del self.model.heads[other]
        del self.model.heads[self._task].laterals

    def features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """See `TaskModel.features`.

        Raises:
            ValueError: images that are not of the teacher's size.
        """
        self._check_size(*pixel_values.shape[-2:])
        return (self.model.heads[self._task].fuse(self.model.get_image_features(pixel_values)),)

    def output(self, features: tuple[Tensor, ...], size: int) -> Any:
        """The decoder's map (B, C, S, S), in tokenizer form.

        Raises:
            ValueError: a size that is not the teacher's.
        """
        self._check_size(size)
        return self.model.heads[self._task].read_out(features[0])

    def forward(self, features: tuple[Tensor, ...], size: int) -> Tensor:
        """See `TaskModel.forward`."""
        return self.output(features, size)

    def _check_size(self, *sides: int) -> None:
        if set(sides) != {self.model.config.image_size}:
            raise ValueError(
                f"The teacher takes images of its image_size {self.model.config.image_size} alone, got {sides}; set "
                "image_size of the dense decoder to that."
            )


def _no_entrance() -> nn.Module:
    """No image enters a head; transformers looks for where one does in all models that a model consists of."""
    raise NotImplementedError("A task head without its backbone has no input embeddings.")


TASK_MODELS: dict[str, type[TaskModel]] = {
    AiTPlainDenseConfig.model_type: PlainTaskModel,
    "depth_anything": DepthAnythingTaskModel,
    "dpt": DPTTaskModel,
    "mask2former": Mask2FormerTaskModel,
    "maskformer": MaskFormerTaskModel,
    "segformer": SegformerTaskModel,
    "upernet": UperNetTaskModel,
}
"""How a task model is taken apart, by the model type of its configuration."""


def _backbone_maps(features: tuple[Tensor, ...]) -> BackboneOutput:
    return BackboneOutput(feature_maps=features)  # type: ignore[arg-type]


def _patch_map(sequence: Tensor) -> Tensor:
    """(B, C, n, n) of a vision transformer's sequence (B, 1 + n * n, C) whose first token is the readout."""
    side = round((sequence.shape[1] - 1) ** 0.5)
    return sequence[:, 1:].transpose(1, 2).unflatten(2, (side, side))


def _sequence(patches: Tensor, readout: Tensor | None) -> Tensor:
    """The sequence (B, 1 + n * n, C) of a map (B, C, n, n) and a readout token (B, C, 1, 1), None is zeros."""
    first = patches.new_zeros(*patches.shape[:2], 1) if readout is None else readout.flatten(2)
    return torch.cat((first, patches.flatten(2)), dim=2).transpose(1, 2)


def _resized(maps: Tensor, size: int) -> Tensor:
    if tuple(maps.shape[-2:]) == (size, size):
        return maps
    return F.interpolate(maps, size=(size, size), mode="bilinear", align_corners=False)
