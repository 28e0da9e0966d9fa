"""The task-solver: what must not matter, the losses it composes, its frozen tokenizers, other backbones, storage."""

import copy

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import load_file, save_file
from transformers import (
    AutoModelForDepthEstimation,
    ConvNextConfig,
    Dinov2Config,
    ResNetConfig,
    Swinv2Config,
    TimmBackboneConfig,
)
from transformers.testing_utils import CaptureLogger
from transformers.utils import logging

from transformers_ait import AiTForDenseAndInstancePrediction, AiTModel
from transformers_ait.map_kinds_ait import scale_invariant_log_loss

TOLERANCE = 1e-4


@pytest.fixture
def model(tiny_model):
    return tiny_model()


def tensors(model):
    """Every parameter and buffer, also the non-persistent ones."""
    return dict(model.named_parameters()) | dict(model.named_buffers())


def deviation(first, second):
    assert first.shape == second.shape
    return (first.float() - second.float()).abs().max().item()


# --- what must not matter ---


def test_batched_equals_single(model, images):
    batched = model.generate(images)
    single = [model.generate(image[None]) for image in images]
    assert deviation(batched.predicted_depth, torch.cat([s.predicted_depth for s in single])) < TOLERANCE
    assert torch.equal(batched.sequences, torch.cat([s.sequences for s in single]))
    assert deviation(single[0].predicted_depth, single[1].predicted_depth) > 1e-2, "images must matter"


def test_views_equal_a_loop_over_views(model, images):
    views = torch.stack((images, images.flip(-1)), dim=1)
    output = model.generate(views)
    assert output.predicted_depth.shape == (3, 2, 32, 32)
    assert output.sequences.shape == (3, 2, 16) and output.code_logits.shape == (3, 2, 16, 12)
    for view in range(2):
        alone = model.generate(views[:, view])
        assert deviation(output.predicted_depth[:, view], alone.predicted_depth) < TOLERANCE
        assert torch.equal(output.sequences[:, view], alone.sequences)


@pytest.mark.parametrize("parallel", [False, True])
def test_eager_equals_fused_attention(tiny_model, images, depths, parallel):
    model = tiny_model(parallel=parallel)
    fused = model.generate(images), model(images, depth_labels=depths)
    model.set_attn_implementation("eager")
    attentions = [m for m in model.modules() if type(m).__name__ in ("AiTAttention", "AiTSwinV2Attention")]
    assert len(attentions) == 4 + 2 + 4 and all(m.config._attn_implementation == "eager" for m in attentions)
    assert deviation(model.generate(images).predicted_depth, fused[0].predicted_depth) < TOLERANCE
    eager = model(images, depth_labels=depths)
    assert deviation(eager.logits, fused[1].logits) < TOLERANCE
    assert eager.loss.item() == pytest.approx(fused[1].loss.item(), rel=1e-5)


@pytest.mark.parametrize("height, width", [(24, 32), (20, 11)])
def test_smaller_images_equal_explicit_zero_padding(model, images, depths, height, width):
    image, depth = images[..., :height, :width], depths[..., :height, :width]
    padded = F.pad(image, (0, 32 - width, 0, 32 - height))
    output, expected = model.generate(image), model.generate(padded)
    assert output.predicted_depth.shape == (3, height, width)
    assert torch.equal(output.predicted_depth, expected.predicted_depth[:, :height, :width])
    padded_depth = F.pad(depth, (0, 32 - width, 0, 32 - height))
    assert torch.equal(model(image, depth_labels=depth).loss, model(padded, depth_labels=padded_depth).loss)
    elsewhere = F.pad(image, (32 - width, 0, 32 - height, 0))
    assert deviation(model.generate(elsewhere).sequences, expected.sequences) > 0, "another padding must not pass"


def test_tokenizer_may_be_smaller_than_the_model(tiny_model, tiny_vqvae_config, images, depths):
    """As in joint models: 480-pixel depth in a 640-pixel model."""
    model = tiny_model(depth_tokenizer_config=tiny_vqvae_config(image_size=24))
    image, depth = images[..., :24, :24], depths[..., :24, :24]
    assert model.generate(image).predicted_depth.shape == (3, 24, 24)
    assert model(image, depth_labels=depth).logits.shape == (3, 9, 33)
    with pytest.raises(ValueError, match="sides of at most 24, the depth tokenizer's image_size"):
        model.generate(images)


def test_teacher_forced_logits_equal_stepwise_ones(tiny_model, images, depths):
    """Feeding the model's own hard choice back must give the logits of a teacher that knew it."""
    model = tiny_model(soft_feedback=False)
    generated = model.generate(images)
    model.depth_tokenizer.encode = lambda maps: model.config.vocabulary.depth_codes.to_index(
        generated.sequences
    ).unflatten(1, (4, 4))
    logits = model(images, depth_labels=depths).logits[..., model.config.vocabulary.depth_codes.rows]
    assert deviation(logits, generated.code_logits) < TOLERANCE
    soft = model.generate(images, soft_feedback=True).code_logits
    assert deviation(logits, soft) > 1e-2, "soft feedback must not pass for hard feedback"


def test_parallel_training_logits_are_those_of_decoding(tiny_model, images, depths):
    model = tiny_model(parallel=True)
    logits = model(images, depth_labels=depths).logits[..., model.config.vocabulary.depth_codes.rows]
    assert deviation(logits, model.generate(images).code_logits) < TOLERANCE
    other_depths = model(images, depth_labels=depths.flip(0)).logits[..., model.config.vocabulary.depth_codes.rows]
    assert torch.equal(logits, other_depths), "labels must not leak into a parallel model"


# --- the two soft switches ---


def test_soft_feedback_and_soft_decode_are_separate_switches(model, images):
    runs = {
        (feedback, decode): model.generate(images, soft_feedback=feedback, soft_decode=decode)
        for feedback in (True, False)
        for decode in (True, False)
    }
    for decode in (True, False):
        assert deviation(runs[True, decode].code_logits, runs[False, decode].code_logits) > 1e-3
    for feedback in (True, False):
        soft, hard = runs[feedback, True], runs[feedback, False]
        assert torch.equal(soft.code_logits, hard.code_logits)
        assert deviation(soft.predicted_depth, hard.predicted_depth) > 1e-2
        grid = hard.code_logits.transpose(1, 2).unflatten(2, (4, 4))
        assert deviation(hard.predicted_depth, model.depth_tokenizer.decode(grid.argmax(1))[:, 0]) < TOLERANCE
        assert deviation(soft.predicted_depth, model.depth_tokenizer.decode_soft(grid)[:, 0]) < TOLERANCE


def test_switches_default_to_the_configuration(tiny_model, images):
    for feedback, decode in ((True, False), (False, True)):
        model = tiny_model(soft_feedback=feedback, soft_decode=decode)
        explicit = model.generate(images, soft_feedback=feedback, soft_decode=decode)
        assert torch.equal(model(images).predicted_depth, explicit.predicted_depth)


def test_predicted_depth_is_not_clamped(model, images):
    model.depth_tokenizer.decoder.output.bias.data -= 100
    assert model.generate(images).predicted_depth.max() < 0


# --- losses ---


def test_depth_loss_against_its_definition(tiny_model, images, depths):
    model = tiny_model(depth_loss_weight=0.2, depth_aux_weight=0.7)
    output = model(images, depth_labels=depths)
    vocabulary = model.config.vocabulary
    targets = model.depth_tokenizer.encode(depths[:, None]).flatten(1) + vocabulary.depth_codes.start
    probabilities = output.logits.double().log_softmax(-1)
    cross_entropy = -probabilities.gather(2, targets[..., None]).mean()
    grid = output.logits[..., vocabulary.depth_codes.rows].transpose(1, 2).unflatten(2, (4, 4))
    auxiliary = scale_invariant_log_loss(model.depth_tokenizer.decode_soft(grid)[:, 0], depths)
    assert output.loss_dict["depth_ce"].item() == pytest.approx(cross_entropy.item(), rel=1e-5)
    assert output.loss_dict["depth_aux"].item() == pytest.approx(auxiliary.item(), rel=1e-5)
    assert output.loss.item() == pytest.approx(0.2 * (cross_entropy + 0.7 * auxiliary).item(), rel=1e-5)


def test_auxiliary_loss_is_absent_without_soft_decode(tiny_model, images, depths):
    output = tiny_model(soft_decode=False)(images, depth_labels=depths)
    assert output.loss_dict["depth_aux"] == 0
    assert torch.equal(output.loss, output.loss_dict["depth_ce"])


def test_image_without_valid_pixel_adds_nothing(model, images, depths):
    model.train()
    holes = depths.clone()
    holes[1] = 0
    with_hole = model(images, depth_labels=holes)
    without = model(images[[0, 2]], depth_labels=depths[[0, 2]])
    assert with_hole.loss.item() == pytest.approx(without.loss.item(), rel=1e-5)
    assert with_hole.loss.item() != pytest.approx(model(images, depth_labels=depths).loss.item(), rel=1e-3)
    nothing = model(images, depth_labels=torch.zeros_like(depths))
    assert nothing.loss == 0
    nothing.loss.backward()
    with_hole.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


def test_gradient_flows_through_the_frozen_detokenizer_but_not_into_it(tiny_model, images, depths):
    model = tiny_model(depth_loss_weight=1.0).train()
    output = model(images, depth_labels=depths)
    output.logits.retain_grad()
    (output.loss - output.loss_dict["depth_ce"]).backward()
    assert all(p.grad is None and not p.requires_grad for p in model.depth_tokenizer.parameters())
    with_auxiliary = output.logits.grad
    model.config.depth_aux_weight = 0.0
    output = model(images, depth_labels=depths)
    output.logits.retain_grad()
    output.loss.backward()
    codes = model.config.vocabulary.depth_codes.rows
    assert deviation(with_auxiliary[..., codes], output.logits.grad[..., codes]) > 1e-6
    assert torch.allclose(with_auxiliary[..., : codes.start], output.logits.grad[..., : codes.start], atol=1e-7)


def test_every_weight_of_the_solver_learns(model, images, depths):
    model.train()(images, depth_labels=depths).loss.backward()
    silent = {n for n, p in model.model.named_parameters() if p.grad is None or p.grad.abs().max() == 0}
    assert silent == set()


# --- frozen tokenizers ---


def reload(model, tmp_path):
    model.save_pretrained(tmp_path)
    return AutoModelForDepthEstimation.from_pretrained(tmp_path)


@pytest.mark.parametrize("loaded", [False, True])
def test_training_never_moves_the_tokenizers(model, images, depths, tmp_path, loaded):
    model = reload(model, tmp_path) if loaded else model
    before = copy.deepcopy(tensors(model.depth_tokenizer))
    model.train()
    assert model.training and not model.depth_tokenizer.training and not model.depth_tokenizer.quantizer.training
    assert not any(p.requires_grad for p in model.depth_tokenizer.parameters())
    optimiser = torch.optim.AdamW((p for p in model.parameters() if p.requires_grad), lr=0.01, weight_decay=0.1)
    losses = []
    for _ in range(5):
        optimiser.zero_grad()
        loss = model(images, depth_labels=depths).loss
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    after = tensors(model.depth_tokenizer)
    assert all(torch.equal(before[name], after[name]) for name in before)


def test_solver_without_the_freeze_would_be_noticed(model, images, depths):
    model.train().depth_tokenizer.requires_grad_(True).train()
    before = copy.deepcopy(tensors(model.depth_tokenizer))
    model.depth_tokenizer(depths[:, None])
    model(images, depth_labels=depths).loss.backward()
    assert any(p.grad is not None for p in model.depth_tokenizer.parameters())
    assert not torch.equal(before["quantizer.codebook"], model.depth_tokenizer.quantizer.codebook)


# --- errors ---


@pytest.mark.parametrize(
    "change, message",
    [
        (lambda x, d: {"task": "depht"}, r"task must be one of \['depth'\].*'depht'"),
        (lambda x, d: {"task": "instance"}, "task must be one of"),
        (lambda x, d: {"pixel_values": F.pad(x, (0, 1))}, "pixel_values must have sides of at most 32"),
        (lambda x, d: {"pixel_values": x[0]}, "pixel_values"),
        (lambda x, d: {"pixel_values": x[None, None]}, "pixel_values"),
        (lambda x, d: {"depth_labels": d[:1]}, r"depth_labels must be \(batch, height, width\)"),
        (lambda x, d: {"depth_labels": d[:, None]}, r"depth_labels must be \(batch, height, width\)"),
        (lambda x, d: {"depth_labels": d[..., :16]}, "depth_labels must be"),
        (lambda x, d: {"depth_labels": -d}, "depth_labels must be finite and not negative; mark invalid pixels with 0"),
        (lambda x, d: {"depth_labels": d * torch.nan}, "depth_labels must be finite"),
        (lambda x, d: {"depth_labels": d / 0}, "depth_labels must be finite"),
        (lambda x, d: {"instance_labels": [{}]}, "depth_labels"),
    ],
)
def test_unfit_arguments_are_named(model, images, depths, change, message):
    with pytest.raises(ValueError, match=message):
        model(**({"pixel_values": images} | change(images, depths)))


def test_base_model_names_unfit_images(model, images):
    with pytest.raises(ValueError, match="sides of at most 32, the model's image_size"):
        model.get_image_features(F.pad(images, (0, 8)))


# --- precision ---


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_by_conversion(model, images, depths, dtype):
    expected = model.generate(images).predicted_depth
    model.to(dtype)
    output = model.generate(images)
    assert output.code_logits.dtype == dtype
    assert (output.predicted_depth.float() - expected).abs().mean() < 0.5
    assert model(images, depth_labels=depths).loss.isfinite()


def test_half_precision_by_loading_keeps_the_tokenizers_in_float32(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    half = AutoModelForDepthEstimation.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.model.decoder.token_embeddings.dtype == torch.bfloat16
    assert all(x.dtype == torch.float32 for x in tensors(half.depth_tokenizer).values())
    output = half.generate(images)
    assert output.predicted_depth.dtype == torch.float32
    assert (output.predicted_depth - model.generate(images).predicted_depth).abs().mean() < 0.5


def test_mixed_precision_training_step(model, images, depths):
    expected = model.train()(images, depth_labels=depths).loss
    with torch.autocast("cpu", torch.bfloat16):
        loss = model(images, depth_labels=depths).loss
    loss.backward()
    assert loss.dtype == torch.float32 and loss.item() == pytest.approx(expected.item(), rel=0.05)


# --- composition ---

BACKBONES = {
    "swinv2": (
        Swinv2Config(image_size=32, patch_size=4, embed_dim=8, depths=[1, 1], num_heads=[1, 2], window_size=4),
        8,
    ),
    "resnet": (
        ResNetConfig(embedding_size=8, hidden_sizes=[8, 16], depths=[1, 1], layer_type="basic", out_indices=[2]),
        8,
    ),
    "convnext": (ConvNextConfig(hidden_sizes=[8, 16], depths=[1, 1], num_stages=2), 8),
    "dinov2": (
        Dinov2Config(image_size=32, patch_size=8, hidden_size=16, num_hidden_layers=1, num_attention_heads=2),
        8,
    ),
    "timm": (TimmBackboneConfig(backbone="test_resnet", use_pretrained_backbone=False, out_indices=[2]), 8),
}


@pytest.mark.parametrize("name", BACKBONES)
def test_other_backbones_train_decode_and_round_trip(tiny_model, images, depths, tmp_path, name):
    config, stride = BACKBONES[name]
    model = tiny_model(backbone_config=copy.deepcopy(config), feature_stride=stride)
    assert model.get_image_features(images).shape[2:] == (4, 4)
    output = model.train()(images, depth_labels=depths)
    output.loss.backward()
    gradients = [p.grad for p in model.model.backbone.parameters() if p.grad is not None]
    assert sum(g.abs().max() > 0 for g in gradients) > 0.5 * len(list(model.model.backbone.parameters()))
    loaded = reload(model.eval(), tmp_path)
    expected, actual = tensors(model), tensors(loaded)
    assert expected.keys() == actual.keys() and all(torch.equal(expected[n], actual[n]) for n in expected)
    assert torch.equal(loaded.generate(images).predicted_depth, model.generate(images).predicted_depth)


def test_wrong_feature_stride_is_an_error_that_names_the_fix(tiny_model, images):
    config, _ = BACKBONES["resnet"]
    model = tiny_model(backbone_config=copy.deepcopy(config), feature_stride=16)
    with pytest.raises(ValueError, match=r"feature map is \(4, 4\).*feature_stride 16.*set feature_stride"):
        model.generate(images)


def test_bin_tokenizer_in_the_solver(tiny_model, bin_tokenizer_config, images, depths, tmp_path):
    model = tiny_model(depth_tokenizer_config=bin_tokenizer_config)
    model(images, depth_labels=depths).loss.backward()
    output = model.generate(images)
    assert output.predicted_depth.min() > 0 and output.predicted_depth.max() < 10
    assert torch.equal(reload(model, tmp_path).generate(images).predicted_depth, output.predicted_depth)


def test_separately_trained_tokenizer_can_be_put_in(tiny_model, images):
    first, second = tiny_model(), tiny_model()
    second.depth_tokenizer.decoder.output.bias.data += 1
    first.depth_tokenizer.load_state_dict(second.depth_tokenizer.state_dict())
    assert torch.equal(first.generate(images).predicted_depth, second.generate(images).predicted_depth)


# --- instances ---


@pytest.fixture
def instance_model(tiny_model, tiny_vqvae_config):
    mask_tokenizer = tiny_vqvae_config(
        image_size=8, downsample_ratio=4, num_codes=5, symmetric_range=True, ignore_zero=False
    )
    return tiny_model(
        tasks=("instance", "depth"), mask_tokenizer_config=mask_tokenizer, max_aux_objects=2, num_objects=2
    )


@pytest.fixture
def instance_labels():
    masks = torch.zeros(2, 32, 32)
    masks[0, 4:20, 6:18] = 1
    masks[1, 10:30, 15:31] = 1
    boxes = torch.tensor([[6.0, 4.0, 18.0, 20.0], [15.0, 10.0, 31.0, 30.0]])
    label = {"boxes": boxes, "class_labels": torch.tensor([0, 2]), "masks": masks}
    nothing = {"boxes": boxes[:0], "class_labels": label["class_labels"][:0], "masks": masks[:0]}
    return [label, {name: value[:1] for name, value in label.items()}, nothing]


def test_instances_batched_equal_single(instance_model, images):
    batched = instance_model.generate(images, task="instance", top_p=0)
    single = [instance_model.generate(image[None], task="instance", top_p=0) for image in images]
    assert batched.boxes.shape == (3, 2, 4) and batched.mask_values.shape == (3, 2, 8, 8)
    for name in ("boxes", "scores", "class_labels", "mask_values", "sequences", "code_logits"):
        assert deviation(getattr(batched, name), torch.cat([getattr(s, name) for s in single])) < TOLERANCE, name


def test_same_seed_samples_the_same_objects(instance_model, images):
    def sample(seed):
        generator = torch.Generator().manual_seed(seed)
        return instance_model.generate(images, task="instance", top_p=0.99, generator=generator).sequences

    assert torch.equal(sample(1), sample(1)) and not torch.equal(sample(1), sample(2))


def test_instance_loss_learns_and_survives_images_without_objects(instance_model, images, instance_labels):
    model = instance_model.train()
    output = model(images, task="instance", instance_labels=instance_labels)
    assert set(output.loss_dict) == {f"instance_{part}" for part in ("box_ce", "class_ce", "mask_ce", "aux")}
    assert all(value.isfinite() and value > 0 for value in output.loss_dict.values())
    output.loss.backward()
    empty = model(images[:1], task="instance", instance_labels=instance_labels[2:])
    assert empty.loss.isfinite() and empty.loss_dict["instance_aux"] == 0
    empty.loss.backward()
    assert all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)
    assert all(p.grad is None for p in model.mask_tokenizer.parameters())


def test_labels_of_another_task_are_refused(instance_model, images, depths, instance_labels):
    with pytest.raises(ValueError, match="instance_labels"):
        instance_model(images, task="instance", depth_labels=depths)
    with pytest.raises(ValueError, match="depth_labels"):
        instance_model(images, task="depth", instance_labels=instance_labels)
    with pytest.raises(ValueError, match=r"one entry per image \(3\), got 1"):
        instance_model(images, task="instance", instance_labels=instance_labels[:1])


@pytest.mark.parametrize(
    "change, message",
    [
        ({"masks": torch.zeros(2, 16, 16)}, "masks must be"),
        ({"class_labels": torch.tensor([0, 3])}, r"class_labels must lie in \[0, 3\)"),
        (
            {"boxes": torch.tensor([[6.0, 4.0, 6.0, 20.0], [15.0, 10.0, 31.0, 30.0]])},
            "boxes must be finite with x2 > x1",
        ),
        ({"boxes": torch.zeros(2, 5)}, "boxes must be"),
    ],
)
def test_unfit_instance_labels_are_named(instance_model, images, instance_labels, change, message):
    with pytest.raises(ValueError, match=message):
        instance_model(images[:1], task="instance", instance_labels=[instance_labels[0] | change])


# --- storage ---


@pytest.mark.parametrize("parallel", [False, True])
def test_round_trip_is_exact_in_every_tensor(tiny_model, images, tmp_path, parallel):
    model = tiny_model(parallel=parallel)
    loaded = reload(model, tmp_path)
    expected, actual = tensors(model), tensors(loaded)
    assert {"model.encoder.positions", "depth_tokenizer.quantizer.ema_sums"} <= expected.keys() == actual.keys()
    assert all(torch.equal(expected[name], actual[name]) for name in expected)
    assert not loaded.training
    assert torch.equal(loaded.generate(images).predicted_depth, model.generate(images).predicted_depth)


def test_base_model_loads_from_the_whole_checkpoint_silently(model, images, tmp_path):
    model.save_pretrained(tmp_path)
    base, report = AiTModel.from_pretrained(tmp_path, output_loading_info=True)
    assert not report["missing_keys"] and not report["mismatched_keys"]
    assert not report["unexpected_keys"], "the tokenizers are no part of the base model, which should know that"
    assert torch.equal(base(images).last_hidden_state, model.get_encoder_memory(images))


def test_another_vocabulary_does_not_load_silently(model, tmp_path):
    model.save_pretrained(tmp_path)
    with pytest.raises(RuntimeError):
        AutoModelForDepthEstimation.from_pretrained(tmp_path, num_bins=20)


def test_missing_checkpoints_are_named(model, tmp_path):
    model.config.save_pretrained(tmp_path)
    with pytest.raises(OSError, match=f"model.safetensors.*{tmp_path}"):
        AutoModelForDepthEstimation.from_pretrained(tmp_path)


def test_truncated_checkpoint_is_an_error(model, tmp_path):
    model.save_pretrained(tmp_path)
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1000])
    with pytest.raises(OSError, match=f"{tmp_path} are damaged or incomplete"):
        AutoModelForDepthEstimation.from_pretrained(tmp_path)


def test_tuple_outputs(model, images, depths):
    assert torch.equal(model(images, return_dict=False)[0], model(images).predicted_depth)
    assert isinstance(model(images, depth_labels=depths, return_dict=False), tuple)


@pytest.mark.slow
def test_stages_beyond_the_requested_map_are_neither_kept_nor_missed(tiny_model, images, tmp_path):
    timm_backbone = {"model_type": "timm_backbone", "backbone": "tf_efficientnet_lite0", "out_indices": [2]}
    model = tiny_model(backbone_config=timm_backbone, feature_stride=8)
    network = model.model.backbone._backbone
    assert len(network.blocks) == 3
    whole = timm.create_model("tf_efficientnet_lite0", features_only=True, out_indices=[2]).eval()
    state = {name: x for name, x in whole.state_dict().items() if name in network.state_dict()}
    network.load_state_dict(state)
    assert torch.equal(network(images)[0], whole(images)[0])
    model.save_pretrained(tmp_path)
    older = load_file(tmp_path / "model.safetensors")
    prefix = "model.backbone._backbone."
    older |= {prefix + name: x for name, x in whole.state_dict().items() if prefix + name not in older}
    save_file(older, tmp_path / "model.safetensors", metadata={"format": "pt"})
    with CaptureLogger(logging.get_logger("transformers.modeling_utils")) as captured:
        again = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path).eval()
    assert captured.out == "" and torch.equal(again(images).predicted_depth, model(images).predicted_depth)
