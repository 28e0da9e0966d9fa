"""The proof that comes with a conversion: what it compares, and planted errors that fail it."""

from functools import partial

import pytest
import torch
from golden_files import nothing_left, original_config, original_tensors, write_original

from transformers_ait import (
    AiTForDenseAndInstancePrediction,
)
from transformers_ait.conversion import converter
from transformers_ait.conversion.__main__ import main
from transformers_ait.conversion.converter import convert
from transformers_ait.conversion.key_map import task_solver_names
from transformers_ait.conversion.original_config import (
    ait_config_from_original,
)
from transformers_ait.conversion.parity import ParityError, compare, require_parity, task_solver_probes


@pytest.fixture
def files(tmp_path):
    """Function that writes tensors and configuration of a golden; returns both paths."""
    return partial(write_original, tmp_path)


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


@pytest.mark.slow
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


def _shift_the_vocabulary(model):
    model.config.num_bins -= 1


def _objects_feedback(model):
    model.config.soft_feedback = not model.config.soft_feedback


def _task_rows(model):
    model.model.decoder.task_embeddings.data = model.model.decoder.task_embeddings.data.roll(1, dims=0)


@pytest.mark.parametrize("plant", [_shift_the_vocabulary, _objects_feedback, _task_rows])
def test_a_planted_error_in_objects_fails_the_proof(plant, files):
    config, original = ait_config_from_original(original_config("instance_soft")), original_config("instance_soft")
    names, tensors = task_solver_names(config), original_tensors("instance_soft")
    model = AiTForDenseAndInstancePrediction(config).eval()
    model.load_state_dict({mine: tensors[theirs] for theirs, mine in names.items()})
    probes = task_solver_probes(tensors, original, names)
    require_parity(compare(model, probes), "before planting")
    plant(model)
    with pytest.raises(ParityError, match="decoder: first tokens of instance"):
        require_parity(compare(model, probes), "after planting")


@pytest.mark.slow
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
