"""Tiny data and checkpoints for the tests of evaluation, and ways to call it.

A plugin of those tests. PYTEST_DONT_REWRITE, since they import it before pytest does.
"""

import csv
import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import datasets
import numpy as np
import pytest
import torch
from PIL import Image

from transformers_ait import AiTDepthImageProcessor, AiTInstanceImageProcessor, AiTVQVAEModel
from transformers_ait.coco_annotations_ait import encode_masks
from transformers_ait.data import SYNTHETIC_ROOMS_CLASSES
from transformers_ait.engine.evaluation.inputs import EvaluationSettings
from transformers_ait.engine.evaluation.report import run_evaluation

SCRIPT = Path(__file__).parents[1] / "training" / "evaluate.py"
ROOMS = {"num_train": 3, "num_validation": 0, "num_test": 5, "height": 40, "width": 56}
SIZE = {"height": 32, "width": 32}
CATEGORIES = [{"id": 7, "name": "train"}, {"id": 90, "name": "toothbrush"}, {"id": 1, "name": "person"}]


@pytest.fixture(scope="module")
def rooms(tmp_path_factory):
    """Options of five tiny rooms, rendered once."""
    options = {**ROOMS, "cache_dir": str(tmp_path_factory.mktemp("rooms"))}
    datasets.load_dataset("synthetic_rooms", **options)
    return options


@pytest.fixture(scope="module")
def depth_folder(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "depth"
    tiny_model().save_pretrained(folder)
    AiTDepthImageProcessor(size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mask_tokenizer(tiny_vqvae_config):
    return tiny_vqvae_config(image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False)


@pytest.fixture(scope="module")
def object_model(tiny_model, mask_tokenizer, tiny_decoder_config):
    """Function that builds a model of twenty objects with given class names."""

    def build(names, **overrides):
        settings = {
            "tasks": ("instance",),
            "mask_tokenizer_config": mask_tokenizer,
            "decoder_config": tiny_decoder_config(max_positions=180),
            "num_objects": 20,
            "top_p": 0.9,
            "id2label": dict(enumerate(names)),
        }
        model = tiny_model(**(settings | overrides))
        # Otherwise one object is as the other, and few boxes are proper.
        model.model.decoder.position_embeddings.data *= 20
        model.model.decoder.output_bias.data *= 0.1
        return model

    return build


@pytest.fixture(scope="module")
def instance_folder(object_model, tmp_path_factory):
    """An instance model whose classes are those of the rooms, the other way round, and one more."""
    folder = tmp_path_factory.mktemp("models") / "instance"
    object_model(["unicorn", *reversed(SYNTHETIC_ROOMS_CLASSES)]).save_pretrained(folder)
    AiTInstanceImageProcessor(size={"longest_edge": 32}, pad_size=SIZE).save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def mask_vqvae_folder(mask_tokenizer, enliven, tmp_path_factory):
    folder = tmp_path_factory.mktemp("models") / "vqvae-mask"
    torch.manual_seed(0)
    enliven(AiTVQVAEModel(mask_tokenizer)).save_pretrained(folder)
    return folder


def evaluate(folders, options, **settings):
    lines = run_evaluation(EvaluationSettings(folders=folders, options=options, **settings))
    return {line.name.split(": ")[-1]: line for line in lines}


def read_rows(path):
    with path.open() as file:
        return list(csv.DictReader(file))


def launch(arguments):
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run([sys.executable, *arguments], capture_output=True, text=True, env=environment, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def run_script(monkeypatch, *arguments):
    """The script's main function, in this process."""
    spec = importlib.util.spec_from_file_location("evaluate_script", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    monkeypatch.setattr(sys, "argv", ["evaluate.py", *map(str, arguments)])
    module.main()


@pytest.fixture(scope="module")
def coco(tmp_path_factory):
    """Four images with random rectangles as polygons, a crowd, and category ids with gaps; options and file."""
    root = tmp_path_factory.mktemp("coco")
    rng = np.random.default_rng(0)
    (root / "images").mkdir()
    images, annotations = [], []
    for number in range(4):
        image = {"id": 11 * number + 3, "file_name": f"{number}.jpg", "width": 64, "height": 48}
        Image.fromarray(rng.integers(0, 255, (48, 64, 3)).astype(np.uint8)).save(root / "images" / f"{number}.jpg")
        images.append(image)
        for _ in range(5 if number else 0):  # the first has none
            x, y, width, height = (float(v) for v in rng.integers(2, 24, 4))
            polygon = [x, y, x + width, y, x + width, y + height, x, y + height]
            category = int(rng.choice([1, 7, 90]))
            entry = {"image_id": image["id"], "category_id": category, "bbox": [x, y, width, height], "iscrowd": 0}
            annotations.append(entry | {"area": width * height, "segmentation": [polygon]})
    region = np.zeros((48, 64), dtype=bool)
    region[4:28, 30:60] = True
    crowd = {"image_id": 14, "category_id": 1, "bbox": [30.0, 4.0, 30.0, 24.0], "area": 720.0, "iscrowd": 1}
    annotations.append(crowd | {"segmentation": encode_masks(torch.from_numpy(region)[None])[0]})
    annotations = [{"id": 100 + number, **entry} for number, entry in enumerate(annotations)]
    file = root / "annotations.json"
    file.write_text(json.dumps({"images": images, "annotations": annotations, "categories": CATEGORIES}))
    options = {"validation_annotations": str(file), "validation_images": str(root / "images")}
    return {**options, "cache_dir": str(root / "cache")}, file


def load_coco(options):
    return datasets.load_dataset("coco_instances", split="validation", **options)
