"""The plain re-computation against the goldens: every formula, and planted errors that the comparison must notice."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from transformers_ait.conversion.plain.backbone import plain_backbone
from transformers_ait.conversion.plain.decoder import plain_decoder_logits, plain_encoder_memory, plain_sine_table
from transformers_ait.conversion.plain.layers import select
from transformers_ait.conversion.plain.prediction import (
    plain_decode_depth,
    plain_decode_objects,
    plain_depth_from_logits,
    plain_depth_inputs,
    plain_depth_losses,
    plain_depth_protocol,
    plain_predict_depth,
)
from transformers_ait.conversion.plain.vqvae import plain_vqvae_decode, plain_vqvae_encode, plain_vqvae_training_forward

GOLDENS = Path(__file__).parent / "goldens"
DEPTH = ["depth_ar_soft", "depth_ar_hard", "depth_parallel"]
INSTANCE = ["detection", "instance_soft", "instance_hard"]


@pytest.fixture(scope="module")
def golden():
    """Loader: name -> (stored tensors, stored figures, original weights)."""
    loaded = {}

    def load(name):
        if name not in loaded:
            stored = load_file(GOLDENS / f"{name}.safetensors")
            figures = json.loads((GOLDENS / f"{name}.json").read_text())
            loaded[name] = stored, figures, select(stored, "state_dict.")
        return loaded[name]

    return load


def deviation(actual: torch.Tensor, expected: torch.Tensor) -> float:
    assert actual.shape == expected.shape
    return (actual - expected).abs().max().item()


@pytest.mark.parametrize("name", ["backbone_shift_all", *DEPTH, *INSTANCE])
@torch.no_grad()
def test_backbone_feature(golden, name):
    stored, figures, weights = golden(name)
    feature = plain_backbone(weights, figures["config"], stored["pixel_values"])
    assert deviation(feature, stored["backbone_feature"]) < 1e-4


@pytest.mark.parametrize("name", [*DEPTH, *INSTANCE])
@torch.no_grad()
def test_sine_table_is_the_stored_buffer(golden, name):
    _, figures, weights = golden(name)
    transformer = figures["config"]["transformer"]
    table = plain_sine_table(transformer["n_rows"], transformer["n_cols"], transformer["d_model"])
    assert deviation(table, weights["transformer.enc_embed"].flatten(0, 2)) < 1e-6


@pytest.mark.parametrize("name", DEPTH)
@torch.no_grad()
def test_depth_memory_codes_and_teacher_forced_logits(golden, name):
    stored, figures, weights = golden(name)
    config = figures["config"]
    memory = plain_encoder_memory(weights, config, stored["backbone_feature"])
    assert deviation(memory, stored["encoder_memory"]) < 1e-4
    vqvae = select(weights, "depth_head.vqvae.")
    codes = plain_vqvae_encode(vqvae, stored["depth_gt"][:, None], use_norm=False).flatten(1)
    assert torch.equal(codes, stored["target_tokens"])
    logits = plain_decoder_logits(weights, config, memory, task_id=2, inputs=plain_depth_inputs(weights, config, codes))
    assert deviation(logits, stored["teacher_forced_logits"]) < 1e-4


@pytest.mark.parametrize("name", DEPTH)
@pytest.mark.parametrize("cached", [True, False], ids=["cached", "recomputed"])
@torch.no_grad()
def test_depth_decoding(golden, name, cached):
    stored, figures, weights = golden(name)
    codes, logits = plain_decode_depth(weights, figures["config"], stored["encoder_memory"], cached)
    assert torch.equal(codes, stored["generated_tokens"])
    assert deviation(logits, stored["generated_token_logits"]) < 1e-4


@pytest.mark.parametrize("name", DEPTH)
@torch.no_grad()
def test_parallel_loop_is_one_decoder_pass(golden, name):
    stored, figures, weights = golden(name)
    config, codes = figures["config"], stored["generated_tokens"]
    inputs = plain_depth_inputs(weights, config, codes)
    one_pass = plain_decoder_logits(weights, config, stored["encoder_memory"], 2, inputs)[..., 64:80]
    same = deviation(one_pass, stored["generated_token_logits"]) < 1e-4
    assert same == (name != "depth_ar_soft")  # soft feedback is no teacher forcing


@pytest.mark.parametrize("name", DEPTH)
@torch.no_grad()
def test_predicted_depth(golden, name):
    stored, figures, weights = golden(name)
    window = plain_predict_depth(weights, figures["config"], stored["pixel_values"])
    assert deviation(window, stored["predicted_depth_window"]) < 1e-4
    protocol = plain_depth_protocol(weights, figures["config"], stored["wide_pixel_values"])
    assert deviation(protocol, stored["predicted_depth_protocol"]) < 1e-4


@pytest.mark.parametrize("name", DEPTH)
def test_depth_losses_and_gradients(golden, name):
    stored, figures, weights = golden(name)
    config = figures["config"]
    leaves = {key: value.clone().requires_grad_(key in figures["grad_norms"]) for key, value in weights.items()}
    feature = plain_backbone(leaves, config, stored["pixel_values"])
    losses = plain_depth_losses(leaves, config, plain_encoder_memory(leaves, config, feature), stored["depth_gt"])
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(figures["losses"], rel=1e-5)
    losses["depth_loss"].backward()
    for key, expected in figures["grad_norms"].items():
        assert leaves[key].grad.norm().item() == pytest.approx(expected, rel=1e-3, abs=1e-5), key


@pytest.mark.parametrize("name", INSTANCE)
@torch.no_grad()
def test_instance_memory_and_teacher_forced_logits(golden, name):
    stored, figures, weights = golden(name)
    config = figures["config"]
    memory = plain_encoder_memory(weights, config, stored["backbone_feature"])
    assert deviation(memory, stored["encoder_memory"]) < 1e-4
    task_id = next(iter(config["task_heads"].values()))["task_id"]
    inputs = weights["transformer.voc_embed"][stored["input_seq"]]
    logits = plain_decoder_logits(weights, config, memory, task_id, inputs)
    assert deviation(logits, stored["teacher_forced_logits"]) < 1e-4


@pytest.mark.parametrize("name", INSTANCE)
@torch.no_grad()
def test_object_decoding(golden, name):
    stored, figures, weights = golden(name)
    head = next(iter(figures["config"]["task_heads"]))
    tokens = stored["generated_tokens"]
    length = len(tokens) // len(stored["pred_labels"])
    steps = 2 * length  # two objects
    logits = plain_decode_objects(weights, figures["config"], stored["encoder_memory"], head, steps)
    chosen = [x[0, :-1].argmax() if i % length == 4 else x[0].argmax() for i, x in enumerate(logits)]
    assert torch.equal(torch.stack(chosen), tokens[:steps])
    scores = [logits[i][0].softmax(-1)[chosen[i]] for i in range(4, steps, length)]
    assert deviation(torch.stack(scores), stored["generated_scores"][:2]) < 1e-4
    if "generated_mask_logits" in stored:
        codes = torch.stack([x[0] for i, x in enumerate(logits) if i % length > 4]).unflatten(0, (2, -1))
        assert deviation(codes, stored["generated_mask_logits"][:2]) < 1e-4


@pytest.mark.parametrize("name", ["instance_soft", "instance_hard"])
@torch.no_grad()
def test_mask_codes(golden, name):
    stored, _, weights = golden(name)
    vqvae = select(weights, "insseg_head.vqvae.")
    crops = stored["gt_mask_crops"][:, None]
    codes = plain_vqvae_encode(vqvae, crops, use_norm=True)
    assert torch.equal(codes.flatten(1), stored["gt_mask_tokens"])
    decoded = plain_vqvae_decode(vqvae, codes, use_norm=True)[:, 0]
    assert deviation(decoded, stored["gt_mask_decoded"]) < 1e-4


@torch.no_grad()
def test_joint(golden):
    stored, figures, weights = golden("joint")
    config = figures["config"]
    depth_feature = plain_backbone(weights, config, stored["depth_pixel_values"])
    assert deviation(depth_feature, stored["depth_backbone_feature"]) < 1e-4
    instance_feature = plain_backbone(weights, config, stored["instance_pixel_values"])
    memory = plain_encoder_memory(weights, config, torch.cat([instance_feature, depth_feature]))
    assert deviation(memory, stored["encoder_memory"]) < 1e-4

    inputs = weights["transformer.voc_embed"][stored["instance_input_seq"]]
    logits = plain_decoder_logits(weights, config, memory[:1], 1, inputs)
    assert deviation(logits, stored["teacher_forced_logits"][:1]) < 1e-4
    codes = plain_vqvae_encode(
        select(weights, "depth_head.vqvae."), stored["depth_gt"][:, None], use_norm=False
    ).flatten(1)
    inputs = plain_depth_inputs(weights, config, codes)
    logits = plain_decoder_logits(weights, config, memory[1:], 2, inputs)
    assert deviation(logits, stored["teacher_forced_logits"][1:, : codes.shape[1]]) < 1e-4

    losses = plain_depth_losses(weights, config, memory[1:], stored["depth_gt"])
    expected = {key: figures["losses"][key] for key in losses}
    assert {key: value.item() for key, value in losses.items()} == pytest.approx(expected, rel=1e-5)
    codes, logits = plain_decode_depth(weights, config, memory[1:])
    assert torch.equal(codes, stored["generated_tokens"])
    assert deviation(logits, stored["generated_token_logits"]) < 1e-4
    depth = plain_depth_from_logits(weights, config, logits)
    assert deviation(depth, stored["predicted_depth_window"]) < 1e-4


@pytest.mark.parametrize("name", ["vqvae_depth", "vqvae_mask"])
def test_vqvae(golden, name):
    stored, figures, _ = golden(name)
    config = figures["config"]
    before = select(stored, "before.")
    leaves = {key: value.clone().requires_grad_(key in figures["grad_norms"]) for key, value in before.items()}
    forward = plain_vqvae_training_forward(
        leaves, stored["input"], stored["label"], config["use_norm"], config["loss_type"] == "mse_ignore_zero"
    )
    assert {key: forward[key].item() for key in figures["losses"]} == pytest.approx(figures["losses"], rel=1e-5)
    assert deviation(forward["reconstruction"], stored["reconstruction_train"]) < 1e-4
    forward["loss"].backward()
    for key, expected in figures["grad_norms"].items():
        assert leaves[key].grad.norm().item() == pytest.approx(expected, rel=1e-3, abs=1e-5), key

    after = select(stored, "after.")
    for key, expected in after.items():
        assert deviation(forward[key], expected) < 1e-5
    updated = {**before, **after}
    codes = plain_vqvae_encode(updated, stored["input"], config["use_norm"])
    assert torch.equal(codes, stored["codes_eval"])
    assert deviation(plain_vqvae_decode(updated, codes, config["use_norm"]), stored["decoded_eval"]) < 1e-4


def _with_bias_dropped(weights, config):
    dropped = "backbone.layers.0.blocks.0.attn.proj.bias"
    return {**weights, dropped: torch.zeros_like(weights[dropped])}, config


def _without_shift(weights, config):
    return weights, {**config, "backbone": {**config["backbone"], "use_shift": [False] * 4}}


def _with_wrong_pretraining_window(weights, config):
    return weights, {**config, "backbone": {**config["backbone"], "pretrain_window_size": [6, 6, 6, 3]}}


@pytest.mark.parametrize("plant", [_with_bias_dropped, _without_shift, _with_wrong_pretraining_window])
@torch.no_grad()
def test_planted_errors_show(golden, plant):
    stored, figures, weights = golden("depth_ar_soft")
    wrong_weights, wrong_config = plant(weights, figures["config"])
    feature = plain_backbone(wrong_weights, wrong_config, stored["pixel_values"])
    assert deviation(feature, stored["backbone_feature"]) > 1e-3


@torch.no_grad()
def test_planted_temperature_shows(golden):
    stored, figures, weights = golden("depth_ar_soft")
    head = figures["config"]["task_heads"]["depth"]
    hot = {**figures["config"], "task_heads": {"depth": {**head, "vae_cfg": {**head["vae_cfg"], "tau": 1.0}}}}
    depth = plain_depth_from_logits(weights, hot, stored["generated_token_logits"])
    assert deviation(depth, stored["predicted_depth_window"]) > 1e-3
