"""Instance image processor: sizes and padding, COCO annotations and their faults, post-processing, files, pipelines."""

import json
import os
import subprocess
import sys
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from torchvision.transforms.v2 import functional as tvF
from transformers import AutoImageProcessor, DetrImageProcessor, pipeline
from transformers.models.auto import modeling_auto
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from transformers_ait import (
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTInstanceImageProcessor,
    contiguous_categories,
    save_with_code,
)
from transformers_ait.image_processing_ait_instance import fitted_size
from transformers_ait.mask_geometry_ait import paste_masks
from transformers_ait.metrics import coco_metrics

SIDE = 32
CATEGORIES = {1: 0, 7: 1, 90: 2}


def small(**settings):
    sizes = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    return AiTInstanceImageProcessor(**(sizes | settings))


def photo(height, width, seed=0):
    pixels = np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels)


@pytest.fixture
def coco(shared_dir):
    """COCO's annotations of fifty images, and their folder."""
    folder = shared_dir / "data" / "coco_small"
    return json.loads((folder / "instances.json").read_text()), folder / "images"


def targets_of(annotations, images):
    return [
        {"image_id": i["id"], "annotations": [a for a in annotations["annotations"] if a["image_id"] == i["id"]]}
        for i in images
    ]


# Images


@pytest.mark.parametrize(
    ("size", "expected"),
    [((480, 640), (480, 640)), ((640, 427), (640, 427)), ((168, 154), (640, 587)), ((1000, 333), (640, 213)),
     ((3, 5000), (1, 640)), ((1, 1), (640, 640))],
)  # fmt: skip
def test_fitted_size_keeps_aspect(size, expected):
    fitted = fitted_size(size, 640)
    assert (fitted.height, fitted.width) == expected
    assert fitted.scale == 640 / max(size)
    assert all(abs(side * fitted.scale - new) <= 0.5 or new == 1 for side, new in zip(size, expected, strict=True))


@pytest.mark.parametrize("size", [(480, 640), (640, 360), (101, 77)])
def test_pixels_equal_those_of_another_processor(size):
    """DETR's processor, told the size, resizes, normalises and pads the same way."""
    image, fitted = photo(*size), fitted_size(size, 640)
    reference = DetrImageProcessor(
        size={"height": fitted.height, "width": fitted.width}, pad_size={"height": 640, "width": 640}
    )
    ours = AiTInstanceImageProcessor()(image, return_tensors="pt")
    assert list(ours) == ["pixel_values"] and ours.pixel_values.shape == (1, 3, 640, 640)
    assert torch.allclose(ours.pixel_values, reference(image, return_tensors="pt").pixel_values, atol=1e-5)
    padding = ours.pixel_values.clone()
    padding[..., : fitted.height, : fitted.width] = 0
    assert (padding == 0).all(), "padding is zero after normalisation"
    assert (ours.pixel_values[..., : fitted.height, : fitted.width] != 0).any()


def test_kinds_of_images_agree():
    array = np.array(photo(20, 30))
    forms = [Image.fromarray(array), array, torch.tensor(array).permute(2, 0, 1), array[None]]
    expected, *others = [small()(form, return_tensors="pt").pixel_values for form in forms]
    assert all(torch.equal(expected, other) for other in others)
    grey = small()(Image.fromarray(array).convert("L"), return_tensors="pt").pixel_values
    assert grey.shape == (1, 3, SIDE, SIDE)


def test_exif_orientation_is_applied(tmp_path):
    image = photo(20, 30)
    exif = image.getexif()
    exif[0x0112] = 6  # turn by 90 degrees clockwise
    image.save(tmp_path / "turned.png", exif=exif)
    turned = small()(str(tmp_path / "turned.png"), return_tensors="pt").pixel_values
    assert torch.equal(turned, small()(image.rotate(-90, expand=True), return_tensors="pt").pixel_values)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"size": {"height": 32, "width": 32}}, "size must be of the form {'longest_edge': 640}"),
        ({"size": {"longest_edge": 0}}, "size must be"),
        ({"pad_size": {"longest_edge": 32}}, "pad_size"),
        ({"size": {"longest_edge": 33}}, "pad_size must hold images of size"),
        ({"task": "depth"}, r"task must be one of \['detection', 'instance'\] or None, got 'depth'"),
        ({"do_center_crop": True}, "do_center_crop is not supported"),
    ],
)
def test_bad_settings_are_refused_at_construction_and_at_calls(settings, message):
    with pytest.raises(ValueError, match=message):
        small(**settings)
    with pytest.raises(ValueError, match=message):
        small()(photo(8, 8), **settings)


def test_images_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(ValueError, match=r"images\[1\] is 33 x 8, larger than pad_size"):
        small(do_resize=False)([photo(8, 8), photo(33, 8)])
    with pytest.raises(ValueError, match="images is empty"):
        small()([])
    with pytest.raises(TypeError, match="images must be"):
        small()([{"pixels": 1}])
    (tmp_path / "cut.png").write_bytes(b"")
    with pytest.raises(OSError):
        small()(str(tmp_path / "cut.png"))


# Annotations


def square(annotation_id=5, **changes):
    """An annotation of a 16 x 32 image: columns 8..16, rows 4..12."""
    annotation = {
        "id": annotation_id,
        "category_id": 7,
        "bbox": [8.0, 4.0, 8.0, 8.0],
        "iscrowd": 0,
        "area": 64.0,
        "segmentation": [[8, 4, 16, 4, 16, 12, 8, 12]],
    }
    return annotation | changes


def labels_of(*annotations, processor=None, size=(16, 32), **kwargs):
    target = {"image_id": 3, "annotations": list(annotations)}
    inputs = (processor or small())(photo(*size), target, CATEGORIES, return_tensors="pt", **kwargs)
    assert inputs.pixel_values.shape[0] == len(inputs["instance_labels"]) == 1
    return inputs["instance_labels"][0]


def reference_mask():
    mask = np.zeros((16, 32), dtype=np.uint8)
    mask[4:12, 8:16] = 1
    return mask


def compressed(mask):
    return mask_tools.encode(np.asfortranarray(mask))


def runs(mask):
    """Uncompressed run lengths, column by column."""
    flat = mask.flatten(order="F")
    edges = np.flatnonzero(np.diff(np.concatenate(([0], flat, [2]))))
    return [int(x) for x in np.diff(np.concatenate(([0], edges)))]


def test_labels_of_one_object():
    label = labels_of(square())
    assert label["boxes"].tolist() == [[8, 4, 16, 12]] and label["boxes"].dtype == torch.float32
    assert label["class_labels"].tolist() == [1] and label["image_size"].tolist() == [16, 32]
    assert label["masks"].dtype == torch.bool and label["masks"].shape == (1, SIDE, SIDE)
    assert np.array_equal(label["masks"][0, :16].numpy(), reference_mask()) and not label["masks"][0, 16:].any()


def test_labels_are_scaled_with_the_image():
    big = square(bbox=[16.0, 8.0, 16.0, 16.0], segmentation=[[16, 8, 32, 8, 32, 24, 16, 24]])
    label = labels_of(big, size=(32, 64))
    once = labels_of(square())
    assert all(torch.equal(label[name], once[name]) for name in label)
    unresized = labels_of(square(), processor=small(do_resize=False, size={"longest_edge": 5}))
    assert all(torch.equal(unresized[name], once[name]) for name in once)


@pytest.mark.parametrize("form", ["bytes", "text", "runs", "array", "tensor", "split polygons"])
def test_forms_of_a_mask_agree(form):
    mask = reference_mask()
    rle = compressed(mask)
    segmentation = {
        "bytes": rle,
        "text": rle | {"counts": rle["counts"].decode()},
        "runs": {"size": [16, 32], "counts": runs(mask)},
        "array": mask,
        "tensor": torch.from_numpy(mask) * 7,
        "split polygons": [[8, 4, 12, 4, 12, 12, 8, 12], [12, 4, 16, 4, 16, 12, 12, 12], [1, 1, 2, 2]],
    }[form]
    expected = labels_of(square())["masks"]
    assert torch.equal(labels_of(square(segmentation=segmentation))["masks"], expected)
    moved = np.roll(mask, 1)
    assert not torch.equal(labels_of(square(segmentation=compressed(moved)))["masks"], expected)


def test_crowds_and_empty_annotations_are_skipped_with_one_warning():
    annotations = [
        square(),
        square(6, iscrowd=1, segmentation={"size": [16, 32], "counts": runs(reference_mask())}),
        square(7, iscrowd=1, category_id=12345),
        square(8, bbox=[3, 3, 0, 4]),
        square(9, segmentation=[[1, 1, 2, 2]]),
        square(10, segmentation=np.zeros((16, 32))),
    ]
    with CaptureLogger(logging.get_logger("transformers_ait.image_processing_ait_instance")) as capture:
        label = labels_of(*annotations)
    assert len(label["boxes"]) == len(label["masks"]) == len(label["class_labels"]) == 1
    assert capture.out.strip() == "Skipped annotations that hold no object to learn: 2 crowd and 3 without area."


def test_images_without_objects():
    label = labels_of()
    assert {name: tuple(value.shape) for name, value in label.items()} == {
        "boxes": (0, 4), "class_labels": (0,), "image_size": (2,), "masks": (0, SIDE, SIDE),
    }  # fmt: skip
    assert labels_of(square(), return_segmentation_masks=False).keys() == {"boxes", "class_labels", "image_size"}
    bare = {key: value for key, value in square().items() if key not in ("segmentation", "iscrowd", "id")}
    assert len(labels_of(bare, return_segmentation_masks=False)["boxes"]) == 1


def test_boxes_are_clipped_to_the_image():
    label = labels_of(square(bbox=[-3, 10, 10, 9]))
    assert label["boxes"].tolist() == [[0, 10, 7, 16]]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bbox": [32, 4, 5, 5]}, r"bbox \[32, 4, 5, 5\] .* outside its image of 16 x 32"),
        ({"bbox": [-9, 4, 9, 5]}, "outside its image"),
        ({"bbox": [1, 4, -5, 5]}, "negative size"),
        ({"bbox": [1, 4, float("nan"), 5]}, "four finite numbers"),
        ({"bbox": [1, 4, 5]}, "four finite numbers"),
        ({"bbox": None}, "needs a bbox"),
        ({"category_id": 2}, r"category_id 2, which category_to_index does not hold; it holds 3 ids: \[1, 7, 90\]"),
        ({"category_id": None}, "category_id None"),
        ({"segmentation": np.ones((32, 16))}, r"mask of size \(32, 16\), but its upright image is \(16, 32\)"),
        ({"segmentation": {"size": [32, 16], "counts": [512]}}, r"mask of size \(32, 16\)"),
        ({"segmentation": {"size": [16, 32], "counts": [600]}}, "does not decode"),
        ({"segmentation": {"size": [16, 32], "counts": [100, 20]}}, "ends before the mask of 16 x 32 does"),
        ({"segmentation": {"size": [16, 32], "counts": [-1, 513]}}, "does not decode"),
        ({"segmentation": {"size": [16, 32], "counts": "nonsense!"}}, "does not decode"),
        ({"segmentation": {"size": [16, 32], "counts": "\u20ac"}}, "does not decode"),
        ({"segmentation": {"size": [16, 32], "counts": ""}}, "ends before"),
        ({"segmentation": {"size": [16, 32], "counts": None}}, "does not decode"),
        ({"segmentation": {"counts": [512]}}, "without size or counts"),
        ({"segmentation": [[1, 1, 2, 2, 3, 3, 4]]}, "polygon that is no list x1, y1"),
        ({"segmentation": [[1, 1, 2, 2, 3, float("inf")]]}, "no numbers or far outside"),
        ({"segmentation": [[1, 1, 2, 2, 3, 1e9]]}, "far outside its image of 16 x 32"),
        ({"segmentation": [[1, 1, 2, 2, 3, "4"]]}, "no numbers"),
        ({"segmentation": [1, 2, 3, 4, 5, 6]}, "polygon that is no list"),
        ({"segmentation": []}, "needs a segmentation.*return_segmentation_masks=False"),
        ({"segmentation": None}, "needs a segmentation"),
        ({"segmentation": "abc"}, "needs a segmentation"),
    ],
)
def test_faulty_annotations_are_named(change, message):
    with pytest.raises(ValueError, match=f"^Annotation 5 of image 3 .*{message}"):
        labels_of(square(4), square(**change))


def test_a_cut_compressed_encoding_is_noticed():
    """pycocotools decodes it to whatever was in memory."""
    rle = compressed(reference_mask())
    with pytest.raises(ValueError, match="Annotation 5 of image 3 has a run-length encoding that ends before"):
        labels_of(square(segmentation=rle | {"counts": rle["counts"][:-2]}))
    with pytest.raises(ValueError, match="Annotation 5 of image 3 has a run-length encoding that does not decode"):
        labels_of(square(segmentation=rle | {"counts": rle["counts"] + b"55"}))


@pytest.mark.parametrize(
    ("annotations", "categories", "error", "message"),
    [
        ({"annotations": []}, None, ValueError, r"category_to_index is required.*contiguous_categories"),
        ([{"annotations": []}] * 2, CATEGORIES, ValueError, "got 2 for 1 images"),
        ([[square()]], CATEGORIES, TypeError, "annotations must be"),
        ({"labels": []}, CATEGORIES, TypeError, r"annotations\[0\] must be .* got the keys \['labels'\]"),
        ({"annotations": [1]}, CATEGORIES, TypeError, r"annotations\[0\] must be"),
        (7, CATEGORIES, TypeError, "got int"),
    ],
)
def test_other_annotations_are_refused(annotations, categories, error, message):
    with pytest.raises(error, match=message):
        small()(photo(16, 32), annotations, categories)


def test_categories_become_contiguous(coco):
    assert contiguous_categories([{"id": 90}, {"id": 1}, {"id": 7}]) == CATEGORIES
    mapping = contiguous_categories(coco[0]["categories"])
    assert sorted(mapping.values()) == list(range(80)) and mapping[1] == 0 and mapping[90] == 79
    with pytest.raises(ValueError, match=r"\[7\] occur more than once"):
        contiguous_categories([{"id": 7}, {"id": 7}])


def test_real_annotations_against_pycocotools(coco, tmp_path):
    annotations, folder = coco
    images = annotations["images"][:8]
    inputs = AiTInstanceImageProcessor()(
        [folder / image["file_name"] for image in images],
        targets_of(annotations, images),
        contiguous_categories(annotations["categories"]),
        return_tensors="pt",
    )
    (tmp_path / "truth.json").write_text(json.dumps(annotations))
    truth = COCO(tmp_path / "truth.json")
    ids = sorted(category["id"] for category in annotations["categories"])
    for image, label in zip(images, inputs["instance_labels"], strict=True):
        expected = truth.loadAnns(truth.getAnnIds(imgIds=image["id"], iscrowd=False))
        scale = 640 / max(image["height"], image["width"])
        assert [ids[index] for index in label["class_labels"]] == [a["category_id"] for a in expected]
        height, width = label["image_size"].tolist()
        for annotation, box, mask in zip(expected, label["boxes"], label["masks"], strict=True):
            x, y, w, h = annotation["bbox"]
            assert torch.allclose(box, torch.tensor([x, y, x + w, y + h]) * scale, atol=0.01)
            whole = torch.from_numpy(truth.annToMask(annotation))[None].float()
            resized = tvF.resize(whole, [height, width])[0] > 0.5
            assert (mask[:height, :width] ^ resized).sum() <= 0.06 * resized.sum() + 8
            assert not mask[height:].any() and not mask[:, width:].any()


# Post-processing


def outputs_of(boxes, scores, labels=None, masks=None):
    """Outputs of one image."""
    labels = torch.zeros(len(boxes), dtype=torch.long) if labels is None else torch.tensor(labels)
    masks = torch.ones(len(boxes), 8, 8) if masks is None else masks
    return SimpleNamespace(
        boxes=torch.tensor(boxes, dtype=torch.float32)[None],
        scores=torch.tensor(scores)[None],
        class_labels=labels[None],
        mask_values=masks[None],
    )


def test_boxes_go_back_to_the_images_pixels():
    outputs = outputs_of([[4, 2, 8, 6], [0, 0, 32, 16]], [0.7, 0.9], [2, 1])
    (found,) = small().post_process_object_detection(outputs, 0.5, torch.tensor([[50, 100]]))
    scale = 100 / SIDE
    assert found["boxes"].tolist() == [[0, 0, 100, 50], [4 * scale, 2 * scale, 8 * scale, 6 * scale]]
    assert found["labels"].tolist() == [1, 2] and found["scores"].tolist() == pytest.approx([0.9, 0.7])
    (input_pixels,) = small().post_process_object_detection(outputs, 0.8)
    assert input_pixels["boxes"].tolist() == [[0, 0, 32, 16]]


@pytest.mark.parametrize("size", [(480, 640), (640, 427), (168, 154), (1000, 333), (17, 700), (31, 33)])
def test_preprocessing_and_post_processing_are_inverse(size):
    """Labels taken for predictions come back as the annotations they were."""
    height, width = size
    box = [0.1 * width, 0.2 * height, 0.5 * width, 0.7 * height]
    annotation = square(bbox=box, segmentation=None)
    label = labels_of(annotation, processor=AiTInstanceImageProcessor(), size=size, return_segmentation_masks=False)
    outputs = outputs_of(label["boxes"].tolist(), [1.0])
    (found,) = AiTInstanceImageProcessor().post_process_object_detection(outputs, 0.5, [size])
    expected = [box[0], box[1], box[0] + box[2], box[1] + box[3]]
    assert found["boxes"][0].tolist() == pytest.approx(expected, abs=1e-3 * max(size) / 100)


BAD_BOXES = [[10, 10, 5, 12], [10, 10, 10, 12], [3, 17, 9, 30], [33, 2, 40, 9]]  # of a 16 x 32 image


def test_inverted_empty_and_outside_boxes_are_dropped():
    outputs = outputs_of([*BAD_BOXES, [20, 10, 40, 20]], [0.9] * 5, [0, 0, 0, 0, 2])
    (found,) = small().post_process_object_detection(outputs, 0.5, [(16, 32)])
    assert found["boxes"].tolist() == [[20, 10, 32, 16]] and found["labels"].tolist() == [2]
    (segmented,) = small().post_process_instance_segmentation(outputs, target_sizes=[(16, 32)])
    assert [segment["label_id"] for segment in segmented["segments_info"]] == [2]
    assert (segmented["segmentation"] == 0).sum() == 6 * 12
    exported = small().post_process_coco(outputs, [1], {7: 0, 9: 2}, [(16, 32)])
    assert [(entry["category_id"], entry["bbox"]) for entry in exported] == [(9, [20, 10, 12, 6])]


def test_nothing_found():
    for outputs in (outputs_of(BAD_BOXES, [0.9] * 4), outputs_of([[1, 1, 5, 5]], [0.1])):
        (segmented,) = small().post_process_instance_segmentation(outputs, target_sizes=[(16, 32)])
        assert segmented["segments_info"] == [] and (segmented["segmentation"] == -1).all()
        (binary,) = small().post_process_instance_segmentation(
            outputs, target_sizes=[(16, 32)], return_binary_maps=True
        )
        assert binary["segmentation"].shape == (0, 16, 32)
        (detected,) = small().post_process_object_detection(outputs, 0.5, [(16, 32)])
        assert detected["boxes"].shape == (0, 4)


def test_segmentation_map_gives_pixels_to_the_most_certain():
    outputs = outputs_of([[0, 0, 16, 16], [8, 0, 24, 16], [9, 1, 15, 15], [20, 0, 32, 16]], [0.6, 0.9, 0.8, 0.7], [0, 1, 2, 2])  # fmt: skip

    def segment(**kwargs):
        return small().post_process_instance_segmentation(outputs, target_sizes=[(16, 32)], **kwargs)[0]

    result = segment(overlap_mask_area_threshold=0.4)
    assert [(s["id"], s["label_id"], s["score"]) for s in result["segments_info"]] == [(0, 1, 0.9), (1, 2, 0.7), (2, 0, 0.6)]  # fmt: skip
    assert result["segmentation"].dtype == torch.int32
    row = result["segmentation"][5].tolist()
    assert row == [2] * 8 + [0] * 16 + [1] * 8
    assert [s["score"] for s in segment(overlap_mask_area_threshold=0.6)["segments_info"]] == [0.9, 0.7]
    assert [s["score"] for s in segment(overlap_mask_area_threshold=0.7)["segments_info"]] == [0.9]
    assert [s["score"] for s in segment(threshold=0.75)["segments_info"]] == [0.9]
    whole = segment(return_binary_maps=True)
    assert whole["segmentation"].sum((1, 2)).tolist() == [256, 84, 192, 256]
    encoded = segment(return_coco_annotation=True)
    assert encoded["segments_info"] == whole["segments_info"]
    decoded = mask_tools.decode(encoded["segmentation"])
    assert np.array_equal(decoded.transpose(2, 0, 1), whole["segmentation"].numpy())
    json.dumps(encoded)
    with pytest.raises(ValueError, match="exclude each other"):
        segment(return_binary_maps=True, return_coco_annotation=True)


def test_mask_threshold_is_that_of_the_mask_values():
    values = torch.linspace(0, 1, 16)[None, None].expand(1, 16, 16)
    outputs = outputs_of([[0, 0, 16, 16]], [0.9], masks=values)
    for threshold in (0.2, 0.5, 0.8):
        (result,) = small().post_process_instance_segmentation(
            outputs, mask_threshold=threshold, target_sizes=[(32, 32)]
        )
        assert torch.equal(result["segmentation"][0, :16] == 0, values[0, 0] >= threshold)
    with pytest.raises(ValueError, match="mask_threshold must be above 0"):
        small().post_process_instance_segmentation(outputs, mask_threshold=0)


def test_masks_are_pasted_at_the_unclipped_boxes(monkeypatch):
    values = torch.rand(5, 8, 8)
    boxes = [[4 + i, 2, 40, 20.0] for i in range(5)]
    expected = paste_masks(values, torch.tensor(boxes), 16, 32)
    outputs = outputs_of(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], masks=values)
    for budget in (1, 2 * 16 * 32, 10**9):
        monkeypatch.setattr("transformers_ait.image_processing_ait_instance.PASTE_BUDGET", budget)
        (result,) = small().post_process_instance_segmentation(
            outputs, target_sizes=[(16, 32)], return_binary_maps=True
        )
        assert torch.equal(result["segmentation"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": None}, "outputs.boxes must be .* got None"),
        ({"boxes": torch.zeros(3, 4)}, "outputs.boxes must be"),
        ({"mask_values": None}, "outputs.mask_values is None"),
    ],
)
def test_outputs_of_another_task_are_refused(change, message):
    outputs = SimpleNamespace(**(vars(outputs_of([[0, 0, 1, 1]], [0.5])) | change))
    with pytest.raises(ValueError, match=message):
        small().post_process_instance_segmentation(outputs)


def test_unfit_target_sizes_are_refused():
    outputs = outputs_of([[0, 0, 1, 1]], [0.5])
    with pytest.raises(ValueError, match="one .* per image, got 2 for 1"):
        small().post_process_object_detection(outputs, 0.5, [(8, 8), (8, 8)])
    with pytest.raises(ValueError, match=r"target_sizes\[0\] must be"):
        small().post_process_object_detection(outputs, 0.5, [(0, 8)])
    with pytest.raises(ValueError, match="image_ids must hold one id per image, got 2 for 1"):
        small().post_process_coco(outputs, [1, 2], CATEGORIES)
    with pytest.raises(ValueError, match=r"no category for the class indices \[0\]"):
        small().post_process_coco(outputs, [1], {7: 1})


def test_half_precision_outputs_give_float32():
    outputs = outputs_of([[4, 2, 8, 6]], [0.7])
    half = SimpleNamespace(**{n: v.bfloat16() if v.is_floating_point() else v for n, v in vars(outputs).items()})
    (found,) = small().post_process_object_detection(half, 0.5, [(16, 32)])
    assert found["boxes"].dtype == found["scores"].dtype == torch.float32
    small().post_process_instance_segmentation(half, target_sizes=[(16, 32)])


def test_export_of_the_truth_has_an_average_precision_of_one(coco):
    """Annotations through preprocessing, RoIAlign-free masks, pasting, export and pycocotools."""
    annotations, folder = coco
    images = [i for i in annotations["images"] if max(i["height"], i["width"]) == 640][:6]
    mapping = contiguous_categories(annotations["categories"])
    processor = AiTInstanceImageProcessor()
    inputs = processor([folder / i["file_name"] for i in images], targets_of(annotations, images), mapping)
    results = []
    for image, label in zip(images, inputs["instance_labels"], strict=True):
        whole = torch.tensor([[0.0, 0.0, 640.0, 640.0]]).expand(len(label["boxes"]), -1)
        outputs = SimpleNamespace(
            boxes=whole[None],
            scores=torch.ones(1, len(whole)),
            class_labels=label["class_labels"][None],
            mask_values=label["masks"][None].float(),
        )
        target = [(image["height"], image["width"])]
        masks = processor.post_process_coco(outputs, [image["id"]], mapping, target)
        outputs.boxes, outputs.mask_values = label["boxes"][None], None
        boxes = processor.post_process_coco(outputs, [image["id"]], mapping, target)
        assert all("segmentation" not in entry for entry in boxes)
        results += [mask | {"bbox": box["bbox"]} for mask, box in zip(masks, boxes, strict=True)]
    json.dumps(results)
    ids = [image["id"] for image in images]
    assert coco_metrics(results, annotations, "bbox", ids)["AP"] == pytest.approx(1)
    assert coco_metrics(results, annotations, "segm", ids)["AP"] == pytest.approx(1)
    results[0]["category_id"] = 90 if results[0]["category_id"] != 90 else 1
    assert coco_metrics(results, annotations, "segm", ids)["AP"] < 1


# Files, Auto classes, the task


@pytest.mark.parametrize(
    "processor",
    [small(task="detection", resample=3, image_mean=[0.1, 0.2, 0.3]), small(), AiTDepthImageProcessor(task="depth")],
    ids=["instance", "defaults", "depth"],
)
def test_each_processor_comes_back_as_itself(processor, tmp_path):
    processor.save_pretrained(tmp_path)
    loaded = AutoImageProcessor.from_pretrained(tmp_path)
    assert type(loaded) is type(processor) and loaded.to_dict() == processor.to_dict()
    assert loaded.task == processor.task
    inputs = [p(photo(20, 30), return_tensors="pt").pixel_values for p in (loaded, processor)]
    assert torch.equal(*inputs)


@pytest.mark.parametrize(
    ("folder", "task"),
    [("detection", None), ("instance", None), ("instance-hard", None), ("joint", None), ("joint/depth", "depth")],
)
def test_published_configurations(repository, folder, task):
    path = repository / "hub_configs" / f"ait-swinv2-base-{folder}"
    processor = AutoImageProcessor.from_pretrained(path)
    default = AiTDepthImageProcessor(task="depth") if task == "depth" else AiTInstanceImageProcessor()
    assert type(processor) is type(default) and processor.to_dict() == default.to_dict()
    written = json.loads((path / "preprocessor_config.json").read_text())
    assert written.keys() == json.loads(default.to_json_string()).keys()


@pytest.fixture
def joint_model(tiny_model, tiny_vqvae_config, tiny_decoder_config):
    """A lively model of all three tasks."""
    mask_tokenizer = tiny_vqvae_config(
        image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False
    )
    names = {0: "cup", 1: "dog", 2: "chair"}
    return tiny_model(
        tasks=("instance", "detection", "depth"),
        mask_tokenizer_config=mask_tokenizer,
        decoder_config=tiny_decoder_config(max_positions=48),
        num_objects=5,
        top_p=0,
        id2label=names,
        label2id={name: index for index, name in names.items()},
    )


TASK_PROCESSORS = {
    "instance": lambda: small(task="instance"),
    "detection": lambda: small(task="detection"),
    "depth": lambda: AiTDepthImageProcessor(size={"height": SIDE, "width": SIDE}, task="depth"),
}


@pytest.mark.parametrize("task", TASK_PROCESSORS)
@torch.no_grad()
def test_the_processor_decides_the_task(joint_model, task):
    inputs = TASK_PROCESSORS[task]()([photo(16, 32), photo(32, 20)], return_tensors="pt")
    assert inputs["task_ids"].shape == (2,)
    output = joint_model(**inputs)
    expected = joint_model(inputs["pixel_values"], task=task)
    assert output.keys() == expected.keys()
    assert all(torch.equal(output[name], expected[name]) for name in output)
    others = {"instance", "detection", "depth"} - {task}
    for other in others:
        with pytest.raises(ValueError, match="task_ids must all be one of .* agree with task"):
            joint_model(**inputs, task=other)


def test_unfit_task_ids_are_refused(joint_model, images):
    for ids in ([0, 0, 1], [7, 7, 7], []):
        with pytest.raises(ValueError, match="task_ids must all be one of"):
            joint_model(images, task_ids=torch.tensor(ids))


def test_tasks_that_a_checkpoint_lacks_are_refused(tiny_model, images):
    with pytest.raises(ValueError, match=r"task must be one of \['depth'\]"):
        tiny_model()(images, task_ids=torch.tensor([0, 0, 0]))
    with pytest.raises(ValueError, match="task must be 'depth' or None"):
        AiTDepthImageProcessor(task="instance")


# Runs where importing the package raises, as if it were not installed.
ELSEWHERE = """
import sys
import torch


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_ait":
            raise ModuleNotFoundError("transformers_ait is not installed here")


sys.meta_path.insert(0, Blocker())
from transformers import AutoImageProcessor

folder, target = sys.argv[1:]
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
mask = torch.zeros(16, 32)
mask[4:12, 8:16] = 1
annotation = {"id": 1, "category_id": 7, "bbox": [8, 4, 8, 8], "segmentation": mask}
image = torch.arange(16 * 32 * 3).view(3, 16, 32).to(torch.uint8)
inputs = processor(image, {"image_id": 1, "annotations": [annotation]}, {7: 0}, return_tensors="pt")
torch.save({"pixel_values": inputs["pixel_values"], **inputs["instance_labels"][0]}, target)
"""


def test_processor_with_code_needs_no_installation(joint_model, tmp_path):
    save_with_code(joint_model, tmp_path / "checkpoint", small())
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "checkpoint"), str(tmp_path / "inputs.pt")]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    loaded = torch.load(tmp_path / "inputs.pt")
    image = torch.arange(16 * 32 * 3).view(3, 16, 32).to(torch.uint8)
    assert torch.equal(loaded.pop("pixel_values"), small()(image, return_tensors="pt").pixel_values)
    expected = labels_of(square())
    assert loaded["boxes"].tolist() == expected["boxes"].tolist() and torch.equal(loaded["masks"], expected["masks"])


# Pipelines


@pytest.fixture
def folder(joint_model, tmp_path):
    """A joint checkpoint whose own image processor makes no choice."""
    joint_model.save_pretrained(tmp_path)
    small().save_pretrained(tmp_path)
    return str(tmp_path)


@pytest.fixture
def photographs(coco):
    annotations, images = coco
    opened = [Image.open(images / image["file_name"]) for image in annotations["images"][:4]]
    assert len({image.size for image in opened}) > 1, "sizes must be mixed"
    return opened


@pytest.fixture
def no_messages():
    """Fails the test when transformers logs a warning or an error."""
    with CaptureLogger(logging.get_logger("transformers")) as capture:
        yield
    assert capture.out == ""


def piped(task, folder, **kwargs):
    return pipeline(task, model=folder, device="cpu", **kwargs)


def same(first, second):
    """Whether results of pipelines hold the same objects."""
    assert len(first) == len(second)
    return all(
        a["label"] == b["label"]
        and a["score"] == pytest.approx(b["score"], abs=1e-4)
        and a.get("box") == b.get("box")
        and ("mask" not in a or np.mean(np.asarray(a["mask"]) != np.asarray(b["mask"])) < 1e-3)
        for a, b in zip(first, second, strict=True)
    )


def proper_objects(model):
    """Bias towards boxes that grow from upper left to lower right, which random weights rarely write."""
    embeddings, positions = model.model.decoder.token_embeddings, model.model.decoder.position_embeddings
    with torch.no_grad():
        for task, tokens in ((0, 5), (1, 9)):
            for index in range(5):
                for offset, bins in ((0, (1, 2)), (1, (0, 3)), (2, (7, 8)), (3, (6, 9))):
                    direction = embeddings[bins[index % 2]] - embeddings[:11].mean(0)
                    positions[task, index * tokens + offset] += 30 * direction / direction.norm()
    return model


@pytest.mark.parametrize(
    ("task", "chosen"),
    [
        ("image-segmentation", None),
        ("image-segmentation", "instance"),
        ("object-detection", None),
        ("object-detection", "instance"),
        ("object-detection", "detection"),
    ],
)
def test_object_pipelines_single_and_batched(joint_model, folder, photographs, no_messages, task, chosen):
    proper_objects(joint_model).save_pretrained(folder)
    find = piped(task, folder, image_processor=TASK_PROCESSORS[chosen]()) if chosen else piped(task, folder)
    assert type(find.model) is AiTForDenseAndInstancePrediction
    assert type(find.image_processor) is AiTInstanceImageProcessor
    single = [find(image, threshold=0.0) for image in photographs]
    assert sum(map(len, single)) > 0
    for batch_size in (1, 2, 3):
        batched = find(photographs, threshold=0.0, batch_size=batch_size)
        assert all(same(a, b) for a, b in zip(batched, single, strict=True))
    for image, found in zip(photographs, single, strict=True):
        for entry in found:
            assert entry["label"] in ("cup", "dog", "chair") and 0 <= entry["score"] <= 1
            if "mask" in entry:
                assert entry["mask"].size == image.size and set(np.unique(entry["mask"])) <= {0, 255}
            else:
                box = entry["box"]
                assert 0 <= box["xmin"] <= box["xmax"] <= image.width
                assert 0 <= box["ymin"] <= box["ymax"] <= image.height


def test_segmentation_pipeline_equals_processor_model_and_post_processing(joint_model, folder, photographs):
    proper_objects(joint_model).save_pretrained(folder)
    inputs = small()(photographs[0], return_tensors="pt")
    size = [photographs[0].size[::-1]]
    (by_hand,) = small().post_process_instance_segmentation(joint_model(**inputs), 0.0, target_sizes=size)
    found = piped("image-segmentation", folder)(photographs[0], threshold=0.0, overlap_mask_area_threshold=0.8)
    assert len(found) == len(by_hand["segments_info"]) > 0
    for entry, segment in zip(found, by_hand["segments_info"], strict=True):
        assert np.array_equal(np.asarray(entry["mask"]) > 0, by_hand["segmentation"].numpy() == segment["id"])
        assert entry["score"] == segment["score"]


def test_joint_folder_serves_three_pipelines(folder, photographs, no_messages, tmp_path):
    TASK_PROCESSORS["depth"]().save_pretrained(tmp_path / "depth")
    depth_processor = AutoImageProcessor.from_pretrained(folder, subfolder="depth")
    estimate = piped("depth-estimation", folder, image_processor=depth_processor)
    single = [estimate(image)["predicted_depth"] for image in photographs]
    for image, depth, batched in zip(photographs, single, estimate(photographs, batch_size=3), strict=True):
        assert depth.shape == image.size[::-1] and torch.allclose(batched["predicted_depth"], depth, atol=1e-4)
    assert all(isinstance(piped("image-segmentation", folder)(image), list) for image in photographs)
    assert all(isinstance(piped("object-detection", folder)(image), list) for image in photographs)


def test_pipelines_of_a_detection_checkpoint(tiny_model, photographs, no_messages, tmp_path):
    tiny_model(tasks=("detection",), num_objects=4, top_p=0).save_pretrained(tmp_path)
    small().save_pretrained(tmp_path)
    detect = piped("object-detection", str(tmp_path))
    assert detect.model.config.default_task == "detection"
    assert [len(detect(image, threshold=2.0)) for image in photographs] == [0] * 4
    batched = detect(photographs, threshold=0.0, batch_size=2)
    assert all(same(a, detect(b, threshold=0.0)) for a, b in zip(batched, photographs, strict=True))


def test_pipelines_in_bfloat16(folder, photographs, no_messages):
    for task in ("image-segmentation", "object-detection"):
        assert isinstance(piped(task, folder, dtype=torch.bfloat16)(photographs[0], threshold=0.0), list)


def test_without_the_entry_in_its_tables_transformers_would_complain(folder, monkeypatch):
    """Guards the private tables: the day that they are gone or obeyed, this fails."""
    for name in ("OBJECT_DETECTION", "INSTANCE_SEGMENTATION"):
        table = getattr(modeling_auto, f"MODEL_FOR_{name}_MAPPING_NAMES")
        assert table["ait"] == "AiTForDenseAndInstancePrediction"
        monkeypatch.delitem(table, "ait")
    for task in ("image-segmentation", "object-detection"):
        with CaptureLogger(logging.get_logger("transformers.pipelines.base")) as capture:
            piped(task, folder)
        assert "is not supported" in capture.out
