"""Prediction with the task-solver: decoding of one or several tasks, and tokens back to maps, boxes and masks."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .configuration_dense_tasks import OBJECT_TASKS
from .decoding_tokens import DecodedTokens, DecodingRequest, decode_in_parallel, decode_together, fed_embeddings
from .layer_states_ait import LayerStates
from .modeling_ait_vqvae import AiTVQVAEModel
from .modeling_bin_tokenizer import AiTBinTokenizer
from .modeling_dense_decoder import DenseDecoderModel
from .outputs_ait import AiTOutput, DenseMaps
from .sequence_ait import (
    CLASS_POSITION,
    HEADER_LENGTH,
    bins_to_boxes,
    map_grammar,
    object_grammar,
    parse_objects,
)
from .token_vocabulary import DEPTH_TASK

Tokenizer = AiTVQVAEModel | AiTBinTokenizer | DenseDecoderModel
# Masks detokenized at a time; bounds the activations of the mask decoder.
MASK_GROUP = 256


class AiTPredictor:
    """What `AiTForDenseAndInstancePrediction` does without labels; it holds no weights of its own."""

    config: Any
    model: Any
    depth_tokenizer: Any
    mask_tokenizer: Any
    dense_tokenizers: Any

    def tokenizer(self, task: str) -> Tokenizer:
        """The frozen tokenizer of a dense task, or of the masks of "instance"."""
        if task in OBJECT_TASKS:
            return self.mask_tokenizer
        return self.depth_tokenizer if task == DEPTH_TASK else self.dense_tokenizers[task]

    def get_encoder_memory(self, pixel_values: Tensor, states: LayerStates | None = None) -> Tensor:
        """Memory (B, N, d) that the decoder attends to, of images (B, 3, H, W); `states` gathers the encoder's."""
        return self.model.get_encoder_memory(pixel_values, states)

    @torch.no_grad()
    def generate(
        self,
        pixel_values: Tensor,
        task: str | Sequence[str] | None = None,
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
        output_hidden_states: bool | None = None,
        output_attentions: bool | None = None,
    ) -> AiTOutput:
        """Decode a prediction.

        Args:
            pixel_values: (B, 3, H, W), for dense tasks also (B, views, 3, H, W).
            task: one of `config.tasks`, or several dense ones. None is `config.default_task`; where that is a dense
                task of a parallel model, all of its dense tasks, which take one pass.
            top_p: nucleus of coordinates and classes, 0 is greedy; None is the configuration's choice.
            generator: source of the nucleus's randomness; the same seed gives an image the same result in any batch.
            max_objects: objects to decode, at most `config.num_objects`; None is all of them.
            soft_feedback: feed expected embeddings back instead of picked codes; None is the configuration's choice.
            soft_decode: decode code probabilities instead of picked codes; None is the configuration's choice.
            task_ids: (B,), all alike: the task as an image processor's `task` gives it.
            encoder_memory: (B or B * views, N, d), `get_encoder_memory` of the same images, which spares the backbone
                when several tasks look at one image.
            compiled: run the decoder's steps through torch.compile; the first call takes a while.
            cuda_graphs: record a step's kernels once per run and replay them (CUDA). Neither is for dense tasks of a
                parallel model, which take no steps: compile its `model.backbone`, `model.encoder` and `model.decoder`.
            output_hidden_states: also return hidden states of encoder (not with `encoder_memory`) and decoder, whose
                are those of one more pass over what the run fed, since steps keep none.
            output_attentions: the same of attention weights.

        Returns:
            For dense tasks `sequences`, `code_logits`, `dense_maps`, and `predicted_depth` with a depth map among them;
            for objects `sequences`, `boxes`, `scores`, `class_labels`, for instances `code_logits` and `mask_values`.

        Raises:
            ValueError: unknown task, images that the model cannot take, or a memory of other images.
        """
        tasks = self._resolve_tasks(task, task_ids)
        if len(tasks) > 1 and not self.config.dense.keys() >= set(tasks):
            raise ValueError(f"several tasks of one call must be dense, got {tasks}; call generate_tasks.")
        self._require_trained()
        images, views = self._check_images(pixel_values, tasks)
        states = LayerStates.asked(self.config, output_hidden_states, output_attentions)
        memory = self._memory_or_given(images, encoder_memory, states.or_none)
        requests = {name: self._request(name, soft_feedback, top_p, generator, max_objects) for name in tasks}
        decoded = self._decode(requests, memory, compiled, cuda_graphs)
        output = _joined([self._output(name, tokens, images, soft_decode) for name, tokens in decoded.items()])
        if states.any:
            encoder = LayerStates() if encoder_memory is not None else states
            decoder = self._decoder_states(requests, decoded, memory, states.empty())
            output = AiTOutput(**dict(output.items()), **state_fields(encoder, decoder))
        return _with_views(output, views) if len(views) > 1 else output

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
        """Decode several tasks for the same images side by side: one encoder memory, one loop and one parallel pass.

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
            ValueError: unknown or repeated tasks, or images that a task cannot take.
        """
        names = self._resolve_tasks(list(self.config.tasks) if tasks is None else list(tasks), None)
        self._require_trained()
        if pixel_values.ndim != 4:
            raise ValueError(
                f"pixel_values must be (batch, channels, height, width), got {tuple(pixel_values.shape)}; windows and "
                "flips of dense tasks are for generate."
            )
        self._check_images(pixel_values, names)
        memory = self._memory_or_given(pixel_values, encoder_memory)
        sources = [generator, *(generator and generator.clone_state() for _ in names[1:])]
        requests = {
            name: self._request(name, soft_feedback, top_p, source, max_objects)
            for name, source in zip(names, sources, strict=True)
        }
        decoded = self._decode(requests, memory, compiled, cuda_graphs)
        return {name: self._output(name, decoded[name], pixel_values, soft_decode) for name in names}

    def _decode(
        self, requests: Mapping[str, DecodingRequest], memory: Tensor, compiled: bool, cuda_graphs: bool
    ) -> dict[str, DecodedTokens]:
        """Tokens by task: dense tasks of a parallel model in one pass, all others in one loop."""
        dense = self.config.dense if self.config.parallel else {}
        parallel, stepwise = ([name for name in requests if (name in dense) == wanted] for wanted in (True, False))
        if (compiled or cuda_graphs) and not stepwise:
            raise ValueError(
                "compiled and cuda_graphs are for stepwise tasks, and these are decoded in parallel: leave them out, "
                "and compile model.model.backbone, model.model.encoder and model.model.decoder instead."
            )
        decoder, found = self.model.decoder, []
        if parallel:
            found += decode_in_parallel(decoder, memory, [requests[name] for name in parallel])
        if stepwise:
            steps = [requests[name] for name in stepwise]
            found += decode_together(decoder, memory, steps, compiled=compiled, cuda_graphs=cuda_graphs)
        by_task = dict(zip(parallel + stepwise, found, strict=True))
        return {name: by_task[name] for name in requests}

    def _decoder_states(
        self,
        requests: Mapping[str, DecodingRequest],
        decoded: Mapping[str, DecodedTokens],
        memory: Tensor,
        states: LayerStates,
    ) -> LayerStates:
        """States of the decoder in one pass over what a decoding run fed, of the tasks one after the other."""
        decoder, inputs = self.model.decoder, []
        for name, request in requests.items():
            if self.config.parallel and name in self.config.dense:
                inputs.append(decoder.mask_inputs(memory.shape[0], len(request.grammar), request.task_id))
            else:
                inputs.append(decoder.inputs(fed_embeddings(decoder, request.grammar, decoded[name]), request.task_id))
        decoder.forward_together(inputs, memory, states)
        return states.joined([x.shape[1] for x in inputs])

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
        row = config.task_ids[task]
        if task in config.dense:
            codes = config.vocabulary.codes(task)
            return DecodingRequest(row, map_grammar(codes, config.sequence_length(task), soft))
        count = self._check_max_objects(max_objects)
        grammar = object_grammar(config.vocabulary, count, config.tokens_per_object[task], soft)
        return DecodingRequest(row, grammar, config.top_p if top_p is None else top_p, generator)

    def _output(self, task: str, decoded: DecodedTokens, images: Tensor, soft_decode: bool | None) -> AiTOutput:
        """A map or objects of the decoded tokens of images (B, 3, H, W)."""
        soft = self.config.soft_decode if soft_decode is None else soft_decode
        if task not in self.config.dense:
            tokens = self.config.tokens_per_object[task]
            return self._objects_from_tokens(decoded.sequences, decoded.step_logits, tokens, soft)
        kind = self.config.dense[task].map_kind
        code_logits = torch.stack(decoded.step_logits, dim=1)
        maps = kind.from_tokenizer(detokenize(self.tokenizer(task), code_logits, soft))
        maps = maps[..., : images.shape[2], : images.shape[3]]
        fields: dict[str, Any] = {"sequences": decoded.sequences, "code_logits": code_logits}
        fields |= {"dense_maps": DenseMaps({task: maps})} | ({kind.output: maps} if kind.output else {})
        return AiTOutput(**fields)

    def _check_images(self, pixel_values: Tensor, tasks: Sequence[str]) -> tuple[Tensor, tuple[int, ...]]:
        """Images (B, 3, H, W) that the tasks can take, and the sizes (batch,) or (batch, views) that they come from."""
        dense = [task for task in tasks if task in self.config.dense]
        if pixel_values.ndim not in ((4, 5) if len(dense) == len(tasks) else (4,)):
            raise ValueError(
                "pixel_values must be (batch, channels, height, width), for dense tasks also (batch, views, channels, "
                f"height, width); got {tuple(pixel_values.shape)}."
            )
        images = pixel_values.flatten(0, -4)
        self._check_map_sizes(images, dense)
        return images, pixel_values.shape[:-3]

    def _require_trained(self) -> None:
        if self.config.initialization_only:
            raise ValueError(
                "This checkpoint is an initialisation: part of its weights is untrained, so it cannot predict. Train "
                "it, then set model.config.initialization_only = False."
            )

    def _memory_or_given(
        self, pixel_values: Tensor, encoder_memory: Tensor | None, states: LayerStates | None = None
    ) -> Tensor:
        if encoder_memory is None:
            return self.get_encoder_memory(pixel_values, states)
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

    def _detokenize_masks(self, code_logits: Tensor, soft: bool) -> Tensor:
        """Mask values (M, h, w) of code logits (M, tokens, K), not clipped."""
        groups = [detokenize(self.mask_tokenizer, group, soft) for group in code_logits.split(MASK_GROUP)]
        return torch.cat(groups).squeeze(1)

    def _resolve_tasks(self, task: str | Sequence[str] | None, task_ids: Tensor | None) -> list[str]:
        """The tasks of a call; see `generate`."""
        config = self.config
        if task_ids is not None:
            task = _task_of_ids(task_ids, task, config.task_ids)
        if task is None:
            several = config.parallel and config.default_task in config.dense
            return list(config.dense) if several else [config.default_task]
        names = [task] if isinstance(task, str) else list(task)
        if not names or len(set(names)) < len(names) or not set(names) <= set(config.tasks):
            raise ValueError(
                f"task must be one of {list(config.tasks)}, which this checkpoint does, or different ones of them; got "
                f"{task!r}."
            )
        return names

    def _check_max_objects(self, max_objects: int | None) -> int:
        limit = self.config.num_objects
        if max_objects is not None and not 1 <= max_objects <= limit:
            raise ValueError(f"max_objects must be between 1 and config.num_objects ({limit}), got {max_objects}.")
        return limit if max_objects is None else max_objects

    def _check_map_sizes(self, images: Tensor, tasks: Iterable[str]) -> None:
        for task in tasks:
            size = self.config.dense[task].tokenizer_config.image_size
            if max(images.shape[-2:]) > size:
                raise ValueError(
                    f"pixel_values must have sides of at most {size}, the {task} tokenizer's image_size, got "
                    f"{tuple(images.shape)}; resize or cut windows with AiTDenseImageProcessor."
                )


def _task_of_ids(task_ids: Tensor, task: str | Sequence[str] | None, rows: Mapping[str, int]) -> str:
    """The task that a batch's ids name, which must be `task` where that is given."""
    task = task[0] if isinstance(task, Sequence) and len(task) == 1 else task
    names = [name for name, row in rows.items() if (task_ids == row).all()]
    if task_ids.numel() == 0 or len(names) != 1 or task not in (None, *names):
        raise ValueError(
            f"task_ids must all be one of {dict(rows)} and agree with task, got {task_ids.tolist()} and task={task!r}; "
            "set `task` of the image processor."
        )
    return names[0]


def _joined(outputs: Sequence[AiTOutput]) -> AiTOutput:
    """One output of several dense tasks: all maps, and what else the first of them gives."""
    if len(outputs) == 1:
        return outputs[0]
    maps = DenseMaps({task: maps for output in outputs for task, maps in (output.dense_maps or {}).items()})
    fields: dict[str, Any] = {}
    for output in reversed(outputs):
        fields |= dict(output.items())
    return AiTOutput(**(fields | {"dense_maps": maps}))


def state_fields(encoder: LayerStates, decoder: LayerStates) -> dict[str, Any]:
    """Fields of an output with what was gathered of encoder and decoder; None where nothing was asked for."""
    return encoder.tuples(hidden_states="encoder_hidden_states", attentions="encoder_attentions") | decoder.tuples(
        hidden_states="decoder_hidden_states", attentions="decoder_attentions", cross_attentions="cross_attentions"
    )


def _with_views(output: AiTOutput, views: tuple[int, ...]) -> AiTOutput:
    """An output of dense tasks whose first axis counts images, (B * views, ...), as (B, views, ...)."""
    fields: dict[str, Any] = {}
    for name, value in output.items():
        if isinstance(value, DenseMaps):
            fields[name] = DenseMaps({task: x.unflatten(0, views) for task, x in value.items()})
        elif isinstance(value, tuple):
            fields[name] = tuple(x.unflatten(0, views) for x in value)
        else:
            fields[name] = value.unflatten(0, views)
    return AiTOutput(**fields)


def detokenize(tokenizer: Tokenizer, code_logits: Tensor, soft: bool) -> Tensor:
    """Maps (B, C, S, S) in tokenizer form of code logits (B, L, K), in float32 also under autocast."""
    side = tokenizer.config.grid_size
    with torch.autocast(code_logits.device.type, enabled=False):
        if soft:
            return tokenizer.decode_soft(code_logits.float().transpose(1, 2).unflatten(2, (side, side)))
        return tokenizer.decode(code_logits.argmax(dim=-1).unflatten(1, (side, side)))
