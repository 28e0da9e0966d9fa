"""Images, depth and other maps, and settings of the image processors."""

import functools
import io
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from transformers_ait import AiTDenseImageProcessor, AiTDepthImageProcessor, AiTInstanceImageProcessor
from transformers_ait.outputs_ait import AiTOutput

from .case import Case, Place
from .values import brief, damaged, nested, odd_value

SQUARE = {"height": 32, "width": 32}
MODES = (
    "1",
    "L",
    "P",
    "RGB",
    "RGBA",
    "CMYK",
    "YCbCr",
    "LAB",
    "HSV",
    "I",
    "F",
    "I;16",
    "I;16B",
    "LA",
    "La",
    "RGBa",
    "RGBX",
)
FORMATS = ("PNG", "JPEG", "TIFF", "BMP", "GIF", "WEBP", "PPM", "JPEG2000")
DTYPES = (
    *("uint8", "uint16", "uint32", "uint64", "int8", "int16", "int32", "int64", "float16", "float32", "float64"),
    *("bool", "complex64", "object", "U3", "S2", "datetime64[s]", "longdouble"),
)
TORCH_DTYPES = (
    *(torch.uint8, torch.int8, torch.int16, torch.int64, torch.float16, torch.bfloat16, torch.float32, torch.float64),
    *(torch.bool, torch.complex64, torch.uint16, torch.uint32, torch.float8_e4m3fn, torch.quint8),
)
SHAPES = (
    *((), (0,), (5,), (4, 6), (0, 6), (6, 0), (4, 6, 3), (3, 4, 6), (4, 6, 1), (1, 4, 6), (4, 6, 4), (2, 4, 6)),
    *((5, 5, 5), (2, 3, 4, 6), (2, 4, 6, 3), (0, 3, 4, 6), (1, 1, 1, 1, 1), (1, 1), (1, 900), (900, 1, 3), (3, 3, 3)),
    *((3, 0, 6), (1, 1, 3), (7, 3, 3), (40000, 1)),
)


@functools.cache
def processors() -> tuple[Any, ...]:
    """One of each class, for small squares."""
    return (
        AiTDenseImageProcessor(size=SQUARE),
        AiTDenseImageProcessor(size=SQUARE, num_windows=1, do_flip_augment=False, do_normalize=True),
        AiTDepthImageProcessor(size=SQUARE),
        AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SQUARE),
    )


def array(rng: random.Random, shape: tuple[int, ...], dtype: str | None = None) -> np.ndarray:
    """An array of any type, with what should not be in it now and then."""
    dtype = dtype or rng.choice(DTYPES)
    generator = np.random.default_rng(rng.getrandbits(32))
    values = generator.integers(0, 100, shape)
    if dtype in ("U3", "S2", "object", "datetime64[s]"):
        return values.astype(dtype)
    with np.errstate(all="ignore"):
        made = np.asarray(values * rng.choice((0, 1, 1, 1, 1e30, -1)))
        if np.dtype(dtype).kind in "fc" and made.size and rng.random() < 0.4:
            made = made.astype(np.float64)
            made.flat[rng.randrange(made.size)] = rng.choice((np.nan, np.inf, -np.inf, 1e300))
        return made.astype(dtype)


def tensor(rng: random.Random, shape: tuple[int, ...]) -> torch.Tensor:
    """A tensor of any type, on any device that holds nothing, in any layout."""
    dtype = rng.choice(TORCH_DTYPES)
    made = torch.randint(0, 2, shape, generator=torch.Generator().manual_seed(rng.getrandbits(32))).float()
    if dtype == torch.quint8:
        return torch.quantize_per_tensor(made, 1.0, 0, dtype)
    made = made.to(dtype)
    odd = rng.random()
    if odd < 0.08:
        return made.to("meta")
    if odd < 0.14 and dtype == torch.float32 and made.ndim:
        return made.to_sparse()
    if odd < 0.2 and dtype == torch.float32:
        return made.requires_grad_()
    return made


def picture(rng: random.Random) -> Image.Image:
    """A PIL image of any mode and small size, the odd one empty, long, or closed."""
    size = rng.choice(((6, 4), (1, 1), (40, 3), (1, 700), (33, 32), (0, 5), (5, 0), (64, 64)))
    made = Image.new(rng.choice(MODES), size)
    if rng.random() < 0.1:
        made.info["transparency"] = rng.choice((0, b"\0\1", (1, 2, 3), "x", 300))
    if rng.random() < 0.1:
        exif = made.getexif()
        exif[0x0112] = rng.choice((0, 3, 6, 9, 70000 % 65536))
        made.info["exif"] = exif.tobytes() if rng.random() < 0.5 else b"Exif\0\0broken"
    return made


@functools.cache
def encoded(form: str, mode: str) -> bytes:
    """A small picture as a file; the same for all cases."""
    generator = np.random.default_rng(3)
    values = generator.integers(0, 255, (48, 64, 3), dtype=np.uint8)
    made = Image.fromarray(values).convert(mode) if mode != "I;16" else Image.fromarray(values[..., 0] * np.uint16(257))
    buffer = io.BytesIO()
    made.save(buffer, form)
    return buffer.getvalue()


def bomb(rng: random.Random) -> tuple[str, bytes]:
    """The head of a picture that says it is enormous."""
    side = rng.choice((60_000, 200_000, 2**31 - 1))
    if rng.random() < 0.5:
        return f"PPM of {side} pixels each way", b"P6 %d %d 255\n" % (side, side) + bytes(100)
    content = bytearray(encoded("PNG", "RGB"))
    content[16:24] = side.to_bytes(4, "big") * 2
    import zlib

    content[29:33] = zlib.crc32(bytes(content[12:29])).to_bytes(4, "big")
    return f"PNG of {side} pixels each way", bytes(content)


def picture_file(rng: random.Random, folder: Path, damage: bool = True) -> tuple[str, Path]:
    """A file of a picture, damaged in most cases, and what it is."""
    form = rng.choice(FORMATS)
    mode = rng.choice(("RGB", "L", "RGBA", "I;16")) if form in ("PNG", "TIFF") else "RGB"
    suffix = rng.choice((".png", ".jpg", ".tif", "", ".é 雪.png", ".txt"))
    path = folder / f"image{suffix}"
    data = encoded(form, mode)
    what = f"{form} {mode}"
    if damage and rng.random() < 0.1:
        what, data = bomb(rng)
    elif damage:
        how, data = damaged(rng, data)
        what = f"{what} {how}"
    path.write_bytes(data)
    return what, path


def odd_image(rng: random.Random, place: Place) -> tuple[str, Any]:
    """Something in place of an image, or an odd one."""
    which = rng.randrange(9)
    if which == 0:
        value = odd_value(rng)
        return brief(value), value
    if which in (1, 2):
        made = array(rng, rng.choice(SHAPES))
        return f"array {made.dtype} {made.shape}", made
    if which == 3:
        made = tensor(rng, rng.choice(SHAPES))
        return f"tensor {made.dtype} {tuple(made.shape)} {made.device} {made.layout}", made
    if which == 4:
        made = picture(rng)
        return f"PIL {made.mode} {made.size} {brief(made.info)}", made
    if which in (5, 6):
        what, path = picture_file(rng, place.inputs)
        return what, rng.choice((str(path), path))
    if which == 7:
        what, path = picture_file(rng, place.inputs)
        try:
            opened = Image.open(path)
        except Exception:
            return f"bytes of {what}", path.read_bytes()
        if rng.random() < 0.2:
            opened.close()
            what += " closed"
        return f"opened {what}", opened
    path = rng.choice((place.inputs, place.inputs / "missing.png", Path("\0"), Path("x" * 3000), Path("/dev/null")))
    return f"path {brief(path.name)}", rng.choice((str(path), path))


def image_case(rng: random.Random, place: Place) -> Case:
    """One odd image, alone or beside others."""
    what, image = odd_image(rng, place)
    good = Image.new("RGB", (6, 4))
    how = rng.randrange(6)
    given = (image, image, [image], [good, image], [[good], [image]], nested(5, image))[how]
    processor = rng.choice(processors())
    settings = {"return_tensors": "pt"} if rng.random() < 0.6 else {}
    if rng.random() < 0.15:
        settings |= rng.choice(
            ({"do_rescale": False}, {"do_resize": False}, {"do_convert_rgb": False}, {"device": "meta"})
        )
    return Case(
        f"{type(processor).__name__} of form {how}: {what} {settings}",
        lambda: processor(given, **settings),
        ("image", "do_convert_rgb", "pixel_values", "device"),
    )


SETTINGS = {
    "size": (-1, 0, 32, 2**40, (4, 5), {"height": 32}, {"height": -1, "width": -1}, {"longest_edge": 0}, "32", 1.5),
    "resample": (-1, 99, "bilinear", 0, 1.5, True),
    "num_windows": (0, -1, 1.5, True, "2", 2**20, 10**30),
    "do_flip_augment": ("yes", 2, None, []),
    "map_kinds": (
        {},
        {"depth": "x"},
        {"instance": "depth"},
        ["depth"],
        {1: "depth"},
        {"depth": ["depth"]},
        {"a": None},
    ),
    "task": ("x", 1, [], "depth", ["depth"]),
    "window_blending": ("x", None, 1, ["smooth"]),
    "do_resize": (None, "x", 0, []),
    "do_rescale": (None, "x", 0),
    "rescale_factor": (0, "x", None, float("nan"), [1], -1, 1e400),
    "do_normalize": (True, "x", 1),
    "image_mean": (None, 0.5, [0.5], [0.1] * 4, "x", [0.1, None, 0.2], ["a", "b", "c"], [float("nan")] * 3),
    "image_std": (None, 0, [0.0] * 3, [0.1] * 2, "x", [0.1, -1, 0.2], {}),
    "do_pad": (True, "x", False),
    "pad_size": (None, 32, {"height": 0, "width": 5}, {"height": 8, "width": 8}, {"longest_edge": 5}, [8, 8], 2**40),
    "do_center_crop": (True, 1),
    "crop_size": (5, "x", {"height": -3}),
    "do_convert_rgb": (None, "x", 0),
    "return_tensors": ("x", "np", 5, "tf", True),
    "device": ("x", "cuda:99", 5, "meta", []),
    "data_format": ("x", "channels_last", 3, None),
    "input_data_format": ("x", "channels_last", "channels_first", 3),
    "disable_grouping": (5, "x"),
    "unknown_setting": (1, None),
}


def setting_case(rng: random.Random, place: Place) -> Case:
    """An odd setting of a processor, at construction, in a call, or in a stored file."""
    count = rng.choice((1, 1, 1, 2))
    names = rng.sample(sorted(SETTINGS), count)
    given = {name: rng.choice(SETTINGS[name]) if rng.random() < 0.7 else odd_value(rng) for name in names}
    kind = rng.choice((AiTDenseImageProcessor, AiTDepthImageProcessor, AiTInstanceImageProcessor))
    image = Image.new("RGB", (6, 4))
    small = (
        {"size": SQUARE}
        if kind is not AiTInstanceImageProcessor
        else {"size": {"longest_edge": 32}, "pad_size": SQUARE}
    )
    if rng.random() < 0.5:
        what, call = "built with", lambda: kind(**(small | given))(image)
    else:
        what, call = "called with", lambda: kind(**small)(image, **given)
    # Sizes and their padding speak of each other, as do the tasks and their kinds.
    related = {"size": ("pad_size",), "pad_size": ("size",), "task": ("map_kinds",), "map_kinds": ("task", "tasks")}
    also = tuple(extra for name in names for extra in related.get(name, ()))
    return Case(f"{kind.__name__} {what} {brief(given)}", call, (*names, *also))


def odd_map(rng: random.Random, place: Place, size: tuple[int, int]) -> tuple[str, Any]:
    """Something in place of a map of an image of this size, or an odd one."""
    if rng.random() < 0.35:
        return odd_image(rng, place)
    shape = rng.choice((size, size, size, (3, *size), (*size, 3), (1, *size), size[::-1], (2, *size)))
    if rng.random() < 0.3:
        made = tensor(rng, shape)
        return f"tensor {made.dtype} {tuple(made.shape)} {made.device}", made
    if rng.random() < 0.2:
        made = Image.new(rng.choice(MODES), size[::-1])
        return f"PIL {made.mode}", made
    made = array(rng, shape, rng.choice((None, "float32", "int64")))
    return f"array {made.dtype} {made.shape}", made


def map_case(rng: random.Random, place: Place) -> Case:
    """Odd depth, normals, classes or values as labels."""
    size = (rng.choice((1, 4, 32)), rng.choice((1, 6, 32)))
    image = Image.new("RGB", size[::-1])
    what, value = odd_map(rng, place, size)
    given = rng.choice((value, [value], (value,), nested(3, value), [value, value]))
    views = {} if rng.random() < 0.1 else {"num_windows": 1, "do_flip_augment": False}
    kind = rng.choice(("depth", "depth", "depth", "normals", "classes", "values"))
    if kind == "depth" and rng.random() < 0.7:
        processor = AiTDepthImageProcessor(size=SQUARE, **views)
        return Case(f"depth: {what} of {brief(given, 40)}", lambda: processor(image, given), ("depth_maps", "image"))
    processor = AiTDenseImageProcessor(size=SQUARE, map_kinds={"task": kind}, **views)
    maps = {"task": given} if rng.random() < 0.9 else rng.choice((given, {"other": given}, {}, [given], {1: given}))
    return Case(f"{kind}: {what} of {brief(given, 40)}", lambda: processor(image, maps), ("dense_maps", "map_kinds"))


def output_case(rng: random.Random, place: Place) -> Case:
    """Odd predictions and target sizes for what comes after the model."""
    dense = rng.random() < 0.5
    sizes = rng.choice(
        ([(6, 4)], [(6, 4), (5, 5)], torch.tensor([[6, 4]]), np.array([[6, 4]]), None, odd_value(rng), [odd_value(rng)])
    )
    if dense:
        shape = rng.choice(((1, 4, 8, 8), (1, 8, 8), (1, 3, 8, 8), (2, 4, 8, 8), (1, 4, 8, 7), (0, 4, 8, 8), (8, 8)))
        outputs: Any = AiTOutput(predicted_depth=torch.ones(shape) * rng.choice((1.0, float("nan"), float("inf"))))
        outputs = odd_value(rng) if rng.random() < 0.15 else outputs
        processor: Any = AiTDepthImageProcessor(size=SQUARE)
        names = ("predicted_depth", "target_sizes", "outputs")
        what = f"depth {shape if isinstance(outputs, AiTOutput) else brief(outputs)} to {brief(sizes)}"
        return Case(what, lambda: processor.post_process_depth_estimation(outputs, sizes), names)
    processor = AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SQUARE)
    boxes = rng.choice(
        (torch.rand(1, 3, 4), torch.rand(3, 4), torch.rand(1, 3, 5), torch.full((1, 3, 4), float("nan")), None)
    )
    masks = rng.choice((torch.rand(1, 3, 8, 8), torch.rand(1, 2, 8, 8), torch.rand(3, 8, 8), None))
    outputs = AiTOutput(
        boxes=boxes, scores=torch.rand(1, 3), class_labels=torch.zeros(1, 3, dtype=torch.long), mask_values=masks
    )
    threshold = rng.choice((0.5, 0, -1, float("nan"), 2, None, "x", 1e400))
    names = ("boxes", "mask", "target_sizes", "threshold", "outputs")
    shapes = [None if x is None else tuple(x.shape) for x in (boxes, masks)]
    what = f"objects {shapes} threshold {threshold!r} to {brief(sizes)}"
    form = rng.choice(("post_process_object_detection", "post_process_instance_segmentation"))
    return Case(
        f"{form} {what}", lambda: getattr(processor, form)(outputs, threshold=threshold, target_sizes=sizes), names
    )
