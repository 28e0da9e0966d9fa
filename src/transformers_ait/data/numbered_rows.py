"""Builders whose rows follow from a number alone: how numbers are shared out among splits and shards."""

from abc import abstractmethod
from collections.abc import Iterator
from typing import Any, ClassVar

import datasets
from datasets.builder import Key

SPLIT_STRIDE = 1_000_000_000
"""Distance between the first indices of the splits, which bounds their sizes."""


class NumberedRowsBuilder(datasets.GeneratorBasedBuilder):
    """Builder that makes row number n of a split from its index; its config says with `sizes()` how many each has."""

    CODE_HASH: ClassVar[str]
    ROWS_PER_SHARD: ClassVar[int]
    """Rows in one unit of work; `num_proc` and streaming workers share out whole shards."""

    def __init__(self, *, data_files: Any = None, hash: str | None = None, **kwargs: Any) -> None:
        # `load_dataset` hands every builder some files, which must not end up in the name of the cache folder.
        super().__init__(hash=hash or self.CODE_HASH, **kwargs)

    @abstractmethod
    def make_row(self, index: int) -> dict[str, Any]:
        """The row of an index; those of the n-th split count from n * `SPLIT_STRIDE`."""

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        generators, config = [], self.config
        for number, (name, size) in enumerate(config.sizes().items()):
            first = number * SPLIT_STRIDE
            starts = range(first, first + size, self.ROWS_PER_SHARD)
            shards = [(start, min(start + self.ROWS_PER_SHARD, first + size)) for start in starts]
            if shards:
                generators.append(datasets.SplitGenerator(name=name, gen_kwargs={"shards": shards}))
        return generators

    def _generate_examples(self, shards: list[tuple[int, int]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        for shard, (start, stop) in enumerate(shards):
            for offset, index in enumerate(range(start, stop)):
                yield Key(shard, offset), self.make_row(index)
