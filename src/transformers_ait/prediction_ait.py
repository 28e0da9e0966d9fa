"""Prediction with the task-solver: decoding of one or several tasks, and tokens back to depth, boxes and masks."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput

from .configuration_ait import TASK_IDS
from .decoding_tokens import DecodedTokens, DecodingRequest, decode_in_parallel, decode_together
from .modeling_ait_vqvae import AiTVQVAEModel
from .modeling_bin_tokenizer import AiTBinTokenizer
from .modeling_token_decoder import AiTTokenDecoder
from .sequence_ait import (
    CLASS_POSITION,
    HEADER_LENGTH,
    bins_to_boxes,
    depth_grammar,
    object_grammar,
    parse_objects,
)

# Masks detokenized at a time; bounds the activations of the mask decoder.
MASK_GROUP = 256


@dataclass
class AiTOutput(ModelOutput):
    """Output of `AiTForDenseAndInstancePrediction`; fields that do not apply are None.

    Args:
        loss: scalar training loss.
        loss_dict: unweighted means of the loss's parts.
        logits: (B, L, V), teacher-forced.
        predicted_depth: (B, H, W) or (B, views, H, W) metres, not clamped; depth without labels.
        boxes: (B, N, 4) xyxy pixels of the padded input, not clipped; they may be inverted. Objects without labels.
        scores: (B, N), probability of the class among all classes and the noise class.
        class_labels: (B, N) class indices.
        mask_values: (B, N, h, w), 0.5 is the edge, not clipped to [0, 1]; instances without labels.
        sequences: (B, L) chosen ids in the full vocabulary.
        code_logits: depth (B, L, K), instances (B, N, tokens, K).
    """

    predicted_depth: Tensor | None = None
    boxes: Tensor | None = None
    scores: Tensor | None = None
    class_labels: Tensor | None = None
    mask_values: Tensor | None = None
    sequences: Tensor | None = None
    code_logits: Tensor | None = None
    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    logits: Tensor | None = None


class AiTPredictor:
    """What `AiTForDenseAndInstancePrediction` does without labels; it holds no weights of its own."""

    config: Any
    model: Any
    depth_tokenizer: Any
    mask_tokenizer: Any

    def get_encoder_memory(self, pixel_values: Tensor) -> Tensor:
        """Memory (B, N, d) that the decoder attends to, of images (B, 3, H, W)."""
        return self.model.get_encoder_memory(pixel_values)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        task: str | None = None,
        *,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        max_objects: int | None = None,
        soft_feedback: bool | None = None,
        soft_decode: bool | None = None,
        task_ids: Tensor | None = None,
        encoder_memory: Tensor | None = None,
        compiled: bool = False,
        cuda_graphs: bool = False,
    ) -> AiTOutput:
        """Decode a prediction.

        Args:
            pixel_values: (B, 3, H, W), for depth also (B, views, 3, H, W).
            task: "depth", "instance" or "detection"; None is `config.default_task`.
            top_p: nucleus of coordinates and classes, 0 is greedy; None is the configuration's choice.
            generator: source of the nucleus's randomness; the same seed gives an image the same result in any batch.
            max_objects: objects to decode, at most `config.num_objects`; None is all of them.
            soft_feedback: feed expected embeddings back instead of picked codes; None is the configuration's choice.
            soft_decode: decode code probabilities instead of picked codes; None is the configuration's choice.
            task_ids: (B,), all alike: the task as an image processor's `task` gives it.
            encoder_memory: (B or B * views, N, d), `get_encoder_memory` of the same images, which spares the backbone
                when several tasks look at one image.
            compiled: run the decoder's steps through torch.compile; the first call takes a while.
            cuda_graphs: record a step's kernels once per run and replay them (CUDA). Neither is for a parallel model,
                which takes no steps: compile its `model.backbone`, `model.encoder` and `model.decoder`.

        Returns:
            For depth `sequences`, `code_logits` and `predicted_depth`; for objects `sequences`, `boxes`, `scores`,
            `class_labels`, and for instances `code_logits` and `mask_values`.

        Raises:
            ValueError: unknown task, images that the model cannot take, or a memory of other images.
        """
        task = self._resolve_task(task, task_ids)
        self._require_trained()
        images, views = self._check_images(pixel_values, task)
        memory = self._memory_or_given(images, encoder_memory)
        request = self._request(task, soft_feedback, top_p, generator, max_objects)
        if not self.config.parallel or task != "depth":
            decoded = decode_together(self._decoder, memory, [request], compiled=compiled, cuda_graphs=cuda_graphs)[0]
        elif compiled or cuda_graphs:
            raise ValueError(
                "compiled and cuda_graphs are for stepwise models, and this one is parallel: leave them out, and "
                "compile model.model.backbone, model.model.encoder and model.model.decoder instead."
            )
        else:
            decoded = decode_in_parallel(self._decoder, memory, request.task_id, request.grammar)
        output = self._output(task, decoded, images, soft_decode)
        if len(views) > 1:
            for name in ("predicted_depth", "sequences", "code_logits"):
                output[name] = output[name].unflatten(0, views)
        return output

    @torch.no_grad()
    def generate_tasks(
        self,
        pixel_values: Tensor,
        tasks: Sequence[str] | None = None,
        *,
        top_p: float | None = None,
        generator: torch.Generator | None = None,
        max_objects: int | None = None,
        soft_feedback: bool | None = None,
        soft_decode: bool | None = None,
        encoder_memory: Tensor | None = None,
        compiled: bool = False,
        cuda_graphs: bool = False,
    ) -> dict[str, AiTOutput]:
        """Decode several tasks for the same images side by side: one encoder memory, one loop.

        Args:
            pixel_values: (B, 3, H, W), no larger than every task can take.
            tasks: some of `config.tasks`, in the order of the results; None is all of them.
            top_p: as in `generate`, like all that follow.
            generator: every task draws what it would draw alone.
            max_objects: objects of detection and instances.
            soft_feedback: feed expected embeddings back.
            soft_decode: decode code probabilities.
            encoder_memory: (B, N, d).
            compiled: torch.compile of the step.
            cuda_graphs: recorded steps (CUDA).

        Returns:
            What `generate` gives for each task, by task.

        Raises:
            ValueError: unknown or repeated tasks, a parallel model, or images that a task cannot take.
        """
        names = list(self.config.tasks) if tasks is None else [self._resolve_task(task, None) for task in tasks]
        if not names or len(set(names)) != len(names):
            raise ValueError(f"tasks must be different ones of {list(self.config.tasks)}, at least one; got {tasks}.")
        if self.config.parallel:
            raise ValueError("generate_tasks is for stepwise models, and this one is parallel; call generate per task.")
        self._require_trained()
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values must be (batch, channels, height, width), got {tuple(pixel_values.shape)}; windows and "
                "flips of depth are for generate."
            )
        for name in names:
            self._check_images(pixel_values, name)
        memory = self._memory_or_given(pixel_values, encoder_memory)
        sources = [generator, *(generator and generator.clone_state() for _ in names[1:])]
        requests = [
            self._request(name, soft_feedback, top_p, source, max_objects)
            for name, source in zip(names, sources, strict=True)
        ]
        decoded = decode_together(self._decoder, memory, requests, compiled=compiled, cuda_graphs=cuda_graphs)
        return {
            name: self._output(name, tokens, pixel_values, soft_decode)
            for name, tokens in zip(names, decoded, strict=True)
        }

    @property
    def _decoder(self) -> AiTTokenDecoder:
        return self.model.decoder

    def _request(
        self,
        task: str,
        soft_feedback: bool | None,
        top_p: float | None,
        generator: torch.Generator | None,
        max_objects: int | None,
    ) -> DecodingRequest:
        """What to decode for a task; None is the configuration's choice."""
        config = self.config
        soft = config.soft_feedback if soft_feedback is None else soft_feedback
        if task == "depth":
            return DecodingRequest(TASK_IDS[task], depth_grammar(config.vocabulary, config.sequence_length(task), soft))
        count = self._check_max_objects(max_objects)
        grammar = object_grammar(config.vocabulary, count, config.tokens_per_object[task], soft)
        return DecodingRequest(TASK_IDS[task], grammar, config.top_p if top_p is None else top_p, generator)

    def _output(self, task: str, decoded: DecodedTokens, images: Tensor, soft_decode: bool | None) -> AiTOutput:
        """Depth or objects of the decoded tokens of images (B, 3, H, W)."""
        soft = self.config.soft_decode if soft_decode is None else soft_decode
        if task != "depth":
            tokens = self.config.tokens_per_object[task]
            return self._objects_from_tokens(decoded.sequences, decoded.step_logits, tokens, soft)
        code_logits = torch.stack(decoded.step_logits, dim=1)
        depth = self._detokenize_depth(code_logits, soft)[:, : images.shape[2], : images.shape[3]]
        return AiTOutput(predicted_depth=depth, sequences=decoded.sequences, code_logits=code_logits)

    def _check_images(self, pixel_values: Tensor, task: str) -> tuple[Tensor, tuple[int, ...]]:
        """Images (B, 3, H, W) that the task can take, and the sizes (batch,) or (batch, views) that they come from."""
        if pixel_values.ndim not in ((4, 5) if task == "depth" else (4,)):
            raise ValueError(
                "pixel_values must be (batch, channels, height, width), for depth also (batch, views, channels, "
                f"height, width); got {tuple(pixel_values.shape)}."
            )
        images = pixel_values.flatten(0, -4)
        if task == "depth":
            self._check_depth_size(images)
        return images, pixel_values.shape[:-3]

    def _require_trained(self) -> None:
        if self.config.initialization_only:
            raise ValueError(
                "This checkpoint is an initialisation: part of its weights is untrained, so it cannot predict. Train "
                "it, then set model.config.initialization_only = False."
            )

    def _memory_or_given(self, pixel_values: Tensor, encoder_memory: Tensor | None) -> Tensor:
        if encoder_memory is None:
            return self.get_encoder_memory(pixel_values)
        expected = (len(pixel_values), self.config.grid_size**2, self.config.decoder_config.hidden_size)
        if encoder_memory.shape != expected:
            raise ValueError(
                f"encoder_memory must be {expected} for these images, got {tuple(encoder_memory.shape)}; take it from "
                "get_encoder_memory of the same pixel_values."
            )
        return encoder_memory.to(self.model.decoder.token_embeddings.dtype)

    def _objects_from_tokens(
        self, sequences: Tensor, step_logits: list[Tensor], tokens: int, soft_decode: bool
    ) -> AiTOutput:
        """Boxes, scores, classes and masks of decoded sequences (B, M * tokens)."""
        config = self.config
        bins, class_labels, codes = parse_objects(sequences, tokens, config.vocabulary)
        class_logits = torch.stack(step_logits[CLASS_POSITION::tokens], dim=1).float()
        scores = class_logits.softmax(dim=-1).gather(2, class_labels[..., None]).squeeze(2)
        output = AiTOutput(
            boxes=bins_to_boxes(bins, config.num_bins, config.coordinate_scale),
            scores=scores,
            class_labels=class_labels,
            sequences=sequences,
        )
        if tokens > HEADER_LENGTH:
            is_code = [index % tokens >= HEADER_LENGTH for index in range(len(step_logits))]
            code_logits = torch.stack([x for x, code in zip(step_logits, is_code, strict=True) if code], dim=1)
            output.code_logits = code_logits.unflatten(1, codes.shape[1:])
            masks = self._detokenize_masks(output.code_logits.flatten(0, 1), soft_decode)
            output.mask_values = masks.unflatten(0, codes.shape[:2])
        return output

    def _detokenize_depth(self, code_logits: Tensor, soft: bool) -> Tensor:
        """Depth (B, S, S) in metres of code logits (B, L, K), S the tokenizer's image size."""
        return _detokenize(self.depth_tokenizer, code_logits, soft)

    def _detokenize_masks(self, code_logits: Tensor, soft: bool) -> Tensor:
        """Mask values (M, h, w) of code logits (M, tokens, K), not clipped."""
        return torch.cat([_detokenize(self.mask_tokenizer, group, soft) for group in code_logits.split(MASK_GROUP)])

    def _resolve_task(self, task: str | None, task_ids: Tensor | None) -> str:
        task = task if task_ids is None else _task_of_ids(task_ids, task)
        task = self.config.default_task if task is None else task
        if task not in self.config.tasks:
            raise ValueError(
                f"task must be one of {list(self.config.tasks)}, which this checkpoint does; got {task!r}."
            )
        return task

    def _check_max_objects(self, max_objects: int | None) -> int:
        limit = self.config.num_objects
        if max_objects is not None and not 1 <= max_objects <= limit:
            raise ValueError(f"max_objects must be between 1 and config.num_objects ({limit}), got {max_objects}.")
        return limit if max_objects is None else max_objects

    def _check_depth_size(self, images: Tensor) -> None:
        size = self.config.depth_tokenizer_config.image_size
        if max(images.shape[-2:]) > size:
            raise ValueError(
                f"pixel_values must have sides of at most {size}, the depth tokenizer's image_size, got "
                f"{tuple(images.shape)}; resize or cut windows with AiTDepthImageProcessor."
            )


def _task_of_ids(task_ids: Tensor, task: str | None) -> str:
    """The task that a batch's ids name, which must be `task` where that is given."""
    names = [name for name, index in TASK_IDS.items() if (task_ids == index).all()]
    if task_ids.numel() == 0 or len(names) != 1 or task not in (None, *names):
        raise ValueError(
            f"task_ids must all be one of {TASK_IDS} and agree with task, got {task_ids.tolist()} and task={task!r}; "
            "set `task` of the image processor."
        )
    return names[0]


def _detokenize(tokenizer: AiTVQVAEModel | AiTBinTokenizer, code_logits: Tensor, soft: bool) -> Tensor:
    """Maps (B, S, S) of code logits (B, L, K), in float32 also under autocast."""
    side = tokenizer.config.grid_size
    with torch.autocast(code_logits.device.type, enabled=False):
        if soft:
            return tokenizer.decode_soft(code_logits.float().transpose(1, 2).unflatten(2, (side, side))).squeeze(1)
        return tokenizer.decode(code_logits.argmax(dim=-1).unflatten(1, (side, side))).squeeze(1)
