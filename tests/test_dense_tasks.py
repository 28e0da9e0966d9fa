"""Dense tasks by configuration: the table, ids and rows, one pass for several maps, mixes with objects, bad tables."""

import json
import math

import pytest
import torch
import torch.nn.functional as F
from huggingface_hub.errors import StrictDataclassError

from transformers_ait import (
    AiTBinTokenizer,
    AiTBinTokenizerConfig,
    AiTConfig,
    AiTDenseImageProcessor,
    AiTForDenseAndInstancePrediction,
    AiTVQVAEModel,
)
from transformers_ait.map_kinds_ait import IGNORED_CLASS, MAP_KINDS

NAMES = ["wall", "floor", "chair"]
TOKENIZER = {"image_size": 32, "downsample_ratio": 8, "hidden_size": 4, "num_resnet_blocks": 1, "code_dim": 6}
BINS = {"model_type": "ait_bin_tokenizer"}
CODES = {"normals": 9, "semantic": 7, "heights": 5}


def table(**changes):
    """Normals, classes of fewer pixels and tokens, and two channels of heights."""
    entries = [
        {"name": "normals", "kind": "normals", "loss_weight": 0.5},
        {"name": "semantic", "kind": "classes", "class_names": NAMES, "aux_weight": 2.0},
        {"name": "heights", "kind": "values"},
    ]
    for entry in entries:
        entry["tokenizer_config"] = TOKENIZER | {"num_codes": CODES[entry["name"]]}
    entries[1]["tokenizer_config"]["image_size"] = 24
    entries[2]["tokenizer_config"] |= {"num_channels": 2, "value_scale": 2.0}
    return [entry | changes.get(entry["name"], {}) for entry in entries]


def labels(names, size=24):
    """Maps of three images; a fifth of the pixels are invalid, and the last image's classes altogether."""
    valid = torch.rand(3, size, size) > 0.2
    maps = {
        "depth": torch.rand(3, size, size).add(1) * valid,
        "normals": F.normalize(torch.randn(3, 3, size, size), dim=1) * valid[:, None],
        "semantic": torch.randint(3, (3, size, size)).masked_fill(~valid, IGNORED_CLASS),
        "heights": torch.randn(3, 2, size, size).masked_fill(~valid[:, None], math.nan),
    }
    maps["semantic"][2] = IGNORED_CLASS
    return {name: maps[name] for name in names}


ALL = ["depth", *CODES]


@pytest.fixture(scope="module")
def dense_model(tiny_model, tiny_vqvae_config, tiny_decoder_config):
    def build(objects=(), **overrides):
        names = {"id2label": dict(enumerate(NAMES))} if objects else {}
        if objects:
            names["mask_tokenizer_config"] = tiny_vqvae_config(
                image_size=16, num_codes=5, symmetric_range=True, ignore_zero=False
            )
            names["decoder_config"] = tiny_decoder_config(max_positions=27)
        settings = {"dense_tasks": table(), "tasks": [*ALL, *objects]} | overrides
        return tiny_model(**names, **settings)

    return build


@pytest.fixture
def model(dense_model):
    return dense_model(parallel=True)


@pytest.fixture
def small(images):
    return images[..., :24, :24]


def test_places_follow_from_the_table(tiny_config):
    before, config = tiny_config(), tiny_config(dense_tasks=table(), tasks=["semantic", "depth", "normals", "heights"])
    assert list(config.dense) == ["depth", "normals", "semantic", "heights"] and config.default_task == "semantic"
    assert config.task_ids == {"detection": 0, "instance": 1, "depth": 2, "normals": 3, "semantic": 4, "heights": 5}
    assert config.num_task_rows == 6 and before.num_task_rows == 4
    vocabulary = config.vocabulary
    assert vocabulary.codes("depth") == before.vocabulary.depth_codes == vocabulary.depth_codes
    assert vocabulary.codes("normals").start == before.vocabulary.size
    sizes = {task: vocabulary.codes(task).size for task in CODES}
    assert sizes == CODES and vocabulary.size == before.vocabulary.size + sum(CODES.values())
    assert vocabulary.codes("heights").stop == vocabulary.size
    spare = tiny_config(dense_tasks=table(), tasks=None, num_spare_tokens=4).vocabulary
    assert spare.codes("normals").start == before.vocabulary.size + 4


def test_the_table_survives_json_and_names_nothing_twice(tiny_config, tmp_path):
    config = tiny_config(dense_tasks=table(), tasks=None)
    assert config.tasks == list(CODES)
    config.save_pretrained(tmp_path)
    stored = json.loads((tmp_path / "config.json").read_text())["dense_tasks"]
    assert [sorted(entry) for entry in stored] == 3 * [
        ["aux_weight", "kind", "loss_weight", "name", "tokenizer_config"]
    ]
    again = AiTConfig.from_pretrained(tmp_path)
    assert again.to_dict() == config.to_dict() and again.dense == config.dense
    assert again.dense["semantic"].class_names == NAMES and again.dense["heights"].channels == 2


def test_depth_in_the_table_is_depth_where_it_always_stood(tiny_config, tiny_vqvae_config):
    settings = {
        "decoder_config": tiny_config().decoder_config,
        "image_size": 32,
        "num_depth_codes": 12,
        "num_labels": 3,
    }
    settings["backbone_config"] = tiny_config().backbone_config
    old = AiTConfig(depth_tokenizer_config=tiny_vqvae_config(), depth_aux_weight=3.0, **settings)
    entry = {"name": "depth", "tokenizer_config": tiny_vqvae_config().to_dict(), "aux_weight": 3.0}
    new = AiTConfig(dense_tasks=[entry], **settings)
    assert new.to_dict() == old.to_dict() and new.dense_tasks == [] and new.dense["depth"].aux_weight == 3.0


def test_class_tables(tiny_config):
    without = tiny_config(dense_tasks=table(), tasks=None)
    assert list(without.id2label.values()) == NAMES
    shared = tiny_config(dense_tasks=table(), tasks=[*CODES, "detection"], id2label=dict(enumerate(NAMES)))
    assert shared.vocabulary.classes.size == 3
    with pytest.raises(StrictDataclassError, match="id2label must hold the classes of the dense task 'semantic'"):
        tiny_config(dense_tasks=table(), tasks=[*CODES, "detection"], id2label=dict(enumerate("abc")))


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"dense_tasks": [*table(), {"name": "normals"}]}, r"dense_tasks must have different names, got \['normals'"),
        ({"dense_tasks": table(normals={"kind": "flow"})}, "kind of the dense task 'normals' must be one of.*'flow'"),
        ({"dense_tasks": table(normals={"kind": "mask"})}, "kind of the dense task 'normals' must be one of"),
        ({"dense_tasks": table(normals={"kind": "values"})}, None),
        (
            {"dense_tasks": table(normals={"tokenizer_config": TOKENIZER | {"map_kind": "values", "num_channels": 3}})},
            "'normals' is of kind 'normals', but its tokenizer is of kind 'values'",
        ),
        ({"dense_tasks": table(normals={"name": "instance"})}, "name of a dense task must be"),
        ({"dense_tasks": table(normals={"name": "a.b"})}, "name of a dense task must be.*'a.b'"),
        ({"dense_tasks": table(normals={"weight": 1})}, "'normals' has unknown keys"),
        ({"dense_tasks": [{"kind": "normals"}]}, "dictionaries with a name"),
        (
            {
                "dense_tasks": table(
                    semantic={"class_names": ["a"], "tokenizer_config": TOKENIZER | {"num_channels": 2}}
                )
            },
            "id2label must name",
        ),
        (
            {"dense_tasks": table(normals={"tokenizer_config": {"model_type": "bert"}})},
            "model_type 'bert', which is neither",
        ),
        (
            {"dense_tasks": table(normals={"tokenizer_config": 5})},
            "tokenizer_config of the dense task 'normals' must be a dict",
        ),
        (
            {"dense_tasks": [{"name": "depth", "kind": "values"}], "depth_tokenizer_config": None},
            "'depth' must be of that kind",
        ),
        ({"dense_tasks": [{"name": "depth"}]}, "depth_tokenizer_config is given too"),
        ({"dense_tasks": table(), "tasks": ["depth"]}, r"tasks must name every dense task once.*without \['normals'"),
        ({"dense_tasks": table(), "tasks": [*CODES, "flow"]}, "tasks must name at least one of.*'flow'"),
        (
            {"dense_tasks": table(normals={"tokenizer_config": TOKENIZER | {"image_size": 64}})},
            "normals tokenizer must not exceed",
        ),
        (
            {"dense_tasks": table(normals={"tokenizer_config": TOKENIZER | {"downsample_ratio": 2}})},
            "task 'normals'; got 24",
        ),
        ({"tasks": ["detection"], "parallel": True}, "parallel decoding is for dense tasks"),
    ],
)
def test_impossible_tables_are_named(tiny_config, overrides, message):
    settings = {"tasks": None} | overrides
    if message is None:
        assert tiny_config(**settings).dense["normals"].channels == 1  # a kind by itself needs nothing else
        return
    with pytest.raises((StrictDataclassError, ValueError, TypeError), match=message):
        tiny_config(**settings)


@pytest.mark.parametrize("parallel", [True, False])
def test_all_tasks_in_one_pass_are_what_each_is_alone(dense_model, small, parallel):
    model, maps = dense_model(parallel=parallel), labels(ALL)
    together = model(small, dense_labels=maps)
    alone = {task: model(small, dense_labels={task: maps[task]}) for task in ALL}
    assert together.loss_dict.keys() == {f"{task}_{part}" for task in ALL for part in ("ce", "aux")}
    for output in alone.values():
        for name, value in output.loss_dict.items():
            assert together.loss_dict[name].item() == pytest.approx(value.item(), rel=1e-5)
    assert together.loss.item() == pytest.approx(sum(output.loss.item() for output in alone.values()), rel=1e-5)
    parts = together.loss_dict
    assert alone["normals"].loss.item() == pytest.approx(
        0.5 * (parts["normals_ce"] + parts["normals_aux"]).item(), rel=1e-5
    )
    assert alone["semantic"].loss.item() == pytest.approx(
        (parts["semantic_ce"] + 2 * parts["semantic_aux"]).item(), rel=1e-5
    )


def test_an_image_without_a_valid_pixel_does_not_count_for_that_task(model, small):
    maps = labels(["semantic"])
    whole, without = (model(small[:n], dense_labels={"semantic": maps["semantic"][:n]}).loss_dict for n in (3, 2))
    assert whole["semantic_ce"].item() == pytest.approx(without["semantic_ce"].item(), rel=1e-5)
    assert whole["semantic_aux"].item() == pytest.approx(without["semantic_aux"].item(), rel=1e-5)


def test_gradients_reach_every_tasks_rows_and_no_tokenizer(model, small):
    model.train()
    model(small, dense_labels=labels(ALL)).loss.backward()
    decoder = model.model.decoder
    rows = [model.config.task_ids[task] for task in ALL]
    assert all(decoder.task_embeddings.grad[row].abs().sum() > 0 for row in rows)
    assert all(decoder.token_embeddings.grad[model.config.vocabulary.codes(task).rows].abs().sum() > 0 for task in ALL)
    assert decoder.task_embeddings.grad[:2].abs().sum() == 0
    assert all(parameter.grad is None for task in ALL for parameter in model.tokenizer(task).parameters())


def test_a_parallel_model_predicts_all_its_maps_in_one_decoder_pass(model, small, monkeypatch):
    shapes, forward = [], type(model.model.decoder).forward

    def counted(self, inputs, memory):
        shapes.append(tuple(inputs.shape[:2]))
        return forward(self, inputs, memory)

    monkeypatch.setattr(type(model.model.decoder), "forward", counted)
    output = model(small)
    assert shapes == [(3 * 4, 16)]
    assert {task: tuple(maps.shape) for task, maps in output.dense_maps.items()} == {
        "depth": (3, 24, 24),
        "normals": (3, 3, 24, 24),
        "semantic": (3, 3, 24, 24),
        "heights": (3, 2, 24, 24),
    }
    assert torch.equal(output.predicted_depth, output.dense_maps["depth"])
    for task in ALL:
        alone = model(small, task=task)
        assert torch.allclose(alone.dense_maps[task], output.dense_maps[task], atol=1e-5)
        assert alone.code_logits.shape == (
            3,
            model.config.sequence_length(task),
            model.tokenizer(task).config.num_codes,
        )
    assert model(small, task="normals").predicted_depth is None
    assert list(model(small, task=["heights", "depth"]).dense_maps) == ["heights", "depth"]


def test_the_default_task_of_a_stepwise_model_is_one_task(dense_model, small):
    model = dense_model()
    assert list(model(small).dense_maps) == ["depth"]
    several = model.generate(small, ["normals", "semantic"])
    alone = model.generate(small, "semantic")
    assert torch.allclose(several.dense_maps["semantic"], alone.dense_maps["semantic"], atol=1e-5)


@pytest.mark.parametrize("parallel", [True, False])
def test_maps_and_objects_side_by_side(dense_model, small, parallel):
    model = dense_model(objects=["instance", "detection"], parallel=parallel)
    found = model.generate_tasks(small, top_p=0.0, max_objects=2)
    assert list(found) == [*ALL, "instance", "detection"]
    for task, output in found.items():
        alone = model.generate(small, task, top_p=0.0, max_objects=2)
        assert torch.equal(output.sequences, alone.sequences)
        for name in ("dense_maps", "mask_values"):
            if getattr(alone, name) is not None:
                pair = [x if isinstance(x, torch.Tensor) else x[task] for x in (output[name], alone[name])]
                assert torch.allclose(*pair, atol=1e-5)
    with pytest.raises(ValueError, match="several tasks of one call must be dense"):
        model.generate(small, ["depth", "instance"])


def test_views(model, small):
    views = torch.stack([small, small.flip(-1)], dim=1)
    output = model(views)
    assert output.predicted_depth.shape == (3, 2, 24, 24) and output.sequences.shape == (3, 2, 16)
    assert output.dense_maps["normals"].shape == (3, 2, 3, 24, 24)
    assert torch.allclose(output.dense_maps["normals"][:, 0], model(small).dense_maps["normals"], atol=1e-5)
    one = output.dense_maps[1]
    assert torch.equal(one["semantic"], output.dense_maps["semantic"][1:2])


def test_batched_equals_single(model, small):
    whole = model(small).dense_maps
    for index in range(3):
        for task, maps in model(small[index : index + 1]).dense_maps.items():
            assert torch.allclose(maps, whole[task][index : index + 1], atol=1e-4)


def test_task_ids_name_dense_tasks(model, small):
    row = model.config.task_ids["semantic"]
    assert list(model(small, task_ids=torch.full((3,), row)).dense_maps) == ["semantic"]
    with pytest.raises(ValueError, match="task_ids must all be one of.*'heights': 5"):
        model(small, task_ids=torch.full((3,), 9))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"normals": torch.full((3, 3, 24, 24), 0.7)}, r"dense_labels\['normals'\] must be vectors of length 1.*1.21"),
        ({"normals": torch.zeros(3, 24, 24)}, r"dense_labels\['normals'\] must be \(batch, channels, height, width\)"),
        ({"semantic": torch.full((3, 24, 24), 3)}, r"dense_labels\['semantic'\] must be class ids in \[0, 3\)"),
        ({"semantic": torch.zeros(3, 20, 24, dtype=torch.long)}, r"dense_labels\['semantic'\] must be \(batch, height"),
        ({"heights": torch.full((3, 2, 24, 24), math.inf)}, r"dense_labels\['heights'\] must be finite"),
        ({"depth": torch.full((3, 24, 24), -1.0)}, "depth_labels must be finite and not negative"),
        ({"flow": torch.zeros(3, 24, 24)}, "task must be one of.*'flow'"),
    ],
)
def test_unfit_labels_are_named(model, small, change, message):
    with pytest.raises(ValueError, match=message):
        model(small, dense_labels=change)


def test_labels_of_other_tasks_than_the_one_named_are_refused(model, small):
    with pytest.raises(ValueError, match="takes dense_labels of"):
        model(small, task="normals", dense_labels=labels(["depth"]))


def test_images_beyond_a_tokenizer_are_refused(model, images):
    with pytest.raises(ValueError, match="at most 24, the semantic tokenizer's image_size"):
        model(images)
    assert model(images, task="normals").dense_maps["normals"].shape == (3, 3, 32, 32)


@pytest.mark.slow
@pytest.mark.parametrize("objects", [(), ("instance",)])
def test_saved_and_loaded_to_the_bit(dense_model, small, tmp_path, objects):
    model = dense_model(objects=objects, parallel=True)
    model.save_pretrained(tmp_path)
    again = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path).eval()
    assert all(torch.equal(x, again.state_dict()[name]) for name, x in model.state_dict().items())
    for task, maps in again(small, task=ALL).dense_maps.items():
        assert torch.equal(maps, model(small, task=ALL).dense_maps[task])
    half = AiTForDenseAndInstancePrediction.from_pretrained(tmp_path, dtype=torch.bfloat16)
    assert half.tokenizer("normals").dtype == torch.float32 and half.model.dtype == torch.bfloat16


def test_an_older_model_keeps_its_bits_when_tasks_come_after_it(tiny_model, dense_model, images):
    """Ids and rows that exist keep their places, so the same weights give the same depth."""
    old, new = tiny_model(), dense_model()
    state = new.state_dict()
    for name, tensor in old.state_dict().items():
        state[name][tuple(slice(size) for size in tensor.shape)] = tensor
    new.load_state_dict(state)
    assert torch.equal(new(images, task="depth").predicted_depth, old(images).predicted_depth)


@pytest.mark.parametrize("task", CODES)
def test_bins_serve_every_kind(dense_model, small, task):
    size = {"image_size": 24, "downsample_ratio": 8}
    settings = {"normals": {}, "semantic": {}, "heights": {"num_channels": 2, "num_codes": 25, "min_value": -3}}[task]
    entry = {"tokenizer_config": {"model_type": "ait_bin_tokenizer"} | size | settings}
    model = dense_model(dense_tasks=table(**{task: entry}), parallel=True)
    assert isinstance(model.tokenizer(task).config, AiTBinTokenizerConfig)
    output = model(small, dense_labels=labels([task]))
    assert output.loss.isfinite()
    assert model(small, task=task).dense_maps[task].shape[-2:] == (24, 24)


@pytest.mark.parametrize("name, channels", [("normals", 3), ("classes", 3), ("values", 2)])
def test_a_vqvae_of_every_kind_learns_to_reconstruct(tiny_vqvae_config, name, channels):
    names = {"id2label": dict(enumerate(NAMES))} if name == "classes" else {"num_channels": channels}
    scale = {"value_scale": 2.0} if name == "values" else {}
    config = tiny_vqvae_config(map_kind=name, **names, **scale)
    assert config.num_channels == channels and config.kind is MAP_KINDS[name]
    model = AiTVQVAEModel(config)
    task = {"normals": "normals", "classes": "semantic", "values": "heights"}[name]
    smooth = {key: x[..., :1, :1].expand(x.shape) for key, x in labels([task]).items()}[task].clone()
    smooth[..., :8, :] = config.kind.invalid
    maps = config.kind.to_tokenizer(smooth, channels)
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    losses = []
    for _ in range(40):
        output = model(config.kind.fill(maps), labels=maps)
        optimizer.zero_grad()
        output.loss.backward()
        optimizer.step()
        losses.append(output.reconstruction_loss.item())
    assert losses[-1] < 0.65 * losses[0] and math.isfinite(losses[-1])
    assert output.reconstruction.shape == maps.shape
    assert model.decode(model.encode(maps)).isfinite().all()


def test_rows_of_the_image_processor_are_the_models_whatever_the_order_of_tasks(tiny_config):
    config = tiny_config(dense_tasks=table(), tasks=["heights", "semantic", "normals"])
    kinds = {task: spec.kind for task, spec in config.dense.items()}
    for task in CODES:
        processor = AiTDenseImageProcessor(map_kinds=kinds, task=task, size={"height": 24, "width": 24})
        inputs = processor(torch.zeros(3, 24, 24, dtype=torch.uint8), return_tensors="pt")
        assert inputs["task_ids"].tolist() == [config.task_ids[task]]


def test_arguments_of_from_pretrained_are_read_like_the_file(tiny_config, tmp_path):
    tiny_config(dense_tasks=table(), tasks=None).save_pretrained(tmp_path)
    changed = AiTConfig.from_pretrained(tmp_path, dense_tasks=table(normals={"aux_weight": 7.0}))
    assert changed.dense["normals"].aux_weight == 7.0 and changed.to_dict()["dense_tasks"][0]["aux_weight"] == 7.0
    with pytest.raises((StrictDataclassError, ValueError), match="tasks must name every dense task once"):
        AiTConfig.from_pretrained(tmp_path, tasks=["normals"])


@pytest.mark.parametrize(
    "overrides, message",
    [
        ({"dense_tasks": table(normals={"class_names": ["a"]})}, "class_names do not suit the dense task 'normals'"),
        ({"dense_tasks": table(), "num_labels": None, "id2label": {0: "x", 1: "y", 2: "z"}}, "id2label must hold"),
        (
            {"dense_tasks": [{"name": "c", "kind": "classes", "tokenizer_config": {"id2label": {1: "a", 2: "b"}}}]},
            "id2label must name",
        ),
        (
            {"dense_tasks": [{"name": "c", "kind": "classes", "tokenizer_config": {"num_channels": 300}}]},
            "at most 255 classes",
        ),
        (
            {
                "dense_tasks": table(
                    heights={"tokenizer_config": {"model_type": "ait_bin_tokenizer", "num_channels": 2}}
                )
            },
            "num_codes must be given",
        ),
    ],
)
def test_contradictory_class_tables_and_bins_are_named(tiny_config, overrides, message):
    settings = {"tasks": None} | {name: x for name, x in overrides.items() if x is not None}
    with pytest.raises((StrictDataclassError, ValueError), match=message):
        tiny_config(**settings)


def test_tuples_of_class_names_and_objects_beside_classes_need_nothing_else(tiny_config):
    settings = {"class_names": tuple(NAMES), "tokenizer_config": TOKENIZER | {"num_codes": 7}}
    config = tiny_config(dense_tasks=table(semantic=settings), tasks=[*CODES, "detection"], id2label=None)
    assert list(config.id2label.values()) == NAMES and config.dense["semantic"].class_names == NAMES


def test_labels_of_objects_train_one_task_and_labels_come_without_views(dense_model, small, images):
    model = dense_model(objects=["instance", "detection"], parallel=True)
    objects = [{"boxes": torch.zeros(0, 4), "class_labels": torch.zeros(0, dtype=torch.long)}] * 3
    for tasks in (["instance", "detection"], ["depth", "detection"]):
        with pytest.raises(ValueError, match="instance_labels are of one object task"):
            model(small, task=tasks, instance_labels=objects)
    with pytest.raises(ValueError, match="dense_labels is empty"):
        model(small, dense_labels={})
    with pytest.raises(ValueError, match="beside labels"):
        model(small[:, None], dense_labels=labels(["normals"]))


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32])
def test_class_labels_of_any_integer_type_train(model, small, dtype):
    maps = labels(["semantic"])
    expected = model(small, dense_labels=maps).loss
    assert torch.equal(model(small, dense_labels={"semantic": maps["semantic"].to(dtype)}).loss, expected)


def test_a_task_and_its_ids_may_agree_in_a_list(model, small):
    ids = torch.full((3,), model.config.task_ids["normals"])
    assert list(model(small, task=["normals"], task_ids=ids).dense_maps) == ["normals"]


def test_bins_of_classes_give_scores_whose_probabilities_are_the_cells():
    config = AiTBinTokenizerConfig(
        map_kind="classes", image_size=8, downsample_ratio=8, id2label=dict(enumerate(NAMES))
    )
    tokenizer, kind = AiTBinTokenizer(config), MAP_KINDS["classes"]
    chances = torch.tensor([0.7, 0.2, 0.1])
    decoded = tokenizer.decode_soft(chances.log()[None, :, None, None])
    assert torch.allclose(kind.to_average(decoded)[0, :, 4, 4], chances, atol=1e-5)
    maps = kind.to_tokenizer(torch.full((1, 8, 8), 2), 3)
    assert kind.auxiliary_loss(tokenizer.decode(tokenizer.encode(maps)), maps) < 1e-4
