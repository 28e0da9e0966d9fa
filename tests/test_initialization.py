"""Where trainings start from: pretrained timm backbones, earlier runs, aligned positions."""

import pytest
import timm
import torch
from transformers import TimmBackboneConfig

from transformers_ait import AiTForDenseAndInstancePrediction
from transformers_ait.engine.initialization import align_positions, initialize_from, load_backbone_weights
from transformers_ait.engine.recipes import RecipeError


@pytest.fixture
def timm_model(tiny_config):
    backbone = TimmBackboneConfig(backbone="test_efficientnet", out_indices=[2])
    return AiTForDenseAndInstancePrediction(tiny_config(backbone_config=backbone, feature_stride=8))


@pytest.fixture
def weights_file(tmp_path):
    torch.manual_seed(7)
    whole = timm.create_model("test_efficientnet")
    # Foreign names in timm's order, with a classifier at the end.
    torch.save({f"foreign.{i}": tensor for i, tensor in enumerate(whole.state_dict().values())}, tmp_path / "w.pth")
    return whole, tmp_path / "w.pth"


def test_backbone_weights_in_timms_order(timm_model, weights_file):
    whole, file = weights_file
    load_backbone_weights(timm_model, str(file))
    loaded = timm_model.model.backbone._backbone.state_dict()
    assert loaded and all(torch.equal(tensor, whole.state_dict()[name]) for name, tensor in loaded.items())


def test_backbone_weights_that_do_not_fit(timm_model, tiny_config, weights_file, tmp_path):
    _, file = weights_file
    with pytest.raises(RecipeError, match="timm_backbone"):
        load_backbone_weights(AiTForDenseAndInstancePrediction(tiny_config()), str(file))
    with pytest.raises(FileNotFoundError, match="no file"):
        load_backbone_weights(timm_model, str(tmp_path / "missing.pth"))
    with pytest.raises(FileNotFoundError, match="pip install no-such-package"):
        load_backbone_weights(timm_model, "package:no_such_package")
    tensors = list(torch.load(file).values())
    torch.save(dict(enumerate(tensors[::-1])), file)
    with pytest.raises(RecipeError, match="does not fit"):
        load_backbone_weights(timm_model, str(file))


def test_autoregressive_starts_from_parallel(tiny_config, enliven, tmp_path):
    parallel = enliven(AiTForDenseAndInstancePrediction(tiny_config(parallel=True, soft_feedback=False)))
    parallel.save_pretrained(tmp_path)
    model = AiTForDenseAndInstancePrediction(tiny_config())
    before = model.depth_tokenizer.quantizer.codebook.clone()
    initialize_from(model, str(tmp_path))
    theirs = parallel.model.state_dict()
    assert all(torch.equal(tensor, theirs[name]) for name, tensor in model.model.state_dict().items())
    assert torch.equal(model.depth_tokenizer.quantizer.codebook, before)
    with pytest.raises(RecipeError, match="another architecture"):
        initialize_from(AiTForDenseAndInstancePrediction(tiny_config(num_bins=11)), str(tmp_path))


def test_aligned_positions_attend_to_their_own_place(tiny_config, tiny_decoder_config):
    decoder = tiny_decoder_config(hidden_size=128, initializer_range=0.08)  # as in the recipes
    model = AiTForDenseAndInstancePrediction(tiny_config(decoder_config=decoder)).eval()

    def matches():
        block = model.model.decoder.blocks[0]
        marks = model.model.encoder.positions[None]
        queries = block.cross_attention.query(block.norm2(model.model.decoder.position_embeddings[2, : marks.shape[1]]))
        keys = block.cross_attention.key(block.norm2(marks))[0]
        return (queries @ keys.T).argmax(dim=1).eq(torch.arange(len(keys))).float().mean().item()

    assert matches() < 0.5
    align_positions(model)
    assert matches() > 0.7
    with pytest.raises(RecipeError, match="equal grids"):
        align_positions(AiTForDenseAndInstancePrediction(tiny_config(image_size=64)))
