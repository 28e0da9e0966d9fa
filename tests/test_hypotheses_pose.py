"""MHFormer: its blocks around fewer frames, conversion of original checkpoints, whole videos, its own code."""

import math
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import yaml
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import AutoFeatureExtractor, AutoModel
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from transformers_ait import HourglassForPoseLifting, HourglassPoseConfig, HourglassPoseProcessor
from transformers_ait.conversion.__main__ import main
from transformers_ait.conversion.plain_pose import PlainPoses
from transformers_ait.conversion.pose import pose_names
from transformers_ait.engine.tasks.pose import EVAL_BATCH, lift_video
from transformers_ait.hypotheses_pose import CrossHypothesisBlock

SMALL = {
    "architecture": "mhformer",
    "output": "frame",
    "num_frames": 9,
    "hidden_size": 16,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "generation_layers": 2,
    "generation_heads": 3,
    "drop_path_rate": 0.2,
    "dropout": 0.1,
    "prune_before": [1],
    "num_kept_frames": [4],
}
LONG = {"num_frames": 30, "num_kept_frames": [10]}  # longer than what is embedded with a normalisation
FULL = {"prune_before": [], "num_kept_frames": []}
RECIPE = Path(__file__).parents[1] / "training" / "recipes" / "pose-mhformer-tpc.yaml"


def small_config(**changes):
    return HourglassPoseConfig(**{**SMALL, **changes})


def small_model(**changes):
    torch.manual_seed(0)
    return HourglassForPoseLifting(small_config(**changes)).eval()


def noise(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def original_shapes(frames, size, layers=3, blocks=2, joints=17):
    """Names and shapes of an original checkpoint, as the original's modules spell them; none comes from our map."""
    shapes = {}

    def linear(name, inputs, outputs, *kernel):
        shapes.update({f"{name}.weight": (outputs, inputs, *kernel), f"{name}.bias": (outputs,)})

    def norm(name, channels, is_batch=False):
        shapes.update({f"{name}.weight": (channels,), f"{name}.bias": (channels,)})
        if is_batch:
            running = ("running_mean", "running_var", "num_batches_tracked")
            shapes.update({f"{name}.{part}": () if part.startswith("num") else (channels,) for part in running})

    def mlp(name, channels, width):
        linear(f"{name}.fc1", channels, width)
        linear(f"{name}.fc2", width, channels)

    hypotheses = "Transformer_hypothesis"
    for i in (1, 2, 3):
        encoder = f"Transformer_encoder_{i}"
        norm(f"norm_{i}", frames)
        norm(f"{encoder}.norm", frames)
        shapes[f"{encoder}.pos_embed"] = (1, 2 * joints, frames)
        shapes[f"{hypotheses}.pos_embed_{i}"] = (1, frames, size)
        for block in (f"{encoder}.blocks.{number}" for number in range(blocks)):
            norm(f"{block}.norm1", frames)
            norm(f"{block}.norm2", frames)
            linear(f"{block}.attn.qkv", frames, 3 * frames)
            linear(f"{block}.attn.proj", frames, frames)
            mlp(f"{block}.mlp", frames, 2 * frames)
        if frames > 27:
            linear(f"embedding_{i}", 2 * joints, size, 1)
        else:
            linear(f"embedding_{i}.0", 2 * joints, size, 1)
            norm(f"embedding_{i}.1", size, is_batch=True)
        for block in (f"{hypotheses}.SHR_blocks.{number}" for number in range(layers - 1)):
            norm(f"{block}.norm1_{i}", size)
            linear(f"{block}.attn_{i}.qkv", size, 3 * size)
            linear(f"{block}.attn_{i}.proj", size, size)
        for j in (1, 2, 3):
            norm(f"{hypotheses}.CHI_blocks.0.norm3_{i}{j}", size)
        for part in ("linear_q", "linear_k", "linear_v", "proj"):
            linear(f"{hypotheses}.CHI_blocks.0.attn_{i}.{part}", size, size)
    for block in (*(f"SHR_blocks.{number}" for number in range(layers - 1)), "CHI_blocks.0"):
        norm(f"{hypotheses}.{block}.norm2", 3 * size)
        mlp(f"{hypotheses}.{block}.mlp", 3 * size, 2 * size)
    norm(f"{hypotheses}.norm", 3 * size)
    norm("regression.0", 3 * size, is_batch=True)
    linear("regression.1", 3 * size, 3 * joints, 1)
    return shapes


def original_weights(config):
    """Random weights under the original names."""
    generator = torch.Generator().manual_seed(0)
    weights = {}
    shapes = original_shapes(config.num_frames, config.hidden_size, config.num_hidden_layers, config.generation_layers)
    for name, shape in shapes.items():
        if name.endswith("num_batches_tracked"):
            weights[name] = torch.tensor(7)
        elif name.endswith("running_var"):
            weights[name] = 0.5 + torch.rand(shape, generator=generator)
        else:
            weights[name] = 0.3 * torch.randn(shape, generator=generator)
    return weights


def converted(folder, config, weights, target="model"):
    """Exit status of the command line, from a file as DataParallel writes it."""
    folder.mkdir(exist_ok=True)
    config.save_pretrained(folder / "config")
    torch.save({f"module.{name}": x for name, x in weights.items()}, folder / "original.pth")
    options = ["--checkpoint", str(folder / "original.pth"), "--config", str(folder / "config")]
    return main([*options, "--output", str(folder / target)])


# --- model ---


@pytest.mark.parametrize("changes", [{}, LONG, {"input_size": 3}])
def test_the_middle_frame_of_the_kept_ones(changes):
    model = small_model(**changes)
    config = model.config
    frames, kept = config.num_frames, config.num_kept_frames[0]
    output = model(noise(3, frames, 17, config.input_size))
    assert output.poses.shape == (3, 1, 17, 3) and output.kept_poses.shape == (3, kept, 17, 3)
    for sample in range(3):
        place = output.kept_frames[sample].tolist().index((frames - 1) // 2)
        assert torch.equal(output.poses[sample, 0], output.kept_poses[sample, place])
    assert not [name for name, _ in model.named_parameters() if name.startswith(("hourglass", "recovery"))]
    assert (model.generation.embeddings[0].norm is None) == (frames > 27)


def test_frames_are_chosen_by_all_hypotheses_side_by_side(monkeypatch):
    model, seen = small_model(), []

    def choose(features, count, always):
        seen.append((features, count, always))
        return torch.tensor([[0, 2, 4, 8]])

    monkeypatch.setattr("transformers_ait.hourglass.select_by_density", choose)
    x = noise(1, 9, 17, 2)
    assert model(x).kept_frames.tolist() == [[0, 2, 4, 8]]
    ((features, count, always),) = seen
    assert (features.shape, count, always) == ((1, 9, 48), 4, 4)
    assert torch.equal(features, model.layers[0](model.generation(x)))


def test_all_frames_where_none_are_pruned():
    model = small_model(**FULL)
    output = model(noise(2, 9, 17, 2), labels=noise(2, 9, 17, 3))
    assert output.poses.shape == (2, 1, 17, 3) and output.kept_frames is None and output.kept_poses is None


def test_the_loss_is_the_mean_error_at_the_kept_frames_and_trains_everything():
    model = small_model().train()
    keypoints, labels = noise(4, 9, 17, 2), noise(4, 9, 17, 3)
    output = model(keypoints, labels=labels)
    target = (labels - labels[:, :, :1]).gather(1, output.kept_frames[:, :, None, None].expand(-1, -1, 17, 3))
    assert output.loss.item() == pytest.approx((output.kept_poses - target).norm(dim=-1).mean().item(), rel=1e-5)
    assert output.loss_dict.keys() == {"mpjpe"}
    output.loss.backward()
    assert all(parameter.grad is not None for parameter in model.parameters())
    assert model.head.batch_norm.num_batches_tracked == 1


def test_a_new_model_starts_as_torch_does():
    model = small_model()
    qkv = model.layers[0].attentions[1].qkv
    assert qkv.weight.abs().max() <= 0.25 and qkv.weight.std() > 0.13 and qkv.bias.abs().max() > 0.2
    assert all((table == 0).all() for table in model.generation.tables)
    assert all((encoder.table == 0).all() for encoder in model.generation.encoders)
    assert (model.head.batch_norm.running_var == 1).all()


def test_the_recipe_is_the_published_setting():
    """Its rates of stochastic depth and dropout, and its 31.5 million parameters."""
    config = HourglassPoseConfig(**yaml.safe_load(RECIPE.read_text())["model"]["config"])
    with torch.device("meta"):
        model = HourglassForPoseLifting(config)
    assert sum(x.numel() for x in model.parameters()) == 31_516_125
    assert [layer.drop_path.drop_prob for layer in model.layers] == [0.0, 0.1, 0.2]
    rates = [block.drop_path.drop_prob for block in model.generation.encoders[2].blocks]
    assert rates == pytest.approx([0, 0.2 / 3, 0.4 / 3, 0.2])
    dropouts = [module.p for module in model.modules() if isinstance(module, nn.Dropout)]
    assert dropouts.count(0.1) == len(dropouts) - 3  # those of embeddings, which only short sequences use
    assert isinstance(model.layers[2], CrossHypothesisBlock)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"output": "sequence"}, "output must be 'frame' for the architecture 'mhformer'.* got 'sequence'"),
        ({"generation_heads": 4}, "num_frames must be a multiple of generation_heads 4, got 9"),
        ({"generation_layers": 0}, "generation_layers"),
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\)"),
        ({"architecture": "mixste"}, "be 0 but for the architecture 'mhformer', got 0.1 with 'mixste'"),
        ({"prune_before": [3]}, r"increasing numbers of layers in 0..2"),
    ],
)
def test_settings_that_do_not_fit(settings, message):
    with pytest.raises(Exception, match=message):
        small_config(**settings)


# --- conversion ---


@pytest.mark.parametrize("changes", [{}, LONG, FULL, {**LONG, "num_hidden_layers": 2, "prune_before": [0]}])
def test_there_and_back(changes, tmp_path):
    config = small_config(**changes)
    weights = original_weights(config)
    assert pose_names(config).keys() == weights.keys()
    assert converted(tmp_path, config, weights) == 0
    assert AutoFeatureExtractor.from_pretrained(tmp_path / "model").output == "frame"
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert model.state_dict().keys() == {*pose_names(config).values()}
    target = tmp_path / "back.safetensors"
    assert main(["--checkpoint", str(tmp_path / "model"), "--reverse", "--output", str(target)]) == 0
    back = load_file(target)
    assert back.keys() == weights.keys()
    assert all(x.dtype == weights[name].dtype and torch.equal(x, weights[name]) for name, x in back.items())


@pytest.mark.slow
def test_a_file_that_does_not_fit_is_named(tmp_path, capsys):
    config = small_config()
    weights = original_weights(config)
    running = weights.pop("regression.0.running_mean")
    assert converted(tmp_path, config, weights) == 1
    assert "regression.0.running_mean (48,) is missing" in capsys.readouterr().err
    assert converted(tmp_path, config, {**weights, "regression.0.running_mean": running, "x_token": running}) == 1
    assert "x_token (48,) is not expected" in capsys.readouterr().err
    mixste = HourglassPoseConfig(
        num_frames=9, hidden_size=16, num_hidden_layers=3, num_kept_frames=[4], prune_before=[1]
    )
    assert converted(tmp_path, mixste, weights) == 1
    assert "Spatial_patch_to_embedding" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


CHI, SHR = "Transformer_hypothesis.CHI_blocks.0", "Transformer_hypothesis.SHR_blocks.0"


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (f"{CHI}.norm3_11.weight", f"{CHI}.norm3_12.weight"),
        (f"{CHI}.attn_2.linear_q.bias", f"{CHI}.attn_2.linear_v.bias"),
        (f"{SHR}.attn_1.qkv.weight", f"{SHR}.attn_3.qkv.weight"),
        ("Transformer_encoder_2.blocks.0.mlp.fc1.weight", "Transformer_encoder_2.blocks.1.mlp.fc1.weight"),
        ("embedding_1.1.running_mean", "embedding_2.1.running_mean"),
        ("regression.0.running_mean", "regression.0.bias"),
    ],
)
def test_a_wrong_map_of_names_does_not_pass_for_a_conversion(one, other, tmp_path, monkeypatch, capsys):
    config = small_config()
    names = pose_names(config)
    names[one], names[other] = names[other], names[one]
    monkeypatch.setattr("transformers_ait.conversion.converter.pose_names", lambda config: names)
    assert converted(tmp_path, config, original_weights(config)) == 1
    assert "pose lifting: poses" in capsys.readouterr().err
    assert not (tmp_path / "model").exists()


def test_a_wrong_formula_does_not_pass_for_a_conversion(tmp_path, monkeypatch, capsys):
    """Hypotheses that are crossed side by side, not one after the other."""

    def at_once(block, x):
        parts, crossed = x.chunk(3, -1), []
        for number, attention in enumerate(block.attentions):
            sources = [part for place, part in enumerate(parts) if place != number] + [parts[number]]
            normed = [norm(source) for norm, source in zip(block.norms[number], sources, strict=True)]
            crossed.append(parts[number] + attention(*normed))
        return block.mixing(crossed)

    config = small_config()
    monkeypatch.setattr(CrossHypothesisBlock, "forward", at_once)
    assert converted(tmp_path, config, original_weights(config)) == 1
    assert "pose lifting: poses" in capsys.readouterr().err


def test_the_plain_formulas_against_torchs_own_modules():
    """One encoder block and the batch normalisation by torch's transformer layer, which knows neither of the two."""
    config = small_config()
    weights = original_weights(config)
    plain, name = PlainPoses(weights, config), "Transformer_encoder_1.blocks.0"
    layer = nn.TransformerEncoderLayer(9, 3, 18, 0.0, F.gelu, 1e-6, batch_first=True, norm_first=True).eval()
    ours = {
        "self_attn.in_proj_": "attn.qkv.", "self_attn.out_proj.": "attn.proj.", "linear1.": "mlp.fc1.",
        "linear2.": "mlp.fc2.", "norm1.": "norm1.", "norm2.": "norm2.",
    }  # fmt: skip
    state = {f"{a}{part}": weights[f"{name}.{b}{part}"] for a, b in ours.items() for part in ("weight", "bias")}
    layer.load_state_dict(state)
    x = noise(2, 34, 9)
    assert (plain.block(name, x, over_frames=False, heads=3) - layer(x)).abs().max() < 1e-5
    norm = nn.BatchNorm1d(48).eval()
    norm.load_state_dict({part: weights[f"regression.0.{part}"] for part in norm.state_dict()})
    x = noise(2, 5, 48)
    assert (plain.batch_norm("regression.0", x) - norm(x.mT).mT).abs().max() < 1e-5


# --- whole videos ---


def test_every_frame_of_a_video_is_the_middle_of_its_window():
    """One call gives a pose for every frame; past the ends the first and the last frame are repeated."""
    model = small_model()
    processor = HourglassPoseProcessor.for_model(model.config)
    video = noise(EVAL_BATCH, 17, 2)
    with torch.no_grad():
        inputs = processor(video)
        poses = processor.post_process_poses(model(**inputs), len(video))[0]
        assert poses.shape == (EVAL_BATCH, 17, 3)
        padded = F.pad(video.movedim(0, -1), (4, 4), mode="replicate").movedim(-1, 0)
        for frame in (0, 3, 17, EVAL_BATCH - 1):
            window = padded[frame : frame + 9][None]
            straight, mirrored = model(window).poses[0, 0], model(processor.mirror(window)).poses[0, 0]
            expected = (straight + processor.mirror(mirrored)) / 2
            assert (poses[frame] - (expected - expected[:1])).abs().max() < 1e-5
        assert (lift_video(model, processor, video) - poses).abs().max() < 1e-5  # in parts, which takes less memory


# --- its own code ---


def test_a_checkpoint_can_carry_the_code(tmp_path, monkeypatch):
    """transformers copies the blocks' module too, and the class loads from the copy."""
    monkeypatch.setattr("transformers.dynamic_module_utils.HF_MODULES_CACHE", str(tmp_path / "cache"))
    model = small_model()
    monkeypatch.setattr(HourglassForPoseLifting, "_auto_class", "AutoModel")
    model.save_pretrained(tmp_path / "model")
    assert (tmp_path / "model" / "hypotheses_pose.py").is_file()
    name = "modeling_hourglass_pose.HourglassForPoseLifting"
    again = get_class_from_dynamic_module(name, tmp_path / "model").from_pretrained(tmp_path / "model").eval()
    assert type(again) is not HourglassForPoseLifting
    x = noise(1, 9, 17, 2)
    assert torch.equal(again(x).poses, model(x).poses)


def test_halves_of_a_file_widen(tmp_path):
    """Half-precision files convert; the counter stays a whole number."""
    config = small_config()
    weights = {name: x.half() if x.is_floating_point() else x for name, x in original_weights(config).items()}
    config.save_pretrained(tmp_path / "config")
    save_file(weights, tmp_path / "half.safetensors")
    options = ["--checkpoint", str(tmp_path / "half.safetensors"), "--config", str(tmp_path / "config")]
    assert main([*options, "--output", str(tmp_path / "model")]) == 0
    model = AutoModel.from_pretrained(tmp_path / "model")
    assert model.head.batch_norm.num_batches_tracked.item() == 7 and model.dtype == torch.float32
    assert math.isfinite(model.head.linear.weight.sum().item())
