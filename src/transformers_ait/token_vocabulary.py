"""The one token map: named id ranges of the shared output vocabulary. Offsets are added here and nowhere else."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

DEPTH_TASK = "depth"  # the dense task whose ids and row were there before there were others


@dataclass(frozen=True)
class IdRange:
    """A half-open range `[start, stop)` of token ids that stand for one kind of symbol."""

    start: int
    stop: int

    @property
    def size(self) -> int:
        """Number of ids in the range."""
        return self.stop - self.start

    @property
    def rows(self) -> slice:
        """The range as a slice over the vocabulary axis of logits or embeddings."""
        return slice(self.start, self.stop)

    def to_ids(self, index: Any) -> Any:
        """Vocabulary ids of indices within the range; integers, arrays and tensors alike."""
        return index + self.start

    def to_index(self, ids: Any) -> Any:
        """Inverse of `to_ids`."""
        return ids - self.start


@dataclass(frozen=True)
class TokenVocabulary:
    """Layout of the vocabulary: coordinates, classes, two specials, mask and depth codes, spare ids, further codes.

    Args:
        num_bins: coordinate bins; a coordinate takes one of `num_bins + 1` ids, both ends included.
        num_classes: object classes.
        num_mask_codes: codebook size of the mask tokenizer.
        num_depth_codes: codebook size of the depth tokenizer.
        num_spare: ids that no task uses (some published checkpoints carry 128 of them).
        dense_codes: (task, codebook size) of every dense task but depth. Their ids come last, so that a new task moves
            none of the others.
    """

    num_bins: int
    num_classes: int
    num_mask_codes: int
    num_depth_codes: int
    num_spare: int = 0
    dense_codes: tuple[tuple[str, int], ...] = ()

    @property
    def coordinates(self) -> IdRange:
        """Ids of coordinate bins."""
        return IdRange(0, self.num_bins + 1)

    @property
    def classes(self) -> IdRange:
        """Ids of object classes, in the order of the config's `id2label`."""
        return IdRange(self.coordinates.stop, self.coordinates.stop + self.num_classes)

    @property
    def end_of_sequence(self) -> int:
        """Id of the end-of-sequence token (unused by the released models, which always write every object)."""
        return self.classes.stop

    @property
    def noise(self) -> int:
        """Id of the noise-object class."""
        return self.end_of_sequence + 1

    @property
    def mask_codes(self) -> IdRange:
        """Ids of the mask tokenizer's codes."""
        return IdRange(self.noise + 1, self.noise + 1 + self.num_mask_codes)

    @property
    def depth_codes(self) -> IdRange:
        """Ids of the depth tokenizer's codes."""
        return IdRange(self.mask_codes.stop, self.mask_codes.stop + self.num_depth_codes)

    def codes(self, task: str) -> IdRange:
        """Ids of a dense task's codes.

        Raises:
            KeyError: the vocabulary has no such task.
        """
        ranges, start = {DEPTH_TASK: self.depth_codes}, self.depth_codes.stop + self.num_spare
        for name, size in self.dense_codes:
            ranges[name] = IdRange(start, start + size)
            start += size
        return ranges[task]

    @property
    def size(self) -> int:
        """Total number of ids."""
        return self.depth_codes.stop + self.num_spare + sum(size for _, size in self.dense_codes)


def shared_ids(
    earlier: TokenVocabulary, now: TokenVocabulary, earlier_classes: Sequence[str], classes: Sequence[str]
) -> list[tuple[int, int]]:
    """Ids of two vocabularies that mean the same, as pairs (earlier, now).

    Coordinates, mask codes, and codes of a dense task that both have are shared where there are equally many. Classes
    are matched by name.

    Args:
        earlier: one vocabulary.
        now: the other.
        earlier_classes: class names of the one, in the order of their ids.
        classes: of the other.
    """
    pairs = [(earlier.end_of_sequence, now.end_of_sequence), (earlier.noise, now.noise)]
    names = {DEPTH_TASK, *(name for name, _ in earlier.dense_codes)} & {DEPTH_TASK, *(x for x, _ in now.dense_codes)}
    ranges = [(earlier.coordinates, now.coordinates), (earlier.mask_codes, now.mask_codes)]
    for before, after in ranges + [(earlier.codes(name), now.codes(name)) for name in sorted(names)]:
        if before.size == after.size:
            pairs += zip(range(before.start, before.stop), range(after.start, after.stop), strict=True)
    places = {name: index for index, name in enumerate(classes)}
    pairs += [
        (earlier.classes.to_ids(index), now.classes.to_ids(places[name]))
        for index, name in enumerate(earlier_classes)
        if name in places
    ]
    return pairs
