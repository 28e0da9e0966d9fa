"""Streamed training data: what a pass reads, how readers share it, and that reading resumes exactly."""

import itertools

import datasets
import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from transformers_ait.engine.recipes import RecipeError
from transformers_ait.engine.streaming import RowStream, StreamBatches, StreamPosition, StreamReader

ROWS, SHARDS, BUFFER = 57, 5, 8
START = StreamPosition()


@pytest.fixture(scope="module")
def stream():
    return RowStream(datasets.Dataset.from_dict({"x": list(range(ROWS))}).to_iterable_dataset(num_shards=SHARDS))


def take(stream, count, reader=0, readers=1, position=START, seed=0):
    return list(itertools.islice(StreamReader(stream, seed, BUFFER, reader, readers, position), count))


def numbers(taken):
    return [row["x"] for row, _, _ in taken]


@pytest.mark.parametrize("readers", [1, 2, 5])
def test_readers_share_every_pass_without_loss(stream, readers):
    seen = []
    for reader in range(readers):
        taken = take(stream, 2 * ROWS, reader, readers)
        own = [x for (row, _, position), x in zip(taken, numbers(taken), strict=True)]
        # A pass ends where the position says that the next one begins.
        length = next(i for i, (_, _, position) in enumerate(taken) if position.epoch == 1) + 1
        seen += own[:length]
    assert sorted(seen) == list(range(ROWS))


def test_order_is_shuffled_anew_every_pass_and_depends_on_the_seed(stream):
    twice = numbers(take(stream, 2 * ROWS))
    assert sorted(twice[:ROWS]) == sorted(twice[ROWS:]) == list(range(ROWS))
    assert twice[:ROWS] != twice[ROWS:] and twice[:ROWS] != list(range(ROWS))
    assert twice == numbers(take(stream, 2 * ROWS)) != numbers(take(stream, 2 * ROWS, seed=1))


@pytest.mark.parametrize("readers", [1, 2])
def test_reading_goes_on_exactly_from_every_position(stream, readers):
    whole = take(stream, 130, 0, readers)
    for stop in range(0, 130, 7):
        rest = take(stream, 129 - stop, 0, readers, whole[stop][2])
        assert rest == whole[stop + 1 :], stop


def test_augmentation_seeds_belong_to_the_row_and_the_pass(stream):
    taken = take(stream, 2 * ROWS)
    seeds = [seed for _, seed, _ in taken]
    assert len(set(seeds)) == 2 * ROWS
    by_row = {row["x"]: seed for row, seed, _ in taken[:ROWS]}
    half = take(stream, 20, 1, 2)
    assert all(by_row[row["x"]] == seed for row, seed, position in half if position.epoch == 0)


def test_too_few_shards_are_refused(stream):
    with pytest.raises(RecipeError, match="at least one shard for each of 6 readers.*has 5"):
        take(stream, 1, 0, 6)


def test_an_empty_stream_is_refused():
    rows = datasets.Dataset.from_dict({"x": [1]}).to_iterable_dataset().filter(lambda row: False)
    with pytest.raises(RecipeError, match="finds no row"):
        take(RowStream(rows), 1)


def loader(stream, workers, positions, batches):
    data = StreamBatches(
        stream,
        lambda row: {"x": torch.tensor(row["x"]), "draw": torch.rand(())},
        lambda samples: {name: torch.stack([sample[name] for sample in samples]) for name in samples[0]},
        micro_batch=3,
        seed=0,
        buffer=BUFFER,
        rank=0,
        processes=1,
        positions=positions,
        batches=batches,
    )
    return DataLoader(data, batch_size=None, num_workers=workers, generator=torch.Generator())


@pytest.mark.parametrize("workers", [0, 2])
def test_batches_go_on_exactly_though_workers_read_ahead(stream, workers):
    def run(positions, batches, count):
        positions, found = dict(positions), []
        for worker, position, batch in itertools.islice(loader(stream, workers, positions, batches), count):
            positions[worker] = position
            found.append((batch["x"].tolist(), batch["draw"].tolist()))
        return positions, found

    whole = run({}, 0, 25)[1]
    for stop in (1, 8, 13):
        positions, first = run({}, 0, stop)
        assert first + run(positions, stop, 25 - stop)[1] == whole
    assert run({}, 1, 24)[1] != whole[1:], "positions matter"


def test_pictures_stay_encoded_until_they_are_needed():
    picture = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    features = datasets.Features({"image": datasets.Image()})
    rows = datasets.Dataset.from_dict({"image": [picture]}, features).to_iterable_dataset()
    stream = RowStream(rows)
    row = next(stream.read(0, 0))
    assert isinstance(row["image"], dict) and row["image"]["bytes"]
    assert np.array_equal(np.asarray(stream.decode(row)["image"]), np.asarray(picture))
