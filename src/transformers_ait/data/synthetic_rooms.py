"""`synthetic_rooms`: a `datasets` builder that renders furnished rooms instead of downloading pictures of them.

After `import transformers_ait.data`:

    rooms = datasets.load_dataset("synthetic_rooms", num_train=100, height=128, width=160)
    frame = transformers_ait.data.render_room(7)
"""

import io
from dataclasses import dataclass
from typing import Any

import datasets
import numpy as np
from PIL import Image

from . import (
    numbered_rows,
    rooms_casting,
    rooms_furniture,
    rooms_lighting,
    rooms_render,
    rooms_scene,
    rooms_sensor,
    rooms_textures,
)
from .numbered_rows import SPLIT_STRIDE, NumberedRowsBuilder
from .registration import source_hash
from .rooms_render import MAX_NUMBER, MAX_SIZE, MIN_SIZE, RoomFrame, render_room, require_integer
from .rooms_scene import SYNTHETIC_ROOMS_CLASSES, SYNTHETIC_ROOMS_SEMANTIC_CLASSES

JPEG_QUALITY = 95

CODE_HASH = source_hash(
    (
        *(numbered_rows, rooms_casting, rooms_furniture, rooms_lighting, rooms_render, rooms_scene, rooms_sensor),
        rooms_textures,
    )
)


@dataclass
class RoomsConfig(datasets.BuilderConfig):
    """What to render.

    Args:
        num_train: rooms in the train split; 0 leaves the split out. A larger number only appends rooms.
        num_validation: rooms in the validation split.
        num_test: rooms in the test split.
        height: rows of the pictures, 16 to 8192.
        width: columns of the pictures, 16 to 8192.
        holes: whether `depth` has a sensor's holes and noise.
        seed: seed of all rooms, 0 or more.

    Raises:
        TypeError: if an argument is of the wrong type.
        ValueError: if a number is out of range, or no split has a room.
    """

    num_train: int = 6000
    num_validation: int = 200
    num_test: int = 500
    height: int = 240
    width: int = 320
    holes: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("num_train", "num_validation", "num_test"):
            require_integer(name, getattr(self, name), 0, SPLIT_STRIDE)
        require_integer("height", self.height, MIN_SIZE, MAX_SIZE)
        require_integer("width", self.width, MIN_SIZE, MAX_SIZE)
        require_integer("seed", self.seed, 0, MAX_NUMBER)
        if not isinstance(self.holes, bool):
            raise TypeError(f"holes must be True or False, got {self.holes!r}")
        if not any(self.sizes().values()):
            raise ValueError("num_train, num_validation and num_test are all 0: ask for at least one room")

    def sizes(self) -> dict[str, int]:
        """Number of rooms by split name."""
        return {"train": self.num_train, "validation": self.num_validation, "test": self.num_test}


def _encode(pixels: np.ndarray, image_format: str = "PNG") -> dict[str, bytes]:
    """Image bytes as `datasets.Image` stores them."""
    buffer = io.BytesIO()
    options = {"quality": JPEG_QUALITY} if image_format == "JPEG" else {"compress_level": 1}
    Image.fromarray(pixels).save(buffer, image_format, **options)
    return {"bytes": buffer.getvalue()}


def _make_row(frame: RoomFrame) -> dict[str, Any]:
    """One row of the dataset."""
    boxes = [item.box for item in frame.objects]
    camera = frame.camera
    intrinsics = {name: float(np.float32(getattr(camera, name))) for name in ("fx", "fy", "cx", "cy")}
    return {
        "index": frame.index,
        "image": _encode(frame.image, "JPEG"),
        "depth": _encode(np.rint(frame.depth * 1000).astype(np.uint16)),
        "normals": _encode(np.rint((frame.normals + 1) * 127.5).astype(np.uint8)),
        "semantic": _encode(frame.semantic),
        "instance_map": _encode(frame.instance_map.astype(np.uint8)),
        "objects": {
            "id": [item.id for item in frame.objects],
            "category": [item.category for item in frame.objects],
            "bbox": [[x0, y0, x1 - x0, y1 - y0] for x0, y0, x1, y1 in boxes],
            "area": [item.area for item in frame.objects],
        },
        "camera": {**intrinsics, "pose": camera.pose.tolist()},
    }


class SyntheticRooms(NumberedRowsBuilder):
    """Rendered rooms with depth, instances, normals, semantic labels and camera; one row per room.

    Columns:
        index: argument of `render_room`, to be used with the config's seed and size.
        image: JPEG.
        depth: 16-bit PNG, millimetres along the optical axis, 0 = hole.
        normals: PNG; n = value / 127.5 - 1 in the camera frame.
        semantic: PNG, index in `SYNTHETIC_ROOMS_SEMANTIC_CLASSES`.
        instance_map: 8-bit PNG, 0 = background, else an entry of `objects.id`.
        objects: lists `id`, `category`, `bbox` (x, y, width, height in pixels) and `area` (pixels).
        camera: `fx`, `fy`, `cx`, `cy` in pixels and the 4 x 4 `pose`, with the axes of `RoomCamera`.
    """

    VERSION = datasets.Version("1.0.0")
    BUILDER_CONFIG_CLASS = RoomsConfig
    CODE_HASH = CODE_HASH
    ROWS_PER_SHARD = 50
    config: RoomsConfig

    def _info(self) -> datasets.DatasetInfo:
        number = datasets.Value("float32")
        objects = {
            "id": datasets.List(datasets.Value("int64")),
            "category": datasets.List(datasets.ClassLabel(names=list(SYNTHETIC_ROOMS_CLASSES))),
            "bbox": datasets.List(datasets.List(number, length=4)),
            "area": datasets.List(datasets.Value("int64")),
        }
        camera = dict.fromkeys(("fx", "fy", "cx", "cy"), number)
        pictures = {name: datasets.Image() for name in ("image", "depth", "normals", "semantic", "instance_map")}
        pose = datasets.List(datasets.List(number, length=4), length=4)
        return datasets.DatasetInfo(
            description=f"Rendered rooms. Semantic labels: {', '.join(SYNTHETIC_ROOMS_SEMANTIC_CLASSES)}.",
            features=datasets.Features(
                {"index": datasets.Value("int64"), **pictures, "objects": objects, "camera": {**camera, "pose": pose}}
            ),
        )

    def make_row(self, index: int) -> dict[str, Any]:
        """The rendered room of an index, with the config's settings."""
        size = {"height": self.config.height, "width": self.config.width}
        return _make_row(render_room(index, **size, seed=self.config.seed, holes=self.config.holes))
