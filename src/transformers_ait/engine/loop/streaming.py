"""Training data that is read in order and never held as a whole: shuffled, shared out, and exactly resumable.

`datasets` can resume a stream, but loses the contents of its shuffle buffer. Here a reader shuffles its shards, reads
groups of rows in sequence and shuffles each group; where it stands is three numbers, from which it
reads its group again.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import datasets
import numpy as np
import torch
from torch.utils.data import IterableDataset, get_worker_info

from ..recipes.reading import RecipeError
from .sampling import Sample, sample_seed

Row = dict[str, Any]


@dataclass(frozen=True)
class StreamPosition:
    """Where a reader stands.

    Args:
        epoch: passes over the reader's shards that are done.
        shard: shards of this pass that were finished when the present group began.
        offset: rows of the next shard that came before the group.
        taken: rows of the group that were handed out.
    """

    epoch: int = 0
    shard: int = 0
    offset: int = 0
    taken: int = 0


class RowStream:
    """A streamed dataset by its shards; rows stay encoded until `column`.

    Args:
        rows: of `datasets.load_dataset(..., streaming=True)`.

    Raises:
        RecipeError: the dataset does not say what its columns are.
    """

    def __init__(self, rows: datasets.IterableDataset) -> None:
        features = rows.features or rows._resolve_features().features
        if features is None:
            raise RecipeError("The streamed dataset has no columns.")
        self.features = features
        self.column_names = list(features)
        self.num_shards: int = rows.num_shards
        self._rows = rows.decode(False)

    def read(self, shard: int, skip: int) -> Iterator[Row]:
        """Encoded rows of one shard from row `skip` on."""
        part = self._rows.shard(self.num_shards, shard)
        return iter(part.skip(skip) if skip else part)

    def column(self, row: Row, name: str) -> Any:
        """One decoded value of an encoded row."""
        feature = self.features[name]
        return feature.decode_example(row[name]) if hasattr(feature, "decode_example") else row[name]


class StreamReader:
    """One of several readers that share the shards of a stream out, without end.

    Args:
        stream: the data.
        seed: of all orders.
        buffer: rows in a group that is shuffled, and held encoded.
        reader: number of this reader.
        readers: how many there are.
        position: where to start.

    Raises:
        RecipeError: fewer shards than readers; a reader without any row.
    """

    def __init__(
        self, stream: RowStream, seed: int, buffer: int, reader: int, readers: int, position: StreamPosition
    ) -> None:
        if stream.num_shards < readers:
            raise RecipeError(
                f"data.streaming needs at least one shard for each of {readers} readers (processes x "
                f"max(data.num_workers, 1)), the dataset has {stream.num_shards}; lower data.num_workers, or write it "
                "in more files."
            )
        self.stream = stream
        self.seed = seed
        self.buffer = buffer
        self.reader = reader
        self.readers = readers
        self.position = position

    def __iter__(self) -> Iterator[tuple[Row, int, StreamPosition]]:
        """Encoded rows, each with the seed of its augmentation and the position after it."""
        start = StreamPosition(self.position.epoch, self.position.shard, self.position.offset)
        taken = self.position.taken
        while True:
            group, following = self._read_group(start)
            order = np.random.default_rng([self.seed, start.epoch, self.reader, start.shard, start.offset])
            for number in order.permutation(len(group))[taken:].tolist():
                taken += 1
                finished = taken == len(group)
                position = following if finished else StreamPosition(start.epoch, start.shard, start.offset, taken)
                yield *group[number], position
            start, taken = following, 0

    def _read_group(self, start: StreamPosition) -> tuple[list[tuple[Row, int]], StreamPosition]:
        """The next group from a group's start on, within one epoch, and the start of the one after it."""
        shards = self._shards(start.epoch)
        group: list[tuple[Row, int]] = []
        shard, offset = start.shard, start.offset
        while shard < len(shards):
            for row in self.stream.read(shards[shard], offset):
                if len(group) == self.buffer:
                    return group, StreamPosition(start.epoch, shard, offset)
                group.append((row, sample_seed(self.seed, start.epoch, shards[shard], offset)))
                offset += 1
            shard, offset = shard + 1, 0
        if not group and start.shard == start.offset == 0:
            raise RecipeError(f"Reader {self.reader} of {self.readers} finds no row in shards {shards}.")
        return group, StreamPosition(start.epoch + 1)

    def _shards(self, epoch: int) -> list[int]:
        """This reader's shards in this epoch; all readers draw the same order and take turns."""
        order = np.random.default_rng([self.seed, epoch]).permutation(self.stream.num_shards)
        return order[self.reader :: self.readers].tolist()


class StreamBatches(IterableDataset[tuple[int, dict[str, int], Sample]]):
    """Micro-batches of one process for a `DataLoader` with `batch_size=None`, read by all its workers.

    Every batch carries its worker and where that worker stands after it, so that prefetched batches do not count.

    Args:
        stream: the data.
        make_sample: encoded row to sample; draws from torch's default generator.
        collate: samples to a batch.
        micro_batch: rows per batch.
        seed: of orders and augmentation.
        buffer: rows that are shuffled together.
        rank: number of this process.
        processes: number of processes.
        positions: where the workers stand, by number; missing ones start.
        batches: batches handed out before, which tells whose turn it is.
    """

    def __init__(
        self,
        stream: RowStream,
        make_sample: Callable[[Row], Sample],
        collate: Callable[[list[Sample]], Sample],
        micro_batch: int,
        seed: int,
        buffer: int,
        rank: int,
        processes: int,
        positions: Mapping[int, Mapping[str, int]],
        batches: int,
    ) -> None:
        self.stream = stream
        self.make_sample = make_sample
        self.collate = collate
        self.micro_batch = micro_batch
        self.seed = seed
        self.buffer = buffer
        self.rank = rank
        self.processes = processes
        self.positions = positions
        self.batches = batches

    def __iter__(self) -> Iterator[tuple[int, dict[str, int], Sample]]:
        info = get_worker_info()
        # Or `datasets` would share the shards, which are shared out here, among the workers a second time.
        torch.utils.data._utils.worker._worker_info = None
        workers = info.num_workers if info else 1
        # A DataLoader asks its workers in turn, beginning with number 0; whose turn it was decides who that is.
        worker = ((info.id if info else 0) + self.batches) % workers
        position = StreamPosition(**self.positions.get(worker, {}))
        readers = self.processes * workers
        rows = iter(StreamReader(self.stream, self.seed, self.buffer, self.rank * workers + worker, readers, position))
        while True:
            samples = []
            for _ in range(self.micro_batch):
                row, seed, position = next(rows)
                samples.append(self._sample(row, seed))
            yield worker, asdict(position), self.collate(samples)

    def _sample(self, row: Row, seed: int) -> Sample:
        # The generator of the processor alone: `torch.manual_seed` would disturb dropout on accelerators.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(seed)
            return self.make_sample(row)
