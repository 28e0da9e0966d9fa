"""AiT task-solver: backbone, encoder, token decoder and frozen tokenizers, composed; training losses."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .configuration_ait import AiTConfig
from .distributed_ait import mean_over_processes
from .layer_states_ait import LayerStates
from .losses_ait import dice_and_squared_error, object_loss_means, token_cross_entropies
from .mask_geometry_ait import crop_masks
from .modeling_ait_base import AiTModel, AiTPreTrainedModel
from .modeling_ait_vqvae import AiTVQVAEModel
from .modeling_bin_tokenizer import AiTBinTokenizer
from .modeling_dense_decoder import DenseDecoderModel
from .outputs_ait import AiTOutput
from .prediction_ait import AiTPredictor, Tokenizer, detokenize, state_fields
from .sequence_ait import (
    HEADER_LENGTH,
    IGNORE_INDEX,
    boxes_to_bins,
    check_instance_label,
    corrupt_classes,
    draw_noise_objects,
    map_sequence,
    object_sequence,
    order_objects,
    token_weights,
    true_objects,
)
from .token_vocabulary import DEPTH_TASK

InstanceLabels = Sequence[Mapping[str, Tensor]]
DenseLabels = Mapping[str, Tensor]
DenseCodes = Mapping[str, Tensor]
# By model type, not class: remote code may hold a second copy of a configuration class.
TOKENIZERS: dict[str, type[Tokenizer]] = {
    "ait_bin_tokenizer": AiTBinTokenizer,
    "ait_vqvae": AiTVQVAEModel,
    "dense_decoder": DenseDecoderModel,
}


def _build_tokenizer(config: Any) -> Tokenizer:
    return TOKENIZERS[config.model_type](config).requires_grad_(False).eval()


def _maps_and_codes(
    depth_labels: Tensor | None, dense_labels: DenseLabels | None, dense_codes: DenseCodes | None
) -> tuple[DenseLabels, DenseCodes]:
    """What a call gives to learn from, by task; an error where it gives an empty mapping."""
    maps = dict(dense_labels or {}) | ({} if depth_labels is None else {DEPTH_TASK: depth_labels})
    codes = dict(dense_codes or {})
    if not maps and not codes and (dense_labels is not None or dense_codes is not None):
        empty, what = ("dense_labels", "maps") if dense_labels is not None else ("dense_codes", "codes")
        raise ValueError(f"{empty} is empty; give {what} of at least one task, or leave it out to predict.")
    return maps, codes


class AiTForDenseAndInstancePrediction(AiTPredictor, AiTPreTrainedModel):
    """AiT for dense maps, detection and instance segmentation, with tokens as the output space (arXiv 2301.02229).

    The tokenizers are part of the model, frozen and always in evaluation mode.
    """

    # Losses are normalised here; without this Trainer would scale them by the accumulation steps.
    accepts_loss_kwargs = False

    def __init__(self, config: AiTConfig):
        super().__init__(config)
        self.model = AiTModel(config)
        tokenizers = {task: _build_tokenizer(spec.tokenizer_config) for task, spec in config.dense.items()}
        # Depth and masks have names of their own, which checkpoints had before there were other maps.
        self.depth_tokenizer = tokenizers.pop(DEPTH_TASK, None)
        self.mask_tokenizer = _build_tokenizer(config.mask_tokenizer_config) if "instance" in config.tasks else None
        self.dense_tokenizers = nn.ModuleDict(tokenizers)
        if config.initialization_only:
            # Announced by the configuration, and by an error on inference: no list of names is needed on loading.
            self._keys_to_ignore_on_load_missing = [r"^model\."]
        self.post_init()

    def train(self, mode: bool = True) -> "AiTForDenseAndInstancePrediction":
        """Set training mode; the tokenizers stay in evaluation mode, or their codebooks would move."""
        super().train(mode)
        for tokenizer in (self.depth_tokenizer, self.mask_tokenizer, *self.dense_tokenizers.values()):
            if tokenizer is not None:
                # Frozen again here, because from_pretrained makes new parameters, which require gradients.
                tokenizer.eval().requires_grad_(False)
        return self

    def get_image_features(self, pixel_values: Tensor) -> Tensor:
        """Backbone map (B, C, h, w) of images (B, 3, H, W), padded to the model's size."""
        return self.model.get_image_features(pixel_values)

    def forward(
        self,
        pixel_values: Tensor,
        task: str | Sequence[str] | None = None,
        depth_labels: Tensor | None = None,
        instance_labels: InstanceLabels | None = None,
        return_dict: bool | None = None,
        task_ids: Tensor | None = None,
        dense_labels: DenseLabels | None = None,
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
        dense_codes: DenseCodes | None = None,
        **kwargs: Any,
    ) -> AiTOutput | tuple:
        """Training loss with labels or codes, the decoded prediction without.

        Args:
            pixel_values: (B, 3, H, W), zero-padded at bottom and right to the model's size; for dense tasks without
                labels also (B, views, 3, H, W), the windows and flips of a test protocol.
            task: one of `config.tasks`, or several dense ones. None is what the labels are of, and without labels
                `config.default_task`; where that is a dense task of a parallel model, all of its dense tasks, which
                take one pass.
            depth_labels: (B, H, W) metres, 0 = invalid; the same as `dense_labels={"depth": ...}`.
            instance_labels: per image a mapping with `boxes` (N, 4) xyxy pixels, `class_labels` (N,) indices and, for
                "instance", `masks` (N, H, W); optionally `image_size` (height, width) of the image before padding, and
                `seed`, an integer on which alone the drawn order and noise objects then depend. Or ready sequences:
                `input_ids` (L - 1,), `target_ids` (L,) and `mask_crops` (true objects, h, w) in sequence order; then
                nothing is drawn at random.
            return_dict: False returns a tuple.
            task_ids: (B,), all alike: the task as a number of `config.task_ids`, as an image processor gives it.
            dense_labels: native maps by task (see `map_kinds_ait`), any number of dense tasks for the same images. They
                share one pass of backbone and decoder; the loss is the sum of theirs. An image without a valid pixel
                does not count for that task.
            output_hidden_states: also return hidden states of encoder and decoder; without labels see `generate`.
            output_attentions: also return their attention weights; they then write the softmax out.
            dense_codes: codes (B, h, w) int64 by task, of dense tasks whose tokenizer is a dense decoder: what
                `dense_decoder.encode` makes of the same images. Such tasks take no labels; their auxiliary loss
                compares with the maps that these codes decode to. They share the pass of `dense_labels`.
            kwargs: what transformers may hand to any model; it changes nothing here.

        Raises:
            TypeError: another argument.
            ValueError: unknown task, `task` and `task_ids` that differ, labels or codes of another task, or shapes and
                values that the task cannot use.
        """
        self.check_kwargs(kwargs)
        maps, codes = _maps_and_codes(depth_labels, dense_labels, dense_codes)
        given = [*maps, *codes]
        tasks = self._resolve_tasks(given if given and task is None and task_ids is None else task, task_ids)
        self._check_labels(tasks, maps, codes, instance_labels)
        asked = LayerStates.asked(self.config, output_hidden_states, output_attentions)
        if given:
            output = self._dense_loss(pixel_values, maps, codes, asked)
        elif instance_labels is not None:
            output = self._object_loss(pixel_values, tasks[0], instance_labels, asked)
        else:
            output = self.generate(
                pixel_values, tasks, output_hidden_states=output_hidden_states, output_attentions=output_attentions
            )
        return self.as_asked(output, return_dict)

    def _counted_pass(self, input_dict: Mapping[str, Any]) -> list[str]:
        """The tasks that a forward pass is about."""
        maps = [*(input_dict.get("dense_labels") or ()), *([DEPTH_TASK] if "depth_labels" in input_dict else ())]
        maps += input_dict.get("dense_codes") or ()
        return self._resolve_tasks(input_dict.get("task") or maps or None, input_dict.get("task_ids"))

    def _run_counted(self, images: Tensor, what: list[str]) -> None:
        """Backbone, encoder, and the tasks' decoder passes; the frozen tokenizers are left out."""
        decoder, width = self.model.decoder, self.config.decoder_config.hidden_size
        inputs = [images.new_empty(1, self.config.sequence_length(task), width) for task in what]
        memory = self.get_encoder_memory(images[:, 0] if images.ndim == 5 else images)
        for hidden in decoder.forward_together(inputs, memory):
            decoder.logits(hidden)

    def _check_labels(
        self, tasks: Sequence[str], maps: DenseLabels, codes: DenseCodes, instance_labels: InstanceLabels | None
    ) -> None:
        """Raise a ValueError for labels or codes of other tasks."""
        dense = self.config.dense
        objects = [name for name in tasks if name not in dense]
        needless = [name for name in maps if name in dense and dense[name].tokenizer_config.encodes_images]
        if needless:
            raise ValueError(
                f"dense_labels of {needless} are not needed: their tokenizers are dense decoders, whose codes are of "
                "images. Give dense_codes={task: dense_decoder.encode(pixel_values)} in their place."
            )
        unseen = [name for name in codes if name in dense and not dense[name].tokenizer_config.encodes_images]
        if unseen:
            raise ValueError(
                f"dense_codes are for tasks with a dense decoder as tokenizer, got those of {unseen}, whose tokenizers "
                "make the codes of labels; give dense_labels in their place."
            )
        if (maps or codes) and {*maps, *codes} != set(tasks):
            wanted = "instance_labels" if objects else f"dense_labels of {tasks}"
            got = " and ".join([f"maps of {list(maps)}"] * bool(maps) + [f"codes of {list(codes)}"] * bool(codes))
            raise ValueError(f"task {tasks} takes {wanted} alone, got {got}.")
        if instance_labels is not None and objects != tasks[:1]:
            raise ValueError(
                f"instance_labels are of one object task, got task {tasks}; dense tasks take dense_labels, depth also "
                "depth_labels."
            )

    def _dense_loss(
        self, pixel_values: Tensor, labels: DenseLabels, codes: DenseCodes, asked: LayerStates
    ) -> AiTOutput:
        """Cross-entropy, and the auxiliary loss through the frozen detokenizers (AiT, arXiv 2301.02229)."""
        self._check_map_sizes(pixel_values, [*labels, *codes])
        if pixel_values.ndim != 4:
            what = "labels" if labels else "codes"
            raise ValueError(
                f"pixel_values must be (batch, channels, height, width) beside {what}, got {tuple(pixel_values.shape)}."
            )
        maps = {task: self._tokenizer_maps(task, pixel_values, native) for task, native in labels.items()}
        sequences = {task: self._map_sequence(task, values) for task, values in maps.items()}
        for task, given in codes.items():
            sequences[task] = self._code_sequence(task, given, len(pixel_values))
            if self.config.soft_decode:
                maps[task] = self._maps_of_codes(task, given, pixel_values.shape[2:])
        input_ids = {task: ids for task, (ids, _) in sequences.items()}
        logits, fields = self._teacher_forced_logits(pixel_values, input_ids, asked)
        counts = self._supervised_counts({task: target_ids for task, (_, target_ids) in sequences.items()})
        losses: dict[str, Tensor] = {}
        parts: dict[str, Tensor] = {}
        for task, (_, target_ids) in sequences.items():
            found = self._map_loss(task, logits[task], target_ids, maps.get(task), counts[task])
            cross_entropy, auxiliary, losses[task] = found
            parts |= {f"{task}_ce": cross_entropy.detach(), f"{task}_aux": auxiliary.detach()}
        joined = torch.cat(list(logits.values()), dim=1) if len(logits) > 1 else next(iter(logits.values()))
        loss = torch.stack(list(losses.values())).sum() if len(losses) > 1 else next(iter(losses.values()))
        return AiTOutput(loss=loss, loss_dict=parts, task_losses=losses, logits=joined, **fields)

    def _map_loss(
        self, task: str, logits: Tensor, target_ids: Tensor, maps: Tensor | None, count: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Cross-entropy, auxiliary loss and weighted sum of one task.

        Args:
            task: its name.
            logits: (B, L, V).
            target_ids: (B, L).
            maps: (B, C, S, S), the truth in tokenizer form; needed where decoding is soft.
            count: supervised tokens of the task, averaged over processes.
        """
        spec = self.config.dense[task]
        cross_entropy = token_cross_entropies(logits, target_ids).sum() / count
        auxiliary = logits.new_zeros((), dtype=torch.float32)
        if self.config.soft_decode and maps is not None:
            code_logits = logits[..., self.config.vocabulary.codes(task).rows]
            decoded = detokenize(self.tokenizer(task), code_logits, soft=True)
            auxiliary = spec.map_kind.auxiliary_loss(decoded, maps)
        # 1 in a single process; elsewhere it makes the processes' mean one over all their tokens.
        share = (target_ids != IGNORE_INDEX).sum() / count
        return cross_entropy, auxiliary, spec.loss_weight * (cross_entropy + spec.aux_weight * share * auxiliary)

    def _map_sequence(self, task: str, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Input ids (B, L - 1) and target ids (B, L) of maps (B, C, S, S) in tokenizer form."""
        with torch.no_grad(), torch.autocast(maps.device.type, enabled=False):
            codes = self.tokenizer(task).encode(maps)
        supervised = self.config.dense[task].map_kind.valid(maps).flatten(1).any(1)
        return map_sequence(codes, supervised, self.config.vocabulary.codes(task))

    def _code_sequence(self, task: str, codes: Tensor, batch: int) -> tuple[Tensor, Tensor]:
        """Input ids (B, L - 1) and target ids (B, L) of codes (B, h, w) of images, all of which are supervised."""
        config, name = self.config.dense[task].tokenizer_config, f"dense_codes[{task!r}]"
        expected = (batch, config.grid_size, config.grid_size)
        if tuple(codes.shape) != expected or codes.is_floating_point():
            raise ValueError(
                f"{name} must be whole numbers of shape {expected}, one per token of the images, got {codes.dtype} of "
                f"{tuple(codes.shape)}; take them from encode of the dense decoder that the tokenizer was made of."
            )
        least, most = (int(x) for x in codes.aminmax())
        if least < 0 or most >= config.num_codes:
            raise ValueError(
                f"{name} must lie in [0, {config.num_codes}), the codes that the vocabulary has for this task, got "
                f"{least if least < 0 else most}: the dense decoder has another codebook. Encode with the one that the "
                "tokenizer was made of."
            )
        supervised = torch.ones(batch, dtype=torch.bool, device=codes.device)
        return map_sequence(codes.long(), supervised, self.config.vocabulary.codes(task))

    @torch.no_grad()
    def _maps_of_codes(self, task: str, codes: Tensor, size: Sequence[int]) -> Tensor:
        """What codes (B, h, w) of images of (height, width) decode to, as labels in tokenizer form (B, C, S, S)."""
        spec = self.config.dense[task]
        kind = spec.map_kind
        with torch.autocast(codes.device.type, enabled=False):
            decoded = self.tokenizer(task).decode(codes).float()
        native = kind.finish(kind.to_average(kind.from_tokenizer(decoded)), None)
        return kind.to_tokenizer(self._padded(task, native[..., : size[0], : size[1]]), spec.channels)

    def _object_loss(
        self, pixel_values: Tensor, task: str, instance_labels: InstanceLabels, asked: LayerStates
    ) -> AiTOutput:
        """Weighted cross-entropy, and for instances the auxiliary mask loss; any number of images per process."""
        config, tokens = self.config, self.config.tokens_per_object[task]
        if len(instance_labels) != len(pixel_values):
            raise ValueError(
                f"instance_labels must have one entry per image ({len(pixel_values)}), got {len(instance_labels)}."
            )
        size = (pixel_values.shape[2], pixel_values.shape[3])
        prepared = [self._object_sequence(label, size, task) for label in instance_labels]
        input_ids, target_ids = (torch.stack([entry[i] for entry in prepared]) for i in (0, 1))
        by_task, fields = self._teacher_forced_logits(pixel_values, {task: input_ids}, asked)
        logits = by_task[task]
        count = self._supervised_counts({task: target_ids})[task]
        losses = token_cross_entropies(logits, target_ids)
        weights = token_weights(target_ids.shape[1], tokens, config.mask_code_weight).to(losses)
        total = (losses * weights).sum()
        parts = object_loss_means(losses.detach(), target_ids, tokens, task)
        if task == "instance":
            parts["instance_aux"] = losses.new_zeros(())
        if task == "instance" and config.soft_decode:
            auxiliary = self._mask_loss(logits, target_ids, [entry[2] for entry in prepared])
            mask_tokens = (target_ids.unflatten(1, (-1, tokens))[..., HEADER_LENGTH:] != IGNORE_INDEX).sum()
            total = total + auxiliary * config.instance_aux_weight * mask_tokens * config.mask_code_weight
            parts["instance_aux"] = auxiliary.detach()
        weight = config.instance_loss_weight if task == "instance" else config.detection_loss_weight
        loss = weight * total / count
        return AiTOutput(loss=loss, loss_dict=parts, task_losses={task: loss}, logits=logits, **fields)

    def _mask_loss(self, logits: Tensor, target_ids: Tensor, crops: list[Tensor]) -> Tensor:
        """Dice and squared error of the soft-decoded masks of true objects, at most `max_aux_objects` per image."""
        vocabulary, tokens = self.config.vocabulary, self.config.tokens_per_object["instance"]
        limit = self.config.max_aux_objects
        true = true_objects(target_ids, tokens, vocabulary)
        true = true & (true.cumsum(dim=1) <= limit)
        code_logits = logits.unflatten(1, (-1, tokens))[true][:, HEADER_LENGTH:, vocabulary.mask_codes.rows]
        truth = torch.cat([crop[:limit] for crop in crops]).to(code_logits.device, torch.float32)
        return dice_and_squared_error(self._detokenize_masks(code_logits, soft=True), truth)

    @torch.no_grad()
    def _object_sequence(
        self, label: Mapping[str, Tensor], size: tuple[int, int], task: str
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Input ids (L - 1,), target ids (L,) and mask crops (true objects, h, w) of one image's annotations."""
        config, device = self.config, self.device
        if "input_ids" in label:
            crops = label.get("mask_crops", torch.zeros(0))
            return label["input_ids"].to(device), label["target_ids"].to(device), crops.to(device)
        check_instance_label(label, size, config.num_labels, needs_masks=task == "instance")
        generator = torch.Generator().manual_seed(int(label["seed"])) if "seed" in label else None
        kept = order_objects(label["boxes"], config.object_order, config.num_objects, generator)
        boxes, classes = (label[name][kept.to(label[name].device)].to(device) for name in ("boxes", "class_labels"))
        count = config.num_objects - len(kept)
        height, width = label.get("image_size", size)
        noise = draw_noise_objects(boxes, (int(height), int(width)), count, generator)
        all_boxes = torch.cat((boxes.float(), noise.boxes))
        all_classes = torch.cat((classes.long(), torch.full((count,), -1, device=device)))
        codes, crops = None, torch.zeros(0, device=device)
        if task == "instance":
            masks = label["masks"][kept.to(label["masks"].device)].to(device)
            sources = torch.cat((torch.arange(len(kept), device=device), noise.sources))
            all_crops = self._object_crops(masks, all_boxes, sources)
            codes, crops = self._encode_masks(all_crops), all_crops[: len(kept)]
        bins = boxes_to_bins(all_boxes, config.num_bins, config.coordinate_scale)
        input_classes = corrupt_classes(all_classes, config.vocabulary, generator)
        return (*object_sequence(bins, all_classes, codes, input_classes, config.vocabulary), crops)

    def _object_crops(self, masks: Tensor, boxes: Tensor, sources: Tensor) -> Tensor:
        """Crops (M, h, w) at boxes (M, 4) of the masks that `sources` (M,) point to; empty where a source is -1."""
        size = self.config.mask_tokenizer_config.image_size
        crops = boxes.new_zeros(len(boxes), size, size)
        real = sources >= 0
        crops[real] = crop_masks(masks[sources[real]], boxes[real], size)
        return crops

    def _encode_masks(self, crops: Tensor) -> Tensor:
        """Codes (M, tokens) of binary crops (M, h, w)."""
        with torch.autocast(crops.device.type, enabled=False):
            return self.mask_tokenizer.encode(crops.unsqueeze(1)).flatten(1)

    def _teacher_forced_logits(
        self, pixel_values: Tensor, input_ids: Mapping[str, Tensor], asked: LayerStates
    ) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """Logits (B, L, V) by task, of the true previous tokens (B, L - 1), or of mask embeddings where parallel.

        Beside them the output's fields of what is asked for.
        """
        encoder_states, decoder_states = asked, asked.empty()
        memory = self.get_encoder_memory(pixel_values, encoder_states.or_none)
        decoder, dense = self.model.decoder, self.config.dense
        inputs = []
        for task, ids in input_ids.items():
            row = self.config.task_ids[task]
            if self.config.parallel and task in dense:
                inputs.append(decoder.mask_inputs(len(ids), ids.shape[1] + 1, row))
            else:
                inputs.append(decoder.inputs(F.embedding(ids, decoder.token_embeddings), row))
        hidden = decoder.forward_together(inputs, memory, decoder_states.or_none)
        fields = state_fields(encoder_states, decoder_states.joined([x.shape[1] for x in inputs]))
        return {task: decoder.logits(states) for task, states in zip(input_ids, hidden, strict=True)}, fields

    def _supervised_counts(self, targets: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Supervised tokens by task, averaged over processes, at least 1.

        One exchange for all tasks of the model, since other processes may train other tasks meanwhile.

        Args:
            targets: target ids (B, L) of the tasks of this pass.
        """
        none = next(iter(targets.values())).new_zeros((), dtype=torch.float32)
        own = [(targets[task] != IGNORE_INDEX).sum().float() if task in targets else none for task in self.config.tasks]
        return dict(zip(self.config.tasks, mean_over_processes(torch.stack(own)).clamp(min=1), strict=True))

    def _tokenizer_maps(self, task: str, pixel_values: Tensor, labels: Tensor) -> Tensor:
        """Maps (B, C, S, S) in tokenizer form of native ones, which are padded to the tokenizer's size."""
        spec, name = self.config.dense[task], "depth_labels" if task == DEPTH_TASK else f"dense_labels[{task!r}]"
        if spec.map_kind.has_scores and not labels.is_floating_point():
            labels = labels.long()
        batch, (height, width) = len(pixel_values), pixel_values.shape[2:]
        spec.map_kind.check_shape(labels, (batch, height, width), spec.channels, name)
        spec.map_kind.check(labels, spec.channels, name)
        return spec.map_kind.to_tokenizer(self._padded(task, labels), spec.channels)

    def _padded(self, task: str, native: Tensor) -> Tensor:
        """Native maps with invalid pixels at bottom and right, up to the tokenizer's size."""
        spec, (height, width) = self.config.dense[task], native.shape[-2:]
        size = spec.tokenizer_config.image_size
        return F.pad(native, (0, size - width, 0, size - height), value=spec.map_kind.invalid)
