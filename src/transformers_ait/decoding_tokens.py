"""The decoding loop under a grammar: soft or hard feedback, greedy or nucleus, or one parallel pass."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .modeling_token_decoder import AiTTokenDecoder, DecoderCache, FixedShapePosition
from .sequence_ait import TokenStep

# A function over fixed memory and the tensors it changes, to something that repeats it.
Capture = Callable[[Callable[[], tuple[Tensor, ...]], Sequence[Tensor]], Callable[[], tuple[Tensor, ...]]]
# Captured steps read the past in multiples of this: more recordings against more positions read in vain.
REPLAY_LENGTH = 128


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
    *,
    compiled: bool = False,
    cuda_graphs: bool = False,
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
        compiled: run the decoder's step through torch.compile, which takes a while at the first call.
        cuda_graphs: record the kernels of a step and replay them, which spares their launches. Every run records anew,
            once per kind of position and 128 positions.

    Raises:
        ValueError: CUDA graphs without a CUDA device.
    """
    if cuda_graphs and memory.device.type != "cuda":
        raise ValueError(f"cuda_graphs needs the model on a CUDA device, got {memory.device}; leave it out there.")
    # Autocast would convert every weight anew at every step; autograd's bookkeeping takes a twentieth of the time.
    with torch.inference_mode(), torch.autocast(memory.device.type, enabled=False):
        run, inputs = _start(decoder, memory, task_id, grammar, top_p, generator, compiled)
        if cuda_graphs:
            with torch.cuda.device(memory.device):
                capture = functools.partial(capture_cuda_graph, pool=torch.cuda.graph_pool_handle())
                chosen, step_logits = _replay_steps(run, inputs, grammar, capture)
        else:
            chosen, step_logits = _decode_steps(run, inputs, grammar)
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
    # memory.shape[0], because len() would fix the batch of an exported program.
    hidden = decoder(decoder.mask_inputs(memory.shape[0], len(grammar), task_id), memory)
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


@dataclass(frozen=True, slots=True)
class _Run:
    """What every step of a decoding run needs.

    Args:
        decoder: the token decoder.
        cache: its keys and values.
        advance: `AiTTokenDecoder.step`, compiled or not.
        rows: per kind of position, the vocabulary rows.
        positions: (L, d), embeddings of the positions.
        draws: (L,) random numbers in [0, 1), or None for a greedy run.
        top_p: nucleus.
    """

    decoder: AiTTokenDecoder
    cache: DecoderCache
    advance: Callable[..., Tensor]
    rows: dict[TokenStep, _StepRows]
    positions: Tensor
    draws: Tensor | None
    top_p: float

    def take(
        self, inputs: Tensor, step: TokenStep, position: int | FixedShapePosition
    ) -> tuple[Tensor, Tensor, Tensor]:
        """One position: the next input (B, d), the chosen ids (B,) and the logits (B, allowed [+ 1])."""
        number = position if isinstance(position, int) else position.index
        hidden = self.advance(self.decoder, inputs + self.positions[number], self.cache, position)
        embeddings, matrix, bias = self.rows[step].embeddings, self.rows[step].matrix, self.rows[step].bias
        logits = torch.addmm(bias, hidden, matrix)
        allowed = logits[:, : len(embeddings)]
        if step.sampled and self.draws is not None:
            choice = nucleus_choice(allowed, self.top_p, self.draws[number])
        else:
            choice = allowed.argmax(dim=-1)
        following = allowed.softmax(dim=-1) @ embeddings if step.soft else embeddings[choice]
        return following, step.allowed.to_ids(choice), logits


@functools.cache
def _compiled_step() -> Callable[..., Tensor]:
    # Not fullgraph: after its limit of variants (batch sizes, widths) torch then runs further ones as they are.
    return torch.compile(AiTTokenDecoder.step, dynamic=True)


def _start(
    decoder: AiTTokenDecoder,
    memory: Tensor,
    task_id: int,
    grammar: Sequence[TokenStep],
    top_p: float,
    generator: torch.Generator | None,
    compiled: bool,
) -> tuple[_Run, Tensor]:
    """What the steps of `decode_autoregressively` need, and the first input (B, d)."""
    memory = memory.to(decoder.token_embeddings.dtype)
    run = _Run(
        decoder=decoder,
        cache=decoder.start_cache(memory, len(grammar)),
        advance=_compiled_step() if compiled else AiTTokenDecoder.step,
        rows={step: _StepRows.of(decoder, step) for step in set(grammar)},
        positions=decoder.position_embeddings[task_id, : len(grammar)],
        draws=_uniform_draws(len(grammar), memory.device, generator) if top_p > 0 else None,
        top_p=top_p,
    )
    return run, decoder.task_embeddings[task_id].expand(memory.shape[0], -1)


def _decode_steps(run: _Run, inputs: Tensor, grammar: Sequence[TokenStep]) -> tuple[list[Tensor], list[Tensor]]:
    """Per position chosen ids and logits. The loop never waits for the device."""
    chosen, step_logits = [], []
    for position, step in enumerate(grammar):
        inputs, choice, logits = run.take(inputs, step, position)
        chosen.append(choice)
        step_logits.append(logits)
    return chosen, step_logits


def _replay_steps(
    run: _Run, inputs: Tensor, grammar: Sequence[TokenStep], capture: Capture
) -> tuple[list[Tensor], list[Tensor]]:
    """As `_decode_steps`, with one captured step per kind of position and multiple of `REPLAY_LENGTH`."""
    inputs = inputs.clone()
    index = torch.zeros(1, dtype=torch.long, device=inputs.device)
    replays: dict[tuple[TokenStep, int], Callable[[], tuple[Tensor, ...]]] = {}
    chosen, step_logits = [], []
    for position, step in enumerate(grammar):
        length = min((position // REPLAY_LENGTH + 1) * REPLAY_LENGTH, len(grammar))
        if (step, length) not in replays:

            def take(step: TokenStep = step, length: int = length) -> tuple[Tensor, ...]:
                following, choice, logits = run.take(inputs, step, FixedShapePosition(index, length))
                inputs.copy_(following)
                index.add_(1)
                return choice, logits

            replays[step, length] = capture(take, (inputs, index))
        choice, logits = replays[step, length]()
        # Copies, because the next replay writes to the same place.
        chosen.append(choice.clone())
        step_logits.append(logits.clone())
    return chosen, step_logits


def capture_cuda_graph(function: Callable[[], tuple[Tensor, ...]], state: Sequence[Tensor], pool: Any) -> Callable:
    """Record a function's kernels as a CUDA graph on the current device.

    Args:
        function: takes nothing and returns tensors; always reads and writes the same memory.
        state: what the function changes and the run before the recording must leave as it was.
        pool: `torch.cuda.graph_pool_handle()`; recordings may share one if every result is copied before another
            recording is replayed.

    Returns:
        A function that replays the kernels and returns the tensors, whose content every replay overwrites.
    """
    before = [tensor.clone() for tensor in state]
    graph, stream = torch.cuda.CUDAGraph(), torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        function()  # libraries set themselves up in a first run, which must not be recorded
        for tensor, value in zip(state, before, strict=True):
            tensor.copy_(value)
        # Not torch.cuda.graph, which empties the caches of the whole process at every recording. Other threads may
        # allocate meanwhile.
        graph.capture_begin(pool=pool, capture_error_mode="thread_local")
        try:
            outputs = function()
        finally:
            graph.capture_end()
    torch.cuda.current_stream().wait_stream(stream)

    def replay() -> tuple[Tensor, ...]:
        graph.replay()
        return outputs

    return replay


def _uniform_draws(count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    source = generator.device if generator is not None else device
    return torch.rand(count, generator=generator, device=source).to(device)
