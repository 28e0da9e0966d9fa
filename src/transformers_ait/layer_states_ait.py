"""Hidden states and attention weights of one forward pass, for callers who ask for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class LayerStates:
    """What layers leave behind, in the order in which they run; a list that is None was not asked for.

    Layers append what they compute with, not copies, so that gradients reach it. A checkpointed layer appends again
    when it is recomputed: take `tuples` at the end of the forward pass.

    Args:
        hidden_states: the first layer's input, then every layer's output.
        attentions: self-attention weights per layer, (B, heads, queries, keys), before dropout.
        cross_attentions: the same of cross-attention.
    """

    hidden_states: list[Tensor] | None = None
    attentions: list[Tensor] | None = None
    cross_attentions: list[Tensor] | None = None

    @classmethod
    def asked(cls, config: Any, output_hidden_states: Any = None, output_attentions: Any = None) -> "LayerStates":
        """What a call asks for; None leaves it to the configuration, as in all of transformers."""
        hidden = config.output_hidden_states if output_hidden_states is None else output_hidden_states
        attentions = config.output_attentions if output_attentions is None else output_attentions
        return cls(
            hidden_states=[] if hidden else None,
            attentions=[] if attentions else None,
            cross_attentions=[] if attentions else None,
        )

    @property
    def any(self) -> bool:
        """Whether something was asked for."""
        return self.hidden_states is not None or self.attentions is not None

    @property
    def or_none(self) -> "LayerStates | None":
        """Itself, or None where nothing was asked for: what is compiled then gets the arguments it always had."""
        return self if self.any else None

    def empty(self) -> "LayerStates":
        """The same question for another pass."""
        return LayerStates(*(None if entry is None else [] for entry in self._lists))

    def note(self, hidden: Tensor) -> None:
        """Append a hidden state, where they are asked for."""
        if self.hidden_states is not None:
            self.hidden_states.append(hidden)

    def tuples(self, **names: str) -> dict[str, tuple[Tensor, ...] | None]:
        """Fields of an output, `tuples(hidden_states="encoder_hidden_states")`; None where nothing was asked for."""
        lists = {name: getattr(self, name) for name in names}
        return {names[name]: None if states is None else tuple(states) for name, states in lists.items()}

    def joined(self, lengths: Sequence[int]) -> "LayerStates":
        """States of sequences that ran side by side, as of one sequence that holds them one after the other.

        Args:
            lengths: L of each of the T sequences of an image. Rows are those of one image, then those of the next, all
                filled up to the longest.

        Returns:
            Hidden states (B, sum of L, d), cross-attention weights (B, heads, sum of L, N), and self-attention weights
            (B, heads, sum of L, sum of L), which are 0 between sequences, since those do not see each other.
        """
        if len(lengths) == 1:
            return self
        hidden, attentions, cross = (None if states is None else [*states] for states in self._lists)
        return LayerStates(
            hidden and [_end_to_end(x.unflatten(0, (-1, len(lengths))), lengths, 1) for x in hidden],
            attentions and [_block_diagonal(x, lengths) for x in attentions],
            # An image's sequences are one row of queries there.
            cross and [_end_to_end(x.unflatten(2, (len(lengths), -1)).movedim(2, 1), lengths, 2) for x in cross],
        )

    @property
    def _lists(self) -> tuple[list[Tensor] | None, list[Tensor] | None, list[Tensor] | None]:
        return self.hidden_states, self.attentions, self.cross_attentions


def _end_to_end(x: Tensor, lengths: Sequence[int], axis: int) -> Tensor:
    """(B, T, ..., L, ...) to (B, ..., sum of L, ...), L at `axis` of the result."""
    return torch.cat([x[:, task].narrow(axis, 0, length) for task, length in enumerate(lengths)], dim=axis)


def _block_diagonal(weights: Tensor, lengths: Sequence[int]) -> Tensor:
    """(B * T, heads, L, L) to (B, heads, sum of L, sum of L)."""
    weights = weights.unflatten(0, (-1, len(lengths)))
    batch, _, heads = weights.shape[:3]
    joined = weights.new_zeros(batch, heads, sum(lengths), sum(lengths))
    start = 0
    for task, length in enumerate(lengths):
        joined[:, :, start : start + length, start : start + length] = weights[:, task, :, :length, :length]
        start += length
    return joined
