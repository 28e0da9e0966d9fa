"""Properties of object sequences that hold for any number of objects, any boxes and any vocabulary."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_ait.sequence_ait import (
    CLASS_POSITION,
    HEADER_LENGTH,
    IGNORE_INDEX,
    NUM_COORDINATES,
    bins_to_boxes,
    boxes_to_bins,
    corrupt_classes,
    draw_noise_objects,
    object_grammar,
    object_sequence,
    order_objects,
    parse_objects,
    token_weights,
    true_objects,
)
from transformers_ait.token_vocabulary import TokenVocabulary

examples = settings(deadline=None, max_examples=60, derandomize=True)

VOCABULARY = TokenVocabulary(num_bins=2000, num_classes=80, num_mask_codes=128, num_depth_codes=128, num_spare=128)
seeds = st.integers(0, 2**32 - 1)
counts = st.integers(0, 130)
sizes = st.tuples(st.integers(1, 640), st.integers(1, 640))
vocabularies = st.builds(
    TokenVocabulary,
    num_bins=st.integers(1, 3000),
    num_classes=st.integers(1, 100),
    num_mask_codes=st.integers(1, 200),
    num_depth_codes=st.integers(0, 10),
    num_spare=st.integers(0, 10),
)


def generator(seed):
    return torch.Generator().manual_seed(seed)


def random_boxes(count, size, seed):
    """Proper boxes within (height, width); a quarter on the borders, a quarter of one pixel."""
    source = generator(seed)
    limit = torch.tensor([size[1], size[0]], dtype=torch.float32)
    ends = torch.rand(count, 2, 2, generator=source).sort(dim=1).values * limit
    boxes = ends.flatten(1)
    boxes[::4] = torch.cat((torch.zeros(2), limit))
    boxes[1::4, 2:] = boxes[1::4, :2].floor() + 1
    boxes[1::4, :2] = boxes[1::4, 2:] - 1
    return boxes


def random_objects(count, noise, tokens, vocabulary, seed):
    """Bins, classes (-1 for noise) and codes of true objects, then noise objects."""
    source = generator(seed)
    total = count + noise
    bins = torch.randint(0, vocabulary.num_bins + 1, (total, 4), generator=source)
    classes = torch.randint(0, vocabulary.num_classes, (total,), generator=source)
    classes[count:] = -1
    codes = torch.randint(0, vocabulary.num_mask_codes, (total, tokens), generator=source)
    return bins, classes, codes


# Coordinates


@examples
@given(counts, sizes, seeds, st.integers(100, 4000))
def test_boxes_survive_binning_to_half_a_bin(count, size, seed, num_bins):
    boxes, scale = random_boxes(count, size, seed), 640
    bins = boxes_to_bins(boxes, num_bins, scale)
    assert bins.dtype == torch.long and bins.shape == boxes.shape
    assert count == 0 or (bins.min() >= 0 and bins.max() <= num_bins)
    back = bins_to_boxes(bins, num_bins, scale)
    assert torch.allclose(back, boxes, atol=scale / num_bins / 2 + 1e-3)
    assert torch.equal(boxes_to_bins(back, num_bins, scale), bins), "bins are fixed points"


def test_bins_round_half_to_even_and_clip():
    boxes = torch.tensor([[0.16, 0.48, 0.8, 640.0], [-5.0, 700.0, 0.0, 639.999]])
    assert boxes_to_bins(boxes, 2000, 640).tolist() == [[0, 2, 2, 2000], [0, 2000, 0, 2000]]
    assert bins_to_boxes(torch.tensor([1, 2000]), 2000, 640).tolist() == pytest.approx([0.32, 640.0])


# Order


def test_largest_objects_come_first_by_area():
    boxes = torch.tensor([[0.0, 0, 4, 4], [5, 5, 25, 6], [0, 0, 1, 90], [3, 3, 4, 5], [1, 1, 5, 5]])
    assert order_objects(boxes, "area", 4).tolist() == [2, 1, 0, 4], "equal ones as they came"
    assert order_objects(boxes[:0], "area", 4).tolist() == []


@examples
@given(counts, counts, sizes, seeds)
def test_random_order_is_a_permutation_of_the_seed(count, wanted, size, seed):
    boxes = random_boxes(count, size, seed)
    order = order_objects(boxes, "random", wanted, generator(seed)).tolist()
    assert order == torch.randperm(count, generator=generator(seed))[:wanted].tolist()


# Noise objects


@examples
@given(counts, counts, sizes, seeds)
def test_noise_objects_lie_in_the_image_and_name_a_true_object_or_none(count, wanted, size, seed):
    boxes = random_boxes(count, size, seed)
    noise = draw_noise_objects(boxes, size, wanted, generator(seed))
    assert noise.boxes.shape == (wanted, 4) and noise.sources.shape == (wanted,)
    assert noise.boxes.isfinite().all() and (noise.boxes >= 0).all()
    assert (noise.boxes[:, 0::2] <= size[1]).all() and (noise.boxes[:, 1::2] <= size[0]).all()
    assert ((noise.sources >= -1) & (noise.sources < count)).all()
    assert (noise.boxes[:, 2:] >= noise.boxes[:, :2]).all()
    # A duplicate's sides move by at most a tenth of the true box, twice the truncated deviation halved.
    duplicates = noise.sources >= 0
    true = boxes[noise.sources[duplicates]]
    reach = 0.1 * (true[:, 2:] - true[:, :2]).repeat(1, 2) + 1e-3
    assert ((noise.boxes[duplicates] - true).abs() <= reach).all()


@examples
@given(counts, counts, sizes, seeds)
def test_same_seed_same_noise(count, wanted, size, seed):
    boxes = random_boxes(count, size, seed)
    first, second = (draw_noise_objects(boxes, size, wanted, generator(seed)) for _ in range(2))
    assert torch.equal(first.boxes, second.boxes) and torch.equal(first.sources, second.sources)
    if wanted > 3 and max(size) > 1:
        other = draw_noise_objects(boxes, size, wanted, generator(seed + 1))
        assert not torch.equal(first.boxes, other.boxes)


def test_noise_is_as_varied_as_the_paper_says():
    boxes = torch.tensor([[100.0, 100, 200, 150], [300, 50, 320, 400]])
    shares, true_sized = [], 0
    for seed in range(300):
        noise = draw_noise_objects(boxes, (480, 640), 50, generator(seed))
        shares.append((noise.sources >= 0).float().mean().item())
        sides = noise.boxes[noise.sources < 0][:, 2:] - noise.boxes[noise.sources < 0][:, :2]
        true_sized += sum((side - torch.tensor([100.0, 50])).abs().max() < 1e-3 for side in sides)
    shares = torch.tensor(shares)
    assert shares.mean() == pytest.approx(0.5, abs=0.05) and shares.min() < 0.05 and shares.max() > 0.95
    assert shares.std() == pytest.approx(12**-0.5, abs=0.03), "the number of duplicates is uniform"
    assert true_sized > 300, "some true boxes are moved"
    assert (draw_noise_objects(boxes[:0], (480, 640), 50).sources == -1).all(), "without true boxes there are none"


# Sequences


@examples
@given(st.integers(0, 110), st.integers(0, 60), st.integers(0, 16), vocabularies, seeds)
def test_sequences_and_objects_are_inverse(count, noise, tokens, vocabulary, seed):
    bins, classes, codes = random_objects(count, noise, tokens, vocabulary, seed)
    if count + noise == 0:
        return
    inputs, targets = object_sequence(bins, classes, codes, corrupt_classes(classes, vocabulary), vocabulary)
    length = HEADER_LENGTH + tokens
    assert inputs.shape == ((count + noise) * length - 1,) and targets.shape == ((count + noise) * length,)
    assert inputs.min() >= 0 and inputs.max() < vocabulary.size
    parsed = parse_objects(targets[None, : count * length], length, vocabulary)
    for found, expected in zip(parsed, (bins, classes, codes), strict=True):
        assert torch.equal(found[0], expected[:count])
    # What is fed in is what is asked for, but the class.
    fed = torch.cat((inputs, targets[-1:])).view(-1, length)
    wanted = targets.view(-1, length)
    supervised = wanted != IGNORE_INDEX
    supervised[:, CLASS_POSITION] = False
    assert torch.equal(fed[supervised], wanted[supervised])


@examples
@given(st.integers(0, 110), st.integers(0, 60), st.integers(0, 16), seeds)
def test_of_noise_objects_the_class_alone_is_supervised(count, noise, tokens, seed):
    bins, classes, codes = random_objects(count, noise, tokens, VOCABULARY, seed)
    if count + noise == 0:
        return
    length = HEADER_LENGTH + tokens
    _, targets = object_sequence(bins, classes, codes, corrupt_classes(classes, VOCABULARY), VOCABULARY)
    assert (targets != IGNORE_INDEX).sum() == count * length + noise
    objects = targets.view(-1, length)
    assert (objects[count:, CLASS_POSITION] == VOCABULARY.noise).all()
    true = true_objects(targets[None], length, VOCABULARY)[0]
    assert true.tolist() == [True] * count + [False] * noise


@examples
@given(st.integers(1, 110), seeds)
def test_detection_sequences_have_no_codes(count, seed):
    bins, classes, _ = random_objects(count, 0, 0, VOCABULARY, seed)
    inputs, targets = object_sequence(bins, classes, None, corrupt_classes(classes, VOCABULARY), VOCABULARY)
    assert len(targets) == 5 * count and len(inputs) == 5 * count - 1
    assert torch.equal(parse_objects(targets[None], 5, VOCABULARY)[0][0], bins)
    assert parse_objects(targets[None], 5, VOCABULARY)[2].shape == (1, count, 0)


@examples
@given(counts, vocabularies, seeds)
def test_fed_classes_are_classes_or_noise_whatever_the_truth(count, vocabulary, seed):
    classes = torch.randint(-1, vocabulary.num_classes, (count,), generator=generator(seed))
    fed = corrupt_classes(classes, vocabulary, generator(seed))
    assert fed.shape == classes.shape
    allowed = (fed == vocabulary.noise) | ((fed >= vocabulary.classes.start) & (fed < vocabulary.classes.stop))
    assert allowed.all()
    assert torch.equal(fed, corrupt_classes(classes, vocabulary, generator(seed)))
    assert torch.equal(fed, corrupt_classes(classes.flip(0), vocabulary, generator(seed))), "the truth must not leak"


def test_half_of_the_fed_classes_are_noise():
    fed = corrupt_classes(torch.zeros(20000, dtype=torch.long), VOCABULARY, generator(0))
    assert (fed == VOCABULARY.noise).float().mean() == pytest.approx(0.5, abs=0.02)
    classes = VOCABULARY.classes.to_index(fed[fed != VOCABULARY.noise])
    assert torch.bincount(classes, minlength=80).min() > 60, "all classes occur"


@examples
@given(st.integers(1, 110), st.integers(0, 16), vocabularies)
def test_grammar_allows_what_sequences_hold(count, tokens, vocabulary):
    length = HEADER_LENGTH + tokens
    grammar = object_grammar(vocabulary, count, length, soft=True)
    bins, classes, codes = random_objects(count, 0, tokens, vocabulary, 0)
    _, targets = object_sequence(bins, classes, codes, corrupt_classes(classes, vocabulary), vocabulary)
    assert len(grammar) == len(targets)
    for step, target in zip(grammar, targets.tolist(), strict=True):
        assert step.allowed.start <= target < step.allowed.stop
    for index, step in enumerate(grammar):
        position = index % length
        assert step.sampled == (position < HEADER_LENGTH) and step.soft == (position >= HEADER_LENGTH)
        assert step.rival == (vocabulary.noise if position == CLASS_POSITION else None)
    assert not any(step.soft for step in object_grammar(vocabulary, count, length, soft=False))


@examples
@given(st.integers(0, 110), st.integers(0, 16), st.floats(0, 2, width=32))
def test_weights_are_one_but_for_mask_codes(count, tokens, weight):
    length = HEADER_LENGTH + tokens
    weights = token_weights(count * length, length, weight).view(count, length)
    assert (weights[:, :HEADER_LENGTH] == 1).all() and (weights[:, HEADER_LENGTH:] == weight).all()
    assert NUM_COORDINATES == CLASS_POSITION == HEADER_LENGTH - 1
