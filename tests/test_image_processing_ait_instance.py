"""Instance image processor: sizes and padding, COCO annotations and their faults, post-processing, files, pipelines."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from pycocotools import mask as mask_tools
from pycocotools.coco import COCO
from torchvision.transforms.v2 import functional as tvF
from transformers import DetrImageProcessor
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from transformers_ait import AiTInstanceImageProcessor, contiguous_categories
from transformers_ait.instance_annotations_ait import fitted_size
from transformers_ait.mask_geometry_ait import paste_masks
from transformers_ait.metrics import coco_metrics

SIDE = 32
CATEGORIES = {1: 0, 7: 1, 90: 2}


def small(**changes):
    sizes = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    return AiTInstanceImageProcessor(**(sizes | changes))


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


SKIPPED = {
    "crowd": square(6, iscrowd=1, segmentation={"size": [16, 32], "counts": runs(reference_mask())}),
    "crowd of an unknown category": square(7, iscrowd=1, category_id=12345),
    "crowd that does not decode": square(8, iscrowd=1, segmentation={"size": [16, 32], "counts": "nonsense!"}),
    "box without height": square(9, bbox=[3, 3, 4, 0.0], segmentation=[[3, 3, 7, 3, 5, 3]]),
    "box without area, no mask": square(10, bbox=[3, 3, 0, 4], segmentation=[]),
    "box without area, outside": square(11, bbox=[99, 99, 0, 0]),
    "polygon of two corners": square(12, segmentation=[[1, 1, 2, 2]]),
    "polygon within a pixel": square(13, bbox=[3.1, 3.1, 0.2, 0.2], segmentation=[[3.1, 3.1, 3.3, 3.1, 3.2, 3.3]]),
    "empty array": square(14, segmentation=np.zeros((16, 32))),
}


def read_images(*targets, **kwargs):
    """Labels of a batch of 16 x 32 images, and what was logged."""
    images = [photo(16, 32, seed) for seed in range(len(targets))]
    with CaptureLogger(logging.get_logger("transformers_ait.instance_annotations_ait")) as capture:
        inputs = small()(images, list(targets), CATEGORIES, return_tensors="pt", **kwargs)
    assert len(inputs["pixel_values"]) == len(inputs["instance_labels"]) == len(targets)
    return inputs["instance_labels"], capture.out.strip()


@pytest.mark.parametrize("case", SKIPPED)
def test_annotations_that_coco_has_without_object_are_skipped(case):
    """Alone, beside an object, and in a batch: the image stays, its other objects stay, one warning counts."""
    skipped, kind = SKIPPED[case], "crowd" if SKIPPED[case]["iscrowd"] else "without area"
    message = "Skipped annotations that hold no object to learn: {} " + kind + "."
    (alone,), logged = read_images({"image_id": 3, "annotations": [skipped]})
    assert alone["boxes"].shape == (0, 4) and alone["masks"].shape == (0, SIDE, SIDE)
    assert logged == message.format(1)
    (beside,), logged = read_images({"image_id": 3, "annotations": [skipped, square()]})
    expected = labels_of(square())
    assert all(torch.equal(beside[name], expected[name]) for name in expected) and logged == message.format(1)
    batch = [{"image_id": 3 + i, "annotations": [square()] * i + [skipped]} for i in range(3)]
    labels, logged = read_images(*batch)
    assert [len(label["boxes"]) for label in labels] == [0, 1, 2] and logged == message.format(3)


def test_one_warning_counts_what_a_batch_skips():
    first = {"image_id": 3, "annotations": [square(), *SKIPPED.values()]}
    labels, logged = read_images(first, first | {"image_id": 4}, {"image_id": 5, "annotations": []})
    assert [label["annotation_ids"].tolist() for label in labels] == [[5], [5], []]
    assert logged == "Skipped annotations that hold no object to learn: 6 crowd and 12 without area."
    assert read_images({"image_id": 3, "annotations": [square()]})[1] == "", "counts do not outlive a call"


def test_boxes_alone_do_not_need_a_mask_with_pixels():
    target = {"image_id": 3, "annotations": [SKIPPED["empty array"]]}
    assert len(read_images(target, return_segmentation_masks=False)[0][0]["boxes"]) == 1


@pytest.mark.slow
def test_coco_s_own_crowds_are_counted(coco):
    annotations, folder = coco
    targets = targets_of(annotations, annotations["images"])
    crowds = sum(annotation["iscrowd"] for annotation in annotations["annotations"])
    mapping = contiguous_categories(annotations["categories"])
    with CaptureLogger(logging.get_logger("transformers_ait.instance_annotations_ait")) as capture:
        labels = small()([folder / i["file_name"] for i in annotations["images"]], targets, mapping)["instance_labels"]
    assert crowds == 7 and sum(len(label["boxes"]) for label in labels) == len(annotations["annotations"]) - crowds
    assert min(len(label["boxes"]) for label in labels) == 0, "an image without objects is among them"
    assert capture.out.strip().endswith(": 7 crowd.")


def test_objects_carry_their_ids():
    label = labels_of(square(17), square(4))
    assert label["image_id"].item() == 3 and label["annotation_ids"].tolist() == [17, 4]
    assert all("annotation_ids" not in labels_of(square(unusual)) for unusual in ("a17", None, 2**70))


def test_images_without_objects():
    label = labels_of()
    assert {name: tuple(value.shape) for name, value in label.items()} == {
        "boxes": (0, 4), "class_labels": (0,), "image_size": (2,), "masks": (0, SIDE, SIDE), "image_id": (),
        "annotation_ids": (0,),
    }  # fmt: skip
    assert labels_of(square(), return_segmentation_masks=False).keys() == label.keys() - {"masks"}
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
        ({"bbox": ["1", 4, 5, 5]}, "four finite numbers"),
        ({"bbox": [[1, 4, 5, 5]] * 4}, "four finite numbers"),
        ({"bbox": torch.zeros(4, 2)}, "four finite numbers"),
        ({"bbox": [1, 4, 5, 10**400]}, "four finite numbers"),
        ({"iscrowd": "0"}, "iscrowd '0'; it must be 0 or 1"),
        ({"iscrowd": float("nan")}, "iscrowd nan"),
        ({"category_id": 2}, r"category_id 2, which category_to_index does not hold; it holds 3 ids: \[1, 7, 90\]"),
        ({"category_id": None}, "category_id None"),
        ({"category_id": "7"}, "category_id '7'"),
        ({"category_id": [7]}, r"category_id \[7\]"),
        ({"segmentation": np.full((16, 32), "a")}, "mask of dtype <U1; make it boolean"),
        ({"segmentation": torch.ones(16, 32).cfloat()}, "mask of dtype torch.complex64"),
        ({"segmentation": torch.ones(1, 16, 32)}, r"mask of size \(1, 16, 32\)"),
        ({"segmentation": {"size": 512, "counts": [512]}}, "mask of size 512"),
        ({"segmentation": {"size": None, "counts": [512]}}, "mask of size None"),
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
    """In one image, and in the middle of a batch, whatever was skipped or read before."""
    with pytest.raises(ValueError, match=f"^Annotation 5 of image 3 .*{message}"):
        labels_of(square(4), square(**change))
    sound = {"annotations": [square(4), SKIPPED["crowd"]]}
    faulty = {"image_id": 3, "annotations": [square(4), square(**change), square(6)]}
    with pytest.raises(ValueError, match=f"^Annotation 5 of image 3 .*{message}"):
        read_images({"image_id": 1, **sound}, faulty, {"image_id": 2, **sound})


JUNK = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.binary(max_size=5),
    lambda inner: st.lists(inner, max_size=6) | st.fixed_dictionaries({"size": inner, "counts": inner})
    | st.fixed_dictionaries({"size": st.just([16, 32]), "counts": inner | st.lists(st.integers())}),
    max_leaves=12,
)  # fmt: skip


@pytest.mark.slow
@settings(max_examples=150, deadline=None)
@given(st.sampled_from(["bbox", "segmentation", "category_id", "iscrowd", "id"]), JUNK)
def test_nothing_but_named_errors_comes_of_junk(field, junk):
    annotation = square(**{field: junk})
    try:
        label = labels_of(annotation)
    except ValueError as error:
        assert str(error).startswith(f"Annotation {annotation['id']} of image 3 ")
    else:
        assert len(label["boxes"]) <= 1 and label["boxes"].isfinite().all()


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
        ({"annotations": []}, [{"id": 7}], ValueError, "category_to_index is required"),
        ([{"annotations": []}] * 2, CATEGORIES, ValueError, "got 2 for 1 images"),
        ([[square()]], CATEGORIES, TypeError, "annotations must be"),
        ({"labels": []}, CATEGORIES, TypeError, r"annotations\[0\] must be .* got the keys \['labels'\]"),
        ({"annotations": [1]}, CATEGORIES, TypeError, r"annotations\[0\] must be"),
        (7, CATEGORIES, TypeError, "got int"),
        ({None: [], "x": 1}, CATEGORIES, TypeError, r"annotations\[0\] must be"),
        ({"annotations": []}, {7: "x"}, ValueError, r"category_to_index must map .* got {7: 'x'}"),
        ({"annotations": []}, {7: -1}, ValueError, "category_to_index must map"),
        ({"annotations": [square(category_id=(1, [2]))]}, CATEGORIES, ValueError, r"has category_id \(1, \[2\]\)"),
        ({"annotations": [square(segmentation=torch.ones(16, 32, device="meta"))]}, CATEGORIES, ValueError, "on meta"),
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
    for odd in (5, [5], [{"name": "x"}], [{"id": "7"}], ["x"]):
        with pytest.raises(TypeError, match=r"categories(\[0\])? must be"):
            contiguous_categories(odd)


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
    boxes = [[0, 0, 16, 16], [8, 0, 24, 16], [9, 1, 15, 15], [20, 0, 32, 16]]
    outputs = outputs_of(boxes, [0.6, 0.9, 0.8, 0.7], [0, 1, 2, 2])

    def segment(**kwargs):
        return small().post_process_instance_segmentation(outputs, target_sizes=[(16, 32)], **kwargs)[0]

    result = segment(overlap_mask_area_threshold=0.4)
    segments = [(s["id"], s["label_id"], s["score"]) for s in result["segments_info"]]
    assert segments == [(0, 1, 0.9), (1, 2, 0.7), (2, 0, 0.6)]
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


def test_masks_are_pasted_at_the_unclipped_boxes():
    values = torch.rand(5, 8, 8)
    boxes = [[4 + i, 2, 40, 20.0] for i in range(5)]
    expected = paste_masks(values, torch.tensor(boxes), 16, 32)
    outputs = outputs_of(boxes, [0.9, 0.8, 0.7, 0.6, 0.5], masks=values)
    (result,) = small().post_process_instance_segmentation(outputs, target_sizes=[(16, 32)], return_binary_maps=True)
    assert torch.equal(result["segmentation"], expected)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"boxes": None}, "outputs.boxes must be .* got None"),
        ({"boxes": torch.zeros(3, 4)}, "outputs.boxes must be"),
        ({"mask_values": None}, "outputs.mask_values is None"),
        ({"boxes": torch.zeros(1, 1, 5)}, r"outputs.boxes must be \(B, N, 4\), .* got shape \(1, 1, 5\)"),
        ({"scores": torch.zeros(1, 2)}, r"outputs.scores must be \(B, N\), of the 1 objects of 1 images"),
        ({"class_labels": None}, r"outputs.class_labels must be \(B, N\), .* got None"),
        ({"mask_values": torch.zeros(1, 2, 8, 8)}, r"outputs.mask_values must be \(B, N, h, w\)"),
        (
            {"mask_values": torch.zeros(3, 8, 8)},
            r"outputs.mask_values must be \(B, N, h, w\), .* got shape \(3, 8, 8\)",
        ),
    ],
)
def test_outputs_of_another_task_are_refused(change, message):
    outputs = SimpleNamespace(**(vars(outputs_of([[0, 0, 1, 1]], [0.5])) | change))
    with pytest.raises(ValueError, match=message):
        small().post_process_instance_segmentation(outputs)


def test_unfit_target_sizes_are_refused():
    outputs = outputs_of([[0, 0, 1, 1]], [0.5])
    for threshold in ("x", None, []):
        with pytest.raises(TypeError, match="threshold must be a number, the least score of an object"):
            small().post_process_object_detection(outputs, threshold)
    with pytest.raises(ValueError, match="mask_threshold must be above 0"):
        small().post_process_instance_segmentation(outputs, mask_threshold="x")
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


@pytest.mark.slow
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
