"""Dense decoders as tokenizers of a task-solver (UniPixTask's sequence learner): losses, prediction, storing."""

import json
import subprocess
import sys
from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError
from PIL import Image
from teacher_cases import CLASSES, teacher_case
from transformers import AutoModel, AutoModelForDepthEstimation, ResNetConfig, pipeline

from transformers_ait import (
    AiTDenseImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTModel,
    AiTPlainDenseConfig,
    AiTPlainDenseModel,
    DenseDecoderConfig,
    DenseDecoderModel,
    describe_teacher,
    save_with_code,
)
from transformers_ait.teacher_loading_ait import build_task_head
from transformers_ait.teachers_ait import TASK_MODELS

KINDS = OrderedDict(depth="depth", normals="normals", semantic="classes")
CODES = {"depth": 11, "normals": 7, "semantic": 9}
SIZE, GRID = 64, 4


def backbone(**fields):
    settings = {"embedding_size": 8, "hidden_sizes": [8, 12], "depths": [1, 1], "layer_type": "basic"}
    return ResNetConfig(**(settings | {"out_indices": [1, 2]} | fields))


def dense_decoder(task, family="plain", **overrides):
    """A dense decoder with seeded weights of a tiny teacher, and codes that its encoder tells apart."""
    model = teacher_case(family).model()
    teacher = TASK_MODELS[model.config.model_type](model, task if family == "plain" else None)
    fields = describe_teacher(teacher, SIZE) | {
        "backbone_config": backbone(),
        "downsample_ratio": SIZE // GRID,
        "num_codes": CODES[task],
        "code_dim": 6,
        "hidden_size": 16,
        "num_layers": 1,
        "num_attention_heads": 2,
        "intermediate_size": 32,
        "num_groups": 4,
        "initializer_range": 0.2,
    }
    torch.manual_seed(0)
    found = DenseDecoderModel(DenseDecoderConfig(**(fields | overrides))).eval()
    found.load_head(teacher)
    with torch.no_grad():
        found.quantizer.codebook.normal_()
        found.encoder.compression.projection.weight.mul_(20)
    return found


@pytest.fixture(scope="module")
def decoders():
    """A dense decoder of each task."""
    return {task: dense_decoder(task) for task in KINDS}


@pytest.fixture(scope="module")
def learner(decoders, tiny_config, tiny_decoder_config, enliven):
    """Function that builds a learner of all tasks, from overrides of `tiny_config`."""

    def build(**overrides):
        entries = [
            {"name": task, "kind": KINDS[task], "tokenizer_config": model.without_encoder().config}
            for task, model in decoders.items()
        ]
        settings = {
            "dense_tasks": entries,
            "tasks": None,
            "depth_tokenizer_config": None,
            "num_depth_codes": CODES["depth"],
            "image_size": SIZE,
            "decoder_config": tiny_decoder_config(initializer_range=0.2),
        }
        torch.manual_seed(0)
        model = AiTForDenseAndInstancePrediction(tiny_config(**(settings | overrides)))
        enliven(model.model)
        with torch.no_grad():  # so that every place has a code of its own
            model.model.decoder.position_embeddings.normal_(std=2)
            model.model.decoder.output_bias.zero_()
        for task, source in decoders.items():
            model.tokenizer(task).load_state_dict(source.without_encoder().state_dict())
        return model.eval()

    return build


@pytest.fixture
def pictures():
    return torch.rand(2, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def codes_of(decoders, pictures):
    return {task: model.encode(pictures) for task, model in decoders.items()}


# --- training --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parallel", [True, False])
def test_the_loss_is_the_cross_entropy_of_the_dense_decoders_codes(decoders, learner, pictures, parallel):
    model, codes = learner(parallel=parallel, soft_decode=False), codes_of(decoders, pictures)
    output = model(pictures, dense_codes=codes)
    assert list(output.task_losses) == list(KINDS)
    vocabulary, lengths = model.config.vocabulary, [GRID**2] * 3
    for task, logits in zip(KINDS, output.logits.split(lengths, dim=1), strict=True):
        targets = vocabulary.codes(task).start + codes[task].flatten(1)
        expected = F.cross_entropy(logits.flatten(0, 1), targets.flatten())
        torch.testing.assert_close(output.loss_dict[f"{task}_ce"], expected)
        shifted = F.cross_entropy(logits.flatten(0, 1), targets.roll(1, 1).flatten())
        assert (shifted - expected).abs() > 1e-3, "a code in another place is another target"
        assert output.loss_dict[f"{task}_aux"] == 0


def test_the_auxiliary_loss_compares_with_the_dense_decoders_own_map(decoders, learner, pictures):
    model, codes = learner(parallel=True), codes_of(decoders, pictures)
    # Smaller than the model: what is outside of the image is nobody's to predict.
    smaller = pictures[:, :, :48, :40]
    codes = {task: decoders[task].encode(smaller) for task in KINDS}
    output = model(smaller, dense_codes=codes)
    for task, logits in zip(KINDS, output.logits.split([GRID**2] * 3, dim=1), strict=True):
        rows = model.config.vocabulary.codes(task).rows
        soft = decoders[task].decode_soft(logits[..., rows].transpose(1, 2).unflatten(2, (GRID, GRID)))[..., :48, :40]
        whole = decoders[task].decode(codes[task])[..., :48, :40]
        if task == "depth":
            ratio = whole.clamp(min=1e-3).log() - soft.clamp(min=1e-3).log()
            expected = (ratio.square().mean() - 0.5 * ratio.mean() ** 2).sqrt()
        elif task == "normals":
            expected = 1 - F.cosine_similarity(soft, whole, dim=1).mean()
        else:
            expected = F.cross_entropy(soft, whole.argmax(1))
        torch.testing.assert_close(output.loss_dict[f"{task}_aux"], expected, rtol=1e-4, atol=1e-5)
    output.loss.backward()
    assert not [name for task in KINDS for name, p in model.tokenizer(task).named_parameters() if p.grad is not None]
    assert model.model.decoder.token_embeddings.grad.abs().sum() > 0


@pytest.mark.slow
def test_tasks_of_images_and_of_labels_share_a_pass(decoders, learner, pictures, tiny_vqvae_config):
    tokenizer = tiny_vqvae_config(map_kind="normals", image_size=SIZE, downsample_ratio=16)
    entries = [
        {"name": "depth", "tokenizer_config": decoders["depth"].without_encoder().config},
        {"name": "normals", "kind": "normals", "tokenizer_config": tokenizer},
    ]
    torch.manual_seed(0)
    config = learner().config.to_dict()
    config |= {"dense_tasks": entries, "depth_tokenizer_config": None, "tasks": None, "parallel": True}
    config = {name: value for name, value in config.items() if name not in ("id2label", "label2id", "default_task")}
    model = AiTForDenseAndInstancePrediction(type(learner().config)(**config)).eval()
    normals = F.normalize(torch.randn(2, 3, SIZE, SIZE), dim=1)
    codes = {"depth": decoders["depth"].encode(pictures)}
    both = model(pictures, dense_labels={"normals": normals}, dense_codes=codes)
    alone = [model(pictures, dense_labels={"normals": normals}), model(pictures, dense_codes=codes)]
    for output in alone:
        for name, value in output.loss_dict.items():
            assert both.loss_dict[name].item() == pytest.approx(value.item(), rel=1e-4)
    assert both.loss.item() == pytest.approx(sum(x.loss.item() for x in alone), rel=1e-4)


@pytest.mark.parametrize("parallel, soft", [(True, True), (False, False)])
def test_predicted_codes_become_maps_through_the_frozen_decoded_mapping(decoders, learner, pictures, parallel, soft):
    """Published is greedy, step by step: hard codes fed back, hard codes decoded."""
    model = learner(parallel=parallel, soft_decode=soft, soft_feedback=soft)
    output = {task: model.generate(pictures, task) for task in KINDS}
    vocabulary = model.config.vocabulary
    for task, source in decoders.items():
        logits = output[task].code_logits
        picked = output[task].sequences - vocabulary.codes(task).start
        assert torch.equal(picked, logits.argmax(-1)) and picked.unique().numel() > 1
        with torch.no_grad():
            hard = source.decode(picked.view(2, GRID, GRID))
            expected = source.decode_soft(logits.transpose(1, 2).unflatten(2, (GRID, GRID))) if soft else hard
        found = output[task].dense_maps[task]
        torch.testing.assert_close(found, source.config.kind.from_tokenizer(expected), rtol=1e-4, atol=1e-4)
        assert not soft or (found - source.config.kind.from_tokenizer(hard)).abs().max() > 1e-3


@pytest.mark.slow
def test_learning_moves_the_learner_and_no_dense_decoder(decoders, learner, pictures):
    model, codes = learner(parallel=True).train(), codes_of(decoders, pictures)
    tokenizers = {name: x.clone() for name, x in model.state_dict().items() if "tokenizer" in name}
    optimizer = torch.optim.Adam([p for p in model.parameters() if p.requires_grad], lr=1e-2)
    losses = []
    for _ in range(6):
        losses.append(model(pictures, dense_codes=codes).loss)
        optimizer.zero_grad()
        losses[-1].backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    after = model.state_dict()
    assert tokenizers and all(torch.equal(x, after[name]) for name, x in tokenizers.items())


# --- the option of a feature pyramid ----------------------------------------------------------------------------------


@torch.no_grad()
def test_the_pyramid_sums_convolutions_of_all_levels(learner, pictures):
    model = learner(backbone_config=backbone(), feature_pyramid=True, feature_stride=16).model
    fine, coarse = model.backbone(pictures).feature_maps
    first, second = model.pyramid.convolutions
    expected = F.avg_pool2d(F.conv2d(fine, first.weight, first.bias, padding=1), 4)
    expected = expected + F.avg_pool2d(F.conv2d(coarse, second.weight, second.bias, padding=1), 2)
    found = model.get_image_features(pictures)
    assert found.shape == (2, 16, GRID, GRID)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    assert (found - F.avg_pool2d(F.conv2d(coarse, second.weight, second.bias, padding=1), 2)).abs().max() > 1e-2


@pytest.mark.slow
def test_the_pyramid_starts_as_convolutions_do_and_is_stored(learner, pictures, tmp_path):
    config = learner(backbone_config=backbone(), feature_pyramid=True, feature_stride=8).config
    torch.manual_seed(0)
    model = AiTForDenseAndInstancePrediction(config).eval()
    weight = model.model.pyramid.convolutions[1].weight
    bound = (9 * 12) ** -0.5
    assert weight.abs().max() <= bound and weight.std().item() == pytest.approx(bound / 3**0.5, rel=0.1)
    model.save_pretrained(tmp_path)
    loaded, info = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert torch.equal(loaded.get_encoder_memory(pictures), model.get_encoder_memory(pictures))
    assert loaded.config.grid_size == 8 and json.loads((tmp_path / "config.json").read_text())["feature_pyramid"]
    with pytest.raises(ValueError, match="The backbone's last feature map is"):
        learner(backbone_config=backbone(), feature_stride=16).get_image_features(pictures)


# --- prediction, storing, remote code ---------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize(
    "family",
    [
        "dpt",
        "maskformer",
        "depth anything",
        "upernet",
        "segformer",
        "mask2former",
    ],
)
def test_checkpoints_of_every_family_of_teacher_come_back(tiny_config, tiny_decoder_config, pictures, tmp_path, family):
    task = "depth" if family in ("dpt", "depth anything") else "semantic"
    source = dense_decoder(task, family, **({"map_kind": "depth"} if task == "depth" else {}))
    entry = {"name": task, "kind": KINDS[task], "tokenizer_config": source.without_encoder().config}
    depth = {"num_depth_codes": CODES["depth"], "depth_tokenizer_config": None, "tasks": None, "image_size": SIZE}
    model = AiTForDenseAndInstancePrediction(tiny_config(dense_tasks=[entry], parallel=True, **depth)).eval()
    model.tokenizer(task).load_state_dict(source.without_encoder().state_dict())
    model.save_pretrained(tmp_path)
    loaded, info = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info[key] for key in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    output, expected = loaded(pictures), model(pictures)
    assert torch.equal(output.dense_maps[task], expected.dense_maps[task])
    assert not any(p.requires_grad for p in loaded.tokenizer(task).parameters())
    assert not loaded.train().tokenizer(task).training
    stored = [config.dense[task].tokenizer_config for config in (loaded.config, model.config)]
    assert [x.teacher_config["model_type"] for x in stored] == [source.config.teacher_config["model_type"]] * 2


def test_more_than_ten_classes_keep_their_order(tiny_config):
    """JSON turns numbers into text, and sorts "10" before "2"."""
    names = [f"class {index}" for index in range(12)]
    task = {"name": "semantic", "kind": "classes", "class_names": names}
    plain = AiTPlainDenseConfig(backbone_config=backbone(), dense_tasks=[task], image_size=SIZE, hidden_size=8)
    described = describe_teacher(TASK_MODELS[plain.model_type](AiTPlainDenseModel(plain)), SIZE)
    sizes = {"downsample_ratio": 16, "has_encoder": False, "hidden_size": 16, "num_groups": 4}
    entry = {"name": "semantic", "kind": "classes", "tokenizer_config": DenseDecoderConfig(**described, **sizes)}
    config = tiny_config(dense_tasks=[entry], tasks=None, depth_tokenizer_config=None, image_size=SIZE)
    for _ in range(2):
        config = type(config).from_dict(json.loads(json.dumps(config.to_dict(), sort_keys=True)))
    head = config.dense["semantic"].tokenizer_config.teacher_config
    assert list(head["id2label"].values()) == names == config.dense["semantic"].class_names
    assert build_task_head(head).class_names == names


@pytest.mark.slow
@torch.no_grad()
def test_folders_serve_auto_classes_and_pipelines(learner, pictures, tmp_path):
    model = learner(parallel=True)
    model.save_pretrained(tmp_path)
    size = {"height": SIZE, "width": SIZE}
    normalization = {"do_normalize": True, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    AiTDenseImageProcessor(map_kinds=dict(KINDS), size=size, **normalization).save_pretrained(tmp_path)
    expected = model(pictures)
    assert list(expected.dense_maps) == list(KINDS)
    assert expected.dense_maps["semantic"].shape == (2, len(CLASSES), SIZE, SIZE)
    for auto in (AutoModelForDepthEstimation,):
        loaded = auto.from_pretrained(tmp_path)
        assert isinstance(loaded, AiTForDenseAndInstancePrediction)
        assert torch.equal(loaded(pictures).predicted_depth, expected.predicted_depth)
    alone = AutoModel.from_pretrained(tmp_path)
    assert isinstance(alone, AiTModel)
    image = Image.effect_noise((80, 64), 60).convert("RGB")
    found = pipeline("depth-estimation", model=str(tmp_path), device="cpu")(image)
    assert found["predicted_depth"].shape == (64, 80)
    segments = pipeline("image-segmentation", model=str(tmp_path), device="cpu")(image, subtask="semantic")
    assert {entry["label"] for entry in segments} <= set(CLASSES)
    half = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert {p.dtype for p in half.tokenizer("normals").parameters()} == {torch.float32}
    assert half(pictures).dense_maps["normals"].isfinite().all()


ELSEWHERE = """
import sys

import torch


class Blocker:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "transformers_ait":
            raise ModuleNotFoundError("transformers_ait is not installed here")


sys.meta_path.insert(0, Blocker())
from transformers import AutoModelForDepthEstimation

model = AutoModelForDepthEstimation.from_pretrained(sys.argv[1], trust_remote_code=True)
torch.save(dict(model(torch.load(sys.argv[2])).dense_maps), sys.argv[3])
"""


@pytest.mark.slow
def test_code_beside_the_checkpoint_is_enough(learner, pictures, tmp_path, monkeypatch):
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    model = learner(parallel=True)
    save_with_code(model, tmp_path / "checkpoint")
    torch.save(pictures, tmp_path / "pictures.pt")
    command = [sys.executable, "-c", ELSEWHERE, *(str(tmp_path / x) for x in ("checkpoint", "pictures.pt", "maps.pt"))]
    finished = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert finished.returncode == 0, finished.stderr[-3000:]
    expected = model(pictures).dense_maps
    for task, maps in torch.load(tmp_path / "maps.pt").items():
        torch.testing.assert_close(maps, expected[task], rtol=1e-5, atol=1e-5)


# --- errors ----------------------------------------------------------------------------------------------------------


def test_what_the_model_cannot_learn_from_is_named(decoders, learner, pictures, tiny_model, images):
    model, codes = learner(parallel=True), codes_of(decoders, pictures)

    def refuses(message, **inputs):
        with pytest.raises(ValueError, match=message):
            model(pictures, **inputs)

    refuses(r"dense_labels of \['depth'\] are not needed: .*dense decoders", depth_labels=torch.ones(2, SIZE, SIZE))
    refuses("dense_labels of .* are not needed", dense_labels={"semantic": torch.zeros(2, SIZE, SIZE).long()})
    refuses(
        r"dense_codes\['depth'\] must be whole numbers of shape \(2, 4, 4\)", dense_codes={"depth": codes["depth"][:1]}
    )
    refuses(r"dense_codes\['depth'\] must be whole numbers", dense_codes={"depth": codes["depth"].float()})
    refuses(
        r"must lie in \[0, 7\), .*got 10: the dense decoder has another codebook",
        dense_codes={"normals": torch.full((2, 4, 4), 10)},
    )
    refuses(r"must lie in \[0, 7\), .*got -1", dense_codes={"normals": torch.full((2, 4, 4), -1)})
    refuses("task must be one of .*'heights'", dense_codes={"heights": codes["depth"]})
    refuses(
        r"task \['depth'\] takes .* got codes of \['normals'\]", task="depth", dense_codes={"normals": codes["normals"]}
    )
    refuses("dense_codes is empty", dense_codes={})
    with pytest.raises(ValueError, match=r"dense_codes are for tasks with a dense decoder .* got those of \['depth'\]"):
        tiny_model()(images, dense_codes={"depth": torch.zeros(3, 4, 4).long()})
    with pytest.raises(ValueError, match="sides of at most 64"):
        model(torch.rand(2, 3, 80, 64), dense_codes=codes)
    with pytest.raises(ValueError, match="beside codes"):
        model(torch.rand(2, 2, 3, 64, 64), dense_codes=codes)


@pytest.mark.parametrize(
    "entry, overrides, message",
    [
        ({}, {"num_depth_codes": 12}, "num_depth_codes is 12, but the depth tokenizer has 11 codes"),
        ({"kind": "values"}, {}, "'depth' must be of that kind|is of kind 'values'"),
        ({"name": "far", "kind": "normals"}, {}, "'far' is of kind 'normals', but its tokenizer is of kind 'depth'"),
        ({}, {"image_size": 32}, "image_size of the depth tokenizer must not exceed the model's image_size 32, got 64"),
        ({}, {"decoder_config": {"max_positions": 9}}, "max_positions must be at least 16"),
    ],
)
def test_dense_decoders_that_do_not_fit_are_named(decoders, tiny_config, entry, overrides, message):
    entry = {"name": "depth", "tokenizer_config": decoders["depth"].without_encoder().config} | entry
    settings = {"num_depth_codes": CODES["depth"], "depth_tokenizer_config": None, "tasks": None, "image_size": SIZE}
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        tiny_config(dense_tasks=[entry], **(settings | overrides))


def test_the_encoded_mapping_stays_where_it_is(decoders, tiny_config):
    entry = {"name": "depth", "tokenizer_config": decoders["depth"].config}
    with pytest.raises(
        StrictDataclassError, match=r"has_encoder=True; give dense_decoder\.without_encoder\(\)\.config"
    ):
        tiny_config(dense_tasks=[entry], tasks=None, depth_tokenizer_config=None, image_size=SIZE)


def test_images_are_normalised_as_the_teacher_expects_them(decoders, pictures):
    assert torch.equal(decoders["depth"].normalize(pictures), pictures)
    model = dense_decoder("depth", image_mean=[0.1, 0.2, 0.3], image_std=[0.5, 0.4, 0.25])
    expected = (pictures - torch.tensor([0.1, 0.2, 0.3]).view(3, 1, 1)) / torch.tensor([0.5, 0.4, 0.25]).view(3, 1, 1)
    assert torch.equal(model.normalize(pictures), expected)
    assert torch.equal(model.normalize(pictures[0]), expected[0])
