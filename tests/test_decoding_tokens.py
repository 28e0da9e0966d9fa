"""The decoding loop against a loop without caches, soft and hard feedback, parallel decoding, the nucleus."""

import numpy as np
import pytest
import torch

from transformers_ait.decoding_tokens import decode_autoregressively, decode_in_parallel, nucleus_choice
from transformers_ait.sequence_ait import TokenStep, depth_grammar, object_grammar

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
    grammar = depth_grammar(vocabulary, LENGTH, soft)
    decoded = decode_autoregressively(decoder, memory, TASK, grammar)
    sequences, logits = decode_without_cache(decoder, memory, grammar)
    actual = torch.stack(decoded.step_logits, 1)
    assert actual.shape == (3, LENGTH, vocabulary.depth_codes.size)
    assert (actual - logits).abs().max() < 1e-4
    assert torch.equal(decoded.sequences, sequences)
    # Planted errors: the other kind of feedback, and another temperature.
    other = decode_without_cache(decoder, memory, depth_grammar(vocabulary, LENGTH, not soft))[1]
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
    grammar = depth_grammar(vocabulary, LENGTH, soft=True)
    batched = torch.stack(decode_autoregressively(decoder, memory, TASK, grammar).step_logits, 1)
    single = [torch.stack(decode_autoregressively(decoder, row[None], TASK, grammar).step_logits, 1) for row in memory]
    assert (batched - torch.cat(single)).abs().max() < 1e-4


@torch.no_grad()
def test_teacher_forced_logits_equal_stepwise_ones_under_hard_feedback(decoder, vocabulary, memory):
    grammar = depth_grammar(vocabulary, LENGTH, soft=False)
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
    grammar = depth_grammar(vocabulary, LENGTH, soft=False)
    decoded = decode_in_parallel(decoder, memory, TASK, grammar)
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
    decoded = decode_autoregressively(decoder, memory, TASK, depth_grammar(vocabulary, 3, soft=True))
    factor = torch.ones((), requires_grad=True)
    (factor * decoded.step_logits[0]).square().sum().backward()  # refused for tensors made in inference mode
    assert factor.grad > 0
    assert not decoded.sequences.is_inference() and not decoded.step_logits[0].requires_grad


@torch.no_grad()
def test_autocast_does_not_change_the_decoding(decoder, vocabulary, memory):
    grammar = depth_grammar(vocabulary, LENGTH, soft=True)
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
