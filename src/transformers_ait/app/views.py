"""HTML of results: pictures with what is read out of them, legends, lists of objects, the line of timings."""

import base64
import html
import io
import math
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..cli.predictor import FoundObjects, StageSeconds
from ..map_kinds_ait import MapKind
from ..visualization import colorize_map, draw_instances
from ..visualization_colors import (
    ClassNames,
    amounts,
    class_palette,
    color_map,
    names_by_id,
    native_array,
    normal_sphere,
    paint_amounts,
    valid_pixels,
)
from ..visualization_objects import object_color
from .read_out import ReadOut, map_read_out, object_read_out, sampled

DISPLAY_SIDE = 1024
"""Pixels along the longer side of pictures that are sent to the page."""
SMALLEST_DRAWING = 640
"""Objects of smaller photographs are drawn enlarged, so that contours and labels stay sharp."""
MAX_CLASSES = 14
BAR_STOPS = 17


def map_view(
    values: Tensor, kind: MapKind, class_names: ClassNames | None, limits: tuple[float, float] | None = None
) -> str:
    """A map in colours with its read-out, and below it what the colours mean.

    Args:
        values: native map, see `colorize_map`.
        kind: of the map.
        class_names: of the ids.
        limits: values of the first and the last colour, of depth and values; None is the map's own range.
    """
    array = native_array(values, kind, kind.name)
    small = torch.from_numpy(np.ascontiguousarray(sampled(array, DISPLAY_SIDE)))
    if kind.colors != "sequential":
        limits = None
    elif limits is None:
        limits = value_range(values, kind)
    low, high = limits or (None, None)
    picture = Image.fromarray(colorize_map(small, kind, class_names, low, high))
    view = picture_view(picture, map_read_out(values, kind, class_names), lossless=kind.colors == "categories")
    if kind.colors == "categories":
        return view + class_legend(array, kind, class_names)
    return view + (sphere_legend() if limits is None else color_bar(limits, kind))


def value_range(values: Tensor, kind: MapKind) -> tuple[float, float]:
    """Least and largest value of a map with sequential colours, or (0, 1) where it has none."""
    array = native_array(values, kind, kind.name)
    shown = amounts(array)[valid_pixels(array, kind)]
    return (float(shown.min()), float(shown.max())) if shown.size else (0.0, 1.0)


def objects_view(photo: Image.Image, found: FoundObjects) -> str:
    """Objects over the photograph with their read-out, and below it a list of them."""
    names = [f"{label} {score:.2f}" for label, score in zip(found.labels, found.scores, strict=True)]
    read_out = object_read_out(found.masks, found.boxes, names, (photo.height, photo.width))
    shrink = min(1.0, DISPLAY_SIDE / max(photo.size))
    scale = max(1, math.ceil(SMALLEST_DRAWING / max(photo.size)))
    size = max(1, round(photo.width * shrink)), max(1, round(photo.height * shrink))
    masks = None if found.masks is None else sampled(found.masks.numpy(), DISPLAY_SIDE)
    boxes = None if found.boxes is None else found.boxes * shrink
    drawn = draw_instances(photo.resize(size), found.labels, found.scores, masks, boxes, scale=scale)
    return picture_view(drawn, read_out) + object_list(found)


def picture_view(picture: Image.Image, read_out: ReadOut, lossless: bool = False) -> str:
    """A picture that shows values under the pointer; the page's script and style sheet do the rest."""
    height, width = read_out.size
    buffer = io.BytesIO()
    picture.save(buffer, "WEBP", lossless=lossless, quality=90, method=2)
    source = f"data:image/webp;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<div class="ait-view" style="--shape:{width / height:.5f}" {read_out.attributes()}>'
        f'<img src="{source}" alt="result" draggable="false"><div class="ait-tip" role="status"></div></div>'
    )


def color_bar(limits: tuple[float, float], kind: MapKind) -> str:
    """The colours between two values, as a bar with ticks."""
    shares = np.linspace(0, 1, BAR_STOPS)
    stops = paint_amounts(shares[None], np.ones((1, BAR_STOPS), bool), (0.0, 1.0), color_map(kind))[0]
    gradient = ", ".join(_css(color) for color in stops)
    unit = " m" if kind.metric == "depth" else ""
    ticks = [f"{limits[0] + share * (limits[1] - limits[0]):.2f}{unit}" for share in (0, 0.25, 0.5, 0.75, 1)]
    labels = "".join(f"<span>{tick}</span>" for tick in ticks)
    bar = f'<div class="ait-bar" style="background:linear-gradient(90deg, {gradient})"></div>'
    return f'<div class="ait-scale">{bar}<div class="ait-ticks">{labels}</div></div>'


def class_legend(array: np.ndarray, kind: MapKind, class_names: ClassNames | None) -> str:
    """The classes of a map (H, W), the largest first, with their colours and shares of the picture."""
    ids, counts = np.unique(array[valid_pixels(array, kind)], return_counts=True)
    order = np.argsort(-counts, kind="stable")
    palette, names = class_palette(class_names), names_by_id(class_names)
    chips = [
        _chip(
            palette[ids[x] % len(palette)], names.get(int(ids[x]), f"class {ids[x]}"), _percent(counts[x] / array.size)
        )
        for x in order[:MAX_CLASSES]
    ]
    rest = len(order) - MAX_CLASSES
    return _chips([*chips, f'<span class="ait-more">and {rest} more</span>'] if rest > 0 else chips)


def object_list(found: FoundObjects) -> str:
    """The objects with the colours they are drawn in, the most certain first."""
    chips = [
        _chip(object_color(index), label, f"{score:.2f}")
        for index, (label, score) in enumerate(zip(found.labels, found.scores, strict=True))
    ]
    count = f"{len(chips)} object{'' if len(chips) == 1 else 's'}"
    hint = "" if chips else " with so high a score; move the slider to the left to see less certain ones"
    return f'<div class="ait-count"><b>{count}</b>{hint}</div>{_chips(chips) if chips else ""}'


def sphere_legend() -> str:
    """What the colours of normals mean, on a ball."""
    buffer = io.BytesIO()
    Image.fromarray(normal_sphere(112)).save(buffer, "PNG")
    source = f"data:image/png;base64,{base64.b64encode(buffer.getvalue()).decode()}"
    return (
        f'<div class="ait-sphere"><img src="{source}" alt="colours of directions on a ball"><span>The colour says '
        "where a surface faces, as on this ball: lilac towards the camera, green upwards, purple downwards, reddish to "
        "the right, turquoise to the left.</span></div>"
    )


def status_line(
    size: tuple[int, int], original: tuple[int, int], seconds: StageSeconds, checkpoint: str, device: str
) -> str:
    """Picture, checkpoint and timings.

    Args:
        size: (width, height) that the model saw.
        original: of the upload.
        seconds: of the stages.
        checkpoint: its label.
        device: where the model ran.
    """
    smaller = f" (from {original[0]} × {original[1]})" if size != original else ""
    parts = [
        ("", f"{size[0]} × {size[1]}{smaller}"),
        ("", f"{checkpoint} on {device}"),
        ("preparing", duration(seconds.processor)),
        ("model", duration(seconds.model)),
        ("post-processing", duration(seconds.post_processing)),
    ]
    cells = "".join(f"<span>{f'<i>{name}</i> ' if name else ''}{html.escape(value)}</span>" for name, value in parts)
    return f'<div class="ait-status">{cells}</div>'


def message(text: str, is_error: bool = False) -> str:
    """A line of text in place of the timings."""
    return f'<div class="ait-status{" ait-error" if is_error else ""}"><span>{html.escape(text)}</span></div>'


def duration(seconds: float) -> str:
    """Seconds as a person reads them."""
    return f"{seconds * 1000:.0f} ms" if seconds < 1 else f"{seconds:.1f} s"


def _chip(color: Sequence[int] | np.ndarray, name: str, detail: str) -> str:
    swatch = f'<i style="background:{_css(color)}"></i>'
    return f'<span class="ait-chip">{swatch}{html.escape(name)}<small>{detail}</small></span>'


def _chips(chips: Sequence[str]) -> str:
    return f'<div class="ait-chips">{"".join(chips)}</div>'


def _css(color: Sequence[int] | np.ndarray) -> str:
    return "#" + "".join(f"{int(x):02x}" for x in color)


def _percent(share: float) -> str:
    return f"{share:.0%}" if share >= 0.01 else "&lt;1%"
