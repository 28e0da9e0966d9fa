"""Task models taken apart: heads on their backbones' maps give what whole models give; loading, identity, errors."""

import json

import pytest
import torch
from teacher_cases import CASES, CLASSES, teacher_case
from torch import nn
from transformers import DPTConfig, MaskFormerImageProcessor, ResNetConfig, ResNetModel

from transformers_ait import describe_teacher, load_task_model, teachers_ait
from transformers_ait.teacher_loading_ait import build_task_head, check_same_teacher, fingerprint
from transformers_ait.teachers_ait import TASK_MODELS

KINDS = {"dpt": "values", "dpt ignore": "values", "dpt backbone": "values", "depth anything": "depth", "plain": "depth"}
FURTHER = ("dpt ignore", "dpt backbone")  # other forms of a family that is there already
NAMES = [pytest.param(name, marks=pytest.mark.slow) if name in FURTHER else name for name in CASES]


def teacher_of(name, task=None):
    case = teacher_case(name)
    model = case.model()
    return TASK_MODELS[model.config.model_type](model, task), case


def images_of(case, count=2):
    return torch.randn(count, 3, case.size, case.size, generator=torch.Generator().manual_seed(1))


def planted(features):
    """The same maps with one of them upside down."""
    return (features[0].flip(-2), *features[1:])


def expected_maps(name, whole, size):
    """What the task model's users see, of its output."""
    if name == "plain":
        return whole.dense_maps["depth"][:, None]
    if "former" in name and name != "segformer":
        # transformers' Mask2Former processor takes a detour over 384 pixels, which this one does not.
        processed = MaskFormerImageProcessor().post_process_semantic_segmentation(whole, [(size, size)] * 2, True)
        return torch.stack([entry.segmentation_scores for entry in processed]).log()
    maps = whole.predicted_depth[:, None] if "predicted_depth" in whole else whole.logits
    return nn.functional.interpolate(maps, size=(size, size), mode="bilinear")


@torch.no_grad()
@pytest.mark.parametrize("name", NAMES)
def test_heads_on_their_backbones_maps_give_what_the_whole_model_gives(name):
    teacher, case = teacher_of(name)
    images = images_of(case)
    whole = teacher.model(images, **({"task": "depth"} if name == "plain" else {}))
    features = teacher.features(images)
    assert all(x.ndim == 4 for x in features)
    # A head of its own, made of the description as JSON gives it back.
    fields = json.loads(json.dumps(describe_teacher(teacher, case.size)))
    assert [tuple(x.shape[1:]) for x in features] == [tuple(shape) for shape in fields["feature_shapes"]]
    head = build_task_head(fields["teacher_config"], fields["teacher_task"])
    weights = teacher.model.state_dict()
    head.model.load_state_dict({key: weights[key] for key in head.model.state_dict()})

    def largest_error(maps):
        output = head.output(maps, case.size)
        return max((output[field] - whole[field]).abs().max() for field in case.fields)

    if name != "plain":
        assert largest_error(features) < 1e-6 < 1e-4 < largest_error(planted(features))
    expected, maps = expected_maps(name, whole, case.size), head(features, case.size)
    assert maps.dtype == torch.float32 and fields["map_kind"] == head.kind.name == KINDS.get(name, "classes")
    torch.testing.assert_close(maps, expected, rtol=1e-5, atol=1e-6)
    assert (head(planted(features), case.size) - expected).abs().max() > 1e-4


@pytest.mark.parametrize(
    "task, kind, channels", [(None, "depth", 1), ("normals", "normals", 3), ("semantic", "classes", 3)]
)
def test_plain_teachers_have_the_task_that_is_asked_for(task, kind, channels):
    teacher, case = teacher_of("plain", task)
    fields = describe_teacher(teacher, case.size)
    assert (fields["map_kind"], fields["num_channels"], fields["teacher_task"]) == (kind, channels, task or "depth")
    assert fields.get("id2label") == (dict(enumerate(CLASSES)) if task == "semantic" else None)
    assert set(teacher.model.heads) == {"depth", "normals", "semantic"}, "the given model was changed"
    assert set(build_task_head(fields["teacher_config"], task).model.heads) == {task or "depth"}
    with pytest.raises(ValueError, match="one of the teacher's.*'heights'"):
        teacher_of("plain", "heights")


@pytest.mark.parametrize("name", ["plain", pytest.param("segformer", marks=pytest.mark.slow)])
def test_teachers_are_loaded_frozen_and_known_by_their_weights(name, tmp_path):
    teacher, _ = teacher_of(name)
    teacher.model.save_pretrained(tmp_path)
    loaded = load_task_model(str(tmp_path))
    assert not loaded.training and not any(p.requires_grad for p in loaded.parameters())
    assert fingerprint(loaded) == fingerprint(teacher)
    config = type("Config", (), {"teacher_fingerprint": fingerprint(teacher), "teacher_name": "runs/teacher"})
    check_same_teacher(config, loaded)
    with torch.no_grad():
        next(loaded.backbone.parameters()).view(-1)[0] += 1e-3
    with pytest.raises(ValueError, match="teacher has changed: .* runs/teacher"):
        check_same_teacher(config, loaded)


def test_what_is_no_teacher_is_refused(tmp_path):
    config = ResNetConfig(embedding_size=8, hidden_sizes=[8], depths=[1], layer_type="basic")
    ResNetModel(config).save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="task model of type .*'dpt'.*got 'resnet'"):
        load_task_model(str(tmp_path))
    with pytest.raises(ValueError, match="task must be None for a SegformerForSemanticSegmentation"):
        teacher_of("segformer", "depth")
    teacher, case = teacher_of("segformer")
    with pytest.raises(ValueError, match="drop_backbone first"):
        teacher.output(teacher.features(images_of(case)), case.size)
    teacher.model.config.reshape_last_stage = False
    with pytest.raises(ValueError, match="reshape_last_stage"):
        teacher.features(images_of(case))
    plain, case = teacher_of("plain")
    with pytest.raises(ValueError, match="image_size 64 alone"):
        plain.output(plain.features(images_of(case)), 32)


def test_depth_is_metric_where_the_checkpoint_says_so():
    teacher, _ = teacher_of("depth anything")
    assert teacher.kind.name == "depth"
    teacher.model.config.depth_estimation_type = "relative"
    assert teacher.kind.name == "values"


def test_hybrid_dpts_are_refused():
    class Hybrid(nn.Module):
        config = DPTConfig(is_hybrid=True)

    with pytest.raises(ValueError, match="hybrid DPT"):
        teachers_ait.DPTTaskModel(Hybrid())
