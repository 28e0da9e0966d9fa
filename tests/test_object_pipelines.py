"""Object checkpoints as folders: Auto classes, who decides the task, remote code, and the three pipelines."""

import importlib.util
import json
import os
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, pipeline
from transformers.models.auto import modeling_auto
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from transformers_ait import (
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTInstanceImageProcessor,
    save_with_code,
)

SIDE = 32


def small(**settings):
    sizes = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    return AiTInstanceImageProcessor(**(sizes | settings))


def photo(height, width):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


@pytest.fixture(params=["made up", "COCO"])
def photographs(request):
    """Four pictures of several sizes; COCO's where they are at hand."""
    if request.param == "made up":
        opened = [photo(*size) for size in ((48, 64), (70, 31), (32, 32), (9, 90))]
    else:
        folder = request.getfixturevalue("shared_dir") / "data" / "coco_small" / "images"
        opened = [Image.open(path) for path in sorted(folder.iterdir())[:4]]
    assert len({image.size for image in opened}) > 1, "sizes must be mixed"
    return opened


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
    assert all(torch.equal(output[name], expected[name]) for name in output if name != "dense_maps")
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


@pytest.mark.slow
def test_processor_with_code_needs_no_installation(joint_model, tmp_path):
    save_with_code(joint_model, tmp_path / "checkpoint", small())
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", ELSEWHERE, str(tmp_path / "checkpoint"), str(tmp_path / "inputs.pt")]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    loaded = torch.load(tmp_path / "inputs.pt")
    image = torch.arange(16 * 32 * 3).view(3, 16, 32).to(torch.uint8)
    assert torch.equal(loaded.pop("pixel_values"), small()(image, return_tensors="pt").pixel_values)
    assert loaded["boxes"].tolist() == [[8, 4, 16, 12]] and loaded["class_labels"].tolist() == [0]
    assert loaded["masks"][0, 4:12, 8:16].all() and loaded["masks"].sum() == 64


# Pipelines


@pytest.fixture
def folder(joint_model, tmp_path):
    """A joint checkpoint whose own image processor makes no choice."""
    joint_model.save_pretrained(tmp_path)
    small().save_pretrained(tmp_path)
    return str(tmp_path)


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


@pytest.mark.slow
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


@pytest.mark.slow
def test_joint_folder_serves_three_pipelines(joint_model, folder, photographs, no_messages, tmp_path):
    """Each answers as the model itself does for the task, single and batched, from one folder of weights."""
    proper_objects(joint_model).save_pretrained(folder)
    TASK_PROCESSORS["depth"]().save_pretrained(tmp_path / "depth")
    depth_processor = AutoImageProcessor.from_pretrained(folder, subfolder="depth")
    estimate = piped("depth-estimation", folder, image_processor=depth_processor)
    batched = estimate(photographs, batch_size=3)
    for image, together in zip(photographs, batched, strict=True):
        depth = estimate(image)["predicted_depth"]
        assert depth.shape == image.size[::-1] and torch.allclose(together["predicted_depth"], depth, atol=1e-4)
        by_hand = joint_model.generate(depth_processor(image, return_tensors="pt")["pixel_values"], task="depth")
        (expected,) = depth_processor.post_process_depth_estimation(by_hand, [image.size[::-1]])
        assert torch.allclose(depth, expected["predicted_depth"], atol=1e-4)
    for task, name in (("image-segmentation", "instance"), ("object-detection", "detection")):
        find = piped(task, folder, image_processor=TASK_PROCESSORS[name](), threshold=0.0)
        counts = [len(found) for found in find(photographs, batch_size=4)]
        assert counts == [len(find(image)) for image in photographs] and sum(counts) > 0


@pytest.mark.slow
@pytest.mark.parametrize("task", ["image-segmentation", "object-detection"])
def test_thresholds_pass_through_pipelines(joint_model, folder, photographs, no_messages, task):
    """At construction and at calls, where the call wins."""
    proper_objects(joint_model).save_pretrained(folder)
    image = photographs[0]
    find, settings = piped(task, folder, threshold=0.0), {}
    if task == "image-segmentation":
        settings = {"overlap_mask_area_threshold": 0.0}
    everything = find(image, **settings)
    scores = sorted(entry["score"] for entry in everything)
    assert len(set(scores)) > 1
    middle = (scores[0] + scores[-1]) / 2
    expected = [entry for entry in everything if entry["score"] >= middle]
    assert 0 < len(expected) < len(everything)
    strict = piped(task, folder, threshold=middle)
    for found in (find(image, threshold=middle, **settings), strict(image, **settings)):
        assert same(found, expected)
    assert same(strict(image, threshold=0.0, **settings), everything) and find(image, threshold=1.1) == []


@pytest.mark.slow
def test_mask_thresholds_pass_through_the_segmentation_pipeline(joint_model, folder, photographs, no_messages):
    proper_objects(joint_model).save_pretrained(folder)
    find = piped("image-segmentation", folder, threshold=0.0)

    def areas(**settings):
        found = [entry for entries in find(photographs, **settings) for entry in entries]
        return [int((np.asarray(entry["mask"]) > 0).sum()) for entry in found]

    low, high = (areas(mask_threshold=value, overlap_mask_area_threshold=0.0) for value in (0.1, 0.5))
    assert sum(low) > sum(high) > 0
    strict, lenient = (areas(overlap_mask_area_threshold=value) for value in (0.999, 0.0))
    assert 0 < len(strict) < len(lenient)


@pytest.mark.slow
def test_pipelines_open_files(joint_model, folder, photographs, no_messages, tmp_path):
    proper_objects(joint_model).save_pretrained(folder)
    paths = [str(tmp_path / f"{index}.png") for index in range(len(photographs))]
    for image, path in zip(photographs, paths, strict=True):
        image.save(path)
    find = piped("object-detection", folder, threshold=0.0)
    assert all(same(a, b) for a, b in zip(find(paths, batch_size=2), find(photographs), strict=True))


@pytest.mark.slow
def test_pictures_without_objects_give_nothing(folder, photographs, no_messages):
    """Random weights write inverted boxes: their objects are dropped, alone and in a batch."""
    for task in ("image-segmentation", "object-detection"):
        find = piped(task, folder, threshold=1.1)
        assert find(photographs[0]) == [] and find(photographs, batch_size=3) == [[]] * 4


@pytest.mark.slow
def test_demo_draws_the_objects_of_a_room(joint_model, folder, repository, capsys):
    specification = importlib.util.spec_from_file_location("demo", repository / "training" / "demo.py")
    demo = importlib.util.module_from_spec(specification)
    specification.loader.exec_module(demo)
    proper_objects(joint_model).save_pretrained(folder)
    frame = demo.render_room(demo.HELD_OUT_ROOM, height=120, width=160)
    picture = demo.instance_picture(demo.load("image-segmentation", folder), frame, 0.0)
    assert picture.width > picture.height > 500 and len(picture.getcolors(10**7)) > 1000
    printed = capsys.readouterr().out
    assert "preprocess" in printed and f"0 of {len(frame.objects)} true ones with mask IoU >= 0.5" in printed
    truth = [{"label": item.category, "mask": frame.instance_map == item.id} for item in frame.objects]
    demo.describe_objects(truth[1:], truth)
    assert f"{len(truth) - 1} predicted; {len(truth) - 1} of {len(truth)} true ones" in capsys.readouterr().out


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
