"""Where trainings start from: pretrained timm backbones, earlier runs, aligned positions."""

import pytest
import timm
import torch
from transformers import TimmBackboneConfig

from transformers_ait import AiTForDenseAndInstancePrediction
from transformers_ait.engine.recipes.reading import RecipeError
from transformers_ait.engine.tasks.initialization import align_positions, initialize_from, load_backbone_weights


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
    # Coordinates, which depth does not use, may differ; a codebook may not, nor the width of the decoder.
    other = AiTForDenseAndInstancePrediction(tiny_config(num_bins=11))
    initialize_from(other, str(tmp_path))
    old, new = parallel.config.vocabulary.depth_codes, other.config.vocabulary.depth_codes
    assert torch.equal(other.model.decoder.token_embeddings[new.rows], theirs["decoder.token_embeddings"][old.rows])


def rows_of(model, task):
    """Position and task embeddings and the codes' embeddings of a task."""
    decoder, row = model.model.decoder, model.config.task_ids[task]
    codes = model.config.vocabulary.codes(task).rows
    positions = decoder.position_embeddings[row, : model.config.sequence_length(task)]
    return positions, decoder.task_embeddings[row], decoder.token_embeddings[codes], decoder.output_bias[codes]


def equal(first, second):
    return all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.fixture
def earlier(tiny_config, tiny_vqvae_config, enliven, tmp_path):
    """A model for normals and depth, and its folder."""
    dense = [{"name": "normals", "kind": "normals", "tokenizer_config": NORMALS}]
    config = tiny_config(dense_tasks=dense, tasks=["normals", "depth"], num_bins=11)
    model = enliven(AiTForDenseAndInstancePrediction(config))
    model.save_pretrained(tmp_path / "earlier")
    return model, str(tmp_path / "earlier")


NORMALS = {"image_size": 32, "downsample_ratio": 8, "hidden_size": 4, "num_codes": 7, "code_dim": 6}


def test_a_model_of_more_tasks_keeps_what_the_earlier_one_learnt(earlier, tiny_config, tiny_decoder_config):
    model, folder = earlier
    dense = [
        {"name": "height", "kind": "values", "tokenizer_config": NORMALS},
        {"name": "normals", "kind": "normals", "tokenizer_config": NORMALS},
    ]
    decoder = tiny_decoder_config(max_positions=30)
    # Another order of tasks, further ids before the shared ones, objects, and longer tables.
    tasks = ["detection", "height", "depth", "normals"]
    new = AiTForDenseAndInstancePrediction(tiny_config(dense_tasks=dense, tasks=tasks, decoder_config=decoder))
    fresh = [x.clone() for x in rows_of(new, "height")]
    initialize_from(new, folder)
    for task in ("depth", "normals"):
        assert equal(rows_of(new, task), rows_of(model, task)), task
    assert equal(rows_of(new, "height"), fresh)
    assert not equal(rows_of(new, "normals"), rows_of(new, "height"))
    assert torch.equal(new.model.encoder.input_projection.weight, model.model.encoder.input_projection.weight)


def test_classes_are_matched_by_name(tiny_config, enliven, tmp_path):
    names = ["chair", "table", "lamp"]
    model = enliven(AiTForDenseAndInstancePrediction(tiny_config(tasks=["detection"], id2label=dict(enumerate(names)))))
    model.save_pretrained(tmp_path)
    table = ["wall", "lamp", "chair", "floor"]
    new = AiTForDenseAndInstancePrediction(tiny_config(tasks=["detection"], id2label=dict(enumerate(table))))
    wall = new.model.decoder.output_bias[new.config.vocabulary.classes.start].clone()
    initialize_from(new, str(tmp_path))
    before, now = (x.model.decoder.token_embeddings[x.config.vocabulary.classes.rows] for x in (model, new))
    assert torch.equal(now[[1, 2]], before[[2, 0]])
    assert new.model.decoder.output_bias[new.config.vocabulary.classes.start] == wall
    noise = [x.model.decoder.token_embeddings[x.config.vocabulary.noise] for x in (model, new)]
    assert torch.equal(*noise)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            {"dense_tasks": [{"name": "normals", "kind": "normals", "tokenizer_config": NORMALS | {"num_codes": 9}}]},
            "7 ids for normals, this model 9",
        ),
        (
            {"dense_tasks": [{"name": "normals", "kind": "normals", "tokenizer_config": NORMALS | {"image_size": 16}}]},
            "16 tokens where this model writes 4 for the task 'normals'",
        ),
        ({"decoder_config": {"hidden_size": 32}}, "does not fit"),
    ],
)
def test_what_must_agree_is_named(earlier, tiny_config, changes, words):
    if "decoder_config" in changes:
        changes = {"decoder_config": {**tiny_config().decoder_config.to_dict(), **changes["decoder_config"]}}
    with pytest.raises(RecipeError, match=f"another architecture.*{words}"):
        initialize_from(AiTForDenseAndInstancePrediction(tiny_config(**changes)), earlier[1])


@pytest.mark.parametrize("task", ["depth", "normals"])
def test_aligned_positions_attend_to_their_own_place(tiny_config, tiny_decoder_config, task):
    decoder = tiny_decoder_config(hidden_size=128, initializer_range=0.08)  # as in the recipes
    dense = [{"name": "normals", "kind": "normals", "tokenizer_config": NORMALS}]
    config = tiny_config(decoder_config=decoder, dense_tasks=dense, tasks=["depth", "normals"])
    model = AiTForDenseAndInstancePrediction(config).eval()
    row = config.task_ids[task]

    def matches():
        block = model.model.decoder.blocks[0]
        marks = model.model.encoder.positions[None]
        queries = block.cross_attention.query(
            block.norm2(model.model.decoder.position_embeddings[row, : marks.shape[1]])
        )
        keys = block.cross_attention.key(block.norm2(marks))[0]
        return (queries @ keys.T).argmax(dim=1).eq(torch.arange(len(keys))).float().mean().item()

    assert matches() < 0.5
    align_positions(model)
    assert matches() > 0.7
    with pytest.raises(RecipeError, match="equal grids"):
        align_positions(AiTForDenseAndInstancePrediction(tiny_config(image_size=64)))
