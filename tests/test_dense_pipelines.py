"""Pipelines, Auto classes and remote code of models that predict several maps."""

import os
import subprocess
import sys
from collections.abc import Mapping

import numpy as np
import pytest
import torch
from dense_map_cases import NUM_CLASSES, SIDE, expected_maps, maps_of, perfect_outputs, photo, scene, small
from PIL import Image
from torchvision.transforms.v2 import functional as tvF
from transformers import (
    AutoImageProcessor,
    AutoModelForSemanticSegmentation,
    AutoModelForUniversalSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    pipeline,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import ModelOutput, logging

from transformers_ait import AiTDenseImageProcessor, AiTForDenseAndInstancePrediction, save_with_code


class Maps(Mapping):
    """Predicted maps as pipelines take them apart: an integer gives one image's."""

    def __init__(self, maps):
        self.maps = maps

    def __getitem__(self, key):
        return Maps({t: m[key : key + 1] for t, m in self.maps.items()}) if isinstance(key, int) else self.maps[key]

    def __iter__(self):
        return iter(self.maps)

    def __len__(self):
        return len(self.maps)


class PerfectModel(PreTrainedModel):
    """A model that predicts by colour alone; see `perfect_outputs`."""

    config_class = PreTrainedConfig
    main_input_name = "pixel_values"

    def __init__(self, config):
        super().__init__(config)
        self.unused = torch.nn.Parameter(torch.zeros(1))
        self.post_init()

    def forward(self, pixel_values):
        maps = perfect_outputs(pixel_values, pixel_values.shape[1] // 2)
        return ModelOutput(sequences=torch.zeros(len(pixel_values), 1), dense_maps=Maps(maps))


SIZES = [(SIDE, 40), (40, SIDE), (SIDE, SIDE), (48, 30)]


@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_depth_pipeline(batch_size):
    pipe = pipeline("depth-estimation", model=PerfectModel(PreTrainedConfig()), image_processor=small(), device="cpu")
    images = [scene(*size) for size in SIZES]
    results = pipe([tvF.to_pil_image(image) for image in images], batch_size=batch_size)
    for image, size, result in zip(images, SIZES, results, strict=True):
        assert tuple(result["predicted_depth"].shape) == size
        if SIDE in size:
            torch.testing.assert_close(result["predicted_depth"], expected_maps(image)["depth"], atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("subtask", ["semantic", None])
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_segmentation_pipeline(subtask, batch_size):
    model = PerfectModel(PreTrainedConfig(id2label={i: f"class {i}" for i in range(NUM_CLASSES)}))
    pipe = pipeline("image-segmentation", model=model, image_processor=small(), device="cpu", subtask=subtask)
    images = [scene(*size) for size in SIZES[:3]]
    results = pipe([tvF.to_pil_image(image) for image in images], batch_size=batch_size)
    for image, segments in zip(images, results, strict=True):
        assert [segment["label"] for segment in segments] == [f"class {i}" for i in range(NUM_CLASSES)]
        for index, segment in enumerate(segments):
            assert segment["score"] is None
            np.testing.assert_array_equal(np.array(segment["mask"]) == 255, expected_maps(image)["semantic"] == index)


def test_subtasks_without_a_method_are_left_to_the_pipeline():
    pipe = pipeline("image-segmentation", model=PerfectModel(PreTrainedConfig()), image_processor=small(), device="cpu")
    with pytest.raises(ValueError, match="Subtask panoptic is not supported"):
        pipe(tvF.to_pil_image(scene(SIDE, 40)), subtask="panoptic")


# With a model, in a folder


@pytest.fixture
def dense_model(tiny_model, tiny_vqvae_config):
    """A lively parallel model of three dense tasks."""

    def tokenizer(kind, **overrides):
        return tiny_vqvae_config(map_kind=kind, **overrides).to_dict()

    names = [f"class {index}" for index in range(NUM_CLASSES)]
    return tiny_model(
        dense_tasks=[
            {
                "name": "semantic",
                "kind": "classes",
                "tokenizer_config": tokenizer("classes", id2label=dict(enumerate(names))),
            },
            {"name": "normals", "kind": "normals", "tokenizer_config": tokenizer("normals")},
        ],
        tasks=("semantic", "depth", "normals"),
        parallel=True,
        id2label=dict(enumerate(names)),
    )


def processor_of(model, **kwargs):
    kinds = {name: spec.kind for name, spec in model.config.dense.items()}
    return AiTDenseImageProcessor(size={"height": 32, "width": 32}, map_kinds=kinds, **kwargs)


@pytest.fixture
def folder(dense_model, tmp_path):
    dense_model.save_pretrained(tmp_path / "model")
    processor_of(dense_model).save_pretrained(tmp_path / "model")
    return tmp_path / "model"


@pytest.fixture
def no_messages():
    """Fails the test when transformers logs a warning or an error."""
    with CaptureLogger(logging.get_logger("transformers")) as capture:
        yield
    assert capture.out == ""


PHOTOGRAPHS = [Image.fromarray(photo(*size, seed)) for seed, size in enumerate([(48, 64), (30, 60), (64, 40)])]


@pytest.mark.slow
@pytest.mark.parametrize("batch_size", [1, 2, 3])
def test_one_folder_serves_both_pipelines(folder, no_messages, batch_size):
    model = AutoModelForSemanticSegmentation.from_pretrained(folder)
    processor = AutoImageProcessor.from_pretrained(folder)
    by_hand = []
    for photograph in PHOTOGRAPHS:
        outputs = model(**processor(photograph, return_tensors="pt"))
        by_hand += processor.post_process_dense(outputs, [photograph.size[::-1]])
    segment = pipeline("image-segmentation", model=str(folder), device="cpu", subtask="semantic")
    for segments, expected in zip(segment(PHOTOGRAPHS, batch_size=batch_size), by_hand, strict=True):
        ids = expected["semantic"]
        assert [entry["label"] for entry in segments] == [f"class {i}" for i in ids.unique().tolist()]
        for entry, index in zip(segments, ids.unique(), strict=True):
            assert np.mean((np.array(entry["mask"]) == 255) != (ids == index).numpy()) < 1e-3
    estimate = pipeline("depth-estimation", model=str(folder), device="cpu")
    for result, expected in zip(estimate(PHOTOGRAPHS, batch_size=batch_size), by_hand, strict=True):
        torch.testing.assert_close(result["predicted_depth"], expected["depth"], atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("auto_class", [AutoModelForSemanticSegmentation, AutoModelForUniversalSegmentation])
def test_auto_classes_of_segmentation(folder, dense_model, auto_class):
    loaded = auto_class.from_pretrained(folder)
    assert type(loaded) is AiTForDenseAndInstancePrediction
    assert type(auto_class.from_config(dense_model.config)) is AiTForDenseAndInstancePrediction


@pytest.mark.parametrize("task", ["semantic", "depth", "normals"])
def test_the_processor_decides_the_task(dense_model, task):
    processor = processor_of(dense_model, task=task)
    output = dense_model(**processor(PHOTOGRAPHS, return_tensors="pt"))
    assert list(output.dense_maps) == [task]
    everything = dense_model(**processor_of(dense_model)(PHOTOGRAPHS, return_tensors="pt"))
    torch.testing.assert_close(output.dense_maps[task], everything.dense_maps[task])
    # A processor that counts the tasks otherwise names another row, and does not find what it asked for.
    others = AiTDenseImageProcessor(
        size={"height": 32, "width": 32}, task=task, map_kinds=dict(reversed(processor.map_kinds.items()))
    )
    if task != "depth":
        assert list(dense_model(**others(PHOTOGRAPHS, return_tensors="pt")).dense_maps) != [task]


def test_labels_of_the_processor_train_the_model(dense_model):
    processor = processor_of(dense_model, num_windows=1, do_flip_augment=False)
    maps = {task: [maps_of(20, 30)[task]] * 2 for task in processor.map_kinds}
    features = processor([photo(20, 30), photo(20, 30, 1)], maps, return_tensors="pt")
    output = dense_model(**features)
    assert output.loss.isfinite() and {"semantic_ce", "normals_ce", "depth_ce"} <= set(output.loss_dict)


# Runs where importing the package raises, as if it were not installed.
ELSEWHERE = """
import sys
import torch
from PIL import Image


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_ait":
            raise ModuleNotFoundError("transformers_ait is not installed here")


sys.meta_path.insert(0, Blocker())
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

folder, photograph, target = sys.argv[1:]
image = Image.open(photograph)
processor = AutoImageProcessor.from_pretrained(folder, trust_remote_code=True)
model = AutoModelForSemanticSegmentation.from_pretrained(folder, trust_remote_code=True)
outputs = model(**processor(image, return_tensors="pt"))
torch.save(processor.post_process_dense(outputs, [image.size[::-1]])[0], target)
"""


@pytest.mark.slow
def test_processor_with_code_needs_no_installation(dense_model, tmp_path):
    processor = processor_of(dense_model)
    save_with_code(dense_model, tmp_path / "checkpoint", processor)
    PHOTOGRAPHS[0].save(tmp_path / "photograph.png")
    environment = os.environ | {"HF_HOME": str(tmp_path / "hub"), "HF_HUB_OFFLINE": "1"}
    command = [
        sys.executable,
        "-c",
        ELSEWHERE,
        *(str(tmp_path / n) for n in ("checkpoint", "photograph.png", "maps.pt")),
    ]
    finished = subprocess.run(command, env=environment, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    loaded = torch.load(tmp_path / "maps.pt")
    outputs = dense_model(**processor(PHOTOGRAPHS[0], return_tensors="pt"))
    (expected,) = processor.post_process_dense(outputs, [(48, 64)])
    assert all(torch.equal(loaded[task], expected[task]) for task in expected)
