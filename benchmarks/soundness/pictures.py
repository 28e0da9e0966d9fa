"""Varied pictures: photographs cut and recoloured by seed, rendered rooms, and shapes and contents at the extremes."""

import importlib.util
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import datasets
import numpy as np
from PIL import Image, ImageEnhance

import transformers_ait.data  # noqa: F401 - registers synthetic_rooms

REPOSITORY = Path(__file__).resolve().parents[2]
SHARED = Path(os.environ.get("AIT_SHARED_DIR", REPOSITORY.parent / "shared")) / "data"
MEGAPIXELS_20 = (5472, 3648)  # width and height of a common camera
MODES = ("RGB", "RGB", "RGB", "RGB", "L", "RGBA", "P", "CMYK")
SHAPES = ((1, 1), (1, 500), (500, 1), (2, 3), (7, 5), (4000, 200), (200, 4000), (3000, 16), (33, 31), MEGAPIXELS_20)
CONTENTS = ("black", "white", "noise", "grey", "checkers", "ramp")


@dataclass(frozen=True)
class Picture:
    """A picture and where it comes from."""

    kind: str
    name: str
    image: Image.Image


def photo_files() -> list[Path]:
    """Photographs at hand: the shared data sets, without their maps, and scikit-image's samples."""
    words = ("depth", "label", "instance", "mask", "normal")
    found = [path for suffix in ("jpg", "png") for path in sorted(SHARED.rglob(f"*.{suffix}"))]
    photos = [path for path in found if not any(word in path.name.lower() for word in words)]
    spec = importlib.util.find_spec("skimage")
    if spec is not None and spec.origin is not None:
        photos += sorted((Path(spec.origin).parent / "data").glob("*.[jp][pn]g"))
    return photos


def varied_photo(path: Path, rng: np.random.Generator) -> Image.Image:
    """A photograph cut, turned, resized, darkened or brightened, and in another mode, by chance."""
    with Image.open(path) as opened:
        image = opened.convert("RGB")
    width, height = image.size
    sides = [max(1, int(side * rng.uniform(0.3, 1.0))) for side in (width, height)]
    left, top = int(rng.integers(0, width - sides[0] + 1)), int(rng.integers(0, height - sides[1] + 1))
    image = image.crop((left, top, left + sides[0], top + sides[1]))
    scale = float(np.exp(rng.uniform(np.log(0.1), np.log(2.0))))
    image = image.resize((max(1, int(sides[0] * scale)), max(1, int(sides[1] * scale))))
    if rng.random() < 0.2:
        image = image.transpose(Image.Transpose.ROTATE_90)
    if rng.random() < 0.3:
        image = ImageEnhance.Brightness(image).enhance(float(rng.uniform(0.05, 3.0)))
    return image.convert(MODES[int(rng.integers(len(MODES)))])


def extreme(number: int) -> tuple[str, Image.Image]:
    """A shape and content by number; all of them take turns."""
    (width, height), content = SHAPES[number % len(SHAPES)], CONTENTS[number // len(SHAPES) % len(CONTENTS)]
    rng = np.random.default_rng(number)
    shape = (height, width, 3)
    if content == "noise":
        pixels = rng.integers(0, 256, shape, dtype=np.uint8)
    elif content == "checkers":
        pixels = np.broadcast_to(np.indices(shape[:2]).sum(0)[..., None] % 2 * 255, shape).astype(np.uint8)
    elif content == "ramp":
        pixels = np.broadcast_to(np.linspace(0, 255, width, dtype=np.uint8)[None, :, None], shape)
    else:
        pixels = np.full(shape, {"black": 0, "white": 255, "grey": 127}[content], np.uint8)
    return f"{content} {width} x {height}", Image.fromarray(np.ascontiguousarray(pixels))


def pictures(count: int, seed: int, rooms: int | None = None) -> Iterator[Picture]:
    """Pictures of all kinds: a tenth rooms, about a twentieth extremes, the rest photographs.

    Args:
        count: how many.
        seed: of how they are varied.
        rooms: how many rooms; None is a tenth.

    Raises:
        FileNotFoundError: there are no photographs.
    """
    rooms = count // 10 if rooms is None else rooms
    extremes = min(len(SHAPES) * len(CONTENTS), count // 16)
    files = photo_files()
    if not files:
        raise FileNotFoundError(f"There are no photographs in {SHARED}; set AIT_SHARED_DIR to a folder with data.")
    if rooms:
        options = {"num_train": rooms, "num_validation": 1, "num_test": 0, "height": 120, "width": 160}
        for number, row in enumerate(datasets.load_dataset("synthetic_rooms", split="train", **options)):
            yield Picture("room", f"room {number}", row["image"])
    for number in range(extremes):
        # Steps that share no factor with the shapes, so that few of them show all.
        name, image = extreme(number * 7 % (len(SHAPES) * len(CONTENTS)))
        yield Picture("extreme", name, image)
    order = np.random.default_rng(seed).permutation(len(files))
    for number in range(count - rooms - extremes):
        path = files[int(order[number % len(files)])]
        yield Picture("photo", path.name, varied_photo(path, np.random.default_rng((seed, number))))
