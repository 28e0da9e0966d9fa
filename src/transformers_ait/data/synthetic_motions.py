"""`synthetic_motions`: a `datasets` builder that moves made-up bodies instead of downloading captured ones.

After `import transformers_ait.data`:

    motions = datasets.load_dataset("synthetic_motions", num_train=1000, num_frames=81)
    row = transformers_ait.data.make_motion(7)
"""

from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np

from . import (
    camera_projection,
    depth_normals,
    motion_actions,
    motion_bodies,
    motion_rows,
    motion_steps,
    numbered_rows,
    skeleton,
)
from .motion_actions import ACTIONS
from .motion_bodies import perform, sample_body
from .motion_rows import MAX_FRAMES, filmed, motion_features
from .numbered_rows import SPLIT_STRIDE, NumberedRowsBuilder
from .registration import source_hash
from .rooms_render import MAX_NUMBER, require_integer

SEQUENCES_PER_SUBJECT = 4
"""Sequences that follow each other with the same body."""

FPS = 50
"""Frames per second, as Human3.6M has them."""

SYNTHETIC_MOTIONS_ACTIONS: tuple[str, ...] = tuple(ACTIONS)
"""Actions, in the order of the `ClassLabel` of the dataset."""

CODE_HASH = source_hash(
    (
        *(camera_projection, depth_normals, motion_actions, motion_bodies, motion_rows, motion_steps),
        *(numbered_rows, skeleton),
    )
)


@dataclass
class MotionsConfig(datasets.BuilderConfig):
    """Which motions to make.

    Args:
        num_train: sequences in the train split; 0 leaves the split out. A larger number only appends sequences.
        num_validation: sequences in the validation split, with other bodies and cameras.
        num_frames: frames of each sequence, 1 to 10000, 50 of them a second.
        seed: seed of all motions, 0 or more.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, or no split has a sequence.
    """

    num_train: int = 5000
    num_validation: int = 500
    num_frames: int = 81
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_train", "num_validation"):
            require_integer(name, getattr(self, name), 0, SPLIT_STRIDE)
        require_integer("num_frames", self.num_frames, 1, MAX_FRAMES)
        require_integer("seed", self.seed, 0, MAX_NUMBER)
        if not any(self.sizes().values()):
            raise ValueError("num_train and num_validation are both 0: ask for at least one sequence")

    def sizes(self) -> dict[str, int]:
        """Number of sequences by split name."""
        return {"train": self.num_train, "validation": self.num_validation}


def make_motion(index: int, *, num_frames: int = 81, seed: int = 0) -> dict[str, Any]:
    """One sequence: a body, an action and a camera, which follow from the arguments alone.

    Args:
        index: number of the sequence; those of the train split count from 0, of validation from 1 000 000 000.
        num_frames: T, 1 to 10000.
        seed: 0 or more.

    Returns:
        A row of `SyntheticMotions`, arrays as NumPy arrays, the action as its name.

    Raises:
        TypeError: if an argument is not an integer.
        ValueError: if an argument is out of range.
    """
    require_integer("index", index, 0, MAX_NUMBER)
    require_integer("num_frames", num_frames, 1, MAX_FRAMES)
    require_integer("seed", seed, 0, MAX_NUMBER)
    split, number = divmod(index, SPLIT_STRIDE)
    subject = number // SEQUENCES_PER_SUBJECT
    body = sample_body(np.random.default_rng([seed, split, subject, 0]))
    rng = np.random.default_rng([seed, split, number, 1])
    action = SYNTHETIC_MOTIONS_ACTIONS[rng.integers(len(ACTIONS))]
    performance = ACTIONS[action](body, np.arange(num_frames) / FPS, rng)
    return {
        "index": index,
        "action": action,
        "subject": f"{split}-{subject}",
        "fps": float(FPS),
        **filmed(perform(body, performance, FPS), rng),
    }


class SyntheticMotions(NumberedRowsBuilder):
    """Bodies that walk, turn, sit, reach, wave ...; one row per sequence, columns as in `motion_features`.

    `index` is the argument of `make_motion`, to be used with the config's `num_frames` and `seed`; `action` is a label
    of `SYNTHETIC_MOTIONS_ACTIONS`; four sequences share a `subject`, and no subject is in two splits.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = MotionsConfig
    CODE_HASH = CODE_HASH
    ROWS_PER_SHARD = 250
    config: MotionsConfig

    def _info(self) -> datasets.DatasetInfo:
        action = datasets.ClassLabel(names=list(SYNTHETIC_MOTIONS_ACTIONS))
        return datasets.DatasetInfo(
            description="Made-up motions of made-up bodies before made-up cameras, with Human3.6M's 17 joints.",
            features=motion_features(action, self.config.num_frames),
        )

    def make_row(self, index: int) -> dict[str, Any]:
        """`make_motion` with the config's settings."""
        return make_motion(index, num_frames=self.config.num_frames, seed=self.config.seed)
