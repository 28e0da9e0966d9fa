"""The token map: published sizes, ranges that tile the vocabulary, ids and indices as inverses."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from transformers_ait import TokenVocabulary

sizes = st.integers(min_value=0, max_value=300)


def test_layout_of_the_published_models():
    vocabulary = TokenVocabulary(num_bins=2000, num_classes=80, num_mask_codes=128, num_depth_codes=128)
    assert (vocabulary.coordinates.start, vocabulary.coordinates.size) == (0, 2001)
    assert (vocabulary.classes.start, vocabulary.classes.stop) == (2001, 2081)
    assert (vocabulary.end_of_sequence, vocabulary.noise) == (2081, 2082)
    assert (vocabulary.mask_codes.start, vocabulary.mask_codes.stop) == (2083, 2211)
    assert (vocabulary.depth_codes.start, vocabulary.depth_codes.stop) == (2211, 2339)
    assert vocabulary.size == 2339
    assert TokenVocabulary(2000, 80, 128, 128, num_spare=128).size == 2467


@given(bins=sizes, classes=sizes, masks=sizes, depths=sizes, spare=sizes)
@settings(max_examples=50, deadline=None, derandomize=True)
def test_every_id_belongs_to_exactly_one_kind(bins, classes, masks, depths, spare):
    vocabulary = TokenVocabulary(bins, classes, masks, depths, spare)
    ids = np.arange(vocabulary.size)
    ranges = (vocabulary.coordinates, vocabulary.classes, vocabulary.mask_codes, vocabulary.depth_codes)
    owned = [
        *(ids[r.rows] for r in ranges),
        [vocabulary.end_of_sequence, vocabulary.noise],
        ids[-spare:] if spare else [],
    ]
    assert sorted(np.concatenate(owned)) == list(ids)
    assert [r.size for r in ranges] == [bins + 1, classes, masks, depths]


@pytest.mark.parametrize("index", [3, np.array([0, 3]), torch.tensor([[0], [3]])])
def test_ids_and_indices_are_inverse(index):
    codes = TokenVocabulary(10, 3, 5, 12).depth_codes
    assert np.all(np.asarray(codes.to_index(codes.to_ids(index))) == np.asarray(index))
    assert np.all(np.asarray(codes.to_ids(index)) - np.asarray(index) == codes.start)


def test_ranges_cannot_be_changed():
    with pytest.raises(AttributeError):
        TokenVocabulary(10, 3, 5, 12).num_bins = 4
