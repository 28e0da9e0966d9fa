"""The decoding loop under a grammar: soft or hard feedback, greedy or nucleus, or one parallel pass."""

import functools
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .decoding_cache_ait import DecoderCache, FixedShapePosition
from .modeling_token_decoder import AiTTokenDecoder
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


@dataclass(frozen=True, slots=True)
class DecodingRequest:
    """A sequence to decode for every image.

    Args:
        task_id: row of the task and position embeddings.
        grammar: one entry per position.
        top_p: nucleus of the positions that the grammar samples; 0 is greedy.
        generator: source of randomness. One number is drawn per position and shared by the batch, so an image's result
            depends on the seed alone, not on its neighbours.
    """

    task_id: int
    grammar: Sequence[TokenStep]
    top_p: float = 0.0
    generator: torch.Generator | None = None


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
    """Decode one position after the other; arguments as in `DecodingRequest` and `decode_together`."""
    request = DecodingRequest(task_id, grammar, top_p, generator)
    return decode_together(decoder, memory, [request], compiled=compiled, cuda_graphs=cuda_graphs)[0]


def decode_together(
    decoder: AiTTokenDecoder,
    memory: Tensor,
    requests: Sequence[DecodingRequest],
    *,
    compiled: bool = False,
    cuda_graphs: bool = False,
) -> list[DecodedTokens]:
    """Decode sequences of any tasks and lengths side by side, one position after the other.

    Where the grammar says soft, the next input is the expected embedding `softmax(logits) @ embeddings` over the
    allowed ids (the soft token of arXiv 2301.02229), at temperature 1; elsewhere the embedding of the chosen id.

    Args:
        decoder: the token decoder.
        memory: (B, N, d).
        requests: what to decode for each of the B images.
        compiled: run the decoder's step through torch.compile, which takes a while at the first call.
        cuda_graphs: record the kernels of a step and replay them, which spares their launches. Every run records anew,
            once per kind of position and 128 positions.

    Returns:
        One result per request.

    Raises:
        ValueError: CUDA graphs without a CUDA device.
    """
    if cuda_graphs and memory.device.type != "cuda":
        raise ValueError(f"cuda_graphs needs the model on a CUDA device, got {memory.device}; leave it out there.")
    # Autocast would convert every weight anew at every step; autograd's bookkeeping takes a twentieth of the time.
    with torch.inference_mode(), torch.autocast(memory.device.type, enabled=False):
        run = _Run.start(decoder, memory, requests, compiled)
        if cuda_graphs:
            with torch.cuda.device(memory.device):
                capture = functools.partial(capture_cuda_graph, pool=torch.cuda.graph_pool_handle())
                _replay_steps(run, capture)
        else:
            _decode_steps(run)
    by_request = dict(zip(run.order, run.tracks, strict=True))
    # Copies, because autograd refuses tensors made in inference mode.
    with torch.no_grad():
        return [by_request[index].result() for index in range(len(requests))]


def decode_in_parallel(
    decoder: AiTTokenDecoder, memory: Tensor, requests: Sequence[DecodingRequest]
) -> list[DecodedTokens]:
    """Decode every position of any tasks in one pass over mask embeddings (AiT-P, arXiv 2301.02229).

    Args:
        decoder: a token decoder with a mask embedding.
        memory: (B, N, d).
        requests: what to decode for each of the B images; a grammar's entries are all alike.

    Returns:
        One result per request.

    Raises:
        ValueError: a grammar differs between positions.
    """
    if any(len(set(request.grammar)) != 1 for request in requests):
        raise ValueError("grammar must allow the same ids at every position to be decoded in parallel.")
    # memory.shape[0], because len() would fix the batch of an exported program.
    inputs = [decoder.mask_inputs(memory.shape[0], len(x.grammar), x.task_id) for x in requests]
    decoded = []
    for request, hidden in zip(requests, decoder.forward_together(inputs, memory), strict=True):
        allowed = request.grammar[0].allowed
        logits = decoder.logits(hidden, allowed.rows)
        decoded.append(DecodedTokens(allowed.to_ids(logits.argmax(dim=-1)), list(logits.unbind(1))))
    return decoded


def fed_embeddings(decoder: AiTTokenDecoder, grammar: Sequence[TokenStep], decoded: DecodedTokens) -> Tensor:
    """Embeddings (B, L - 1, d) that a run fed back, of all its positions but the last: expected ones or picked ones.

    Args:
        decoder: the token decoder.
        grammar: of the run, one entry per position.
        decoded: what it found.
    """
    fed = []
    for step, ids, logits in zip(grammar[:-1], decoded.sequences.unbind(1), decoded.step_logits, strict=False):
        embeddings = decoder.token_embeddings[step.allowed.rows]
        soft = logits[:, : len(embeddings)].softmax(dim=-1) @ embeddings if step.soft else decoder.token_embeddings[ids]
        fed.append(soft)
    width = decoder.token_embeddings.shape[1]
    return torch.stack(fed, dim=1) if fed else decoder.token_embeddings.new_zeros(len(decoded.sequences), 0, width)


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


@functools.cache
def _compiled_step() -> Callable[..., Tensor]:
    # Not fullgraph: after its limit of variants (batch sizes, widths) torch then runs further ones as they are.
    return torch.compile(AiTTokenDecoder.step, dynamic=True)


@dataclass(slots=True)
class _Track:
    """One request of a run, as far as it has come.

    Args:
        grammar: one entry per position.
        rows: per kind of position, the vocabulary rows.
        positions: (L, d), embeddings of the positions.
        draws: (L,) random numbers in [0, 1), or None for a greedy request.
        top_p: nucleus.
        inputs: (B, d), what the next position takes, without its embedding.
        chosen: per past position, ids (B,).
        step_logits: per past position, logits (B, allowed [+ 1]).
    """

    grammar: Sequence[TokenStep]
    rows: dict[TokenStep, _StepRows]
    positions: Tensor
    draws: Tensor | None
    top_p: float
    inputs: Tensor
    chosen: list[Tensor]
    step_logits: list[Tensor]

    @classmethod
    def start(cls, decoder: AiTTokenDecoder, batch: int, request: DecodingRequest) -> "_Track":
        length, task, device = len(request.grammar), request.task_id, decoder.token_embeddings.device
        return cls(
            grammar=request.grammar,
            rows={step: _StepRows.of(decoder, step) for step in set(request.grammar)},
            positions=decoder.position_embeddings[task, :length],
            draws=_uniform_draws(length, device, request.generator) if request.top_p > 0 else None,
            top_p=request.top_p,
            inputs=decoder.task_embeddings[task].expand(batch, -1),
            chosen=[],
            step_logits=[],
        )

    def choose(self, hidden: Tensor, step: TokenStep, number: int | Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The next input (B, d), the chosen ids (B,) and the logits, of hidden states (B, d)."""
        rows = self.rows[step]
        logits = torch.addmm(rows.bias, hidden, rows.matrix)
        allowed = logits[:, : len(rows.embeddings)]
        if step.sampled and self.draws is not None:
            choice = nucleus_choice(allowed, self.top_p, self.draws[number])
        else:
            choice = allowed.argmax(dim=-1)
        following = allowed.softmax(dim=-1) @ rows.embeddings if step.soft else rows.embeddings[choice]
        return following, step.allowed.to_ids(choice), logits

    def record(self, chosen: Tensor, logits: Tensor) -> None:
        """Append what was found at a position."""
        self.chosen.append(chosen)
        self.step_logits.append(logits)

    def result(self) -> DecodedTokens:
        """What was found, in tensors of its own."""
        return DecodedTokens(torch.stack(self.chosen, dim=1), [logits.clone() for logits in self.step_logits])


@dataclass(frozen=True, slots=True)
class _Run:
    """Requests that advance together, the longest first, so that those that are done leave at the end.

    Args:
        decoder: the token decoder.
        cache: keys and values; rows are the tracks' images, track by track.
        advance: `AiTTokenDecoder.step`, compiled or not.
        batch: images of a track.
        tracks: by falling length.
        order: the request that each track stands for.
    """

    decoder: AiTTokenDecoder
    cache: DecoderCache
    advance: Callable[..., Tensor]
    batch: int
    tracks: list[_Track]
    order: list[int]

    @classmethod
    def start(
        cls, decoder: AiTTokenDecoder, memory: Tensor, requests: Sequence[DecodingRequest], compiled: bool
    ) -> "_Run":
        memory = memory.to(decoder.token_embeddings.dtype)
        order = sorted(range(len(requests)), key=lambda index: -len(requests[index].grammar))
        # Drawn in the order of the requests, which does not depend on their lengths.
        tracks = [_Track.start(decoder, memory.shape[0], request) for request in requests]
        tracks = [tracks[index] for index in order]
        repeated = memory if len(tracks) == 1 else memory.repeat(len(tracks), 1, 1)
        return cls(
            decoder=decoder,
            cache=decoder.start_cache(repeated, len(tracks[0].grammar)),
            advance=_compiled_step() if compiled else AiTTokenDecoder.step,
            batch=memory.shape[0],
            tracks=tracks,
            order=order,
        )

    def active(self, position: int) -> list[_Track]:
        """The tracks that reach a position; the cache keeps no others."""
        tracks = [track for track in self.tracks if len(track.grammar) > position]
        if len(tracks) * self.batch < self.cache.batch:
            self.cache.keep_first(len(tracks) * self.batch)
        return tracks

    def take(
        self, tracks: Sequence[_Track], steps: Sequence[TokenStep], position: int | FixedShapePosition
    ) -> list[tuple[Tensor, Tensor, Tensor]]:
        """One position of the active tracks: per track the next input, the chosen ids and the logits."""
        number = position if isinstance(position, int) else position.index
        inputs = [track.inputs + track.positions[number] for track in tracks]
        joined = inputs[0] if len(inputs) == 1 else torch.cat(inputs)
        hidden = self.advance(self.decoder, joined, self.cache, position).split(self.batch)
        return [track.choose(x, step, number) for track, x, step in zip(tracks, hidden, steps, strict=True)]


def _decode_steps(run: _Run) -> None:
    """All positions. The loop never waits for the device."""
    for position in range(len(run.tracks[0].grammar)):
        tracks = run.active(position)
        steps = [track.grammar[position] for track in tracks]
        for track, (following, chosen, logits) in zip(tracks, run.take(tracks, steps, position), strict=True):
            track.inputs = following
            track.record(chosen, logits)


def _replay_steps(run: _Run, capture: Capture) -> None:
    """As `_decode_steps`, with one captured step per kind of position and multiple of `REPLAY_LENGTH`."""
    length = len(run.tracks[0].grammar)
    index = torch.zeros(1, dtype=torch.long, device=run.tracks[0].inputs.device)
    for track in run.tracks:
        track.inputs = track.inputs.clone()
    replays: dict[tuple, Callable[[], tuple[Tensor, ...]]] = {}
    for position in range(length):
        tracks = run.active(position)
        steps = tuple(track.grammar[position] for track in tracks)
        reach = min((position // REPLAY_LENGTH + 1) * REPLAY_LENGTH, length)
        if (steps, reach) not in replays:
            take = functools.partial(_take_in_place, run, tracks, steps, FixedShapePosition(index, reach))
            replays[steps, reach] = capture(take, (index, *(track.inputs for track in tracks)))
        outputs = replays[steps, reach]()
        for number, track in enumerate(tracks):
            # Copies, because the next replay writes to the same place.
            track.record(outputs[2 * number].clone(), outputs[2 * number + 1].clone())


def _take_in_place(
    run: _Run, tracks: Sequence[_Track], steps: Sequence[TokenStep], position: FixedShapePosition
) -> tuple[Tensor, ...]:
    """One position over fixed memory; returns each track's chosen ids and logits."""
    outputs: list[Tensor] = []
    for track, (following, chosen, logits) in zip(tracks, run.take(tracks, steps, position), strict=True):
        track.inputs.copy_(following)
        outputs += (chosen, logits)
    position.index.add_(1)
    return tuple(outputs)


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
