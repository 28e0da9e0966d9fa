"""The checkpoints that ship with the repository: they load everywhere, are small, and look at the image."""

import numpy as np
import pytest
import torch
from datasets import load_dataset
from PIL import Image
from safetensors.torch import load_file
from transformers import AutoConfig, AutoImageProcessor, AutoModel, AutoModelForDepthEstimation, pipeline

from transformers_ait import (
    AiTDenseImageProcessor,
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTInstanceImageProcessor,
    AiTModel,
)
from transformers_ait.coco_annotations_ait import encode_masks
from transformers_ait.data import NYU40_CLASSES, SYNTHETIC_ROOMS_CLASSES, render_room
from transformers_ait.engine.tasks.dense_data import DenseRows
from transformers_ait.map_kinds_ait import MAP_KINDS
from transformers_ait.metrics import (
    MAP_METRICS,
    NYU_EVAL_CROP,
    coco_metrics,
    depth_metrics,
    normals_metrics,
    segmentation_metrics,
)

MEGABYTE = 1_000_000
FIRST_TEST_ROOM = 2_000_000_000


@pytest.fixture(scope="module")
def folder(repository):
    return repository / "hub_configs" / "ait-tiny-rooms-depth"


@pytest.fixture(scope="module")
def rooms():
    return [render_room(FIRST_TEST_ROOM + index, height=128, width=160) for index in range(12)]


def rmse(estimator, rooms):
    results = estimator([Image.fromarray(room.image) for room in rooms], batch_size=4)
    return np.mean(
        [depth_metrics(r["predicted_depth"], room.depth)["rmse"] for r, room in zip(results, rooms, strict=True)]
    )


@pytest.fixture(scope="module")
def instance_folder(repository):
    return repository / "hub_configs" / "ait-tiny-rooms-instance"


@pytest.fixture(scope="module")
def furnished():
    return [render_room(FIRST_TEST_ROOM + index, height=120, width=160) for index in range(16)]


@pytest.mark.parametrize(
    "name, limit",
    [("ait-tiny-rooms", 12), ("ait-tiny-rooms-depth", 12), ("ait-tiny-rooms-instance", 12), ("ait-lite-nyu", 20)],
)
def test_size(repository, name, limit):
    files = [path for path in (repository / "hub_configs" / name).rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) <= limit * MEGABYTE


def test_every_auto_class(folder):
    assert AutoConfig.from_pretrained(folder).tasks == ["depth"]
    assert isinstance(AutoModel.from_pretrained(folder), AiTModel)
    assert isinstance(AutoModelForDepthEstimation.from_pretrained(folder), AiTForDenseAndInstancePrediction)
    assert isinstance(AutoImageProcessor.from_pretrained(folder), AiTDepthImageProcessor)


def test_beats_half_of_a_constant(folder, rooms):
    estimator = pipeline("depth-estimation", model=str(folder))
    truth = np.concatenate([room.depth[room.depth > 0] for room in rooms])
    constant = np.mean([depth_metrics(np.full_like(r.depth, truth.mean()), r.depth)["rmse"] for r in rooms])
    assert rmse(estimator, rooms) <= constant / 2
    # Planted: the same model on rooms that belong to other truths must fail the same bound.
    shifted = [type(room)(**{**vars(room), "image": rooms[index - 1].image}) for index, room in enumerate(rooms)]
    assert rmse(estimator, shifted) > constant / 2


def test_soft_tokens_reach_the_prediction(folder, rooms):
    model = AutoModelForDepthEstimation.from_pretrained(folder).eval()
    processor = AutoImageProcessor.from_pretrained(folder)
    pixel_values = processor(Image.fromarray(rooms[0].image), return_tensors="pt")["pixel_values"]
    soft = model.generate(pixel_values).predicted_depth
    hard = model.generate(pixel_values, soft_feedback=False, soft_decode=False).predicted_depth
    assert not torch.allclose(soft, hard, atol=1e-2)


def mask_ap50(folder, images, rooms):
    """AP50 of the masks that a checkpoint finds in `images`, by the objects of `rooms`."""
    processor = AutoImageProcessor.from_pretrained(folder)
    model = AiTForDenseAndInstancePrediction.from_pretrained(folder).eval()
    outputs = model.generate(processor(images, return_tensors="pt")["pixel_values"], top_p=0)
    numbers = range(len(rooms))
    identity = {label: label for label in model.config.id2label}
    found = processor.post_process_coco(outputs, numbers, identity, [(120, 160)] * len(rooms))
    annotations = []
    for number, room in enumerate(rooms):
        for item in room.objects:
            mask = encode_masks(torch.from_numpy(room.instance_map == item.id)[None])[0]
            entry = {"id": len(annotations) + 1, "image_id": number, "iscrowd": 0, "segmentation": mask}
            category = model.config.label2id[item.category]
            annotations.append({**entry, "area": item.area, "category_id": category, "bbox": list(item.box)})
    categories = [{"id": label, "name": name} for label, name in model.config.id2label.items()]
    images = [{"id": number, "height": 120, "width": 160} for number in numbers]
    return coco_metrics(found, {"images": images, "annotations": annotations, "categories": categories})["AP50"]


def test_instance_auto_classes(instance_folder):
    config = AutoConfig.from_pretrained(instance_folder)
    assert config.tasks == ["instance"] and list(config.id2label.values()) == list(SYNTHETIC_ROOMS_CLASSES)
    assert isinstance(AutoImageProcessor.from_pretrained(instance_folder), AiTInstanceImageProcessor)


@pytest.mark.slow
def test_instances_are_found_where_they_are(instance_folder, furnished):
    images = [Image.fromarray(room.image) for room in furnished]
    assert mask_ap50(instance_folder, images, furnished) > 0.25
    # Planted: objects of other rooms must not pass.
    assert mask_ap50(instance_folder, images[1:] + images[:1], furnished) < 0.1


@pytest.mark.slow
def test_both_object_pipelines(instance_folder, furnished):
    image = Image.fromarray(furnished[0].image)
    names = {item.category for item in furnished[0].objects}
    segments = pipeline("image-segmentation", model=str(instance_folder))(image, threshold=0.5)
    boxes = pipeline("object-detection", model=str(instance_folder))(image, threshold=0.5)
    assert segments and {entry["label"] for entry in segments} & names
    assert boxes and {entry["label"] for entry in boxes} & names


# --- the checkpoint trained on photographs ---


@pytest.fixture(scope="module")
def photographs(repository):
    """Processor and model of photographs."""
    folder = repository / "hub_configs" / "ait-lite-nyu"
    return AutoImageProcessor.from_pretrained(folder), AutoModelForDepthEstimation.from_pretrained(folder).eval()


@pytest.fixture(scope="module")
def held_out(shared_dir):
    """Twelve frames of NYU Depth v2 that the checkpoint was not trained on, with their maps."""
    options = {"data_dir": str(shared_dir / "data" / "nyu_depth_v2"), "num_held_out": 145, "held_out_seed": 0}
    rows = load_dataset("nyu_depth_v2", split="validation", **options).select(range(0, 144, 12))
    return DenseRows(rows, {"depth": MAP_KINDS["depth"], "semantic": MAP_KINDS["classes"]})


def _cut(values):
    """NYU's evaluation region."""
    top, bottom, left, right = NYU_EVAL_CROP
    return values[..., top:bottom, left:right]


@pytest.mark.slow
def test_photographs_come_out_at_scale_and_with_their_classes(photographs, held_out):
    processor, model = photographs
    found = []
    for index in range(len(held_out)):
        with torch.no_grad():
            outputs = model(**processor(held_out.image(index), return_tensors="pt"))
        found += processor.post_process_dense(outputs, [(480, 640)])
    true = [held_out.maps(index) for index in range(len(held_out))]

    def figures(predicted, task, metric):
        pairs = zip(predicted, true, strict=True)
        measured = [MAP_METRICS[metric].measure(_cut(maps[task]), _cut(truth[task]), 39) for maps, truth in pairs]
        return MAP_METRICS[metric].combine(measured)

    median = torch.cat([truth["depth"][truth["depth"] > 0] for truth in true]).median()
    constant = [{"depth": torch.full((480, 640), median.item())}] * len(true)
    assert figures(found, "depth", "depth")["rmse"] < 0.8 < figures(constant, "depth", "depth")["rmse"]
    walls = [{"semantic": torch.zeros(480, 640, dtype=torch.long)}] * len(true)
    accuracy = figures(found, "semantic", "segmentation")["pixel_accuracy"]
    assert accuracy > 0.4 > figures(walls, "semantic", "segmentation")["pixel_accuracy"]
    # Planted: the maps of other photographs must fail the same bounds.
    others = found[1:] + found[:1]
    assert figures(others, "depth", "depth")["rmse"] > 0.8
    assert figures(others, "semantic", "segmentation")["pixel_accuracy"] < 0.4


@pytest.mark.slow
def test_photograph_model_gives_all_its_maps_in_one_parallel_pass(photographs, repository, monkeypatch):
    processor, model = photographs
    assert model.config.parallel and model.config.tasks == ["depth", "normals", "semantic"]
    passes, forward = [], type(model.model.decoder).forward
    monkeypatch.setattr(type(model.model.decoder), "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    outputs = model(**processor(Image.new("RGB", (320, 240), "grey"), return_tensors="pt"))
    maps = processor.post_process_dense(outputs, [(60, 80)])[0]
    assert len(passes) == 1 and {task: tuple(x.shape) for task, x in maps.items()} == {
        "depth": (60, 80),
        "normals": (3, 60, 80),
        "semantic": (60, 80),
    }
    stored = load_file(repository / "hub_configs" / "ait-lite-nyu" / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values() if tensor.is_floating_point()} == {torch.float16}


@pytest.mark.slow
def test_photograph_model_serves_both_pipelines(repository):
    folder, image = str(repository / "hub_configs" / "ait-lite-nyu"), Image.new("RGB", (320, 240), "grey")
    assert pipeline("depth-estimation", model=folder)(image)["predicted_depth"].shape == (240, 320)
    segments = pipeline("image-segmentation", model=folder, subtask="semantic")(image)
    assert {segment["label"] for segment in segments} <= set(NYU40_CLASSES)


@pytest.fixture(scope="module")
def every_task_folder(repository):
    return repository / "hub_configs" / "ait-tiny-rooms"


def dense_figures(folder, images, rooms):
    """Depth RMSE, mean angle and mIoU of one model, all from one pass."""
    processor = AiTDenseImageProcessor.from_pretrained(folder / "normals")
    model = AiTForDenseAndInstancePrediction.from_pretrained(folder).eval()
    outputs = model(processor(images, return_tensors="pt")["pixel_values"], task=["depth", "normals", "semantic"])
    maps = processor.post_process_dense(outputs, [(128, 160)] * len(rooms))
    depth = np.mean([depth_metrics(m["depth"], r.depth)["rmse"] for m, r in zip(maps, rooms, strict=True)])
    normals = torch.stack([torch.from_numpy(room.normals).permute(2, 0, 1) for room in rooms])
    semantic = torch.stack([torch.from_numpy(room.semantic).long() for room in rooms])
    angle = normals_metrics(torch.stack([m["normals"] for m in maps]), normals)["mean_angle"]
    found = segmentation_metrics(
        torch.stack([m["semantic"] for m in maps]), semantic, model.config.dense["semantic"].channels
    )
    return depth, angle, found["miou"]


@pytest.mark.slow
def test_one_set_of_weights_does_every_task(every_task_folder, rooms, furnished):
    images = [Image.fromarray(room.image) for room in rooms]
    depth, angle, miou = dense_figures(every_task_folder, images, rooms)
    assert depth < 0.75 and angle < 32 and miou > 0.35
    depth, angle, miou = dense_figures(every_task_folder, images[1:] + images[:1], rooms)
    assert depth > 0.75 and angle > 32 and miou < 0.35
    pictures = [Image.fromarray(room.image) for room in furnished]
    assert (
        mask_ap50(every_task_folder, pictures, furnished)
        > 0.2
        > mask_ap50(every_task_folder, pictures[::-1], furnished)
    )
