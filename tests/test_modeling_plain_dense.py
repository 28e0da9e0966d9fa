"""Ordinary decoders on a backbone: shapes, losses, gradients, round trips, and errors that say what to change."""

import json

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from transformers import (
    AutoConfig,
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForSemanticSegmentation,
    ResNetConfig,
    TimmBackboneConfig,
    pipeline,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from transformers_ait import (
    AiTDenseImageProcessor,
    AiTPlainDenseConfig,
    AiTPlainDenseModel,
    AiTSwinV2Config,
    modeling_plain_dense,
)
from transformers_ait.configuration_plain_dense import AiTPlainDenseTask

TASKS = (
    {"name": "normals", "kind": "normals", "loss_weight": 0.5},
    {"name": "depth", "kind": "depth", "loss_weight": 2},
    {"name": "semantic", "kind": "classes", "class_names": ["wall", "floor", "chair", "lamp"]},
    {"name": "flow", "kind": "values", "channels": 2, "loss_weight": 0.25},
)
SHAPES = {"normals": (3, 32, 32), "depth": (32, 32), "semantic": (4, 32, 32), "flow": (2, 32, 32)}
BACKBONES = {
    "swinv2": AiTSwinV2Config(
        embed_dim=8,
        depths=(1, 1),
        num_heads=(2, 4),
        window_sizes=(4, 4),
        pretrained_window_sizes=(4, 4),
        shift_windows=(True, False),
    ),
    "timm levels": TimmBackboneConfig(backbone="test_resnet", out_indices=[1, 2, 3]),
    "timm last": TimmBackboneConfig(backbone="test_resnet", out_indices=[3]),
    "transformers": ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], out_indices=[1, 2]),
}


def config_of(backbone="timm levels", **overrides):
    settings = {"backbone_config": BACKBONES[backbone], "dense_tasks": TASKS, "image_size": 32, "hidden_size": 16}
    return AiTPlainDenseConfig(**(settings | overrides))


def model_of(backbone="timm levels", **overrides):
    return AiTPlainDenseModel(config_of(backbone, **overrides)).eval()


def labels_of(batch=3, size=(32, 32)):
    """Random maps of every task, a fifth of the pixels of each invalid."""
    draw = torch.Generator().manual_seed(3)
    invalid = torch.rand(4, batch, *size, generator=draw) < 0.2
    normals = F.normalize(torch.randn(batch, 3, *size, generator=draw), dim=1)
    return {
        "normals": normals.masked_fill(invalid[0][:, None], 0),
        "depth": (1 + 4 * torch.rand(batch, *size, generator=draw)).masked_fill(invalid[1], 0),
        "semantic": torch.randint(4, (batch, *size), generator=draw).masked_fill(invalid[2], 255),
        "flow": torch.randn(batch, 2, *size, generator=draw).masked_fill(invalid[3][:, None], float("nan")),
    }


@pytest.mark.parametrize("backbone", BACKBONES)
def test_maps_of_every_kind_on_every_backbone(backbone, images):
    model = model_of(backbone)
    output = model(images)
    assert {task: tuple(maps.shape) for task, maps in output.dense_maps.items()} == {
        task: (3, *shape) for task, shape in SHAPES.items()
    }
    assert list(output.dense_maps) == model.config.tasks and output.predicted_depth is output.dense_maps["depth"]
    assert all(maps.dtype == torch.float32 and maps.isfinite().all() for maps in output.dense_maps.values())
    assert output.loss is None
    views = model(torch.stack([images, images.flip(-1)], dim=1))
    assert views.predicted_depth.shape == (3, 2, 32, 32) and views.dense_maps["flow"].shape == (3, 2, 2, 32, 32)
    torch.testing.assert_close(views.dense_maps["flow"][:, 0], output.dense_maps["flow"])


@pytest.mark.parametrize("backbone", BACKBONES)
def test_training_reaches_every_weight(backbone, images):
    """None may be left out: processes that train together wait for the gradient of each."""
    model = model_of(backbone).train()
    loss = model(images, dense_labels=labels_of()).loss
    loss.backward()
    assert [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None] == []
    for module in (model.backbone, *model.heads.values()):
        assert next(module.parameters()).grad.abs().max() > 0  # its first layer


def test_losses_are_those_of_the_kinds(images):
    model, labels = model_of(), labels_of()
    output = model(images, dense_labels=labels)
    maps = model(images).dense_maps
    ratio = (labels["depth"] / maps["depth"])[labels["depth"] > 0].log()
    valid = ~labels["flow"].isnan()
    cosine = F.cosine_similarity(maps["normals"], labels["normals"], dim=1)
    expected = {
        "normals_aux": 1 - cosine[labels["normals"].norm(dim=1) > 0].mean(),
        "depth_aux": (ratio.square().mean() - 0.5 * ratio.mean().square()).sqrt(),
        "semantic_aux": F.cross_entropy(maps["semantic"], labels["semantic"], ignore_index=255),
        "flow_aux": (maps["flow"] - labels["flow"])[valid].abs().mean(),
    }
    assert output.loss_dict.keys() == expected.keys() and output.dense_maps is None
    for name, value in expected.items():
        torch.testing.assert_close(output.loss_dict[name], value)
    weighted = sum(spec.loss_weight * expected[f"{name}_aux"] for name, spec in model.config.dense.items())
    torch.testing.assert_close(output.loss, weighted)
    with pytest.raises(AssertionError):
        torch.testing.assert_close(output.loss, sum(expected.values()))


def test_maps_without_a_measurement_train_nothing(images):
    labels = labels_of()
    nothing = {"depth": torch.zeros(3, 32, 32), "semantic": torch.full((3, 32, 32), 255)}
    model = model_of().train()
    output = model(images, dense_labels=labels | nothing)
    output.loss.backward()
    assert output.loss_dict["depth_aux"] == output.loss_dict["semantic_aux"] == 0
    assert all(p.grad.abs().max() == 0 for task in nothing for p in model.heads[task].parameters())
    assert model.heads["flow"].output.weight.grad.abs().max() > 0


def test_processes_count_by_their_supervised_images(images, monkeypatch):
    model, labels = model_of(), {"depth": labels_of()["depth"]}
    alone = model(images, dense_labels=labels).loss
    # As with a second process that has no image of valid depth.
    monkeypatch.setattr(modeling_plain_dense, "mean_over_processes", lambda count: count / 2)
    torch.testing.assert_close(model(images, dense_labels=labels).loss, 2 * alone)


def test_depth_labels_and_single_tasks(images):
    model, depth = model_of(), labels_of()["depth"]
    expected = model(images, dense_labels={"depth": depth}).loss
    assert torch.equal(model(images, depth_labels=depth).loss, expected)
    assert torch.equal(model(images, "depth", depth_labels=depth, task_ids=torch.full((3,), 2)).loss, expected)
    assert list(model(images, "normals").dense_maps) == ["normals"] and model(images, "normals").predicted_depth is None
    assert list(model(images, ["flow", "depth"]).dense_maps) == ["flow", "depth"]
    assert isinstance(model(images, return_dict=False), tuple)


def test_features_and_heads_are_the_whole_model(images):
    model = model_of()
    features = model.get_image_features(images)
    assert [tuple(x.shape[2:]) for x in features] == [(8, 8), (4, 4), (2, 2)]
    maps = model(images).dense_maps
    for task, head in model.heads.items():
        assert torch.equal(model.config.dense[task].map_kind.from_tokenizer(head(features)), maps[task])


def test_untrained_depth_is_that_of_a_room(images):
    assert (model_of()(images).predicted_depth / 2.5).log().abs().max() < 0.7


@pytest.mark.parametrize("backbone, expected", [("timm levels", [8, 8]), ("timm last", [4, 8]), ("swinv2", [8, 8])])
def test_convolutions_work_on_up_to_a_quarter_of_the_side(backbone, expected, images):
    """On the finest map of several, and on one that grows where the backbone is coarse."""
    model, sides = model_of(backbone), []
    for block in model.heads["flow"].blocks:
        block.register_forward_pre_hook(lambda module, inputs: sides.append(inputs[0].shape[-1]))
    model(images)
    assert sides == expected


@pytest.mark.parametrize("backbone", BACKBONES)
def test_models_survive_a_round_trip(backbone, images, tmp_path):
    model = model_of(backbone)
    model.save_pretrained(tmp_path)
    assert AutoConfig.from_pretrained(tmp_path).dense == model.config.dense
    for auto_class in (AutoModel, AutoModelForDepthEstimation, AutoModelForSemanticSegmentation):
        loaded = auto_class.from_pretrained(tmp_path)
        assert type(loaded) is AiTPlainDenseModel
        for task, maps in model(images).dense_maps.items():
            assert torch.equal(loaded(images).dense_maps[task], maps)


@pytest.mark.parametrize(
    "overrides",
    [
        {},
        {"dense_tasks": [AiTPlainDenseTask(name="semantic", kind="classes", class_names=("a", "b"))]},
        {"dense_tasks": [{"name": "semantic", "kind": "classes", "channels": 3}]},
    ],
    ids=["table", "object", "numbered classes"],
)
def test_configurations_survive_a_round_trip(overrides, tmp_path):
    config = config_of(**overrides)
    config.save_pretrained(tmp_path)
    loaded = AiTPlainDenseConfig.from_pretrained(tmp_path)
    loaded._name_or_path = config._name_or_path
    assert loaded.to_dict() == config.to_dict() and loaded.dense == config.dense
    stored = json.loads((tmp_path / "config.json").read_text())
    assert AiTPlainDenseConfig(**stored).to_dict() == config.to_dict()
    assert [*config.id2label.values()] == config.dense["semantic"].class_names


def test_what_follows_from_the_table():
    config = config_of()
    assert config.tasks == [entry["name"] for entry in TASKS] and config.default_task == "normals"
    assert config.num_labels == 4 and config.id2label[3] == "lamp" and config.label2id["floor"] == 1
    assert {name: spec.channels for name, spec in config.dense.items()} == {
        name: shape[0] if len(shape) == 3 else 1 for name, shape in SHAPES.items()
    }
    assert config.dense["flow"].map_kind.name == "values"
    assert config_of(dense_tasks=[{"name": "height", "kind": "values"}]).dense["height"].channels == 1
    assert AiTPlainDenseConfig().tasks == ["depth"]


def test_small_images_are_padded_at_bottom_and_right(images):
    model = model_of()
    small, labels = images[..., :20, :28], labels_of(size=(20, 28))
    output = model(small)
    whole = model(F.pad(small, (0, 4, 0, 12)))
    for task, maps in output.dense_maps.items():
        assert maps.shape[-2:] == (20, 28)
        assert torch.equal(maps, whole.dense_maps[task][..., :20, :28])
        assert not torch.equal(maps, whole.dense_maps[task][..., -20:, -28:])
    invalid = {task: spec.map_kind.invalid for task, spec in model.config.dense.items()}
    padded = {task: F.pad(maps, (0, 4, 0, 12), value=invalid[task]) for task, maps in labels.items()}
    expected = model(F.pad(small, (0, 4, 0, 12)), dense_labels=padded).loss
    torch.testing.assert_close(model(small, dense_labels=labels).loss, expected)


def test_batches_are_their_images(images):
    model = model_of()
    together = model(images).dense_maps
    for index in range(3):
        for task, maps in model(images[index : index + 1]).dense_maps.items():
            torch.testing.assert_close(maps[0], together[task][index], atol=1e-5, rtol=1e-5)


@pytest.mark.slow
def test_two_maps_can_be_learnt_by_heart(images):
    """Smooth maps, as ours are: the output is drawn at a quarter of the image's size."""
    torch.manual_seed(0)
    draw = torch.Generator().manual_seed(5)
    field = F.interpolate(torch.randn(2, 4, 4, 4, generator=draw), size=(32, 32), mode="bilinear")
    labels = {
        "normals": F.normalize(field[:, :3], dim=1),
        "depth": field[:, 0].exp() + 0.5,
        "semantic": field.argmax(1),
        "flow": field[:, :2],
    }
    model = model_of().train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=5e-3)
    losses = []
    for _ in range(60):
        output = model(images[:2], dense_labels=labels)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.loss_dict)
    falls = {name: (losses[-1][name] / first).item() for name, first in losses[0].items()}
    assert max(falls.values()) < 0.4, falls


@pytest.mark.parametrize("tasks", [TASKS, TASKS[2:3]], ids=["all tasks", "classes alone"])
def test_pipelines_and_image_processor(tasks, tmp_path):
    model = model_of(dense_tasks=tasks)
    model.save_pretrained(tmp_path)
    kinds = {name: spec.kind for name, spec in model.config.dense.items()}
    AiTDenseImageProcessor(size={"height": 32, "width": 32}, map_kinds=kinds).save_pretrained(tmp_path)
    assert type(AutoImageProcessor.from_pretrained(tmp_path)) is AiTDenseImageProcessor
    photographs = [Image.new("RGB", (64, 48), "teal"), Image.new("RGB", (40, 60), "navy")]
    with CaptureLogger(logging.get_logger("transformers")) as capture:
        segment = pipeline("image-segmentation", model=str(tmp_path), device="cpu")
        segments = segment(photographs, subtask="semantic", batch_size=2)
        if "depth" in kinds:
            estimate = pipeline("depth-estimation", model=str(tmp_path), device="cpu")
            depths = [result["predicted_depth"] for result in estimate(photographs, batch_size=2)]
            assert [tuple(depth.shape) for depth in depths] == [(48, 64), (60, 40)]
    assert capture.out == ""
    assert {entry["label"] for entries in segments for entry in entries} <= set(TASKS[2]["class_names"])
    assert [entries[0]["mask"].size for entries in segments] == [(64, 48), (40, 60)]


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"dense_tasks": [TASKS[1], TASKS[1]]}, "different names, got .'depth', 'depth'"),
        ({"dense_tasks": []}, "at least one"),
        ({"dense_tasks": [{"name": "a", "kind": "heat"}]}, "kind of the dense task 'a' must be one of .*'heat'"),
        ({"dense_tasks": [{"name": "a", "kind": "mask"}]}, "must be one of .'depth', 'normals', 'classes', 'values'"),
        ({"dense_tasks": [{"name": "a", "kind": "depth", "channels": 2}]}, "channels .* 'a' must be 1.*got 2"),
        ({"dense_tasks": [{"name": "a", "kind": "normals", "channels": 1}]}, "channels .* 'a' must be 3.*got 1"),
        ({"dense_tasks": [{"name": "a", "kind": "values", "channels": 0}]}, "channels must be at least 1"),
        ({"dense_tasks": [{"name": "a", "kind": "classes", "channels": 0}]}, "channels must be at least 1"),
        ({"dense_tasks": [{"name": "a", "kind": "classes"}]}, "'a' needs class_names"),
        ({"dense_tasks": [TASKS[2] | {"channels": 5}]}, "'semantic' must be 4.*got 5"),
        ({"dense_tasks": [TASKS[1] | {"class_names": ["a"]}]}, "class_names do not suit.*'depth'"),
        ({"dense_tasks": [TASKS[1] | {"aux_weight": 2}]}, "others of .*aux_weight"),
        ({"dense_tasks": [{"kind": "depth"}]}, "with name, kind"),
        ({"dense_tasks": ["depth"]}, "dictionaries with name"),
        ({"dense_tasks": [{"name": "a.b", "kind": "depth"}]}, "'a.b'; rename"),
        ({"dense_tasks": [{"name": "values", "kind": "values"}]}, "'values'; rename"),
        ({"dense_tasks": [TASKS[1] | {"loss_weight": "much"}]}, "loss_weight"),
        ({"id2label": {0: "a", 1: "b", 2: "c", 3: "d"}}, "id2label must be .*'wall'"),
        ({"hidden_size": 12}, "hidden_size must be a multiple of 8, got 12"),
        ({"image_size": 0}, "image_size must be at least 1"),
        ({"backbone_config": {"model_type": "nothing"}}, "backbone_config has model_type 'nothing'"),
    ],
)
def test_configurations_that_cannot_be(overrides, message):
    with pytest.raises((ValueError, StrictDataclassError), match=message):
        config_of(**overrides)


@pytest.mark.parametrize(
    "arguments, message",
    [
        ({"task": "albedo"}, "tasks .'normals', 'depth', 'semantic', 'flow'.*got 'albedo'"),
        ({"dense_labels": {"albedo": torch.zeros(3, 32, 32)}}, "labels of .'albedo'"),
        ({"task": ["flow", "albedo"]}, "got .'flow', 'albedo'"),
        ({"task": "flow", "dense_labels": {"depth": torch.ones(3, 32, 32)}}, "got 'flow' and labels of .'depth'"),
        ({"dense_labels": {"depth": torch.ones(3, 16, 16)}}, "dense_labels.'depth'. must be .*3, 32, 32.*16, 16"),
        (
            {"dense_labels": {"semantic": torch.full((3, 32, 32), 4)}},
            "'semantic'. must be class ids in .0, 4",
        ),
        (
            {"dense_labels": {"normals": torch.ones(3, 3, 32, 32)}},
            "'normals'. must be vectors of length 1",
        ),
        ({"pixel_values": torch.zeros(3, 3, 33, 32)}, "sides of at most 32"),
        ({"pixel_values": torch.zeros(3, 32, 32)}, "must be .batch, channels, height, width"),
    ],
)
def test_calls_that_cannot_be(arguments, message, images):
    with pytest.raises(ValueError, match=message):
        model_of()(**({"pixel_values": images} | arguments))


def test_depth_labels_need_a_task_of_depth(images):
    with pytest.raises(ValueError, match="labels of .'depth'"):
        model_of(dense_tasks=TASKS[:1])(images, depth_labels=torch.ones(3, 32, 32))


def test_trainer_leaves_the_loss_alone():
    assert AiTPlainDenseModel.accepts_loss_kwargs is False
