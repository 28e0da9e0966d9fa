"""Converter: names and configurations both ways, strictness, proof with planted errors, and the command line."""

import copy
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from transformers_ait import AiTConfig, AiTForDenseAndInstancePrediction, AiTVQVAEConfig, AiTVQVAEModel
from transformers_ait.conversion import converter
from transformers_ait.conversion.__main__ import main
from transformers_ait.conversion.checkpoint import CheckpointError, read_checkpoint, vqvae_sizes
from transformers_ait.conversion.converter import convert
from transformers_ait.conversion.key_map import dropped_reason, invert, task_solver_names, vqvae_names
from transformers_ait.conversion.original_config import (
    ait_config_from_original,
    original_from_ait_config,
    original_from_vqvae_config,
    vqvae_config_from_original,
)
from transformers_ait.conversion.parity import ParityError
from transformers_ait.conversion.plain import select
from transformers_ait.conversion.reverser import reverse

GOLDENS = Path(__file__).parent / "goldens"
TASK_SOLVERS = [
    "depth_ar_soft",
    "depth_ar_hard",
    "depth_parallel",
    "detection",
    "instance_soft",
    "instance_hard",
    "joint",
]
VQVAES = ["vqvae_depth", "vqvae_mask"]


def original_config(name):
    return json.loads((GOLDENS / f"{name}.json").read_text())["config"]


def original_tensors(name):
    prefix = "before." if name in VQVAES else "state_dict."
    return select(load_file(GOLDENS / f"{name}.safetensors"), prefix)


@pytest.fixture
def files(tmp_path):
    """Function that writes tensors and configuration of a golden; returns both paths."""

    def write(name, tensors=None, config=None, wrapper="state_dict"):
        tensors = original_tensors(name) if tensors is None else tensors
        checkpoint, settings = tmp_path / "original.pth", tmp_path / "original.json"
        torch.save({wrapper: tensors, "meta": {"epoch": 3}, "optimizer": {"step": torch.zeros(3)}}, checkpoint)
        settings.write_text(json.dumps(config or original_config(name)))
        return checkpoint, settings

    return write


def nothing_left(output):
    return not output.exists() and not list(output.parent.glob(f".{output.name}*"))


# --- names and configurations ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASK_SOLVERS)
def test_names_cover_the_original_and_our_model(name):
    config, tensors = ait_config_from_original(original_config(name)), original_tensors(name)
    names = task_solver_names(config)
    assert set(names) == {key for key in tensors if dropped_reason(key) is None}
    with torch.device("meta"):
        model = AiTForDenseAndInstancePrediction(config)
    assert set(invert(names)) == set(model.state_dict())
    assert invert(invert(names)) == names


@pytest.mark.parametrize("name", VQVAES)
def test_vqvae_names_cover_the_original_and_our_model(name):
    config = vqvae_config_from_original(original_config(name))
    names = vqvae_names(config)
    assert set(names) == set(original_tensors(name))
    assert set(invert(names)) == set(AiTVQVAEModel(config).state_dict())


def test_a_map_that_is_not_one_to_one_has_no_inverse():
    with pytest.raises(ValueError, match="no inverse"):
        invert({"a": "x", "b": "x"})


def test_only_the_stated_entries_are_dropped():
    assert dropped_reason("backbone.layers.0.blocks.1.attn.relative_coords_table")
    assert dropped_reason("depth_head.transformer.decoder.blocks.0.attn.wk.bias")
    assert dropped_reason("transformer.decoder.blocks.0.attn.wk.bias") is None
    assert dropped_reason("backbone.norm.weight") is None
    assert dropped_reason("backbone.norm.weight", pretraining=True)


def without_defaults(config):
    """The original dictionary less what its absence means as well."""
    config = copy.deepcopy(config)
    config["transformer"].setdefault("parallel", False)
    for name, head in config["task_heads"].items():
        if name != "det":
            head.setdefault("decoder_loss_weight", 5.0 if name == "insseg" else 1.0)
            head["vae_cfg"].setdefault("tau", 1.0)
            head["vae_cfg"].setdefault("use_norm", True)
        if name == "insseg":
            head.setdefault("max_obj_decoderloss", 100)
    return config


@pytest.mark.parametrize("name", TASK_SOLVERS)
def test_configuration_round_trip(name):
    original = original_config(name)
    config = ait_config_from_original(original)
    back = original_from_ait_config(config)
    assert back == without_defaults(original)
    assert ait_config_from_original(back).to_dict() == config.to_dict()


@pytest.mark.parametrize("name", VQVAES)
def test_vqvae_configuration_round_trip(name):
    assert original_from_vqvae_config(vqvae_config_from_original(original_config(name))) == original_config(name)


def test_the_two_dialects_of_a_vqvae_mean_the_same():
    inside = ait_config_from_original(original_config("depth_ar_hard")).depth_tokenizer_config
    assert inside.to_dict() == vqvae_config_from_original(original_config("vqvae_depth")).to_dict()


def test_everything_that_changes_a_result_is_carried():
    original = original_config("joint")
    changes = {
        "backbone": {"drop_path_rate": 0.3, "use_shift": [True, False, True, False], "window_size": [3, 6, 6, 3]},
        "transformer": {"drop_path": 0.2, "drop_out": 0.4, "dec_length": 150, "top_p": 0.3, "num_vocal": 99},
    }
    for section, values in changes.items():
        original[section].update(values)
    original["task_heads"]["insseg"].update(
        loss_weight=2.0, mask_weight=0.3, decoder_loss_weight=4.0, max_obj_decoderloss=7, norm_val=130, num_query=5
    )
    original["task_heads"]["depth"].update(loss_weight=0.1, decoder_loss_weight=3.0)
    original["task_heads"]["depth"]["vae_cfg"]["tau"] = 0.7
    config = ait_config_from_original(original)
    assert (config.backbone_config.drop_path_rate, config.backbone_config.window_sizes) == (0.3, [3, 6, 6, 3])
    assert config.backbone_config.shift_windows == [True, False, True, False]
    decoder = config.decoder_config
    assert (decoder.drop_path_rate, decoder.dropout, decoder.max_positions) == (0.2, 0.4, 150)
    assert (config.top_p, config.num_spare_tokens, config.image_size) == (0.3, 19, 128)
    assert (config.instance_loss_weight, config.mask_code_weight, config.instance_aux_weight) == (2.0, 0.3, 4.0)
    assert (config.max_aux_objects, config.coordinate_scale, config.num_objects) == (7, 130, 5)
    assert (config.depth_loss_weight, config.depth_aux_weight, config.depth_tokenizer_config.tau) == (0.1, 3.0, 0.7)
    assert original_from_ait_config(config) == without_defaults(original)


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        (("backbone", "ape"), True, "backbone.ape is True"),
        (("backbone", "novelty"), 1, "novelty"),
        (("transformer", "num_vocal"), 79, "take 80"),
        (("transformer", "n_rows"), 5, "square"),
        (("transformer", "in_chans"), 65, "in_chans is 65"),
        (("task_heads", "depth", "depth_token_offset"), 63, "depth_token_offset is 63"),
        (("task_heads", "depth", "soft_vae"), False, "soft_vae is False"),
        (("task_heads", "depth", "vae_cfg", "token_length"), 10, "token_length 10"),
        (("task_heads", "pose"), {}, "pose"),
    ],
)
def test_what_cannot_be_represented_is_an_error(path, value, message):
    original = original_config("depth_ar_soft")
    section = original
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    with pytest.raises(ValueError, match=message):
        ait_config_from_original(original)


def test_a_missing_entry_is_an_error():
    original = original_config("depth_ar_soft")
    del original["transformer"]["d_model"]
    with pytest.raises(ValueError, match="transformer of the original configuration lacks 'd_model'"):
        ait_config_from_original(original)


def test_a_foreign_backbone_has_no_original():
    config = AiTConfig(backbone_config={"model_type": "ait_swinv2", "patch_size": 4, "layer_norm_eps": 1e-5})
    with pytest.raises(ValueError, match="layer_norm_eps"):
        original_from_ait_config(config)


# --- conversion -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", TASK_SOLVERS)
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
    assert json.loads(back.with_suffix(".json").read_text()) == without_defaults(original_config(name))


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


def test_converted_depth_model_predicts_the_golden_depth(files, tmp_path):
    convert(*files("depth_ar_soft"), tmp_path / "folder")
    model = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path / "folder")
    stored = load_file(GOLDENS / "depth_ar_soft.safetensors")
    depth = model(stored["pixel_values"]).predicted_depth
    assert (depth - stored["predicted_depth_window"]).abs().max() < 1e-4


def test_safetensors_checkpoint(files, tmp_path):
    _, settings = files("depth_parallel")
    save_file(original_tensors("depth_parallel"), tmp_path / "original.safetensors")
    report = convert(tmp_path / "original.safetensors", settings, tmp_path / "folder")
    assert all(comparison.passed for comparison in report.comparisons)


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


@pytest.mark.parametrize("name", VQVAES)
def test_sizes_are_read_off_the_tensors(name):
    config, sizes = vqvae_config_from_original(original_config(name)), vqvae_sizes(original_tensors(name))
    assert sizes == {key: getattr(config, key) for key in sizes}


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


@pytest.mark.parametrize("wrapper", ["model", "state_dict"])
@pytest.mark.parametrize("prefix", ["", "encoder.", "backbone."])
def test_backbone_pretraining_is_an_initialisation(prefix, wrapper, files, tmp_path):
    tensors = select(original_tensors("depth_ar_soft"), "backbone.")
    tensors = {prefix + key: tensor for key, tensor in tensors.items() if not key.startswith("norm")}
    tensors[f"{prefix}norm.weight"] = torch.ones(64)
    tensors[f"{prefix}layers.0.blocks.0.attn.relative_coords_table"] = torch.zeros(1, 7, 7, 2)
    checkpoint, settings = files("depth_ar_soft", tensors, wrapper=wrapper)
    report = convert(checkpoint, settings, tmp_path / "folder")
    assert "model.backbone.norm.weight" in report.absent and "INITIALISATION ONLY" in str(report)
    assert any("final norm of the pretraining" in reason for reason in report.dropped)
    assert json.loads((tmp_path / "folder/config.json").read_text())["initialization_only"] is True


def test_decoder_less_file_is_an_initialisation(files, tmp_path):
    gone = ("transformer.decoder", "transformer.voc_embed", "transformer.det_embed", "transformer.dec_embed")
    gone += ("transformer.outp_bias", "transformer.norm.")
    tensors = {key: t for key, t in original_tensors("detection").items() if not key.startswith(gone)}
    report = convert(*files("detection", tensors), tmp_path / "folder")
    assert report.absent and all(name.startswith("model.decoder.") for name in report.absent)
    assert any(comparison.name == "encoder: memory" for comparison in report.comparisons)
    model, info = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path / "folder", output_loading_info=True)
    assert set(info["missing_keys"]) == set(report.absent)
    assert model.config.initialization_only
    with pytest.raises(CheckpointError, match="no original layout"):
        reverse(tmp_path / "folder", tmp_path / "back.pth")


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
    (tmp_path / "a.pth").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="cannot be read"):
        read_checkpoint(tmp_path / "a.pth")
    (tmp_path / "a.safetensors").write_bytes(b"no checkpoint")
    with pytest.raises(CheckpointError, match="not a readable safetensors"):
        read_checkpoint(tmp_path / "a.safetensors")
    torch.save({"meta": {"x": 1}}, tmp_path / "b.pth")
    with pytest.raises(CheckpointError, match="dictionary of tensors"):
        read_checkpoint(tmp_path / "b.pth")


def test_a_file_of_old_pytorch(tmp_path):
    torch.save({"weights": {"a": torch.arange(3.0)}}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    assert torch.equal(read_checkpoint(tmp_path / "a.pt")["a"], torch.arange(3.0))


class _Malicious:
    def __reduce__(self):
        return os.mkdir, ("executed",)


def test_code_in_a_checkpoint_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.save({"state_dict": {"a": torch.ones(1)}, "meta": _Malicious()}, "evil.pth", pickle_module=pickle)
    with pytest.raises(CheckpointError, match="weights_only=True"):
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


# --- proof ----------------------------------------------------------------------------------------------------------


def _swap_two_heads(model):
    attention = model.model.backbone.stages[3].blocks[1].attention
    dim = attention.qkv.weight.shape[1] // attention.num_heads
    order = torch.cat((torch.arange(dim, 2 * dim), torch.arange(dim)))
    weight = attention.qkv.weight.data
    weight[: 2 * dim] = weight[: 2 * dim][order].clone()


def _swap_two_decoder_heads(model):
    attention = model.model.decoder.blocks[0].cross_attention
    attention.value.weight.data = attention.value.weight.data.roll(8, dims=0)


def _backbone_epsilon(model):
    model.model.backbone.stages[0].blocks[0].norm1.eps = 1e-5


def _encoder_epsilon(model):
    model.model.encoder.norm.eps = 1e-6


def _drop_bias(model):
    model.model.backbone.stages[0].blocks[0].attention.q_bias.data.zero_()


def _drop_shift(model):
    model.model.backbone.stages[1].blocks[1].attention.shift = 0


def _tau(model):
    model.depth_tokenizer.config.tau = 1.0


def _feedback(model):
    model.config.soft_feedback = False


PLANTED = [
    _swap_two_heads,
    _swap_two_decoder_heads,
    _backbone_epsilon,
    _encoder_epsilon,
    _drop_bias,
    _drop_shift,
    _tau,
    _feedback,
]


@pytest.mark.parametrize("plant", PLANTED)
def test_a_planted_error_fails_the_proof(plant, files, tmp_path, monkeypatch, capsys):
    build = converter.build_model

    def build_wrongly(config, renamed):
        renamed.tensors = {name: tensor.clone() for name, tensor in renamed.tensors.items()}
        model = build(config, renamed)
        plant(model)
        return model

    monkeypatch.setattr(converter, "build_model", build_wrongly)
    checkpoint, settings = files("depth_ar_soft")
    assert main(["--checkpoint", str(checkpoint), "--config", str(settings), "--output", str(tmp_path / "folder")]) == 1
    assert "ParityError" in capsys.readouterr().err
    assert nothing_left(tmp_path / "folder")


@pytest.mark.parametrize("name", ["transformer.decoder.blocks.0.attn.wk.bias", "transformer.voc_embed"])
def test_an_error_on_the_way_to_disk_fails_the_reload(name, files, tmp_path, monkeypatch):
    save = AiTForDenseAndInstancePrediction.save_pretrained
    ours = task_solver_names(ait_config_from_original(original_config("depth_ar_soft")))[name]

    def save_wrongly(model, folder, state_dict):
        return save(model, folder, state_dict={**state_dict, ours: state_dict[ours] + 1e-3})

    monkeypatch.setattr(AiTForDenseAndInstancePrediction, "save_pretrained", save_wrongly)
    with pytest.raises(ParityError, match="on the way to disk"):
        convert(*files("depth_ar_soft"), tmp_path / "folder")
    assert nothing_left(tmp_path / "folder")


# --- reverse --------------------------------------------------------------------------------------------------------


def test_reverse_refuses(files, tmp_path):
    convert(*files("vqvae_mask", wrapper="weights"), tmp_path / "folder")
    with pytest.raises(CheckpointError, match="--output must be"):
        reverse(tmp_path / "folder", tmp_path / "back")
    with pytest.raises(FileExistsError):
        reverse(tmp_path / "folder", tmp_path / "original.pth")
    with pytest.raises(FileNotFoundError, match="config.json"):
        reverse(tmp_path, tmp_path / "back.pth")


def test_reverse_of_a_model_in_several_files(files, tmp_path):
    model = AiTVQVAEModel(AiTVQVAEConfig(image_size=64, hidden_size=4, num_codes=8, code_dim=6))
    model.save_pretrained(tmp_path / "folder", max_shard_size="20KB")
    assert len(list((tmp_path / "folder").glob("*.safetensors"))) > 1
    returned = read_checkpoint(reverse(tmp_path / "folder", tmp_path / "back.pth"))
    assert torch.equal(returned["_vq_vae._embedding"], model.quantizer.codebook)


# --- memory ---------------------------------------------------------------------------------------------------------

MEMORY_SCRIPT = """
import resource, sys
import torch
from transformers_ait.conversion.__main__ import main

def peak():
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024

torch.set_num_threads(1)
before = peak()
assert main(sys.argv[1:]) == 0
print(peak() - before)
"""


@pytest.mark.slow
def test_memory_stays_below_twice_the_checkpoint(tmp_path, repository):
    config = AiTConfig.from_pretrained(repository / "hub_configs/ait-swinv2-base-depth")
    AiTForDenseAndInstancePrediction(config).save_pretrained(tmp_path / "own")
    checkpoint = reverse(tmp_path / "own", tmp_path / "original.pth")
    options = ["--checkpoint", checkpoint, "--config", "ait-swinv2-base-depth", "--output", tmp_path / "folder"]
    run = subprocess.run(
        [sys.executable, "-c", MEMORY_SCRIPT, *map(str, options)], capture_output=True, text=True, check=True
    )
    assert int(run.stdout.splitlines()[-1]) < 2.2 * checkpoint.stat().st_size
