"""What the `datasets` builders for image files have in common.

`datasets` replaces `open`, `os.path.join` and others in every module that holds a builder by versions for remote files;
file handling therefore lives in other modules.
"""

import dataclasses
import os
from abc import abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import datasets

from . import image_files, registration
from .image_files import digest, name_images
from .registration import source_hash

SHARED_MODULES = (image_files, registration)
"""Modules whose code decides what every builder's rows hold."""

ROWS_PER_SHARD = 64
"""Rows in one unit of work; `num_proc`, data loader workers and machines share out whole shards."""


@dataclass
class ImageFilesConfig(datasets.BuilderConfig):
    """Options of a builder whose cache notices changed files.

    Raises:
        TypeError: if an option that is a text or a path is something else.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            is_text = isinstance(value, str | os.PathLike) or (value is None and field.type is not str)
            if field.type in (str, str | None) and not is_text:
                raise TypeError(f"{field.name} must be a text, got {value!r:.80}")

    @abstractmethod
    def sources(self) -> Iterable[Any]:
        """Everything that the rows are made of: absolute paths, sizes and times of files, and options.

        Raises:
            FileNotFoundError: if a file that the options name does not exist.
            ValueError: if the options name no data.
        """

    def create_config_id(self, config_kwargs: dict, custom_features: datasets.Features | None = None) -> str:
        """Name of the cache folder: depends on `sources` alone, not on how a path was written."""
        return super().create_config_id({"files": digest(self.sources())}, custom_features)


class ImageFilesBuilder(datasets.GeneratorBasedBuilder):
    """Builder that finds its files by its own options and decodes them on access, naming the file that fails."""

    CODE_HASH = source_hash(SHARED_MODULES)

    def __init__(self, *, data_files: Any = None, hash: str | None = None, **kwargs: Any) -> None:
        if data_files:
            raise ValueError(f"{type(self).__name__} takes data_dir and its own options, not data_files={data_files!r}")
        super().__init__(hash=hash or self.CODE_HASH, **kwargs)

    def as_dataset(self, *args: Any, **kwargs: Any) -> Any:
        """The prepared splits; see `datasets.DatasetBuilder.as_dataset`."""
        # The cache stores plain image columns.
        self.info.features = name_images(self.info.features)
        return super().as_dataset(*args, **kwargs)

    def _as_streaming_dataset_single(self, *args: Any, **kwargs: Any) -> datasets.IterableDataset:
        self.info.features = name_images(self.info.features)
        return super()._as_streaming_dataset_single(*args, **kwargs)
