"""Outputs of the task-solver and its parts."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.utils import ModelOutput


class DenseMaps(Mapping[str, Tensor]):
    """Predicted native maps by task, with the batch as first axis; a number gives those of one sample as a batch of 1.

    The pipelines take batches apart by numbers, read their size from `shape`, and would make a dictionary of any other
    dictionary.

    Args:
        maps: (B, ...) by task.
    """

    def __init__(self, maps: Mapping[str, Tensor]):
        self._maps = dict(maps)

    def __getitem__(self, key: Any) -> Any:
        if isinstance(key, int):
            return DenseMaps({task: maps[key : key + 1] for task, maps in self.items()})
        return self._maps[key]

    def __iter__(self) -> Iterator[str]:
        return iter(self._maps)

    def __len__(self) -> int:
        return len(self._maps)

    def __repr__(self) -> str:
        return f"DenseMaps({self._maps})"

    @property
    def shape(self) -> torch.Size:
        """(B,)."""
        return next(iter(self._maps.values())).shape[:1]


@dataclass
class AiTModelOutput(ModelOutput):
    """Output of `AiTModel`.

    Args:
        last_hidden_state: (B, N, d), the decoder's memory.
        feature_map: (B, C, h, w), the backbone's last map.
        hidden_states: of the encoder, where asked for: the input of its first layer, then the output of every layer but
            the last, then `last_hidden_state`; each (B, N, d).
        attentions: of the encoder's layers, where asked for, each (B, heads, N, N).
    """

    last_hidden_state: Tensor | None = None
    feature_map: Tensor | None = None
    hidden_states: tuple[Tensor, ...] | None = None
    attentions: tuple[Tensor, ...] | None = None


@dataclass
class AiTOutput(ModelOutput):
    """Output of `AiTForDenseAndInstancePrediction`; fields that do not apply are None.

    Args:
        loss: scalar training loss.
        loss_dict: unweighted means of the loss's parts.
        task_losses: weighted losses by task, whose sum is `loss`.
        logits: (B, L, V), teacher-forced.
        predicted_depth: (B, H, W) or (B, views, H, W) metres, not clamped; the first depth map without labels.
        boxes: (B, N, 4) xyxy pixels of the padded input, not clipped; they may be inverted. Objects without labels.
        scores: (B, N), probability of the class among all classes and the noise class.
        class_labels: (B, N) class indices.
        mask_values: (B, N, h, w), 0.5 is the edge, not clipped to [0, 1]; instances without labels.
        sequences: (B, L) chosen ids in the full vocabulary; of the first of several tasks, as `code_logits`.
        code_logits: dense maps (B, L, K), instances (B, N, tokens, K).
        dense_maps: predicted native maps by task (see `map_kinds_ait`), (B, [C,] H, W) or (B, views, [C,] H, W).
        encoder_hidden_states: of the encoder's layers, where asked for, see `AiTModelOutput`; with views as second axis
            where the images have them, as all that follow.
        encoder_attentions: of the encoder's layers, where asked for, each (B, heads, N, N).
        decoder_hidden_states: where asked for, the decoder's input, then every layer's output, the last one's after the
            final LayerNorm; each (B, L, d). Of several tasks one after the other, as in `logits`.
        decoder_attentions: self-attention of the decoder's layers, where asked for, each (B, heads, L, L).
        cross_attentions: what each position looks at in the image, where asked for, each (B, heads, L, N).
    """

    predicted_depth: Tensor | None = None
    boxes: Tensor | None = None
    scores: Tensor | None = None
    class_labels: Tensor | None = None
    mask_values: Tensor | None = None
    sequences: Tensor | None = None
    code_logits: Tensor | None = None
    dense_maps: DenseMaps | None = None
    loss: Tensor | None = None
    loss_dict: dict[str, Tensor] | None = None
    task_losses: dict[str, Tensor] | None = None
    logits: Tensor | None = None
    encoder_hidden_states: tuple[Tensor, ...] | None = None
    encoder_attentions: tuple[Tensor, ...] | None = None
    decoder_hidden_states: tuple[Tensor, ...] | None = None
    decoder_attentions: tuple[Tensor, ...] | None = None
    cross_attentions: tuple[Tensor, ...] | None = None
