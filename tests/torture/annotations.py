"""COCO and LVIS annotations: of one image, as files, and as the truth of metrics."""

import copy
import random
from typing import Any

import datasets
import numpy as np
import torch
from PIL import Image

from transformers_ait import AiTInstanceImageProcessor, contiguous_categories
from transformers_ait.data.coco_files import read_annotations
from transformers_ait.metrics import instances

from .case import Case, Place
from .pictures import SQUARE
from .values import as_json, brief, changed_structure, damaged, nested, number, odd_value

CATEGORIES = [{"id": 7, "name": "train"}, {"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}]
RLE = {"size": [24, 32], "counts": [100, 20, 648]}
KEYS = ("id", "image_id", "category_id", "bbox", "area", "iscrowd", "segmentation")


def annotation(rng: random.Random, number: int = 1) -> dict[str, Any]:
    """A good annotation of an image of 24 x 32."""
    x, y = rng.randint(0, 20), rng.randint(0, 12)
    width, height = rng.randint(1, 11), rng.randint(1, 11)
    polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
    return {
        "id": number,
        "image_id": 3,
        "category_id": rng.choice((1, 7, 90)),
        "bbox": [x, y, width, height],
        "area": width * height,
        "iscrowd": 0,
        "segmentation": rng.choice(([polygon], [list(map(float, polygon))], copy.deepcopy(RLE))),
    }


def odd_segmentation(rng: random.Random) -> Any:
    """Polygons and run lengths as broken files hold them."""
    far = rng.choice((1e9, -1e9, float("nan"), float("inf"), 10**400, 2**31))
    return rng.choice(
        (
            [[]],
            [[1, 2]],
            [[1, 2, 3, 4, 5]],
            [[1, 2, far, 4, 5, 6]],
            [[1, 2, 3, 4, "5", 6]],
            [1, 2, 3, 4, 5, 6],
            ["123456"],
            [[True] * 6],
            [[0] * 6] * 2000,
            nested(30, 1),
            {"size": [24, 32], "counts": "x"},
            {"size": [24, 32], "counts": "\u20ac"},
            {"size": [24, 32], "counts": b"\xff\xfe"},
            {"size": [24, 32], "counts": [-5, 10**12]},
            {"size": [24, 32], "counts": [768, 1]},
            {"size": [24, 32], "counts": [0.5, 767.5]},
            {"size": [24, 32], "counts": []},
            {"size": [24, 32], "counts": ""},
            {"size": [24, 32], "counts": "0" * 5000},
            {"size": [24, 32], "counts": None},
            {"size": [24, 32], "counts": {"a": 1}},
            {"size": [24, 32], "counts": 7},
            {"size": [2**20, 2**20], "counts": [2**40]},
            {"size": [32, 24], "counts": [768]},
            {"size": 24, "counts": [768]},
            {"size": ["24", "32"], "counts": [768]},
            {"counts": [768]},
            np.ones((24, 32)),
            np.ones((24, 32), dtype="U1"),
            np.ones((24, 32), dtype=object),
            np.ones((24, 32, 1), dtype=bool),
            torch.ones(24, 32),
            torch.ones(24, 32, dtype=torch.complex64),
            torch.ones(32, 24),
            torch.ones(24, 32, device="meta"),
        )
    )


def odd_box(rng: random.Random) -> Any:
    """A box as broken files hold it."""
    values = [rng.randint(0, 20), rng.randint(0, 12), 5, 5]
    values[rng.randrange(4)] = number(rng)
    return rng.choice(
        (
            values,
            values,
            [[1, 2, 3, 4]],
            [1, 2, 3],
            ["1", "2", "3", "4"],
            np.array(values, dtype=object),
            torch.tensor([1.0, 2, float("nan"), 4]),
            {"x": 1},
            None,
            [None] * 4,
            [1e308, 1e308, 1e308, 1e308],
        )
    )


def odd_annotation(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """An annotation with one or two entries wrong, and which."""
    entry = annotation(rng)
    said = []
    for key in rng.sample(KEYS, rng.choice((1, 1, 2))):
        if rng.random() < 0.12:
            del entry[key]
            said.append(f"no {key}")
            continue
        special = {"bbox": odd_box, "segmentation": odd_segmentation}.get(key)
        entry[key] = special(rng) if special and rng.random() < 0.7 else odd_value(rng)
        said.append(f"{key} {brief(entry[key], 60)}")
    return ", ".join(said), entry


def coco_case(rng: random.Random, place: Place) -> Case:
    """Odd annotations of an image, for the image processor."""
    processor = AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SQUARE)
    image = Image.new("RGB", (32, 24))
    categories: Any = contiguous_categories(CATEGORIES)
    what, odd = odd_annotation(rng)
    target: Any = {"image_id": 3, "annotations": [annotation(rng), odd]}
    which = rng.randrange(10)
    if which == 0:
        target = rng.choice(([], [target, target], [target, [target]], None, {"annotations": odd}, odd_value(rng)))
        what = brief(target)
    elif which == 1:
        target["image_id"] = odd_value(rng)
        what = f"image_id {brief(target['image_id'])}"
    elif which == 2:
        categories = rng.choice((None, {}, {"7": 0}, {7: -1}, {1: 0, 7: "x"}, {7: 2**70}, [1, 7, 90], odd_value(rng)))
        what = f"categories {brief(categories)}"
    elif which == 3:
        entries = rng.choice(([], [None], [[odd]], (odd,), {"a": odd}, "annotations", [odd] * 300))
        target["annotations"] = entries
        what = f"entries {type(entries).__name__}, {what}"
    masks = rng.choice((True, True, False))
    return Case(
        f"{'masks' if masks else 'boxes'}: {what}",
        lambda: processor(image, target, categories, return_segmentation_masks=masks, return_tensors="pt"),
        ("annotation", "category_to_index", "categor"),
    )


def category_case(rng: random.Random, place: Place) -> Case:
    """Odd categories."""
    what, _, categories = changed_structure(rng, CATEGORIES, odd_value)
    return Case(f"categories: {what}", lambda: contiguous_categories(categories), ("categor",))


def coco_content(rng: random.Random, lvis: bool) -> dict[str, Any]:
    """A good annotation file of two images."""
    images: list[dict[str, Any]] = [
        {"id": 3, "file_name": "a.png", "width": 32, "height": 24},
        {"id": 4, "file_name": "b.png", "width": 32, "height": 24},
    ]
    categories = copy.deepcopy(CATEGORIES)
    if lvis:
        for image in images:
            image["coco_url"] = f"http://images.cocodataset.org/val2017/{image.pop('file_name')}"
            image |= {"neg_category_ids": [7], "not_exhaustive_category_ids": [90]}
        for category in categories:
            category |= {"frequency": rng.choice("rcf"), "synset": "x.n.01", "image_count": 1}
    return {"images": images, "annotations": [annotation(rng, n) for n in range(3)], "categories": categories}


def write_pictures(folder: Any) -> None:
    """The pictures that `coco_content` speaks of."""
    folder.mkdir(parents=True)
    for name in ("a.png", "b.png"):
        Image.new("RGB", (32, 24)).save(folder / name)


def prepare(folder: Any) -> None:
    """Pictures for all cases, as they are in COCO's and in LVIS's layout."""
    write_pictures(folder / "coco")
    write_pictures(folder / "lvis" / "val2017")


def file_case(rng: random.Random, place: Place, lvis: bool) -> Case:
    """A broken annotation file, read alone or with its images."""
    content: Any = coco_content(rng, lvis)
    path = place.inputs / rng.choice(("annotations.json", "é 雪.json"))
    names: tuple[str, ...] = (path.name,)
    if rng.random() < 0.25:
        what, data = damaged(rng, as_json(content).encode())
    else:
        what, keys, content = changed_structure(rng, content)
        if rng.random() < 0.2:
            further, _, content = changed_structure(rng, content) if isinstance(content, dict) else ("", (), content)
            what = f"{what}; {further}"
        data = as_json(content).encode()
    path.write_bytes(data)
    if rng.random() < 0.6:
        return Case(f"read: {what}", lambda: read_annotations(str(path)), names)
    images = str(place.session / ("lvis" if lvis else "coco"))
    store = rng.choice((images, images, images, str(place.inputs), str(path), "missing", f"{images}.zip"))
    options = {
        "validation_annotations": str(path),
        "validation_images": store,
        "cache_dir": str(place.folder / "cache"),
    }
    options["skip_images_without_objects"] = rng.choice((False, True, True, "x"))

    def load() -> Any:
        rows = datasets.load_dataset("coco_instances", split="validation", **options)
        return [rows[index] for index in range(len(rows))]

    shown = {name: value for name, value in options.items() if name.startswith("skip")}
    names = (*names, "validation_images", "skip_images", "a.png", "b.png")
    return Case(f"load: {what}; images {brief(store[-12:])}; {shown}", load, names)


def truth_case(rng: random.Random, place: Place, lvis: bool) -> Case:
    """Odd truth or predictions, for the metrics."""
    content: Any = coco_content(rng, lvis)
    result = {"image_id": 3, "category_id": 7, "bbox": [1.0, 2, 3, 4], "score": 0.5, "segmentation": copy.deepcopy(RLE)}
    predictions: Any = [result, dict(result, score=0.25)]
    if rng.random() < 0.5:
        what, _, content = changed_structure(rng, content, odd_value)
        what = f"truth {what}"
    else:
        what, _, predictions = changed_structure(rng, predictions, odd_value)
        what = f"predictions {what}"
    form = rng.choice(("bbox", "bbox", "segm", "segm", "x", 5))
    measure = instances.lvis_metrics if lvis else instances.coco_metrics
    given = content
    if rng.random() < 0.2:
        given = place.inputs / "truth.json"
        given.write_bytes(
            damaged(rng, as_json(content).encode())[1] if rng.random() < 0.5 else as_json(content).encode()
        )
    ids = rng.choice((None, None, None, [3], [99], "x", 5, [None]))
    names = ("predictions", "ground_truth", "truth.json", "iou_type", "image_ids")
    return Case(f"{what}, {form}, images {ids}", lambda: measure(predictions, given, form, image_ids=ids), names)


def coco_or_categories(rng: random.Random, place: Place) -> Case:
    """Annotations of images, and their categories."""
    return category_case(rng, place) if rng.random() < 0.05 else coco_case(rng, place)


def coco_files(rng: random.Random, place: Place) -> Case:
    """COCO's files, and COCO's metrics."""
    return truth_case(rng, place, False) if rng.random() < 0.3 else file_case(rng, place, False)


def lvis_files(rng: random.Random, place: Place) -> Case:
    """LVIS's files, and LVIS's metrics."""
    return truth_case(rng, place, True) if rng.random() < 0.3 else file_case(rng, place, True)
