"""What the image processors of this family share: images to upright 8-bit RGB, maps to tensors, sizes of images."""

import contextlib
from collections.abc import Mapping, Sequence
from functools import partial
from numbers import Integral
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from transformers.image_processing_backends import TorchvisionBackend
from transformers.image_utils import ChannelDimension, ImageInput, SizeDict, load_image
from transformers.utils import logging

from .configuration_checks_ait import check_json
from .image_bands_ait import ArrayPicture, LargePicture, can_be_in_bands, resize_in_bands
from .image_settings_ait import check_settings
from .map_kinds_ait import IGNORED_CLASS, MapKind

logger = logging.get_logger(__name__)

SIXTEEN_BIT_MODES = ("I", "I;16", "I;16B", "I;16L", "I;16N")  # older Pillow opens 16-bit PNG as "I"
SIXTEEN_TO_EIGHT_BIT = 257.0  # 65535 / 255
PROCESSOR_FILE = "preprocessor_config.json"
UNMULTIPLIED = {"La": "LA", "RGBa": "RGBA"}  # Pillow converts no others of what is multiplied with its transparency
MAX_IMAGE_EDGE = 2**17  # pixels; twice what a JPEG can have
MILLIMETRES_PER_METRE = 1000.0
MIN_STORED_LENGTH = 0.5  # of an 8-bit normal; grey 127 or 128, which stands for no normal, is far shorter
# What a map of a kind may be, as a PIL image and as an array.
PIL_MAPS = {
    "depth": "16-bit millimetres or mode 'F' metres",
    "normals": "8-bit RGB, where a component is value / 127.5 - 1",
    "classes": "class ids in mode 'L', 'P', 'I;16' or 'I'",
    "values": "mode 'F', 'L', 'I;16' or 'I'",
}
ARRAY_MAPS = {
    "depth": "depth is floating-point metres; millimetres are `depth / 1000.0`",
    "normals": "normals are floating-point unit vectors",
    "classes": "classes are integer ids",
    "values": "values are numbers",
}

PIXEL_TYPES = ("bool", "uint8", "uint16", "int8", "int16", "int32", "int64", "float16", "float32", "float64")

TargetSizes = Sequence[tuple[int, int]] | Tensor | None


class AiTImageProcessorBase(TorchvisionBackend):
    """Takes PIL images in any mode, NumPy arrays, torch tensors, paths and URLs, alone, in lists or batches."""

    @classmethod
    def get_image_processor_dict(cls, pretrained_model_name_or_path: Any, **kwargs: Any) -> Any:
        """See `ImageProcessingMixin`.

        Raises:
            OSError: preprocessor_config.json cannot be read as a JSON object.
        """
        check_json(pretrained_model_name_or_path, kwargs, PROCESSOR_FILE)
        return super().get_image_processor_dict(pretrained_model_name_or_path, **kwargs)

    def _standardize_kwargs(self, *args: Any, **kwargs: Any) -> dict[str, Any]:
        check_settings(kwargs)
        return super()._standardize_kwargs(*args, **kwargs)

    def _prepare_images_structure(self, images: ImageInput, expected_ndims: int = 3) -> list[Any]:
        if isinstance(images, (list, tuple)):
            return [image for item in images for image in self._prepare_images_structure(item, expected_ndims)]
        if isinstance(images, (str, Path)):
            return [_open_image(images)]
        if isinstance(images, Image.Image):
            if 0 in images.size:
                raise ValueError(f"images must have pixels, got a PIL image of {images.width} x {images.height}.")
            return [images]
        if not isinstance(images, (np.ndarray, Tensor)):
            raise TypeError(
                "images must be PIL images, NumPy arrays, torch tensors, paths or URLs, or lists of them, "
                f"got {type(images).__name__}."
            )
        if images.ndim not in (2, 3, 4) or 0 in images.shape:
            raise ValueError(
                "images must be of shape (H, W), (H, W, C), (C, H, W) or a batch of the latter two, "
                f"got {tuple(images.shape)}."
            )
        _require_pixels(images)
        return list(images) if images.ndim == 4 else [images]

    def process_image(self, image: Any, *args: Any, do_rescale: bool | None = None, **kwargs: Any) -> Any:
        """Convert one image of any kind to (3, H, W) with pixels in 0..255; a large one to a `LargePicture`."""
        if isinstance(image, Image.Image):
            image, convert = _upright(image), partial(self._process_picture, *args, **kwargs)
            if isinstance(image, Image.Image) and _is_banded(image, kwargs):
                return LargePicture(image, convert)
            tensor = convert(image)
        else:
            image = _eight_bit(image)
            _require_channels(image, kwargs.get("input_data_format"))
            if _is_colour_last(image, kwargs.get("input_data_format")) and _is_banded(ArrayPicture(image), kwargs):
                settings = kwargs | {"input_data_format": ChannelDimension.LAST}
                return LargePicture(ArrayPicture(image), partial(super().process_image, *args, **settings))
            tensor = super().process_image(image, *args, **kwargs)
        if do_rescale and tensor.is_floating_point() and tensor.max() <= 1:
            logger.warning_once(
                "A floating-point image has no pixel above 1, but is divided by 255 as well: "
                "pass do_rescale=False for pixels in 0..1."
            )
        return tensor

    def _process_picture(self, image: Any, *args: Any, **kwargs: Any) -> Tensor:
        try:
            return super().process_image(image, *args, **kwargs)
        except Exception as error:  # Pillow raises anything for modes and palettes that it cannot convert
            mode = getattr(image, "mode", "16 bits")
            raise ValueError(
                f"images: a picture of mode {mode!r} is not converted ({error}); save it as RGB."
            ) from error

    def resize(  # type: ignore[override]
        self, image: Any, size: SizeDict, resample: Any = None, **kwargs: Any
    ) -> Tensor:
        """See `TorchvisionBackend`; a `LargePicture` becomes a tensor here."""
        resize = super().resize
        if not isinstance(image, LargePicture):
            return resize(image, size, resample, **kwargs)

        def of_tensor(tensor: Tensor, height: int, width: int) -> Tensor:
            return resize(tensor, SizeDict(height=height, width=width), resample, **kwargs)

        return resize_in_bands(image, size["height"], size["width"], of_tensor)

    def rescale_and_normalize(
        self, images: Tensor, do_rescale: bool, rescale_factor: float, do_normalize: bool, *statistics: Any
    ) -> Tensor:
        """See `TorchvisionBackend`; mean and standard deviation must have a value for all channels, or one for each."""
        for name, values in zip(("image_mean", "image_std"), statistics, strict=True):
            if do_normalize and isinstance(values, (list, tuple)) and len(values) not in (1, images.shape[-3]):
                raise ValueError(
                    f"{name} has {len(values)} values for images of {images.shape[-3]} channels; give one per channel, "
                    "or leave do_convert_rgb=True."
                )
        return super().rescale_and_normalize(images, do_rescale, rescale_factor, do_normalize, *statistics)

    def rescale(self, image: Tensor, scale: float, **kwargs: Any) -> Tensor:  # type: ignore[override]
        """Multiply by `scale`, as a division: x / 255 and x * (1 / 255) differ in the last bit of float32."""
        return image.to(torch.float32) / (1.0 / scale)


def _require_pixels(images: np.ndarray | Tensor) -> None:
    """Raise a TypeError for arrays of what are no pixels."""
    if isinstance(images, np.ndarray):
        if images.dtype.name not in PIXEL_TYPES:
            raise TypeError(f"images must be of one of the dtypes {', '.join(PIXEL_TYPES)}, got {images.dtype}.")
        return
    dtype = str(images.dtype).removeprefix("torch.")
    if dtype not in (*PIXEL_TYPES, "bfloat16") or images.is_meta or images.layout != torch.strided:
        raise TypeError(
            f"images must be dense tensors with content, of one of the dtypes {', '.join(PIXEL_TYPES)} or bfloat16, "
            f"got {dtype} on {images.device} in the layout {images.layout}."
        )


def _require_channels(image: np.ndarray | Tensor, data_format: Any) -> None:
    """Raise an error for an array (H, W, C) or (C, H, W) of another number of channels than pictures have."""
    if image.ndim == 2:
        return
    # Where both ends could be channels, transformers takes the first.
    is_first = data_format == "channels_first" or (data_format is None and image.shape[0] in (1, 3, 4))
    channels = image.shape[0 if is_first else -1]
    if image.ndim != 3 or channels not in (1, 3, 4):
        told = "" if data_format is None else f" (input_data_format is {str(data_format)!r})"
        raise ValueError(
            f"images must have 1, 3 or 4 channels, first or last{told}, got an array of shape {tuple(image.shape)}."
        )
    # Transparency is laid on white in floating-point numbers, which wider integers do not go through and back.
    if channels == 4 and "int" in str(image.dtype) and not str(image.dtype).endswith("uint8"):
        raise TypeError(f"images with transparency must be uint8, or floating-point in 0..1, got {image.dtype}.")


def native_map(value: Any, kind: MapKind, name: str) -> Tensor:
    """One map of any accepted type in its kind's native form, without the batch axis.

    Args:
        value: depth: float (H, W) metres, or PIL 16-bit millimetres or mode F metres. Normals: float (3, H, W) or
            (H, W, 3) unit vectors, or PIL 8-bit RGB, n = value / 127.5 - 1 made of length 1, invalid where shorter than
            0.5. Classes: integer (H, W) ids, or PIL of mode L, P, I;16 or I. Values: numbers (H, W) or (C, H, W), or
            PIL of mode F, L, I;16 or I.
        kind: what its values mean.
        name: what errors call it.

    Returns:
        (H, W) or (C, H, W), float32 or int64.

    Raises:
        OSError: a picture that cannot be decoded.
        TypeError: another type, mode or dtype.
        ValueError: another shape, or values that the kind cannot have.
    """
    if isinstance(value, Image.Image):
        try:
            value.load()
        except Exception as error:  # decoders raise anything on damaged files
            raise OSError(f"{name} is a picture that cannot be decoded ({error}); replace or remove it.") from error
        value = _array_of_map(value, kind.name, name)
    if not isinstance(value, (np.ndarray, Tensor)):
        raise TypeError(f"{name} must be a PIL image, NumPy array or torch tensor, got {type(value).__name__}.")
    tensor = _tensor_of_map(value, name)
    if tensor.is_floating_point() == kind.has_scores and kind.name != "values":
        raise TypeError(f"{name} has dtype {value.dtype}, but {ARRAY_MAPS[kind.name]}.")
    shape = tuple(tensor.shape)
    if kind.has_channels and kind.channels is None and tensor.ndim == 2:
        tensor = tensor[None]
    elif kind.has_channels and tensor.ndim == 3 and shape[0] != kind.channels == shape[2]:
        tensor = tensor.movedim(-1, 0)
    if tensor.ndim != 2 + kind.has_channels or (kind.has_channels and kind.channels not in (None, len(tensor))):
        form = f"({kind.channels or 'channels'}, height, width)" if kind.has_channels else "(height, width)"
        raise ValueError(f"{name} has shape {shape}, but a map of kind {kind.name!r} is {form}.")
    tensor = tensor.to(torch.int64 if kind.has_scores else torch.float32)
    # No class can have the id that marks invalid pixels; the model knows how many it has.
    channels = IGNORED_CLASS if kind.has_scores else kind.channels or len(tensor)
    kind.check(tensor[None], channels, name)
    return tensor


def native_maps(maps: Any, images: Sequence[Tensor], kind: MapKind, name: str) -> list[Tensor]:
    """One map, or a list or batch of maps, in native form on the devices of their images; see `native_map`.

    Args:
        maps: one map or as many as images.
        images: (3, H, W); their maps must have these sizes.
        kind: what the values mean.
        name: what errors call the maps.

    Raises:
        TypeError: as `native_map`, or no list.
        ValueError: as `native_map`, another number of maps than images, or another size.
    """
    is_array = isinstance(maps, (np.ndarray, Tensor))
    if isinstance(maps, Image.Image) or (is_array and maps.ndim <= 2 + kind.has_channels):
        maps = [maps]
    if not is_array and not isinstance(maps, (list, tuple)):
        raise TypeError(f"{name} must be one map or a list of maps, got {type(maps).__name__}.")
    if len(maps) != len(images):
        raise ValueError(f"{name} must hold one map per image, got {len(maps)} for {len(images)} images.")
    checked = []
    for index, (one, image) in enumerate(zip(maps, images, strict=True)):
        native = native_map(one, kind, f"{name}[{index}]")
        if native.shape[-2:] != image.shape[-2:]:
            raise ValueError(
                f"{name}[{index}] has shape {tuple(native.shape)}, but its upright image is {image.shape[-2]} x "
                f"{image.shape[-1]}; give the map at the image's size."
            )
        checked.append(native.to(image.device))
    return checked


def checked_target_sizes(target_sizes: TargetSizes, batch_size: int) -> list[tuple[int, int]] | None:
    """Target sizes as a list of (height, width), one for each image of the batch; None stays None.

    Raises:
        ValueError: another number of sizes than images, or a size that is no pair of whole pixels.
    """
    if target_sizes is None:
        return None
    if not isinstance(target_sizes, (Tensor, np.ndarray, list, tuple)):
        raise TypeError(f"target_sizes must be a list of (height, width), got {type(target_sizes).__name__}.")
    sizes: Any = target_sizes.tolist() if isinstance(target_sizes, (Tensor, np.ndarray)) else target_sizes
    sizes = sizes if isinstance(sizes, (list, tuple)) else [sizes]
    if len(sizes) != batch_size:
        raise ValueError(f"target_sizes must hold one (height, width) per image, got {len(sizes)} for {batch_size}.")
    checked = []
    for index, size in enumerate(sizes):
        pair = size.tolist() if isinstance(size, (Tensor, np.ndarray)) else size
        if not isinstance(pair, (list, tuple)) or len(pair) != 2 or not all(map(_is_edge, pair)):
            raise ValueError(f"target_sizes[{index}] must be (height, width) in whole pixels, got {size!r}.")
        checked.append((int(pair[0]), int(pair[1])))
    return checked


def _tensor_of_map(value: np.ndarray | Tensor, name: str) -> Tensor:
    """A map as a tensor that has values."""
    if isinstance(value, Tensor):
        if value.is_meta or value.is_quantized or value.is_complex() or value.layout != torch.strided:
            raise TypeError(f"{name} must be a dense tensor of numbers, got {value.dtype} on {value.device}.")
        return value
    try:
        return torch.as_tensor(np.ascontiguousarray(value))
    except TypeError as error:
        raise TypeError(f"{name} has dtype {value.dtype}, which holds no numbers that PyTorch knows.") from error


def _array_of_map(image: Image.Image, kind: str, name: str) -> np.ndarray:
    """Values of a map that is stored as an image; see `native_map`."""
    if kind == "depth" and image.mode in SIXTEEN_BIT_MODES:
        return np.array(image, dtype=np.float32) / MILLIMETRES_PER_METRE
    if kind == "classes" and image.mode in ("L", "P", *SIXTEEN_BIT_MODES):
        return np.array(image, dtype=np.int64)
    if kind == "normals" and image.mode == "RGB":
        vectors = np.array(image, dtype=np.float32) / 127.5 - 1
        length = np.linalg.norm(vectors, axis=-1, keepdims=True)
        return np.where(length < MIN_STORED_LENGTH, 0, vectors / np.maximum(length, MIN_STORED_LENGTH))
    if kind in ("depth", "values") and image.mode == "F":
        return np.array(image)
    if kind == "values" and image.mode in ("L", *SIXTEEN_BIT_MODES):
        return np.array(image, dtype=np.float32)
    raise TypeError(f"{name} is a PIL image of mode {image.mode!r}; use {PIL_MAPS[kind]}.")


def _is_edge(value: Any) -> bool:
    """Whether a value is a whole number of pixels that an image can have."""
    whole = isinstance(value, Integral) or (isinstance(value, float) and value.is_integer())
    return whole and not isinstance(value, bool) and 1 <= value <= MAX_IMAGE_EDGE


def _open_image(source: str | Path) -> Image.Image:
    if str(source).startswith(("http://", "https://")):
        return load_image(str(source))
    try:
        return Image.open(source)
    except (FileNotFoundError, IsADirectoryError, PermissionError, UnidentifiedImageError) as error:
        # Of the same type, which callers may tell apart.
        raise type(error)(f"images: {source} is no readable picture ({error}); give the path of one.") from error
    except Exception as error:  # decoders raise anything on damaged files, and refuse what would fill the memory
        raise OSError(f"images: {str(source)!r:.300} cannot be opened ({error}); replace or remove it.") from error


def _upright(image: Image.Image) -> Image.Image | np.ndarray | Tensor:
    """Decode, apply the EXIF orientation, and scale 16-bit grey to 8 bits, which Pillow's own conversion would clip."""
    try:
        image.load()
    except Exception as error:  # decoders raise anything on damaged files
        name = getattr(image, "filename", "") or "given as an open image"
        raise OSError(f"The image file {name} cannot be decoded ({error}); replace or remove it.") from error
    # What cannot be read says nothing of the orientation, and the picture is whole.
    with contextlib.suppress(Exception):
        if image.getexif().get(ExifTags.Base.Orientation, 1) != 1:  # else Pillow would copy it all the same
            image = ImageOps.exif_transpose(image)
    if image.mode in UNMULTIPLIED:
        image = image.convert(UNMULTIPLIED[image.mode])
    if image.mode in SIXTEEN_BIT_MODES:
        return _eight_bit(np.clip(np.array(image), 0, 65535).astype(np.uint16))
    return image


def _is_banded(image: Image.Image | ArrayPicture, kwargs: Mapping[str, Any]) -> bool:
    """Whether a picture is resized on the CPU, and in bands."""
    in_memory = kwargs.get("device") in (None, "cpu", torch.device("cpu"))
    return bool(kwargs.get("do_resize")) and in_memory and can_be_in_bands(image, kwargs.get("resample"))


def _is_colour_last(image: np.ndarray | Tensor, stated: Any) -> bool:
    """Whether an image is a uint8 array (H, W, 3)."""
    of_colours = isinstance(image, np.ndarray) and image.dtype == np.uint8 and image.ndim == 3 and image.shape[-1] == 3
    return of_colours and image.shape[0] > 3 and stated in (None, "channels_last", ChannelDimension.LAST)


def _eight_bit(image: np.ndarray | Tensor) -> np.ndarray | Tensor:
    """Scale 16-bit and boolean pixels to 0..255; others pass."""
    if isinstance(image, np.ndarray):
        if image.dtype == np.uint16:
            return np.round(image.astype(np.float32) / SIXTEEN_TO_EIGHT_BIT).astype(np.uint8)
        return image.astype(np.uint8) * np.uint8(255) if image.dtype == np.bool_ else image
    if image.dtype == torch.uint16:
        return (image.to(torch.float32) / SIXTEEN_TO_EIGHT_BIT).round().to(torch.uint8)
    return image.to(torch.uint8) * 255 if image.dtype == torch.bool else image
