"""The decoding loop under a grammar: soft or hard feedback, greedy or nucleus, or one parallel pass."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .modeling_token_decoder import AiTTokenDecoder
from .sequence_ait import TokenStep


@dataclass
class DecodedTokens:
    """Result of a decoding run.

    Args:
        sequences: (B, L) chosen ids in the full vocabulary.
        step_logits: per position, logits (B, allowed ids) of what the grammar allows there, the rival's last.
    """

    sequences: Tensor
    step_logits: list[Tensor]


def decode_autoregressively(
    decoder: AiTTokenDecoder,
    memory: Tensor,
    task_id: int,
    grammar: Sequence[TokenStep],
    top_p: float = 0.0,
    generator: torch.Generator | None = None,
) -> DecodedTokens:
    """Decode one position after the other.

    Where the grammar says soft, the next input is the expected embedding `softmax(logits) @ embeddings` over the
    allowed ids (the soft token of arXiv 2301.02229), at temperature 1; elsewhere the embedding of the chosen id.

    Args:
        decoder: the token decoder.
        memory: (B, N, d).
        task_id: row of the task and position embeddings.
        grammar: one entry per position.
        top_p: nucleus of the positions that the grammar samples; 0 is greedy.
        generator: source of randomness. One number is drawn per position and shared by the batch, so an image's result
            depends on the seed alone, not on its neighbours.
    """
    # Autocast would convert every weight anew at every step; autograd's bookkeeping takes a twentieth of the time.
    with torch.inference_mode(), torch.autocast(memory.device.type, enabled=False):
        memory = memory.to(decoder.token_embeddings.dtype)
        chosen, step_logits = _decode_steps(decoder, memory, task_id, grammar, top_p, generator)
    # Copies, because autograd refuses tensors made in inference mode.
    with torch.no_grad():
        return DecodedTokens(torch.stack(chosen, dim=1), [logits.clone() for logits in step_logits])


def decode_in_parallel(
    decoder: AiTTokenDecoder, memory: Tensor, task_id: int, grammar: Sequence[TokenStep]
) -> DecodedTokens:
    """Decode every position in one pass over mask embeddings (AiT-P, arXiv 2301.02229).

    Args:
        decoder: a token decoder with a mask embedding.
        memory: (B, N, d).
        task_id: row of the task and position embeddings.
        grammar: one entry per position, all alike.

    Raises:
        ValueError: the grammar differs between positions.
    """
    if len(set(grammar)) != 1:
        raise ValueError("grammar must allow the same ids at every position to be decoded in parallel.")
    hidden = decoder(decoder.mask_inputs(len(memory), len(grammar), task_id), memory)
    allowed = grammar[0].allowed
    logits = decoder.logits(hidden, allowed.rows)
    return DecodedTokens(allowed.to_ids(logits.argmax(dim=-1)), list(logits.unbind(1)))


def nucleus_choice(logits: Tensor, top_p: float, draw: Tensor) -> Tensor:
    """Sample from the smallest set of most probable ids whose probability reaches `top_p`.

    Args:
        logits: (B, K).
        top_p: in [0, 1]; the most probable id always stays.
        draw: scalar in [0, 1), the point of the nucleus's cumulative distribution to take.

    Returns:
        (B,) indices.
    """
    probabilities, order = logits.float().softmax(dim=-1).sort(dim=-1, descending=True)
    before = probabilities.cumsum(dim=-1) - probabilities
    kept = probabilities * ((before < top_p) | (before == 0))
    cumulative = kept.cumsum(dim=-1)
    rank = (cumulative <= draw * cumulative[:, -1:]).sum(dim=-1, keepdim=True)
    return order.gather(1, rank.clamp(max=logits.shape[-1] - 1)).squeeze(1)


@dataclass(frozen=True, slots=True)
class _StepRows:
    """The vocabulary rows of one kind of position, looked up once per run.

    Args:
        embeddings: (allowed, d), what may be fed back.
        matrix: (d, allowed [+ 1]), the output projection; a rival's column stands last.
        bias: (allowed [+ 1],).
    """

    embeddings: Tensor
    matrix: Tensor
    bias: Tensor

    @classmethod
    def of(cls, decoder: AiTTokenDecoder, step: TokenStep) -> "_StepRows":
        embeddings, bias = decoder.token_embeddings[step.allowed.rows], decoder.output_bias[step.allowed.rows]
        if step.rival is None:
            return cls(embeddings, embeddings.T, bias)
        rival = slice(step.rival, step.rival + 1)
        rows = torch.cat((embeddings, decoder.token_embeddings[rival]))
        return cls(embeddings, rows.T, torch.cat((bias, decoder.output_bias[rival])))


def _decode_steps(
    decoder: AiTTokenDecoder,
    memory: Tensor,
    task_id: int,
    grammar: Sequence[TokenStep],
    top_p: float,
    generator: torch.Generator | None,
) -> tuple[list[Tensor], list[Tensor]]:
    """The loop of `decode_autoregressively`: per position chosen ids and logits. It never waits for the device."""
    cache = decoder.start_cache(memory, len(grammar))
    rows = {step: _StepRows.of(decoder, step) for step in set(grammar)}
    positions = decoder.position_embeddings[task_id, : len(grammar)].unbind()
    draws = _uniform_draws(len(grammar), memory.device, generator) if top_p > 0 else None
    inputs = decoder.task_embeddings[task_id].expand(len(memory), -1)
    chosen, step_logits = [], []
    for position, step in enumerate(grammar):
        hidden = decoder.step(inputs + positions[position], cache, position)
        embeddings, matrix, bias = rows[step].embeddings, rows[step].matrix, rows[step].bias
        logits = torch.addmm(bias, hidden, matrix)
        allowed = logits[:, : len(embeddings)]
        if step.sampled and draws is not None:
            choice = nucleus_choice(allowed, top_p, draws[position])
        else:
            choice = allowed.argmax(dim=-1)
        inputs = allowed.softmax(dim=-1) @ embeddings if step.soft else embeddings[choice]
        chosen.append(step.allowed.to_ids(choice))
        step_logits.append(logits)
    return chosen, step_logits


def _uniform_draws(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    source = generator.device if generator is not None else device
    return torch.rand(count, generator=generator, device=source).to(device)
