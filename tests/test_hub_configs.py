"""Published configurations: complete, of known keys only, and of the parameter counts their cards state."""

import dataclasses
import json
import re
from pathlib import Path

import pytest
import torch
from transformers import PreTrainedConfig

from transformers_ait import (
    AiTConfig,
    AiTForDenseAndInstancePrediction,
    AiTSwinV2Config,
    AiTTokenDecoderConfig,
    AiTVQVAEConfig,
    AiTVQVAEModel,
)
from transformers_ait.conversion.companions import processors
from transformers_ait.conversion.original_config import ait_config_from_original, original_from_ait_config

HUB_CONFIGS = Path(__file__).resolve().parents[1] / "hub_configs"
TASK_SOLVERS = {
    "ait-swinv2-base-depth",
    "ait-p-swinv2-base-depth",
    "ait-swinv2-base-depth-hard",
    "ait-swinv2-large-depth",
    "ait-p-swinv2-large-depth",
    "ait-swinv2-base-detection",
    "ait-swinv2-base-instance",
    "ait-swinv2-base-instance-hard",
    "ait-swinv2-base-joint",
}
VQVAES = {"ait-vqvae-depth", "ait-vqvae-mask"}
CLASSES = {c.model_type: c for c in (AiTConfig, AiTSwinV2Config, AiTVQVAEConfig, AiTTokenDecoderConfig)}
# What the original work published, as its checkpoints' cards must say.
NYU = "| NYUv2 test, published | {} |"
COCO = "| COCO val2017, published | {} |"
PUBLISHED = {
    "ait-swinv2-base-depth": NYU.format(".934 | .991 | .998 | .087 | .305 | .037"),
    "ait-p-swinv2-base-depth": NYU.format(".940 | .992 | .998 | .085 | .301 | .036"),
    "ait-swinv2-base-depth-hard": NYU.format(".932 | .991 | .998 | .089 | .318 | .038"),
    "ait-swinv2-large-depth": NYU.format(".949 | .993 | .999 | .079 | .284 | .034"),
    "ait-p-swinv2-large-depth": NYU.format(".954 | .994 | .999 | .076 | .275 | .033"),
    "ait-swinv2-base-instance": COCO.format("43.3 | 34.2"),
    "ait-swinv2-base-instance-hard": COCO.format("43.6 | 31.1"),
    "ait-swinv2-base-joint": "| COCO val2017 and NYUv2 test, published | 42.2 | 34.1 | .310 |",
}
# What a configuration may hold besides its own fields.
COMMON_KEYS = {"model_type", "architectures", "id2label", "label2id"}


def read_config(name):
    return json.loads((HUB_CONFIGS / name / "config.json").read_text())


def load(name):
    config_class = CLASSES[read_config(name)["model_type"]]
    return config_class.from_pretrained(HUB_CONFIGS / name)


def unknown_keys(config):
    """Keys of a configuration dictionary, and of those inside it, that no field stands for."""
    config_class = CLASSES[config["model_type"]]
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    own = {field.name for field in dataclasses.fields(config_class)} - inherited
    unknown = [key for key in config if key not in own | COMMON_KEYS]
    for key, value in config.items():
        if key.endswith("_config"):
            unknown += [f"{key}.{inner}" for inner in unknown_keys(value)]
    return unknown


def card_rows(name):
    """Rows (part, arithmetic, parameters) of a card's table, and its total."""
    lines = (HUB_CONFIGS / name / "README.md").read_text().splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    start = cells.index(["part", "arithmetic", "parameters"]) + 2
    rows = [(part, arithmetic, int(count.replace(",", ""))) for part, arithmetic, count in cells[start:]]
    assert rows[-1][0] == "total"
    return rows[:-1], rows[-1][2]


def evaluate(arithmetic):
    assert re.fullmatch(r"[\d x+()]+", arithmetic), arithmetic
    return eval(arithmetic.replace("x", "*"))


def build(name):
    config = load(name)
    with torch.device("meta"):
        return AiTVQVAEModel(config) if name in VQVAES else AiTForDenseAndInstancePrediction(config)


def count(module):
    return sum(parameter.numel() for parameter in module.parameters())


def test_every_published_checkpoint_has_a_folder():
    assert {folder.name for folder in HUB_CONFIGS.iterdir()} >= TASK_SOLVERS | VQVAES


@pytest.mark.parametrize("name", sorted(TASK_SOLVERS | VQVAES))
def test_keys_are_complete_and_known(name):
    config = read_config(name)
    assert unknown_keys(config) == []
    inherited = {field.name for field in dataclasses.fields(PreTrainedConfig)}
    missing = {field.name for field in dataclasses.fields(CLASSES[config["model_type"]])} - inherited - set(config)
    # Tokenizers of other tasks, and what came after these configurations, with the values that leave them as they are.
    younger = {"dense_tasks": [], "map_kind": None, "value_scale": 1.0, "feature_pyramid": False}
    younger |= {"object_order": "random"}
    assert all(getattr(load(name), field) == younger.get(field) for field in missing)


@pytest.mark.parametrize("name", sorted(TASK_SOLVERS | VQVAES))
def test_card(name):
    card = (HUB_CONFIGS / name / "README.md").read_text()
    assert f"python -m transformers_ait.conversion --checkpoint CHECKPOINT.pth --config {name} " in card
    assert "holds no weights" in card and "license of the weights" in card
    assert PUBLISHED.get(name, "no ") in " ".join(card.split("\n"))
    assert len(re.findall(r"\|[^|\n]+, published \|", card)) == (name in PUBLISHED)


@pytest.mark.parametrize("name", sorted(TASK_SOLVERS | VQVAES))
def test_image_processors_are_those_of_a_conversion(name, tmp_path):
    expected = processors(load(name))
    files = {str(path.parent.relative_to(HUB_CONFIGS / name)) for path in (HUB_CONFIGS / name).rglob("prep*.json")}
    assert files == set(expected)
    for subfolder, processor in expected.items():
        processor.save_pretrained(tmp_path / subfolder)
        path = Path(subfolder) / "preprocessor_config.json"
        assert json.loads((tmp_path / path).read_text()) == json.loads((HUB_CONFIGS / name / path).read_text())


def test_unknown_keys_are_noticed():
    config = read_config("ait-swinv2-base-joint")
    config["novelty"] = config["backbone_config"]["widths"] = config["mask_tokenizer_config"]["taau"] = 1
    assert unknown_keys(config) == ["novelty", "backbone_config.widths", "mask_tokenizer_config.taau"]


@pytest.mark.parametrize("name", sorted(TASK_SOLVERS | VQVAES))
def test_parameter_count_is_the_cards_arithmetic(name):
    rows, total = card_rows(name)
    assert all(evaluate(arithmetic) == parameters for _, arithmetic, parameters in rows)
    assert total == sum(parameters for _, _, parameters in rows)
    assert count(build(name)) == total


def test_parts_of_the_joint_model_count_as_its_card_says():
    rows, _ = card_rows("ait-swinv2-base-joint")
    model = build("ait-swinv2-base-joint")
    parts = {
        model.model.backbone: ("patch", "backbone"),
        model.model.encoder: ("encoder",),
        model.model.decoder: ("token embeddings", "task and position", "decoder"),
        model.depth_tokenizer: ("depth tokenizer",),
        model.mask_tokenizer: ("mask tokenizer",),
    }
    for module, starts in parts.items():
        assert count(module) == sum(parameters for part, _, parameters in rows if part.startswith(starts)), starts


@pytest.mark.parametrize("name", sorted(TASK_SOLVERS))
def test_every_task_solver_has_an_original_configuration(name):
    config = load(name)
    back = ait_config_from_original(original_from_ait_config(config))
    assert {**back.to_dict(), "architectures": None} == {**config.to_dict(), "architectures": None}


def test_what_the_released_configurations_say():
    depth, parallel, hard = (
        load(f"ait-{n}") for n in ("swinv2-base-depth", "p-swinv2-base-depth", "swinv2-base-depth-hard")
    )
    assert [c.depth_tokenizer_config.tau for c in (depth, parallel, hard)] == [0.8, 0.8, 1.0]
    switches = [(c.soft_feedback, c.soft_decode, c.parallel) for c in (depth, parallel, hard)]
    assert switches == [(True, True, False), (False, True, True), (False, False, False)]
    assert depth.backbone_config.shift_windows == [True, True, False, False]
    assert depth.vocabulary.size == 2001 + 80 + 2 + 128 + 128
    assert load("ait-swinv2-large-depth").backbone_config.num_heads == [6, 12, 24, 48]

    detection, instance, joint = (load(f"ait-swinv2-base-{n}") for n in ("detection", "instance", "joint"))
    assert [c.vocabulary.size - depth.vocabulary.size for c in (detection, instance, joint)] == [0, 128, 128]
    assert [c.top_p for c in (detection, instance, joint)] == [0.4, 0.3, 0.3]
    assert all(c.backbone_config.shift_windows == [True] * 4 for c in (detection, instance, joint))
    assert all(c.backbone_config.drop_path_rate == 0.3 for c in (detection, instance, joint))
    assert [c.sequence_length(c.default_task) for c in (depth, detection, instance)] == [225, 500, 2100]
    assert (joint.depth_loss_weight, joint.instance_loss_weight) == (0.2, 1.0)
    assert joint.depth_tokenizer_config.tau == 1.0 and joint.grid_size == 20


def test_vqvae_configurations():
    depth, mask = load("ait-vqvae-depth"), load("ait-vqvae-mask")
    assert (depth.num_tokens, depth.final_width, depth.symmetric_range, depth.ignore_zero) == (225, 256, False, True)
    assert (mask.num_tokens, mask.final_width, mask.symmetric_range, mask.ignore_zero) == (16, 128, True, False)
    joint = load("ait-swinv2-base-joint")
    for inside, alone in ((joint.depth_tokenizer_config, depth), (joint.mask_tokenizer_config, mask)):
        assert {**inside.to_dict(), "architectures": None} == {**alone.to_dict(), "architectures": None}
