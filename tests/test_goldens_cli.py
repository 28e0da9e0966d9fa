"""The goldens of the original through the command line: file in, folder out, Auto classes, every tensor compared.

`pytest -s tests/test_goldens_cli.py` prints the largest deviation of every tensor.
"""

import json
import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import (
    AutoImageProcessor,
    AutoModel,
    AutoModelForDepthEstimation,
    AutoModelForInstanceSegmentation,
    AutoModelForObjectDetection,
)

from transformers_ait.conversion import task_solver_names, vqvae_names
from transformers_ait.conversion.__main__ import main
from transformers_ait.mask_geometry_ait import crop_masks, paste_masks
from transformers_ait.optimization import parameter_groups
from transformers_ait.sequence_ait import IGNORE_INDEX, boxes_to_bins, parse_objects

GOLDENS = Path(__file__).parent / "goldens"
DEPTH = ["depth_ar_soft", "depth_ar_hard", "depth_parallel"]
OBJECTS = ["detection", "instance_soft", "instance_hard"]
VQVAES = ["vqvae_depth", "vqvae_mask"]
AUTO_CLASSES = {
    **dict.fromkeys([*DEPTH, "joint"], AutoModelForDepthEstimation),
    **dict.fromkeys(["instance_soft", "instance_hard"], AutoModelForInstanceSegmentation),
    "detection": AutoModelForObjectDetection,
    **dict.fromkeys([*VQVAES, "backbone_shift_all"], AutoModel),  # AutoBackbone loads no local folders
}
# Stored tensors that are questions, not answers; those of objects are answers too where a test says so.
INPUTS = {
    *("pixel_values", "wide_pixel_values", "depth_pixel_values", "instance_pixel_values", "depth_gt", "input", "label"),
    *("input_seq", "target_seq", "instance_input_seq", "instance_target_seq", "gt_boxes", "gt_masks"),
    "pred_box_is_proper",
}
# Of the original's description: absolute, but for losses (relative) and gradients (a share of the allowed deviation).
FEATURE, METRES, LOSS, GRADIENT, EXACT = 1e-4, 1e-4, 1e-5, 1.0, 0.0
# At the threshold of 0.5, pasted masks may differ in a few pixels per image.
PASTED_PIXELS = 5


class Comparison:
    """Largest deviation of everything compared with one golden."""

    def __init__(self, name):
        self.name, self.rows = name, {}

    def note(self, what, deviation, tolerance):
        self.rows[what] = (deviation, tolerance)
        assert deviation <= tolerance, f"{self.name}: {what} deviates by {deviation}"

    def close(self, what, actual, expected, tolerance=FEATURE):
        assert actual.shape == expected.shape, what
        self.note(what, (actual.double() - expected.double()).abs().max().item(), tolerance)

    def equal(self, what, actual, expected):
        self.close(what, actual, expected, EXACT)

    def losses(self, actual, expected):
        assert set(actual) == set(expected)
        for what, value in expected.items():
            self.note(f"loss {what}", abs(torch.as_tensor(actual[what]).item() - value) / max(abs(value), 1e-12), LOSS)

    def gradients(self, model, names, expected):
        parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
        assert {names[original] for original in expected} == set(parameters)
        shares = [
            abs(parameters[names[original]].grad.norm().item() - norm) / (1e-3 * norm + 1e-5)
            for original, norm in expected.items()
        ]
        self.note(f"{len(shares)} gradient norms, share of allowed", max(shares), GRADIENT)

    def optimiser(self, model, names, expected):
        # The goldens' layer decay can be read off the last block of the backbone.
        last = max(key for key in expected if re.match(r"backbone\.layers\.3\.blocks", key))
        groups = parameter_groups(model, lr=1.0, weight_decay=1.0, layer_decay=expected[last]["lr_scale"])
        ours = {name: (g["lr_scale"], g["weight_decay"]) for g in groups for name in g["param_names"]}
        theirs = {names[key]: (figures["lr_scale"], float(figures["decay"])) for key, figures in expected.items()}
        assert set(ours) == set(theirs)
        self.note("parameter groups: rate", max(abs(ours[n][0] / theirs[n][0] - 1) for n in theirs), 1e-9)
        self.note("parameter groups: decay", max(abs(ours[n][1] - theirs[n][1]) for n in theirs), EXACT)

    def complete(self, stored):
        """Everything stored is an input or was compared."""
        outputs = {key for key in stored if not key.startswith(("state_dict.", "before."))} - INPUTS
        assert outputs <= set(self.rows), outputs - set(self.rows)


@pytest.fixture(scope="module")
def comparisons():
    made = {}
    yield lambda name: made.setdefault(name, Comparison(name))
    for name, comparison in made.items():
        for what, (deviation, tolerance) in comparison.rows.items():
            print(f"\n{name:18}  {deviation:8.1e}  {tolerance:8.1e}  {what}", end="")


def golden(name):
    return load_file(GOLDENS / f"{name}.safetensors"), json.loads((GOLDENS / f"{name}.json").read_text())


def write_original(name, folder, config=None):
    """The golden's weights as an original checkpoint file, and its configuration; returns both paths."""
    stored, figures = golden(name)
    prefix = "before." if name in VQVAES else "state_dict."
    weights = {key.removeprefix(prefix): tensor for key, tensor in stored.items() if key.startswith(prefix)}
    layout = {"state_dict": weights, "meta": {"epoch": 3, "CLASSES": ("a", "b")}, "optimizer": {"state": {}}}
    if name in VQVAES:
        layout = {"weights": {f"module.{key}": tensor for key, tensor in weights.items()}}
    elif name == "backbone_shift_all":
        layout = {"model": weights}
    checkpoint, settings = folder / f"{name}.pth", folder / f"{name}.json"
    torch.save(layout, checkpoint)
    settings.write_text(json.dumps({"model": config or figures["config"]}))
    return checkpoint, settings


def convert_by_command(name, folder, config=None):
    """Folder that the command line writes, in this process."""
    checkpoint, settings = write_original(name, folder, config)
    output = folder / f"{name}-converted"
    arguments = ["--checkpoint", str(checkpoint), "--config", str(settings), "--output", str(output)]
    assert main(arguments) == 0
    return output


@pytest.fixture(scope="module")
def folder_of(tmp_path_factory):
    """Function: golden's name -> converted folder."""
    folders = {}

    def convert(name):
        if name not in folders:
            folders[name] = convert_by_command(name, tmp_path_factory.mktemp(name))
        return folders[name]

    return convert


@pytest.fixture
def loaded(folder_of):
    """Function: golden's name -> fresh model of the converted folder."""
    return lambda name: AUTO_CLASSES[name].from_pretrained(folder_of(name))


# --- depth ----------------------------------------------------------------------------------------------------------


def compare_depth_training(compared, model, pixel_values, stored, figures):
    output = model.train()(pixel_values, task="depth", depth_labels=stored["depth_gt"])
    model.eval()
    losses = {
        "depth_loss": output.loss,
        "depth_ce": output.loss_dict["depth_ce"],
        "depth_decoder_aux_ce": output.loss_dict["depth_aux"],
    }
    compared.losses(losses, {key: value for key, value in figures["losses"].items() if key.startswith("depth")})
    return output


@torch.no_grad()
def compare_depth_generation(compared, model, pixel_values, stored):
    generated = model.generate(pixel_values, task="depth")
    codes = model.config.vocabulary.depth_codes.to_index(generated.sequences)
    compared.equal("generated_tokens", codes, stored["generated_tokens"])
    compared.close("generated_token_logits", generated.code_logits, stored["generated_token_logits"])
    compared.close("predicted_depth_window", generated.predicted_depth, stored["predicted_depth_window"], METRES)
    assert torch.equal(model(pixel_values, task="depth").predicted_depth, generated.predicted_depth)


@pytest.mark.slow
def test_the_command_in_a_process_of_its_own_writes_the_same(folder_of, tmp_path):
    checkpoint, settings = write_original("depth_ar_soft", tmp_path)
    arguments = ["--checkpoint", str(checkpoint), "--config", str(settings), "--output", str(tmp_path / "folder")]
    subprocess.run([sys.executable, "-m", "transformers_ait.conversion", *arguments], check=True)
    for path in folder_of("depth_ar_soft").iterdir():
        assert (
            path.name == "conversion_report.json" or (tmp_path / "folder" / path.name).read_bytes() == path.read_bytes()
        )


@pytest.mark.parametrize("name", DEPTH)
def test_depth(name, loaded, folder_of, comparisons):
    (stored, figures), model, compared = golden(name), loaded(name), comparisons(name)
    names = task_solver_names(model.config)
    with torch.no_grad():
        compared.close("backbone_feature", model.get_image_features(stored["pixel_values"]), stored["backbone_feature"])
        compared.close("encoder_memory", model.get_encoder_memory(stored["pixel_values"]), stored["encoder_memory"])
        codes = model.depth_tokenizer.encode(stored["depth_gt"].unsqueeze(1)).flatten(1)
    compared.equal("target_tokens", codes, stored["target_tokens"])

    output = compare_depth_training(compared, model, stored["pixel_values"], stored, figures)
    compared.close("teacher_forced_logits", output.logits, stored["teacher_forced_logits"])
    output.loss.backward()
    compared.gradients(model, names, figures["grad_norms"])
    compared.optimiser(model, names, figures["optimizer"])
    compare_depth_generation(compared, model, stored["pixel_values"], stored)

    images = stored["wide_pixel_values"]
    processor = AutoImageProcessor.from_pretrained(folder_of(name))
    inputs = processor(list(images), do_rescale=False, return_tensors="pt")
    depths = processor.post_process_depth_estimation(model(**inputs), [tuple(images.shape[2:])] * len(images))
    protocol = torch.stack([depth["predicted_depth"] for depth in depths])
    compared.close("predicted_depth_protocol", protocol, stored["predicted_depth_protocol"], METRES)
    compared.complete(stored)


# --- objects --------------------------------------------------------------------------------------------------------


def object_labels(stored, prefix=""):
    label = {"input_ids": stored[f"{prefix}input_seq"][0], "target_ids": stored[f"{prefix}target_seq"][0]}
    if "gt_mask_crops_permuted" in stored:
        label["mask_crops"] = stored["gt_mask_crops_permuted"]
    return [label]


def object_losses(output, target_ids, task, weights):
    """Our loss under the original's names, which logs the masks' cross-entropy with its weight."""
    parts, count = output.loss_dict, int((target_ids != IGNORE_INDEX).sum())
    losses = {"cls_ce": parts[f"{task}_class_ce"], "bbox_ce": parts[f"{task}_box_ce"]}
    if task == "instance":
        losses |= {"mask_ce": parts["instance_mask_ce"] * weights, "decoder_aux_ce": parts["instance_aux"]}
    return {"loss": output.loss * count, "loss_normalised": output.loss, "num_supervised": count, **losses}


def compare_truth(compared, model, stored, target_ids, task):
    """Annotations to sequences: bins, labels and crops, in the order that the original drew."""
    config = model.config
    bins, classes, _ = parse_objects(target_ids, config.tokens_per_object[task], config.vocabulary)
    true = (bins[0] >= 0).all(1)
    true_bins = boxes_to_bins(stored["gt_boxes"], config.num_bins, config.coordinate_scale)
    order = torch.stack([(true_bins == box).all(1).nonzero()[0, 0] for box in bins[0][true]])
    assert sorted(order.tolist()) == list(range(len(true_bins)))
    compared.equal("gt_labels", stored["gt_labels"][order], classes[0][true])
    if task == "instance":
        crops = crop_masks(stored["gt_masks"], stored["gt_boxes"], config.mask_tokenizer_config.image_size)
        compared.equal("gt_mask_crops_permuted", crops[order], stored["gt_mask_crops_permuted"])


@torch.no_grad()
def compare_masks(compared, model, stored):
    """Crops of the truth, their codes and what becomes of them."""
    size = model.config.mask_tokenizer_config.image_size
    crops = crop_masks(stored["gt_masks"], stored["gt_boxes"], size)
    compared.equal("gt_mask_crops", crops, stored["gt_mask_crops"])
    codes = model.mask_tokenizer.encode(crops.unsqueeze(1))
    compared.equal("gt_mask_tokens", codes.flatten(1), stored["gt_mask_tokens"])
    compared.close("gt_mask_decoded", model.mask_tokenizer.decode(codes).squeeze(1), stored["gt_mask_decoded"])
    pasted = paste_masks(crops, stored["gt_boxes"], *stored["gt_mask_crops_pasted"].shape[1:])
    differing = (pasted != stored["gt_mask_crops_pasted"]).sum().item()
    compared.note("gt_mask_crops_pasted", differing, PASTED_PIXELS)


@torch.no_grad()
def compare_object_generation(compared, model, stored, figures, task):
    generated, vocabulary = model.generate(stored["pixel_values"], top_p=0.0), model.config.vocabulary
    bins, classes, codes = parse_objects(generated.sequences, model.config.tokens_per_object[task], vocabulary)
    tokens = torch.cat((bins, classes[..., None], codes), dim=-1).flatten()
    compared.equal("generated_tokens", tokens, stored["generated_tokens"])
    compared.equal("pred_labels", generated.class_labels[0], stored["pred_labels"])
    compared.close("generated_scores", generated.scores[0], stored["generated_scores"])
    boxes = generated.boxes[0] / figures["image"]["scale"]
    boxes_and_scores = torch.cat((boxes, generated.scores[0, :, None]), dim=1)
    compared.close("pred_boxes_scores", boxes_and_scores, stored["pred_boxes_scores"])
    if task == "instance":
        if model.config.soft_decode:
            compared.close("generated_mask_logits", generated.code_logits[0], stored["generated_mask_logits"])
        compared.close("pred_mask_probs", generated.mask_values[0], stored["pred_mask_probs"])
        pasted = paste_masks(generated.mask_values[0], boxes, *stored["pred_masks"].shape[1:])
        proper = stored["pred_box_is_proper"]
        differing = (pasted != stored["pred_masks"])[proper].sum().item()
        compared.note("pred_masks", differing, PASTED_PIXELS)


@pytest.mark.parametrize("name", OBJECTS)
def test_objects(name, loaded, comparisons):
    (stored, figures), model, compared = golden(name), loaded(name), comparisons(name)
    names, task = task_solver_names(model.config), model.config.default_task
    with torch.no_grad():
        compared.close("backbone_feature", model.get_image_features(stored["pixel_values"]), stored["backbone_feature"])
        compared.close("encoder_memory", model.get_encoder_memory(stored["pixel_values"]), stored["encoder_memory"])
    compare_truth(compared, model, stored, stored["target_seq"], task)
    if task == "instance":
        compare_masks(compared, model, stored)

    output = model.train()(stored["pixel_values"], instance_labels=object_labels(stored))
    compared.close("teacher_forced_logits", output.logits, stored["teacher_forced_logits"])
    losses = object_losses(output, stored["target_seq"], task, model.config.mask_code_weight)
    compared.losses({key: losses[key] for key in figures["losses"]}, figures["losses"])
    output.loss.backward()
    compared.gradients(model, names, figures["grad_norms"])
    compared.optimiser(model, names, figures["optimizer"])
    compare_object_generation(compared, model.eval(), stored, figures, task)
    compared.complete(stored)


def test_joint(loaded, comparisons):
    (stored, figures), model, compared = golden("joint"), loaded("joint"), comparisons("joint")
    names, images = task_solver_names(model.config), (stored["instance_pixel_values"], stored["depth_pixel_values"])
    with torch.no_grad():
        feature = model.get_image_features(stored["depth_pixel_values"])
        compared.close("depth_backbone_feature", feature, stored["depth_backbone_feature"])
        memory = torch.cat([model.get_encoder_memory(pixels) for pixels in images])
        compared.close("encoder_memory", memory, stored["encoder_memory"])
    compare_truth(compared, model, stored, stored["instance_target_seq"], "instance")

    objects = model.train()(images[0], task="instance", instance_labels=object_labels(stored, "instance_"))
    losses = object_losses(objects, stored["instance_target_seq"], "instance", model.config.mask_code_weight)
    expected = {key: value for key, value in figures["losses"].items() if key.startswith("insseg")}
    renamed = {f"insseg_{key}": value for key, value in losses.items()} | {"insseg_loss": objects.loss}
    compared.losses({key: renamed[key] for key in expected}, expected)
    depth = compare_depth_training(compared, model, images[1], stored, figures)
    length = depth.logits.shape[1]
    logits = torch.cat((objects.logits[:, :length], depth.logits))
    compared.close("teacher_forced_logits, depth", logits, stored["teacher_forced_logits"][:, :length])
    compared.close("teacher_forced_logits", objects.logits, stored["teacher_forced_logits"][:1])

    (objects.loss + depth.loss).backward()
    compared.gradients(model, names, figures["grad_norms"])
    compared.optimiser(model, names, figures["optimizer"])
    compare_depth_generation(compared, model.eval(), images[1], stored)
    compared.complete(stored)


# --- VQ-VAE and backbone --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", VQVAES)
def test_vqvae(name, loaded, comparisons):
    (stored, figures), model, compared = golden(name), loaded(name), comparisons(name)
    names = vqvae_names(model.config)
    output = model.train()(stored["input"], labels=stored["label"])
    compared.losses({"loss": output.loss, "recon_loss": output.reconstruction_loss}, figures["losses"])
    compared.close("reconstruction_train", output.reconstruction, stored["reconstruction_train"])
    output.loss.backward()
    compared.gradients(model, names, figures["grad_norms"])

    buffers = dict(model.named_buffers())
    for key in [key for key in stored if key.startswith("after.")]:
        compared.close(key, buffers[names[key.removeprefix("after.")]], stored[key])
    with torch.no_grad():
        codes = model.eval().encode(stored["input"])
        compared.equal("codes_eval", codes, stored["codes_eval"])
        compared.close("decoded_eval", model.decode(codes), stored["decoded_eval"])
    compared.complete(stored)


@torch.no_grad()
def test_backbone(loaded, comparisons):
    stored, _ = golden("backbone_shift_all")
    model, compared = loaded("backbone_shift_all"), comparisons("backbone_shift_all")
    compared.close("backbone_feature", model(stored["pixel_values"]).feature_maps[-1], stored["backbone_feature"])
    compared.complete(stored)


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
def test_planted_error_in_the_backbone_shows(plant, loaded):
    (stored, _), model = golden("depth_ar_soft"), loaded("depth_ar_soft")
    plant(model)
    with pytest.raises(AssertionError, match="backbone_feature deviates"):
        Comparison("planted").close(
            "backbone_feature", model.get_image_features(stored["pixel_values"]), stored["backbone_feature"]
        )


def _edited(config, path, value):
    *parents, last = path
    section = config
    for key in parents:
        section = section[key]
    assert section.get(last) != value
    section[last] = value
    return config


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "path", "value", "shows"),
    [
        ("depth_ar_soft", ("task_heads", "depth", "vae_cfg", "tau"), 1.0, "predicted_depth_window"),
        ("depth_ar_soft", ("transformer", "soft_transformer"), False, "generated_token"),
        ("instance_soft", ("transformer", "soft_transformer"), False, "generated_"),
        ("instance_soft", ("task_heads", "insseg", "norm_val"), 127, "pred_boxes_scores"),
        ("instance_soft", ("task_heads", "insseg", "vae_cfg", "tau"), 0.8, "pred_mask_probs"),
    ],
)
def test_planted_error_in_the_configuration_shows(name, path, value, shows, tmp_path):
    stored, figures = golden(name)
    config = _edited(json.loads(json.dumps(figures["config"])), path, value)
    model = AUTO_CLASSES[name].from_pretrained(convert_by_command(name, tmp_path, config))
    with pytest.raises(AssertionError, match=f"{shows}.* deviates"):
        if name == "depth_ar_soft":
            compare_depth_generation(Comparison(name), model, stored["pixel_values"], stored)
        else:
            compare_object_generation(Comparison(name), model, stored, figures, "instance")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("path", "value", "shows"),
    [
        (("task_heads", "insseg", "mask_weight"), 0.3, "loss mask_ce"),
        (("task_heads", "insseg", "decoder_loss_weight"), 4.0, "loss loss"),
        (("task_heads", "insseg", "loss_weight"), 2.0, "loss loss"),
    ],
)
def test_planted_loss_weight_shows(path, value, shows, tmp_path):
    stored, figures = golden("instance_soft")
    config = _edited(json.loads(json.dumps(figures["config"])), path, value)
    model = AUTO_CLASSES["instance_soft"].from_pretrained(convert_by_command("instance_soft", tmp_path, config))
    output = model.train()(stored["pixel_values"], instance_labels=object_labels(stored))
    losses = object_losses(output, stored["target_seq"], "instance", model.config.mask_code_weight)
    expected = {key: figures["losses"][key] for key in losses}
    if shows == "loss mask_ce":
        expected = {"mask_ce": expected["mask_ce"]}
    with pytest.raises(AssertionError, match=f"{shows}.* deviates"):
        Comparison("planted").losses({key: losses[key] for key in expected}, expected)


def test_planted_gradient_shows(loaded):
    (stored, figures), model = golden("depth_ar_hard"), loaded("depth_ar_hard")
    names = task_solver_names(model.config)
    model.train()(stored["pixel_values"], depth_labels=stored["depth_gt"]).loss.backward()
    Comparison("whole").gradients(model, names, figures["grad_norms"])
    bias = dict(model.named_parameters())[names["transformer.outp_bias"]]
    bias.grad *= 1.01
    with pytest.raises(AssertionError, match="gradient norms"):
        Comparison("planted").gradients(model, names, figures["grad_norms"])


def test_every_golden_of_the_original_is_here():
    of_ait = {path.stem for path in GOLDENS.glob("*.json") if not path.stem.startswith("hourglass")}
    assert set(AUTO_CLASSES) == of_ait - {"depth_metrics"}


def test_some_predicted_masks_can_be_compared():
    stored, _ = golden("instance_hard")
    assert stored["pred_masks"][stored["pred_box_is_proper"]].any()
