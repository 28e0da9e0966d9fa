"""Pose lifting: sizes and FLOPs as published, windows over videos, gaps, mirroring, figures, errors."""

import math
from pathlib import Path

import evaluate
import numpy as np
import pytest
import torch
import yaml
from scipy.spatial import procrustes
from scipy.spatial.transform import Rotation
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel

from transformers_ait import HourglassForPoseLifting, HourglassPoseConfig, HourglassPoseProcessor
from transformers_ait.configuration_hourglass_pose import LEFT_JOINTS, RIGHT_JOINTS
from transformers_ait.data.skeleton import JOINT_NAMES
from transformers_ait.losses_pose import pose_losses, total_pose_loss
from transformers_ait.metrics import pose_metrics, similarity_aligned
from transformers_ait.metrics.pose_evaluate import HourglassPoseMetrics
from transformers_ait.processing_hourglass_pose import filled

SMALL = {"num_frames": 9, "hidden_size": 16, "num_hidden_layers": 3, "num_attention_heads": 2, "drop_path_rate": 0.0}
RECIPES = Path(__file__).parents[1] / "training" / "recipes"


def small_model(**changes):
    torch.manual_seed(0)
    config = HourglassPoseConfig(**{**SMALL, "prune_before": [1], "num_kept_frames": [4], **changes})
    return HourglassForPoseLifting(config).eval()


def random_poses(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def linear_flops(model, *shape):
    """Twice the multiplications of the linear layers, which is what was published; no product of attention counts."""
    total = 0

    def count(layer, inputs, output):
        nonlocal total
        total += 2 * output.numel() * layer.in_features

    for layer in model.modules():
        if isinstance(layer, nn.Linear):
            layer.register_forward_hook(count)
    model(torch.empty(shape, device="meta"))
    return total / 1e9


@pytest.mark.slow
@pytest.mark.parametrize(
    ("recipe", "published"),
    [
        ("pose-mixste-hourglass", (277.2, 167.5)),
        ("pose-motionbert-hourglass", (131.0, 63.2)),
        ("pose-mhformer-tpc", (14.15, 8.22)),  # our own count, so that a change shows
    ],
)
def test_flops_are_those_published(recipe, published):
    settings = yaml.safe_load((RECIPES / f"{recipe}.yaml").read_text())["model"]["config"]
    found = []
    for changes in ({"prune_before": [], "num_kept_frames": []}, {}):
        config = HourglassPoseConfig(**{**settings, **changes})
        with torch.device("meta"):
            model = HourglassForPoseLifting(config).eval()
        found.append(linear_flops(model, 1, config.num_frames, config.num_joints, config.input_size))
    assert found == pytest.approx(published, rel=0.02)


@pytest.mark.parametrize("architecture", ["mixste", "motionbert"])
@pytest.mark.parametrize("recovery", ["attention", "interpolate", "nearest", "similarity"])
def test_all_frames_come_back(architecture, recovery):
    model = small_model(architecture=architecture, recovery=recovery)
    output = model(random_poses(2, 9, 17, 2))
    assert output.poses.shape == (2, 9, 17, 3)
    assert output.kept_frames.shape == (2, 4)
    assert output.loss is None and output.kept_poses is None


def test_a_pyramid_and_even_frames():
    model = small_model(prune_before=[1, 2], num_kept_frames=[6, 2], selection="uniform")
    assert model(random_poses(1, 9, 17, 2)).kept_frames.tolist() == [[0, 8]]
    assert [table.shape for table in model.hourglass.tables] == [(1, 6, 16), (1, 2, 16)]


def test_a_frame_is_the_middle_one():
    model = small_model(output="frame", prune_before=[1, 2], num_kept_frames=[6, 2])
    output = model(random_poses(3, 9, 17, 2), labels=random_poses(3, 9, 17, 3))
    assert output.poses.shape == (3, 1, 17, 3) and output.kept_poses.shape == (3, 2, 17, 3)
    for sample in range(3):
        place = output.kept_frames[sample].tolist().index(4)
        assert torch.equal(output.poses[sample, 0], output.kept_poses[sample, place])
    assert not [name for name, _ in model.named_parameters() if name.startswith(("hourglass", "recovery"))]


def test_the_full_model_prunes_nothing():
    model = small_model(prune_before=[], num_kept_frames=[])
    output = model(random_poses(2, 9, 17, 2))
    assert output.kept_frames is None and model.hourglass is None and model.recovery is None


def test_a_new_model_mixes_alike_and_starts_its_tables_at_zero():
    model = small_model(architecture="motionbert")
    assert (model.layers[0].mixing.weight == 0).all() and (model.layers[0].mixing.bias == 0.5).all()
    assert (model.recovery.queries == 0).all() and (model.hourglass.tables[0] == 0).all()
    assert (small_model().frame_table == 0).all() and (model.frame_table != 0).any()


def test_the_loss_moves_the_root_and_trains_everything():
    model = small_model().train()
    keypoints, labels = random_poses(2, 9, 17, 2), random_poses(2, 9, 17, 3)
    output = model(keypoints, labels=labels)
    expected = total_pose_loss(pose_losses(output.poses, labels - labels[:, :, :1]))
    assert output.loss.item() == pytest.approx(expected.item())
    assert set(output.loss_dict) == {"weighted_mpjpe", "temporal_consistency", "mean_velocity"}
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())


def test_other_skeletons_weigh_all_joints_alike():
    predicted, target = random_poses(1, 3, 5, 3), random_poses(1, 3, 5, 3, seed=1)
    losses = pose_losses(predicted, target)
    assert losses["weighted_mpjpe"].item() == pytest.approx((predicted - target).norm(dim=-1).mean().item())
    assert set(pose_losses(predicted[:, :1], target[:, :1])) == {"weighted_mpjpe"}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"prune_before": [1], "num_kept_frames": [10]}, r"decreasing numbers in 1..9, got \[10\]"),
        ({"prune_before": [1, 2], "num_kept_frames": [4]}, "one per entry of num_kept_frames"),
        ({"prune_before": [3], "num_kept_frames": [4]}, r"increasing numbers of layers in 0..2"),
        ({"num_joints": 16}, "for other joints than Human3.6M's 17 give all three"),
        ({"left_joints": [4, 5], "right_joints": [1]}, "pairs of different joints"),
        ({"architecture": "vit"}, "architecture must be one of"),
        ({"hidden_size": 15}, "must be a multiple of num_attention_heads"),
        ({"input_size": 4}, "input_size must be 2"),
    ],
)
def test_configurations_that_do_not_fit(settings, message):
    with pytest.raises(Exception, match=message):
        HourglassPoseConfig(**{**SMALL, "prune_before": [], "num_kept_frames": [], **settings})


def test_inputs_that_do_not_fit():
    model = small_model()
    with pytest.raises(ValueError, match=r"keypoints must be \(B, 9, 17, 2\), got \(1, 8, 17, 2\); Hourglass"):
        model(torch.zeros(1, 8, 17, 2))
    with pytest.raises(ValueError, match=r"labels must be \(1, 9, 17, 3\) metres"):
        model(torch.zeros(1, 9, 17, 2), labels=torch.zeros(1, 9, 17, 2))


def test_auto_classes_and_a_saved_folder(tmp_path):
    model = small_model(num_joints=5, left_joints=[1], right_joints=[2], root_joint=3)
    processor = HourglassPoseProcessor.for_model(model.config, do_flip=False)
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, processor = AutoModel.from_pretrained(tmp_path).eval(), AutoFeatureExtractor.from_pretrained(tmp_path)
    assert (processor.num_joints, processor.root_joint, processor.do_flip) == (5, 3, False)
    inputs = processor(random_poses(12, 5, 2))
    assert torch.equal(model(**inputs).poses, again(**inputs).poses)


# --- processor ---


def test_sides_are_those_of_the_skeleton():
    """The configuration, which ships with checkpoints, cannot import the data's names of joints."""
    pairs = [(JOINT_NAMES[left], JOINT_NAMES[right]) for left, right in zip(LEFT_JOINTS, RIGHT_JOINTS, strict=True)]
    assert all(left.replace("left_", "right_") == right for left, right in pairs)
    assert sum(name.startswith("left_") for name in JOINT_NAMES) == len(pairs)


def test_a_processor_of_other_joints_needs_their_sides():
    with pytest.raises(ValueError, match=r"must lie in 0..4, .* give all three"):
        HourglassPoseProcessor(num_joints=5)


@pytest.mark.parametrize("length", [1, 5, 9, 10, 18, 23])
@pytest.mark.parametrize("output", ["sequence", "frame"])
def test_every_frame_is_predicted_once(length, output):
    """A model that copies its input gives the video back, its root at 0."""
    processor = HourglassPoseProcessor(num_frames=9, output=output)
    video = random_poses(length, 17, 2)
    windows = processor([video, video[:1]])["keypoints"]
    poses = torch.cat([windows, windows[..., :1] * 0], -1)
    poses = poses[:, 4:5] if output == "frame" else poses
    long, short = processor.post_process_poses(type("Output", (), {"poses": poses}), [length, 1])
    expected = torch.cat([video, torch.zeros(length, 17, 1)], -1)
    assert (long - (expected - expected[:, :1])).abs().max() < 1e-6
    assert short.shape == (1, 17, 3)


def test_pixels_are_measured_in_half_widths():
    processor = HourglassPoseProcessor(num_frames=1, num_joints=3, left_joints=[], right_joints=[], do_flip=False)
    pixels = np.array([[[0, 0], [320, 240], [640, 480]]])
    assert processor(pixels, (480, 640))["keypoints"].tolist() == [[[[-1, -0.75], [0, 0], [1, 0.75]]]]
    with pytest.raises(ValueError, match="image_size must be a positive"):
        processor(pixels, (0, 640))
    with pytest.raises(ValueError, match="one per video, 1, got 2"):
        processor(pixels, [(480, 640), (480, 640)])


def test_a_mirrored_person_exchanges_left_and_right():
    processor = HourglassPoseProcessor(num_frames=9)
    pose = random_poses(4, 17, 3)
    mirrored = processor.mirror(pose)
    assert torch.equal(mirrored[:, 4, 0], -pose[:, 1, 0]) and torch.equal(mirrored[:, 14, 1:], pose[:, 11, 1:])
    assert torch.equal(processor.mirror(mirrored), pose)


def test_gaps_are_filled_over_time():
    video = torch.arange(10.0)[:, None, None].repeat(1, 2, 3)
    video[3:6, 0, :2] = math.nan
    video[:2, 1, 0] = math.nan
    found = filled(video)
    assert torch.equal(found[:, 0, :2], torch.arange(10.0)[:, None].repeat(1, 2))
    assert found[:, 1, 0].tolist() == [2, 2, 2, 3, 4, 5, 6, 7, 8, 9]
    assert found[3:6, 0, 2].tolist() == [0, 0, 0] and found[:2, 1, 2].tolist() == [0, 0]
    video[:, 1] = math.nan
    with pytest.raises(ValueError, match=r"keypoints of joints \[1\] are NaN in all 10 frames"):
        filled(video)


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (torch.zeros(4, 16, 2), r"\(T, 17, 2\) with at least one frame, got \(4, 16, 2\); another skeleton"),
        (torch.zeros(0, 17, 2), "at least one frame"),
        (torch.full((4, 17, 2), math.inf), "got infinity"),
    ],
)
def test_videos_that_do_not_fit(video, message):
    with pytest.raises(ValueError, match=message):
        HourglassPoseProcessor(num_frames=9)(video)


def test_lengths_must_be_those_of_the_videos():
    processor = HourglassPoseProcessor(num_frames=9)
    output = type("Output", (), {"poses": torch.zeros(4, 9, 17, 3)})
    with pytest.raises(ValueError, match=r"num_frames \[9\] make 2 windows, but there are poses of 4"):
        processor.post_process_poses(output, 9)


def test_lists_and_arrays_are_taken_alike():
    processor = HourglassPoseProcessor(num_frames=4)
    video = random_poses(6, 17, 2)
    expected = processor(video)["keypoints"]
    assert torch.equal(processor(video.tolist())["keypoints"], expected)
    assert torch.equal(processor([video.numpy()])["keypoints"], expected)
    assert processor(video, return_tensors="np")["keypoints"].shape == (4, 4, 17, 2)


# --- figures ---


def test_alignment_is_scipys():
    predicted, target = random_poses(3, 17, 3).double(), random_poses(3, 17, 3, seed=1).double()
    aligned = similarity_aligned(predicted, target)
    for ours, x, y in zip(aligned, predicted, target, strict=True):
        # SciPy's procrustes may mirror, in which case it is better than ours; it also standardises both.
        _, _, disparity = procrustes(y, x)
        spread = (y - y.mean(0)).square().sum()
        residual = (ours - y).square().sum() / spread
        rotation, *_ = Rotation.align_vectors(y - y.mean(0), x - x.mean(0))
        turned = torch.from_numpy(rotation.apply(x - x.mean(0)))
        scale = (turned * (y - y.mean(0))).sum() / turned.square().sum()
        assert (ours - (scale * turned + y.mean(0))).abs().max() < 1e-6
        assert residual >= disparity - 1e-9


def test_a_turned_scaled_moved_pose_is_right_after_alignment():
    target = random_poses(5, 17, 3)
    rotation = torch.from_numpy(Rotation.from_euler("xyz", [0.3, 1.0, -2.0]).as_matrix()).float()
    found = pose_metrics(2.5 * target @ rotation.T + 4, target)
    assert found["p_mpjpe"] < 1e-2 and found["mpjpe"] > 500
    # A mirrored pose is not a turned one.
    assert pose_metrics(target * torch.tensor([-1.0, 1.0, 1.0]), target)["p_mpjpe"] > 100


def test_figures_of_a_known_error():
    target = random_poses(4, 17, 3)
    target = target - target[:, :1]
    predicted = target.clone()
    predicted[:, 1:, 0] += 0.017
    found = pose_metrics(predicted + 3, target)
    assert found["mpjpe"] == pytest.approx(16, abs=1e-3) and found["velocity_error"] == pytest.approx(0, abs=1e-3)
    predicted[1::2, 1:, 0] += 0.017
    assert pose_metrics(predicted, target)["velocity_error"] == pytest.approx(16, abs=1e-3)
    assert math.isnan(pose_metrics(predicted[:1], target[:1])["velocity_error"])
    with pytest.raises(ValueError, match="must both be"):
        pose_metrics(predicted, target[:2])
    with pytest.raises(ValueError, match="must be finite"):
        pose_metrics(predicted * math.nan, target)


def test_the_evaluate_module_means_over_videos():
    target = random_poses(4, 17, 3)
    metric: evaluate.Metric = HourglassPoseMetrics()
    found = metric.compute(predictions=[target + 0.1, (2 * target)[:3]], references=[target, target[:3]])
    expected = [pose_metrics(target + 0.1, target), pose_metrics(2 * target[:3], target[:3])]
    for name, value in found.items():
        assert value == pytest.approx(np.mean([figures[name] for figures in expected]), rel=1e-4, abs=1e-3)
