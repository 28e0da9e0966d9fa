"""This package's models against the goldens of the original, converted in memory; planted errors must show."""

import copy
import json
from functools import lru_cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformers_ait import (
    AiTDepthImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTSwinV2Backbone,
    AiTVQVAEModel,
)
from transformers_ait.configuration_ait import TASK_IDS
from transformers_ait.conversion.checkpoint import rename
from transformers_ait.conversion.key_map import (
    backbone_names,
    dropped_shapes,
    invert,
    task_solver_names,
    vqvae_names,
)
from transformers_ait.conversion.original_config import (
    ait_config_from_original,
    backbone_config_from_original,
    vqvae_config_from_original,
)
from transformers_ait.conversion.plain import select

GOLDENS = Path(__file__).parent / "goldens"
DEPTH = ["depth_ar_soft", "depth_ar_hard", "depth_parallel"]
INSTANCE = ["detection", "instance_soft", "instance_hard"]
LOSS_NAMES = {"depth_ce": "depth_ce", "depth_decoder_aux_ce": "depth_aux"}


@lru_cache
def golden(name):
    return load_file(GOLDENS / f"{name}.safetensors"), json.loads((GOLDENS / f"{name}.json").read_text())


def build(model_class, config, tensors, names, buffers=None):
    """A model in evaluation mode with original tensors, which it does not share."""
    model = model_class(config)
    shapes = {name: tensor.shape for name, tensor in model.state_dict().items()}
    model.load_state_dict(rename(tensors, names, shapes, buffers or {}).tensors)
    return model.eval()


def task_solver(name, **changes):
    stored, figures = golden(name)
    config = ait_config_from_original({**figures["config"], **changes})
    names = task_solver_names(config)
    tensors = select(stored, "state_dict.")
    return build(AiTForDenseAndInstancePrediction, config, tensors, names, dropped_shapes(config)), names


def deviation(actual, expected):
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item()


def check_gradients(model, names, figures):
    ours = invert({original: mine for original, mine in names.items() if original in figures["grad_norms"]})
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert set(parameters) == set(ours)
    for name, parameter in parameters.items():
        expected = figures["grad_norms"][ours[name]]
        assert parameter.grad.norm().item() == pytest.approx(expected, rel=1e-3, abs=1e-5), ours[name]


# --- task-solver ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [*DEPTH, *INSTANCE])
@torch.no_grad()
def test_feature_and_memory(name):
    stored, _ = golden(name)
    model, _ = task_solver(name)
    assert deviation(model.get_image_features(stored["pixel_values"]), stored["backbone_feature"]) < 1e-4
    assert deviation(model.get_encoder_memory(stored["pixel_values"]), stored["encoder_memory"]) < 1e-4


@torch.no_grad()
def test_backbone_shifts_everywhere():
    stored, figures = golden("backbone_shift_all")
    config = backbone_config_from_original(figures["config"]["backbone"])
    tensors = select(stored, "state_dict.")
    model = build(AiTSwinV2Backbone, config, tensors, backbone_names(config, ours=""))
    feature = model(stored["pixel_values"]).feature_maps[-1]
    assert deviation(feature, stored["backbone_feature"]) < 1e-4


@pytest.mark.parametrize("name", DEPTH)
def test_depth_training_step(name):
    stored, figures = golden(name)
    model, names = task_solver(name)
    output = model.train()(stored["pixel_values"], task="depth", depth_labels=stored["depth_gt"])
    assert deviation(output.logits, stored["teacher_forced_logits"]) < 1e-4
    assert output.loss.item() == pytest.approx(figures["losses"]["depth_loss"], rel=1e-5)
    for original, ours in LOSS_NAMES.items():
        assert output.loss_dict[ours].item() == pytest.approx(figures["losses"][original], rel=1e-5), ours
    output.loss.backward()
    check_gradients(model, names, figures)


@pytest.mark.parametrize("name", DEPTH)
@torch.no_grad()
def test_depth_target_tokens(name):
    stored, _ = golden(name)
    model, _ = task_solver(name)
    codes = model.depth_tokenizer.encode(stored["depth_gt"].unsqueeze(1))
    assert torch.equal(codes.flatten(1), stored["target_tokens"])


@pytest.mark.parametrize("name", DEPTH)
@torch.no_grad()
def test_depth_generation(name):
    stored, _ = golden(name)
    model, _ = task_solver(name)
    generated = model.generate(stored["pixel_values"], task="depth")
    codes = model.config.vocabulary.depth_codes.to_index(generated.sequences)
    assert torch.equal(codes, stored["generated_tokens"])
    assert deviation(generated.code_logits, stored["generated_token_logits"]) < 1e-4
    assert deviation(generated.predicted_depth, stored["predicted_depth_window"]) < 1e-4
    assert deviation(model(stored["pixel_values"]).predicted_depth, stored["predicted_depth_window"]) < 1e-4


@pytest.mark.parametrize("name", DEPTH)
@torch.no_grad()
def test_depth_protocol(name):
    stored, _ = golden(name)
    model, _ = task_solver(name)
    processor = AiTDepthImageProcessor(size={"height": 96, "width": 96}, num_windows=2, do_flip_augment=True)
    images = stored["wide_pixel_values"]
    inputs = processor(list(images), do_rescale=False, return_tensors="pt")
    assert inputs["pixel_values"].shape == (2, 4, 3, 96, 96)
    depths = processor.post_process_depth_estimation(model(**inputs), [tuple(images.shape[2:])] * len(images))
    predicted = torch.stack([depth["predicted_depth"] for depth in depths])
    assert deviation(predicted, stored["predicted_depth_protocol"]) < 1e-4


@pytest.mark.parametrize("name", INSTANCE)
@torch.no_grad()
def test_object_models_teacher_forced_logits(name):
    stored, _ = golden(name)
    model, _ = task_solver(name)
    decoder, task_id = model.model.decoder, TASK_IDS[model.config.tasks[0]]
    inputs = decoder.inputs(decoder.token_embeddings[stored["input_seq"]], task_id)
    logits = decoder.logits(decoder(inputs, stored["encoder_memory"]))
    assert deviation(logits, stored["teacher_forced_logits"]) < 1e-4


@pytest.mark.parametrize("name", ["instance_soft", "instance_hard"])
@torch.no_grad()
def test_mask_tokenizer_inside_a_task_solver(name):
    stored, _ = golden(name)
    model, _ = task_solver(name)
    codes = model.mask_tokenizer.encode(stored["gt_mask_crops"].unsqueeze(1))
    assert torch.equal(codes.flatten(1), stored["gt_mask_tokens"])
    assert deviation(model.mask_tokenizer.decode(codes).squeeze(1), stored["gt_mask_decoded"]) < 1e-4


@torch.no_grad()
def test_joint_model():
    stored, _ = golden("joint")
    model, _ = task_solver("joint")
    assert deviation(model.get_image_features(stored["depth_pixel_values"]), stored["depth_backbone_feature"]) < 1e-4
    instance_memory = model.get_encoder_memory(stored["instance_pixel_values"])
    depth_memory = model.get_encoder_memory(stored["depth_pixel_values"])
    assert deviation(torch.cat((instance_memory, depth_memory)), stored["encoder_memory"]) < 1e-4

    decoder = model.model.decoder
    inputs = decoder.inputs(decoder.token_embeddings[stored["instance_input_seq"]], TASK_IDS["instance"])
    logits = decoder.logits(decoder(inputs, instance_memory))
    assert deviation(logits, stored["teacher_forced_logits"][:1]) < 1e-4

    generated = model.generate(stored["depth_pixel_values"], task="depth")
    codes = model.config.vocabulary.depth_codes.to_index(generated.sequences)
    assert torch.equal(codes, stored["generated_tokens"])
    assert deviation(generated.code_logits, stored["generated_token_logits"]) < 1e-4
    assert deviation(generated.predicted_depth, stored["predicted_depth_window"]) < 1e-4


def test_joint_depth_losses():
    stored, figures = golden("joint")
    model, _ = task_solver("joint")
    output = model(stored["depth_pixel_values"], task="depth", depth_labels=stored["depth_gt"])
    length = output.logits.shape[1]
    assert deviation(output.logits, stored["teacher_forced_logits"][1:, :length]) < 1e-4
    assert output.loss.item() == pytest.approx(figures["losses"]["depth_loss"], rel=1e-5)
    for original, ours in LOSS_NAMES.items():
        assert output.loss_dict[ours].item() == pytest.approx(figures["losses"][original], rel=1e-5), ours


# --- VQ-VAE ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["vqvae_depth", "vqvae_mask"])
def test_vqvae_training_step(name):
    stored, figures = golden(name)
    config = vqvae_config_from_original(figures["config"])
    names = vqvae_names(config)
    model = build(AiTVQVAEModel, config, select(stored, "before."), names)
    output = model.train()(stored["input"], labels=stored["label"])
    assert output.loss.item() == pytest.approx(figures["losses"]["loss"], rel=1e-5)
    assert output.reconstruction_loss.item() == pytest.approx(figures["losses"]["recon_loss"], rel=1e-5)
    assert deviation(output.reconstruction, stored["reconstruction_train"]) < 1e-4
    output.loss.backward()
    check_gradients(model, names, figures)

    buffers = dict(model.named_buffers())
    for original, expected in select(stored, "after.").items():
        assert deviation(buffers[names[original]], expected) < 1e-5, original
    with torch.no_grad():
        codes = model.eval().encode(stored["input"])
        assert torch.equal(codes, stored["codes_eval"])
        assert deviation(model.decode(codes), stored["decoded_eval"]) < 1e-4


# --- planted errors: the comparisons above must be able to fail -----------------------------------------------------


def _swap_two_heads(model):
    attention = model.model.backbone.stages[1].blocks[0].attention
    half = attention.logit_scale.shape[0] // 2
    attention.logit_scale.data = attention.logit_scale.data.roll(half, dims=0)


def _wrong_norm_epsilon(model):
    for module in model.model.backbone.modules():
        if isinstance(module, torch.nn.LayerNorm):
            module.eps = 1e-5


def _drop_bias(model):
    model.model.backbone.stages[0].blocks[0].attention.projection.bias.data.zero_()


def _no_shift(model):
    for module in model.model.backbone.modules():
        if hasattr(module, "shift"):
            module.shift = 0


@pytest.mark.parametrize("plant", [_swap_two_heads, _wrong_norm_epsilon, _drop_bias, _no_shift])
@torch.no_grad()
def test_planted_error_in_the_backbone_shows(plant):
    stored, _ = golden("depth_ar_soft")
    model, _ = task_solver("depth_ar_soft")
    plant(model)
    assert deviation(model.get_image_features(stored["pixel_values"]), stored["backbone_feature"]) > 1e-4


@torch.no_grad()
def test_planted_temperature_shows():
    stored, figures = golden("depth_ar_soft")
    heads = copy.deepcopy(figures["config"]["task_heads"])
    heads["depth"]["vae_cfg"]["tau"] = 1.0
    model, _ = task_solver("depth_ar_soft", task_heads=heads)
    generated = model.generate(stored["pixel_values"])
    assert deviation(generated.code_logits, stored["generated_token_logits"]) < 1e-4
    assert deviation(generated.predicted_depth, stored["predicted_depth_window"]) > 1e-3
