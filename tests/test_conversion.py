"""Converter: both ways, strictness, and the command line; its proof is in test_parity.py."""

import io
import json
import os
import pickle
import subprocess
import sys
import zipfile
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from golden_files import GOLDENS, TASK_SOLVERS, VQVAES, nothing_left, original_config, original_tensors, write_original
from safetensors.torch import load_file, save_file
from transformers import AutoImageProcessor, AutoModel, AutoModelForDepthEstimation

from transformers_ait import (
    AiTConfig,
    AiTForDenseAndInstancePrediction,
    AiTSwinV2Backbone,
    AiTVQVAEConfig,
    AiTVQVAEModel,
)
from transformers_ait.conversion import converter
from transformers_ait.conversion.__main__ import main
from transformers_ait.conversion.checkpoint import CheckpointError, read_checkpoint
from transformers_ait.conversion.companions import write_companions
from transformers_ait.conversion.converter import convert
from transformers_ait.conversion.original_config import (
    ait_config_from_original,
    original_from_ait_config,
    vqvae_config_from_original,
)
from transformers_ait.conversion.parity import ParityError
from transformers_ait.conversion.plain.layers import select
from transformers_ait.conversion.reverser import reverse


@pytest.fixture
def files(tmp_path):
    """Function that writes tensors and configuration of a golden; returns both paths."""
    return partial(write_original, tmp_path)


# --- conversion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[] if x in ("depth_parallel", "joint") else pytest.mark.slow) for x in TASK_SOLVERS]
)
def test_round_trip_is_bit_exact(name, files, tmp_path, capsys):
    checkpoint, settings = files(name)
    folder, back = tmp_path / "folder", tmp_path / "back.pth"
    assert main(["--checkpoint", str(checkpoint), "--config", str(settings), "--output", str(folder)]) == 0
    table = capsys.readouterr().out
    assert "backbone: stage 0, block 0" in table and "encoder: memory" in table and "cached steps" in table
    assert main(["--checkpoint", str(folder), "--reverse", "--output", str(back)]) == 0
    returned, original = read_checkpoint(back), read_checkpoint(checkpoint)
    assert set(original) <= set(returned)  # goldens without duplicates get them
    assert all(torch.equal(returned[key], tensor) for key, tensor in original.items())
    written = json.loads(back.with_suffix(".json").read_text())
    assert written == original_from_ait_config(ait_config_from_original(original_config(name)))


@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("name", VQVAES)
def test_vqvae_round_trip(name, prefix, files, tmp_path):
    tensors = original_tensors(name)
    checkpoint, settings = files(name, {prefix + key: tensor for key, tensor in tensors.items()}, wrapper="weights")
    convert(checkpoint, settings, tmp_path / "folder")
    model = AiTVQVAEModel.from_pretrained(tmp_path / "folder")
    stored = load_file(GOLDENS / f"{name}.safetensors")
    codes = model.encode(stored["input"])
    assert codes.shape == stored["codes_eval"].shape
    returned = read_checkpoint(reverse(tmp_path / "folder", tmp_path / "back.safetensors"))
    assert set(returned) == set(tensors)
    assert all(torch.equal(returned[key], tensor) for key, tensor in tensors.items())


@pytest.mark.slow
def test_safetensors_checkpoint(files, tmp_path):
    _, settings = files("depth_parallel")
    save_file(original_tensors("depth_parallel"), tmp_path / "original.safetensors")
    report = convert(tmp_path / "original.safetensors", settings, tmp_path / "folder")
    assert all(comparison.passed for comparison in report.comparisons)


@pytest.mark.slow
def test_vqvae_from_a_file_of_its_own(files, tmp_path):
    tensors = original_tensors("depth_ar_hard")
    vqvae = select(tensors, "depth_head.vqvae.")
    torch.save({"weights": vqvae}, tmp_path / "vqvae.pth")
    checkpoint, settings = files("depth_ar_hard", {k: v for k, v in tensors.items() if ".vqvae." not in k})
    with pytest.raises(CheckpointError, match="--vqvae-depth"):
        convert(checkpoint, settings, tmp_path / "folder")
    convert(checkpoint, settings, tmp_path / "folder", vqvae_depth=tmp_path / "vqvae.pth")
    model = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path / "folder")
    assert torch.equal(model.depth_tokenizer.quantizer.codebook, vqvae["_vq_vae._embedding"])


def test_a_vqvae_of_other_sizes(files, tmp_path):
    checkpoint, _ = files("vqvae_mask", wrapper="weights")
    with pytest.raises(CheckpointError, match="hidden_size 4 instead of 16, num_codes 16 instead of 128"):
        convert(checkpoint, "ait-vqvae-mask", tmp_path / "folder")
    with pytest.raises(CheckpointError, match="no task that needs insseg_head"):
        convert(*files("depth_ar_soft"), tmp_path / "folder", vqvae_mask=checkpoint)
    assert nothing_left(tmp_path / "folder")


def test_another_vqvae_than_the_one_inside(files, tmp_path):
    vqvae = select(original_tensors("depth_ar_hard"), "depth_head.vqvae.")
    torch.save({"weights": {**vqvae, "decoder.0.bias": vqvae["decoder.0.bias"] + 1}}, tmp_path / "vqvae.pth")
    with pytest.raises(CheckpointError, match="decoder.0.bias .* another VQ-VAE"):
        convert(*files("depth_ar_hard"), tmp_path / "folder", vqvae_depth=tmp_path / "vqvae.pth")


def pretraining_tensors(prefix=""):
    tensors = select(original_tensors("depth_ar_soft"), "backbone.")
    tensors = {prefix + key: tensor for key, tensor in tensors.items() if not key.startswith("norm")}
    tensors[f"{prefix}norm.weight"] = torch.ones(64)
    tensors[f"{prefix}layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 7, 7, 2)
    return tensors


def check_that_it_only_starts_a_training(folder, absent, image):
    model, info = AiTForDenseAndInstancePrediction.from_pretrained(folder, output_loading_info=True)
    assert set(info["missing_keys"]) <= set(absent) and not info["unexpected_keys"]
    assert model.config.initialization_only
    with pytest.raises(ValueError, match="initialisation"):
        model(image)


@pytest.mark.slow
@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "encoder.", "backbone."])
def test_backbone_pretraining_is_an_initialisation(prefix, wrapper, files, tmp_path, capfd):
    checkpoint, _ = files("depth_ar_soft", pretraining_tensors(prefix), wrapper=wrapper)
    # As for a NAME: a configuration of this family, not the original's.
    ait_config_from_original(original_config("depth_ar_soft")).save_pretrained(tmp_path / "named")
    report = convert(checkpoint, tmp_path / "named", tmp_path / "folder")
    assert "model.backbone.norm.weight" in report.absent and "INITIALISATION ONLY" in str(report)
    assert any("final norm of the pretraining" in reason for reason in report.dropped)
    assert "LOAD REPORT" not in "".join(capfd.readouterr())
    check_that_it_only_starts_a_training(tmp_path / "folder", report.absent, torch.zeros(1, 3, 96, 96))


@pytest.mark.slow
def test_backbone_pretraining_as_a_backbone(files, tmp_path):
    config = {"backbone": original_config("depth_ar_soft")["backbone"]}
    report = convert(*files("depth_ar_soft", pretraining_tensors(), config), tmp_path / "folder")
    assert report.absent == ["norm.weight", "norm.bias"]
    model = AutoModel.from_pretrained(tmp_path / "folder")
    weight = original_tensors("depth_ar_soft")["backbone.patch_embed.proj.weight"]
    assert isinstance(model, AiTSwinV2Backbone) and torch.equal(model.embeddings.projection.weight, weight)
    with pytest.raises(CheckpointError, match="looks like a task-solver"):
        convert(*files("depth_ar_soft", config=config), tmp_path / "other")


@pytest.mark.slow
def test_decoder_less_file_is_an_initialisation(files, tmp_path):
    gone = ("transformer.decoder", "transformer.voc_embed", "transformer.det_embed", "transformer.dec_embed")
    gone += ("transformer.outp_bias", "transformer.norm.")
    tensors = {key: t for key, t in original_tensors("detection").items() if not key.startswith(gone)}
    report = convert(*files("detection", tensors), tmp_path / "folder")
    assert report.absent and all(name.startswith("model.decoder.") for name in report.absent)
    assert any(comparison.name == "encoder: memory" for comparison in report.comparisons)
    check_that_it_only_starts_a_training(tmp_path / "folder", report.absent, torch.zeros(1, 3, 128, 128))
    with pytest.raises(CheckpointError, match="no original layout"):
        reverse(tmp_path / "folder", tmp_path / "back.pth")


@pytest.mark.slow
def test_a_whole_checkpoint_is_no_initialisation(files, tmp_path):
    config = ait_config_from_original(original_config("detection"))
    config.initialization_only = True  # as in the folder of an initialisation
    config.save_pretrained(tmp_path / "named")
    convert(files("detection")[0], tmp_path / "named", tmp_path / "folder")
    assert not AiTConfig.from_pretrained(tmp_path / "folder").initialization_only


# --- what else stands in the folder ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("name", [*TASK_SOLVERS, *VQVAES])
def test_every_folder_has_an_image_processor(name, files, tmp_path):
    convert(*files(name), tmp_path / "folder")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "folder")
    image = torch.randint(256, (3, 100, 90), dtype=torch.uint8)
    shape = processor(image, return_tensors="pt")["pixel_values"].shape
    objects = name in ("detection", "instance_soft", "instance_hard", "joint")
    expected = {"vqvae_depth": (1, 3, 96, 96), "vqvae_mask": (1, 3, 640, 640)}
    assert shape == expected.get(name, (1, 3, 128, 128) if objects else (1, 4, 3, 96, 96))
    assert (tmp_path / "folder/depth").is_dir() == (name == "joint")


@pytest.mark.slow
def test_depth_processor_of_a_joint_model(files, tmp_path):
    convert(*files("joint"), tmp_path / "folder")
    processor = AutoImageProcessor.from_pretrained(tmp_path / "folder/depth")
    model = AutoModelForDepthEstimation.from_pretrained(tmp_path / "folder")
    inputs = processor(torch.randint(256, (3, 96, 128), dtype=torch.uint8), return_tensors="pt")
    assert model(**inputs).predicted_depth.shape == (1, 4, 96, 96)


def test_the_card_speaks_of_converted_weights(tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    hub_folder = converter.HUB_CONFIGS / "ait-swinv2-base-joint"
    write_companions(folder, AiTConfig.from_pretrained(hub_folder), hub_folder, initialization_only=False)
    card = (folder / "README.md").read_text()
    assert "42.2" in card and "published" in card and "Converted from an original checkpoint" in card
    assert "holds no weights" not in card and "initialisation" not in card


# --- strictness -----------------------------------------------------------------------------------------------------


def _misfit_cases():
    key_bias = "transformer.decoder.blocks.0.attn.wk.bias"
    query = "transformer.encoder.blocks.0.attn.wq.weight"
    return {
        "missing": (lambda t: t.pop(key_bias), rf"{key_bias} \(32,\) is missing \(key biases change no output"),
        "extra": (lambda t: t.update(extra=torch.ones(2)), r"extra \(2,\) is not expected"),
        "misshapen": (lambda t: t.update({query: torch.ones(3)}), rf"{query} has shape \(3,\), expected \(32, 32\)"),
        "parallel": (
            lambda t: t.update({"transformer.mask_embed": torch.ones(1, 1, 32)}),
            r"transformer.mask_embed \(1, 1, 32\) is not expected \(parallel \(AiT-P\)",
        ),
        "duplicate": (
            lambda t: t.update({"depth_head.transformer.norm.bias": torch.ones(32)}),
            r"depth_head.transformer.norm.bias \(32,\) differs",
        ),
        "image size": (
            lambda t: t.update({"transformer.enc_embed": torch.ones(1, 4, 4, 32)}),
            r"transformer.enc_embed has shape \(1, 4, 4, 32\), expected \(1, 3, 3, 32\) \(the image size differs",
        ),
    }


@pytest.mark.parametrize("case", _misfit_cases())
def test_a_misfit_is_named_and_nothing_is_left(case, files, tmp_path, capsys):
    alter, message = _misfit_cases()[case]
    tensors = original_tensors("depth_ar_soft")
    alter(tensors)
    checkpoint, settings = files("depth_ar_soft", tensors)
    with pytest.raises(CheckpointError, match=message):
        convert(checkpoint, settings, tmp_path / "folder")
    assert main(["--checkpoint", str(checkpoint), "--config", str(settings), "--output", str(tmp_path / "folder")]) == 1
    assert "CheckpointError" in capsys.readouterr().err
    assert nothing_left(tmp_path / "folder")


@pytest.mark.parametrize("wrong", ["depth_parallel", "joint", "detection", "vqvae_depth"])
def test_the_wrong_configuration(wrong, files, tmp_path):
    checkpoint, settings = files("depth_ar_soft", config=original_config(wrong))
    with pytest.raises(CheckpointError):
        convert(checkpoint, settings, tmp_path / "folder")
    assert nothing_left(tmp_path / "folder")


@pytest.fixture
def named(tmp_path, monkeypatch):
    """Tiny configurations in the place of hub_configs."""
    for name in ("depth_ar_soft", "depth_parallel", "joint"):
        ait_config_from_original(original_config(name)).save_pretrained(tmp_path / "hub" / name)
    vqvae_config_from_original(original_config("vqvae_depth")).save_pretrained(tmp_path / "hub/vqvae_depth")
    monkeypatch.setattr(converter, "HUB_CONFIGS", tmp_path / "hub")


@pytest.mark.slow
@pytest.mark.parametrize(("name", "wrong"), [("joint", "depth_ar_soft"), ("vqvae_depth", "joint")])
def test_the_wrong_name_is_answered_with_the_right_one(name, wrong, files, tmp_path, named):
    checkpoint, _ = files(name)
    with pytest.raises(CheckpointError, match=f"It does fit --config {name}\\.$"):
        convert(checkpoint, wrong, tmp_path / "folder")
    assert nothing_left(tmp_path / "folder")
    convert(checkpoint, name, tmp_path / "folder")


@pytest.mark.slow
def test_a_checkpoint_that_fits_no_name(files, tmp_path, named):
    checkpoint, _ = files("joint", original_tensors("joint") | {"novelty": torch.ones(1)})
    with pytest.raises(CheckpointError, match=r"novelty \(1,\) is not expected \(no name of an original") as caught:
        convert(checkpoint, "joint", tmp_path / "folder")
    assert "does fit" not in str(caught.value)


def test_stored_buffers_must_agree_with_the_configuration(files, tmp_path):
    config = original_config("depth_ar_soft")
    config["backbone"]["pretrain_window_size"] = [5, 4, 4, 2]
    with pytest.raises(ParityError, match="coordinates, stage 0"):
        convert(*files("depth_ar_soft", config=config), tmp_path / "folder")
    assert nothing_left(tmp_path / "folder")


def test_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no checkpoint file"):
        read_checkpoint(tmp_path / "none.pth")
    (tmp_path / "a.bin").write_bytes(b"x")
    with pytest.raises(CheckpointError, match="must be a .pth"):
        read_checkpoint(tmp_path / "a.bin")
    torch.save({"meta": {"x": 1}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        read_checkpoint(tmp_path / "b.pth")


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("damage", ["truncated", "empty", "web page"])
def test_damaged_files(suffix, damage, tmp_path, capsys):
    path = tmp_path / f"a{suffix}"
    save = save_file if suffix == ".safetensors" else torch.save
    save({"a": torch.ones(1000)}, path)
    content = path.read_bytes()
    path.write_bytes({"truncated": content[: len(content) // 2], "empty": b"", "web page": b"<html>not found"}[damage])
    with pytest.raises(CheckpointError, match="damaged, incomplete or of another kind"):
        read_checkpoint(path)
    arguments = ["--checkpoint", str(path), "--config", "ait-vqvae-mask", "--output", str(tmp_path / "folder")]
    assert main(arguments) == 1 and "download it again" in capsys.readouterr().err
    assert nothing_left(tmp_path / "folder")


@pytest.mark.slow
def test_half_precision_is_widened(files, tmp_path):
    halves = {key: t.half() if t.is_floating_point() else t for key, t in original_tensors("depth_ar_hard").items()}
    convert(*files("depth_ar_hard", halves), tmp_path / "folder")
    weights = load_file(tmp_path / "folder/model.safetensors")
    assert weights["model.decoder.token_embeddings"].dtype == torch.float32


def test_a_file_of_old_pytorch(tmp_path):
    torch.save({"weights": {"a": torch.arange(3.0)}}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")["a"], torch.arange(3.0))


class _Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": _Malicious()}, "evil.pth", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="refused, because it holds more than tensors: .* run posix.mkdir"):
        read_checkpoint("evil.pth")
    assert not Path("executed").exists()


def test_an_output_that_exists(files, tmp_path):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder/precious").write_text("mine")
    with pytest.raises(FileExistsError, match="not an empty folder"):
        convert(*files("vqvae_mask"), tmp_path / "folder")
    assert (tmp_path / "folder/precious").read_text() == "mine"


def test_an_unknown_configuration(files, tmp_path):
    checkpoint, _ = files("vqvae_mask")
    with pytest.raises(FileNotFoundError, match="ait-vqvae-mask"):
        convert(checkpoint, "ait-vqvae-masks", tmp_path / "folder")


def test_a_configuration_of_wrong_types(files, tmp_path, capsys):
    config = original_config("depth_ar_soft")
    config["backbone"]["embed_dim"] = "8"
    checkpoint, settings = files("depth_ar_soft", config=config)
    assert main(["--checkpoint", str(checkpoint), "--config", str(settings), "--output", str(tmp_path / "folder")]) == 1
    assert "embed_dim" in capsys.readouterr().err
    assert nothing_left(tmp_path / "folder")


def test_names_without_a_checkout(files, tmp_path, monkeypatch):
    monkeypatch.setattr(converter, "HUB_CONFIGS", tmp_path / "none")
    with pytest.raises(FileNotFoundError, match="installed package has not. Give the path of such a folder, or a JSON"):
        convert(files("vqvae_mask")[0], "ait-vqvae-mask", tmp_path / "folder")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("model = dict()", "not JSON"),
        ("[1]", "no original configuration"),
        ('{"model_type": "ait"}', "give its folder"),
    ],
)
def test_what_is_no_original_configuration(text, message, files, tmp_path):
    checkpoint, settings = files("vqvae_mask")
    settings.write_text(text)
    with pytest.raises(ValueError, match=message):
        convert(checkpoint, settings, tmp_path / "folder")


# --- reverse --------------------------------------------------------------------------------------------------------


def test_reverse_refuses(files, tmp_path):
    convert(*files("vqvae_mask", wrapper="weights"), tmp_path / "folder")
    with pytest.raises(CheckpointError, match="--output must be"):
        reverse(tmp_path / "folder", tmp_path / "back")
    with pytest.raises(FileExistsError):
        reverse(tmp_path / "folder", tmp_path / "original.pth")
    with pytest.raises(FileNotFoundError, match="config.json"):
        reverse(tmp_path, tmp_path / "back.pth")


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", b"{", "config.json is no readable JSON file"),
        ("config.json", b"\xff\xfe", "config.json is no readable JSON file"),
        ("config.json", b"[]", "config.json must hold a JSON object, got list"),
        ("model.safetensors", b"\xff" * 99, "weights of .*folder are damaged or incomplete"),
        ("model.safetensors.index.json", b"{}", "There are no weights|must hold a weight_map|is no readable"),
    ],
)
def test_reverse_names_damaged_files(file, content, message, files, tmp_path):
    convert(*files("vqvae_mask", wrapper="weights"), tmp_path / "folder")
    (tmp_path / "folder" / file).write_bytes(content)
    if file.endswith("index.json"):
        (tmp_path / "folder" / file).write_text(json.dumps({"metadata": {}, "weight_map": 5}))
    with pytest.raises((OSError, CheckpointError), match=message):
        reverse(tmp_path / "folder", tmp_path / "back.pth")
    assert not (tmp_path / "back.pth").exists()


def test_tensors_that_are_no_weights(files, tmp_path):
    for change, message in (
        (
            {"encoder.0.weight": torch.tensor(1.0)},
            r"encoder.0.weight has shape \(\), but that of a VQ-VAE has 4 dimensions",
        ),
        (
            {"encoder.0.bias": torch.zeros(4, dtype=torch.int32)},
            "encoder.0.bias holds torch.int32, expected floating point",
        ),
    ):
        checkpoint, settings = files("vqvae_mask", original_tensors("vqvae_mask") | change)
        with pytest.raises(CheckpointError, match=message):
            convert(checkpoint, settings, tmp_path / "folder")
        assert nothing_left(tmp_path / "folder")


@pytest.mark.parametrize("key", ["codebook_dim", "image_size", "hidden_dim"])
def test_original_configurations_of_other_types_name_the_file(key, files, tmp_path):
    checkpoint, settings = files("vqvae_mask", config=original_config("vqvae_mask") | {key: {"x": 1}})
    with pytest.raises(ValueError, match=r"--config .*original\.json has an original configuration with a value"):
        convert(checkpoint, settings, tmp_path / "folder")


def test_npz_files_that_claim_more_than_they_hold(tmp_path):
    path, head = tmp_path / "bomb.npz", io.BytesIO()
    np.lib.format.write_array_header_1_0(head, {"descr": "<f4", "fortran_order": False, "shape": (2**20, 2**20)})
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("a.npy", head.getvalue() + bytes(100))
    with pytest.raises(CheckpointError, match=r"bomb\.npz is not a readable .*a.npy claims 4398046511104 bytes"):
        read_checkpoint(path)


def test_reverse_of_a_model_in_several_files(files, tmp_path):
    model = AiTVQVAEModel(AiTVQVAEConfig(image_size=64, hidden_size=4, num_codes=8, code_dim=6))
    model.save_pretrained(tmp_path / "folder", max_shard_size="20KB")
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 1
    returned = read_checkpoint(reverse(tmp_path / "folder", tmp_path / "back.pth"))
    assert torch.equal(returned["_vq_vae._embedding"], model.quantizer.codebook)


# --- memory ---------------------------------------------------------------------------------------------------------

# Baseline: what is resident after the imports. Peak: of this process alone (getrusage would count its parent's, too),
# mapped pages of the checkpoint included.
MEMORY_SCRIPT = """
import sys, time
import torch
from transformers_ait.conversion.__main__ import main

def resident(field):
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith(field))

torch.set_num_threads(2)
before, start = resident("VmRSS"), time.perf_counter()
assert main(sys.argv[1:]) == 0
print(resident("VmHWM") - before, time.perf_counter() - start)
"""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="memory is read from /proc")
@pytest.mark.parametrize("name", ["ait-swinv2-base-depth", "ait-swinv2-large-depth"])
def test_memory_of_a_full_size_checkpoint(name, tmp_path, repository):
    config = AiTConfig.from_pretrained(repository / "hub_configs" / name)
    AiTForDenseAndInstancePrediction(config).save_pretrained(tmp_path / "own")
    checkpoint = reverse(tmp_path / "own", tmp_path / "original.pth")
    options = ["--checkpoint", checkpoint, "--config", name, "--output", tmp_path / "folder"]
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, *map(str, options)], capture_output=True, text=True, check=True
    )
    memory, seconds = map(float, run.stdout.split()[-2:])  # time is printed alone: it depends on the machine
    ratio = memory / checkpoint.stat().st_size
    print(f"{name}: {checkpoint.stat().st_size / 1e6:.0f} MB, peak {ratio:.2f} times that, {seconds:.0f} s")
    assert ratio < 2.2
