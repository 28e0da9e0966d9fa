"""`ade20k`: a `datasets` builder for ADE20K's scene parsing benchmark, 150 classes, from the files as distributed.

After `import transformers_ait.data`:

    scenes = datasets.load_dataset("ade20k", data_dir="ADEChallengeData2016")
"""

import os
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import datasets
from datasets.builder import Key

from . import ade20k_files
from .ade20k_files import OBJECTS, ScenePair, ScenePairs, check_scenes, find_scenes, read_annotation, read_class_names
from .image_files import NamedImage, file_stamp, is_url, resolve
from .image_files_builder import ROWS_PER_SHARD, SHARED_MODULES, ImageFilesBuilder, ImageFilesConfig
from .registration import source_hash

CODE_HASH = source_hash((sys.modules[__name__], ade20k_files, *SHARED_MODULES))


@dataclass
class ADE20KConfig(ImageFilesConfig):
    """Where ADE20K lies.

    Args:
        data_dir: the folder `ADEChallengeData2016` of the archive of that name, with `images/{training,validation}`,
            `annotations/{training,validation}` and `objectInfo150.txt`.

    Raises:
        FileNotFoundError: data_dir or `objectInfo150.txt` does not exist.
        ValueError: no data_dir, or an `objectInfo150.txt` that is damaged.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.data_dir is None:
            raise ValueError('ade20k needs data_dir: load_dataset("ade20k", data_dir="ADEChallengeData2016")')
        if is_url(self.data_dir) or not os.path.isdir(self.root()):
            raise FileNotFoundError(f"data_dir must be an existing local folder, got {self.data_dir!r}")

    def root(self) -> str:
        """Absolute path of `data_dir`."""
        return resolve(self.data_dir or "")

    @cached_property
    def files(self) -> ScenePairs:
        """What the folders hold, listed once, so that the cache folder and the rows agree."""
        return find_scenes(self.root())

    @cached_property
    def class_names(self) -> list[str]:
        """Names of the ids in the column `semantic`."""
        return read_class_names(self.root())

    def sources(self) -> Iterable[Any]:
        """See `ImageFilesConfig.sources`."""
        pairs, stamps = self.files.pairs, sorted(self.files.stamps.items())
        return [self.root(), pairs, stamps, self.class_names, file_stamp(os.path.join(self.root(), OBJECTS))]


class ADE20K(ImageFilesBuilder):
    """Scenes with a class per pixel; one row per image, in the order of the names.

    Columns:
        image: the JPEG file; a few are grey.
        semantic: 8-bit PNG, index in `ADE20K_CLASSES`, 255 = other or unlabelled.
        name: path of the image relative to `data_dir`.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = ADE20KConfig
    CODE_HASH = CODE_HASH
    config: ADE20KConfig

    def _info(self) -> datasets.DatasetInfo:
        columns = {"image": NamedImage(), "semantic": NamedImage(), "name": datasets.Value("string")}
        return datasets.DatasetInfo(
            description=f"ADE20K scene parsing. Semantic labels: {', '.join(self.config.class_names)}.",
            homepage="http://sceneparsing.csail.mit.edu",
            features=datasets.Features(columns),
        )

    def _split_generators(self, dl_manager: Any) -> list[datasets.SplitGenerator]:
        generators = []
        for split, pairs in self.config.files.pairs.items():
            # Streaming starts at once: it looks at a sample only.
            check_scenes(self.config.root(), pairs, whole=not dl_manager.is_streaming)
            shards = [pairs[start : start + ROWS_PER_SHARD] for start in range(0, len(pairs), ROWS_PER_SHARD)]
            generators.append(datasets.SplitGenerator(name=split, gen_kwargs={"shards": shards}))
        return generators

    def _generate_examples(self, shards: list[list[ScenePair]]) -> Iterator[tuple[Any, dict[str, Any]]]:
        root = self.config.root()
        for shard, pairs in enumerate(shards):
            for offset, pair in enumerate(pairs):
                semantic = {"bytes": ade20k_files.png_bytes(read_annotation(root, pair))}
                yield Key(shard, offset), {"image": f"{root}/{pair.image}", "semantic": semantic, "name": pair.image}
