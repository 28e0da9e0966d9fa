"""Ordinary convolutional decoders of dense maps on a backbone, what token prediction is measured against."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_plain_dense import NUM_GROUPS, AiTPlainDenseConfig, AiTPlainDenseTask
from .distributed_ait import mean_over_processes
from .layer_states_ait import LayerStates
from .map_kinds_ait import MAP_KINDS, DepthKind
from .modeling_ait_base import AiTPreTrainedModel, build_backbone, entrance, pad_images
from .outputs_ait import AiTOutput, DenseMaps
from .pretrained_ait import AiTBaseModel
from .token_vocabulary import DEPTH_TASK

FIRST_DEPTH = 2.5  # metres, about what an untrained decoder of depth predicts
OUTPUT_STRIDE = 4  # pixels per position of the last convolution, where two doublings get there


class AiTPlainDenseHead(nn.Module):
    """Decoder of one task: 1 x 1 laterals summed from coarse to fine, two 3 x 3 convolutions, 1 x 1 output.

    The map doubles its size before a 3 x 3 convolution while positions span more than 4 pixels. Depth is predicted by
    its logarithm.

    Args:
        channels: of the backbone's maps, finest first.
        width: of the decoder.
        size: side S of the image and of the prediction.
        spec: the task.
    """

    def __init__(self, channels: Sequence[int], width: int, size: int, spec: AiTPlainDenseTask):
        super().__init__()
        self.size = size
        self.kind = MAP_KINDS[spec.kind]  # not spec.map_kind: remote code may hold a second copy of its class
        self.is_depth = isinstance(self.kind, DepthKind)
        self.laterals = nn.ModuleList(nn.Conv2d(count, width, 1) for count in channels)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.Conv2d(width, width, 3, padding=1), nn.GroupNorm(NUM_GROUPS, width), nn.ReLU())
            for _ in range(2)
        )
        self.output = nn.Conv2d(width, spec.channels, 1)  # type: ignore[arg-type]

    def forward(self, features: Sequence[Tensor]) -> Tensor:
        """Map (B, C, S, S) float32 in tokenizer form, of the backbone's maps (B, channels, h, w), finest first."""
        return self.read_out(self.fuse(features))

    def fuse(self, features: Sequence[Tensor]) -> Tensor:
        """One map (B, width, h, w), as fine as the finest of the backbone's."""
        x, *others = [lateral(feature) for lateral, feature in zip(self.laterals, features, strict=True)][::-1]
        for finer in others:
            x = finer + _resized(x, *finer.shape[-2:])
        return x

    def read_out(self, x: Tensor) -> Tensor:
        """Map (B, C, S, S) float32 in tokenizer form, of the fused one."""
        for block in self.blocks:
            x = block(x if x.shape[-1] * OUTPUT_STRIDE >= self.size else _resized(x, *(2 * s for s in x.shape[-2:])))
        maps = _resized(self.output(x).float(), self.size, self.size)
        return FIRST_DEPTH * maps.exp() if self.is_depth else maps


def _resized(x: Tensor, height: int, width: int) -> Tensor:
    return F.interpolate(x, size=(height, width), mode="bilinear", align_corners=False)


class AiTPlainDenseModel(AiTPreTrainedModel):
    """Backbone with one ordinary decoder per dense task: `heads[task](get_image_features(pixel_values))`."""

    config: AiTPlainDenseConfig  # type: ignore[assignment]
    # Losses are normalised here; without this Trainer would scale them by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: AiTPlainDenseConfig):
        super().__init__(config)
        self.backbone = build_backbone(config.backbone_config)
        shape = self.backbone.channels, config.hidden_size, config.image_size
        self.heads = nn.ModuleDict({task: AiTPlainDenseHead(*shape, spec) for task, spec in config.dense.items()})
        self.post_init()

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        AiTBaseModel._init_weights(self, module)  # not the parent's, which is about token decoders

    def get_input_embeddings(self) -> nn.Module:
        """The module that the image enters: the backbone's patch embedding or first convolution."""
        return entrance(self.backbone)

    def set_input_embeddings(self, value: nn.Module) -> None:
        """Replace the backbone's patch embedding, where it has one."""
        self.backbone.set_input_embeddings(value)

    def get_image_features(self, pixel_values: Tensor) -> tuple[Tensor, ...]:
        """Backbone maps (B, channels, h, w), finest first, of images (B, 3, H, W), padded to the model's size.

        Raises:
            ValueError: an image is larger than the model's size.
        """
        return tuple(self._backbone_output(pixel_values, {}).feature_maps)

    def _backbone_output(self, pixel_values: Tensor, wanted: Mapping[str, bool]) -> Any:
        head: Any = self.heads[self.config.default_task]
        # Not self.dtype, which replicas of nn.DataParallel cannot answer.
        images = pixel_values.to(head.output.weight.dtype)
        return self.backbone(pad_images(images, self.config.image_size), **wanted)

    def forward(
        self,
        pixel_values: Tensor,
        task: str | Sequence[str] | None = None,
        dense_labels: Mapping[str, Tensor] | None = None,
        depth_labels: Tensor | None = None,
        task_ids: Tensor | None = None,
        return_dict: bool | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        **kwargs: Any,
    ) -> AiTOutput | tuple:
        """Training loss with labels, the predicted maps without.

        Args:
            pixel_values: (B, 3, H, W), zero-padded at bottom and right to the model's size; without labels also
                (B, views, 3, H, W), the windows and flips of a test protocol.
            task: one or some of `config.tasks`; None is all of them.
            dense_labels: native maps of any tasks, see `map_kinds_ait`; the loss is their weighted sum.
            depth_labels: (B, H, W) metres, 0 = invalid; the same as `dense_labels={"depth": ...}`.
            task_ids: ignored; what an image processor gives to models that do one task at a time.
            return_dict: False returns a tuple.
            output_hidden_states: also return the backbone's hidden states, as `encoder_hidden_states`, in its own form.
            output_attentions: the same of its attention weights, where it has attention.
            kwargs: what transformers may hand to any model; it changes nothing here.

        Returns:
            With labels `loss` and `loss_dict`; without `dense_maps`, native maps `(B, [V,] [C,] H, W)` as `MapKind`
            defines predicted ones, and the first of depth as `predicted_depth`.

        Raises:
            TypeError: another argument.
            ValueError: unknown task, labels of another task, or shapes and values that the task cannot use.
        """
        self.check_kwargs(kwargs)
        labels = dict(dense_labels or {}) | ({} if depth_labels is None else {DEPTH_TASK: depth_labels})
        tasks = [task] if isinstance(task, str) else list(task or self.config.tasks)
        if not labels.keys() <= set(tasks) <= set(self.config.tasks):
            raise ValueError(
                f"task and labels must be of the tasks {self.config.tasks} of this checkpoint, and the labels of task "
                f"where that is given; got {task!r} and labels of {list(labels)}."
            )
        asked = LayerStates.asked(self.config, output_hidden_states, output_attentions)
        # Only what is asked for is named, since timm's backbones that have no attention refuse the argument.
        wanted = {"output_hidden_states": asked.hidden_states, "output_attentions": asked.attentions}
        images = pixel_values.flatten(0, 1) if pixel_values.ndim == 5 else pixel_values
        found = self._backbone_output(images, {name: True for name, value in wanted.items() if value is not None})
        features = tuple(found.feature_maps)
        output = self._loss(features, pixel_values, labels) if labels else self._predict(features, pixel_values, tasks)
        if asked.hidden_states is not None:
            output.encoder_hidden_states = tuple(found.hidden_states)
        if asked.attentions is not None and found.attentions is not None:
            output.encoder_attentions = tuple(found.attentions)
        return self.as_asked(output, return_dict)

    def _predict(self, features: Sequence[Tensor], pixel_values: Tensor, tasks: Sequence[str]) -> AiTOutput:
        views, (height, width) = pixel_values.shape[:-3], pixel_values.shape[-2:]
        maps: dict[str, Tensor] = {}
        fields: dict[str, Any] = {}
        for task in tasks:
            head: Any = self.heads[task]
            maps[task] = head.kind.from_tokenizer(head(features))[..., :height, :width].unflatten(0, views)
            if head.kind.output is not None:
                fields.setdefault(head.kind.output, maps[task])
        return AiTOutput(dense_maps=DenseMaps(maps), **fields)

    def _loss(self, features: Sequence[Tensor], pixel_values: Tensor, labels: Mapping[str, Tensor]) -> AiTOutput:
        batch, _, *size = pixel_values.shape
        losses, parts = {}, {}
        for task, native in labels.items():
            head: Any = self.heads[task]
            channels, name = head.output.out_channels, f"dense_labels[{task!r}]"
            head.kind.check_shape(native, (batch, *size), channels, name)
            head.kind.check(native, channels, name)
            target = head.kind.to_tokenizer(native, channels)
            loss = head.kind.auxiliary_loss(head(features)[..., : size[0], : size[1]], target)
            # 1 in a single process; elsewhere it makes the processes' mean one over all their supervised images.
            images = head.kind.valid(target).flatten(1).any(1).sum().float()
            share = images / mean_over_processes(images).clamp(min=1)
            losses[task] = self.config.dense[task].loss_weight * share * loss
            parts[f"{task}_aux"] = loss.detach()
        return AiTOutput(loss=torch.stack([*losses.values()]).sum(), loss_dict=parts, task_losses=losses)
