"""`depth_folders`: a `datasets` builder for images and depth maps in two folders, matched by name.

After `import transformers_ait.data`:

    splits = datasets.load_dataset("depth_folders", data_dir="mydata")  # mydata/images/*.jpg, mydata/depth/*.png
    splits = datasets.load_dataset("depth_folders", data_dir="mydata", depth_unit="inverse", images="rgb")
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
from datasets.builder import Key

from . import depth_files
from .depth_files import DEPTH_UNITS, DepthPair, DepthPairs, check_pairs, depth_value, find_pairs
from .image_files import NamedImage, is_url, resolve
from .image_files_builder import ROWS_PER_SHARD, SHARED_MODULES, ImageFilesBuilder, ImageFilesConfig
from .registration import source_hash

CODE_HASH = source_hash((sys.modules[__name__], depth_files, *SHARED_MODULES))


@dataclass
class DepthFoldersConfig(ImageFilesConfig):
    """Where images and depth maps lie, and what the depth maps' numbers mean.

    Args:
        data_dir: folder with the folders `images` and `depths`, which become the split `train`; or with `train`,
            `validation` and `test` (some of them) that hold both.
        images: name of the folder of images.
        depths: name of the folder of depth maps: 16-bit PNG, floating-point TIFF or PFM, or .npy, of their images'
            names and sizes; what is not positive and finite is invalid.
        depth_unit: "millimetres", "metres" or "inverse" (1 / metres).

    Raises:
        FileNotFoundError: data_dir does not exist.
        ValueError: no data_dir, or an unknown unit.
    """

    images: str = "images"
    depths: str = "depth"
    depth_unit: str = "millimetres"

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.depth_unit not in DEPTH_UNITS:
            raise ValueError(f"depth_unit must be one of {list(DEPTH_UNITS)}, got {self.depth_unit!r}")
        if self.data_dir is None:
            raise ValueError(f"depth_folders needs data_dir, the folder that holds {self.images!r} and {self.depths!r}")
        if is_url(self.data_dir) or not os.path.isdir(self.root()):
            raise FileNotFoundError(f"data_dir must be an existing local folder, got {self.data_dir!r}")

    def root(self) -> str:
        """Absolute path of `data_dir`."""
        return resolve(self.data_dir or "")

    @cached_property
    def files(self) -> DepthPairs:
        """What the folders hold, listed once, so that the cache folder and the rows agree."""
        return find_pairs(self.root(), self.images, self.depths)

    def sources(self) -> Iterable[Any]:
        """See `ImageFilesConfig.sources`."""
        return [self.depth_unit, self.root(), self.files.pairs, sorted(self.files.stamps.items())]


class DepthFolders(ImageFilesBuilder):
    """Images with depth; one row per pair, in the order of the names.

    Columns:
        image: the image file.
        depth: 16-bit PNG in millimetres where the file is one, else floating-point TIFF in metres; 0 = invalid.
        name: path of the image relative to `data_dir`.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = DepthFoldersConfig
    CODE_HASH = CODE_HASH
    config: DepthFoldersConfig

    def _info(self) -> datasets.DatasetInfo:
        columns = {"image": NamedImage(), "depth": NamedImage(), "name": datasets.Value("string")}
        return datasets.DatasetInfo(description="Images with aligned depth maps.", features=datasets.Features(columns))

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        generators = []
        for split, pairs in self.config.files.pairs.items():
            # Streaming starts at once: it looks at a sample only.
            check_pairs(self.config.root(), pairs, self.config.depth_unit, whole=not dl_manager.is_streaming)
            shards = [pairs[start : start + ROWS_PER_SHARD] for start in range(0, len(pairs), ROWS_PER_SHARD)]
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"shards": shards}))
        return generators

    def _generate_examples(self, shards: list[list[DepthPair]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        root = self.config.root()
        for shard, pairs in enumerate(shards):
            for offset, pair in enumerate(pairs):
                depth = depth_value(root, pair.depth, self.config.depth_unit)
                yield Key(shard, offset), {"image": f"{root}/{pair.image}", "depth": depth, "name": pair.image}
