"""The decoding loop against a loop without caches, soft and hard feedback, parallel decoding, the nucleus."""

import numpy as np
import pytest
import torch
import torch._dynamo.testing

from transformers_ait import decoding_tokens
from transformers_ait.decoding_cache_ait import DecodingBlock
from transformers_ait.decoding_tokens import (
    DecodingRequest,
    decode_autoregressively,
    decode_in_parallel,
    decode_together,
    nucleus_choice,
)
from transformers_ait.sequence_ait import TokenStep, map_grammar, object_grammar

TASK = 2
LENGTH = 16


@pytest.fixture
def model(tiny_model):
    model = tiny_model()
    with torch.no_grad():
        model.model.decoder.token_embeddings.mul_(3)  # decisive probabilities, so that feedback matters
    return model


@pytest.fixture
def decoder(model):
    return model.model.decoder


@pytest.fixture
def vocabulary(model):
    return model.config.vocabulary


@pytest.fixture
def memory():
    return torch.randn(3, 16, 16)


def decode_without_cache(decoder, memory, grammar, temperature=1.0):
    """Recompute the whole sequence for every token."""
    tokens = memory.new_zeros(len(memory), 0, memory.shape[-1])
    chosen, step_logits = [], []
    for step in grammar:
        hidden = decoder(decoder.inputs(tokens, TASK), memory)[:, -1]
        logits = (hidden @ decoder.token_embeddings.T + decoder.output_bias)[:, step.allowed.start : step.allowed.stop]
        rows = decoder.token_embeddings[step.allowed.start : step.allowed.stop]
        choice = logits.argmax(-1)
        following = (logits / temperature).softmax(-1) @ rows if step.soft else rows[choice]
        tokens = torch.cat((tokens, following[:, None]), dim=1)
        chosen.append(choice + step.allowed.start)
        step_logits.append(logits)
    return torch.stack(chosen, 1), torch.stack(step_logits, 1)


@pytest.mark.parametrize("soft", [True, False])
@torch.no_grad()
def test_cached_decoding_equals_recomputing_everything(decoder, vocabulary, memory, soft):
    grammar = map_grammar(vocabulary.depth_codes, LENGTH, soft)
    decoded = decode_autoregressively(decoder, memory, TASK, grammar)
    sequences, logits = decode_without_cache(decoder, memory, grammar)
    actual = torch.stack(decoded.step_logits, 1)
    assert actual.shape == (3, LENGTH, vocabulary.depth_codes.size)
    assert (actual - logits).abs().max() < 1e-4
    assert torch.equal(decoded.sequences, sequences)
    # Planted errors: the other kind of feedback, and another temperature.
    other = decode_without_cache(decoder, memory, map_grammar(vocabulary.depth_codes, LENGTH, not soft))[1]
    assert (other - logits)[:, 1:].abs().max() > 1e-2
    if soft:
        assert (decode_without_cache(decoder, memory, grammar, temperature=0.8)[1] - logits).abs().max() > 1e-3


@torch.no_grad()
def test_every_id_is_in_its_allowed_range(decoder, vocabulary, memory):
    ranges = [vocabulary.coordinates, vocabulary.classes, vocabulary.mask_codes, vocabulary.depth_codes] * 4
    grammar = [TokenStep(allowed, soft=i % 3 == 0) for i, allowed in enumerate(ranges)]
    sequences = decode_autoregressively(decoder, memory, TASK, grammar).sequences
    for ids, allowed in zip(sequences.T, ranges, strict=True):
        assert (ids >= allowed.start).all() and (ids < allowed.stop).all()


@torch.no_grad()
def test_batched_equals_single(decoder, vocabulary, memory):
    grammar = map_grammar(vocabulary.depth_codes, LENGTH, soft=True)
    batched = torch.stack(decode_autoregressively(decoder, memory, TASK, grammar).step_logits, 1)
    single = [torch.stack(decode_autoregressively(decoder, row[None], TASK, grammar).step_logits, 1) for row in memory]
    assert (batched - torch.cat(single)).abs().max() < 1e-4


@torch.no_grad()
def test_teacher_forced_logits_equal_stepwise_ones_under_hard_feedback(decoder, vocabulary, memory):
    grammar = map_grammar(vocabulary.depth_codes, LENGTH, soft=False)
    decoded = decode_autoregressively(decoder, memory, TASK, grammar)
    tokens = decoder.token_embeddings[decoded.sequences[:, :-1]]
    forced = decoder.logits(decoder(decoder.inputs(tokens, TASK), memory), vocabulary.depth_codes.rows)
    assert (forced - torch.stack(decoded.step_logits, 1)).abs().max() < 1e-4
    shuffled = decoder.token_embeddings[decoded.sequences[:, :-1].roll(1, 1)]
    wrong = decoder.logits(decoder(decoder.inputs(shuffled, TASK), memory), vocabulary.depth_codes.rows)
    assert (wrong - forced).abs().max() > 1e-2


@torch.no_grad()
def test_one_parallel_pass_equals_one_step_after_the_other(tiny_model, memory):
    model = tiny_model(parallel=True)
    decoder, vocabulary = model.model.decoder, model.config.vocabulary
    grammar = map_grammar(vocabulary.depth_codes, LENGTH, soft=False)
    decoded = decode_in_parallel(decoder, memory, [DecodingRequest(TASK, grammar)])[0]
    cache = decoder.start_cache(memory, LENGTH)
    for i in range(LENGTH):
        token = decoder.task_embeddings[TASK, 0] if i == 0 else decoder.mask_embedding[0, 0]
        hidden = decoder.step((token + decoder.position_embeddings[TASK, i]).expand(3, -1), cache, i)
        logits = decoder.logits(hidden, vocabulary.depth_codes.rows)
        assert (logits - decoded.step_logits[i]).abs().max() < 1e-4
        assert torch.equal(decoded.sequences[:, i], logits.argmax(-1) + vocabulary.depth_codes.start)


@torch.no_grad()
def test_rival_is_reported_last_and_never_chosen(decoder, vocabulary, memory):
    decoder.output_bias[vocabulary.noise] = 100
    grammar = object_grammar(vocabulary, num_objects=2, tokens_per_object=5, soft=False)
    decoded = decode_autoregressively(decoder, memory, 0, grammar)
    for position in (4, 9):
        assert decoded.step_logits[position].shape == (3, vocabulary.classes.size + 1)
        assert (decoded.step_logits[position].argmax(-1) == vocabulary.classes.size).all()
        assert (decoded.sequences[:, position] < vocabulary.classes.stop).all()


def test_results_are_ordinary_tensors(decoder, vocabulary, memory):
    decoded = decode_autoregressively(decoder, memory, TASK, map_grammar(vocabulary.depth_codes, 3, soft=True))
    factor = torch.ones((), requires_grad=True)
    (factor * decoded.step_logits[0]).square().sum().backward()  # refused for tensors made in inference mode
    assert factor.grad > 0
    assert not decoded.sequences.is_inference() and not decoded.step_logits[0].requires_grad


@torch.no_grad()
def test_autocast_does_not_change_the_decoding(decoder, vocabulary, memory):
    grammar = map_grammar(vocabulary.depth_codes, LENGTH, soft=True)
    expected = torch.stack(decode_autoregressively(decoder, memory, TASK, grammar).step_logits)
    with torch.autocast("cpu", torch.bfloat16):
        actual = torch.stack(decode_autoregressively(decoder, memory, TASK, grammar).step_logits)
        assert decode_autoregressively(decoder, memory.bfloat16(), TASK, grammar).step_logits[0].dtype == torch.float32
    assert torch.equal(actual, expected)


# --- the nucleus ---


def test_nucleus_frequencies_are_the_renormalised_probabilities():
    probabilities = torch.tensor([0.15, 0.5, 0.05, 0.3])
    draws = torch.linspace(0, 1, 2001)[:-1]
    choices = torch.stack([nucleus_choice(probabilities.log()[None], 0.7, draw)[0] for draw in draws])
    frequencies = np.bincount(choices.numpy(), minlength=4) / 2000
    assert frequencies == pytest.approx([0, 0.5 / 0.8, 0, 0.3 / 0.8], abs=2e-3)


@pytest.mark.parametrize("draw", [0.0, 0.5, 0.999999])
def test_an_empty_nucleus_is_greedy(draw):
    logits = torch.randn(50, 9)
    assert torch.equal(nucleus_choice(logits, 0.0, torch.tensor(draw)), logits.argmax(-1))
    assert torch.equal(nucleus_choice(100 * logits, 0.3, torch.tensor(draw)), logits.argmax(-1))


@torch.no_grad()
def test_sampling_depends_on_the_seed_alone_not_on_neighbours(decoder, vocabulary, memory):
    grammar = object_grammar(vocabulary, num_objects=3, tokens_per_object=5, soft=False)

    def sample(rows, seed):
        generator = torch.Generator().manual_seed(seed)
        return decode_autoregressively(decoder, rows, 0, grammar, 1.0, generator).sequences

    assert torch.equal(sample(memory, 3), sample(memory, 3))
    assert torch.equal(sample(memory, 3)[1:2], sample(memory[1:2], 3))
    assert not torch.equal(sample(memory, 3), sample(memory, 4))
    greedy = decode_autoregressively(decoder, memory, 0, grammar).sequences
    assert not torch.equal(sample(memory, 3), greedy)


# --- several tasks side by side ---


def requests(vocabulary):
    """Sequences of two tasks and three lengths, the longest in the middle."""
    return [
        DecodingRequest(2, map_grammar(vocabulary.depth_codes, LENGTH, soft=True)),
        DecodingRequest(1, object_grammar(vocabulary, 2, 5 + 4, soft=True), 0.9, torch.Generator().manual_seed(0)),
        DecodingRequest(0, object_grammar(vocabulary, 1, 5, soft=False), 0.9, torch.Generator().manual_seed(1)),
    ]


def alone(decoder, memory, request):
    return decode_autoregressively(decoder, memory, request.task_id, request.grammar, request.top_p, request.generator)


def deviation(found, expected):
    assert torch.equal(found.sequences, expected.sequences)
    return max((x - y).abs().max().item() for x, y in zip(found.step_logits, expected.step_logits, strict=True))


@pytest.mark.parametrize("order", [(0, 1, 2), (1, 0, 2), (2, 0, 1), (1,), (0, 2)])
@torch.no_grad()
def test_sequences_side_by_side_equal_sequences_alone(decoder, vocabulary, memory, order):
    expected = [alone(decoder, memory, request) for request in requests(vocabulary)]
    together = decode_together(decoder, memory, [requests(vocabulary)[index] for index in order])
    assert [len(found.step_logits) for found in together] == [len(expected[index].step_logits) for index in order]
    assert max(deviation(found, expected[index]) for found, index in zip(together, order, strict=True)) < 1e-5


@torch.no_grad()
def test_replayed_sequences_side_by_side_equal_sequences_alone(decoder, vocabulary, memory, monkeypatch):
    monkeypatch.setattr(decoding_tokens, "REPLAY_LENGTH", 4)
    expected = [alone(decoder, memory, request) for request in requests(vocabulary)]
    with torch.inference_mode():
        run = decoding_tokens._Run.start(decoder, memory, requests(vocabulary), compiled=False)
        decoding_tokens._replay_steps(run, record)
    for index, track in zip(run.order, run.tracks, strict=True):
        assert deviation(track.result(), expected[index]) < 1e-5


@torch.no_grad()
def test_sequences_that_read_a_neighbours_memory_would_be_noticed(decoder, vocabulary, memory, monkeypatch):
    expected = [alone(decoder, memory, request) for request in requests(vocabulary)]

    def keep_last(block, groups):
        block.memory_keys, block.memory_values = block.memory_keys[-groups:], block.memory_values[-groups:]
        block.past = block.past[:, -groups:]

    monkeypatch.setattr(DecodingBlock, "keep_first", keep_last)
    found = decode_together(decoder, memory, requests(vocabulary))
    pairs = [
        (x, y)
        for ours, alike in zip(found, expected, strict=True)
        for x, y in zip(ours.step_logits, alike.step_logits, strict=True)
    ]
    assert max((x - y).abs().max().item() for x, y in pairs) > 1e-3


# --- replayed and compiled steps ---


def record(function, state):
    """What a CUDA graph does, on any device: one run before the recording, and results that every replay overwrites."""
    before = [tensor.clone() for tensor in state]
    outputs = function()
    for tensor, value in zip(state, before, strict=True):
        tensor.copy_(value)

    def replay():
        for output, value in zip(outputs, function(), strict=True):
            output.copy_(value)
        return outputs

    return replay


@pytest.fixture
def replaying(monkeypatch):
    """Decoding with `cuda_graphs`, recorded by the stand-in above; counts the recordings."""
    recordings = []

    def capture(function, state):
        recordings.append(function)
        return record(function, state)

    def decode(decoder, memory, task, grammar, top_p, generator):
        with torch.inference_mode():
            request = DecodingRequest(task, grammar, top_p, generator)
            run = decoding_tokens._Run.start(decoder, memory, [request], compiled=False)
            decoding_tokens._replay_steps(run, capture)
        result = run.tracks[0].result()
        return result.sequences, result.step_logits

    decode.recordings = recordings
    return decode


def grammars(vocabulary):
    return {
        "depth soft": map_grammar(vocabulary.depth_codes, LENGTH, soft=True),
        "depth hard": map_grammar(vocabulary.depth_codes, LENGTH, soft=False),
        "instances": object_grammar(vocabulary, 2, 5 + 4, soft=True),
    }


@pytest.mark.parametrize("kind", ["depth soft", "depth hard", "instances"])
@pytest.mark.parametrize("length", [4, 5, 128])
@torch.no_grad()
def test_replayed_steps_equal_plain_ones(decoder, vocabulary, memory, replaying, monkeypatch, kind, length):
    monkeypatch.setattr(decoding_tokens, "REPLAY_LENGTH", length)
    grammar = grammars(vocabulary)[kind]
    args = (TASK, grammar, 0.9)
    expected = decode_autoregressively(decoder, memory, *args, torch.Generator().manual_seed(0))
    sequences, logits = replaying(decoder, memory, *args, torch.Generator().manual_seed(0))
    assert torch.equal(sequences, expected.sequences)
    deviations = [(x - y).abs().max() for x, y in zip(logits, expected.step_logits, strict=True)]
    assert max(deviations) < 1e-5
    kinds = {(step, position // length) for position, step in enumerate(grammar)}
    assert len(replaying.recordings) == len(kinds) < len(grammar)


@torch.no_grad()
def test_a_replay_that_sees_later_positions_would_be_noticed(decoder, vocabulary, memory, replaying, monkeypatch):
    grammar = map_grammar(vocabulary.depth_codes, LENGTH, soft=True)
    expected = torch.stack(decode_autoregressively(decoder, memory, TASK, grammar).step_logits)
    hidden = decoding_tokens.FixedShapePosition.hide_later
    monkeypatch.setattr(
        decoding_tokens.FixedShapePosition, "hide_later", lambda self, like: 0 * hidden(self, like).exp()
    )
    logits = torch.stack(replaying(decoder, memory, TASK, grammar, 0.0, None)[1])
    assert (logits - expected).abs().max() > 1e-3


def test_cuda_graphs_need_cuda(decoder, vocabulary, memory):
    with pytest.raises(ValueError, match="cuda_graphs needs the model on a CUDA device, got cpu"):
        grammar = map_grammar(vocabulary.depth_codes, 3, soft=True)
        decode_autoregressively(decoder, memory, TASK, grammar, cuda_graphs=True)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@torch.no_grad()
def test_the_loop_never_waits_for_the_device(decoder, vocabulary, memory):
    decoder, memory = decoder.cuda(), memory.cuda()
    grammar = object_grammar(vocabulary, 2, 5 + 4, soft=True)
    generator = torch.Generator("cuda").manual_seed(0)
    decode_autoregressively(decoder, memory, TASK, grammar, 0.9, generator)
    torch.cuda.set_sync_debug_mode("error")
    try:
        decode_autoregressively(decoder, memory, TASK, grammar, 0.9, generator)
    finally:
        torch.cuda.set_sync_debug_mode("default")


# The only test of the recording itself; `record` above stands in for it everywhere else.
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("compiled", [False, True])
@torch.no_grad()
def test_cuda_graphs_equal_plain_steps(decoder, vocabulary, memory, compiled):
    decoder, memory = decoder.cuda(), memory.cuda()
    grammar = map_grammar(vocabulary.depth_codes, LENGTH, soft=True)
    expected = decode_autoregressively(decoder, memory, TASK, grammar)
    actual = decode_autoregressively(decoder, memory, TASK, grammar, cuda_graphs=True, compiled=compiled)
    assert torch.equal(actual.sequences, expected.sequences)
    assert (torch.stack(actual.step_logits) - torch.stack(expected.step_logits)).abs().max() < 1e-4


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["depth soft", "instances"])
@torch.no_grad()
def test_compiled_steps_equal_plain_ones(decoder, vocabulary, memory, monkeypatch, kind):
    torch._dynamo.reset()
    graphs = torch._dynamo.testing.CompileCounterWithBackend("eager")
    compiled = torch.compile(decoding_tokens.AiTTokenDecoder.step, fullgraph=True, dynamic=True, backend=graphs)
    monkeypatch.setattr(decoding_tokens, "_compiled_step", lambda: compiled)
    grammar = grammars(vocabulary)[kind]
    for rows in (memory, memory.flip(0)):
        expected = decode_autoregressively(decoder, rows, TASK, grammar)
        actual = decode_autoregressively(decoder, rows, TASK, grammar, compiled=True)
        assert torch.equal(actual.sequences, expected.sequences)
    assert graphs.frame_count == 1, "one graph serves every position and run"


@pytest.mark.slow
@torch.no_grad()
def test_compiling_for_real(decoder, vocabulary, memory):
    torch._dynamo.reset()
    grammar = map_grammar(vocabulary.depth_codes, LENGTH, soft=True)
    expected = decode_autoregressively(decoder, memory, TASK, grammar)
    actual = decode_autoregressively(decoder, memory, TASK, grammar, compiled=True)
    assert (torch.stack(actual.step_logits) - torch.stack(expected.step_logits)).abs().max() < 1e-4
