"""The model card of a run: what it says, that its code and its recipe run, and what it must not tell."""

import getpass
import platform
import re
import shlex
from pathlib import Path

import numpy as np
import pytest
import yaml
from accelerate import Accelerator
from huggingface_hub import ModelCard
from PIL import Image

from transformers_ait import AiTDepthImageProcessor, AiTInstanceImageProcessor, AiTVQVAEModel
from transformers_ait.engine.recipes.joint import JointRecipe
from transformers_ait.engine.recipes.reading import build_recipe, load_recipe
from transformers_ait.engine.recipes.scripts import DepthRecipe, InstanceRecipe, VQVAERecipe
from transformers_ait.engine.reporting.model_card import (
    CARD_FILE,
    PLACEHOLDER,
    RunFacts,
    portable,
    run_facts,
    write_model_card,
)

SIDE = 32
HOME = "/home/somebody"
OBJECT_METRICS = {"box_AP": 0.125, "mask_AP": 0.0625}
DEPTH_METRICS = {"d1": 0.75, "rmse": 0.45678}
KINDS = ("depth", "detection", "joint", "tokenizer")


def facts(metrics, **rows):
    return RunFacts(1200, metrics, rows, processes=2, accumulation=4, mixed_precision="bf16", hardware="one H200")


def recipe(recipe_class, **sections):
    data = {"dataset": "nyu_depth_v2", "options": {"data_dir": f"{HOME}/data/nyu", "num_proc": 2}}
    values = {"optim": {"lr": 1e-3}, "run": {"output": f"{HOME}/runs/my-run", "steps": 1200, "batch_size": 16}}
    return build_recipe(recipe_class, {"data": data, **values, **sections}, "test")


@pytest.fixture
def make(tiny_model, tiny_vqvae_config, tiny_decoder_config, tmp_path):
    """Function that saves a model of a kind as a run does, and writes its card."""
    depth_processor = AiTDepthImageProcessor(size={"height": SIDE, "width": SIDE})
    sizes = {"size": {"longest_edge": SIDE}, "pad_size": {"height": SIDE, "width": SIDE}}
    objects_processor = AiTInstanceImageProcessor(**sizes)

    def depth():
        start = {"depth_tokenizer": f"{HOME}/runs/vqvae/model", "initialize_from": "runs/parallel/model"}
        depth_processor.save_pretrained(tmp_path)
        return tiny_model(), recipe(DepthRecipe, model=start), facts(DEPTH_METRICS, data=145)

    def detection():
        objects_processor.save_pretrained(tmp_path)
        data = {"dataset": "coco_instances", "options": {"files": [f"{HOME}/a.json", "b.json"]}, "eval_limit": 7}
        model = tiny_model(tasks=("detection",), num_objects=4)
        return model, recipe(InstanceRecipe, data=data), facts({"box_AP": 0.125}, data=7)

    def joint():
        masks = tiny_vqvae_config(image_size=8, downsample_ratio=4, num_codes=5, ignore_zero=False)
        model = tiny_model(
            tasks=("instance", "depth"),
            mask_tokenizer_config=masks,
            decoder_config=tiny_decoder_config(),
            num_objects=2,
        )
        objects_processor.save_pretrained(tmp_path)
        depth_processor.task = "depth"
        depth_processor.save_pretrained(tmp_path / "depth")
        values = {
            "instance_data": {"dataset": "coco_instances"},
            "depth_data": {"dataset": "nyu_depth_v2", "eval_split": "test"},
            "optim": {"lr": 1e-3},
            "run": {"output": "runs/joint", "steps": 5, "batch_size": 16},
        }
        metrics = {f"instance_{name}": x for name, x in OBJECT_METRICS.items()}
        metrics |= {f"depth_{name}": x for name, x in DEPTH_METRICS.items()}
        return model, build_recipe(JointRecipe, values, "test"), facts(metrics, instance_data=5000, depth_data=654)

    def tokenizer():
        model = AiTVQVAEModel(tiny_vqvae_config())
        return model, recipe(VQVAERecipe), facts(DEPTH_METRICS, data=145)

    def save(kind):
        model, its_recipe, its_facts = {"depth": depth, "detection": detection, "joint": joint, "tokenizer": tokenizer}[
            kind
        ]()
        model.save_pretrained(tmp_path)
        write_model_card(tmp_path, model, its_recipe, its_facts)
        return its_recipe, (tmp_path / CARD_FILE).read_text()

    return save


def block(text, language):
    return re.search(f"```{language}\n(.*?)\n```", text, re.S)[1]


def rows(text):
    """Tables as lists of rows, each a dictionary."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines() if line[:1] == "|"]
    heads = [index for index, line in enumerate(lines) if index + 1 < len(lines) and set(lines[index + 1]) == {"---"}]
    return [dict(zip(lines[index], lines[index + 2], strict=True)) for index in heads]


@pytest.mark.parametrize("kind", KINDS)
def test_the_code_of_a_card_runs_in_its_folder(make, tmp_path, monkeypatch, kind):
    code = block(make(kind)[1], "python")
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 48, 3), np.uint8)).save(tmp_path / "photo.jpg")
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    if kind == "tokenizer":
        assert names["maps"].shape == (1, 1, SIDE, SIDE)
    if kind in ("depth", "joint"):
        assert names["depth"].shape == (40, 48)
    if kind == "joint":
        assert isinstance(names["instance"], list)
    if kind == "detection":
        assert isinstance(names["detection"], list)
    assert len(code.splitlines()) == (6 if kind == "joint" else 4)


@pytest.mark.parametrize("kind", KINDS)
def test_front_matter(make, tmp_path, kind):
    make(kind)
    data = ModelCard.load(tmp_path / CARD_FILE).data
    pipelines = {"depth": "depth-estimation", "detection": "object-detection", "joint": "image-segmentation"}
    assert data.library_name == "transformers" and data.license is None and "ait" in data.tags
    assert data.pipeline_tag == pipelines.get(kind)
    sets = {"detection": ["coco_instances"], "joint": ["coco_instances", "nyu_depth_v2"]}
    assert data.datasets == sets.get(kind, ["nyu_depth_v2"])


@pytest.mark.parametrize("kind", KINDS)
def test_the_recipe_of_a_card_is_the_run_s(make, tmp_path, kind):
    expected, text = make(kind)
    (tmp_path / "recipe.yaml").write_text(block(text, "yaml"))
    words = shlex.split(block(text, "bash").replace("\\\n", ""))
    assert words[:3] == ["torchrun", "--nproc_per_node", "2"]
    parents = {"nyu": "data/", "model": "runs/vqvae/", "a.json": ""}
    given = [
        re.sub(f"{PLACEHOLDER}(\\S+?)(?=[,\\]]|$)", lambda match: f"{HOME}/{parents[match[1]]}{match[1]}", word)
        for word in words[5:]
    ]
    loaded = load_recipe(type(expected), [str(tmp_path / "recipe.yaml"), *given])
    assert loaded.run.mixed_precision == "bf16"
    loaded.run.mixed_precision, loaded.run.output = None, expected.run.output
    if kind == "detection":
        assert loaded.data.options["files"] == [f"{HOME}/a.json", "b.json"]
    assert loaded == expected


@pytest.mark.parametrize("kind", KINDS)
def test_results_name_their_data(make, kind):
    text = make(kind)[1]
    tables = rows(text)
    if kind == "joint":
        assert tables == [
            {
                "dataset": "coco_instances",
                "split": "validation",
                "rows": "5000",
                "box_AP": "0.125",
                "mask_AP": "0.0625",
            },
            {"dataset": "nyu_depth_v2", "split": "test", "rows": "654", "d1": "0.75", "rmse": "0.4568"},
        ]
    elif kind == "detection":
        assert tables[0] == {"dataset": "coco_instances", "split": "validation", "rows": "7", "box_AP": "0.125"}
        assert "Only the first 7 rows" in text
    else:
        assert tables[0]["rows"] == "145" and tables[0]["rmse"] == "0.4568"
        assert "Only the first" not in text


@pytest.mark.parametrize("kind", KINDS)
def test_nothing_of_the_machine_gets_in(make, tmp_path, kind):
    text = make(kind)[1]
    private = [HOME, "somebody", str(tmp_path), str(Path.home()), getpass.getuser() + "/", platform.node()]
    assert [word for word in private if word in text] == []
    assert re.findall(r"(?<![\w:/.)])/[a-z]+/", text) == []


def test_sizes_are_told(make, tiny_model):
    text = make("depth")[1]
    count = sum(x.numel() for x in tiny_model().parameters())
    assert f"{count:,} parameters" in text and "4 x 4 of 12 codes (VQ-VAE)" in text
    assert "1,200 steps of 16 samples" in text and "4 forward pass(es) of 2 samples" in text
    assert "# my-run" in text and "`model`" in text and "`runs/parallel/model`" in text


def test_a_run_without_evaluation_says_so(tiny_vqvae_config, tmp_path):
    model = AiTVQVAEModel(tiny_vqvae_config())
    path = write_model_card(tmp_path, model, recipe(VQVAERecipe), facts({}, data=3))
    assert "without an evaluation" in path.read_text()


def test_facts_come_from_the_accelerator():
    found = run_facts(Accelerator(cpu=True, gradient_accumulation_steps=3), 5, {"rmse": 1.0}, {"data": 2})
    assert (found.steps, found.processes, found.accumulation, found.mixed_precision) == (5, 1, 3, "no")
    assert "CPU" in found.hardware and platform.node() not in found.hardware


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ("/home/me/data/nyu", "nyu"),
        ("~/data/nyu/", "nyu"),
        ("../me/nyu", "nyu"),
        ("runs/../../me/nyu", "nyu"),
        ("C:\\Users\\me\\nyu", "nyu"),
        ("file:///home/me/nyu", "nyu"),
        ("zip://*.png::/home/me/images.zip", "zip://*.png::images.zip"),
        ("runs/vqvae/model", "runs/vqvae/model"),
        ("package:efficientnet", "package:efficientnet"),
        ("hf://datasets/x/y", "hf://datasets/x/y"),
        ("https://a.org/b", "https://a.org/b"),
        ({"a": ["/b/c", 3, None]}, {"a": ["c", 3, None]}),
        (0.5, 0.5),
    ],
)
def test_paths_are_reduced(value, expected):
    assert portable(value) == expected


def test_card_is_valid_yaml_and_markdown(make):
    text = make("depth")[1]
    head = yaml.safe_load(text.split("---")[1])
    assert set(head) == {"library_name", "pipeline_tag", "tags", "datasets"}
    assert text.count("```") % 2 == 0 and text.count("<details>") == text.count("</details>") == 1
